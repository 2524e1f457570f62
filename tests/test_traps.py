"""Mistakes found in published code, and models as they come: one test for each."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from naive import blocks_of, column, stream, tables
from thinned import thinned
from torch import Tensor, nn
from walking import few_replicates
from zoo import TOKENS, VOCABULARY, WIDTH, Residual, Wrapper, gpt2, language_model, llama, token_ids, vectors

import layerwright as lw
from layerwright.core.stack import Stack
from layerwright.core.survey import Survey


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    few_replicates(monkeypatch)


def assert_equal(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame], rtol: float = 2e-5) -> None:
    """All numbers of all tables."""
    assert list(found) == list(expected)
    for name, frame in expected.items():
        for key in frame.select_dtypes("number"):
            a, b = (torch.tensor(x[key].to_numpy(dtype=float)) for x in (found[name], frame))
            torch.testing.assert_close(
                a, b, rtol=rtol, atol=rtol / 10, equal_nan=True, msg=lambda m, at=f"{name} {key}": f"{at}: {m}"
            )


# The stream


def test_the_last_hidden_state_of_transformers_is_after_the_final_norm() -> None:
    model, ids = llama(), token_ids()
    with torch.no_grad():
        trap = model.eval()(ids, output_hidden_states=True).hidden_states[-1]
    h, _, _ = stream(model, ids)
    found = column(tables(model, {"input_ids": ids}, "stream_scale")["stream_scale"])
    assert found[-1].item() == pytest.approx(h[-1].std(-1, correction=0).mean().item(), rel=1e-5)
    assert found[-1].item() != pytest.approx(trap.std(-1, correction=0).mean().item(), rel=0.05)


def test_options_of_the_model_that_change_its_outputs_change_no_number() -> None:
    model, inputs = llama(attn_implementation="eager"), {"input_ids": token_ids()}
    expected = tables(model, inputs)
    model.config.output_hidden_states = model.config.output_attentions = True
    assert_equal(tables(model, inputs), expected)


def test_gradient_checkpointing_changes_no_number() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    expected = tables(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the method has another name from transformers 6 on
        model.gradient_checkpointing_enable()
    assert_equal(tables(model.train(), inputs), expected)


def test_a_model_in_training_is_measured_without_its_dropout() -> None:
    model, inputs = gpt2(), {"input_ids": token_ids()}
    assert_equal(tables(model.train(), inputs), tables(model.eval(), inputs))


class Tower(nn.Module):
    """A language model of residual blocks that hand on tensors, tuples or lists, in any order."""

    def __init__(self, wrap: Any = lambda x: x, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
            self.blocks = nn.ModuleList(Wrapped(wrap) for _ in range(3))
        self.order = order

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for b in self.order:
            x = self.blocks[b](x)
            x = x if isinstance(x, Tensor) else x[0]
        return self.head(x)


class Wrapped(Residual):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def test_blocks_may_give_tensors_tuples_or_lists() -> None:
    inputs = {"input_ids": token_ids()}
    expected = tables(Tower(), inputs)
    for wrap in (lambda x: (x,), lambda x: (x, None, {"cache": x + 1}), lambda x: [x, x * 2]):
        assert_equal(tables(Tower(wrap), inputs), expected)


def test_blocks_are_numbered_as_they_run_not_as_they_are_stored() -> None:
    inputs = {"input_ids": token_ids()}
    stack = Stack.find(Tower(order=(2, 0, 1)), inputs)
    assert stack.order == (2, 0, 1)
    turned = Tower()
    turned.blocks = nn.ModuleList(turned.blocks[k] for k in (2, 0, 1))
    names = ("residual_contribution", "skip_effect", "skip_output", "first_order_skip", "angular_distance")
    assert_equal(tables(Tower(order=(2, 0, 1)), inputs, *names), tables(turned, inputs, *names))


def test_a_cache_hidden_in_a_wrapper_does_not_serve_stale_keys() -> None:
    inputs = {"input_ids": token_ids()}
    expected = tables(llama(), inputs)
    assert llama().config.use_cache
    assert_equal(tables(Wrapper(), inputs), expected)


def test_statistics_of_half_precision_are_not_in_half_precision() -> None:
    model, ids = llama().bfloat16(), token_ids(8, 40)
    found = column(tables(model, {"input_ids": ids}, "residual_contribution")["residual_contribution"], part="block")
    h, _, _ = stream(model, ids)
    for k in range(3):
        x, y = h[k].double(), h[k + 1].double()
        assert found[k].item() == pytest.approx(((y - x).norm(dim=-1) / x.norm(dim=-1)).mean().item(), rel=1e-5)


# Padding


def padded(side: str, fill: int) -> dict[str, Tensor]:
    mask = torch.stack([torch.arange(TOKENS) < n for n in (TOKENS, 7, 3)]).long()
    mask = mask if side == "right" else mask.flip(1)
    ids = token_ids().masked_fill(mask == 0, fill)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name, side", thinned(2, ("bert", "llama"), ("right", "left")))
def test_what_stands_in_the_padding_changes_nothing(name: str, side: str) -> None:
    model = llama() if name == "llama" else language_model("Bert", "BertForMaskedLM")
    assert_equal(tables(model, padded(side, 5)), tables(model, padded(side, 31)))


@pytest.mark.parametrize("side", thinned(2, ["right", "left"]))
def test_padding_changes_nothing(side: str) -> None:
    """Against the same sequences one by one, unpadded: means over tokens, and the last token is the last real one."""
    model, inputs = llama(), padded(side, 0)
    found = tables(model, inputs)
    rows = [ids[mask.bool()][None] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    alone = [tables(model, {"input_ids": row}) for row in rows]
    for name in ("residual_contribution", "residual_cosine", "block_influence", "stream_scale", "angular_distance"):
        weights = np.array([frames[name]["tokens"] for frames in alone])
        values = np.array([frames[name]["value"] for frames in alone])
        expected = (weights * values).sum(0) / weights.sum(0)
        np.testing.assert_allclose(found[name]["value"], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            found[name]["max"], np.max([f[name]["max"] for f in alone], 0), rtol=1e-4, err_msg=name
        )
    later, rises = (f"quantity == '{q}'" for q in ("later", "loss_increase"))
    for name, query in (("skip_effect", later), ("skip_output", rises)):
        parts = [frames[name].query(query) for frames in alone]
        expected = sum(p["value"].to_numpy() * p["tokens"].to_numpy() for p in parts)
        expected = expected / sum(p["tokens"].to_numpy() for p in parts)
        np.testing.assert_allclose(found[name].query(query)["value"], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_last_token_is_not_the_padding() -> None:
    inputs = padded("right", 0)
    found = tables(llama(), inputs, "angular_distance")["angular_distance"]
    trap = tables(llama(), {"input_ids": inputs["input_ids"]}, "angular_distance")["angular_distance"]
    assert not np.allclose(found["value"], trap["value"], rtol=1e-2)


def test_prefix_tokens_are_left_out_of_the_statistics_but_not_of_the_model() -> None:
    model, ids = gpt2(), token_ids()
    h, _, _ = stream(model, ids)
    found = column(tables(model, {"input_ids": ids}, "stream_scale", prefix=3)["stream_scale"])
    for k, state in enumerate(h):
        assert found[k].item() == pytest.approx(state[:, 3:].std(-1, correction=0).mean().item(), rel=1e-5)


# Broken and degenerate models


def rows_of(survey: Survey, name: str, column: str, values: set[int]) -> pd.DataFrame:
    return survey[name][survey[name][column].isin(values)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named_and_mark_what_they_touch(bad: float) -> None:
    model = llama(num_hidden_layers=4)
    model.model.layers[2].mlp.down_proj.weight.data[3, 5] = bad
    survey = lw.survey(model, {"input_ids": token_ids()})
    assert "block 2: mlp.down_proj.weight holds 1 NaN or infinite of 384 numbers" in survey.notes
    assert any(note.startswith("residual_contribution:") and "(block 2, 3)" in note for note in survey.notes)
    fine, touched = (rows_of(survey, "residual_contribution", "block", blocks) for blocks in ({0, 1}, {2, 3}))
    assert (fine["nonfinite"] == 0).all()
    assert np.isfinite(fine["value"]).all()
    whole = touched[touched["part"] == "block"]
    assert (whole["tokens"] == 0).all()
    assert (whole["nonfinite"] == 36).all()
    assert whole["value"].isna().all()
    assert set(touched["part"]) == {"attention", "mlp", "block"}  # known from the blocks that are whole
    spectrum = survey["weight_spectrum"]
    broken = (spectrum["block"] == 2) & (spectrum["matrix"] == "mlp.down_proj")
    assert spectrum["value"].isna().equals(broken)
    assert survey.model["causal"]
    assert all(check.passed for check in survey.checks)
    (finding,) = (f for f in survey.findings if f.rule == "nonfinite")
    assert finding.blocks == [2]
    assert any("mlp.down_proj" in line for line in finding.evidence)
    json.dumps(survey.to_dict(), allow_nan=False)


def test_nan_in_the_first_block() -> None:
    model = llama()
    model.model.layers[0].input_layernorm.weight.data[0] = torch.nan
    survey = lw.survey(model, {"input_ids": token_ids()})
    assert np.isfinite(survey["stream_scale"]["value"][0])
    assert survey["stream_scale"]["value"][1:].isna().all()
    assert set(survey["residual_contribution"]["part"]) == {"attention", "mlp", "block"}
    assert survey.model["causal"]
    json.dumps(survey.to_dict(), allow_nan=False)


def test_nan_at_one_token_only_leaves_the_others_measured() -> None:
    model = Tower()  # no attention: in one, even a masked NaN reaches the other tokens, as 0 · NaN is NaN
    model.embedding.weight.data[7] = torch.nan
    ids = token_ids().clamp_max(6)
    ids[:, -1] = 7
    survey = lw.survey(model, {"input_ids": ids})
    frame = survey["residual_contribution"]
    assert (frame["nonfinite"] == 3).all()
    assert (frame["tokens"] == 33).all()
    assert np.isfinite(frame["value"]).all()
    clean = tables(Tower(), {"input_ids": ids[:, :-1]}, "residual_contribution")["residual_contribution"]
    np.testing.assert_allclose(frame["value"], clean["value"], rtol=1e-4)


def test_half_precision_overflow_is_marked() -> None:
    model = llama(num_hidden_layers=4).half()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(6e4)  # finite, but its products are not
    survey = lw.survey(model, {"input_ids": token_ids()})
    assert not any("NaN or infinite of" in note for note in survey.notes)
    frame = rows_of(survey, "stream_scale", "point", {2, 3, 4})
    assert (frame["nonfinite"] > 0).all()
    assert (rows_of(survey, "stream_scale", "point", {0, 1})["nonfinite"] == 0).all()
    (finding,) = (f for f in survey.findings if f.rule == "nonfinite")
    assert finding.blocks == [1]
    json.dumps(survey.to_dict(), allow_nan=False)


def finite(survey: Survey, *besides: str) -> None:
    """No undefined number, but in the measures named."""
    for name, frame in survey.tables.items():
        if name not in besides:
            assert np.isfinite(frame.select_dtypes("number").to_numpy(dtype=float)).all(), name


def test_dead_blocks_are_defined() -> None:
    model = llama()
    for block in blocks_of(model):
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)
    survey = lw.survey(model, {"input_ids": token_ids()})
    # Nothing has an effect, so that nothing has a centre, an order or a turn.
    finite(survey, "depth_score", "first_order_agreement", "effective_depth")
    assert (survey["residual_contribution"][["value", "max"]] == 0).all(axis=None)
    assert (survey["residual_cosine"]["value"] == 0).all()
    assert (survey["skip_effect"]["value"] == 0).all()
    assert (survey["jacobian_identity"]["value"] == 0).all()
    (finding,) = (f for f in survey.findings if f.rule == "dead_blocks")
    assert finding.blocks == [0, 1, 2]
    assert finding.plan is None  # something must stay


def test_a_stream_of_zeros_is_defined() -> None:
    model = llama()
    nn.init.zeros_(model.model.embed_tokens.weight)
    survey = lw.survey(model, {"input_ids": token_ids()})
    assert (survey["stream_scale"]["value"] == 0).all()
    finite(survey, "depth_score", "first_order_agreement", "effective_depth", "stream_growth")


class Constant(nn.Module):
    """Gives the same state whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.linspace(-1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.state + 0 * x


def test_a_constant_block_is_defined() -> None:
    model = nn.Sequential(Residual(), Constant(), Residual())
    survey = lw.survey(model, vectors(6, 5, WIDTH))
    finite(survey)
    jacobian = survey["jacobian_identity"].set_index("block")["value"]
    assert jacobian[1] == pytest.approx(1.0)  # J = 0
    effect = survey["skip_effect"].query("source == 0 and block == 2")
    assert (effect["value"] == 0).all()  # nothing passes a constant


def test_sequences_of_one_token() -> None:
    survey = lw.survey(llama(), {"input_ids": token_ids(4, 1)})
    assert (survey["residual_contribution"]["tokens"] == 4).all()
    json.dumps(survey.to_dict(), allow_nan=False)


def test_one_sequence_has_no_interval() -> None:
    survey = lw.survey(llama(), {"input_ids": token_ids(1)})
    assert survey["residual_contribution"]["low"].isna().all()
    assert np.isfinite(survey["residual_contribution"]["value"]).all()
    json.dumps(survey.to_dict(), allow_nan=False)


def test_two_tokens() -> None:
    survey = lw.survey(llama(), {"input_ids": token_ids(3, 2)})
    assert all(check.passed for check in survey.checks)
    json.dumps(survey.to_dict(), allow_nan=False)
