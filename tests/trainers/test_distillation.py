"""T² KL to the teacher's softened distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.trainers.distillation import distillation_loss


def draw(seed: int) -> Tensor:
    return 3 * torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_sum_that_defines_it(temperature: float) -> None:
    student, teacher = draw(0), draw(1)
    found = distillation_loss(student, teacher, temperature)
    for row, value in enumerate(found):
        p = [float(x) for x in (teacher[row] / temperature).exp()]
        q = [float(x) for x in (student[row] / temperature).exp()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        naive = sum(a * (torch.tensor(a).double().log() - torch.tensor(b).double().log()) for a, b in zip(p, q))
        assert float(value) == pytest.approx(temperature**2 * float(naive), rel=1e-6)


def test_its_gradient_is_the_difference_of_probabilities_times_the_temperature() -> None:
    student, teacher = draw(0).requires_grad_(), draw(1).requires_grad_()
    distillation_loss(student, teacher, 2.0).sum().backward()
    expected = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None


def test_nothing_is_to_be_learned_from_an_equal() -> None:
    logits = draw(0)
    assert distillation_loss(logits + 5.0, logits, 3.0).abs().max() < 1e-12
