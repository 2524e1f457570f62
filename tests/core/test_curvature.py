"""Products with the Hessian and the Gauss-Newton matrix, against matrices that plain autograd writes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from naive import loss as next_token_loss
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from zoo import WIDTH, ZOO, Looped, Residual, gpt2, llama, token_ids

from layerwright.core.curvature import Curvature, GaussNewton, Hessian, Loss, first_sequences, give_curvature
from layerwright.core.desk import Desk
from layerwright.core.errors import UserError
from layerwright.core.registry import MEASURES
from layerwright.core.stack import Stack
from layerwright.maths.gauss_newton import softmax_root
from layerwright.maths.lanczos import dense, largest

TINY = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "max_position_embeddings": 8,
}


def tiny_llama(**changes: Any) -> nn.Module:
    return llama(**{**TINY, "head_dim": 4, **changes})


def classifier(width: int = 4, classes: int = 3, features: int = 5) -> tuple[nn.Module, dict[str, Tensor]]:
    """Two residual blocks between two linear layers, and 12 labelled examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = nn.Linear(features, width), nn.Linear(width, classes)
        model = nn.Sequential(ends[0], Residual(width), Residual(width), ends[1])
        return model, {"input": torch.randn(12, features), "labels": torch.arange(12) % classes}


def of(model: nn.Module, inputs: Any, **more: Any) -> Loss:
    return Loss(Stack.find(model, inputs), [inputs], **more)


def by_rows(number: Tensor, model: nn.Module) -> Tensor:
    """The Hessian of a number by a model's parameters, from a derivative of each derivative."""
    chosen = list(model.parameters())
    first = torch.autograd.grad(number, chosen, create_graph=True, materialize_grads=True)
    slopes = torch.cat([g.flatten() for g in first])
    rows = []
    for units in torch.eye(len(slopes), dtype=slopes.dtype).split(256):
        found = torch.autograd.grad(
            slopes, chosen, units, retain_graph=True, materialize_grads=True, is_grads_batched=True
        )
        rows.append(torch.cat([g.expand(len(units), *w.shape).flatten(1) for g, w in zip(found, chosen)], 1))
    return torch.cat(rows).detach().double()


def matrices(loss: Loss, names: list[str] | None = None) -> tuple[Tensor, Tensor]:
    made = (Hessian(loss, names), GaussNewton(loss, names))
    return tuple(dense(m.product, m.size) for m in made)  # type: ignore[return-value]


def close(found: Tensor, expected: Tensor, to: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=to, atol=to * float(expected.abs().max()))


# Against dense truth


def test_hessian_of_a_classifier() -> None:
    model, inputs = classifier()
    expected = by_rows(nn.functional.cross_entropy(model(inputs["input"]), inputs["labels"]), model)
    hessian, gauss_newton = matrices(of(model, inputs))
    close(hessian, expected)
    values = torch.linalg.eigvalsh(gauss_newton)
    assert values[0] > -1e-6 * values[-1]


@pytest.mark.parametrize(
    "make", [tiny_llama, pytest.param(lambda: gpt2(**TINY), marks=pytest.mark.slow)], ids=["llama", "gpt2 tied"]
)
def test_hessian_of_a_language_model(make: Any) -> None:
    model, ids = make(), token_ids(2, 6) % 10
    model.set_attn_implementation("eager")  # not the way that products take
    expected = by_rows(next_token_loss(model.eval()(input_ids=ids, use_cache=False).logits, ids), model)
    model.set_attn_implementation("sdpa")
    found = of(model, {"input_ids": ids})
    h = Hessian(found)
    assert h.size == len(expected) == sum(p.numel() for p in model.parameters())  # tied weights once
    for seed in range(3):
        v = torch.randn(h.size, generator=torch.Generator().manual_seed(seed)).double()
        close(h.product(v), expected @ v)
    top = largest(h.product, h.size, 4).values
    torch.testing.assert_close(top, torch.linalg.eigvalsh(expected).flip(0)[:4], rtol=1e-4, atol=1e-5)
    lowest = -largest(lambda v: -h.product(v), h.size).values[0]
    assert float(lowest) == pytest.approx(float(torch.linalg.eigvalsh(expected)[0]), rel=1e-4)


@pytest.mark.slow
def test_hessian_of_a_network_of_4271_weights() -> None:
    model, inputs = classifier(width=22, features=8)
    hessian = Hessian(of(model, inputs))
    assert hessian.size == 4271
    expected = by_rows(nn.functional.cross_entropy(model(inputs["input"]), inputs["labels"]), model)
    values = torch.linalg.eigvalsh(expected)
    top = largest(hessian.product, hessian.size, 8).values
    torch.testing.assert_close(top, values.flip(0)[:8], rtol=1e-4, atol=1e-5)


