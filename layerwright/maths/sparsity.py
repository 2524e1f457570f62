"""Weakly contributing neurons of a matrix product: how many can be left out for which error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEVELS = 32


class TailCurve(NamedTuple):
    """What is left out, and what for, at growing thresholds of a neuron's contribution; one curve a group of tokens.

    Attributes:
        thresholds: ε, `[…, levels]`, the first 0.
        shares: of the contributions that are at most ε, `[…, levels]`.
        errors: CETT(ε), `[…, levels]`, in [0, 1] but for neurons that cancel.
    """

    thresholds: Tensor
    shares: Tensor
    errors: Tensor

    def at(self, error: float) -> tuple[Tensor, Tensor]:
        """The largest threshold whose error is at most `error`, and its share, `[…]` each: linear between levels.

        NaN where an error is.

        Example:
            >>> curve = TailCurve(*(torch.tensor(x) for x in ([0.0, 1.0, 3.0], [0.5, 0.7, 1.0], [0.0, 0.2, 1.0])))
            >>> [round(x.item(), 4) for x in curve.at(0.6)]
            [2.0, 0.85]
        """
        below, end = (self.errors <= error).int(), self.errors.shape[-1] - 1
        found = end - below.flip(-1).argmax(-1, keepdim=True)
        last = found.clamp_max(end - 1)
        low, high = (self.errors.gather(-1, k) for k in (last, last + 1))
        part = torch.where(found == end, 1.0, (error - low) / (high - low))
        part = torch.where(self.errors.isnan().any(-1, keepdim=True), torch.nan, part)

        def between(x: Tensor) -> Tensor:
            return torch.lerp(x.gather(-1, last), x.gather(-1, last + 1), part).squeeze(-1)

        return between(self.thresholds), between(self.shares)


def contributions(hidden: Tensor, lengths: Tensor) -> Tensor:
    """How long what each neuron adds is: |a_i| · ‖w_i‖, from a `[…, m]` and ‖w_i‖ `[m]`."""
    return hidden.abs() * lengths


def tail_curve(hidden: Tensor, weight: Tensor, tokens: Tensor, levels: int = _LEVELS) -> TailCurve:
    """The cumulative error of tail truncation, at thresholds that leave out ever more neurons.

        CETT(ε) = mean_t ‖Σ_{i: |a_i|·‖w_i‖ ≤ ε} a_i w_i‖ / ‖Σ_i a_i w_i‖

    One threshold holds for all tokens of a group. The first is 0, the others are quantiles of the contributions that
    are not 0, closer together where they are large. 0/0 counts as 0.

    Args:
        hidden: a, `[B, n, m]`: B groups of n tokens.
        weight: `[d, m]`.
        tokens: which of them are there, `[B, n]`.
        levels: number of thresholds after the first.

    Example:
        >>> curve = tail_curve(torch.tensor([[[3.0, 4.0, 0.0]]]), torch.eye(3), torch.ones(1, 1, dtype=torch.bool), 2)
        >>> [[round(x, 4) for x in row[0].tolist()] for row in curve]
        [[0.0, 4.0, 4.0], [0.3333, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    each = contributions(hidden, torch.linalg.vector_norm(weight, dim=0))
    whole = torch.linalg.vector_norm(hidden @ weight.mT, dim=-1)
    there = tokens.unsqueeze(-1)
    ordered = torch.where(there, each, torch.inf).flatten(1).sort(-1).values
    total = (tokens.sum(-1) * hidden.shape[-1]).clamp_min(1)
    zeros = (ordered == 0).sum(-1)
    rest = 1 - (1 - torch.arange(1, levels + 1, device=hidden.device) / levels) ** 2
    places = (zeros[:, None] + rest * (total - zeros)[:, None]).ceil().long().clamp_min(1) - 1
    known = ordered.gather(-1, places.clamp_max(ordered.shape[-1] - 1))
    thresholds = torch.cat([torch.zeros_like(known[:, :1]), torch.where(known.isinf(), 0.0, known)], dim=-1)
    shares, errors = [], []
    for threshold in thresholds.unbind(-1):
        small = (each <= threshold[:, None, None]) & there
        tail = torch.linalg.vector_norm((hidden * small) @ weight.mT, dim=-1)
        error = torch.where(tail == 0, 0.0, tail / whole)
        shares.append(small.sum((1, 2)) / total)
        errors.append(torch.where(tokens, error, 0.0).sum(-1) / tokens.sum(-1).clamp_min(1))
    return TailCurve(thresholds, torch.stack(shares, -1), torch.stack(errors, -1))
