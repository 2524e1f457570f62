"""Networks read as towers of dense layers, elementwise functions, norms and sums, however they are written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, Residual

from layerwright.core.errors import UserError
from layerwright.core.tower_ops import Dense, Elementwise, Given, Norm, Reading, Sum
from layerwright.core.tower_pieces import find_norm
from layerwright.core.tower_reader import ROWS, read_tower

WIDTH = 8


class Net(nn.Module):
    """A network that is one function of its modules and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def lin(inputs: int = WIDTH, outputs: int = WIDTH, **more: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **more)


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, WIDTH)), generator=torch.Generator().manual_seed(1))


def words(reading: Reading) -> list[str]:
    return [type(step).__name__ for step in reading.steps]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# The same tower, written in many ways

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "relu module in place": nn.ReLU(inplace=True), "relu in place": torch.relu_,
    "clamp": lambda x: x.clamp(min=0), "where": lambda x: torch.where(x > 0, x, 0.0),
    "by hand": lambda x: (x + x.abs()) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_one_however_it_is_written(name: str) -> None:
    net = Net(lambda s, x: s.b(ACTIVATIONS[name](s.a(x))), a=lin(), b=lin(WIDTH, 3))
    reading = read_tower(net, data())
    assert words(reading) == ["Given", "Dense", "Elementwise", "Dense"]
    step = reading.steps[2]
    assert isinstance(step, Elementwise)
    x = torch.linspace(-2, 2, 9).double()
    assert torch.equal(step.function(x), x.clamp(min=0))
    assert reading.notes == []


def dense_forms() -> dict[str, nn.Module]:
    a, b = lin(), lin(WIDTH, 3)
    weights = {"a": a.weight.data.T.clone(), "c": a.bias.data, "b": b.weight.data.T.clone(), "d": b.bias.data}
    return {
        "modules": nn.Sequential(a, nn.Tanh(), b),
        "functions": Net(
            lambda s, x: F.linear(torch.tanh(F.linear(x, s.a.weight, s.a.bias)), s.b.weight, s.b.bias), a=a, b=b
        ),
        "products": Net(lambda s, x: torch.tanh(x @ s.a + s.c) @ s.b + s.d, **weights),
        "bias first": Net(lambda s, x: s.d + torch.matmul(torch.tanh(s.c + torch.matmul(x, s.a)), s.b), **weights),
        "addmm": Net(lambda s, x: torch.addmm(s.d, torch.tanh(torch.addmm(s.c, x, s.a)), s.b), **weights),
    }


@pytest.mark.parametrize("form", ["functions", "products", "bias first", "addmm"])
def test_a_dense_layer_is_one_however_it_is_written(form: str) -> None:
    nets = dense_forms()
    expected, found = read_tower(nets["modules"], data()), read_tower(nets[form], data())
    assert words(found) == words(expected) == ["Given", "Dense", "Elementwise", "Dense"]
    for one, other in zip(expected.steps, found.steps, strict=True):
        if isinstance(one, Dense):
            assert isinstance(other, Dense)
            torch.testing.assert_close(other.weight, one.weight)
            torch.testing.assert_close(other.bias, one.bias)
    for number, value in expected.values.items():
        torch.testing.assert_close(found.values[number], value)
    for number, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[number], gradient)


def test_variances_are_those_of_the_weights() -> None:
    net = nn.Sequential(lin(), nn.Tanh(), lin(WIDTH, 3, bias=False))
    first, last = (step for step in read_tower(net, data()).steps if isinstance(step, Dense))
    assert first.weight_variance == pytest.approx(net[0].weight.square().mean().item() * WIDTH)
    assert first.bias_variance == pytest.approx(net[0].bias.square().mean().item())
    assert last.bias_variance == 0
    assert (first.name, last.name) == ("0", "2")


