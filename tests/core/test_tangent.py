"""Tangent kernels of all sorts of modules against the Jacobians of autograd, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, gpt2, llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.core.inputs import call, rows
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.tangent import record
from layerwright.core.tangent.model import logits
from layerwright.core.trace import tensors

Read = Callable[[Any], Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobian(model: nn.Module, inputs: Any, read: Read = logits) -> dict[str, Tensor]:
    """Of each input alone, by name, `[n, O, …]`, an output at a time."""
    model = unwrap(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with undisturbed(model):
        weights = [model.get_parameter(name).requires_grad_() for name in names]
        for i in range(len(next(tensors(inputs)))):
            f = read(call(model, rows(inputs, slice(i, i + 1)))).flatten()
            grads = [torch.autograd.grad(y, weights, retain_graph=True, materialize_grads=True) for y in f]
            for name, of in zip(names, zip(*grads)):
                found[name].append(torch.stack(of))
        for p in weights:
            p.requires_grad_(False)
    return {name: torch.stack(of) for name, of in found.items()}


def kernel_of(jacobians: dict[str, Tensor], others: dict[str, Tensor] | None = None) -> Tensor:
    """`[N, M, O, O]`."""
    pairs = ((j, (others or jacobians)[name]) for name, j in jacobians.items())
    pairs = ((a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)) for a, b in pairs)
    return sum(torch.einsum("iox,jpx->ijop", a, b) for a, b in pairs)  # type: ignore[return-value]


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# Modules that use their parameters in many ways


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
        )


class Convolutions(nn.Module):
    """Strides, padding, groups, dilation, circular padding, one axis and three, and one that goes backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False, padding_mode="circular")
        self.line, self.back = nn.Conv1d(6, 3, 3, padding=1), nn.ConvTranspose1d(3, 2, 2)
        self.solid = nn.Conv3d(1, 2, (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.grouped(torch.relu_(self.first(x)))))
        x = self.back(self.line(x.flatten(2)).tanh())
        return self.solid(x.unsqueeze(1).unsqueeze(2)).mean(3).flatten(1)[:, ::3]


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.batch, self.group, self.rms, self.layer = (
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.RMSNorm(4),
            nn.LayerNorm(4),
        )
        self.line, self.scale, self.shift = nn.BatchNorm1d(4), nn.Parameter(draw(1) + 2), nn.Parameter(draw(4, 1, 1))
        with torch.no_grad():
            self.batch.running_mean += draw(4)
            self.batch.running_var += 0.3

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.batch(self.conv(x)).tanh()) + self.shift
        x = self.rms(x.permute(0, 2, 3, 1)) - 0.1 * self.scale
        return self.line(self.layer(x).flatten(1, 2).mean(1)) * (1 + self.scale)


class Twice(nn.Module):
    """A module that runs twice, one weight in two modules, and one that is read as it stands and turned."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(torch.tanh(self.map(x)))
        return self.two(self.one(x).sin() @ self.one.weight)


class Tied(nn.Module):
    """A language model of one block whose head is its embedding, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(11, 6, padding_idx=3), nn.Embedding(8, 6)
        self.block, self.first = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3), nn.Parameter(draw(1, 1, 6))
        self.scale = nn.Parameter(draw() + 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))
        x = torch.cat([self.first.expand(len(ids), -1, -1), x], 1)
        x = self.block(x.transpose(0, 1)).transpose(0, 1)  # tokens first, samples in turns
        return (x @ self.embedding.weight.T * self.scale)[:, [0, -1], ::6]


