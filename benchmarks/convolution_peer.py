"""neural-tangents for `convolution_kernels.py`, in a process of its own: tasks as lines of JSON in, results out.

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


@lru_cache
def kernel(depth: int):
    """The compiled function for so many layers of `convolution_kernels.py`."""
    layers = [
        layer for _ in range(depth)
        for layer in (stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=None), stax.Relu())
    ]  # fmt: skip
    _, _, function = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(1, 1.0, None))
    return jax.jit(lambda x: function(x, None, ("nngp", "ntk")))


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        x = np.load(task["images"]).transpose(0, 2, 3, 1).astype(task["dtype"])
        wall, cpu = time.perf_counter(), time.process_time()
        found = kernel(task["depth"])(x)
        nngp, ntk = np.asarray(found.nngp), np.asarray(found.ntk)
        seconds = [time.perf_counter() - wall, time.process_time() - cpu]
        np.savez(task["results"], nngp=nngp, ntk=ntk)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
