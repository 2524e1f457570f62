"""Mutual information of states with their inputs and their labels, by bins and by a kernel, in bit."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Samples whose distances to all others are held at a time.
_ROWS = 512


class Information(NamedTuple):
    """Of N states T of different inputs X with labels Y, in bit.

    Attributes:
        input: I(X; T), at most log2 N.
        label: I(T; Y), at most H(Y).
        distinct: share of states that the estimator cannot take for another, in [0, 1]. At 1 both numbers are at their
            ceilings whatever the states are.
    """

    input: float
    label: float
    distinct: float


def entropy(counts: Tensor) -> float:
    """H = −Σ p log2 p of the distribution in which outcomes were counted, in bit.

    Example:
        >>> entropy(torch.tensor([2, 1, 1]))
        1.5
    """
    p = counts.double() / counts.sum()
    return float(-torch.special.xlogy(p, p).sum()) / math.log(2) + 0.0


def binned_information(
    states: Tensor, labels: Tensor, bins: int = 30, span: tuple[float, float] | None = None
) -> Information:
    """Information of states whose units are each cut into equal bins, T the row of bins.

        I(X; T) = H(T),    I(T; Y) = H(T) + H(Y) − H(T, Y)

    The states are a function of the input, so that H(T | X) = 0 once they are cut.

    Args:
        states: `[N, d]`.
        labels: `[N]`.
        bins: how many for a unit.
        span: the range that is cut, where it is known, as (−1, 1) of tanh; else from the smallest to the largest number
            of all states. What lies outside counts to the outermost bins.

    Example:
        >>> found = binned_information(torch.tensor([[0.0], [0.1], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1]), bins=3)
        >>> found
        Information(input=1.0, label=1.0, distinct=0.0)

    Reference: arXiv 1703.00810.
    """
    low, high = span or (float(states.min()), float(states.max()))
    width = (high - low) / bins or 1.0
    cut = ((states.double() - low) / width).floor().clamp_(0, bins - 1).int()
    _, place, counts = cut.unique(dim=0, return_inverse=True, return_counts=True)
    joint = torch.stack([place, labels]).unique(dim=1, return_counts=True)[1]
    of_states = entropy(counts)
    label = of_states + entropy(labels.unique(return_counts=True)[1]) - entropy(joint)
    return Information(of_states, max(0.0, label), float((counts == 1).sum()) / len(states))


def kernel_information(states: Tensor, labels: Tensor, variance: float) -> Information:
    """Information of states with Gaussian noise of a variance added to each unit.

        I(X; T) ≤ −(1/N) Σ_i log2 (1/N) Σ_j exp(−‖t_i − t_j‖² / 2σ²)
        I(T; Y) ≈ the same − Σ_y p(y) (the same of the states of label y)

    The first is an upper bound for the noisy states, the second a difference of two. A state is distinct where no other
    comes nearer than all but 1 % of the sum is its own.

    Args:
        states: `[N, d]`.
        labels: `[N]`.
        variance: σ².

    Raises:
        ValueError: σ² is not positive.

    Example:
        >>> far = torch.tensor([[0.0], [0.0], [90.0], [90.0]])
        >>> kernel_information(far, torch.tensor([0, 0, 1, 1]), 1.0)
        Information(input=1.0, label=1.0, distinct=0.0)

    Reference: arXiv 1706.02419.
    """
    if not variance > 0:
        raise ValueError(f"got a variance of {variance:g}; expected a positive one")
    x = states.double() - states.double().mean(0)
    square = torch.linalg.vecdot(x, x)
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    whole, same, distinct = 0.0, 0.0, 0
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = (square[rows, None] + square - 2 * x[rows] @ x.mT).clamp_min_(0.0)
        weight = distance.div_(-2 * variance).exp_()
        weight[torch.arange(len(weight)), torch.arange(len(weight)) + start] = 1.0
        total = weight.sum(1)
        of_label = (weight * (place[rows, None] == place)).sum(1)
        whole -= float((total / len(x)).log2().sum())
        same -= float((of_label / counts[place[rows]]).log2().sum())
        distinct += int((total < 1.01).sum())
    return Information(max(0.0, whole) / len(x), max(0.0, whole - same) / len(x), distinct / len(x))
