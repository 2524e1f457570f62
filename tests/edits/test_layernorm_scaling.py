from __future__ import annotations

import pandas as pd
import pytest
from naive import column, stream, tables
from zoo import llama, token_ids

from layerwright.edits.layernorm_scaling import layernorm_scaling


def test_the_reason_is_the_measured_growth() -> None:
    model, ids = llama(num_hidden_layers=4), token_ids()
    frame = tables(model, {"input_ids": ids}, "stream_scale")["stream_scale"]
    h, _, _ = stream(model, ids)
    first, last = (x.std(-1, correction=0).mean().item() for x in (h[0], h[-1]))
    plan = layernorm_scaling(frame)
    assert plan.steps == ({"fold": {"layernorm_scaling": True}},)
    assert f"from {first:.3g} to {last:.3g} over 4 blocks ({last / first:.3g} times)" in plan.why
    assert column(frame).tolist() == pytest.approx([x.std(-1, correction=0).mean().item() for x in h], rel=1e-5)


@pytest.mark.parametrize("last, words", [(3.0, "as √l or slower"), (3.2, "faster than √l")])
def test_growth_as_a_random_walk_leaves_little_to_win(last: float, words: str) -> None:
    """√(L + 1) with L = 9 blocks is √10 = 3.16."""
    frame = pd.DataFrame({"point": range(10), "value": [1.0, *[2.0] * 8, last]})
    plan = layernorm_scaling(frame)
    assert words in plan.why
    assert "1/√9 = 0.33" in plan.why
    assert "has to be trained on" in plan.why
