"""Traps that published code has fallen into, and models that are broken: each was, or would be, a wrong number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from naive import column, decode, first, hooked, stream
from thinned import thinned
from torch import Tensor, nn
from walking import few_replicates
from zoo import DEPTH, TOKENS, VOCABULARY, WIDTH, ZOO, Residual, gpt2, llama, token_ids

import layerwright
from layerwright import Survey, load_data
from layerwright.maths.similarity import angle, relative_norm
from layerwright.report import render


@pytest.fixture(scope="module", autouse=True)
def _few_replicates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        few_replicates(patch)
        yield


def survey(model: nn.Module, data: Any, **options: Any) -> Survey:
    """All measures of the standard tier."""
    return layerwright.survey(model, data, **options)


def assert_same_tables(a: Survey, b: Survey, rounding: float) -> None:
    assert a.tables.keys() == b.tables.keys()
    for name, frame in b.tables.items():
        pd.testing.assert_frame_equal(a[name], frame, rtol=rounding, atol=rounding, obj=name)


def assert_presentable(found: Survey) -> None:
    """Strict JSON, and a page."""
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    page = render(document)
    assert all(f.title in page for f in found.findings)


def rules(found: Survey) -> list[str]:
    return [f.rule for f in found.findings]


# The last hidden state of transformers is the one after the final norm


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_last_state_is_the_one_before_the_final_norm(build: Callable[..., nn.Module]) -> None:
    model, ids = build(), token_ids()
    norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    norm.weight.data = torch.linspace(0.1, 3, WIDTH)  # uneven gains, as after training: without them angles stay
    h = stream(model, ids)[0]
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[DEPTH - 1], h[DEPTH - 1])
    assert not torch.allclose(hidden[-1], h[-1], atol=0.1)

    found = survey(model, {"input_ids": ids}, only=["angular_distance", "stream_scale"])
    top = found["angular_distance"].query(f"block + gap == {DEPTH}").set_index("block")["value"]
    for block in range(DEPTH):
        assert top[block] == pytest.approx(last_angle(h[block], h[-1]), rel=1e-5)
        assert top[block] != pytest.approx(last_angle(h[block], hidden[-1]), rel=1e-3)
    scale = column(found["stream_scale"])
    assert scale[-1].item() == pytest.approx(h[-1].std(-1, correction=0).mean().item(), rel=1e-5)


def last_angle(before: Tensor, after: Tensor) -> float:
    return angle(before[:, -1], after[:, -1]).mean().item()


# Padding


LENGTHS = (20, 13, 9, 17)


def sequences() -> list[Tensor]:
    return [ids[None, :n] for ids, n in zip(token_ids(len(LENGTHS), max(LENGTHS)), LENGTHS, strict=True)]


def padded(side: str, content: int) -> dict[str, Tensor]:
    ids = torch.full((len(LENGTHS), max(LENGTHS)), content)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences()):
        n = sequence.shape[1]
        place = slice(0, n) if side == "right" else slice(max(LENGTHS) - n, None)
        ids[row, place], mask[row, place] = sequence[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def one_by_one() -> Survey:
    """Every sequence in a batch of its own, so that nothing is padded."""
    return survey(llama(), [{"input_ids": ids} for ids in sequences()])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str, one_by_one: Survey) -> None:
    found = survey(llama(), padded(side, 0))
    assert found.data["tokens"] == one_by_one.data["tokens"] == sum(LENGTHS)
    assert_same_tables(found, one_by_one, 2e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_padding_holds_changes_nothing(side: str) -> None:
    assert_same_tables(survey(llama(), padded(side, 0)), survey(llama(), padded(side, VOCABULARY - 1)), 1e-7)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_last_token_is_a_real_one(side: str) -> None:
    """Not the padding at the end of a shorter text."""
    model = llama()
    found = survey(model, padded(side, 0), only=["angular_distance"])["angular_distance"]
    states = [stream(model, ids)[0] for ids in sequences()]
    for block, gap, value in found[["block", "gap", "value"]].itertuples(index=False):
        one = [last_angle(h[block], h[block + gap]) for h in states]
        assert value == pytest.approx(np.mean(one), rel=1e-4)
    assert set(found["tokens"]) == {len(LENGTHS)}


# Prefix


def test_prefix_tokens_are_left_out_of_every_statistic() -> None:
    model, ids, prefix = llama(), token_ids(), 2
    found = survey(model, load_data({"input_ids": ids}, model, prefix=prefix))
    h, a, _ = stream(model, ids)
    for point in range(DEPTH + 1):
        expected = h[point][:, prefix:].std(-1, correction=0).mean().item()
        assert column(found["stream_scale"], point=point).item() == pytest.approx(expected, rel=1e-5)
    for block in range(DEPTH):
        expected = relative_norm(a[block], h[block])[:, prefix:].mean().item()
        got = column(found["residual_contribution"], block=block, part="attention").item()
        assert got == pytest.approx(expected, rel=1e-5)
    assert found.data["prefix"] == prefix
    assert found.data["tokens"] == 3 * (TOKENS - prefix)
    for name in ("residual_contribution", "block_influence", "stream_scale", "logit_lens"):
        assert set(found[name]["tokens"]) == {3 * (TOKENS - prefix)}, name


def test_a_special_token_in_front_is_seen_and_left_out(tiny_model, front_tokenizer) -> None:
    text = "The stream grows with depth. " * 20
    found = survey(tiny_model, [text], tokenizer=front_tokenizer, length=32, only=["stream_scale"])
    assert found.data["prefix"] == 1
    assert set(found["stream_scale"]["tokens"]) == {31 * found.data["sequences"]}


# How blocks are called and what they return


class Block(Residual):
    """Takes the stream by position or by keyword, returns it alone or in a tuple, with a mask beside it."""

    returns = "tensor"

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]
        out = super().forward(hidden_states if mask is None else hidden_states * mask)
        return {"tensor": out, "tuple": (out,), "tuple of two": (out, None), "list": [out, hidden_states]}[self.returns]


class Tower(nn.Module):
    """A language model of such blocks."""

    def __init__(self, returns: str, keyword: bool) -> None:
        super().__init__()
        self.keyword = keyword
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        for block in self.layers:
            block.returns = returns

    def forward(self, input_ids: Tensor) -> Tensor:
        x, mask = self.embedding(input_ids), torch.ones(input_ids.shape[1], 1)
        for block in self.layers:
            x = first(block(mask=mask, hidden_states=x) if self.keyword else block(x, mask))
        return self.head(x)


@pytest.mark.parametrize(
    "returns, keyword",
    thinned(2, ["tensor", "tuple", "tuple of two", "list"], [False, True]),  # or by keyword
)
def test_how_a_block_is_called_and_what_it_returns_changes_nothing(returns: str, keyword: bool) -> None:
    def found(*way: Any) -> Survey:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Tower(*way)
        return survey(model, {"input_ids": token_ids()})

    assert_same_tables(found(returns, keyword), found("tensor", False), 0)


# NaN and infinity


def broken(name: str, value: float) -> tuple[nn.Module, Any, str]:
    """A model with one number of block 1 replaced; and the parameter's name."""
    model, inputs, _ = ZOO[name]()
    block = layerwright.Stack.find(model, inputs).blocks[1]
    path, parameter = [(path, p) for path, p in block.named_parameters() if p.ndim == 2][-1]
    parameter.data[0, 0] = value
    return model, inputs, path


