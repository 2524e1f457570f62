"""Neural collapse, against the definitions by loops over classes and pairs."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layerwright.maths import collapse as module
from layerwright.maths.class_moments import Classes, ClassMoments
from layerwright.maths.collapse import UNITS, Alike, between, collapse, pairs, variability
from layerwright.maths.duality import Agreement, duality

SHAPES = [(4, 9), (9, 4), (7, 7), (2, 3), (3, 1)]  # classes, width


def simplex(classes: int, width: int) -> Tensor:
    """The corners of a simplex whose centre is far from the origin."""
    corners = torch.eye(classes).double() - 1 / classes
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())[0]
    return 3 * torch.nn.functional.pad(corners, (0, width - classes)) @ turn + 5.0


def samples(classes: int, width: int, each: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes * width)
    labels = torch.randint(0, classes, (classes * each,), generator=generator)
    labels[: 2 * classes] = torch.arange(classes).repeat(2)
    means = torch.randn(classes, width, generator=generator).double()
    return means[labels] + 0.3 * torch.randn(len(labels), width, generator=generator), labels


def moments(x: Tensor, labels: Tensor) -> Classes:
    found = ClassMoments(int(labels.max()) + 1, x.shape[1])
    found.add(x, labels)
    return found.result()


def numbers(x: Tensor, labels: Tensor) -> dict[str, float]:
    classes = moments(x, labels)
    return collapse(classes, between(classes.means))


def by_definition(x: Tensor, labels: Tensor) -> dict[str, float]:
    """Everything of classes × classes, in loops."""
    present = labels.unique().tolist()
    count = len(present)
    mu = torch.stack([x[labels == c].mean(0) for c in present])
    sigma = [float((x[labels == c] - x[labels == c].mean(0)).square().sum(1).mean()) for c in present]
    m = mu - mu.mean(0)
    within = sum(torch.outer(v - mu[present.index(c)], v - mu[present.index(c)]) for v, c in zip(x, labels.tolist()))
    within = within / len(x)
    over = sum(torch.outer(v, v) for v in m) / count
    pair = list(combinations(range(count), 2))
    cosines = torch.stack([torch.cosine_similarity(m[a], m[b], dim=0) for a, b in pair])
    u = torch.nn.functional.normalize(m, dim=1)
    logs = torch.stack([(1 / (u[a] - u[b]).norm().clamp_min(1e-6)).log() for a, b in pair])
    gram = m @ m.T
    ideal = (torch.eye(count).double() - 1 / count) / math.sqrt(count - 1)
    values, vectors = torch.linalg.eigh(over)
    top = vectors[:, -min(count - 1, len(values)) :]
    inverse = top @ torch.diag(1 / values[-top.shape[1] :]) @ top.T
    pseudo = torch.trace(within @ torch.linalg.pinv(over, rtol=1e-10)) / count
    truncated = torch.trace(within @ inverse) / count
    torch.testing.assert_close(pseudo, truncated)
    return {
        "nc1": float(truncated),
        "variance_ratio": float(within.trace() / over.trace()),
        "cdnv": sum((sigma[a] + sigma[b]) / (2 * float((mu[a] - mu[b]).norm() ** 2)) for a, b in pair) / len(pair),
        "equinorm": float(m.norm(dim=1).std(correction=0) / m.norm(dim=1).mean()),
        "equiangularity": float(cosines.std(correction=0)),
        "etf_error": float((gram / gram.norm() - ideal).norm()),
        "uniformity": float(logs.var(correction=0)),
        "coinciding": 0.0,
        "cosine": float(cosines.mean()),
        "classes": float(count),
        "samples": float(len(x)),
    }


@pytest.mark.parametrize("tile", [512, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_by_definition(shape: tuple[int, int], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    x, labels = samples(*shape)
    assert numbers(x, labels) == pytest.approx(by_definition(x, labels), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("shape", [(4, 9), (7, 7), (2, 3)])
def test_a_collapsed_simplex_is_zero(shape: tuple[int, int]) -> None:
    labels = samples(*shape)[1]
    found = numbers(simplex(*shape)[labels], labels)
    assert list(found) == list(UNITS)
    assert found.pop("cosine") == pytest.approx(-1 / (shape[0] - 1))
    assert (found.pop("classes"), found.pop("samples")) == (shape[0], len(labels))
    assert found["nc1"] == found["variance_ratio"] == found["cdnv"] == 0
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)


def test_the_distance_of_classes_counts_with_its_square_only() -> None:
    """In the published analysis of language models CDNV is divided by the fourth power of the distance."""
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 3.0], [4.0, -3.0]]).double()
    found = numbers(x, torch.tensor([0, 0, 1, 1]))["cdnv"]
    assert found == pytest.approx((1 + 9) / (2 * 4**2))
    assert found != pytest.approx((1 + 9) / (2 * 4**4), rel=0.5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_rotation_scale_and_shift_change_nothing(shape: tuple[int, int]) -> None:
    x, labels = samples(*shape)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=torch.Generator().manual_seed(1)).double())[0]
    assert numbers(100 * x @ turn + 7, labels) == pytest.approx(numbers(x, labels), rel=1e-8, abs=1e-10)


def test_names_and_order_of_classes_change_nothing() -> None:
    x, labels = samples(9, 4)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert numbers(x[order], 1000 - 7 * labels[order]) == pytest.approx(numbers(x, labels), rel=1e-10)


def test_a_direction_that_float32_leaves_by_rounding_does_not_count() -> None:
    x, labels = samples(9, 5)
    expected = numbers(x, labels)["nc1"]
    generator = torch.Generator().manual_seed(0)
    flat = torch.cat([x, 1e-8 * torch.randn(len(x), 1, generator=generator).double()], 1)
    assert numbers(flat, labels)["nc1"] == pytest.approx(expected, rel=1e-6)


def test_classes_with_the_same_mean_are_left_out_and_counted() -> None:
    x, labels = samples(4, 9)
    twice = torch.cat([x, x[labels == 2]]), torch.cat([labels, torch.full_like(labels[labels == 2], 4)])
    found = numbers(*twice)
    assert found["coinciding"] == pytest.approx(1 / 10)
    one = moments(x, labels)
    apart = [  # pairs with class 2 count twice
        (float((one.variances[a] + one.variances[b]) / (2 * (one.means[a] - one.means[b]).square().sum())), n)
        for a, b in combinations(range(4), 2)
        for n in [1 + int(2 in one.labels[[a, b]].tolist())]
    ]
    assert found["cdnv"] == pytest.approx(sum(v * n for v, n in apart) / 9)
    assert all(math.isfinite(value) for value in found.values())


def test_a_class_at_the_centre_has_no_direction() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]).double()
    found = numbers(x, torch.arange(3))
    assert found["cosine"] == pytest.approx(-1 / 3)  # -1, 0, 0
    assert all(math.isfinite(value) for value in found.values())


def test_constant_features_and_one_class() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(Alike):
        numbers(torch.full((4, 3), 7.0), labels)
    with pytest.raises(Alike):
        numbers(torch.zeros(4, 3), labels)
    with pytest.raises(ValueError, match="got 1 class; expected two or more"):
        numbers(torch.randn(4, 3), torch.zeros(4).long())


def test_without_a_covariance_nc1_is_left_out() -> None:
    x, labels = samples(9, 4)
    found = ClassMoments(9, 4, covariance=False)
    found.add(x, labels)
    classes = found.result()
    expected = numbers(x, labels)
    del expected["nc1"]
    assert collapse(classes, between(classes.means)) == pytest.approx(expected)


def test_more_classes_than_width_on_the_side_of_the_width() -> None:
    x, labels = samples(40, 3)
    classes = moments(x, labels)
    spread = between(classes.means)
    assert spread.directions.shape == (3, 3)
    assert classes.covariance is not None
    inverse = torch.linalg.pinv(torch.cov(classes.means.T, correction=0))
    expected = float(torch.trace(classes.covariance @ inverse)) / 40
    assert variability(classes.covariance, spread) == pytest.approx(expected)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("width", [8, 96])
def test_nothing_is_made_of_classes_by_classes_or_by_samples(width: int) -> None:
    count = 1500
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(4000, width, generator=generator), torch.arange(4000) % count
    with Largest() as seen:
        found = ClassMoments(count, width)
        found.add(x, labels)
        classes = found.result()
        spread = between(classes.means)
        pairs(classes.means, classes.variances, spread)
        duality(classes.means, classes.means, spread.centre)
    assert seen.numel <= max(count * width, module._TILE**2, x.numel())
    with Largest() as seen:
        Agreement(classes, classes.means.float()).update(x, found.rows(labels))
    assert seen.numel <= 2**21
