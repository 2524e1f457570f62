from __future__ import annotations

import pytest
import torch
from naive import stream
from torch import nn
from zoo import DEPTH, Residual, llama, token_ids

import layerwright as lw
from layerwright.measures.independent_branches import independent_branches

NAME = "independent_branches"


def test_orthogonal_updates_add_their_squares_and_aligned_ones_their_lengths() -> None:
    orthogonal = torch.eye(4).cumsum(0)[:, None, :]
    aligned = torch.ones(4, 4).cumsum(0)[:, None, :]
    found, other = independent_branches(orthogonal), independent_branches(aligned)
    for state in range(4):
        assert found[state, "measured"].item() == pytest.approx(((state + 1) / 4) ** 0.5)
        assert found[state, "predicted"].item() == pytest.approx(found[state, "measured"].item())
        assert other[state, "measured"].item() == pytest.approx(state + 1)
        assert other[state, "predicted"].item() == pytest.approx((state + 1) ** 0.5)


def test_a_rotation_changes_nothing_and_a_scale_scales() -> None:
    h = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    base, turned = independent_branches(h), independent_branches(3 * h @ turn)
    for key, sizes in base.items():
        torch.testing.assert_close(turned[key], 3 * sizes)


def test_of_a_model_it_is_what_hooks_say() -> None:
    model, ids = llama(), token_ids()
    h = torch.stack(stream(model, ids)[0])[:, :, -1]
    frame = lw.survey(model, {"input_ids": ids}, only=[NAME])[NAME]
    assert frame.attrs["index"] == ["point", "numbers"]
    measured, predicted = (frame[frame["numbers"] == name]["value"].to_numpy() for name in ("measured", "predicted"))
    assert len(measured) == len(predicted) == DEPTH + 1
    square = h.square().mean(-1)
    expected = square[0] + sum((h[k + 1] - h[k]).square().mean(-1) for k in range(DEPTH))
    assert measured == pytest.approx(square.sqrt().mean(1).numpy(), rel=1e-5)
    assert predicted[-1] == pytest.approx(expected.sqrt().mean().item(), rel=1e-5)


def test_at_initialisation_branches_are_nearly_independent() -> None:
    """Monte-Carlo: the largest gap of 12 random blocks of width 256 is a few percent; trained towers have more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(Residual(256) for _ in range(12)))
        x = torch.randn(16, 256)
    frame = lw.survey(model, x, only=[NAME])[NAME].pivot(index="point", columns="numbers", values="value")
    assert (frame["measured"] / frame["predicted"] - 1).abs().max() < 0.05
    assert frame["measured"].iloc[-1] > 1.2 * frame["measured"].iloc[0]