@pytest.mark.parametrize(
    "name, value",
    thinned(2, ["llama", "gpt2", "mamba", "bert", "vit", "gpt-neox"], [math.nan, math.inf, -math.inf]),
)
def test_one_bad_number_is_named_and_what_it_touches_is_marked(name: str, value: float) -> None:
    model, inputs, parameter = broken(name, value)
    found = survey(model, inputs)
    named = [note for note in found.notes if note.startswith(f"block 1: {parameter} holds 1 NaN or infinite of ")]
    assert len(named) == 1

    scale = found["stream_scale"].set_index("point")
    assert (scale["nonfinite"][:2] == 0).all()
    assert (scale["nonfinite"][2:] > 0).all()
    assert np.isfinite(scale["value"][:2]).all()
    contribution = found["residual_contribution"].query("part == 'block'").set_index("block")
    assert contribution["nonfinite"][0] == 0
    assert contribution["nonfinite"][1] > 0
    assert any(note.startswith("stream_scale: ") and "met NaN or infinite" in note for note in found.notes)
    for frame in found.tables.values():
        assert not np.isinf(frame.select_dtypes("number").to_numpy(float)).any()

    finding = next(f for f in found.findings if f.rule == "nonfinite")
    assert finding is found.findings[0]
    assert finding.blocks == [1]
    assert "block 1" in finding.title
    assert any(parameter in sentence for sentence in finding.evidence)
    assert_presentable(found)


