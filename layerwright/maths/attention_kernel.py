"""Kernels of infinitely wide towers that read sequences: every token is a row, and attention mixes those of a sequence.

All other maps of `kernel` act on tokens as on any rows. Attention has infinitely many heads, each of infinite width d:

    scores G = X W_Q W_Kᵀ Xᵀ times a scale, A = softmax(G) or G itself, output Σ_heads A X W_V W_O

With scores over d and W_Q = W_K, G is a number, G = s K(x, x). With scores over √d, G is Gaussian, with covariance
E G_ac(x) G_bd(x′) = s² K_ab K_cd, and other in each head: the kernels are averages over G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerwright.maths import kernel
from layerwright.maths.kernel import Map, State

# Numbers of the matrices that one batch of draws holds at once.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Tokens(State):
    """Kernels of all tokens of some sequences among each other, one sequence after another.

    Attributes:
        length: tokens of a sequence.
    """

    length: int

    def blocks(self, part: Tensor) -> Tensor:
        """From `[…, N T, N T]` to `[…, N, N, T, T]`."""
        n = part.shape[-1] // self.length
        return part.unflatten(-1, (n, self.length)).unflatten(-3, (n, self.length)).transpose(-3, -2)

    def rows(self, part: Tensor) -> Tensor:
        """The way back."""
        return part.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def tokens(x: Tensor, by_layer: bool = False) -> Tokens:
    """The kernels of the tokens themselves.

    Args:
        x: sequences, `[N, T, d]`.
        by_layer: whether to keep the tangent kernel of each layer apart.

    Raises:
        ValueError: as in `kernel.inputs`.

    Example:
        >>> tokens(torch.ones(2, 3, 4)).nngp.shape
        torch.Size([6, 6])
    """
    k = kernel.inputs(x.flatten(0, 1), by_layer=by_layer)
    return Tokens(k.q1, k.q2, k.nngp, k.ntk, k.same, x.shape[1])


def flatten(k: Tokens) -> State:
    """Units of all tokens beside each other: the mean over positions of K(p, p), and of T(p, p).

    Example:
        >>> flatten(tokens(torch.tensor([[[1.0], [2.0]]]))).nngp  # (1 + 4) / 2
        tensor([[2.5000]])
    """
    return _read(k, lambda part: part.diagonal(dim1=-2, dim2=-1).mean(-1))


def pool(k: Tokens) -> State:
    """Units averaged over tokens: the mean over all pairs of positions.

    Example:
        >>> pool(tokens(torch.tensor([[[1.0], [2.0]]]))).nngp  # ((1 + 2) / 2)²
        tensor([[2.2500]])
    """
    return _read(k, lambda part: part.mean((-2, -1)))


def _read(k: Tokens, mean: Callable[[Tensor], Tensor]) -> State:
    nngp, ntk = (mean(k.blocks(part)) for part in (k.nngp, k.ntk))
    same, q = _equal(k), nngp.diagonal()
    return State(q, q, torch.where(same, q[:, None], nngp), ntk, same)


def _equal(k: Tokens) -> Tensor:
    """Which sequences are equal, token for token, `[N, N]`."""
    return k.blocks(k.same).diagonal(dim1=-2, dim2=-1).all(-1)


def attention(
    weight_variance: float = 1.0, bias_variance: float = 0.0, score_scale: float = 1.0, scaling: str = "1/d",
    function: str = "softmax", draws: int | None = None, generator: torch.Generator | None = None,
) -> Map:  # fmt: skip
    """Attention over all tokens of a sequence, by infinitely many heads.

    With A the weights of a head, C_W the product of the variances of W_V and W_O, and averages over heads,

        K ← C_W E A K A′ᵀ + C_b,    T ← C_W E A (2K + T) A′ᵀ + C_b + C_W s² [(2K + T) Φ(K) + K Φ(T)]

    where Φ(R)_ab = Σ E (∂A_ac/∂G_ae) (∂A′_bd/∂G′_bf) K_cd R_ef. The bracket is what moves the scores: W_Q, W_K and what
    they read. With scores over d it vanishes as 1/d; over √d it stays, with Φ(R)_ab = ⟨K, R⟩ for linear attention. All
    terms are derived anew, and held against finite networks in the tests.

    Args:
        weight_variance: C_W.
        bias_variance: C_b of the output's biases.
        score_scale: s, the product of the deviations of W_Q and W_K.
        scaling: "1/d" or "1/sqrt(d)".
        function: "softmax" or "linear".
        draws: of the scores, for softmax over √d, whose averages have no closed form.
        generator: of the draws.

    Raises:
        ValueError: (by the map) softmax over √d without draws.

    Example:
        >>> one = tokens(torch.ones(1, 3, 2))  # equal tokens stay what they are, whatever the weights
        >>> attention()(one).nngp.unique()
        tensor([1.])

    Reference: arXiv 2006.10540.
    """

    def step(k: State) -> State:
        assert isinstance(k, Tokens)
        whole, parts = k.blocks(k.nngp), k.blocks(k.ntk[None] if k.ntk.ndim == 2 else k.ntk)
        if scaling == "1/d":
            mixed, moved = _fixed(whole, parts, score_scale, function)
        elif function == "linear":
            mixed, moved = _linear(whole, parts, score_scale)
        elif draws is None:
            raise ValueError(
                "got softmax of scores over √d, whose kernels have no closed form; expected tower.drawn(x), "
                "scaling='1/d', or function='linear'"
            )
        else:
            mixed, moved = _drawn(whole, parts, score_scale, draws, generator)
        nngp = weight_variance * mixed + bias_variance
        own = weight_variance * (mixed + moved[-1]) + bias_variance
        before = weight_variance * moved[:-1]
        ntk = k.rows(before[0] + own if k.ntk.ndim == 2 else torch.cat([before, own[None]]))
        q, same = k.rows(nngp).diagonal(), k.same & k.rows(_equal(k)[..., None, None].expand_as(whole))
        return replace(k, q1=q, q2=q, nngp=torch.where(same, q[:, None], k.rows(nngp)), ntk=ntk, same=same)

    return step


def _fixed(whole: Tensor, parts: Tensor, scale: float, function: str) -> tuple[Tensor, Tensor]:
    """A K A′ᵀ, and of each tangent kernel before what passes on; last, what the layer adds, less A K A′ᵀ."""
    weights = _weights(scale * _own(whole), function)
    mixed = _mix(weights, whole)
    return mixed, torch.cat([_mix(weights, parts), mixed[None]])


def _linear(whole: Tensor, parts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same of linear attention with scores over √d."""
    every = torch.cat([parts, whole[None]])
    along = scale**2 * (whole * every).sum((-2, -1), keepdim=True)
    square = along[-1]
    # ⟨K, T⟩ K twice, by values and by scores, and ⟨K, K⟩ T; of the layer itself 2 ⟨K, K⟩ K by W_Q and W_K.
    passed = 2 * along[:-1] * whole + square * parts
    return square * whole, torch.cat([passed, (3 * square * whole)[None]])


