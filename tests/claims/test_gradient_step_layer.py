from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import gradient_step_layer as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.linear_attention import AttentionLayer, gradient_step_layer, linear_attention, prediction, tokens

TINY = {"steps": 4, "rows": 8, "held": 50}
GOOD = {"slopes": 1.0, "loss_ratio": 1.0, "weights": 1.0, "slopes_elsewhere": 1.0, "loss_elsewhere": 1.0}


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def held(seed: int = 0) -> claim.Tasks:
    return claim.draw(40, torch.Generator().manual_seed(seed))


def drawn(seed: int = 0) -> AttentionLayer:
    return AttentionLayer(*torch.randn(4, 11, 11, generator=torch.Generator().manual_seed(seed)).double())


def test_the_experiment_at_a_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.word == "fails"  # a layer that was hardly trained is no gradient step
    assert verdict.measured["exact"]["met"] is True
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for failure in ({"slopes": 0.9}, {"loss_ratio": 1.2}, {"loss_ratio": 0.8}, {"predictions": 0.2}, {"weights": 0.5},
                    {"slopes_elsewhere": 0.5}, {"loss_elsewhere": 2.0}):  # fmt: skip
        assert verdict_of(**failure) == "fails"
        for control in ({"untrained": 0.9}, {"shuffled": 0.9}, {"exact": 0.1}):
            assert verdict_of(**failure, **control) == "inconclusive"


def test_the_polynomial_is_what_the_layer_computes() -> None:
    tasks, layer = held(), drawn()
    context = tokens(*tasks)[:, :-1]
    sums = torch.einsum("nia,nib->nab", context, context)
    said = torch.einsum("nab,abc,nc->n", sums, claim.polynomial(layer), tasks.xs[:, -1].double())
    torch.testing.assert_close(claim.predictions(tasks, layer), said)
    other = AttentionLayer(2 * layer.key, layer.query / 2, -layer.value, -layer.projection)
    torch.testing.assert_close(claim.polynomial(other), claim.polynomial(layer))


def test_slopes_are_those_of_finite_differences() -> None:
    tasks, layer = held(), drawn()
    moved = tasks.xs.double().clone()
    moved[:, -1, 3] += 1e-4
    change = claim.predictions(claim.Tasks(moved, tasks.ys), layer) - claim.predictions(tasks, layer)
    torch.testing.assert_close(claim.slopes(tasks, layer)[:, 3], change / 1e-4, rtol=1e-5, atol=1e-5)


def test_the_constructed_layer_is_like_itself_and_turned_signs_are_not() -> None:
    tasks = held()
    layer, apart = claim.constructed(tasks)
    assert apart < 1e-12
    assert claim.slopes_alike(tasks, layer, gradient_step_layer(10, 5.0)) == pytest.approx(1.0)
    assert claim.slopes_alike(tasks, layer, gradient_step_layer(10, -1.0)) == pytest.approx(-1.0)


def test_no_token_shows_the_target_asked_for() -> None:
    tasks, layer = held(), drawn()
    targets = tasks.ys.clone()
    targets[:, -1] += 1.0
    assert torch.equal(claim.predictions(claim.Tasks(tasks.xs, targets), layer), claim.predictions(tasks, layer))


def test_training_goes_from_the_same_weights_to_the_same() -> None:
    start = AttentionLayer(*(w.float() for w in drawn()))
    (one, curve), (two, _) = (claim.fit(start, held(), 3, 4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not torch.equal(one.key, start.key)
    assert len(curve) == claim.LOOKS + 1
    assert curve[0] == claim.loss(held(), start)


def test_shuffled_contexts_have_targets_of_another_task() -> None:
    xs, ys = held()
    shown = tokens(xs, ys.roll(1, 0))
    layer = gradient_step_layer(10, 0.1)
    wrong = prediction(linear_attention(shown, layer)) - ys[:, -1]
    right = prediction(linear_attention(tokens(xs, ys), layer)) - ys[:, -1]
    assert wrong.square().mean() > 1.5 * right.square().mean()