def test_weights_below_and_above_the_bad_one_are_still_measured() -> None:
    model, inputs, parameter = broken("llama", math.nan)
    found, whole = (survey(m, inputs)["weight_spectrum"].set_index(["block", "matrix"]) for m in (model, llama()))
    bad = (found.index.get_level_values("block") == 1) & (
        found.index.get_level_values("matrix") + ".weight" == parameter
    )
    assert bad.sum() == 4
    assert found[bad]["value"].isna().all()
    pd.testing.assert_frame_equal(found[~bad], whole[~bad])


def test_a_block_below_the_bad_one_is_measured_as_ever() -> None:
    model, inputs, _ = broken("llama", math.nan)
    found, whole = survey(model, inputs), survey(llama(), inputs)
    for name in ("residual_contribution", "residual_cosine", "block_influence", "jacobian_identity"):
        pd.testing.assert_frame_equal(found[name].query("block == 0"), whole[name].query("block == 0"))


def test_bad_numbers_at_the_input_of_the_tower() -> None:
    model = llama()
    model.model.embed_tokens.weight.data[5] = math.nan
    found = survey(model, {"input_ids": torch.full((3, TOKENS), 5)})
    finding = next(f for f in found.findings if f.rule == "nonfinite")
    assert "input of the tower" in finding.title
    assert_presentable(found)


def test_a_bad_token_is_counted_and_left_out_of_the_means() -> None:
    """One token of one sequence; blocks without attention, where it stays one."""
    (model, _, _), ids = ZOO["looped core"](), token_ids().clamp_max(VOCABULARY - 2)
    with torch.no_grad():
        h = [model.embedding(ids)]
        for k in range(6):
            h.append(model.core[k % 2](h[-1]))
    ids[1, 4] = VOCABULARY - 1
    model.embedding.weight.data[VOCABULARY - 1] = math.nan
    known = torch.ones_like(ids, dtype=torch.bool)
    known[1, 4] = False

    found = survey(model, {"input_ids": ids})
    scale = found["stream_scale"].set_index("point")
    assert (scale["nonfinite"] == 1).all()
    assert (scale["tokens"] == known.sum().item()).all()
    for point, state in enumerate(h):
        assert scale["value"][point] == pytest.approx(state.std(-1, correction=0)[known].mean().item(), rel=1e-5)
    assert np.isfinite(scale[["low", "high", "std", "p95", "max"]]).all(axis=None)
    finding = next(f for f in found.findings if f.rule == "nonfinite")
    assert finding.evidence[0] == "1 token is not finite at state 0"
    assert_presentable(found)


def test_overflow_of_half_precision_is_marked() -> None:
    model = llama().half()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(3e4)
    found = survey(model, {"input_ids": token_ids()})
    assert not any("holds" in note for note in found.notes)  # the weights themselves are fine
    scale = found["stream_scale"].set_index("point")
    assert (scale["nonfinite"][:2] == 0).all()
    assert (scale["nonfinite"][2:] > 0).all()
    finding = next(f for f in found.findings if f.rule == "nonfinite")
    assert finding.blocks == [1]
    assert "overflow of float16" in finding.advice
    assert_presentable(found)


def test_half_precision_squares_do_not_overflow() -> None:
    """Statistics are float32: a stream of thousands has squares beyond float16."""
    model = llama().half()
    model.model.embed_tokens.weight.data.mul_(2e4 / model.model.embed_tokens.weight.data.abs().max())
    found = survey(model, {"input_ids": token_ids()}, tier="quick")
    assert found["stream_scale"]["value"].min() > 1000
    assert "nonfinite" not in rules(found)
    for name, frame in found.tables.items():
        assert name == "effective_depth" or np.isfinite(frame["value"]).all(), name


# Dead blocks and constant streams


