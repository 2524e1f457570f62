"""Bounds on a generalization gap by what each layer tells a training sample from a new one by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.information_bounds import (
    divergence_bound,
    dropconnect_contraction,
    dropout_contraction,
    expected_error,
    gaussian_divergence,
    gaussian_wasserstein,
    mean_classifier,
    noise_contraction,
    suffix_products,
    wasserstein,
)

# Samples of each kind whose best pairs are found, and divisions of all of them for what chance gives.
_MOST, _DIVISIONS = 500, 3


@theory(paper="2404.03176")
def generalization_bounds(
    train: np.ndarray | None = None,
    test: np.ndarray | None = None,
    norms: np.ndarray | None = None,
    train_labels: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    *,
    samples: int = 100,
    dimensions: int = 64,
    widths: Sequence[int] = (32, 16, 8, 1),
    signal: float = 1.0,
    noise: float = 1.0,
    dropout: float = 0.0,
    dropconnect: float = 0.0,
    injected: float = 0.0,
    lipschitz: float = 1.0,
    seed: int = 0,
) -> Prediction:
    """Bounds on test loss minus training loss by every layer of a network, and where they say nothing.

    With T_l what layer l gives, of a training sample T_l,i or a new one, and W the weights,

        KL:          s √(2 KL_l),   KL_l = E KL(P(T_l,i, Y_i | W) ‖ P(T_l, Y | W)) ≤ KL_{l−1}
        Wasserstein: ρ E [Π_{j>l} ‖W_j‖ · W_1(P(T_l,i | W), P(T_l | W))]

    for a loss that is s-sub-Gaussian (1/2 for one between 0 and 1) and changes by ρ a unit of the output. The layer of
    the least Wasserstein bound is the funnel; of exact distances the last layer is one, for a layer stretches none by
    more than its norm. A random layer lets through no more than η of KL: 1 − δ^d of dropout, 1 − δ^(d_in d_out) of
    DropConnect, 1 − 2Q(√d/s) of noise s on d units of tanh. With wide layers that is nearly all.

    Without arrays this is computed for two classes N(± μ, σ² I) and a linear network whose matrices' product is the
    mean ŵ of Y X, in closed form up to an integral:

        KL_l = ½ [E ‖P_l (ŵ − μ)‖²/σ² − r_l/n − r_l ln(1 − 1/n)],   P_l onto the r_l directions that layer l keeps

    Assumes:
        Without arrays: ŵ is among the directions that a layer keeps and the others are random; rows of all matrices but
        the last are orthonormal; W_1 ≤ W_2. With arrays: the samples stand for their distributions, whose distance they
        exceed by about what `chance` gives; the spectral norms hold where activations do not stretch.

    Args:
        train: features of training samples, `[L + 1, n, d]`, of every layer from the input on; narrower layers filled
            up with zeros. Left out: the closed form.
        test: those of new samples, `[L + 1, m, d]`.
        norms: spectral norm of the map from each layer to the next, `[L]`.
        train_labels: class of each training sample, `[n]`, for a loss that reads it: distances are then those within
            classes, averaged over them.
        test_labels: that of each new sample, `[m]`.
        samples: n of the closed form.
        dimensions: d of its inputs.
        widths: of its layers, none wider than the one before, and the last of 1.
        signal: ‖μ‖.
        noise: σ.
        dropout: δ, rate at which units behind each layer are dropped.
        dropconnect: δ, rate at which weights are dropped.
        injected: deviation of noise that is added to units, taken to be tanh.
        lipschitz: ρ.
        seed: of the samples that are drawn where a class has more than 500, or more of one kind, and of random halves.

    Returns:
        without arrays, by layer: width, `kl`, `kl_bound`, `distance_bound`, η (`contraction`), and
            `contracted_bound`, by the KL of the input times the η of all layers up to it; with arrays: `distance`, W_1
            of as many samples of both kinds, `chance`, that of random halves of them all, `suffix`, Π ‖W_j‖, and their
            `bound`. Notes name the funnel, what is vacuous, and without arrays the gap itself.

    Raises:
        UserError: sizes, rates or deviations that cannot be used, widths that grow, or arrays that do not fit or are
            not finite.

    Example:
        >>> found = generalization_bounds(samples=200, dimensions=20, widths=[5, 1]).table
        >>> found["kl_bound"].round(3).tolist()
        [0.158, 0.088, 0.057]

    Reference: arXiv 2404.03176 for the bounds (recalled); the closed forms and coefficients are derived here.
    """
    if not 0 < lipschitz < math.inf:
        raise UserError(f"got lipschitz={lipschitz}; expected a number above 0")
    brought = {"train": train, "test": test, "norms": norms}
    labels = {"train_labels": train_labels, "test_labels": test_labels}
    if any(x is not None for x in (*brought.values(), *labels.values())):
        return _measured(brought, labels, lipschitz, np.random.default_rng(seed))
    return _closed_form(
        samples, _widths(widths, samples, dimensions), signal, noise, {"dropout": dropout, "dropconnect": dropconnect},
        injected, lipschitz,
    )  # fmt: skip


def _closed_form(
    samples: int, ranks: list[int], signal: float, noise: float, rates: dict[str, float], injected: float,
    lipschitz: float,
) -> Prediction:  # fmt: skip
    if not (0 < signal < math.inf and 0 < noise < math.inf and 0 <= injected < math.inf):
        raise UserError(
            f"got signal={signal}, noise={noise}, injected={injected}; expected signal and noise above 0, and injected "
            "from 0 on"
        )
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"got {name}={rate}; expected a rate from 0 to below 1")
    found = mean_classifier(ranks[0], samples, signal, noise)
    rows: list[tuple[float, ...]] = []
    kept = 1.0
    for layer, rank in enumerate(ranks):
        square = expected_error(found, rank, ranks[0], samples, noise)
        kl = gaussian_divergence(rank, square, samples, noise)
        eta = _contraction(rates, injected, ranks[layer - 1], rank) if layer else 1.0
        kept *= eta
        # The rows of all matrices but the last have length 1, and the last that of the weights found.
        distance = lipschitz * math.sqrt(found.size) * gaussian_wasserstein(rank, square, samples, noise)
        contracted = kept * (rows[0][2] if rows else kl)
        rows.append((layer, rank, kl, divergence_bound(kl), distance, eta, divergence_bound(contracted)))
    columns = ["layer", "width", "kl", "kl_bound", "distance_bound", "contraction", "contracted_bound"]
    table, gap = pd.DataFrame(rows, columns=columns).astype({"layer": int, "width": int}), found.test - found.train
    units = {"kl": "nat"} | dict.fromkeys(columns[3:], "1")
    least = float(table["kl_bound"].iloc[-1])
    notes = [
        f"of errors counted, the gap itself is {gap:.4g} ({found.train:.4g} in training, {found.test:.4g} on new "
        f"samples); the least KL bound is {least:.4g}" + (f", {least / gap:.3g} times that" if gap else ""),
        *_vacuous(table, ["kl_bound", "distance_bound"]),
    ]
    if 0.99 < kept < 1:
        notes.append(
            "the layers contract by less than 1 %: they are too wide for what is dropped or added to hide much"
        )
    return Prediction(table, units, notes, _picture(table, {"KL": "kl_bound", "Wasserstein": "distance_bound"}, gap))


def _contraction(rates: dict[str, float], injected: float, inputs: int, outputs: int) -> float:
    return (
        dropout_contraction(rates["dropout"], outputs)
        * dropconnect_contraction(rates["dropconnect"], inputs, outputs)
        * noise_contraction(injected, 2 * math.sqrt(outputs))
    )


def _widths(widths: Sequence[int], samples: int, dimensions: int) -> list[int]:
    """Width of the input and of each layer."""
    given = [dimensions, *([widths] if isinstance(widths, int) else widths)]
    if not (isinstance(samples, int) and samples >= 2):
        raise UserError(f"got samples={samples}; expected a whole number from 2 on")
    whole = all(isinstance(w, int) and w >= 1 for w in given)
    if not whole or given[-1] != 1 or len(given) < 2 or any(b > a for a, b in itertools.pairwise(given)):
        raise UserError(
            f"got dimensions={dimensions}, widths={given[1:]}; expected whole numbers that do not grow and end with 1, "
            "as a wider layer keeps no more directions"
        )
    return given


def _measured(
    brought: Mapping[str, np.ndarray | None], labels: Mapping[str, np.ndarray | None], lipschitz: float,
    generator: np.random.Generator,
) -> Prediction:  # fmt: skip
    old, new, stretch = _arrays(brought)
    if (stretch < 0).any():
        raise UserError("got a norm below 0; expected none")
    groups = _groups(old.shape[1], new.shape[1], labels, generator)
    whole = sum(len(a) for a, _, _ in groups)
    rows = []
    for layer, (x, y, suffix) in enumerate(zip(old, new, suffix_products(stretch))):
        distance, chance = 0.0, 0.0
        for a, b, halves in groups:
            both, share = np.concatenate([x[a], y[b]]), len(a) / whole
            distance += share * wasserstein(x[a], y[b])
            divided = [wasserstein(both[h[: len(a)]], both[h[len(a) :]]) for h in halves]
            chance += share * float(np.mean(divided))
        rows.append((layer, distance, chance, suffix, lipschitz * suffix * distance))
    table = pd.DataFrame(rows, columns=["layer", "distance", "chance", "suffix", "bound"])
    funnel = int(table["bound"].argmin())
    notes = [f"the funnel is layer {funnel}, with a bound of {table['bound'][funnel]:.4g}", *_vacuous(table, ["bound"])]
    if (table["distance"] < 1.1 * table["chance"]).all():
        notes.append(
            "no distance is 10 % above what random halves give: it says how few samples there are, and no more"
        )
    if labels["train_labels"] is None:
        notes.append("without labels the bound is for a loss that reads none; give train_labels and test_labels")
    columns = {"bound": "bound", "(chance)": "chance"}
    return Prediction(table, dict.fromkeys(table.columns[1:], "1"), notes, _picture(table, columns))


def _arrays(brought: Mapping[str, np.ndarray | None]) -> list[np.ndarray]:
    found = [_numbers(name, x) for name, x in brought.items() if x is not None]
    if len(found) < len(brought):
        raise UserError("got some of the arrays train, test and norms; expected all three, or none for the closed form")
    old, new, stretch = found
    if old.ndim != 3 or new.ndim != 3 or old.shape[::2] != new.shape[::2] or stretch.shape != (len(old) - 1,):
        raise UserError(
            f"got train {old.shape}, test {new.shape} and norms {stretch.shape}; expected [layers, n, d], "
            "[layers, m, d] and one norm less than there are layers"
        )
    return found


def _groups(
    old: int, new: int, labels: Mapping[str, np.ndarray | None], generator: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """As many samples of both kinds of every class, and orders of both together."""
    given = [_numbers(name, x) for name, x in labels.items() if x is not None] or [np.zeros(old), np.zeros(new)]
    if [x.shape for x in given] != [(old,), (new,)]:
        raise UserError(
            f"got labels {[x.shape for x in given]}; expected train_labels ({old},) and test_labels ({new},)"
        )
    groups = []
    for label in np.unique(given[0]):
        a, b = (generator.permutation(np.flatnonzero(x == label)) for x in given)
        count = min(len(a), len(b), _MOST)
        if count >= 2:
            halves = [generator.permutation(2 * count) for _ in range(_DIVISIONS)]
            groups.append((a[:count], b[:count], halves))
    if not groups:
        raise UserError("got fewer than two samples of every class and kind; expected two or more of one")
    return groups


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    try:
        x = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"got {name} that are no numbers; expected an array of numbers") from None
    if not np.isfinite(x).all():
        raise UserError(f"got {name} with NaN or infinite numbers; leave those samples out")
    return x


def _vacuous(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """Bounds that say nothing of a loss between 0 and 1."""
    notes = []
    for column in columns:
        if layers := table.loc[table[column] >= 1, "layer"].astype(int).tolist():
            shown = "every layer" if len(layers) == len(table) else f"layer {', '.join(map(str, layers))}"
            notes.append(f"{column} is vacuous at {shown}: a loss between 0 and 1 has no gap above 1 anyway")
    return notes


def _picture(table: pd.DataFrame, columns: dict[str, str], gap: float = 0.0) -> Picture:
    series = {
        name: [(float(k), float(y)) for k, y in zip(table["layer"], table[column]) if y > 0]
        for name, column in columns.items()
    }
    if gap > 0:
        series["(gap itself)"] = [(float(k), gap) for k in table["layer"]]
    return Picture(series, across="layer", up="bound on test minus training loss (1)", log=True)
