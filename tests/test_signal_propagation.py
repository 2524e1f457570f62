"""Theory held beside a network of the user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.maths import criticality
from layerwright.maths.activation import activation
from layerwright.report.terminal import show
from layerwright.theories import Act, Dense, Residual, tower

QUANTITIES = ["variance", "correlation", "gradient"]


class Block(nn.Module):
    """h + r · W₂ φ(W₁ norm(h))."""

    def __init__(self, width: int, norm: nn.Module, phi: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = norm, nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.phi, self.scale = phi, scale

    def forward(self, h: Tensor) -> Tensor:
        return h + self.scale * self.outer(self.phi(self.inner(self.norm(h))))


def drawn(net: nn.Module, weight: float, bias: float, seed: int) -> nn.Module:
    """The network with every layer's weights and biases drawn at these variances."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0, (weight / layer.in_features) ** 0.5, generator=generator)
            layer.bias.data.normal_(0, bias**0.5, generator=generator)
    return net


def exact(net: nn.Module, weight: float, bias: float) -> nn.Module:
    """The same, with mean squares that are exactly the variances."""
    for layer in drawn(net, weight, bias + 1e-9, 0).modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= (weight / layer.in_features / layer.weight.data.square().mean()).sqrt()
            layer.bias.data *= (bias / layer.bias.data.square().mean()).sqrt()
    return net


def mlp(
    width: int, depth: int, phi: Callable[[], nn.Module], inputs: int = 20, outputs: int | None = None
) -> nn.Module:
    hidden = [part for _ in range(depth) for part in (phi(), nn.Linear(width, width))]
    return nn.Sequential(nn.Linear(inputs, width), *hidden, phi(), nn.Linear(width, outputs or width))


def data(n: int = 8, d: int = 20) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def by(table: pd.DataFrame, quantity: str, column: str) -> np.ndarray:
    return table.loc[table["quantity"] == quantity, column].to_numpy(float)


# What is predicted is the theory of the words


@pytest.mark.parametrize(
    ("name", "module"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("gelu", nn.GELU), ("silu", nn.SiLU)]
)
def test_predictions_of_a_plain_network_are_the_recursion(name: str, module: type[nn.Module]) -> None:
    """K layer by layer, and the gradient by χ⊥, of `maths.criticality`."""
    weight, bias, x = 1.7, 0.1, data()
    x *= (20 / x.square().sum(1, keepdim=True)).sqrt()  # all of one length
    table = lw.signal_propagation(exact(mlp(32, 4, module), weight, bias), x).table
    signal = criticality.signal(activation(name), weight, bias, weight + bias, 5)
    assert by(table, "variance", "predicted") == pytest.approx(signal.variance.numpy(), rel=1e-5)
    gradient = [float(signal.chi_perpendicular[k:5].prod()) for k in range(6)]
    assert by(table, "gradient", "predicted") == pytest.approx(gradient, rel=1e-5)


def test_predictions_of_a_residual_network_are_the_kernels_of_the_same_words() -> None:
    weight, bias, scale = 1.5, 0.05, 0.7

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 24)

        def forward(self, h: Tensor) -> Tensor:
            return h + scale * self.layer(torch.tanh(h))

    net = exact(nn.Sequential(nn.Linear(20, 24), Plain(), Plain(), nn.Linear(24, 5)), weight, bias)
    words = [Dense(weight, bias), *[Residual([Act("tanh"), Dense(weight, bias)], scale)] * 2, Dense(weight, bias)]
    x, table = data(), lw.signal_propagation(net, data()).table
    k, layers = tower(words).kernel(x), tower(words).split(x)
    last = table[table["layer"] == table["layer"].max()]
    assert by(last, "variance", "predicted")[0] == pytest.approx(float(k.q1.mean()), rel=1e-5)
    cosines = (k.nngp / (k.q1[:, None] * k.q2).sqrt())[~torch.eye(8, dtype=torch.bool)]
    assert by(last, "correlation", "predicted")[0] == pytest.approx(float(cosines.mean()), rel=1e-5)
    # A layer's part of the tangent kernel is the kernel of what it gives times the gradient's square by it.
    first = tower(words[:1]).kernel(x).q1
    gradient = (layers[0].diagonal() / first).mean()
    assert by(table, "gradient", "predicted")[0] == pytest.approx(float(gradient), rel=1e-5)
    assert table["name"].unique().tolist() == ["0", "1.layer", "sum after 1.layer", "2.layer", "sum after 2.layer", "3"]


# What is measured agrees with it


def nets(kind: str, width: int) -> nn.Module:
    return {
        "tanh": lambda: mlp(width, 3, nn.Tanh),
        "relu": lambda: mlp(width, 3, nn.ReLU),
        "hand-made": lambda: mlp(width, 2, lambda: _Activation(lambda x: torch.sin(2 * x) + 0.3 * x.abs())),
        "pre-norm": lambda: nn.Sequential(
            nn.Linear(20, width), *(Block(width, nn.LayerNorm(width), F.gelu, 1.0) for _ in range(2)),
            nn.LayerNorm(width), nn.Linear(width, width),
        ),
        "rms": lambda: nn.Sequential(
            nn.Linear(20, width), Block(width, nn.RMSNorm(width), torch.relu, 0.5), nn.RMSNorm(width), nn.Tanh(),
            nn.Linear(width, width),
        ),
    }[kind]()  # fmt: skip


