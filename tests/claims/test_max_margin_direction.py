from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from layerwright.claims import max_margin_direction as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget

TINY = {"problems": 2, "sequences": 2, "tokens": 3, "dimensions": 8, "steps": 36, "factor_steps": 300}
GOOD = {"direction": 1.0, "approach": 0.3, "best": 1.0, "preference": 0.1, "rank": -1.0, "attention": 1.0}


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def problems(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(count, 3, 4, 10, generator=generator).double(), dim=-1)
    return x, torch.randn(count, 3, 4, generator=generator).double()


def test_the_experiment_at_a_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.word == "inconclusive"  # a layer that was hardly trained has picked nothing
    assert verdict.measured["attention"]["value"] < 0.9
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for failure in ({"direction": 0.9}, {"approach": 0.9}, {"best": 0.5}, {"preference": -0.1}, {"rank": 0.5}):
        assert verdict_of(**failure) == "fails"
        for control in ({"second_best": 0.9}, {"turned_head": 0.9}, {"attention": 0.5}):
            assert verdict_of(**failure, **control) == "inconclusive"
    assert verdict_of(direction=float("nan")) == "inconclusive"  # tokens that contradict each other


def test_where_no_problem_counts_there_is_no_point() -> None:
    points = claim._points([[None] * (claim.LOOKS - 1) + [0.5], [0.2] * (claim.LOOKS - 1) + [0.7]])
    assert points == [(1.0, pytest.approx(0.6))]


def test_training_is_gradient_descent_on_the_loss_by_the_head() -> None:
    x, scores = problems()
    start = 0.1 * torch.randn(2, 10, 10, generator=torch.Generator().manual_seed(3)).double()
    path = claim.train(x, scores, [start], 0.05, claim.LOOKS)
    w = start.clone().requires_grad_()
    for k in range(claim.LOOKS):
        said = (claim.attention(x, w) * scores).sum(-1)
        (slope,) = torch.autograd.grad(torch.nn.functional.softplus(-said).mean(-1).sum(), w)
        w = (w - 0.05 * slope / slope.flatten(1).norm(dim=1)[:, None, None]).detach().requires_grad_()
        torch.testing.assert_close(path[k], w.detach(), rtol=1e-8, atol=1e-10)


def test_factors_move_together_by_one_length() -> None:
    x, scores = problems()
    parts = list(0.1 * torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(3)).double())
    path = claim.train(x, scores, parts, 0.02, claim.LOOKS)
    assert len(path) == claim.LOOKS
    moved = path[0] - claim.product(parts)
    assert 0 < float(moved.norm()) < 2 * 0.02 * float(torch.stack(parts).norm())


def test_steps_do_not_end_where_the_attention_is_one_but_for_rounding() -> None:
    x, scores = problems()
    found = claim.train(x, scores, [x.new_zeros(2, 10, 10)], 2.0, 60)
    assert claim.attention(x, found[-2]).amax(-1).min() == 1.0
    assert not torch.equal(found[-1], found[-2])
    goal, _ = claim.separators(x, scores.argmax(-1))
    assert (claim.cosines(found[-1], goal) > claim.cosines(found[1], goal)).all()


def test_attention_is_softmax_of_scores_by_the_first_token() -> None:
    x, _ = problems(1)
    w = torch.randn(1, 10, 10, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.stack([torch.softmax(s @ w[0] @ s[0], -1) for s in x[0]])
    torch.testing.assert_close(claim.attention(x, w)[0], expected)
    picked = expected.argmax(-1)
    assert claim.picks(x, w, picked[None]).all()
    assert not claim.picks(x, w, (picked[None] + 1) % 4).any()


def test_only_problems_that_are_kept_count() -> None:
    one, other = torch.eye(2).expand(3, 2, 2), torch.eye(2).flip(0).expand(3, 2, 2)
    goal = torch.stack([one[0], other[0], one[0]])
    assert claim.cosines(one, goal).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert float(claim.cosines(one, goal, torch.tensor([True, False, True])).mean()) == pytest.approx(1.0)
    assert claim.cosines(one, goal, torch.zeros(3, dtype=torch.bool)).mean().isnan()


def test_separators_put_what_is_picked_ahead() -> None:
    x, scores = problems()
    picked = scores.argmax(-1)
    for goal in claim.separators(x, picked):
        assert claim.picks(x, goal, picked).all()
        assert not claim.picks(x, -goal, picked).any()
    same = x.clone()
    same[0, 1] = same[0, 0]  # the same sequence twice, with another token to pick
    contrary = picked.clone()
    contrary[0, 1] = (contrary[0, 0] + 1) % 4
    frobenius, nuclear = claim.separators(same, contrary)
    assert frobenius[0].isnan().all()
    assert nuclear[0].isnan().all()
    assert frobenius[1].isfinite().all()