class Experts(nn.Module):
    """Tokens are sent to modules by what they are, and come back; the last expert is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(4, 3), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        with torch.no_grad():
            self.gate.bias[2] -= 100

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen, found = self.gate(flat).argmax(1), flat.clone()
        for k, expert in enumerate(self.experts):
            if (chosen == k).any():
                found[chosen == k] += expert(flat[chosen == k])
        return self.head(found.view_as(x)).sum(1)


class Functions(nn.Module):
    """Parameters that no module reads: products of parameters, einsum, division, a matrix in front."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.stack = nn.Parameter(draw(4, 2)), nn.Parameter(draw(2, 4)), nn.Parameter(draw(2, 4, 4))
        self.divisor, self.front = nn.Parameter(draw(4).abs() + 1), nn.Parameter(draw(3, 4))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("nd,kde->nke", x, self.stack).sum(1) / self.divisor
        x = self.normed(x @ (self.a @ self.b) + nn.functional.linear(x, self.stack[0]).tanh())
        return (self.front @ x.T).T


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.cell = nn.GRU(3, 4, batch_first=True), nn.LSTM(4, 3), nn.GRUCell(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.gru(x)[0].transpose(0, 1))[0]
        return self.cell(x[-1], self.cell(x[0]))


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (Mlp, draw(4, 5)),
    "convolutions": (Convolutions, draw(3, 2, 8, 6)),
    "norms": (Norms, draw(3, 2, 5, 4)),
    "a module and a weight used twice": (Twice, draw(4, 5)),
    "tied embedding": (Tied, torch.tensor([[1, 3, 1, 0], [10, 2, 2, 3], [5, 6, 7, 1]])),
    "experts": (Experts, draw(3, 5, 4)),
    "functions": (Functions, draw(4, 4)),
    "recurrent": (Recurrent, draw(3, 4, 3)),
    "several inputs": (lambda: nn.Bilinear(3, 4, 2), (draw(3, 3), draw(3, 4))),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    return build().double(), inputs


@pytest.mark.parametrize("memory", [2**30, 1], ids=["at once", "one by one"])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_those_of_jacobians(name: str, memory: int) -> None:
    model, inputs = made(name)
    expected = kernel_of(jacobian(model, inputs))
    found = lw.tangent_kernel(model, inputs, memory=memory)
    assert found.values.shape == expected.shape
    assert far(found.values, expected) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "tied embedding"])
def test_every_form_is_a_part_of_the_full_one(name: str) -> None:
    model, inputs = made(name)
    model.requires_grad_(True)
    j = jacobian(model, inputs)
    other = rows(inputs, slice(1, None))
    full, across = kernel_of(j), kernel_of(j, {name: x[1:] for name, x in j.items()})
    n, o = full.shape[1:3]
    each = full.diagonal(dim1=2, dim2=3)
    own = torch.arange(n)
    for memory in (2**30, 10_000):

        def kernel(second: Any = None, memory: int = memory, **options: Any) -> Tensor:
            return lw.tangent_kernel(model, inputs, second, memory=memory, **options).values

        assert far(kernel(other), across) < 1e-12
        assert far(kernel(outputs="each"), each) < 1e-12
        assert far(kernel(other, outputs="each"), across.diagonal(dim1=2, dim2=3)) < 1e-12
        assert far(kernel(outputs="trace"), each.mean(-1)) < 1e-12
        assert far(kernel(diagonal=True), full[own, own]) < 1e-12
        assert far(kernel(outputs="each", diagonal=True), each[own, own]) < 1e-12
        assert far(kernel(outputs="trace", diagonal=True), each[own, own].mean(-1)) < 1e-12
        assert far(kernel(inputs, diagonal=True), full[own, own]) < 1e-12
    assert far(lw.tangent_kernel(model, inputs).matrix(), full.transpose(1, 2).reshape(n * o, n * o)) < 1e-12


def test_parts_by_layer_add_up_and_are_the_layers_own() -> None:
    model, inputs = made("tied embedding")
    j = jacobian(model, inputs)
    found = lw.tangent_kernel(model, inputs, by_layer=True)
    assert set(found.layers) == {name.rpartition(".")[0] or "(model)" for name in j}
    assert far(sum(found.layers.values()), found.values) < 1e-12  # type: ignore[arg-type]
    for layer in ("embedding", "block.self_attn", "(model)"):
        own = {name: x for name, x in j.items() if (name.rpartition(".")[0] or "(model)") == layer}
        assert far(found.layers[layer], kernel_of(own)) < 1e-12


