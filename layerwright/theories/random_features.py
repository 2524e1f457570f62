"""What ridge regression on random features costs, and whether more features or more data would pay."""

from __future__ import annotations

import math

import numpy as np

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, quantities, theory
from layerwright.maths.random_features import best_ridge, risk

_POINTS = 25
# Samples, noise and a ridge so large that the formulas overflow.
_MOST = 1e15


@theory(paper="2311.14646")
def random_features(
    eigenvalues: np.ndarray | None = None,
    coefficients: np.ndarray | None = None,
    *,
    samples: int = 1000,
    features: float = 1000,
    ridge: float | None = None,
    noise: float = 0.1,
    decay: float = 1.5,
    task_decay: float = 1.6,
    modes: int = 2000,
) -> Prediction:
    """Test and training error of ridge regression on random features, the best ridge, and what would lower the error.

    With λ_i the eigenvalues of the kernel, v_i the task's coefficients, δ the ridge and σ² the noise, κ and γ from

        n = Σ λ_i/(λ_i + γ) + δ/κ,   k = Σ λ_i/(λ_i + γ) + kκ/γ,   train = (δ/(nκ))² test

    and the test error as in `maths/random_features.py`. A network of which only the last layer is trained is one case,
    with k its width. At the best ridge more features never hurt, nor do more data.

    Assumes:
        features that look Gaussian, along the kernel's eigenfunctions: right for large n and k, and close on real data
        by the paper's account. One kernel, one output, the squared error.

    Args:
        eigenvalues: λ, largest first; those of `K/n` for a kernel matrix K of n samples. Left out: i^−decay.
        coefficients: v, as long. Left out: squares i^−task_decay that sum to 1.
        samples: n.
        features: k, the width; `.inf` for the kernel.
        ridge: δ; left out, the best one.
        noise: σ², the variance of the labels' noise.
        decay: exponent of the eigenvalues.
        task_decay: exponent of the squared coefficients.
        modes: how many there are, where they are made.

    Returns:
        errors, the ridge, the fitting ratio train/test, and the test error with twice the data or twice the features,
        each at its best ridge; the picture is the test error by width.

    Raises:
        UserError: sizes, ridge or noise cannot be used, or arrays are of unlike length or not above 0.

    Example:
        >>> found = random_features(samples=100, features=100, noise=0.1, modes=200)
        >>> found["test_error"] > found["test_error_of_twice_the_features"] > 0.1
        True

    Reference: arXiv 2311.14646.
    """
    values, squares = _spectrum(eigenvalues, coefficients, decay, task_decay, modes)
    wide = features == math.inf or 1 <= features < _MOST
    if not (wide and 1 <= samples < _MOST and 0 <= noise < _MOST and (ridge is None or 0 < ridge < _MOST)):
        raise UserError(
            f"got samples={samples}, features={features}, ridge={ridge}, noise={noise}; expected samples and features "
            "from 1 on (.inf for the kernel), a ridge above 0, and noise from 0 on, all below 1e15"
        )

    def best(n: float, k: float) -> tuple[float, float]:
        found = best_ridge(values, squares, n, k, noise)
        return found, risk(values, squares, n, k, found, noise).test

    best_of, least = best(samples, features)
    taken = ridge or best_of
    here = risk(values, squares, samples, features, taken, noise)
    table = quantities(
        [
            ("test_error", here.test, "1", "mean squared error on new samples, noise included"),
            ("train_error", here.train, "1", "mean squared error on the samples fitted on"),
            ("fitting_ratio", here.train / here.test, "1", "train over test: near 0 the samples are nearly fitted"),
            ("ridge", taken, "1", "the ridge of these errors"),
            ("best_ridge", best_of, "1", "the ridge of the least test error"),
            ("best_test_error", least, "1", "the test error there"),
            ("test_error_of_twice_the_data", best(2 * samples, features)[1], "1", "at its own best ridge"),
            ("test_error_of_twice_the_features", best(samples, 2 * features)[1], "1", "at its own best ridge"),
        ]
    )  # fmt: skip
    widths = np.geomspace(max(1.0, samples / 10), samples * 10, _POINTS)
    by_width = [(float(k), risk(values, squares, samples, k, taken, noise).test) for k in widths]
    tuned = [(float(k), best(samples, k)[1]) for k in widths]
    picture = Picture(
        {f"ridge {taken:.3g}": by_width, "best ridge of each width": tuned},
        across="features", up="test error (1)", log_across=True,
    )  # fmt: skip
    notes = [] if ridge is not None else ["the ridge is the best one; give --set ridge=VALUE for another"]
    return Prediction(table, notes=notes, picture=picture)


def _spectrum(
    eigenvalues: np.ndarray | None, coefficients: np.ndarray | None, decay: float, task_decay: float, modes: int
) -> tuple[np.ndarray, np.ndarray]:
    if eigenvalues is None and not (isinstance(modes, int) and modes >= 1):
        raise UserError(f"got modes={modes}; expected a whole number from 1 on")
    values = np.arange(1, modes + 1.0) ** -decay if eigenvalues is None else np.asarray(eigenvalues, dtype=float)
    ranks = np.arange(1, values.size + 1.0)
    squares = ranks**-task_decay if coefficients is None else np.asarray(coefficients, dtype=float) ** 2
    if values.ndim != 1 or values.shape != squares.shape:
        raise UserError(f"got eigenvalues {values.shape} and coefficients {squares.shape}; expected two of one length")
    if not (np.isfinite(squares).all() and np.isfinite(values).all() and (values > 0).all()):
        raise UserError(
            "got eigenvalues or coefficients that are not finite, or eigenvalues not above 0; leave those out"
        )
    return values, squares / squares.sum() if coefficients is None else squares
