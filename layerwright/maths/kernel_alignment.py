"""How alike two kernels of the same points are, and how far a kernel is that of some targets."""

from __future__ import annotations

from torch import Tensor


def target_alignment(kernel: Tensor, targets: Tensor) -> float:
    """The cosine of a kernel and that of the targets, less their mean.

        ⟨K, Y Yᵀ⟩ / (‖K‖ ‖Y Yᵀ‖)

    Args:
        kernel: K, `[N, N]`.
        targets: Y, `[N, C]`.

    Returns:
        at most 1, where K = Y Yᵀ, and from 0 on for a kernel without negative eigenvalues; NaN where either is zero.

    Example:
        >>> import torch
        >>> y = torch.tensor([[1.0], [-1.0]])
        >>> [round(target_alignment(k, y), 4) for k in (y @ y.T, torch.eye(2))]
        [1.0, 0.7071]

    Reference: arXiv 1806.07572 for what it says of training: the loss first falls at the rate Yᵀ K Y.
    """
    y = (targets - targets.mean(0)).double()
    return _cosine(kernel.double(), y @ y.T)


def centred_alignment(first: Tensor, second: Tensor) -> float:
    """The cosine of two kernels after centring, ⟨H K H, H L H⟩ over both norms, with H = 1 − 11ᵀ/N.

    The same as centred kernel alignment (CKA) of features whose products the kernels are.

    Args:
        first: K, `[N, N]`.
        second: L, `[N, N]`.

    Returns:
        in [0, 1] for kernels without negative eigenvalues; NaN where either is the same for all points.

    Example:
        >>> import torch
        >>> k = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
        >>> round(centred_alignment(k, 3 * k + 1), 6)
        1.0
    """
    return _cosine(_centred(first.double()), _centred(second.double()))


def _centred(kernel: Tensor) -> Tensor:
    rows = kernel - kernel.mean(0)
    return rows - rows.mean(1, keepdim=True)


def _cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / (x.norm() * y.norm()))