def test_a_projection_is_right_on_average_and_says_how_far_it_is() -> None:
    model, inputs = made("mlp")
    exact = lw.tangent_kernel(model, inputs, outputs="trace").values
    found = lw.tangent_kernel(model, inputs, outputs="projection", projections=400)
    assert found.error is not None
    off = (found.values - exact) / found.error
    assert off.abs().max() < 4
    assert 0.3 < off.square().mean() < 2
    few = [lw.tangent_kernel(model, inputs, outputs="projection", seed=s).values for s in (0, 0, 1)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    parts = lw.tangent_kernel(model, inputs, outputs="projection", by_layer=True)
    torch.testing.assert_close(sum(parts.layers.values()), parts.values)


@pytest.mark.parametrize("name", ["gpt2", "llama", "looped core", "layer1..layer4", "nn.TransformerEncoder", "peft"])
def test_models_of_the_zoo(name: str) -> None:
    check_of_zoo(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ZOO} - {"ddp", "mixtral", "torch.compile", "compiled in place"}))
def test_all_models_of_the_zoo(name: str) -> None:
    check_of_zoo(name)


def check_of_zoo(name: str) -> None:
    """Some outputs of the first and the last places, in float64; a few models compute parts of theirs in float32."""
    model, inputs, _ = ZOO[name]()
    model = model.double()
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    named = {k: x.double() if x.is_floating_point() else x for k, x in named.items()}
    inputs = named if isinstance(inputs, dict) else named[""]

    def read(output: Any) -> Tensor:
        found = logits(output).flatten(1).double()
        return found[:, [0, found.shape[1] // 2, -1]]

    expected = kernel_of(jacobian(model, inputs, read))
    bound = 1e-8 if name in ("gemma2", "gemma3", "mamba") else 1e-10
    assert far(lw.tangent_kernel(model, inputs, read=read).values, expected) < bound


def test_experts_in_one_tensor_of_weights() -> None:
    model, inputs, _ = ZOO["mixtral"]()  # computes in float32 only
    read: Read = lambda output: output.logits[:, -1, :2]  # noqa: E731
    expected = lw.tangent_kernel(model, rows(inputs, slice(0, 1)), read=read, memory=1).values
    found = lw.tangent_kernel(model, inputs, read=read)
    assert far(found.values[:1, :1], expected) < 1e-5
    gradients = []
    model.eval()
    for i in range(2):
        f = read(model(**rows(inputs, slice(i, i + 1)), use_cache=False))[0, 0]
        grads = torch.autograd.grad(f, list(model.parameters()), materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in grads]))
    assert float(gradients[0] @ gradients[1]) == pytest.approx(float(found.values[0, 1, 0, 0]), rel=1e-4)


def test_only_functions_without_a_form_cost_a_call_for_each_input(monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    original = record.Recorder._one_by_one

    def spied(self: Any, some: Any, *more: Any) -> Any:
        names.update(some)
        return original(self, some, *more)

    monkeypatch.setattr(record.Recorder, "_one_by_one", spied)
    for name in ("mlp", "norms", "a module and a weight used twice", "tied embedding", "experts"):
        lw.tangent_kernel(*made(name))
    for model in (gpt2(), llama()):
        lw.tangent_kernel(model, {"input_ids": token_ids()}, outputs="projection")
    assert not names
    lw.tangent_kernel(*made("functions"))
    assert names == {
        "a",
        "b",
        "stack",
        "divisor",
        "front",
        *(f"normed.parametrizations.weight.original{k}" for k in (0, 1)),
    }


def test_outputs_of_one_token_need_that_token_only() -> None:
    model, ids = gpt2().double(), token_ids(3, 9)
    seen: list[tuple[int, ...]] = []

    def read(output: Any) -> Tensor:
        seen.append(tuple(output.logits.shape))
        return output.logits[:, -1, :2]

    expected = kernel_of(jacobian(model, {"input_ids": ids}, read))
    assert far(lw.tangent_kernel(model, {"input_ids": ids}, read=read).values, expected) < 1e-10


# Which parameters, and how the model is left


def test_frozen_parameters_do_not_count_unless_they_are_named() -> None:
    model, inputs = made("mlp")
    j = jacobian(model, inputs)
    model[0].requires_grad_(False)
    trained = kernel_of({name: x for name, x in j.items() if not name.startswith("0.")})
    assert far(lw.tangent_kernel(model, inputs).values, trained) < 1e-12
    named = {"0": {"0.weight", "0.bias"}, "*.bias": {"0.bias", "4.bias"}, "2.weight": {"2.weight"}}
    for parameters, names in named.items():
        expected = kernel_of({name: j[name] for name in names})
        assert far(lw.tangent_kernel(model, inputs, parameters=parameters).values, expected) < 1e-12
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True]


