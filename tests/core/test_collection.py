"""States that are kept for measures which look at all of them: the right ones, whatever the engine and the batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from naive import blocks_of, first
from torch import Tensor, nn
from walking import asked
from zoo import ZOO, gpt2, llama, token_ids

import layerwright as lw
from layerwright.core import engine
from layerwright.core.errors import UserError
from layerwright.core.registry import MEASURES, measure
from layerwright.core.table import Estimate

SEEN: dict[str, Tensor] = {}
NAMES = (
    "features", "sequences", "positions", "targets", "token_ids", "head_inputs", "head_weight", "summaries",
    "sequence_labels",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _look() -> Iterator[None]:
    """Two measures that keep what they see, for the length of a test."""
    SEEN.clear()
    known = dict(MEASURES)

    def seen_together(
        features: Tensor, sequences: Tensor, positions: Tensor, targets: Tensor, token_ids: Tensor, summaries: Tensor,
        sequence_labels: Tensor,
    ) -> dict[Any, Any]:  # fmt: skip
        """See what is kept."""
        SEEN.update({name: x for name, x in locals().items() if isinstance(x, Tensor)})
        return {(0,): 1.0, (1,): Estimate(2.0, 1.0, 3.0)}

    def seen_head(head_inputs: Tensor, head_weight: Tensor) -> dict[Any, Any]:
        """See the head."""
        SEEN.update(head_inputs=head_inputs, head_weight=head_weight)
        return {(): 0.0}

    def seen_pair(features: Tensor, other_features: Tensor) -> dict[Any, Any]:
        """See two."""
        if features.shape == other_features.shape and torch.equal(features, other_features):
            raise UserError("there is only one")
        SEEN.update(one=features, two=other_features)
        return {(0, 1): 0.5}

    measure(unit="1", tier="deep", index=("point",))(seen_together)
    measure(unit="1", tier="deep")(seen_head)
    measure(unit="1", tier="deep", index=("point", "other_point"))(seen_pair)
    yield
    MEASURES.clear()
    MEASURES.update(known)


def states(model: nn.Module, **inputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    blocks = blocks_of(model)
    handles = [blocks[0].register_forward_pre_hook(lambda m, x: found.append(x[0]))]
    handles += [block.register_forward_hook(lambda m, x, out: found.append(first(out))) for block in blocks]
    with torch.no_grad():
        model.eval()(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_states_targets_and_what_the_head_reads(make: Any) -> None:
    model, ids = make(), token_ids(3, 9)
    survey = lw.survey(model, {"input_ids": ids}, only=["seen_together", "seen_head"])
    h = states(model, input_ids=ids)
    b, t = SEEN["sequences"], SEEN["positions"]
    assert len({*zip(b.tolist(), t.tolist())}) == len(b) == ids.numel()  # few enough to keep them all
    assert len(SEEN["features"]) == len(h)
    for kept, state in zip(SEEN["features"], h):
        torch.testing.assert_close(kept, state[b, t])
    for kept, state in zip(SEEN["summaries"], h):
        torch.testing.assert_close(kept, state[:, -1])
    assert torch.equal(SEEN["token_ids"], ids[b, t])
    following = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], 1)
    assert torch.equal(SEEN["targets"], following[b, t])
    assert (SEEN["sequence_labels"] == -100).all()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[b, t]
    torch.testing.assert_close(SEEN["head_inputs"] @ SEEN["head_weight"].T, logits, rtol=1e-4, atol=1e-5)
    frame = survey["seen_together"]
    assert frame["value"].tolist() == [1.0, 2.0]
    assert frame["high"].tolist()[1] == 3.0


def test_the_batch_split_and_the_order_of_work_change_nothing() -> None:
    ids = token_ids(5, 9)
    kept = []
    for size in (5, 2, 1):
        lw.survey(llama(), [{"input_ids": part} for part in ids.split(size)], only=["seen_together", "seen_head"])
        kept.append(dict(SEEN))
    lw.survey(llama(), {"input_ids": ids}, only=["seen_together", "seen_head"], jobs="serial")
    kept.append(dict(SEEN))
    for other in kept[1:]:
        assert other.keys() == kept[0].keys() == set(NAMES)
        for name, x in kept[0].items():
            torch.testing.assert_close(other[name], x, rtol=1e-5, atol=1e-5, msg=name)


def test_a_walk_block_by_block_keeps_the_same(tmp_path: Path) -> None:
    model, data = llama(), {"input_ids": token_ids(3, 9)}
    lw.survey(model, data, only=["seen_together", "seen_head"])
    expected = dict(SEEN)
    SEEN.clear()
    model.save_pretrained(tmp_path / "model")
    engine.by_walk(asked(tmp_path / "model", data, tier="deep", only=("seen_together", "seen_head")))
    assert SEEN.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(SEEN[name], x, rtol=1e-5, atol=1e-5, msg=name)


def test_padding_is_not_collected() -> None:
    ids, mask = token_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    lw.survey(llama(), {"input_ids": ids, "attention_mask": mask}, only=["seen_together"])
    assert SEEN["positions"][SEEN["sequences"] == 1].max() == 5
    assert len(SEEN["positions"]) == 15


def test_one_answer_a_sequence_is_one_place_a_sequence() -> None:
    model, inputs, _ = ZOO["vit"]()
    count = len(inputs["pixel_values"])
    labels = torch.arange(count) % 2
    lw.survey(model, inputs | {"labels": labels}, only=["seen_together", "seen_head"])
    assert SEEN["features"].shape == SEEN["summaries"].shape
    assert SEEN["sequences"].tolist() == list(range(count))
    assert torch.equal(SEEN["targets"], labels)
    assert torch.equal(SEEN["sequence_labels"], labels)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    bias = model.classifier.bias
    torch.testing.assert_close(SEEN["head_inputs"] @ SEEN["head_weight"].T + bias, logits, rtol=1e-4, atol=1e-5)


def test_two_models_side_by_side_and_one_alone() -> None:
    ids = {"input_ids": token_ids(3, 9)}
    survey = lw.survey(llama(), ids, only=["seen_pair"], against=gpt2())
    assert survey["seen_pair"]["value"].tolist() == [0.5]
    assert survey["seen_pair"].attrs["index"] == ["point", "other_point"]
    assert not SEEN["one"].equal(SEEN["two"])
    alone = lw.survey(llama(), ids, only=["seen_pair"])
    assert any("seen_pair could not be measured: there is only one" in note for note in alone.notes)