def test_gauss_newton_is_what_jacobians_say_and_the_rest_is_the_curvature_of_the_logits() -> None:
    model, inputs = classifier()
    model = model.double()
    inputs["input"] = inputs["input"].double()
    own = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.flatten() for p in own.values()])

    def logits(weights: Tensor, row: Tensor) -> Tensor:
        pieces = weights.split([p.numel() for p in own.values()])
        named = {name: piece.view_as(p) for (name, p), piece in zip(own.items(), pieces)}
        return functional_call(model, named, (row,))

    jacobians = vmap(jacrev(logits), (None, 0))(flat, inputs["input"])
    out = model(inputs["input"])
    roots = torch.einsum("ncp,nck->nkp", jacobians, softmax_root(out.detach()))
    expected = torch.einsum("nkp,nkq->pq", roots, roots) / len(out)
    hessian, gauss_newton = matrices(of(model, inputs))
    close(gauss_newton, expected, 1e-10)
    wrong = out.softmax(-1) - nn.functional.one_hot(inputs["labels"], 3)
    close(hessian - gauss_newton, by_rows((wrong.detach() * out).sum() / len(out), model), 1e-10)


def test_softmax_regression_in_closed_form() -> None:
    """Logits that are linear in the weights: H = G = (1/n) Σ (diag p − p pᵀ) ⊗ [x 1][x 1]ᵀ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(9, 4).double()
    inputs = {"input": x, "labels": torch.arange(9) % 3}
    read = x.tanh().tanh()
    p = model(x).softmax(-1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    weights = torch.einsum("ncd,ni,nj->cidj", inner, read, read).reshape(12, 12) / 9
    beside = torch.einsum("ncd,ni->cid", inner, read).reshape(12, 3) / 9
    expected = torch.cat([torch.cat([weights, beside], 1), torch.cat([beside.T, inner.mean(0)], 1)])
    for found in matrices(of(model, inputs)):
        close(found, expected, 1e-12)


def test_a_block_is_a_sub_matrix_of_the_whole() -> None:
    model, inputs = classifier()
    loss = of(model, inputs)
    whole = matrices(loss)
    place, start = {}, 0
    for name, w in loss.weights.items():
        place[name] = range(start, start + w.numel())
        start += w.numel()
    for b in range(2):
        names = loss.group(b)
        assert all(name.startswith(f"{b + 1}.") for name in names)
        rows = [k for name in names for k in place[name]]
        for part, matrix in zip(matrices(loss, names), whole):
            close(part, matrix[rows][:, rows])


def test_the_batch_split_changes_nothing() -> None:
    model, ids = tiny_llama(), token_ids(3, 6) % 10
    stack = Stack.find(model, {"input_ids": ids})
    whole = Loss(stack, [{"input_ids": ids}])
    split = Loss(stack, [{"input_ids": part} for part in ids.split(1)])
    v = torch.ones(Hessian(whole).size)
    assert whole.value() == pytest.approx(split.value(), rel=1e-6)
    close(whole.gradient(), split.gradient())
    for kind in (Hessian, GaussNewton):
        once = kind(whole)
        close(once.product(v), kind(split).product(v))
        assert torch.equal(once.product(v), once.product(v))  # of a graph that is kept


# Weights that are special


def test_loss_and_gradient_are_those_of_a_plain_call() -> None:
    model, ids = gpt2(**TINY), token_ids(2, 6) % 10
    number = next_token_loss(model.eval()(input_ids=ids).logits, ids)
    loss = of(model, {"input_ids": ids})
    assert loss.value() == pytest.approx(number.item(), rel=1e-6)
    assert (loss.tokens, loss.classes) == (10, len(ids[:, 1:].unique()))
    grads = torch.autograd.grad(number, list(model.parameters()))
    close(loss.gradient(), torch.cat([g.flatten() for g in grads]))


def test_frozen_weights_count_and_stay_frozen() -> None:
    model, inputs = classifier()
    expected = matrices(of(model, inputs))
    model.requires_grad_(False)
    for found, before in zip(matrices(of(model, inputs)), expected):
        assert torch.equal(found, before)
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_tied_weights_are_one_with_both_uses() -> None:
    model, inputs = classifier()
    model[2].inner.weight = model[1].inner.weight
    expected = by_rows(nn.functional.cross_entropy(model(inputs["input"]), inputs["labels"]), model)
    loss = of(model, inputs)
    close(matrices(loss)[0], expected)
    assert "1.inner.weight" in loss.group(0)
    assert "1.inner.weight" in loss.group(1)


def test_a_block_that_runs_several_times() -> None:
    model, ids = Looped(), token_ids(2, 4)
    loss = of(model, {"input_ids": ids})
    names = loss.group(1)
    assert names == [f"core.1.{part}.{kind}" for part in ("inner", "outer") for kind in ("weight", "bias")]
    h = Hessian(loss, names)
    assert h.size == 2 * WIDTH * 2 * WIDTH + 3 * WIDTH
    v, step = torch.ones(h.size).double(), 1e-5
    gradients = []
    for sign in (1, -1):
        moved = {
            name: loss.weights[name].double() + sign * step * piece.reshape(loss.weights[name].shape)
            for name, piece in zip(names, v.split([loss.weights[n].numel() for n in names]))
        }
        other = Looped().double()
        other.load_state_dict({**model.state_dict(), **moved})
        gradients.append(of(other, {"input_ids": ids}).gradient(names))
    close(h.product(v), (gradients[0] - gradients[1]) / (2 * step), 1e-4)


def test_a_weight_that_is_not_used_has_rows_of_zeros() -> None:
    model, inputs = classifier()
    model[1].idle = nn.Parameter(torch.ones(3))
    loss = of(model, inputs)
    assert loss.gradient(["1.idle"]).tolist() == [0.0] * 3
    for found in matrices(loss, ["1.idle"]):
        assert (found == 0).all()
    names = [name for name in loss.group(0) if name != "1.idle"]
    close(matrices(loss, loss.group(0))[0].diagonal().sum(), matrices(loss, names)[0].diagonal().sum())


def test_half_precision_is_computed_in_float32() -> None:
    model, ids = gpt2(**TINY).bfloat16(), token_ids(2, 6) % 10
    loss = of(model, {"input_ids": ids})
    same = of(gpt2(**TINY).bfloat16().float(), {"input_ids": ids})
    close(Hessian(loss).product(torch.ones(Hessian(loss).size)), Hessian(same).product(torch.ones(Hessian(same).size)))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = classifier()
    model.insert(1, nn.Dropout(0.5))
    model.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.random.get_rng_state()
    loss = of(model, inputs)
    one = Hessian(loss).product(torch.ones(Hessian(loss).size))
    assert torch.equal(one, Hessian(loss).product(torch.ones(len(one))))  # nothing is dropped
    assert all(m.training for m in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_padding_and_a_prefix_have_no_loss() -> None:
    model, ids = tiny_llama(), token_ids(2, 8) % 10
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[:, 6:] = 0
    padded, plain = of(model, {"input_ids": ids, "attention_mask": mask}), of(model, {"input_ids": ids[:, :6]})
    v = torch.ones(Hessian(plain).size)
    close(Hessian(padded).product(v), Hessian(plain).product(v))
    assert of(model, {"input_ids": ids}, prefix=3).tokens == 8


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet", "mamba", "mixtral", "own wrapper", "peft"])
def test_products_are_symmetric_on_the_zoo(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    if "pixel_values" in inputs:
        inputs["labels"] = torch.tensor([0, 1, 0])
    stack = Stack.find(model, inputs, expected.blocks)
    loss = Loss(stack, [inputs])
    loss.check()
    names = loss.group(0)
    for m in (Hessian(loss, names, 3), GaussNewton(loss, names, 3)):
        m.check()
        assert m.product(torch.ones(m.size)).abs().max() > 0


# Bad input


def test_one_class_bends_nothing() -> None:
    model, inputs = classifier(classes=1)
    loss = of(model, inputs)
    assert (loss.value(), loss.classes) == (0.0, 1)
    for matrix in matrices(loss):
        assert (matrix == 0).all()


def test_without_labels_there_is_no_loss() -> None:
    model, inputs = classifier()
    for given in (
        {"input": inputs["input"]},
        {**inputs, "labels": inputs["labels"][:5]},
        {**inputs, "labels": torch.full((12,), -100)},
    ):
        with pytest.raises(UserError, match="no labels for this model's output"):
            of(model, given)
    with pytest.raises(UserError, match="no labels"):
        of(tiny_llama(), {"input_ids": token_ids(2, 1) % 10})  # one token has no next


def test_labels_that_name_no_class_are_an_error() -> None:
    model, inputs = classifier()
    for labels in (inputs["labels"] + 1, inputs["labels"] - 1, inputs["labels"].float()):
        with pytest.raises(UserError, match="expected whole numbers from 0 to 2"):
            of(model, {**inputs, "labels": labels})


def test_a_block_with_nan_weights_is_named() -> None:
    model, ids = gpt2(**{**TINY, "num_hidden_layers": 3}), {"input_ids": token_ids(2, 6) % 10}
    stack = Stack.find(model, ids)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^block 1 \(transformer.h.1\) gives states with NaN"):
        Loss(stack, [ids])


class Square(nn.Module):
    """x + √(w²), finite at w = 0, where its derivative is not."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((6,), w))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w.square().sqrt()