def _drawn(
    whole: Tensor, parts: Tensor, scale: float, draws: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The same of softmax attention with scores over √d, averaged over draws of the scores."""
    every = torch.cat([parts, whole[None]])
    mixed, turned = torch.zeros_like(every), torch.zeros_like(every)
    for scores in _scores(whole, scale, draws, generator):
        weights = _weights(scores, "softmax")
        for r, mean, slope in zip(every, mixed, turned):
            mean += _mix(weights, r).sum(0) / draws
            slope += _turn(weights, whole, r).sum(0) / draws
    slope = scale**2 * turned
    passed = mixed[:-1] + slope[-1] * parts + whole * slope[:-1]
    return mixed[-1], torch.cat([passed, (mixed[-1] + 2 * slope[-1] * whole)[None]])


def _scores(whole: Tensor, scale: float, draws: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Draws of the scores of all sequences, `[batch, N, T, T]`: s L Z Lᵀ where K = L Lᵀ over all tokens."""
    n, _, t, _ = whole.shape
    values, vectors = torch.linalg.eigh(whole.transpose(1, 2).reshape(n * t, n * t))
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    root = (vectors[:, kept] * values[kept].sqrt()).unflatten(0, (n, t))
    batch = max(1, _AT_ONCE // max(whole.numel(), n * t * root.shape[-1]))
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        z = torch.randn(size, 1, root.shape[-1], root.shape[-1], dtype=whole.dtype, generator=generator)
        yield scale * (root @ z.to(root.device)) @ root.mT


def _own(whole: Tensor) -> Tensor:
    """K(x, x), `[N, T, T]`."""
    return whole.diagonal(dim1=0, dim2=1).permute(2, 0, 1)


def _weights(scores: Tensor, function: str) -> Tensor:
    return scores.softmax(-1) if function == "softmax" else scores


def _mix(weights: Tensor, r: Tensor) -> Tensor:
    """A R A′ᵀ for all pairs of sequences, weights `[…, N, T, T]`."""
    return weights.unsqueeze(-3) @ r @ weights.unsqueeze(-4).mT


def _turn(weights: Tensor, k: Tensor, r: Tensor) -> Tensor:
    """Σ (∂A_ac/∂G_ae) (∂A′_bd/∂G′_bf) K_cd R_ef of softmax, where ∂A_ac/∂G_ae = A_ac (δ_ce − A_ae)."""
    first, second = weights.unsqueeze(-3), weights.unsqueeze(-4).mT
    rows_k, rows_r, columns_k, columns_r = first @ k, first @ r, k @ second, r @ second
    both = first @ (k * r) @ second + (first @ columns_k) * (first @ columns_r)
    return both - (rows_k * rows_r) @ second - first @ (columns_k * columns_r)
