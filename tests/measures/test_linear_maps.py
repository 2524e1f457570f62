from __future__ import annotations

import pytest
import torch
from naive import stream
from sklearn.linear_model import Ridge
from torch import Tensor
from zoo import gpt2, llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.maths.ridge import PENALTIES, split_sequences
from layerwright.measures.linear_maps import linear_maps

IDS = token_ids(10, 8)


def test_hand_values() -> None:
    """Two sequences of one token are fitted on; two are held out, at the same distance from the mean."""
    sequences = torch.arange(4)
    split = split_sequences(sequences)
    x = torch.zeros(1, 4, 1)
    x[0, split.train, 0] = torch.tensor([-1.0, 1.0])
    x[0, split.held, 0] = torch.tensor([-3.0, 3.0])
    y = 2 * x + 10
    y[0, split.held, 0] += torch.tensor([-1.0, 1.0])  # the slope says ∓6, the answer is ∓7
    found = linear_maps(x, y, sequences, sequences)
    assert found[0, 0, "relative_error"] == pytest.approx(1 / 7, rel=1e-5)
    assert found[0, 0, "error_over_norm"] == pytest.approx((2 / (3**2 + 17**2)) ** 0.5, rel=1e-5)


def naive_error(x: Tensor, y: Tensor, sequences: Tensor) -> float:
    """A fit for every penalty, each held-out part by the best of the other."""
    split = split_sequences(sequences)
    train, *held = (part.double() for part in split.divide(x))
    goal, *answers = (part.double() for part in split.divide(y))
    scale = float((train - train.mean(0)).square().sum() / min(train.shape))
    fits = [Ridge(p * scale, solver="svd").fit(train.numpy(), goal.numpy()) for p in PENALTIES]
    errors = [
        [float((torch.tensor(fit.predict(a.numpy())) - b).square().sum()) for fit in fits]
        for a, b in zip(held, answers)
    ]
    chosen = errors[0][errors[1].index(min(errors[1]))] + errors[1][errors[0].index(min(errors[0]))]
    return (chosen / float((torch.cat(answers) - goal.mean(0)).square().sum())) ** 0.5


def test_every_pair_of_points_of_two_models_by_a_fit_of_its_own() -> None:
    one, other = llama(), gpt2(num_hidden_layers=2, hidden_size=24)
    frame = lw.survey(one, {"input_ids": IDS}, only=["linear_maps"], against=other)["linear_maps"]
    (xs, *_), (ys, *_) = (stream(model, IDS) for model in (one, other))
    sequences = torch.arange(10).repeat_interleave(8)
    values = frame.set_index(["point", "other_point", "quantity"])["value"]
    assert len(values) == 2 * len(xs) * len(ys) == 2 * 4 * 3
    for s, x in enumerate(xs):
        for t, y in enumerate(ys):
            expected = naive_error(x.flatten(0, 1), y.flatten(0, 1), sequences)
            assert values[s, t, "relative_error"] == pytest.approx(expected, rel=1e-3), (s, t)


def test_every_point_is_a_map_of_itself() -> None:
    model = llama()
    frame = lw.survey(model, {"input_ids": IDS}, only=["linear_maps"])["linear_maps"]
    same = frame[(frame.point == frame.other_point) & (frame.quantity == "relative_error")]
    assert len(same) == 4
    assert same["value"].max() < 1e-3
    assert frame["value"].max() > 0.05


def test_the_nearer_the_points_the_better_the_map() -> None:
    """Each state is the one before and as much noise: errors grow with the distance in both directions."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 2000, 6, generator=generator).cumsum(0)
    sequences = torch.arange(2000) // 10
    found = linear_maps(states, states, sequences, sequences)
    errors = torch.tensor([[found[s, t, "relative_error"] for t in range(5)] for s in range(5)])
    for k in range(5):
        assert errors[k, k:].diff().gt(0).all()
        assert errors[k, : k + 1].diff().lt(0).all()
    # From state s with variance s + 1 the map to state t misses t − s of t + 1.
    for s in range(5):
        for t in range(s, 5):
            assert errors[s, t] == pytest.approx(((t - s) / (t + 1)) ** 0.5, abs=0.03)


def test_other_tokens_cannot_be_mapped() -> None:
    x = torch.randn(1, 6, 2)
    with pytest.raises(UserError, match="6 tokens of this model and 5 of the other"):
        linear_maps(x, x[:, :5], torch.arange(6), torch.arange(5))
    survey = lw.survey(llama(), {"input_ids": IDS}, only=["linear_maps"], against_data={"input_ids": token_ids(9, 8)})
    assert "linear_maps" not in survey.tables
    assert any("expected the same data" in note for note in survey.notes)


def test_two_sequences_are_too_few() -> None:
    x = torch.randn(1, 6, 2)
    with pytest.raises(UserError, match="got 2 sequences"):
        linear_maps(x, x, torch.arange(6) // 3, torch.arange(6) // 3)


def test_states_that_do_not_vary_are_no_better_than_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([torch.ones(40, 3), torch.randn(40, 3, generator=generator)])
    found = linear_maps(states, states, torch.arange(40), torch.arange(40))
    assert found[0, 1, "relative_error"] == pytest.approx(1.0)
    assert torch.tensor(found[0, 0, "relative_error"]).isnan()
    assert found[0, 0, "error_over_norm"] == 0