def test_a_block_with_nan_gradients_is_named() -> None:
    _, inputs = classifier(features=6)
    model = nn.Sequential(Square(1.0), Square(0.0), Square(1.0), nn.Linear(6, 3))
    with pytest.raises(UserError, match=r"^block 1 .* gives gradients with NaN"):
        of(model, inputs).check()


class Rounded(torch.autograd.Function):
    """A product whose derivative is a constant to autograd, as those of many kernels are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Once(nn.Module):
    """Linear, with such a function behind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + Rounded.apply(self.linear(x))


def test_a_part_without_second_derivative_is_an_error() -> None:
    _, inputs = classifier(features=6)
    loss = of(nn.Sequential(Once(), Once(), nn.Linear(6, 3)), inputs)
    for kind in (Hessian, GaussNewton):
        with pytest.raises(UserError, match=r"no second derivative \(its curvature is not symmetric"):
            kind(loss).check()


def test_a_fused_attention_without_second_derivative_is_an_error() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x).unsqueeze(1)
            return x + torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(y, y, y)[0].squeeze(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.Sequential(Fused(), Fused()), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(x).mean(1))

    inputs = {"x": torch.randn(4, 5, 8), "labels": torch.tensor([0, 1, 2, 0])}
    hessian = Hessian(of(Model(), inputs))
    with pytest.raises(UserError, match=r"no second derivative \(derivative for"):
        hessian.product(torch.ones(hessian.size))


