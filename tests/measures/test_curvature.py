from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import blocks_of, loss
from torch import Tensor, nn
from zoo import Residual, gpt2, token_ids

import layerwright as lw
from layerwright.core.curvature import Curvature
from layerwright.maths.gauss_newton import gauss_newton_values, softmax_root
from layerwright.measures.curvature import curvature


class Matrix(Curvature):
    """A matrix that is written out."""

    def __init__(self, matrix: Tensor, classes: int = 3) -> None:
        self.matrix, self.size, self.classes, self.seed = matrix.double(), len(matrix), classes, 0

    def product(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


def numbers(h: Tensor, g: Tensor, **options: Any) -> dict[tuple[str, str], float]:
    given: dict[str, Any] = {"difference": True, **options}
    return {key: x.item() for key, x in curvature(Matrix(h), Matrix(g), **given).items()}


def test_hand_values() -> None:
    found = numbers(torch.diag(torch.tensor([8.0, 7.0, 0.5, -1.0])), torch.diag(torch.tensor([8.0, 6.0, 1.0, 0.0])))
    assert found == pytest.approx({
        ("hessian", "largest"): 8.0, ("hessian", "smallest"): -1.0, ("hessian", "trace"): 14.5,
        ("hessian", "trace_error"): 0.0, ("hessian", "outliers"): 2, ("hessian", "outlier_ratio"): 14.0,
        ("hessian", "classes"): 3, ("gauss_newton", "largest"): 8.0,
        ("gauss_newton", "trace"): 15.0, ("gauss_newton", "trace_error"): 0.0, ("gauss_newton", "outliers"): 3,
        ("gauss_newton", "outlier_ratio"): 12.5, ("gauss_newton", "classes"): 3, ("difference", "largest"): 1.0,
        ("difference", "smallest"): -1.0, ("difference", "trace"): -0.5, ("difference", "trace_error"): 0.0,
    })  # fmt: skip


def test_more_weights_than_are_done_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(400, 400, generator=generator).double()
    basis = torch.linalg.qr(draw).Q
    of_g = torch.cat([torch.tensor([9.0, 8.0, 7.0]), 0.1 * torch.rand(397, generator=generator)]).double()
    g = basis * of_g @ basis.T
    h = g + 0.01 * (draw + draw.T) / 20
    found = numbers(h, g)
    for name, matrix in (("hessian", h), ("gauss_newton", g), ("difference", h - g)):
        values = torch.linalg.eigvalsh(matrix)
        assert found[name, "largest"] == pytest.approx(float(values[-1]), rel=1e-5)
        if name != "gauss_newton":
            assert found[name, "smallest"] == pytest.approx(float(values[0]), abs=1e-5)
        assert abs(found[name, "trace"] - float(values.sum())) < 4 * found[name, "trace_error"]
    assert found["hessian", "outliers"] == found["gauss_newton", "outliers"] == 3
    # Of the same probes: the difference is known far better than what it is the difference of.
    assert found["difference", "trace_error"] < 0.1 * found["hessian", "trace_error"]


def test_scale_and_rotation() -> None:
    h, g = torch.diag(torch.tensor([8.0, 7.0, 0.5, -1.0])).double(), torch.eye(4).double()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    base, other = numbers(h, g), numbers(turn @ (3 * h) @ turn.T, turn @ (3 * g) @ turn.T)
    for (operator, name), value in base.items():
        scale = 1 if name in ("outliers", "outlier_ratio", "classes") else 3
        assert other[operator, name] == pytest.approx(scale * value, abs=1e-9), (operator, name)


def test_of_a_classifier_by_backward_passes() -> None:
    """Blocks and the whole, against Hessians that autograd writes out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), Residual(4), Residual(4), nn.Linear(4, 3))
        inputs = {"input": torch.randn(12, 5), "labels": torch.arange(12) % 3}
    survey = lw.survey(model, inputs, only=["curvature"])
    frame = survey["curvature"]
    assert frame.attrs["index"] == ["blocks", "operator", "quantity"]
    assert dict.fromkeys(frame["blocks"]) == dict.fromkeys(("0", "1", "model"))
    values = frame.set_index(["blocks", "operator", "quantity"])["value"]
    for blocks, module in (("0", model[1]), ("1", model[2]), ("model", model)):
        chosen = list(module.parameters())
        number = nn.functional.cross_entropy(model(inputs["input"]), inputs["labels"])
        first = torch.cat([g.flatten() for g in torch.autograd.grad(number, chosen, create_graph=True)])
        rows = [torch.autograd.grad(x, chosen, retain_graph=True, materialize_grads=True) for x in first]
        spectrum = torch.linalg.eigvalsh(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double())
        for name, expected in (("largest", spectrum[-1]), ("smallest", spectrum[0]), ("trace", spectrum.sum())):
            assert values[blocks, "hessian", name] == pytest.approx(float(expected), rel=1e-4, abs=1e-5), blocks
        assert values[blocks, "hessian", "classes"] == 3
        left = values[blocks, "hessian", "trace"] - values[blocks, "gauss_newton", "trace"]
        assert values[blocks, "difference", "trace"] == pytest.approx(left, rel=1e-4, abs=1e-5)


def test_a_linear_model_is_all_gauss_newton_and_equals_the_gram_trick() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Linear(6, 3, bias=False))
        inputs = {"input": torch.randn(5, 6), "labels": torch.tensor([0, 1, 2, 0, 1])}
    survey = lw.survey(model, inputs, only=["curvature"], options={"curvature": {"difference": True}})
    values = survey["curvature"].set_index(["blocks", "operator", "quantity"])["value"]["model"]
    read, logits = inputs["input"].tanh().tanh(), model(inputs["input"]).detach()
    spectrum = gauss_newton_values(read, softmax_root(logits).mT)
    for operator in ("hessian", "gauss_newton"):
        assert values[operator, "largest"] == pytest.approx(float(spectrum[0]), rel=1e-5)
        assert values[operator, "trace"] == pytest.approx(float(spectrum.sum()), rel=1e-5)
    assert abs(values["difference", "largest"]) < 1e-6
    assert sum("it has no weights" in note for note in survey.notes) == 2


def test_of_a_language_model_the_steepest_direction_is_found() -> None:
    """Along the gradient's own direction no second difference of the loss exceeds the largest eigenvalue."""
    model, ids = gpt2(num_hidden_layers=2, hidden_size=8).double(), token_ids(2, 8)
    frame = lw.survey(model, {"input_ids": ids}, only=["curvature"])["curvature"]
    values = frame.set_index(["blocks", "operator", "quantity"])["value"]
    for k, block in enumerate(blocks_of(model)):
        weights = list(block.parameters())
        low, high = (values[str(k), "hessian", name] for name in ("smallest", "largest"))
        assert low < 0 < high
        assert values[str(k), "gauss_newton", "largest"] > 0

        def at(step: float, way: list[Tensor], weights: list[Tensor] = weights) -> float:
            with torch.no_grad():
                for w, d in zip(weights, way):
                    w.add_(step * d)
                number = loss(model.eval()(input_ids=ids).logits, ids).item()
                for w, d in zip(weights, way):
                    w.sub_(step * d)
            return number

        way = list(torch.autograd.grad(loss(model.eval()(input_ids=ids).logits, ids), weights))
        length = torch.cat([d.flatten() for d in way]).norm()
        way, h = [d / length for d in way], 1e-4
        bend = (at(h, way) - 2 * at(0.0, way) + at(-h, way)) / h**2
        assert low - 1e-3 <= bend <= high + 1e-3


def test_it_is_asked_for_by_name() -> None:
    from layerwright.core.registry import choose, find

    assert "curvature" not in [m.name for m in choose("deep")]
    assert [m.name for m in choose("quick", only=["curvature"])] == ["curvature"]
    assert find("curvature").tier == "by name"


def test_without_labels_it_says_so() -> None:
    model = nn.Sequential(nn.Linear(5, 4), Residual(4), Residual(4), nn.Linear(4, 3))
    survey = lw.survey(model, torch.randn(4, 5), only=["curvature"])
    assert "curvature" not in survey.tables
    assert any("no labels for this model's output" in note for note in survey.notes)


def test_another_number_of_eigenvalues() -> None:
    h = torch.diag(torch.tensor([100.0, 90.0, 50.0, 40.0, 10.0, 9.0]))
    assert numbers(h, h, top=3)["hessian", "outliers"] == 2
    assert numbers(h, h, top=6)["hessian", "outliers"] == 4
    assert numbers(h, h, top=1)["hessian", "outliers"] == 0


def test_of_the_difference_only_the_trace_comes_for_free() -> None:
    found = numbers(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2), difference=False)
    assert {name: x for (operator, name), x in found.items() if operator == "difference"} == {
        "trace": 2.0, "trace_error": 0.0
    }  # fmt: skip
