"""Kernels of towers on rows beside those of neural-tangents: every activation and every word that both have.

    python benchmarks/kernel_agreement.py --peer PYTHON

PYTHON is the interpreter of an environment with `neural-tangents` and the JAX that it needs (0.4.24); it computes in
float64. Rows differ in norm, then share one. Equality, not speed: target 1e-6 of the largest number. Where the peer has
no closed form (tanh, silu) it takes a quadrature of degree 200. Left out: its Hermite polynomials, which expect inputs
of variance 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from arrays_of_peer import both, far

ROWS, DIMENSION, DEPTH, WEIGHT, BIAS, SLOPE, GAMMA = 66, 8, 3, 1.5, 0.1, 0.2, 0.5
ACTIVATIONS = (
    "relu", f"leaky_relu:{SLOPE}", "abs", "erf", "gelu", "sin", "cos", f"rbf:{GAMMA}", "monomial:2", "monomial:3",
    "rectified:2", "tanh", "silu",
)  # fmt: skip
TOWERS = ("residual", "norm", "dropout")


def main() -> None:
    mine, peer = both(__file__, __doc__, lambda: every(*ours()), lambda: every(*theirs()))
    from common import table

    kinds = [(norms, part) for norms in data() for part in ("nngp", "ntk")]
    rows = [
        (name, *(far(mine[key := f"{name} {norms} {part}"], peer[key]) for norms, part in kinds))
        for name in (*ACTIVATIONS, *TOWERS)
    ]
    print(table(rows, ("tower", *(f"{part}, norms {norms}" for norms, part in kinds))))


def data() -> dict[str, np.ndarray]:
    """Rows whose norms differ, and the same of one norm."""
    x = np.random.default_rng(0).standard_normal((ROWS, DIMENSION))
    return {"differ": x, "equal": x / np.linalg.norm(x, axis=1, keepdims=True) * DIMENSION**0.5}


def every(words: dict[str, Callable[..., Any]], activation: Callable[[str], Any], run: Callable[..., Any]) -> Any:
    """All kernels, by name."""
    dense, last = (lambda: words["dense"](WEIGHT, BIAS)), words["dense"](1.0, 0.0)
    relu = activation("relu")
    towers = {name: [layer for _ in range(DEPTH) for layer in (dense(), activation(name))] for name in ACTIVATIONS}
    towers["residual"] = [dense(), *[words["residual"](relu, dense()) for _ in range(DEPTH)], relu]
    towers["norm"] = [dense(), words["norm"](), relu, dense(), words["norm"](), activation("gelu")]
    towers["dropout"] = [dense(), relu, words["dropout"](0.7), dense(), relu]
    found = {}
    for name, layers in towers.items():
        for norms, x in data().items():
            for part, kernel in run([*layers, last], x).items():
                found[f"{name} {norms} {part}"] = np.asarray(kernel)
    return found


def ours() -> tuple[dict[str, Callable[..., Any]], Callable[[str], Any], Callable[..., Any]]:
    """Words, activations, and what is to be done with them."""
    import torch

    from layerwright.theories import Act, Dense, Dropout, Norm, Residual, tower

    words = {"dense": Dense, "norm": Norm, "dropout": Dropout, "residual": lambda *inner: Residual(inner)}

    def run(layers: list[Any], x: np.ndarray) -> dict[str, Any]:
        found = tower(layers).kernel(torch.from_numpy(x))
        return {"nngp": found.nngp, "ntk": found.ntk}

    return words, Act, run


def theirs() -> tuple[dict[str, Callable[..., Any]], Callable[[str], Any], Callable[..., Any]]:
    """The same in neural-tangents."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    def residual(*inner: Any) -> Any:
        return stax.serial(stax.FanOut(2), stax.parallel(stax.serial(*inner), stax.Identity()), stax.FanInSum())

    words = {
        "dense": lambda weight, bias: stax.Dense(1, weight**0.5, bias**0.5 if bias else None),
        "norm": lambda: stax.LayerNorm(eps=1e-5),
        "dropout": lambda keep: stax.Dropout(keep, mode="train"),
        "residual": residual,
    }
    made = {
        "relu": stax.Relu, "leaky_relu": stax.LeakyRelu, "abs": stax.Abs, "erf": stax.Erf, "gelu": stax.Gelu,
        "sin": stax.Sin, "cos": stax.Cos, "rbf": stax.Rbf, "monomial": lambda k: stax.Monomial(int(k)),
        "rectified": lambda k: stax.RectifiedMonomial(int(k)),
        "tanh": lambda: stax.ElementwiseNumerical(jax.numpy.tanh, 200),
        "silu": lambda: stax.ElementwiseNumerical(jax.nn.silu, 200),
    }  # fmt: skip

    def activation(given: str) -> Any:
        name, *parameter = given.split(":")
        return made[name](*map(float, parameter))

    def run(layers: list[Any], x: np.ndarray) -> dict[str, Any]:
        _, _, kernel = stax.serial(*layers)
        return kernel(x, None, ("nngp", "ntk"))._asdict()

    return words, activation, run


if __name__ == "__main__":
    main()
