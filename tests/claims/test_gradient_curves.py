from __future__ import annotations

import numpy as np
import pytest
import torch
from zoo import llama, token_ids

import layerwright as lw
from layerwright.claims import gradient_curves as claim


def test_curves_are_those_of_the_survey() -> None:
    model, inputs = llama(), {"input_ids": token_ids(3, 9)}
    found = claim.gradients(model, inputs, 0)
    survey = lw.survey(model, inputs, only=["gradient_spectrum", "gradient_roughness"], seed=0)
    for quantity in ("nuclear_norm", "nuclear_norm_over_loss", "effective_rank"):
        rows = survey["gradient_spectrum"].query("quantity == @quantity")
        for k, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            curve = rows[rows["matrix"] == f"self_attn.{name}"].sort_values("block")["value"]
            assert getattr(found, quantity)[k] == pytest.approx(curve.to_numpy())


def test_roughness_is_of_neighbouring_blocks() -> None:
    found = claim.gradients(llama(), {"input_ids": token_ids(3, 9)}, 0)
    assert found.roughness == pytest.approx(np.abs(np.diff(found.nuclear_norm, axis=1)).mean(1))
    assert found.relative_roughness == pytest.approx(found.roughness / found.nuclear_norm.mean(1))


def test_the_untrained_copy_has_the_same_shape_and_weights_by_seed() -> None:
    model = llama()
    state = model.state_dict()
    one, other = claim.untrained(model, 1).state_dict(), claim.untrained(model, 1).state_dict()
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in state.items()}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], claim.untrained(model, 2).state_dict()["lm_head.weight"])


def test_the_loss_is_of_labelled_tokens_and_documents_count_alike() -> None:
    model, ids = llama(), token_ids(2, 6)
    labels = torch.full_like(ids, -100)
    labels[0, 5] = ids[0, 5]
    labels[1, 2:4] = ids[1, 2:4]
    with torch.no_grad():
        nats = -model(input_ids=ids).logits.log_softmax(-1)
    first = nats[0, 4, ids[0, 5]]
    second = (nats[1, 1, ids[1, 2]] + nats[1, 2, ids[1, 3]]) / 2
    assert claim.loss_of(model, {"input_ids": ids, "labels": labels}) == pytest.approx(float(first + second) / 2)