def kill(block: nn.Module) -> None:
    for projection in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(projection.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dead_block_is_zero_everywhere_and_found(dtype: torch.dtype) -> None:
    model = llama(num_hidden_layers=4).to(dtype)
    kill(model.model.layers[1])
    found = survey(model, {"input_ids": token_ids()})
    for name in ("residual_contribution", "residual_cosine"):
        rows = found[name].query("block == 1")
        assert set(rows["part"]) == {"block", "attention", "mlp"}
        assert (rows[["value", "max", "std"]] == 0).all(axis=None), name
    assert column(found["jacobian_identity"], block=1).item() == 0
    assert column(found["angular_distance"], block=1, gap=1).item() == 0
    assert column(found["block_influence"], block=1).item() == pytest.approx(0, abs=1e-6)
    assert (found["skip_effect"].query("source == 1")["value"] == 0).all()
    assert (found["skip_output"].query("source == 1")["value"] == 0).all()
    assert column(found["first_order_skip"], block=1).item() == 0

    finding = next(f for f in found.findings if f.rule == "dead_blocks")
    assert finding.blocks == [1]
    assert finding.plan is not None
    assert finding.plan.order(4) == (0, 2, 3)
    assert_presentable(found)


def test_a_tower_of_dead_blocks_has_no_plan_to_drop_them_all() -> None:
    model = llama()
    for block in model.model.layers:
        kill(block)
    found = survey(model, {"input_ids": token_ids()})
    finding = next(f for f in found.findings if f.rule == "dead_blocks")
    assert finding.blocks == [0, 1, 2]
    assert finding.plan is None
    assert np.isnan(column(found["depth_score"], quantity="later").item())  # 0/0: no effect has no centre
    assert column(found["stream_growth"], quantity="rate").item() == pytest.approx(0, abs=1e-12)
    assert_presentable(found)


def test_a_stream_of_equal_features_has_no_scale() -> None:
    """σ = 0: its logarithm, and with it the growth, is undefined rather than −∞."""
    model = llama()
    model.model.embed_tokens.weight.data.fill_(0.5)
    for block in model.model.layers:
        kill(block)
    found = survey(model, {"input_ids": token_ids()})
    assert (found["stream_scale"]["value"] == 0).all()
    assert found["stream_growth"]["value"].isna().all()
    assert (found["angular_distance"]["value"] == 0).all()
    assert not any("NaN" in note for note in found.notes)
    assert_presentable(found)


def test_a_stream_of_zeros_is_defined() -> None:
    model = llama()
    model.model.embed_tokens.weight.data.zero_()
    for block in model.model.layers:
        kill(block)
    found = survey(model, {"input_ids": token_ids()})
    expected = {"residual_contribution": 0, "residual_cosine": 0, "block_influence": 1, "angular_distance": 0.5,
                "stream_scale": 0, "skip_effect": 0}  # fmt: skip
    for name, value in expected.items():
        assert (found[name]["value"] == value).all(), name
        assert (found[name]["nonfinite"] == 0).all(), name
    assert_presentable(found)


def test_one_token_repeated_is_a_stream_without_spread() -> None:
    found = survey(llama(), {"input_ids": torch.full((3, TOKENS), 7)})
    first_block = found["residual_contribution"].query("block == 0")
    assert first_block["std"].to_numpy() == pytest.approx(0, abs=1e-4)  # every token attends to copies of itself
    for frame in found.tables.values():
        assert "nonfinite" not in frame or (frame["nonfinite"] == 0).all()
    assert_presentable(found)


# Each state is decoded by the lens of its own depth


def test_no_state_is_taken_for_another() -> None:
    """A loop variable used after its loop decodes the last state at every depth."""
    model, ids = llama(), token_ids()
    lens = survey(model, {"input_ids": ids}, only=["logit_lens"])["logit_lens"]
    h = stream(model, ids)[0]
    final = decode(model, h[-1]).log_softmax(-1)
    for point in range(DEPTH + 1):
        early = decode(model, h[point]).log_softmax(-1)
        expected = (early.exp() * (early - final)).sum(-1).mean().item()
        assert column(lens, point=point, quantity="kl").item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert lens.query("quantity == 'kl'")["value"].nunique() == DEPTH + 1


# Ctrl-C


@pytest.mark.parametrize("call", [1, 5, 9])
def test_an_interrupted_survey_leaves_the_model_as_it_was(call: int) -> None:
    model, inputs = llama().train(), {"input_ids": token_ids()}
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    fresh = survey(model, inputs)
    seen = 0

    def interrupt(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            raise KeyboardInterrupt

    with hooked((model.model.layers[1].mlp, interrupt)), pytest.raises(KeyboardInterrupt):
        survey(model, inputs)
    assert seen == call
    assert all(m.training for m in model.modules())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert_same_tables(survey(model, inputs), fresh, 0)
