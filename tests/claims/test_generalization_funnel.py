from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from layerwright.claims import generalization_funnel as claim
from layerwright.core.claim import judge
from layerwright.core.trials import Budget
from layerwright.maths.information_bounds import expected_error, gaussian_divergence, mean_classifier, suffix_products

TINY = {"problems": 3, "samples": 20, "widths": [8, 4, 1], "steps": 20, "digits": 60, "epochs": 2}
GOOD = {
    "kl_fall": -0.5, "kl_rise": -0.1, "above": -0.1, "noise_fall": -0.2, "funnel_fall": -1.0,
    "found": 0.0, "gap": 0.1, "plain_gap": 0.3, "chance": 1.0,
}  # fmt: skip


def verdict_of(**changes: float) -> str:
    numbers = {e.number: 0.0 for e in claim.EXPECTED} | GOOD | changes
    return judge("", [numbers, numbers], claim.EXPECTED, conditions={}).word


def test_the_experiment_at_a_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", TINY)
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    assert verdict.word == "inconclusive"  # networks that have not found ŵ decide nothing
    assert verdict.measured["found"]["met"] is not True
    assert verdict.figure is not None


def test_the_verdict_on_made_numbers() -> None:
    assert verdict_of() == "holds"
    for failure in ({"kl_fall": 0.1}, {"kl_rise": 0.1}, {"above": 0.1}, {"noise_fall": 0.1}, {"funnel_fall": 0.1}):
        assert verdict_of(**failure) == "fails"
        for control in ({"found": 0.1}, {"gap": -0.1}, {"plain_gap": -0.1}, {"chance": 1.2}):
            assert verdict_of(**failure, **control) == "inconclusive"


def test_linear_networks_find_the_mean_and_tell_what_the_closed_form_says() -> None:
    linear = claim.linear_networks(40, 30, [10, 5, 1], 2500, torch.Generator().manual_seed(0))
    assert linear.apart < 1e-3
    found = linear.divergences(0.0)
    expected = mean_classifier(10, 30, claim.SIGNAL, claim.NOISE)
    for layer, rank in ((0, 10), (2, 1)):  # the rows between are not random: only ŵ and all of the input are known
        closed = gaussian_divergence(rank, expected_error(expected, rank, 10, 30, 1.0), 30, 1.0)
        error = found[:, layer].std(ddof=1) / math.sqrt(40)
        assert abs(found[:, layer].mean() - closed) < 3 * error
    assert (np.diff(found, axis=1) <= 1e-12).all()
    assert (linear.divergences(0.5)[:, 1:] < found[:, 1:]).all()


def test_errors_are_those_of_the_samples_and_of_new_ones() -> None:
    linear = claim.linear_networks(60, 20, [12, 1], 1500, torch.Generator().manual_seed(1))
    expected = mean_classifier(12, 20, claim.SIGNAL, claim.NOISE)
    assert linear.errors[0] == pytest.approx(expected.train, abs=0.03)
    assert linear.errors[1] == pytest.approx(expected.test, abs=0.03)


def test_training_and_test_images_are_others() -> None:
    train, test = claim.draw(100, torch.Generator().manual_seed(0))
    rows = torch.cat([train.images, test.images]).unique(dim=0)
    assert len(rows) == 200
    assert 0 <= float(rows.min()) < float(rows.max()) <= 1


@pytest.mark.parametrize("kind", claim.KINDS)
def test_units_are_dropped_and_noise_is_added_in_training_only(kind: str) -> None:
    torch.manual_seed(0)
    net, x = claim.Net(kind), torch.rand(5, 64)
    assert torch.equal(net.eval()(x), net(x))
    assert torch.equal(net.train()(x), net(x)) is (kind == "plain")
    hidden = [(net.states(x)[1] == 0).float().mean() for _ in range(40)]
    assert float(torch.stack(hidden).mean()) == pytest.approx(claim.DROPOUT if kind == "dropout" else 0.0, abs=0.05)


def test_features_are_those_of_every_layer_and_what_follows_stretches_them_no_more() -> None:
    torch.manual_seed(0)
    net = claim.Net("plain").eval()
    train, test = claim.draw(30, torch.Generator().manual_seed(0))
    old, new, norms = claim.features(net, train, test)
    assert old.shape == new.shape == (5, 30, 64)
    assert not old[-1, :, 10:].any()
    np.testing.assert_allclose(old[-1, :, :10], net(train.images).detach().numpy(), atol=1e-6)
    apart = np.linalg.norm(old - new, axis=-1)
    assert (apart[-1] <= suffix_products(norms)[:, None] * apart + 1e-6).all()
