"""Maps between all pairs of layers, against a plain ridge regression for every pair and every penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from sklearn.linear_model import Ridge as PlainRidge
from torch import Tensor

from layerwright.maths.maps import gram_squares, held_out_squares, map_errors, moment_squares
from layerwright.maths.ridge import PENALTIES, Split, split_sequences

FORMS = [moment_squares, gram_squares]
SEQUENCES = torch.arange(10).repeat_interleave(6)
WIDTHS = {"narrow": ((4, 7), (5, 3, 6)), "wide": ((90, 50), (70, 80)), "mixed": ((4, 90), (70, 3))}


def layers(widths: Sequence[int], seed: int) -> list[Tensor]:
    """Features that share a few directions, with offsets, noise, and a spread of sizes."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(len(SEQUENCES), 3, generator=torch.Generator().manual_seed(99))
    made = []
    for width in widths:
        x = shared @ torch.randn(3, width, generator=generator) + torch.randn(width, generator=generator)
        x += 0.3 * torch.randn(len(SEQUENCES), width, generator=generator)
        made.append(x * torch.logspace(0, -2, width))
    return made


def naive(x: Tensor, y: Tensor, split: Split, penalty: float) -> list[float]:
    """Squared errors of one fit on both held-out parts."""
    train = x[split.train].double()
    mean_square = (train - train.mean(0)).square().sum() / min(train.shape)
    fit = PlainRidge(float(penalty * mean_square), solver="svd").fit(train.numpy(), y[split.train].double().numpy())
    return [
        float((torch.tensor(fit.predict(a.double().numpy())) - b.double()).square().sum())
        for a, b in zip(split.divide(x)[1:], split.divide(y)[1:])
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WIDTHS)
def test_every_pair_and_penalty_is_a_fit_of_its_own(form: Callable[..., Tensor], kind: str) -> None:
    sources, targets = (layers(w, k) for k, w in enumerate(WIDTHS[kind]))
    split = split_sequences(SEQUENCES)
    expected = [[[naive(x, y, split, p) for p in PENALTIES] for y in targets] for x in sources]
    found = form(sources, targets, split, PENALTIES)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_error_is_that_of_penalties_chosen_on_the_other_part(kind: str) -> None:
    sources, targets = (layers(w, k) for k, w in enumerate(WIDTHS[kind]))
    split = split_sequences(SEQUENCES, seed=3)
    found = map_errors(sources, targets, split)
    for s, x in enumerate(sources):
        for t, y in enumerate(targets):
            squares = torch.tensor([naive(x, y, split, p) for p in PENALTIES], dtype=torch.float64)
            error = squares[squares[:, 1].argmin(), 0] + squares[squares[:, 0].argmin(), 1]
            held, mean = y[split.held].double(), y[split.train].double().mean(0)
            assert found.relative[s, t] == pytest.approx(float(error.sqrt() / (held - mean).norm()), rel=1e-7)
            assert found.over_norm[s, t] == pytest.approx(float(error.sqrt() / held.norm()), rel=1e-7)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)).double()).Q


@pytest.mark.parametrize("kind", WIDTHS)
def test_rotations_scales_and_shifts_change_nothing(kind: str) -> None:
    sources, targets = ([x.double() for x in layers(w, k)] for k, w in enumerate(WIDTHS[kind]))
    split = split_sequences(SEQUENCES)
    moved = [[3.0 * x @ rotation(x.shape[1]) - 5.0 for x in side] for side in (sources, targets)]
    torch.testing.assert_close(map_errors(*moved, split).relative, map_errors(sources, targets, split).relative)


def test_the_order_of_samples_and_layers_changes_nothing() -> None:
    sources, targets = layers((4, 7, 5), 0), layers((5, 3), 1)
    split = split_sequences(SEQUENCES)
    expected = map_errors(sources, targets, split).relative
    order = torch.randperm(len(SEQUENCES), generator=torch.Generator().manual_seed(0))
    shuffled = map_errors([x[order] for x in sources], [y[order] for y in targets], split_sequences(SEQUENCES[order]))
    torch.testing.assert_close(shuffled.relative, expected)
    torch.testing.assert_close(map_errors(sources[::-1], targets[::-1], split).relative, expected.flip(0, 1))


@pytest.mark.parametrize("width", [8, 90])
def test_a_layer_knows_itself(width: int) -> None:
    x = layers((width,), 0)[0]
    errors = map_errors([x], [2 * x + 1], split_sequences(SEQUENCES))
    # ‖λ (XᵀX + λ)⁻¹ X‖ ≤ √(smallest penalty) / 2, held out about the same; a wide layer has directions not seen.
    assert errors.relative.item() < (3e-4 if width == 8 else 0.6)


def test_unrelated_layers_are_no_better_than_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 5, generator=generator), torch.randn(600, 5, generator=generator)
    errors = map_errors([x], [y], split_sequences(torch.arange(600) // 6))
    assert errors.relative.item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_does_not_vary_predicts_the_mean(form: Callable[..., Tensor]) -> None:
    x, y = torch.full((60, 4), 1 / 3), layers((5,), 0)[0]
    split = split_sequences(SEQUENCES)
    mean = y[split.train].double().mean(0)
    expected = torch.stack([(part - mean).square().sum() for part in split.divide(y.double())[1:]])
    torch.testing.assert_close(form([x], [y], split, PENALTIES)[0, 0], expected.expand(len(PENALTIES), 2))
    assert map_errors([x], [y], split).relative.item() == pytest.approx(1.0)


def test_a_target_that_does_not_vary_has_no_error_relative_to_its_spread() -> None:
    x, y = layers((4,), 0)[0], torch.full((60, 3), 1 / 3)
    errors = map_errors([x], [y, 0 * y], split_sequences(SEQUENCES))
    assert errors.relative.isnan().all()
    assert errors.over_norm[0, 0] == 0
    assert errors.over_norm[0, 1].isnan()


@pytest.mark.parametrize("width", [4, 90])
def test_what_is_not_finite_is_nan_in_its_own_pairs_only(width: int) -> None:
    sources = layers((width, width), 0)
    split = split_sequences(SEQUENCES)
    expected = held_out_squares(sources, sources, split)
    broken = [sources[0], sources[1].index_put((torch.tensor(7), torch.tensor(2)), torch.tensor(torch.inf))]
    found = held_out_squares(broken, broken, split)
    torch.testing.assert_close(found[0, 0], expected[0, 0])
    assert found[1].isnan().all()
    assert found[0, 1].isnan().all()
    assert map_errors(broken, broken, split).over_norm.isnan().tolist() == [[False, True], [True, True]]


def test_one_sample_on_each_side_is_defined() -> None:
    x, y = layers((4,), 0)[0][:3], layers((5,), 1)[0][:3]
    errors = map_errors([x], [y], split_sequences(torch.arange(3)))
    assert errors.relative.item() == pytest.approx(1.0)  # nothing can be fitted to one sample: its mean