class _Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("kind", "width", "draws"),
    [
        ("pre-norm", 96, 8),
        *(pytest.param(k, 256, 24, marks=pytest.mark.slow) for k in ("tanh", "relu", "hand-made", "rms", "pre-norm")),
    ],
)
def test_networks_drawn_at_random_agree_within_three_standard_errors(kind: str, width: int, draws: int) -> None:
    """Mean over networks of what is measured less what is predicted; the width leaves a bias of 1/width."""
    x = data()
    tables = [
        lw.signal_propagation(drawn(nets(kind, width), 1.6, 0.1, seed), x, seed=seed).table for seed in range(draws)
    ]
    for quantity in QUANTITIES:
        measured, predicted = (np.stack([by(t, quantity, column) for t in tables]) for column in ("value", "predicted"))
        apart = (measured - predicted) / (1 if quantity == "correlation" else predicted)
        mean, error = apart.mean(0), apart.std(0, ddof=1) / math.sqrt(draws)
        assert (np.abs(mean) <= 3 * error + 2 / width).all(), (quantity, mean, error)


def test_intervals_hold_the_prediction_of_a_wide_network() -> None:
    table = lw.signal_propagation(drawn(mlp(1500, 1, nn.Tanh), 1.5, 0.0, 3), data(16)).table
    inside = (table["low"] <= table["predicted"]) & (table["predicted"] <= table["high"])
    assert inside.sum() >= 7  # of 9, each 95 %, and correlated
    assert np.allclose(table["value"], table["predicted"], rtol=0.15, atol=0.02)


def test_a_network_that_was_changed_is_seen() -> None:
    """Weights of one layer three times as large are known to theory; weights that are not independent are not."""
    net = drawn(mlp(300, 2, nn.ReLU), 2.0, 0.0, 0)
    net[2].weight.data *= 3
    table = lw.signal_propagation(net, data()).table
    assert by(table, "variance", "value")[:3] == pytest.approx(by(table, "variance", "predicted")[:3], rel=0.3)
    net[4].weight.data.abs_()
    found = lw.signal_propagation(net, data())
    assert by(found.table, "variance", "value")[2] > 10 * by(found.table, "variance", "predicted")[2]
    assert found.notes[0].startswith("variance: measured and predicted are farthest apart at 6, ")


# The result as users have it


def test_the_result_is_a_prediction(tmp_path: Path) -> None:
    found = lw.signal_propagation(drawn(mlp(40, 2, nn.ReLU, outputs=3), 2.0, 0.0, 0), data())
    assert list(found.table.columns) == [
        "layer", "name", "units", "weight_variance", "bias_variance", "quantity", "predicted", "value", "low", "high",
    ]  # fmt: skip
    assert found.table["quantity"].tolist() == QUANTITIES * 4
    assert found.table["name"].tolist()[::3] == ["0", "2", "4", "6"]
    assert found.table["units"].tolist()[::3] == [40, 40, 40, 3]
    assert found.theory["paper"]["arxiv"] == "2106.10165"
    document = json.loads(found.save(tmp_path / "found.json").read_text())
    assert len(document["rows"]) == 12
    assert document["theory"]["assumes"]
    assert found.save(tmp_path / "found.csv").read_text().startswith("layer,name")
    svg = found.save(tmp_path / "found.svg").read_text()
    assert "(variance" not in svg
    assert svg.count("stroke-dasharray") == 2


