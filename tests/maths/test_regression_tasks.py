from __future__ import annotations

import numpy as np
import pytest
import torch

from layerwright.maths.regression_tasks import brought_tasks, regression_tasks


def test_points_have_the_condition_number_asked_for_and_a_variance_of_one() -> None:
    xs, _ = regression_tasks(3, 4000, 4, ratio=16.0)
    values = torch.linalg.eigvalsh(xs.mT @ xs / xs.shape[1])
    assert (values[:, -1] / values[:, 0]).tolist() == pytest.approx([16.0] * 3, rel=0.2)
    assert values.mean(-1).tolist() == pytest.approx([1.0] * 3, rel=0.1)
    axes = torch.linalg.eigh(xs.mT @ xs).eigenvectors[..., -2:]
    assert torch.linalg.svdvals(axes[0].mT @ axes[1]).min() < 0.95  # axes of its own in each task


def test_noise_is_that_of_the_targets() -> None:
    (xs, still), (same, noisy) = (regression_tasks(500, 20, 3, noise=s, seed=4) for s in (0.0, 0.5))
    assert torch.equal(xs, same)
    assert float((noisy - still).std()) == pytest.approx(0.5, rel=0.03)


def test_a_seed_is_a_draw() -> None:
    assert torch.equal(regression_tasks(2, 3, 2, seed=1)[0], regression_tasks(2, 3, 2, seed=1)[0])
    assert not torch.equal(regression_tasks(2, 3, 2, seed=1)[0], regression_tasks(2, 3, 2, seed=2)[0])


def test_words_are_no_points() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        brought_tasks(np.array([["a"], ["b"]]), np.ones(2))