def test_a_model_in_training_is_evaluated_and_left_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    model.train()
    model[1].eval()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    random = torch.get_rng_state()
    first, second = (lw.tangent_kernel(model, draw(5, 4)).values for _ in range(2))
    assert torch.equal(first, second)
    assert [m.training for m in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert far(first, kernel_of(jacobian(model.eval(), draw(5, 4)))) < 1e-12


def test_a_failed_kernel_leaves_the_model_as_it_was() -> None:
    model, _ = made("mlp")
    model[0].requires_grad_(False)
    with pytest.raises(UserError):
        lw.tangent_kernel(model, draw(3, 9), parameters=["0"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True]


def test_one_input_is_enough() -> None:
    model, inputs = made("mlp")
    whole, one = lw.tangent_kernel(model, inputs).values, lw.tangent_kernel(model, inputs[:1]).values
    assert one.shape == (1, 1, 3, 3)
    assert far(one, whole[:1, :1]) < 1e-12


def test_arrays_tuples_and_other_types_are_read() -> None:
    model, inputs = made("mlp")
    expected = lw.tangent_kernel(model, inputs).values
    assert torch.equal(lw.tangent_kernel(model, inputs.numpy()).values, expected)
    assert torch.equal(lw.tangent_kernel(model, (inputs,)).values, expected)
    assert torch.equal(lw.tangent_kernel(model, {"input": inputs.float()}).values.isfinite(), expected.isfinite())
    single = lw.tangent_kernel(model.float(), inputs.numpy())
    assert single.values.dtype == torch.float32
    assert far(single.values.double(), expected) < 1e-5
    half = lw.tangent_kernel(model.bfloat16(), inputs)
    assert half.values.dtype == torch.float32
    assert far(half.values.double(), expected) < 0.1
    model = made("mlp")[0]
    with torch.inference_mode():
        assert torch.equal(lw.tangent_kernel(model, draw(4, 5)).values, expected)


# What is read off a kernel


def test_eigenvalues_and_effective_rank() -> None:
    kernel = lw.tangent_kernel(nn.Linear(4, 1, bias=False).double(), 2 * torch.eye(4).double())
    torch.testing.assert_close(kernel.eigenvalues(), torch.full((4,), 4.0, dtype=torch.float64))
    assert kernel.effective_rank() == pytest.approx(4.0)


def test_alignment_with_classes_and_numbers_and_with_another_kernel() -> None:
    model, inputs = made("mlp")
    full, trace = lw.tangent_kernel(model, inputs), lw.tangent_kernel(model, inputs, outputs="trace")
    classes = torch.tensor([0, 1, 0, 2])
    columns = nn.functional.one_hot(classes).double()
    assert full.alignment(classes) == pytest.approx(trace.alignment(columns), rel=1e-12)
    assert full.alignment(classes.numpy()) == full.alignment(classes)
    assert full.similarity(trace) == pytest.approx(1.0)
    with torch.no_grad():
        model[0].weight += 1
    assert 0 < full.similarity(lw.tangent_kernel(model, inputs)) < 1 - 1e-6
    y = draw(4, 1)
    linear = lw.tangent_kernel(nn.Linear(1, 1, bias=False).double(), y - y.mean())
    assert linear.alignment(y) == pytest.approx(1.0)


def test_an_operator_has_the_products_of_the_matrix() -> None:
    for name in ("mlp", "tied embedding", "norms"):
        model, inputs = made(name)
        matrix = lw.tangent_kernel(model, inputs).matrix()
        for memory in (2**30, 1):
            operator = lw.tangent_operator(model, inputs, memory=memory)
            v = draw(operator.size)
            torch.testing.assert_close(operator.product(v), matrix @ v)
            torch.testing.assert_close(operator.largest(3), torch.linalg.eigvalsh(matrix).flip(0)[:3])
            assert operator.trace() == (pytest.approx(float(matrix.trace())), 0.0)
    assert (operator.linear_operator() @ v.numpy()) == pytest.approx((matrix @ v).numpy())


def test_an_operator_of_many_rows_estimates_its_trace_with_an_error() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 5)).double(), draw(60, 3)
    operator, matrix = lw.tangent_operator(model, inputs), lw.tangent_kernel(model, inputs).matrix()
    found, error = operator.trace(probes=16)
    assert 0 < error < 0.2 * float(matrix.trace())
    assert abs(found - float(matrix.trace())) < 4 * error
    torch.testing.assert_close(operator.largest(4), torch.linalg.eigvalsh(matrix).flip(0)[:4])


