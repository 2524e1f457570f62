from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.claims import residual_depth as claim
from layerwright.core.trials import Budget


def test_the_experiment_at_a_tiny_size(monkeypatch) -> None:
    monkeypatch.setitem(claim.SIZES, "small", {"width": 64, "inputs": 8, "depths": [4, 8, 16]})
    verdict = claim.run(0, Budget("small", seeds=2))
    values = {name: m["value"] for name, m in verdict.measured.items()}
    assert values["rate"] == pytest.approx(0.5 * np.log(2), abs=0.05)
    assert values["sqrt_growth"] == pytest.approx(0.5 * 16 * np.log(1 + 1 / 16), abs=0.15)
    assert values["inverse_growth"] == pytest.approx(1 / 32, abs=0.05)
    assert values["identity_growth"] == 0
    assert values["tanh_evenness"] < 0.7
    assert verdict.figure is not None
    assert verdict.figure.startswith("<svg")


def test_a_branch_is_as_large_as_its_input() -> None:
    torch.manual_seed(0)
    h = torch.randn(256, 512)
    added = claim.Branch(512, 1.0, claim._RELU)(h) - h
    assert added.square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_evenness_tells_an_exponential_from_a_power() -> None:
    steps = np.arange(65.0)
    assert claim._evenness(np.exp(0.1 * steps)) == pytest.approx(1)
    assert claim._evenness(np.sqrt(steps + 1)) < 0.3
