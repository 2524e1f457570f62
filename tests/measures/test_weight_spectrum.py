from __future__ import annotations

import math

import pytest
import torch
from naive import column, tables
from torch import nn
from zoo import ZOO, gpt2, llama, token_ids, vectors

from layerwright.measures.weight_spectrum import weight_spectrum


def numbers(matrix: torch.Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in weight_spectrum(matrix).items()}


def naive(matrix: torch.Tensor) -> dict[str, float]:
    """From the singular values of an SVD in float64."""
    s = torch.linalg.svdvals(matrix.double())
    p = s[s > 0] / s.sum()
    return {
        "stable_rank": float(matrix.double().square().sum() / s.max() ** 2),
        "effective_rank": math.exp(-float((p * p.log()).sum())),
        "spectral_norm": float(s.max()),
        "frobenius_norm": float(matrix.double().square().sum().sqrt()),
    }


def test_hand_values() -> None:
    found = numbers(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    entropy = -(3 / 7 * math.log(3 / 7) + 4 / 7 * math.log(4 / 7))
    assert found == pytest.approx(
        {"stable_rank": 25 / 16, "effective_rank": math.exp(entropy), "spectral_norm": 4.0, "frobenius_norm": 5.0}
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet", "mamba"])
def test_every_matrix_of_every_block(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    frame = tables(model, inputs, "weight_spectrum")["weight_spectrum"]
    seen = 0
    for b, block in enumerate(model.get_submodule(p) for p in paths(name)):
        for path, p in block.named_parameters():
            if p.ndim < 2:
                continue
            row = frame[(frame["block"] == b) & (frame["matrix"] == path.removesuffix(".weight"))]
            found = row.set_index("quantity")["value"].to_dict()
            assert found == pytest.approx(naive(p.detach().flatten(1)), rel=1e-5)
            seen += 1
    assert len(frame) == 4 * seen > 0


def paths(name: str) -> list[str]:
    return {
        "llama": [f"model.layers.{k}" for k in range(3)],
        "gpt2": [f"transformer.h.{k}" for k in range(3)],
        "resnet": [f"resnet.encoder.stages.1.layers.{k}" for k in (1, 2, 3)],
        "mamba": [f"backbone.layers.{k}" for k in range(3)],
    }[name]


def test_experts_come_one_by_one() -> None:
    model, inputs, _ = ZOO["mixtral"]()
    frame = tables(model, inputs, "weight_spectrum")["weight_spectrum"]
    stacked = {path: p for path, p in model.model.layers[0].named_parameters() if p.ndim == 3}
    assert stacked
    for path, p in stacked.items():
        for expert in range(len(p)):
            row = frame[(frame["block"] == 0) & (frame["matrix"] == f"{path}[{expert}]")]
            assert row.set_index("quantity")["value"].to_dict() == pytest.approx(naive(p[expert].detach()), rel=1e-5)


def test_turning_changes_nothing_and_scaling_only_norms() -> None:
    x = vectors(9, 5)
    left, right = torch.linalg.qr(vectors(9, 9)).Q, torch.linalg.qr(vectors(5, 5)).Q
    expected = numbers(x)
    assert numbers(left @ x @ right) == pytest.approx(expected, rel=1e-4)
    assert numbers(x.T) == pytest.approx(expected, rel=1e-5)
    for name, value in numbers(100 * x).items():
        assert value == pytest.approx(expected[name] * (100 if "norm" in name else 1), rel=1e-5)


def test_half_precision_is_measured_in_full() -> None:
    x = vectors(9, 5).bfloat16()
    assert numbers(x) == pytest.approx(naive(x), rel=1e-6)


def test_a_zero_matrix_and_one_that_is_not_finite() -> None:
    assert set(numbers(torch.zeros(3, 4)).values()) == {0.0}
    assert all(math.isnan(x) for x in numbers(torch.tensor([[1.0, torch.nan]])).values())
    assert all(math.isnan(x) for x in numbers(torch.tensor([[1.0, torch.inf]])).values())


def test_needs_no_second_look_at_the_data() -> None:
    model = llama()
    few, many = (tables(model, {"input_ids": token_ids(n)}, "weight_spectrum")["weight_spectrum"] for n in (1, 5))
    assert few.equals(many)


def test_blocks_without_a_matrix_are_noted_not_measured() -> None:
    assert "weight_spectrum" not in tables(nn.Sequential(nn.Tanh(), nn.Tanh()), vectors(3, 4), "weight_spectrum")


def test_a_whole_model_in_float64_agrees_with_float32() -> None:
    a, b = (
        tables(m, {"input_ids": token_ids()}, "weight_spectrum")["weight_spectrum"] for m in (gpt2(), gpt2().double())
    )
    torch.testing.assert_close(column(a), column(b), rtol=1e-5, atol=1e-6)