def test_the_same_seed_gives_the_same_numbers() -> None:
    net = drawn(mlp(40, 2, nn.ReLU), 2.0, 0.0, 0)
    one, again, other = (lw.signal_propagation(net, data(), seed=seed).table for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not np.allclose(by(one, "gradient", "value")[:-1], by(other, "gradient", "value")[:-1])
    assert np.allclose(by(one, "variance", "value"), by(other, "variance", "value"))


def test_arrays_in_another_floating_point_type_are_read() -> None:
    net, x = drawn(mlp(40, 2, nn.ReLU), 2.0, 0.0, 0), data()
    other = np.asarray(x, dtype=np.float64 if x.dtype == torch.float32 else np.float32)
    found, wanted = (lw.signal_propagation(net, given).table["value"] for given in (other, x))
    assert np.allclose(found, wanted, rtol=1e-4)


def test_zero_rows_duplicates_and_one_row() -> None:
    net = drawn(mlp(60, 2, nn.Tanh), 1.5, 0.0, 0)
    x = data()
    x[0], x[2] = 0, x[1]
    table = lw.signal_propagation(net, x).table
    assert np.isfinite(table[["predicted", "value"]]).all(axis=None)
    alone = lw.signal_propagation(net, x[1:2]).table
    assert np.isnan(by(alone, "correlation", "predicted")).all()
    assert np.isfinite(by(alone, "variance", "predicted")).all()


def test_a_branch_of_zeros() -> None:
    net = drawn(nets("pre-norm", 32), 1.6, 0.0, 0)
    for block in (net[1], net[2]):
        nn.init.zeros_(block.outer.weight)
        nn.init.zeros_(block.outer.bias)
    table = lw.signal_propagation(net, data()).table
    branch = table[table["name"] == "1.outer"]
    assert (by(branch, "variance", "predicted"), by(branch, "variance", "value")) == (0, 0)
    assert by(table[table["name"] == "1.inner"], "gradient", "predicted") == 0
    stream = table[table["name"] == "sum after 2.outer"]
    assert by(stream, "variance", "predicted") == pytest.approx(
        by(table[table["name"] == "0"], "variance", "predicted")
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net, x: (nn.Sequential(net[0], _Activation(torch.sign), net[2]), x), "jumps|no tangent kernel|slope"),
        (lambda net, x: (net, x / 0), "NaN or infinite numbers in inputs"),
        (lambda net, x: (nn.TransformerEncoderLayer(20, 2, 16, batch_first=True), x[:, None]), "it has attention"),
        (lambda net, x: (net, x[:0]), "expected one or more"), (lambda net, x: (net, None), "got inputs of type None"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(change: Callable[[Any, Tensor], tuple[nn.Module, Tensor]], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        lw.signal_propagation(*change(mlp(20, 1, nn.Tanh), data()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [None, "demo"])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"got a model of type .*; expected a torch module"):
        lw.signal_propagation(model, data())
    with pytest.raises(UserError, match="got seed=-1"):
        lw.signal_propagation(mlp(20, 1, nn.Tanh), data(), seed=-1)


def test_weights_that_are_nan_are_named() -> None:
    net = mlp(20, 1, nn.Tanh)
    net[2].weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="NaN or infinite numbers in 2"):
        lw.signal_propagation(net, data())


# Beside a survey


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    return drawn(nets("pre-norm", 64), 1.6, 0.1, 0)


def test_a_survey_of_a_tower_has_the_prediction_beside_the_measurement(residual: nn.Module, tmp_path: Path) -> None:
    found = lw.survey(residual, data(32), only=["stream_scale"], theory=True, seed=5, out=tmp_path)
    assert list(found.tables) == ["stream_scale", "signal_propagation"]
    frame, alone = found["signal_propagation"], lw.signal_propagation(residual, data(32), seed=5).table
    measured, predicted = (frame[frame["numbers"] == name] for name in ("measured", "predicted"))
    assert np.array_equal(measured["value"], alone["value"])
    assert np.array_equal(predicted["value"], alone["predicted"])
    assert frame.attrs["index"] == ["layer", "numbers", "quantity"]
    assert not frame.duplicated(frame.attrs["index"]).any()
    assert sum(note.startswith("signal_propagation: ") for note in found.notes) == 2

    document = json.loads((tmp_path / "survey.json").read_text())
    assert document["tables"]["signal_propagation"]["paper"]["arxiv"] == "2106.10165"
    assert len(pd.read_csv(tmp_path / "tables" / "signal_propagation.csv")) == len(frame)
    page = (tmp_path / "report.html").read_text()
    assert "How signals and gradients go through the layers" in page
    assert page.count("predicted") >= 3


def test_where_no_tower_is_known_one_line_says_why_and_the_survey_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = lw.survey(llama(), {"input_ids": token_ids()}, only=["stream_scale"], theory=True)
    assert list(found.tables) == ["stream_scale", "independent_branches"]
    (note,) = found.notes
    assert note.startswith("theory does not match this network: its blocks have attention; expected ")
    show(found)
    printed = capsys.readouterr().out
    assert "what it would be if no block" in " ".join(printed.split())
    assert printed.count("theory") >= 2


def test_the_terminal_shows_both(residual: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    show(lw.survey(residual, data(), only=["stream_scale"], theory=True))
    lines = capsys.readouterr().out.splitlines()
    heading = next(k for k, line in enumerate(lines) if line.startswith("layer "))
    assert max(map(len, lines[heading - 1 : heading + 9])) <= 80
    assert lines[heading].split() == ["layer", *(word for q in QUANTITIES for word in (q, "theory"))]
    assert lines[heading + 2].startswith("1.inner")


def test_theory_can_be_left_out_and_compared(residual: nn.Module) -> None:
    assert "signal_propagation" not in lw.survey(residual, data(), only=["stream_scale"]).tables
    skipped = lw.survey(
        llama(), {"input_ids": token_ids()}, only=["stream_scale"], skip=["independent_branches"], theory=True
    )
    assert list(skipped.tables) == ["stream_scale"]
    other = drawn(nets("pre-norm", 64), 1.6, 0.1, 1)
    both = lw.survey(residual, data(), only=["stream_scale"], theory=True, against=other)
    assert both.against is not None
    assert len(both.comparison["signal_propagation"]) == len(both["signal_propagation"])


def test_a_model_taken_block_by_block_is_not_called(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    found = lw.survey(tmp_path, {"input_ids": token_ids()}, only=["stream_scale"], theory=True, stream="always")
    assert "independent_branches" in found.tables
    assert any("its weights are not all in memory here" in note for note in found.notes)
