from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.maths.residual_expansion import residual_expansion


def column(name: str, **options: Any) -> np.ndarray:
    return lw.predict("residual_paths", **options).table[name].to_numpy()


@pytest.mark.parametrize(("name", "power"), [("unscaled", 0.0), ("inverse_sqrt", 0.5), ("inverse", 1.0)])
def test_random_linear_towers_have_these_energies(name: str, power: float) -> None:
    """Monte-Carlo: Gaussian branches of gain c at width 6, whose expected energies have no correction in the width."""
    depth, gain, width, draws = 5, 0.8, 6, 1500
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(depth, draws, width, width, generator=generator).double() * gain * depth**-power / width**0.5
    z = torch.randn(draws, width, 1, generator=generator).double()
    z /= z.square().sum(1, keepdim=True).sqrt()
    orders = residual_expansion([lambda x, w=w: w @ x for w in weights], z, order=depth)
    energies = torch.cat([orders, orders.sum(0, keepdim=True)]).square().sum((-2, -1))
    mean, error = energies.mean(1), energies.std(1) / draws**0.5
    predicted = torch.tensor(column(name, depth=depth, gain=gain))
    assert ((mean - predicted).abs() <= 3 * error + 1e-9).all()


def test_aligned_branches_add_lengths() -> None:
    depth, gain = 6, 0.7
    z = torch.ones(1).double()
    for name, power in (("unscaled", 0.0), ("inverse_sqrt", 0.5), ("inverse", 1.0)):
        branches = [lambda x, s=gain * depth**-power: s * x] * depth
        lengths = residual_expansion(branches, z, order=depth).flatten().tolist()
        found = column(name, depth=depth, gain=gain, branches="aligned")
        assert found.tolist() == pytest.approx([*lengths, sum(lengths)])


def test_the_number_of_paths_doubles_with_every_block() -> None:
    assert column("paths", depth=10, orders=20).tolist() == [*(math.comb(10, k) for k in range(11)), 1024]
    assert column("paths", depth=11)[-1] == 2 * column("paths", depth=10)[-1]


def test_only_scaled_towers_have_a_limit() -> None:
    totals = {depth: {n: column(n, depth=depth)[-1] for n in ("unscaled", "inverse_sqrt", "inverse")}
              for depth in (10, 1000)}  # fmt: skip
    assert totals[10]["unscaled"] == 2**10
    assert totals[1000]["inverse_sqrt"] == pytest.approx(math.e, rel=1e-3)
    assert totals[1000]["inverse"] == pytest.approx(1, abs=2e-3)
    assert column("inverse", depth=1000, gain=2.0, branches="aligned")[-1] == pytest.approx(math.exp(2), rel=1e-2)
    assert any(note.endswith("approach e^{c²} = 2.718 with depth") for note in lw.predict("residual_paths").notes)


def test_what_explodes_beyond_a_float_is_infinite() -> None:
    assert column("unscaled", depth=1000, gain=2.0)[-1] == math.inf
    assert column("unscaled", depth=1000, gain=2.0)[1] == 4000


def test_the_shares_of_the_picture_are_all_of_it() -> None:
    found = lw.predict("residual_paths", depth=12, gain=1.3)
    assert found.picture is not None
    assert len(found.picture.series) == 3
    for points in found.picture.series.values():
        assert [k for k, _ in points] == list(range(13))
        assert sum(share for _, share in points) == pytest.approx(1)
    mean = sum(k * share for k, share in found.picture.series["s = 1"])
    assert f"{mean:.3g} at 1," in found.notes[0]
    assert found.svg().startswith("<svg")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0}, "depth=0"), ({"depth": 1001}, "at most 1000 blocks"), ({"depth": 2.5}, "whole numbers"),
        ({"orders": 0}, "orders=0"), ({"gain": 0.0}, "gain=0.0; expected a number above 0"),
        ({"gain": math.inf}, "gain=inf"), ({"branches": "odd"}, "expected independent or aligned"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(lw.UserError, match=words):
        lw.predict("residual_paths", **options)
