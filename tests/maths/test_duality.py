"""Classifiers beside class means, against the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerwright.maths import duality as module
from layerwright.maths.class_moments import Classes, ClassMoments
from layerwright.maths.duality import Agreement, duality

SHAPES = [(4, 9), (9, 4), (7, 7)]


def given(classes: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    means, noise = (torch.randn(classes, width, generator=generator) for _ in range(2))
    return means.double(), means + 0.5 * noise


@pytest.mark.parametrize("rows", [512, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_by_definition(shape: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    means, weight = given(*shape)
    found = duality(means, weight, means.mean(0))
    m, w, count = means - means.mean(0), weight.double(), len(means)
    product = w @ m.T
    ideal = (torch.eye(count).double() - 1 / count) / math.sqrt(count - 1)
    assert found.self_duality == pytest.approx(float((product / product.norm() - ideal).norm()))
    dots = [float(a @ b) for a, b in zip(w, m)]
    cosines = torch.tensor([d / float(a.norm() * b.norm()) for d, a, b in zip(dots, w, m)])
    assert found.product == pytest.approx(sum(dots) / count)
    assert found.product_variance == pytest.approx(float(torch.tensor(dots).var(correction=0)), rel=1e-5)
    assert found.alignment == pytest.approx(float(cosines.mean()))
    assert found.alignment_variance == pytest.approx(float(cosines.var(correction=0)), rel=1e-4)


def test_a_classifier_that_is_the_simplex_of_the_means() -> None:
    corners = torch.eye(5).double() - 0.2
    found = duality(corners + 3.0, 2 * corners, corners.mean(0) + 3.0)
    assert found.self_duality == pytest.approx(0, abs=1e-7)
    assert found.alignment == pytest.approx(1)
    assert found.product == pytest.approx(2 * 0.8)
    assert found.alignment_variance == pytest.approx(0, abs=1e-15)
    assert found.product_variance == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_both_and_scaling_either_changes_no_angle(shape: tuple[int, int]) -> None:
    means, weight = given(*shape)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=torch.Generator().manual_seed(1)).double())[0]
    one = duality(means, weight, means.mean(0))
    two = duality(5 * means @ turn, 0.1 * weight.double() @ turn, 5 * means.mean(0) @ turn)
    assert two.self_duality == pytest.approx(one.self_duality)
    assert two.alignment == pytest.approx(one.alignment)
    assert two.alignment_variance == pytest.approx(one.alignment_variance)
    assert two.product == pytest.approx(0.5 * one.product)


def test_a_classifier_of_zeros_points_nowhere() -> None:
    means, weight = given(4, 9)
    found = duality(means, 0 * weight, means.mean(0))
    assert found == (1.0, 0.0, 0.0, 0.0, 0.0)


def samples(classes: int = 6, width: int = 4, each: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    means, weight = given(classes, width)
    labels = torch.arange(classes * each) % classes
    generator = torch.Generator().manual_seed(2)
    return (means[labels] + torch.randn(len(labels), width, generator=generator)).float(), labels, weight


def moments(x: Tensor, labels: Tensor) -> Classes:
    found = ClassMoments(int(labels.max()) + 1, x.shape[1])
    found.add(x, labels)
    return found.result()


@pytest.mark.parametrize("held", [2**21, 20])
def test_agreement_on_other_features_by_a_loop(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DISTANCES", held)
    x, labels, weight = samples()
    classes = moments(x[:18], labels[:18])
    hits = [
        int((weight @ v).argmax()) == min(range(6), key=lambda c: float((v.double() - classes.means[c]).norm()))
        for v in x[18:]
    ]
    assert 0 < sum(hits) < len(hits)
    agreement = Agreement(classes, weight)
    for part in x[18:].split(5):
        agreement.update(part)
    assert agreement.result() == sum(hits) / len(hits)


def test_a_feature_stands_beside_the_mean_of_the_others_of_its_class() -> None:
    x, labels, weight = samples(each=3)
    x, labels = x[:-1], labels[:-1]
    x, labels = torch.cat([x, x[:1] + 1]), torch.cat([labels, torch.tensor([6])])  # and a class of one
    weight = torch.cat([weight, weight[:1] - 1])
    classes = moments(x, labels)
    hits = []
    for k, v in enumerate(x):
        rest = torch.arange(len(x)) != k
        distances = [
            float((v - x[rest & (labels == c)].mean(0)).norm()) if (rest & (labels == c)).any() else math.inf
            for c in range(7)
        ]
        hits.append(int((weight @ v).argmax()) == distances.index(min(distances)))
    agreement = Agreement(classes, weight)
    agreement.update(x, labels)
    assert agreement.result() == sum(hits) / len(hits)
    with_itself = Agreement(classes, weight)
    with_itself.update(x)
    assert with_itself.result() != agreement.result()
