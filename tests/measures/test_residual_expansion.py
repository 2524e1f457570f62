from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import column, first, hooked
from torch import Tensor, nn
from zoo import TOKENS, WIDTH, gpt2, llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.core.expansion import differentiable
from layerwright.core.registry import choose
from layerwright.measures.residual_expansion import residual_expansion

NAME = "residual_expansion"


class Linear(nn.Module):
    """h + A h."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h)


def survey(model: nn.Module, inputs: Any, **options: Any) -> lw.Survey:
    return lw.survey(model, inputs, only=[NAME], **options)


def by_order(found: lw.Survey, quantity: str) -> list[float]:
    return column(found[NAME], quantity=quantity).tolist()


def states_of(model: nn.Module, ids: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The stream before and after GPT-2's blocks, when each adds so many times what it adds."""
    seen: list[Tensor] = []

    def weaken(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        seen.append(args[0])
        after = args[0] + strength * (first(output) - args[0])
        seen.append(after)
        return after if isinstance(output, Tensor) else (after, *output[1:])

    with hooked(*((block, weaken) for block in model.transformer.h)), torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)
    return seen[0], seen[-1]


def test_a_transformer_whose_blocks_are_weakened_one_way_or_another() -> None:
    """The series from the outside: a polynomial through what the whole model gives at twelve strengths."""
    model, ids = gpt2().double(), token_ids(2, 6)
    strengths = 0.03 * np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    streams = [states_of(model, ids, s)[1] for s in strengths]
    rows = torch.stack(streams).flatten(1).numpy()
    powers = torch.tensor(np.linalg.solve(np.vander(strengths, increasing=True), rows)).reshape(12, *streams[0].shape)
    bottom, top = states_of(model, ids, 1.0)
    unit = (top - bottom).square().sum(-1)

    found = survey(model, {"input_ids": ids})
    for order in range(4):
        energy = (powers[order].square().sum(-1) / unit).mean().item()
        left = (top - powers[: order + 1].sum(0)).square().sum(-1)
        assert by_order(found, "energy")[order] == pytest.approx(energy, rel=1e-5)
        assert by_order(found, "explained")[order] == pytest.approx((1 - left / unit).mean().item(), rel=1e-5, abs=1e-9)


def test_equal_linear_blocks_have_a_binomial_series() -> None:
    model = nn.Sequential(*(Linear(4) for _ in range(5)))
    for block in model:
        block.linear.weight.data = 0.5 * torch.eye(4)
    found = survey(model, torch.randn(6, 4), options={NAME: {"order": 6}})
    added = 1.5**5 - 1
    energies = [(comb(5, k) / 2**k / added) ** 2 for k in range(7)]
    together = np.cumsum([0.0] + [comb(5, k) / 2**k for k in range(1, 7)]) / added
    assert by_order(found, "energy") == pytest.approx(energies, abs=1e-6)
    assert by_order(found, "explained") == pytest.approx(1 - (1 - together) ** 2, abs=1e-6)
    assert found.notes == []


def test_one_block_is_its_own_first_order() -> None:
    """Two blocks, one of which adds nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Linear(4), Linear(4))
    nn.init.zeros_(model[0].linear.weight)
    found = survey(model, torch.randn(6, 4))
    assert by_order(found, "explained") == pytest.approx([0, 1, 1, 1], abs=1e-6)
    assert by_order(found, "energy")[1:] == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_batch_split_and_the_pieces_change_nothing(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = token_ids(4, TOKENS)
    whole = survey(build(), {"input_ids": ids})[NAME]
    monkeypatch.setattr("layerwright.core.expansion._TOKENS", TOKENS)
    for batches in ([{"input_ids": ids}], [{"input_ids": some} for some in ids.split(3)]):
        found = survey(build(), batches)[NAME]
        assert np.allclose(found["value"], whole["value"], rtol=1e-3)
        assert np.allclose(found["low"], whole["low"], rtol=1e-3, atol=1e-6)


def test_padding_does_not_count() -> None:
    ids = token_ids(2, 8)
    alone = survey(llama(), [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :5]}])[NAME]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    padded = survey(llama(), {"input_ids": ids * mask, "attention_mask": mask})[NAME]
    assert (padded["tokens"] == 13).all()
    assert np.allclose(padded["value"], alone["value"], rtol=1e-3)


def test_jobs_give_the_same() -> None:
    data = {"input_ids": token_ids(4, 8)}
    here, there = survey(gpt2(), data)[NAME], survey(gpt2(), data, jobs="serial")[NAME]
    assert np.allclose(there["value"], here["value"], rtol=1e-3)


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_the_layer_norm_that_is_differentiated_is_the_layer_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = (torch.randn(*s, generator=torch.Generator().manual_seed(0)) for s in ((2, 3, 8), shape, shape))
    norm = torch.nn.functional.layer_norm
    for given in ((shape,), (shape, weight), (shape, weight, bias, 0.1)):
        with differentiable():
            plain = norm(x, *given)
        torch.testing.assert_close(plain, norm(x, *given))


class Once(torch.autograd.Function):
    """A square whose derivative has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Square(Linear):
    """3/2 h + (A h)², element by element: autograd leaves the square out of a second derivative, without a word."""

    def forward(self, h: Tensor) -> Tensor:
        return h + h / 2 + Once.apply(self.linear(h))


def test_a_block_without_higher_derivatives_is_named_once() -> None:
    model = nn.Sequential(Square(4), Square(4))
    found = survey(model, [torch.randn(3, 4), torch.randn(3, 4)])
    assert NAME not in found.tables
    (note,) = found.notes
    assert note.startswith(f"{NAME} could not be measured: a part of this model cannot be differentiated several times")


def test_a_tower_that_adds_nothing_has_no_expansion() -> None:
    model = nn.Sequential(Linear(4), Linear(4))
    for block in model:
        nn.init.zeros_(block.linear.weight)
    found = survey(model, torch.randn(3, 4))
    assert found[NAME].empty


def test_block_by_block_it_says_that_it_needs_the_whole_model(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    found = lw.survey(tmp_path, {"input_ids": token_ids()}, only=["stream_scale", NAME], stream="always")
    assert "stream_scale" in found.tables
    assert f"{NAME} could not be measured: it needs the whole model at once, not block by block" in found.notes


@pytest.mark.parametrize("order", [0, 7, 2.5, True])
def test_an_order_that_cannot_be_used_is_refused(order: Any) -> None:
    with pytest.raises(UserError, match=r"residual_expansion\.order=.*; expected a whole number from 1 to 6"):
        survey(gpt2(), {"input_ids": token_ids()}, options={NAME: {"order": order}})


def test_it_runs_only_where_it_is_asked_for() -> None:
    assert NAME not in [m.name for m in choose("deep")]
    assert [m.name for m in choose("quick", [NAME])] == [NAME]


def test_shapes_and_the_scale_of_the_stream() -> None:
    h = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    branches = [lambda x: x / 3, lambda x: x.flip(-1) / 2]
    top = h + h / 3
    top = top + top.flip(-1) / 2
    one, other = (residual_expansion(branches, s * h, s * top, order=2) for s in (1.0, 10.0))
    for key, (values, moved) in one.items():
        assert values.shape == moved.shape == (2, 3)
        torch.testing.assert_close(other[key][0], values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[2, "explained"][0], torch.ones(2, 3))