# What is refused


def refused(match: str, model: nn.Module, inputs: Any, *more: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        lw.tangent_kernel(model, inputs, *more, **options)
    assert "\n" not in str(caught.value)


def test_inputs_that_the_model_cannot_be_called_with_are_named() -> None:
    model, inputs = made("mlp")
    refused("got inputs int64 .n, 5., which the model cannot be called with", model, torch.ones(4, 5, dtype=torch.long))
    refused("got inputs float64 .n, 9.", model, draw(3, 9))
    refused("got inputs of type list", model, [[1.0] * 5])
    refused("got no inputs", model, draw(0, 5))
    refused("without a tensor", model, {"input": None})
    refused("got 4 inputs and 3 others; expected as many", model, inputs, inputs[1:], diagonal=True)


def test_outputs_without_a_derivative_are_named() -> None:
    model, inputs = made("mlp")
    refused(
        "type torch.int64 that depend on no chosen parameter", model, inputs, read=lambda y: y.argmax(1, keepdim=True)
    )
    refused("depend on no chosen parameter", model, inputs, read=lambda y: y.detach())
    refused("got outputs .. for 1 inputs; expected one row", model, inputs, read=lambda y: y.mean())
    refused("got outputs NoneType", model, inputs, read=lambda y: None)
    growing = nn.Embedding(5, 2).double()
    refused("got 8 outputs and 2 elsewhere", growing, torch.arange(4), read=lambda y: y.repeat(1, len(y)))


def test_nan_is_named() -> None:
    model, inputs = made("mlp")
    bad = inputs.clone()
    bad[2, 0] = torch.nan
    refused("output 0 for input 2 is nan", model, bad)
    refused("output 0 for input 2 is nan", model, bad, memory=1)
    root = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(root.weight)
    refused("the derivatives by weight are NaN or infinite", root, draw(3, 2), read=lambda y: y.abs().sqrt())


def test_a_model_without_parameters_is_refused() -> None:
    refused("has 0 parameters in floating point", nn.ReLU(), draw(3, 2))
    refused("has 2 parameters .* none of which is trained", nn.Linear(2, 2).requires_grad_(False), draw(3, 2))
    refused("no parameter is named 'wieght'; did you mean 'weight'", nn.Linear(2, 2), draw(3, 2), parameters=["wieght"])
    refused("got no names", nn.Linear(2, 2), draw(3, 2), parameters=[])
    for names in (3, [3]):
        refused("expected names of parameters", nn.Linear(2, 2), draw(3, 2), parameters=names)


def test_options_that_do_not_exist_are_named() -> None:
    model, inputs = made("mlp")
    refused("got outputs='all'; expected one of full, each, trace, projection", model, inputs, outputs="all")
    refused("got projections=1", model, inputs, outputs="projection", projections=1)
    refused("got memory=0", model, inputs, memory=0)
    refused("got seed='a'", model, inputs, outputs="projection", seed="a")


@pytest.mark.parametrize("model", [None, "demo", torch.tanh])
def test_what_is_no_module_is_refused(model: Any) -> None:
    refused("got a model of type .*; expected a torch module", model, torch.ones(2, 3))


def test_more_outputs_than_memory_are_refused_before_they_are_computed() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.expand(-1, 200_000)

    refused("4 inputs and 200000 outputs takes [0-9]+ GB; .* outputs='trace'", Wide(), torch.ones(4, 1))
    found = lw.tangent_kernel(Wide(), torch.ones(4, 1), outputs="projection")
    assert found.error is not None
    assert ((found.values - 1).abs() < 4 * found.error).all()


def test_inputs_that_see_each_other_are_refused() -> None:
    class Centred(nn.Module):
        def __init__(self, late: bool) -> None:
            super().__init__()
            self.late, self.map, self.out = late, nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.map(x if self.late else x - x.mean(0)).tanh()
            return self.out(x - x.mean(0) if self.late else x)

    for late in (True, False):
        refused("outputs for input 0 change with the inputs beside it", Centred(late).double(), draw(4, 5))
    norm = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).double()
    refused("Expected more than 1 value per channel", norm, draw(4, 5))


