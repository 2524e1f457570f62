from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from zoo import llama, token_ids

from layerwright.claims import gradient_rank_by_data as claim
from layerwright.claims.gradient_curves import Gradients
from layerwright.core.claim import judge
from layerwright.core.trials import Budget


@pytest.fixture
def small(monkeypatch) -> None:
    """A model of a few blocks in the place of the bundled one; the first four tokens begin a line."""
    tokenizer = SimpleNamespace(decode=lambda ids: "\n" if ids[0] < 4 else "x")
    model, ids = llama(), token_ids(24, 8)
    monkeypatch.setattr(claim, "demo", lambda length: (model, tokenizer, ids))
    monkeypatch.setitem(claim.SIZES, "small", {"rows": 2, "length": 8})


def test_the_experiment_at_a_tiny_size(small) -> None:
    verdict = claim.run(0, Budget("small", seeds=2))
    assert set(verdict.measured) == {e.number for e in claim.EXPECTED}
    assert all(np.isfinite(m["value"]) for m in verdict.measured.values())
    # Here the model itself is untrained: text as written is no better to it than any other.
    assert verdict.holds is not True
    assert verdict.measured["nuclear_kept"]["met"] is not True
    assert verdict.figure is not None
    assert verdict.figure.startswith("<svg")


def made(nuclear: float, rank: float, loss: float = 1.0) -> Gradients:
    shape = (4, 3)
    norm = np.full(shape, nuclear)
    return Gradients(norm, norm / loss, np.full(shape, rank), np.zeros(4))


def test_the_judging_on_made_numbers() -> None:
    def trials(bad: Gradients, bare: Gradients) -> list[dict[str, float]]:
        good = made(1.0, 8.0)
        found = claim.changes(
            {"as written": good} | dict.fromkeys(claim.KINDS.values(), bad),
            {"as written": good} | dict.fromkeys(claim.KINDS.values(), bare),
        )
        rest = {e.number: 1.0 for e in claim.EXPECTED if e.number not in found}
        return [found | rest, {name: 1.001 * x for name, x in (found | rest).items()}]

    def word(bad: Gradients, bare: Gradients) -> str:
        return judge("it is so", trials(bad, bare), claim.EXPECTED, conditions={}).word

    near = made(1.01, 8.05)
    assert word(made(2.0, 4.0), near) == "holds"
    assert word(made(2.0, 9.0), near) == "fails"
    assert word(made(0.5, 4.0), near) == "fails"
    assert word(made(2.0, 4.0), made(1.5, 8.05)) == "inconclusive", "the untrained copy changes half as much"
    (numbers, _) = trials(made(2.0, 4.0, loss=4.0), near)
    assert numbers["nuclear_lines"] == pytest.approx(np.log(2))
    assert numbers["rank_lines"] == pytest.approx(-np.log(2))
    assert numbers["per_loss_lines"] == pytest.approx(-np.log(2))
    assert numbers["nuclear_kept"] == pytest.approx(np.log(2) - 2 * np.log(1.01))


def test_each_kind_changes_what_it_says() -> None:
    ids = torch.arange(2 * 40).view(2, 40)
    breaks = torch.arange(80) % 10 == 3
    bad = claim.corrupted(ids, breaks, torch.Generator().manual_seed(0))
    tokens, replaced, lines = (bad[kind] for kind in claim.KINDS.values())
    for changed in bad.values():
        assert changed.shape == ids.shape
        assert not torch.equal(changed, ids)
    assert torch.equal(tokens.view(2, 5, claim.STRETCH).sort(-1).values, ids.view(2, 5, claim.STRETCH))
    assert ((replaced != ids).sum(1) <= round(claim.SHARE * 40)).all()
    assert (replaced != ids).sum() > 0.8 * 2 * claim.SHARE * 40
    assert torch.equal(lines.sort(1).values, ids)
    inner = (lines[:, 1:] != lines[:, :-1] + 1) & ~breaks[lines[:, 1:]]
    assert inner.sum() <= 2, "but for the piece before the first line, only whole lines move"


def test_corruption_is_by_seed() -> None:
    ids, breaks = torch.arange(80).view(2, 40), torch.arange(80) % 10 == 3
    one, again, other = (claim.corrupted(ids, breaks, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    for kind in claim.KINDS.values():
        assert torch.equal(one[kind], again[kind])
        assert not torch.equal(one[kind], other[kind])
