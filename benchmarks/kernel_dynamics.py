"""Ensembles of wide networks in training, and posteriors, beside those of neural-tangents.

    python benchmarks/kernel_dynamics.py --peer PYTHON

PYTHON is the interpreter of an environment with `neural-tangents` and the JAX that it needs (0.4.24); it computes in
float64, kernels included, and reads and writes arrays. Section `dynamics`: means and covariances of outputs on new
points at some times of gradient flow and at its end (`gradient_descent_mse_ensemble`), of the posterior with noise
(`gp_inference`), and the largest learning rate (`max_learning_rate`).
"""

from __future__ import annotations

import numpy as np
from arrays_of_peer import both, far

SAMPLES, QUERIES, DIMENSION, DEPTH, NOISE = 60, 20, 8, 3, 0.1
WEIGHT, BIAS = 1.5, 0.1
TIMES = (0.0, 1.0, 10.0, 1000.0, np.inf)
ACTIVATIONS = ("relu", "erf", "gelu")


def main() -> None:
    mine, peer = both(__file__, __doc__, ours, theirs)
    from common import table

    rows = [("dynamics", name, far(mine[name], peer[name])) for name in mine]
    print(table(rows, ("section", "quantity", "largest difference / largest number")))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, their targets, and queries."""
    rng = np.random.default_rng(0)
    x, new = rng.standard_normal((SAMPLES, DIMENSION)), rng.standard_normal((QUERIES, DIMENSION))
    return x, np.stack([np.sin(x[:, 0]) + x[:, 1], x[:, 2] ** 2], 1), new


def ours() -> dict[str, np.ndarray]:
    """By name, from the package; two outputs."""
    import torch

    from layerwright.maths import kernel_dynamics as dynamics
    from layerwright.theories import Act, Dense, tower

    (x, y, new), found, n = data(), {}, SAMPLES
    for name in ACTIVATIONS:
        net = tower([*[Dense(WEIGHT, BIAS), Act(name)] * DEPTH, Dense()])
        kernels = net.kernel(torch.from_numpy(np.concatenate([x, new])))
        k, t = kernels.nngp.numpy(), kernels.ntk.numpy()
        training = dynamics.decompose(k[:n, :n], t[:n, :n], y)
        points = dynamics.query(training, k[n:, :n], t[n:, :n], k[n:, n:])
        for time in TIMES:
            # neural-tangents divides the loss by the outputs as well.
            state = dynamics.flow(training.values, time / y.shape[1])
            put(found, f"{name}, t = {time:g}", dynamics.outputs(training, state, points))
        put(found, f"{name}, posterior", dynamics.posterior(k[:n, :n], y, k[n:, :n], k[n:, n:], NOISE)[0])
        found[f"{name}, largest learning rate"] = np.array(dynamics.largest_rate(training.values))
    return found


def theirs() -> dict[str, np.ndarray]:
    """By name, from neural-tangents."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import neural_tangents as nt
    from neural_tangents import stax

    (x, y, new), found = data(), {}
    layers = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu}
    for name in ACTIVATIONS:
        hidden = [w for _ in range(DEPTH) for w in (stax.Dense(1, WEIGHT**0.5, BIAS**0.5), layers[name]())]
        _, _, kernel = stax.serial(*hidden, stax.Dense(1, 1.0, None))
        ensemble = nt.predict.gradient_descent_mse_ensemble(kernel, x, y)
        for time in TIMES:
            end = None if np.isinf(time) else time
            put(found, f"{name}, t = {time:g}", ensemble(t=end, x_test=new, get="ntk", compute_cov=True))
        samples, cross, among = kernel(x, x), kernel(new, x), kernel(new, new)
        regress = nt.predict.gp_inference(samples, y, diag_reg=NOISE, diag_reg_absolute_scale=True)
        put(found, f"{name}, posterior", regress("nngp", cross, among.nngp))
        rate = nt.predict.max_learning_rate(samples.ntk, y_train_size=SAMPLES)
        found[f"{name}, largest learning rate"] = np.asarray(rate)
    return found


def put(found: dict[str, np.ndarray], name: str, gaussian: tuple[np.ndarray, np.ndarray]) -> None:
    """Keep a mean and a covariance; the mean at the start is 0 on both sides."""
    mean, covariance = (np.asarray(part) for part in gaussian)
    found[f"{name}: covariance"] = covariance
    if mean.any():
        found[f"{name}: mean"] = mean


if __name__ == "__main__":
    main()
