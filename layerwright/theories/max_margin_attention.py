"""Where gradient descent takes an attention layer that has found the best token of every sequence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwright.core.errors import UserError, in_one_line
from layerwright.core.theory import Picture, Prediction, theory
from layerwright.maths.max_margin import Pairs, Separator, contradiction, frobenius_margin, nuclear_margin, token_pairs

# Multipliers below this share of the largest are rounding, and so are singular values.
_SMALL = 1e-4


@theory(paper="2308.16898")
def max_margin_attention(
    tokens: np.ndarray | None = None,
    queries: np.ndarray | None = None,
    best: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    *,
    sequences: int = 4,
    length: int = 5,
    dimensions: int = 8,
    seed: int = 0,
) -> Prediction:
    """Direction of attention weights after long training: the separator of best tokens with the largest margin.

    With scores x_tᵀ W z of the tokens x_t of a sequence for its query z, softmax over them, and one best token each,

        min ‖W‖   with (x_best − x_t)ᵀ W z ≥ 1 for every other token t of every sequence

    W / ‖W‖ goes to the solution as training drives ‖W‖ to infinity: of the Frobenius norm where W itself is trained, of
    the nuclear norm Σσ, and so of lower rank, where its factors K and Q are (W = K Qᵀ). Only the tokens with a product
    of 1 decide it, the support tokens: for the Frobenius norm W = Σ α (x_best − x_t) zᵀ.

    Assumes:
        one layer with a softmax and a linear head of fixed weights, without noise; which token is the best for the loss
        is known, and gradient descent has found them all (else it goes to the separator of those that it has found);
        the nuclear norm is proven for vanishing regularisation, and seen with small first weights.

    Args:
        tokens: x, `[sequences, tokens, d]`. Left out: they are drawn, on the unit sphere, with the best one by a
            random head.
        queries: z, `[sequences, d]`; left out, the first token of each sequence.
        best: index of the best token of each sequence, `[sequences]`.
        weights: W of one's own, `[d, d]`, to be held beside.
        sequences: how many are drawn.
        length: tokens of each.
        dimensions: d.
        seed: of the draw.

    Returns:
        by token that is not the best of its sequence: its product (x_best − x_t)ᵀ W z and multiplier α, above 0 where
            it supports the separator, for both norms (`maths/max_margin.py` gives W). Where no W puts all best tokens
            ahead, products are NaN, and the multipliers are those with which the tokens contradict each other,
            Σ α (x_best − x_t) zᵀ = 0.

    Raises:
        UserError: sizes that cannot be used, tokens without their best, or arrays that do not fit, are not finite, have
            a query of zeros or a token that equals the best one.

    Example:
        >>> found = max_margin_attention(sequences=2, length=3).table
        >>> found["product"].round(6).tolist(), (found["multiplier"] > 0).tolist()
        ([1.0, 1.0, 1.0, 1.168631], [True, True, True, False])

    Reference: arXiv 2308.16898.
    """
    if tokens is None:
        if best is not None or queries is not None:
            raise UserError("got queries or best without tokens; give tokens, [sequences, tokens, d], too")
        tokens, best = _drawn(sequences, length, dimensions, seed)
    pairs = _pairs(tokens, queries, best)
    table = pd.DataFrame({"sequence": pairs.sequences, "token": pairs.tokens})
    with in_one_line(ValueError):
        frobenius, nuclear = frobenius_margin(pairs), nuclear_margin(pairs)
        against = contradiction(pairs)
    if frobenius is None or nuclear is None:
        table["product"], table["multiplier"] = np.nan, against
        note = "no weights put all best tokens ahead: the tokens with a multiplier above 0 contradict each other"
        return Prediction(table, _UNITS, [note])
    for prefix, found in (("", frobenius), ("nuclear_", nuclear)):
        kept = found.multipliers > _SMALL * found.multipliers.max()
        table[f"{prefix}product"] = pairs.products(found.weights)
        table[f"{prefix}multiplier"] = np.where(kept, found.multipliers, 0.0)
    notes = [_about("Frobenius", frobenius), _about("nuclear", nuclear)]
    notes.append(f"the cosine of the two directions is {_cosine(frobenius.weights, nuclear.weights):.4f}")
    if weights is not None:
        notes.append(_beside(_numbers("weights", weights), pairs, frobenius, nuclear))
    return Prediction(table, _UNITS, notes, _picture(frobenius, nuclear))


_UNITS = dict.fromkeys(("product", "multiplier", "nuclear_product", "nuclear_multiplier"), "1")


def _drawn(sequences: int, length: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    for name, value, least in (("sequences", sequences, 1), ("length", length, 2), ("dimensions", dimensions, 1)):
        if not (isinstance(value, int) and value >= least):
            raise UserError(f"got {name}={value}; expected a whole number from {least} on")
    generator = np.random.default_rng(seed)
    tokens = generator.standard_normal((sequences, length, dimensions))
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    return tokens, (tokens @ generator.standard_normal(dimensions)).argmax(1)


def _pairs(tokens: np.ndarray, queries: np.ndarray | None, best: np.ndarray | None) -> Pairs:
    if best is None:
        raise UserError("got tokens without best; give the index of the best token of each sequence too")
    x, chosen = _numbers("tokens", tokens), _numbers("best", best)
    if x.ndim != 3 or (chosen != chosen.round()).any():
        raise UserError(
            f"got tokens {x.shape} and best {chosen.tolist()}; expected [sequences, tokens, d] and whole numbers"
        )
    with in_one_line(ValueError):
        return token_pairs(x, x[:, 0] if queries is None else _numbers("queries", queries), chosen.astype(int))


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"got {name} that are no numbers; expected an array of numbers") from None


def _about(norm: str, found: Separator) -> str:
    values = np.linalg.svd(found.weights, compute_uv=False)
    rank = int((values > _SMALL * values[0]).sum())
    support = int((found.multipliers > _SMALL * found.multipliers.max()).sum())
    return (
        f"{norm} norm: {found.norm:.6g}, a margin of {1 / found.norm:.4g}, rank {rank}, {support} of "
        f"{len(found.multipliers)} tokens support it"
    )


def _beside(given: np.ndarray, pairs: Pairs, frobenius: Separator, nuclear: Separator) -> str:
    if given.shape != frobenius.weights.shape or not np.isfinite(given).all() or not given.any():
        raise UserError(f"got weights {given.shape}; expected {frobenius.weights.shape}, finite and not all 0")
    ahead = int((pairs.products(given) > 0).sum())
    alike = [_cosine(given, found.weights) for found in (frobenius, nuclear)]
    return (
        f"the weights given have a cosine of {alike[0]:.4f} with the direction of the Frobenius norm, {alike[1]:.4f} "
        f"with that of the nuclear norm, and put the best token ahead of {ahead} of {len(pairs.tokens)} others"
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _picture(frobenius: Separator, nuclear: Separator) -> Picture:
    series = {}
    for name, found in (("W is trained", frobenius), ("K and Q are trained", nuclear)):
        values = np.linalg.svd(found.weights, compute_uv=False)
        series[name] = [(float(k), float(v / values[0])) for k, v in enumerate(values, 1)]
    return Picture(series, across="singular value of W", up="size, of the largest (1)")
