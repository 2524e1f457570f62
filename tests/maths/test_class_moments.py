"""Moments by class, against all features at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerwright.maths.class_moments import Classes, ClassMoments


def samples(count: int = 1300, width: int = 5, classes: int = 9, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return torch.randn(count, width, generator=generator).double() * (1 + labels[:, None]) + offset, labels


def at_once(x: Tensor, labels: Tensor) -> Classes:
    """By loops, from the features themselves."""
    present = labels[labels >= 0].unique()
    groups = [x[labels == c].double() for c in present]
    means = torch.stack([g.mean(0) for g in groups])
    scatter = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups)
    variances = torch.stack([(g - g.mean(0)).square().sum(1).mean() for g in groups])
    counts = torch.tensor([len(g) for g in groups])
    return Classes(present, counts, means, variances, scatter / counts.sum())


def in_order(found: Classes) -> Classes:
    order = found.labels.argsort()
    return Classes(*(x[order] for x in found[:4]), found.covariance)


def assert_same(found: Classes, expected: Classes, rtol: float = 1e-10) -> None:
    for a, b in zip(in_order(found), in_order(expected)):
        if a is None or b is None:
            assert a is b
            continue
        scale = float(b.abs().max()) if b.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale)


def test_hand_values() -> None:
    moments = ClassMoments(3, 2)
    moments.add(torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]]), torch.tensor([2, 2, 0]))
    found = in_order(moments.result())
    assert found.labels.tolist() == [0, 2]
    assert found.counts.tolist() == [1, 2]
    assert found.means.tolist() == [[5.0, 1.0], [1.0, 0.0]]
    assert found.variances.tolist() == [0.0, 1.0]  # a class of one sample has no spread
    assert found.covariance is not None
    assert found.covariance.tolist() == [[2 / 3, 0.0], [0.0, 0.0]]
    assert found.within == pytest.approx(2 / 3)


@pytest.mark.parametrize("size", [1300, 100, 7, 1])
def test_however_the_samples_are_divided(size: int) -> None:
    x, labels = samples()
    moments = ClassMoments(9, 5)
    for a, b in zip(x.split(size), labels.split(size)):
        moments.add(a, b)
    assert_same(moments.result(), at_once(x, labels))


def test_in_any_order() -> None:
    x, labels = samples()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    moments = ClassMoments(9, 5)
    moments.add(x[order], labels[order])
    assert_same(moments.result(), at_once(x, labels))


@pytest.mark.parametrize("cut", [0, 3, 650, 1300])
def test_two_streams_merge_into_one(cut: int) -> None:
    x, labels = samples()
    one, two = ClassMoments(9, 5), ClassMoments(9, 5)
    one.add(x[:cut], labels[:cut])
    two.add(x[cut:], labels[cut:])
    one.merge(two)
    assert_same(one.result(), at_once(x, labels))


def test_a_large_common_offset_costs_no_digits() -> None:
    x, labels = samples(offset=1e6)
    one, two = ClassMoments(9, 5), ClassMoments(9, 5)
    for k, (a, b) in enumerate(zip(x.split(100), labels.split(100))):
        (one, two)[k % 2].add(a, b)
    one.merge(two)
    found, expected = one.result(), at_once(x - 1e6, labels)
    torch.testing.assert_close(in_order(found).variances, expected.variances, rtol=1e-8, atol=0.0)
    assert found.covariance is not None
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-8, atol=1e-8)


def test_features_that_have_collapsed_have_no_spread_at_all() -> None:
    means, labels = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)) + 1e3, samples()[1]
    moments = ClassMoments(9, 5)
    for part in labels.split(31):
        moments.add(means[part], part)
    found = in_order(moments.result())
    assert (found.variances == 0).all()
    assert found.covariance is not None
    assert (found.covariance == 0).all()
    assert torch.equal(found.means, means.double())


def test_empty_classes_take_no_part_and_labels_may_be_sparse() -> None:
    x, labels = samples()
    moments = ClassMoments(10**6, 5)
    moments.add(x, labels * 100_003)
    found = moments.result()
    assert moments.seen == len(found.means) == 9
    assert_same(found._replace(labels=found.labels // 100_003), at_once(x, labels))
    assert torch.equal(moments.rows(found.labels), torch.arange(9))
    assert moments.rows(torch.tensor([5])).tolist() == [-1]


def test_negative_labels_do_not_count() -> None:
    x, labels = samples()
    labels = labels.masked_fill(labels == 4, -100)
    x[labels < 0] = torch.nan
    moments = ClassMoments(9, 5)
    moments.add(x, labels)
    assert_same(moments.result(), at_once(x, labels))
    moments.add(x[labels < 0], labels[labels < 0])
    assert_same(moments.result(), at_once(x, labels))


def test_the_trace_is_known_without_the_covariance() -> None:
    x, labels = samples()
    moments = ClassMoments(9, 5, covariance=False)
    moments.add(x, labels)
    expected = at_once(x, labels)
    assert_same(moments.result(), expected._replace(covariance=None))
    assert expected.covariance is not None
    assert moments.result().within == pytest.approx(float(expected.covariance.trace()))


def test_means_can_be_kept_in_a_file(tmp_path: Path) -> None:
    x, labels = samples()
    kept = torch.from_file(str(tmp_path / "means"), shared=True, size=9 * 5, dtype=torch.float64).view(9, 5)
    moments = ClassMoments(10**6, 5, means=kept)
    moments.add(x, labels + 1000)
    found = moments.result()
    assert_same(found._replace(labels=found.labels - 1000), at_once(x, labels))
    again = torch.from_file(str(tmp_path / "means"), size=9 * 5, dtype=torch.float64).view(9, 5)
    assert torch.equal(again, found.means)


def test_more_classes_than_there_is_room_for() -> None:
    moments = ClassMoments(100, 5, means=torch.zeros(3, 5).double())
    with pytest.raises(ValueError, match="got 9 classes; there is room for 3"):
        moments.add(*samples())


@pytest.mark.parametrize(
    "x, labels, says",
    [
        (torch.zeros(4, 5), torch.zeros(3).long(), r"features \[4, 5\] and labels \[3\]"),
        (torch.zeros(4, 6), torch.zeros(4).long(), r"expected \[samples, 5\]"),
        (torch.zeros(2, 5), torch.tensor([0, 9]), "got label 9; expected less than 9"),
        (torch.tensor([[0.0] * 5, [torch.nan] * 5]), torch.tensor([1, 7]), "1 of 2 .* sample 1 of class 7"),
        (torch.tensor([[torch.inf] * 5, [0.0] * 5]), torch.tensor([3, 7]), "first sample 0 of class 3"),
    ],
)
def test_what_cannot_be_added(x: Tensor, labels: Tensor, says: str) -> None:
    moments = ClassMoments(9, 5)
    with pytest.raises(ValueError, match=says):
        moments.add(x, labels)
    with pytest.raises(ValueError, match="no sample"):
        moments.result()


def test_moments_that_do_not_fit_each_other() -> None:
    with pytest.raises(ValueError, match="widths 5 and 4"):
        ClassMoments(9, 5).merge(ClassMoments(9, 4))
    with pytest.raises(ValueError, match="both with Σ_W"):
        ClassMoments(9, 5).merge(ClassMoments(9, 5, covariance=False))
    with pytest.raises(ValueError, match=r"expected \[rows, 5\] of torch.float64"):
        ClassMoments(9, 5, means=torch.zeros(9, 5))
