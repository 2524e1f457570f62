"""neural-tangents for `wide_kernels.py`, in a process of its own: tasks as lines of JSON in, seconds out.

Run by the Python that has it, with jax 0.4.24; not by hand.
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
from neural_tangents import stax  # noqa: E402 - after the type is set

ACTS = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}


@lru_cache
def kernel(act: str, bias: float, depth: int):
    """The compiled function of so many layers."""
    layers = [layer for _ in range(depth) for layer in (stax.Dense(1, 2**0.5, bias**0.5), ACTS[act]())]
    _, _, function = stax.serial(*layers, stax.Dense(1, 1.0, None))
    return jax.jit(lambda x: function(x, None, ("nngp", "ntk")))


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        run, x = kernel(task["act"], task["bias"], task["depth"]), np.load(task["rows"]).astype(task["dtype"])
        start = time.perf_counter()
        for part in run(x):
            part.block_until_ready()
        print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