def llama_norm(x: Tensor) -> Tensor:
    return 3 * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float, bool]]] = {
    "LayerNorm": (nn.LayerNorm(WIDTH, eps=1e-3), (1e-3, 1.0, True)),
    "layer_norm": (lambda x: F.layer_norm(x, (WIDTH,)), (1e-5, 1.0, True)),
    "by hand": (lambda x: (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 0.1).sqrt(),
                (0.1, 1.0, True)),
    "RMSNorm": (nn.RMSNorm(WIDTH, eps=1e-2), (1e-2, 1.0, False)),
    "rms by hand": (llama_norm, (1e-3, 3.0, False)),
    "length": (lambda x: F.normalize(x, dim=-1, eps=0.0), (0.0, WIDTH**-0.5, False)),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_one_however_it_is_written(name: str) -> None:
    function, (eps, scale, centred) = NORMS[name]
    net = Net(lambda s, x: s.b(torch.tanh(function(s.a(x)))), a=lin(), b=lin(WIDTH, 3))
    reading = read_tower(net, data())
    assert words(reading) == ["Given", "Dense", "Norm", "Elementwise", "Dense"]
    step = reading.steps[2]
    assert isinstance(step, Norm)
    assert (step.eps, step.scale) == pytest.approx((eps, scale), abs=1e-6)
    assert step.centred == centred


def test_what_is_nearly_a_norm_is_none() -> None:
    assert find_norm(lambda x: x / (x.square().mean(-1, keepdim=True) + 1).sqrt() + 1e-3, torch.Size((2, 8))) is None
    assert find_norm(lambda x: x / (x.abs().mean(-1, keepdim=True) + 1), torch.Size((2, 8))) is None
    assert find_norm(torch.tanh, torch.Size((2, 8))) is None


# Sums


def block(norm: Callable[[int], nn.Module]) -> nn.Module:
    return Net(
        lambda s, h: h + 0.5 * s.b(F.gelu(s.a(s.n(h)))), n=norm(WIDTH), a=lin(WIDTH, 16), b=lin(16, WIDTH)
    )  # fmt: skip


def test_residual_blocks_are_sums_with_their_scales() -> None:
    net = nn.Sequential(lin(5), block(nn.LayerNorm), block(nn.RMSNorm), lin(WIDTH, 3))
    reading = read_tower(net, data(4, 5))
    of_block = ["Norm", "Dense", "Elementwise", "Dense", "Sum"]
    assert words(reading) == ["Given", "Dense", *of_block, *of_block, "Dense"]
    first, second = (step for step in reading.steps if isinstance(step, Sum))
    assert first.scales == second.scales == (1.0, 0.5)
    assert first.of == (1, 5)
    assert second.of == (6, 10)
    assert first.name == "sum after 1.b"
    assert set(reading.values) == {0, 1, 3, 5, 6, 8, 10, 11, 12}


def test_a_sum_in_place_and_one_the_other_way_round_are_the_same() -> None:
    def in_place(s: Any, x: Tensor) -> Tensor:
        h = s.i(x)
        h += s.b(torch.relu(s.a(h)))
        return s.o(h)

    def other_way(s: Any, x: Tensor) -> Tensor:
        h = s.i(x)
        return s.o(torch.add(s.b(torch.relu(s.a(h))), h))

    parts = {"i": lin(), "a": lin(), "b": lin(), "o": lin(WIDTH, 3)}
    one, other = (read_tower(Net(f, **parts), data()) for f in (in_place, other_way))
    assert words(one) == words(other) == ["Given", "Dense", "Dense", "Elementwise", "Dense", "Sum", "Dense"]
    assert (one.steps[5].of, other.steps[5].of) == ((1, 4), (4, 1))
    torch.testing.assert_close(one.values[5], other.values[5])


def test_a_difference_has_a_scale_below_zero() -> None:
    net = Net(lambda s, x: (lambda h: s.o(h - s.b(torch.tanh(h))))(s.i(x)), i=lin(), b=lin(), o=lin(WIDTH, 3))
    (found,) = (step for step in read_tower(net, data()).steps if isinstance(step, Sum))
    assert found.scales == (1.0, -1.0)


def test_inputs_can_be_the_stream() -> None:
    net = Net(lambda s, x: s.o(x + s.b(torch.relu(s.a(x)))), a=lin(), b=lin(), o=lin(WIDTH, 3))
    reading = read_tower(net, data())
    assert words(reading) == ["Given", "Dense", "Elementwise", "Dense", "Sum", "Dense"]
    assert reading.steps[4].of == (0, 3)


def test_a_layer_scale_of_one_number_is_a_scale() -> None:
    def net(scale: Tensor) -> nn.Module:
        return Net(
            lambda s, x: (lambda h: s.o(h + s.g * s.b(torch.relu(s.a(h)))))(s.i(x)),
            i=lin(), a=lin(), b=lin(), o=lin(WIDTH, 3), g=scale,
        )  # fmt: skip

    (found,) = (s for s in read_tower(net(torch.full((WIDTH,), 0.25)), data()).steps if isinstance(s, Sum))
    assert found.scales == (1.0, 0.25)
    with pytest.raises(UserError, match="a number for each unit stands after b"):
        read_tower(net(torch.rand(WIDTH)), data())


# What one call gave


def test_values_and_gradients_are_those_of_the_network() -> None:
    net = nn.Sequential(lin(5), nn.Tanh(), lin(), nn.Tanh(), lin(WIDTH, 3))
    x = data(6, 5)
    reading = read_tower(net, x, seed=3)
    hidden = [x]
    for layer in net:
        hidden.append(layer(hidden[-1]))
    assert set(reading.values) == {0, 1, 3, 5}
    assert set(reading.gradients) == {1, 3, 5}
    for number, value in ((0, x), (1, hidden[1]), (3, hidden[3]), (5, hidden[5])):
        torch.testing.assert_close(reading.values[number], value.detach().double())
    direction = reading.gradients[5]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(6).double())
    found = torch.autograd.grad((hidden[5] * direction.float()).sum(), [hidden[1], hidden[3]])
    for number, gradient in zip((1, 3), found):
        torch.testing.assert_close(reading.gradients[number], gradient.double())
    assert not torch.equal(read_tower(net, x, seed=4).gradients[5], direction)