def test_what_a_kernel_cannot_say_is_refused() -> None:
    model, inputs = made("mlp")
    each, across = lw.tangent_kernel(model, inputs, outputs="each"), lw.tangent_kernel(model, inputs, inputs[:2])
    # As many inputs as outputs: still no kernel of pairs.
    diagonal = lw.tangent_kernel(model, inputs[:3], outputs="each", diagonal=True)
    assert diagonal.values.shape == (3, 3)
    with pytest.raises(UserError, match="all pairs of the same inputs"):
        diagonal.alignment([1.0, 2.0, 3.0])
    three = lw.tangent_kernel(model, inputs[:3], outputs="trace")
    with pytest.raises(UserError, match="the same for all"):
        three.alignment(torch.full((3,), 0.7, dtype=torch.float64))  # their mean is off by rounding
    with pytest.raises(UserError, match="expected another tangent kernel"):
        each.similarity(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected one matrix"):
        each.matrix()
    with pytest.raises(UserError, match="all pairs of the same inputs"):
        across.effective_rank()
    with pytest.raises(UserError, match="expected the same inputs"):
        each.similarity(lw.tangent_kernel(model, inputs[:2]))
    for targets, match in (
        (torch.ones(3), "for 4 inputs"),
        (torch.ones(4), "the same for all"),
        (torch.full((4,), math.nan), "NaN"),
        (None, "no array of numbers"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (torch.ones(4, dtype=torch.complex64), "complex"),
    ):
        with pytest.raises(UserError, match=match):
            each.alignment(targets)
    operator = lw.tangent_operator(model, inputs)
    for vector in (torch.ones(3), torch.full((12,), math.nan), [1.0] * 12):
        with pytest.raises(UserError, match="expected a tensor of 12 finite numbers"):
            operator.product(vector)  # type: ignore[arg-type]
    for run in (operator.largest, operator.trace):
        with pytest.raises(UserError, match="expected a whole number from 1 on"):
            run(0)


def test_a_part_without_a_second_derivative_has_a_kernel_but_no_operator() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.map(x))

    model, inputs = Custom().double(), draw(4, 5)
    expected = 4 * (inputs @ inputs.T + 1)
    assert far(lw.tangent_kernel(model, inputs, outputs="trace").values, expected) < 1e-12
    with pytest.raises(UserError, match="no second derivative"):
        lw.tangent_operator(model, inputs).product(torch.ones(8))


def test_numpy_is_what_comes_out_of_a_linear_operator() -> None:
    operator = lw.tangent_operator(nn.Linear(2, 1), torch.eye(2))
    assert isinstance(operator.linear_operator() @ np.ones(2), np.ndarray)
