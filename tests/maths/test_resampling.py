"""Ranks against scipy and scikit-learn; replicates against drawing with replacement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from layerwright.maths.resampling import resampled_sums, share_below


def test_the_share_below_is_the_rank_statistic() -> None:
    x, y = (torch.randint(0, 6, (n,), generator=torch.Generator().manual_seed(n)).double() for n in (30, 17))
    statistic = mannwhitneyu(y.numpy(), x.numpy()).statistic
    assert share_below(x, y) == pytest.approx(float(statistic) / (30 * 17))
    assert share_below(x, x) == 0.5


def test_the_share_below_is_the_area_under_the_curve() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    positive = torch.arange(50) % 3 == 0
    expected = roc_auc_score(positive.numpy(), scores.numpy())
    assert share_below(scores[~positive], scores[positive]) == pytest.approx(float(expected))


def test_a_replicate_draws_as_many_sequences_as_there_are() -> None:
    counts = resampled_sums(np.eye(7), seed=3)
    assert (counts.sum(0) == 7).all()
    assert counts.mean(1) == pytest.approx(np.ones(7), abs=0.15)
    sums = np.arange(14.0).reshape(2, 7)
    np.testing.assert_allclose(resampled_sums(sums, seed=3), sums @ counts)
