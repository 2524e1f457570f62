from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.maths.sparsity import TailCurve, tail_curve


def naive(hidden: Tensor, weight: Tensor, error: float) -> tuple[float, float]:
    """As published: the largest of 65,536 thresholds whose error is allowed, by bisection; and what it leaves out."""
    each = hidden.abs() * weight.norm(dim=0)

    def cett(threshold: float) -> float:
        total = 0.0
        for a, n in zip(hidden, each):
            tail = weight @ torch.where(n <= threshold, a, 0.0)
            total += float(tail.norm() / (weight @ a).norm())
        return total / len(hidden)

    candidates = torch.linspace(float(each.min()), float(each.max()), 65536)
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cett(float(candidates[middle])) <= error else (low, middle - 1)
    threshold = float(candidates[low])
    return threshold, float((each <= threshold).double().mean())


def activations(kind: str, tokens: int = 12, neurons: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, neurons, generator=generator)
    heavy = x * torch.randn(tokens, neurons, generator=generator).exp()
    return {"relu": x.relu(), "silu": torch.nn.functional.silu(3 * x), "heavy": heavy, "rare": (x - 1.5).relu()}[kind]


@pytest.mark.parametrize("kind", ["relu", "silu", "heavy", "rare"])
@pytest.mark.parametrize("error", [0.05, 0.2, 0.5, 0.9])
def test_the_published_search_finds_the_same(kind: str, error: float) -> None:
    hidden = activations(kind)
    weight = torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    threshold, share = naive(hidden, weight, error)
    curve = tail_curve(hidden[None], weight, torch.ones(1, 12, dtype=torch.bool))
    mine, left_out = (float(x) for x in curve.at(error))
    assert left_out == pytest.approx(share, abs=4e-3)
    if error <= 0.5:  # above, few contributions are left that could say where
        assert mine == pytest.approx(threshold, rel=0.05)


def test_every_point_of_the_curve_is_exact() -> None:
    hidden, weight = activations("heavy"), torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    curve = tail_curve(hidden[None].double(), weight.double(), torch.ones(1, 12, dtype=torch.bool))
    each = hidden.double().abs() * weight.double().norm(dim=0)
    for threshold, share, error in zip(*(x[0].tolist() for x in curve), strict=True):
        small = each <= threshold
        assert share == pytest.approx(float(small.double().mean()), abs=1e-6)
        tails = ((hidden * small).double() @ weight.double().T).norm(dim=1)
        assert error == pytest.approx(
            float((tails / (hidden.double() @ weight.double().T).norm(dim=1)).mean()), rel=1e-6
        )


def test_the_share_grows_with_the_error() -> None:
    hidden, weight = activations("silu"), torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    curve = tail_curve(hidden[None], weight, torch.ones(1, 12, dtype=torch.bool))
    shares = [float(curve.at(error)[1]) for error in torch.linspace(0, 1, 40).tolist()]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_exact_zeros_cost_nothing() -> None:
    for kind in ("relu", "rare", "silu"):
        hidden = activations(kind)
        curve = tail_curve(hidden[None], torch.eye(300), torch.ones(1, 12, dtype=torch.bool))
        assert float(curve.at(0.0)[1]) == pytest.approx(float((hidden == 0).double().mean()), abs=1e-6)


def test_tokens_that_are_not_there_count_nowhere() -> None:
    hidden, weight = activations("heavy"), torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    there = torch.ones(2, 12, dtype=torch.bool)
    there[1, 5:] = False
    both = torch.stack([hidden, torch.where(there[1][:, None], hidden, 0.0)])
    curve = tail_curve(both, weight, there)
    alone = tail_curve(hidden[None, :5], weight, there[1:, :5])
    for mine, expected in zip(curve, alone):
        torch.testing.assert_close(mine[1:], expected, rtol=1e-5, atol=1e-7)


def test_a_token_without_activations_has_no_error_and_nan_stays_nan() -> None:
    there = torch.ones(1, 3, dtype=torch.bool)
    curve = tail_curve(torch.zeros(1, 3, 4), torch.eye(4), there)
    assert float(curve.at(0.1)[1]) == 1.0
    assert torch.equal(curve.errors, torch.zeros_like(curve.errors))
    broken = tail_curve(torch.full((1, 3, 4), torch.nan), torch.eye(4), there)
    assert broken.at(0.2)[1].isnan().all()


def test_the_last_crossing_counts_where_the_error_falls_again() -> None:
    curve = TailCurve(*(torch.tensor(x) for x in ([0.0, 1.0, 2.0, 3.0], [0.0, 0.2, 0.4, 0.6], [0.0, 0.5, 0.1, 0.5])))
    threshold, share = curve.at(0.3)
    assert float(threshold) == pytest.approx(2.5)
    assert float(share) == pytest.approx(0.5)
