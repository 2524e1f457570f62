from __future__ import annotations

import math

import pytest
import torch

from layerwright.maths.entropy import kl_divergence, overlap


def logits(n: int = 50, classes: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=generator).double()


def test_kl_of_two_coins() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_kl_against_the_sum_of_its_terms() -> None:
    p, q = logits(seed=0).softmax(-1), logits(seed=1).softmax(-1)
    expected = torch.tensor(
        [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    )
    torch.testing.assert_close(kl_divergence(logits(seed=0), logits(seed=1)).float(), expected.float())


def test_kl_does_not_see_a_constant_or_the_order_of_classes() -> None:
    p, q = logits(seed=0), logits(seed=1)
    expected = kl_divergence(p, q)
    torch.testing.assert_close(kl_divergence(p + 100.0, q - 7.0), expected)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kl_divergence(p[:, order], q[:, order]), expected)


def test_kl_is_never_negative_and_zero_for_equals() -> None:
    p = logits().float()
    assert (kl_divergence(p, p.clone()) == 0).all()
    assert (kl_divergence(p, p + 1e-4 * torch.randn(p.shape)) >= 0).all()


def test_kl_of_far_apart_logits_is_finite() -> None:
    assert kl_divergence(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])).item() == pytest.approx(1e4)


def test_classes_ruled_out_by_both_add_nothing() -> None:
    p, q = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([1.0, 1.0, -torch.inf])
    assert kl_divergence(p, q) == 0.0
    assert kl_divergence(torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0])).item() == pytest.approx(math.log(2))


def test_overlap_by_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    for k in (1, 3, 5):
        a, b = (torch.stack([torch.randperm(9, generator=generator)[:k] for _ in range(40)]) for _ in range(2))
        expected = [len(set(x.tolist()) & set(y.tolist())) / k for x, y in zip(a, b, strict=True)]
        torch.testing.assert_close(overlap(a, b), torch.tensor(expected))
