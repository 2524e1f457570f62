"""How far answers are apart, and whether a step preserved them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from zoo import llama, t5, token_ids, vectors

from layerwright.core.errors import UserError
from layerwright.core.rungs import answers
from layerwright.core.rungs.answers import answer, apart, mask_name, preserved, tolerance


def test_error_agreement_and_divergence_by_hand() -> None:
    before = torch.tensor([[[0.0, math.log(3.0)], [2.0, 0.0]]])
    after = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    found = apart(before, after, {})
    assert found.error == 2.0
    assert found.scale == 2.0
    # Equal logits of the first token leave its likeliest class open, and argmax takes the first.
    assert found.top1 == 0.0
    p = [torch.tensor([0.25, 0.75]), torch.tensor([2.0, 0.0]).softmax(0)]
    q = [torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]).softmax(0)]
    expected = sum(float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)) / 2
    assert found.kl == pytest.approx(expected, rel=1e-6)


def test_tokens_in_small_portions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = vectors(3, 7, 11), vectors(3, 7, 11) + 0.1 * vectors(3, 7, 11).flip(0)
    whole = apart(before, after, {})
    monkeypatch.setattr(answers, "_AT_ONCE", 40)
    assert apart(before, after, {}) == pytest.approx(whole, rel=1e-12)


def test_classes_that_are_ruled_out_in_both_do_not_differ() -> None:
    before, after = torch.tensor([[[0.0, 1.0, -torch.inf]]]), torch.tensor([[[0.0, 1.5, -torch.inf]]])
    found = apart(before, after, {})
    assert (found.error, found.scale, found.top1) == (0.5, 1.0, 1.0)
    assert found.kl < 1.0
    after[0, 0, 2] = 0.0
    assert apart(before, after, {}).error == torch.inf


def test_padding_does_not_count() -> None:
    before, after = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    after[0, 2] = 5.0
    assert apart(before, after, {}).error == 5.0
    assert apart(before, after, {"attention_mask": torch.tensor([[1, 1, 0]])}).error == 0.0


def test_a_mask_of_the_encoder_is_not_the_decoders() -> None:
    assert mask_name({"input_ids": 0, "decoder_input_ids": 0}) == "decoder_attention_mask"
    assert mask_name({"input_ids": 0, "decoder_input_ids": 0}, causal=False) == "attention_mask"
    model = t5().eval()
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=10, seed=2)}
    assert answer(model, inputs).shape[:2] == (3, 10)


def test_models_of_two_vocabularies_are_refused() -> None:
    with pytest.raises(UserError, match="give 2 and 3 classes on the same batch"):
        apart(torch.zeros(1, 1, 2), torch.zeros(1, 1, 3), {})


def test_the_tolerance_goes_by_the_coarsest_weights() -> None:
    model = llama()
    assert tolerance(model) == 1e-5
    model.lm_head.bfloat16()
    assert tolerance(model) == 2e-2
    assert tolerance(nn.Linear(1, 1).double()) == 1e-10


def test_a_step_that_changes_nothing_holds() -> None:
    model = llama().eval()
    found = preserved(model, copy.deepcopy(model), {"input_ids": token_ids()}, step="insert", declared="exact")
    assert (found.max_error, found.top1, found.kl, found.held) == (0.0, 1.0, 0.0, True)


def test_a_step_that_changes_something_does_not_hold() -> None:
    model = llama().eval()
    other = copy.deepcopy(model)
    other.model.norm.weight.data *= 1.001
    found = preserved(model, other, {"input_ids": token_ids()}, step="fold", declared="exact")
    logits = answer(model, {"input_ids": token_ids()})
    assert not found.held
    assert found.top1 == 1.0
    assert found.limit == pytest.approx(1e-5 * float(logits.detach().abs().max()), rel=1e-6)
    assert found.max_error == pytest.approx(0.001 * float(logits.detach().abs().max()), rel=1e-2)


def test_models_in_training_are_measured_in_evaluation_and_left_in_training() -> None:
    model = llama(attention_dropout=0.9).train()
    assert preserved(model, model, {"input_ids": token_ids()}, step="x", declared="exact").max_error == 0.0
    assert model.training
