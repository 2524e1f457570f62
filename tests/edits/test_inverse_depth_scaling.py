from __future__ import annotations

import pandas as pd
import pytest
import torch

from layerwright.core.errors import UserError
from layerwright.edits.inverse_depth_scaling import inverse_depth_scaling


def frame(growth: float, depth: int) -> pd.DataFrame:
    return pd.DataFrame({"point": range(depth + 1), "value": [growth ** (k / depth) for k in range(depth + 1)]})


@pytest.mark.parametrize("power, factor", [(1.0, 1 / 16), (0.5, 1 / 4)])
def test_one_factor_for_every_block(power: float, factor: float) -> None:
    plan = inverse_depth_scaling(frame(100.0, 16), power=power)
    assert plan.steps == ({"fold": {"scale": [factor] * 16}},)
    assert "has to be trained on" in plan.why


def test_the_growth_foretold_is_that_of_a_tower_of_linear_blocks() -> None:
    """h ← (1 + λ·c)·h in every block, by running it."""
    depth, share = 8, 0.5
    stream = torch.ones(1)
    scaled = torch.ones(1)
    scales = [1.0]
    for _ in range(depth):
        stream = stream + share * stream
        scaled = scaled + share * scaled / depth
        scales.append(stream.item())
    plan = inverse_depth_scaling(pd.DataFrame({"point": range(depth + 1), "value": scales}))
    assert f"grows {stream.item():.3g} times over 8 blocks, as if each added a share of 0.500" in plan.why
    assert f"it would grow {scaled.item():.3g} times" in plan.why
    assert scaled.item() < 2.72**share


def test_bad_input() -> None:
    for power in (0, -1.0, "much"):
        with pytest.raises(UserError, match="got power"):
            inverse_depth_scaling(frame(4.0, 4), power=power)
