"""How many neurons of each block can be left out for a small error of what the feed-forward part adds."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.registry import measure
from layerwright.maths.sparsity import tail_curve

_TARGETS = (0.05, 0.1, 0.2, 0.4)


@measure(unit="1", range=(0, 1), tier="deep", paper="2411.02335", index=("cett",))
def activation_sparsity(
    hidden: Tensor, hidden_tokens: Tensor, out_weight: Tensor, *, targets: tuple[float, ...] = _TARGETS
) -> dict[tuple[float], tuple[Tensor, Tensor]]:
    """The share of neurons that can be left out at a given cumulative error of tail truncation (CETT).

    With a the activations that the feed-forward part's last matrix W reads, and w_i its columns, neuron i adds a_i w_i;

        CETT(ε) = mean_t ‖Σ_{i: |a_i|·‖w_i‖ ≤ ε} a_i w_i‖ / ‖Σ_i a_i w_i‖

    and the share of the pairs (i, t) that are left out is read at the largest ε whose error is at most `cett`. Each of
    the first 16 sequences has its own ε, one for all of up to 16 tokens drawn at random; between 32 values of ε the
    share is interpolated. `cett` 0 is the share of exact zeros, as ReLU makes them. Where the parts of a block are not
    known, as in post-normalised ones, W is the last matrix of the block.

    Args:
        hidden: a, `[batch, token, neuron]`.
        hidden_tokens: which of the tokens are there, `[batch, token]`.
        out_weight: W, `[width, neuron]`.
        targets: the errors to allow.

    Returns:
        by error `[batch]`, unit 1, in [0, 1], and which sequences have tokens.

    Example:
        >>> import torch
        >>> hidden, weight = torch.tensor([[[3.0, 4.0, 0.0, 0.0]]]), torch.eye(4)
        >>> found = activation_sparsity(hidden, torch.ones(1, 1, dtype=torch.bool), weight, targets=(0.6,))
        >>> [found[error,][0].item() for error in (0.0, 0.6)]
        [0.5, 0.75]

    Reference: arXiv 2411.02335.
    """
    curve = tail_curve(hidden, out_weight, hidden_tokens)
    there = hidden_tokens.any(-1, keepdim=True)
    return {(error,): (curve.at(error)[1], there) for error in (0.0, *targets)}