def test_tokens_are_rows_and_few_of_them_are_looked_at() -> None:
    net = nn.Sequential(nn.Embedding(10, WIDTH), lin(), nn.GELU(), lin(WIDTH, 3))
    reading = read_tower(net, torch.randint(0, 10, (40, 7)))
    assert reading.values[0].shape == (ROWS, WIDTH)
    assert reading.gradients[3].shape == (ROWS, 3)
    table = net[0].weight.double()
    assert all((row == table).all(1).any() for row in reading.values[0])


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(lin(), nn.Dropout(), nn.ReLU(inplace=True), lin(WIDTH, 3)).train()
    x = data()
    before, given = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    with torch.no_grad():
        reading = read_tower(net, x)
    assert words(reading) == ["Given", "Dense", "Elementwise", "Dense"]  # no dropout: it is off
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, given)
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_what_follows_the_last_layer_is_left_out() -> None:
    net = nn.Sequential(lin(), nn.ReLU(), lin(WIDTH, 3), nn.LogSoftmax(-1))
    reading = read_tower(net, data())
    assert words(reading) == ["Given", "Dense", "Elementwise", "Dense"]
    assert reading.notes == ["what follows 2 is left out"]


def test_wrappers_and_inputs_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(lin(), nn.ReLU(), lin(WIDTH, 3))

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"logits": self.inner(scale * x)}

    reading = read_tower(nn.DataParallel(Named()), {"x": data(), "scale": 2.0})
    assert isinstance(reading.steps[0], Given)
    torch.testing.assert_close(reading.values[0], 2 * data().double())


# What is no such tower

shared = nn.Linear(WIDTH, WIDTH)
X, TOKENS = data(), data(4, 5, WIDTH)


def net(function: Callable[[Any, Tensor], Any], *names: str) -> Callable[[], nn.Module]:
    return lambda: Net(function, **{name: lin() for name in names})


def chain(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(part() for part in parts))


def twice_itself(s: Any, x: Tensor) -> Tensor:
    h = s.i(x)
    f = s.a(torch.tanh(h))
    return s.o(h + f + f)


