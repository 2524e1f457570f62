"""Mutual information by bins and by a kernel, against closed forms and sums over samples."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from layerwright.maths import information as module
from layerwright.maths.information import Information, binned_information, entropy, kernel_information


def bits(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts)


def samples(count: int = 60, width: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return torch.randn(count, width, generator=generator) + 0.5 * labels[:, None], labels


def both(states: Tensor, labels: Tensor) -> dict[str, Information]:
    """States whose distances are 0 or large beside both resolutions."""
    return {"binned": binned_information(states, labels), "kernel": kernel_information(states, labels, 1e-6)}


def test_entropy() -> None:
    assert entropy(torch.tensor([5])) == 0
    assert entropy(torch.tensor([1] * 8)) == pytest.approx(3)
    assert entropy(torch.tensor([3, 0, 1])) == pytest.approx(bits([3, 1]))


def test_states_that_are_all_the_same_say_nothing() -> None:
    for found in both(torch.full((8, 3), 2.5), torch.arange(8) % 2).values():
        assert found == (0.0, 0.0, 0.0)


def test_states_that_are_the_input_say_all() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    for found in both(torch.arange(8.0)[:, None], labels).values():
        assert found.input == pytest.approx(math.log2(8))  # the ceiling
        assert found.label == pytest.approx(bits([3, 2, 3]))  # its ceiling
        assert found.distinct == 1


def test_states_that_are_the_label() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    for found in both(labels[:, None].float(), labels).values():
        assert found.input == found.label == pytest.approx(bits([3, 2, 3]))
        assert found.distinct == 0


def test_states_that_have_nothing_to_do_with_the_label() -> None:
    for found in both((torch.arange(16.0) // 4)[:, None], torch.arange(16) % 4).values():
        assert found.input == pytest.approx(2)
        assert found.label == pytest.approx(0, abs=1e-12)


def test_bins_by_counting() -> None:
    states, labels = samples()
    low, high = float(states.min()), float(states.max())
    rows = [tuple(min(5, int((float(v) - low) / (high - low) * 6)) for v in row) for row in states]
    joint = Counter(zip(rows, labels.tolist()))
    counts = Counter(rows)
    found = binned_information(states, labels, bins=6)
    conditional = sum(
        n / 60 * bits([c for (_, y), c in joint.items() if y == label]) for label, n in Counter(labels.tolist()).items()
    )
    assert 0 < found.distinct < 1
    assert found.distinct == sum(c == 1 for c in counts.values()) / 60
    assert found.input == pytest.approx(bits([*counts.values()]))
    assert found.label == pytest.approx(found.input - conditional)


def test_bins_of_a_known_range() -> None:
    states, labels = torch.tensor([[-0.95], [-0.85], [0.0], [7.0], [0.99]]), torch.tensor([0, 0, 1, 1, 2])
    found = binned_information(states, labels, bins=10, span=(-1.0, 1.0))
    assert found.input == pytest.approx(bits([2, 1, 2]))  # 7 is in the last bin
    assert binned_information(states, labels, bins=2).input == pytest.approx(bits([4, 1]))


@pytest.mark.parametrize("rows", [512, 7])
def test_kernel_by_sums_over_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    states, labels = samples()

    def bound(x: Tensor) -> float:
        near = [[math.exp(-float((a - b).square().sum()) / (2 * 0.3)) for b in x] for a in x]
        return -sum(math.log2(sum(row) / len(x)) for row in near) / len(x)

    found = kernel_information(states, labels, 0.3)
    of_labels = sum(float((labels == y).float().mean()) * bound(states[labels == y]) for y in range(4))
    assert found.input == pytest.approx(bound(states), rel=1e-5)
    assert found.label == pytest.approx(bound(states) - of_labels, rel=1e-4)
    assert 0 < found.label < found.input < math.log2(60)


def test_the_kernel_bound_lies_above_the_truth() -> None:
    """Two states at distance 2 with noise of variance 1: the input is one bit, the channel keeps 0.486 of it."""
    grid = torch.linspace(-12, 12, 20001).double()
    density = sum(torch.exp(-((grid - c) ** 2) / 2) / math.sqrt(2 * math.pi) for c in (-1, 1)) / 2
    truth = float(-torch.trapezoid(torch.special.xlogy(density, density), grid)) / math.log(2)
    truth -= 0.5 * math.log2(2 * math.pi * math.e)
    found = kernel_information(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 1.0)
    assert truth == pytest.approx(0.486, abs=1e-3)
    assert truth < found.input == pytest.approx(1 - math.log2(1 + math.exp(-2)))


def test_no_estimate_is_above_its_ceiling() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        states, labels = torch.randn(30, 2, generator=generator), torch.randint(0, 5, (30,), generator=generator)
        ceiling = entropy(labels.bincount())
        for found in (
            binned_information(states, labels, 4),
            kernel_information(states, labels, 10.0 ** (seed % 5 - 3)),
        ):
            assert 0 <= found.input <= math.log2(30) + 1e-9
            assert 0 <= found.label <= ceiling + 1e-9


def test_shift_scale_and_order_change_nothing() -> None:
    states, labels = samples()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert binned_information(4 * states[order] + 8, labels[order] + 3, 6) == pytest.approx(
        binned_information(states, labels, 6)
    )
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    assert kernel_information(5 * states[order] @ turn - 9, labels[order], 25 * 0.3) == pytest.approx(
        kernel_information(states, labels, 0.3), rel=1e-4
    )


def test_noise_must_have_a_variance() -> None:
    with pytest.raises(ValueError, match="got a variance of 0"):
        kernel_information(*samples(), 0.0)
