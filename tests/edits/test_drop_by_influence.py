from __future__ import annotations

from itertools import pairwise

import pandas as pd
import pytest
from naive import stream, tables
from torch.nn.functional import cosine_similarity
from zoo import llama, token_ids

from layerwright.core.errors import UserError
from layerwright.edits.drop_by_influence import drop_by_influence

FRAME = pd.DataFrame({"block": [0, 1, 2, 3], "value": [0.5, 0.1, 0.3, 0.05]})


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_as_published(blocks: int) -> None:
    """1 − mean cosine between a block's input and output; the n lowest go."""
    model, ids = llama(num_hidden_layers=6), token_ids(4)
    h, _, _ = stream(model, ids)
    influence = [1 - cosine_similarity(a.double(), b.double(), dim=-1).mean().item() for a, b in pairwise(h)]
    frame = tables(model, {"input_ids": ids}, "block_influence")["block_influence"]
    expected = sorted(sorted(range(6), key=influence.__getitem__)[:blocks])
    assert drop_by_influence(frame, blocks=blocks).steps == ({"drop": expected},)


def test_the_reason() -> None:
    assert drop_by_influence(FRAME, blocks=2).why == (
        "Blocks 1 and 3 have the least influence (1 − cosine between input and output), at most 0.1000; the mean of "
        "all 4 blocks is 0.2375."
    )
    assert drop_by_influence(FRAME).why.startswith(
        "Block 3 has the least influence (1 − cosine between input and output), 0.0500;"
    )


def test_bad_input() -> None:
    with pytest.raises(UserError, match="at most 3"):
        drop_by_influence(FRAME, blocks=4)
    with pytest.raises(UserError, match="got blocks 0"):
        drop_by_influence(FRAME, blocks=0)
    with pytest.raises(UserError, match="only 1 blocks"):
        drop_by_influence(FRAME.assign(value=[0.5, float("nan"), float("nan"), float("nan")]), blocks=2)