# In a survey


class Listener(Desk):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__([], {})
        self.given: dict[str, Mapping[str, Curvature]] = {}

    def wants(self, *scopes: str) -> bool:
        return "curvature" in scopes

    def give(self, scope: str, key: Any, quantities: Any, prefix: str = "") -> None:
        self.given[key[0]] = quantities


def test_every_distinct_block_and_the_whole_model_are_given() -> None:
    ids, steps = {"input_ids": token_ids()}, []
    for model, blocks in ((Looped(), ("0", "1")), (llama(), ("0", "1", "2"))):
        desk = Listener()
        assert give_curvature(Stack.find(model, ids), desk, [ids], 7, steps.append) == []
        assert tuple(desk.given) == (*blocks, "model")
        whole = desk.given["model"]
        assert whole["hessian"].size == sum(p.numel() for p in model.parameters())
        assert whole["gauss_newton"].seed == 7
    assert sum(steps) == 3 + 4


def test_what_cannot_be_measured_is_noted() -> None:
    desk = Listener()
    model, inputs, _ = ZOO["bert"]()
    (note,) = give_curvature(Stack.find(model, inputs), desk, [inputs], 0)
    assert note.startswith("curvature could not be measured: the data holds no labels")
    model = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Linear(5, 3))
    inputs = {"input": torch.randn(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    notes = give_curvature(Stack.find(model, inputs), desk, [inputs], 0)
    assert notes == [
        f"curvature of block {k} could not be measured: it has no weights in floating point" for k in (0, 1)
    ]
    assert list(desk.given) == ["model"]


def test_too_many_weights_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerwright.core.curvature.available_memory", lambda: 2 * 8 * 40 * 1000)
    desk = Listener()
    model, inputs = classifier(width=22)
    notes = give_curvature(Stack.find(model, inputs), desk, [inputs], 0)
    assert [note.split(" could")[0] for note in notes] == [
        "curvature of block 0", "curvature of block 1", "curvature of the whole model"
    ]  # fmt: skip
    assert "40 vectors as long as its 2002 weights take" in notes[0]


def test_nothing_is_done_that_nobody_asked_for() -> None:
    ids = {"input_ids": token_ids()}
    desk = Desk([m for m in MEASURES.values() if m.scope == "block"], {})
    assert give_curvature(Stack.find(llama(), ids), desk, [{"input_ids": None}], 0) == []


@pytest.mark.parametrize("sizes, expected", [((8, 8), [4]), ((1, 2, 8), [1, 2, 1]), ((3,), [3])])
def test_the_first_sequences_are_taken(sizes: tuple[int, ...], expected: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr("layerwright.core.curvature._TOKENS", 4 * 12 + 5)
    model, batches = llama(), [{"input_ids": token_ids(n)} for n in sizes]
    found = [len(part["input_ids"]) for part in first_sequences(Stack.find(model, batches[0]), batches)]
    assert found == expected


def test_one_long_sequence_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerwright.core.curvature._TOKENS", 5)
    batch = {"input_ids": token_ids(3)}
    (part,) = first_sequences(Stack.find(llama(), batch), [batch])
    assert part["input_ids"].shape == (1, 12)
