"""neural-tangents for `tangent_kernels.py`, in a process of its own: tasks as lines of JSON in, results out.

Run by the Python that has it, with jax 0.4.24; not by hand. Ways: 1 Jacobians, 2 products with vectors, 3 structured
derivatives.
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache
from pathlib import Path

import jax
import neural_tangents as nt
import numpy as np

FOLDER = Path(sys.argv[1])
ARRAYS = dict(np.load(FOLDER / "network.npz"))
X = jax.numpy.asarray(ARRAYS.pop("x"))
LAYERS = sorted({int(name.partition("_")[0]) for name in ARRAYS})
# Inputs by outputs, as its own layers have it: of a weight that is turned first it sees no structure.
PARAMS = [(jax.numpy.asarray(ARRAYS[f"{k}_weight"].T), jax.numpy.asarray(ARRAYS[f"{k}_bias"])) for k in LAYERS]


def network(params, x):
    """The same network."""
    for k, (weight, bias) in enumerate(params):
        x = jax.nn.relu(x) if k else x
        x = x @ weight + bias
    return x


@lru_cache
def kernel(way: int):
    """The compiled function."""
    return jax.jit(nt.empirical_ntk_fn(network, trace_axes=(), vmap_axes=0, implementation=way))


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        try:
            run = kernel(task["way"])
            found = run(X, None, PARAMS).block_until_ready()  # compiled here, the first time
            start = time.perf_counter()
            for _ in range(task["times"]):
                found = run(X, None, PARAMS).block_until_ready()
            seconds = (time.perf_counter() - start) / task["times"]
            np.save(FOLDER / "kernel.npy", np.asarray(found))
            print(json.dumps({"seconds": seconds}), flush=True)
        except Exception as error:  # whatever it is, the other process has to know
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), flush=True)


if __name__ == "__main__":
    main()
