"""Attention weights turn in training to the max-margin separator of the tokens they pick, factors to a low-rank one.

Protocol: one layer of attention with softmax reads sequences of tokens drawn on the unit sphere; its query is the first
token, a random head of fixed weights scores what it gives, and the loss is logistic. Gradient descent with steps of a
fixed length trains the scores' weights W from zero, or the factors of W = K Qᵀ from small random numbers, until the
attention is on one token for long. Where the best tokens of all sequences have been picked, W is held against their
separators of the least Frobenius and of the least nuclear norm (`frobenius_margin`, `nuclear_margin`), by the cosine.
Judged is what the paper states: with enough dimensions the best tokens are picked; the direction of W is that of the
least Frobenius norm, and comes nearer as W grows; K Qᵀ is nearer to the least nuclear norm than to the other, and of
lower rank than W.

Control: the separator of the second-best tokens must not be as near, nor must W trained with the head turned round,
which makes other tokens the best, be near to the separator of the first: cosines below 1/2.

Failure: with the controls met, a number outside its bounds. For scale: the cosine of W with the separator of what it
picks, over all problems. Where two tokens have nearly the same score W is still between them at the end; with such
problems among those that count, as at first, whether the angle halves was not decided. Also the cosine of W with the
nuclear separator, of K Qᵀ with both, and of the two separators. The paper draws its tokens likewise, and shows cosines
near 1 and how the share of best tokens picked grows with the dimensions; for K Qᵀ its theorem is of the path of
vanishing regularisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from layerwright.core.claim import Expectation, Verdict, claim, judge
from layerwright.core.trials import Budget, Trial
from layerwright.maths.max_margin import Separator, frobenius_margin, nuclear_margin, token_pairs
from layerwright.maths.similarity import cosine
from layerwright.maths.spectrum import effective_rank, singular_values
from layerwright.report.lines import lines

# The length of a step of W, and of both factors together: a factor's steps count as its size grows.
STEP, FACTOR_STEP, START, LOOKS = 0.1, 0.02, 0.01, 12
SIZES = {
    "small": {"problems": 32, "sequences": 4, "tokens": 5, "dimensions": 16, "steps": 3000, "factor_steps": 1600},
    "full": {"problems": 64, "sequences": 8, "tokens": 8, "dimensions": 32, "steps": 5000, "factor_steps": 2200},
}
EXPECTED = (
    Expectation("direction", "cosine of W with the separator of least Frobenius norm", low=0.99),
    Expectation("approach", "angle to it at the end, over that a third of the way", high=0.5),
    Expectation("best", "share of sequences in which W picks the best token", low=0.9),
    Expectation("preference", "cosine of K Qᵀ with the separator of least nuclear norm, minus of Frobenius", low=0.0),
    Expectation("rank", "effective rank of K Qᵀ minus that of W", high=0.0),
    Expectation("second_best", "cosine of W with the separator of the second-best tokens", high=0.5, control=True),
    Expectation("turned_head", "cosine of W trained by the head turned round with the first separator", high=0.5,
                control=True),
    Expectation("attention", "the least attention that a picked token gets, over sequences", low=0.99, control=True),
    Expectation("nuclear_direction", "cosine of K Qᵀ with the separator of least nuclear norm"),
    Expectation("factors_frobenius", "cosine of K Qᵀ with that of least Frobenius norm"),
    Expectation("picked", "cosine of W with the separator of what it picks, all problems"),
    Expectation("weights_nuclear", "cosine of W with the separator of least nuclear norm"),
    Expectation("separators", "cosine of the two separators"),
    Expectation("factors_best", "share of sequences in which K Qᵀ picks the best token"),
)  # fmt: skip


@claim(paper="2308.16898", minutes=(1.5, 20), seeds=(4, 5))
def run(seed: int, budget: Budget) -> Verdict:
    """Run the experiment."""
    size = SIZES[budget.name]
    trials = budget.repeat(_trial, seed, **size)
    figure = lines(
        {name: _points([t["curves"][name] for t in trials]) for name in _CURVES},
        across="share of the training", up="cosine with a separator",
        label="Cosine of attention weights in training with the max-margin separators of the best tokens",
    )  # fmt: skip
    conditions = size | {"step": STEP, "step_of_the_factors": FACTOR_STEP, "deviation_of_the_first_factors": START}
    return judge(
        "W turns to the max-margin separator of least Frobenius norm, K Qᵀ rather to that of least nuclear norm.",
        trials, EXPECTED, conditions=conditions, figure=figure,
    )  # fmt: skip


def _points(curves: list[list[float | None]]) -> list[tuple[float, float]]:
    """The mean curve; none where no problem counts in some trial."""
    means = np.array(curves, dtype=float).mean(0)
    return [((k + 1) / LOOKS, float(y)) for k, y in enumerate(means) if math.isfinite(y)]


_CURVES = ("W, Frobenius", "K Qᵀ, nuclear", "(K Qᵀ, Frobenius)")


def _trial(
    seed: int, problems: int, sequences: int, tokens: int, dimensions: int, steps: int, factor_steps: int
) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    x, heads = (torch.randn(problems, n, dimensions, generator=generator).double() for n in (sequences * tokens, 1))
    x = nn.functional.normalize(x, dim=-1).unflatten(1, (sequences, tokens))
    scores = (x @ nn.functional.normalize(heads, dim=-1).mT.unsqueeze(1)).squeeze(-1)
    square = x.new_zeros(problems, dimensions, dimensions)
    factors = START * torch.randn(2, problems, dimensions, dimensions, generator=generator).double()
    w, turned = (train(x, s, [square], STEP, steps) for s in (scores, -scores))
    kq = train(x, scores, list(factors), FACTOR_STEP, factor_steps)
    best, second = scores.topk(2).indices.unbind(-1)
    frobenius, nuclear = separators(x, best)
    found, of_factors = (picks(x, path[-1], best).all(-1) for path in (w, kq))
    angles = [cosines(at, frobenius, found).acos().mean() for at in w]
    kq_frobenius, kq_nuclear = (cosines(kq[-1], goal, of_factors).mean() for goal in (frobenius, nuclear))
    curves = ((w, frobenius, found), (kq, nuclear, of_factors), (kq, frobenius, of_factors))
    numbers: dict[str, Tensor | float] = {
        "direction": cosines(w[-1], frobenius, found).mean(), "approach": angles[-1] / angles[LOOKS // 3 - 1],
        "best": picks(x, w[-1], best).double().mean(), "factors_best": picks(x, kq[-1], best).double().mean(),
        "preference": kq_nuclear - kq_frobenius, "rank": rank(kq[-1]) - rank(w[-1]),
        "second_best": cosines(w[-1], separators(x, second)[0], found).mean(),
        "turned_head": cosines(turned[-1], frobenius).mean(),
        "attention": attention(x, w[-1]).amax(-1).amin(-1).mean(),
        "nuclear_direction": kq_nuclear, "factors_frobenius": kq_frobenius,
        "picked": cosines(w[-1], separators(x, attention(x, w[-1]).argmax(-1))[0]).mean(),
        "weights_nuclear": cosines(w[-1], nuclear, found).mean(), "separators": cosines(frobenius, nuclear).mean(),
    }  # fmt: skip
    return {name: float(x) for name, x in numbers.items()} | {
        "curves": {
            name: [float(cosines(at, goal, kept).mean()) for at in path]
            for name, (path, goal, kept) in zip(_CURVES, curves)
        }
    }


def attention(x: Tensor, weights: Tensor) -> Tensor:
    """Attention of the first token of each sequence on all: x `[…, n, T, d]`, W `[…, d, d]` to `[…, n, T]`."""
    keys = x @ weights.unsqueeze(-3)
    return torch.linalg.vecdot(keys, x[..., :1, :]).softmax(-1)


def train(x: Tensor, scores: Tensor, start: Sequence[Tensor], step: float, steps: int) -> list[Tensor]:
    """Gradient descent with steps of one length for each problem, on W or on the factors of W = K Qᵀ.

    Args:
        x: tokens, `[problems, n, T, d]`.
        scores: what the head gives each, `[problems, n, T]`.
        start: W, or K and Q, `[problems, d, d]` each.
        step: its length.
        steps: how many.

    Returns:
        W at equal distances on the way, the last at the end.
    """
    parts, path = [p.clone().requires_grad_() for p in start], []
    top = scores.amax(-1)
    looks = set(np.linspace(0, steps, LOOKS + 1).round().astype(int)[1:].tolist())
    for k in range(1, steps + 1):
        # What is lost against the best token: its digits do not end where the attention is 1 but for rounding.
        lost = (attention(x, product(parts)) * (top.unsqueeze(-1) - scores)).sum(-1)
        loss = nn.functional.softplus(lost - top).mean(-1).sum()
        slopes = torch.autograd.grad(loss, parts)
        size = torch.stack([s.square().sum((-2, -1)) for s in slopes]).sum(0).sqrt().clamp_min(1e-300)
        with torch.no_grad():
            for part, slope in zip(parts, slopes):
                part -= step * slope / size[:, None, None]
        if k in looks:
            path.append(product(parts).detach().clone())
    return path


def product(parts: Sequence[Tensor]) -> Tensor:
    """W itself, or K Qᵀ."""
    return parts[0] if len(parts) == 1 else parts[0] @ parts[1].mT


def separators(x: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Separators of picked tokens, of the least Frobenius and the least nuclear norm; NaN where there are none."""

    def weights(found: Separator | None) -> np.ndarray:
        return np.full(x.shape[-1:] * 2, math.nan) if found is None else found.weights

    pairs = [token_pairs(t.numpy(), t[:, 0].numpy(), p.numpy()) for t, p in zip(x, picked)]
    frobenius, nuclear = (
        torch.from_numpy(np.stack([weights(f(p)) for p in pairs])) for f in (frobenius_margin, nuclear_margin)
    )
    return frobenius, nuclear


def cosines(weights: Tensor, goal: Tensor, kept: Tensor | slice = slice(None)) -> Tensor:
    """The cosine of two matrices of each problem that is kept."""
    return cosine(weights.flatten(1), goal.flatten(1))[kept]


def picks(x: Tensor, weights: Tensor, best: Tensor) -> Tensor:
    """Whether the attention is the largest on the best token, `[problems, n]`."""
    return attention(x, weights).argmax(-1) == best


def rank(weights: Tensor) -> float:
    """Mean over problems of the effective rank."""
    return float(effective_rank(singular_values(weights)).mean())
