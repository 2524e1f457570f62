from __future__ import annotations

from math import acos, pi

import pandas as pd
import pytest
import torch
from naive import stream, tables
from zoo import gpt2, token_ids

from layerwright.core.errors import UserError
from layerwright.core.paths import Paths
from layerwright.core.stack import Stack
from layerwright.edits.drop_by_angle import drop_by_angle, over_all_tokens

FRAME = pd.DataFrame({"block": [0, 1, 2, 0, 1, 0], "gap": [1, 1, 1, 2, 2, 3], "value": [0.3, 0.2, 0.25, 0.4, 0.3, 0.5]})


def naive_window(h: list[torch.Tensor], n: int) -> int:
    """The published way: for each stretch the arc cosine at the last token, over pi; the least."""
    scores = []
    for k in range(len(h) - n):
        total = 0.0
        for a, b in zip(h[k][:, -1].double(), h[k + n][:, -1].double()):
            total += acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1).item()) / pi
        scores.append(total)
    return scores.index(min(scores))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_as_published(blocks: int) -> None:
    model, ids = gpt2(num_hidden_layers=5), token_ids(4)
    h, _, _ = stream(model, ids)
    first = naive_window(h, blocks)
    frame = tables(model, {"input_ids": ids}, "angular_distance")["angular_distance"]
    with Paths(Stack.find(model, {"input_ids": ids}), []) as paths:
        plan = drop_by_angle(frame, paths, blocks=blocks)
    assert plan.steps == ({"drop": list(range(first, first + blocks))},)


def test_over_all_tokens_padding_left_out() -> None:
    model, ids, mask = gpt2(num_hidden_layers=5), token_ids(4), torch.ones(4, 12, dtype=torch.long)
    mask[1, 5:] = 0
    h, _, _ = stream(model, ids, attention_mask=mask)
    batches = [{"input_ids": ids[:2], "attention_mask": mask[:2]}, {"input_ids": ids[2:], "attention_mask": mask[2:]}]
    frame = tables(model, {"input_ids": ids}, "angular_distance")["angular_distance"]
    with Paths(Stack.find(model, batches[0]), batches) as paths:
        found = over_all_tokens(paths, 2)
        plan = drop_by_angle(frame, paths, blocks=2, tokens="all")
    for k in range(4):
        a, b = h[k][mask.bool()].double(), h[k + 2][mask.bool()].double()
        expected = torch.nn.functional.cosine_similarity(a, b, dim=-1).acos().mean() / pi
        assert found[k] == pytest.approx(expected.item(), abs=1e-5)
    first = int(found.idxmin())
    assert plan.steps == ({"drop": [first, first + 1]},)
    assert "at a token" in plan.why


def test_the_reason_names_the_next_best() -> None:
    plan = drop_by_angle(FRAME, None, blocks=2)
    assert plan.steps == ({"drop": [1, 2]},)
    assert plan.why == (
        "Blocks 1–2 turn the stream by 0.300 π at the last token, the least of 2 stretches of 2; next is 0–1 with "
        "0.400 π."
    )


def test_a_stretch_without_a_number_is_passed_over() -> None:
    frame = FRAME.assign(value=[0.3, float("nan"), 0.25, 0.4, 0.3, 0.5])
    assert drop_by_angle(frame, None).steps == ({"drop": [2]},)
    with pytest.raises(UserError, match="is a number"):
        drop_by_angle(frame.assign(value=float("nan")), None)


@pytest.mark.parametrize(
    "options, words",
    [({"blocks": 3}, "at most 2"), ({"blocks": 0}, "got blocks 0"), ({"tokens": "first"}, "last or all")],
)
def test_bad_input(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        drop_by_angle(FRAME, None, **options)
