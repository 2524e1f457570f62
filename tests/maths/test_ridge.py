"""One decomposition for every penalty, against a fit for each; splits that keep sequences whole."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge as PlainRidge
from torch import Tensor

from layerwright.maths.ridge import PENALTIES, centred, choose_penalties, ridge, split_sequences


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("width", [3, 20, 50])
def test_every_penalty_is_a_fit_of_its_own(width: int) -> None:
    x, y, held = normal(20, width), normal(20, 4, seed=1), normal(7, width, seed=2)
    every = torch.arange(20)
    moved = centred(x, every)
    found = ridge(moved, held - x.mean(0)).predict(centred(y, every)) + y.mean(0)
    scale = float(moved.square().sum()) / min(20, width)
    for penalty, predicted in zip(PENALTIES, found):
        plain = PlainRidge(penalty * scale, solver="svd").fit(x.numpy(), y.numpy())
        torch.testing.assert_close(predicted, torch.tensor(plain.predict(held.numpy())), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("width", [3, 50])
def test_no_penalty_is_least_squares(width: int) -> None:
    x, y, held = normal(20, width), normal(20, 4, seed=1), normal(7, width, seed=2)
    expected = held @ torch.linalg.pinv(x) @ y
    torch.testing.assert_close(ridge(x, held, [0.0]).predict(y)[0], expected, rtol=1e-8, atol=1e-8)


def test_the_hat_gives_the_predictions() -> None:
    x, y, held = normal(9, 5), normal(9, 2, seed=1), normal(6, 5, seed=2)
    fit = ridge(x, held)
    for k, predicted in enumerate(fit.predict(y)):
        torch.testing.assert_close(fit.hat(k, slice(2, 5)) @ y, predicted[2:5])


def test_inputs_of_zeros_predict_the_mean() -> None:
    assert (ridge(torch.zeros(4, 3).double(), torch.zeros(2, 3).double(), [0.0, 1.0]).predict(normal(4, 2)) == 0).all()


def test_features_that_do_not_vary_or_are_not_finite_carry_nothing() -> None:
    every = torch.arange(30)
    constant = torch.full((30, 4), 1e3 / 3) + 1e-5 * normal(30, 4).float()
    assert (centred(constant, every) == 0).all()
    assert (centred(normal(30, 4).masked_fill(every[:, None] == 3, torch.nan), every) == 0).all()
    assert (centred(1e3 + normal(30, 4), every) != 0).all()


@pytest.mark.parametrize("count", [3, 4, 5, 17])
def test_a_sequence_stands_on_one_side_only(count: int) -> None:
    sequences = torch.arange(count).repeat(4)
    split = split_sequences(sequences, seed=count)
    sides = [set(part.tolist()) for part in split.divide(sequences)]
    assert set.union(*sides) == set(range(count))
    assert sum(len(side) for side in sides) == count
    assert min(len(side) for side in sides) >= 1
    assert len(sides[0]) >= count / 3
    assert sorted(torch.cat(split.divide(torch.arange(len(sequences)))).tolist()) == list(range(len(sequences)))
    assert torch.equal(split.held[split.halves[1]], split.divide(torch.arange(len(sequences)))[2])


def test_two_sequences_are_too_few() -> None:
    with pytest.raises(ValueError, match="got 2 sequences"):
        split_sequences(torch.tensor([0, 1, 1, 0]))


def test_each_part_has_its_penalty_chosen_on_the_other() -> None:
    squares = normal(5, 6, 2).square()
    for row, chosen in zip(squares, choose_penalties(squares)):
        assert chosen.tolist() == [row[:, 1].argmin(), row[:, 0].argmin()]