def own_relu(s: Any, x: Tensor) -> Tensor:
    h = s.i(x)
    return s.o(h + torch.relu(s.a(h)))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "one layer twice": (lambda: nn.Sequential(shared, nn.ReLU(), shared), X, "0 used twice: weights"),
    "copies": (lambda: nn.Sequential(shared, nn.ReLU(), copy.deepcopy(shared)), X, "0 and 2: weights"),
    "gate": (net(lambda s, x: s.c(F.silu(s.a(x)) * s.b(x)), "a", "b", "c"), X, "mul joins a and b"),
    "batch norm": (chain(lin, lambda: nn.BatchNorm1d(WIDTH), lin), X, "native_batch_norm stands after 0"),
    "softmax": (chain(lin, lambda: nn.Softmax(-1), lin), X, "softmax stands after 0"),
    "pooling": (net(lambda s, x: s.b(s.a(x).mean(1)), "a", "b"), TOKENS, "mean stands after a"),
    "a sum over tokens": (net(lambda s, x: s.b(s.a(x) + s.a(x).sum(1, True)), "a", "b"), TOKENS, "theory does not"),
    "tokens turned": (net(lambda s, x: s.b(s.a(x).transpose(1, 2)), "a", "b"), data(4, WIDTH, WIDTH), "as in atten"),
    "units turned": (net(lambda s, x: s.b(s.a(x).t()), "a", "b"), data(WIDTH, WIDTH), "theory does not match"),
    "concatenation": (net(lambda s, x: torch.cat([s.a(x), s.b(x)], -1), "a", "b"), X, "cat joins a and b"),
    "relu on the stream": (net(own_relu, "i", "a", "o"), X, "adds relu: a branch has to end in a dense layer"),
    "twice itself": (net(twice_itself, "i", "a", "o"), X, "what came of the same layer"),
    "activation of inputs": (net(lambda s, x: s.o(torch.relu(x + s.a(x))), "a", "o"), X,
                             "an activation acts on sum after a, whose units are not Gaussian"),
    "norm of an activation": (chain(lin, nn.ReLU, lambda: nn.LayerNorm(WIDTH), lin), X, "a layer norm acts on relu"),
    "norm between activations": (chain(lin, nn.Tanh, lambda: nn.RMSNorm(WIDTH), nn.Tanh, lin), X,
                                 "an activation acts on RMS norm"),
    "detached": (net(lambda s, x: s.b(s.a(x).detach()), "a", "b"), X, "detach, which keeps gradients out"),
    "a number out": (net(lambda s, x: s.a(x) / s.a(x).std().item(), "a"), X, "a number is read out of the data"),
    "a choice": (net(lambda s, x: s.a(x) if x.sum() > 0 else x, "a"), X, "a number is read out of the data"),
    "noise": (net(lambda s, x: s.b(s.a(x) + torch.randn(4, WIDTH)), "a", "b"), X, "two calls of it"),
    "convolution": (chain(lambda: nn.Conv1d(1, 2, 1), nn.Flatten, lambda: lin(16)), data(4, 1, 8), "a convolution"),
    "recurrence": (lambda: nn.RNN(WIDTH, WIDTH), TOKENS, "stands after weight_ih_l0"),
    "no layer": (nn.ReLU, X, "it has no dense layer"),
    "attention": (lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), TOKENS, "as in attention"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tower_is_refused_in_one_line(name: str) -> None:
    make, inputs, words_of_it = REFUSED[name]
    with pytest.raises(UserError, match=words_of_it) as caught:
        read_tower(make(), inputs)
    assert str(caught.value).startswith("theory does not match this network: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "convnext", "mamba", "t5 encoder"))],
)
def test_models_of_other_kinds_are_refused(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    with pytest.raises(UserError, match="theory does not match this network"):
        read_tower(model, inputs)


def test_inputs_that_cannot_be_used() -> None:
    net = nn.Sequential(lin(), nn.ReLU(), lin(WIDTH, 3))
    with pytest.raises(UserError, match="the network cannot be called on these inputs"):
        read_tower(net, data(4, 5))
    with pytest.raises(UserError, match="the network cannot be called on these inputs"):
        read_tower(net, torch.ones(4, WIDTH, dtype=torch.long))
    with pytest.raises(UserError, match="expected a batch of at least one"):
        read_tower(net, data()[:0])
    assert len(read_tower(net, data()[:1]).values[0]) == 1


def test_steps_run() -> None:
    x = data()
    norm = Norm("n", (0,), 0.1, 2.0, True)
    torch.testing.assert_close(norm.run(x), 2 * F.layer_norm(x, (WIDTH,), eps=0.1))
    torch.testing.assert_close(Sum("s", (0, 1), (1.0, -2.0)).run(x, x), -x)


def test_the_blocks_of_the_tests_are_towers() -> None:
    net = nn.Sequential(lin(), Residual(WIDTH), Residual(WIDTH), lin(WIDTH, 3))
    assert words(read_tower(net, data())).count("Sum") == 2
