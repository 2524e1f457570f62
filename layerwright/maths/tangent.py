"""Tangent kernels out of factors: inner products of derivatives by weights, without the derivatives where that is less.

The derivative of output o for input i by a matrix of weights `[p, q]` is a sum over the places t where it is used,

    J_io = Σ_t l_t r_tᵀ,   ⟨J_io, J_jo′⟩ = Σ_tt′ (l_t · l_t′)(r_t · r_t′)

where one of l and r is what the matrix read, and the other, which moves with o, the derivative by what it gave. All
uses of a weight are in one sum. Letters of axes: o and p outputs, i and j inputs, t and s places, x what is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

FORMS = ("full", "each", "trace")


class Outer(NamedTuple):
    """One use of a matrix of weights: the derivative is Σ_t left ⊗ right.

    A side that moves with the output is `[O, n, T, d]`, one that does not `[n, T, d]`; of a matrix that is looked up,
    that side is the numbers of rows (or columns), `[n, T]`. Exactly one side moves. Places that do not count have zeros
    on the side that moves.

    Attributes:
        left: along the rows of the matrix.
        right: along its columns.
        groups: of a convolution: both sides are cut into so many pieces, and only pieces of one number meet.
    """

    left: Tensor
    right: Tensor
    groups: int = 1


Factor = Tensor | list[Outer]  # derivatives themselves, `[O, n, size]`, or what they are made of
# A step of a product of matrices is so many times as fast as one that goes through memory.
_ELEMENTWISE = 8
# Rows of a product at a time, where the rest is known by symmetry.
_BLOCK = 160
_Memo = dict[tuple[object, ...], Tensor]


def add_products(
    into: Callable[[str], Tensor], a: Mapping[str, Factor], b: Mapping[str, Factor], form: str, diagonal: bool = False
) -> None:
    """Add the part of each parameter in the tangent kernel of two sets of inputs.

    Args:
        into: by the name of a parameter, what its part is added to: `[O, n, O, m]`, `[O, n, m]` or `[n, m]` by the
            form; with `diagonal`, `[O, n, O]`, `[O, n]` or `[n]`.
        a: factors by parameter, of the first inputs.
        b: of the second; of one parameter, both sets have derivatives or both have what they are made of. One that a
            set does not use adds nothing.
        form: `full` for all pairs of outputs, `each` for every output with itself, `trace` for the sum of those.
        diagonal: only the n-th input of the first set with the n-th of the second.

    Raises:
        ValueError: the sets do not fit.

    Example:
        >>> one = Outer(torch.tensor([[[[2.0]]]]), torch.tensor([[[3.0, 1.0]]]))  # the derivative is (6, 2)
        >>> found = torch.zeros(1, 1)
        >>> add_products(lambda name: found, {"w": [one]}, {"w": [one]}, "trace")
        >>> found
        tensor([[40.]])
    """
    letters = _Letters.of(form, diagonal)
    memo: _Memo = {}  # a matrix of one place and its bias share a product
    for name in (name for name in a if name in b):
        x, y = a[name], b[name]
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if letters.result == "ij":
                for u, v in zip(x, y):
                    into(name).addmm_(u, v.T)
            else:
                into(name).add_(_inner(x, letters.first, y, letters.second, letters.result, memo))
        elif not isinstance(x, Tensor) and not isinstance(y, Tensor):
            for use, other in product(x, y):
                _add_outers(into(name), use, other, letters, memo)
        else:
            raise ValueError(f"got derivatives by {name} for one set of inputs and factors for the other")


def rows(uses: Sequence[Outer], shape: tuple[int, int]) -> Tensor:
    """The derivatives by a matrix `[p, q]` themselves, `[O, n, p · q]`.

    Example:
        >>> rows([Outer(torch.tensor([[[[2.0]]]]), torch.tensor([[[3.0, 1.0]]]))], (1, 2))
        tensor([[[6., 2.]]])
    """
    moving = next(side for side in uses[0][:2] if side.ndim == 4)
    found = moving.new_empty(*moving.shape[:2], *shape)
    for number, use in enumerate(uses):
        for k, made in enumerate(found):
            left, right = (side[k] if side.ndim == 4 else side for side in use[:2])
            if left.is_floating_point() and right.is_floating_point():
                _add_product(made, left, right, use.groups, first=number == 0)
                continue
            if number == 0:
                made.zero_()
            if left.is_floating_point():
                made, left, right = made.mT, right, left
            made.index_put_((torch.arange(len(left), device=left.device)[:, None], left), right, accumulate=True)
    return found.flatten(2)


def by_factors(uses: Sequence[Outer], shape: tuple[int, int], inputs: tuple[int, int], outputs: int, form: str) -> bool:
    """Whether products out of factors take fewer operations than making the derivatives and multiplying these.

    For N against M inputs, O outputs and one use of T places, both sides multiplied are N M T² (O² p + q + O²) steps,
    where derivatives are (N + M) O T p q to make and N M O² p q to multiply; O² is O for the forms of one output.

    Args:
        uses: of one input and any number of outputs.
        shape: of the matrix, p and q.
        inputs: N and M.
        outputs: O.
        form: as in `products`.

    Example:
        >>> one, many = (Outer(torch.ones(1, 1, t, 30), torch.ones(1, t, 20)) for t in (1, 100))
        >>> [by_factors([use], (30, 20), (64, 64), 10, "full") for use in (one, many)]
        [True, False]
    """
    if any(use.groups > 1 for use in uses):
        return False
    pairs = inputs[0] * inputs[1]
    squared = outputs**2 if form == "full" else outputs
    factors = 0
    for u, v in product(uses, repeat=2):
        parallel = u.left.ndim == v.left.ndim == 4 or u.right.ndim == v.right.ndim == 4
        sides = sum(_steps(x, y, squared, outputs) for x, y in zip(u[:2], v[:2]))
        last = 1 if parallel and form == "trace" else squared
        factors += pairs * _places(u) * _places(v) * (sides + _ELEMENTWISE * last)
    made = sum(_places(use) * (shape[0] * shape[1] if _dense(use) else shape[int(use.left.ndim == 2)]) for use in uses)
    return factors < sum(inputs) * outputs * made + pairs * squared * shape[0] * shape[1]


def _steps(x: Tensor, y: Tensor, squared: int, outputs: int) -> int:
    """Of the sum over one axis of two sides, for one pair of inputs and of places."""
    moving = (x.ndim == 4) + (y.ndim == 4)
    width = x.shape[-1] if x.is_floating_point() and y.is_floating_point() else 1
    return (1, outputs, squared)[moving] * width


def _places(use: Outer) -> int:
    return use.left.shape[2 if use.left.ndim == 4 else 1]


def _dense(use: Outer) -> bool:
    return use.left.is_floating_point() and use.right.is_floating_point()


def _add_product(made: Tensor, left: Tensor, right: Tensor, groups: int, first: bool) -> None:
    """Σ_t left ⊗ right of each input, added to `[n, p, q]`, or in its place."""
    left, right = (x.unflatten(-1, (groups, -1)).transpose(1, 2).flatten(0, 1) for x in (left, right))
    made.view(len(left), left.shape[-1], -1).baddbmm_(left.mT, right, beta=0 if first else 1)


class _Letters(NamedTuple):
    """Of outputs and inputs of both sets, and of the result."""

    first: str
    second: str
    result: str

    @classmethod
    def of(cls, form: str, diagonal: bool) -> _Letters:
        if form not in FORMS:
            raise ValueError(f"got the form {form!r}; expected one of {', '.join(FORMS)}")
        inputs = "i" if diagonal else "ij"
        result = {"full": f"oip{inputs[1:]}", "each": f"o{inputs}", "trace": inputs}[form]
        return cls("oi", ("p" if form == "full" else "o") + inputs[-1], result)


def _add_outers(into: Tensor, u: Outer, v: Outer, letters: _Letters, memo: _Memo) -> None:
    if u.groups > 1 or v.groups > 1:
        raise ValueError("got factors of a convolution in groups; expected the derivatives, as `rows` makes them")
    sides = []
    for x, y in ((u.left, v.left), (u.right, v.right)):
        (x, x_axes), (y, y_axes) = _seen(x, letters.first, "t"), _seen(y, letters.second, "s")
        axes = "".join(dict.fromkeys(x_axes + y_axes))
        if "o" not in letters.result and "o" in x_axes and "o" in y_axes:
            axes = axes.replace("o", "")  # the other sides do not move: nothing else waits for this sum
        sides.append((axes, _inner(x, x_axes, y, y_axes, axes, memo).to(into.dtype)))
    (l_axes, left), (r_axes, right) = sides
    if set(l_axes + r_axes) == set(letters.result):
        into.addcmul_(_spread(left, l_axes, letters.result), _spread(right, r_axes, letters.result))
    else:
        into.add_(torch.einsum(f"{l_axes},{r_axes}->{letters.result}", left, right))


def _seen(x: Tensor, letters: str, place: str) -> tuple[Tensor, str]:
    """A side with the letters of its axes but the one that is summed; without that of its places where it has one."""
    axes = (letters if x.ndim == 4 else letters[1]) + place
    return (x.squeeze(len(axes) - 1), axes[:-1]) if x.shape[len(axes) - 1] == 1 else (x, axes)


def _inner(x: Tensor, x_axes: str, y: Tensor, y_axes: str, axes: str, memo: _Memo) -> Tensor:
    """Σ_x of two sides, where numbers of rows stand for rows of the identity."""
    if x.is_floating_point() and y.is_floating_point():
        key = (x.data_ptr(), x.shape, y.data_ptr(), y.shape, axes)
        if key in memo:
            return memo[key]
        if x_axes[0] != "o" or y_axes[0] not in "op":
            return _summed(x, x_axes, y, y_axes, axes)
        memo.clear()  # before the next is made, in the same memory
        memo[key] = _summed(x, x_axes, y, y_axes, axes)
        return memo[key]
    if not x.is_floating_point() and not y.is_floating_point():
        return _spread(x, x_axes, axes) == _spread(y, y_axes, axes)
    if not x.is_floating_point():
        (x, x_axes), (y, y_axes) = (y, y_axes), (x, x_axes)
    x, numbers = _spread(x, f"{x_axes}x", f"{axes}x"), _spread(y, y_axes, axes).unsqueeze(-1)
    whole = torch.broadcast_shapes(x.shape[:-1], numbers.shape[:-1])
    return x.expand(*whole, -1).gather(-1, numbers.expand(*whole, 1)).squeeze(-1)


def _summed(x: Tensor, x_axes: str, y: Tensor, y_axes: str, axes: str) -> Tensor:
    if axes == "oipj" and x.data_ptr() == y.data_ptr() and x.shape == y.shape:
        return _gram(x.flatten(0, 1)).view(*x.shape[:2], *y.shape[:2])
    return torch.einsum(f"{x_axes}x,{y_axes}x->{axes}", x, y)


def _gram(x: Tensor) -> Tensor:
    """X Xᵀ of rows `[n, d]`, little more than half of it computed."""
    found = x.new_empty(len(x), len(x))
    for k in range(0, len(x), _BLOCK):
        own = slice(k, k + _BLOCK)
        torch.mm(x[own], x[: k + _BLOCK].T, out=found[own, : k + _BLOCK])
        found[:k, own] = found[own, :k].T
    return found


def _spread(x: Tensor, x_axes: str, axes: str) -> Tensor:
    """With axes in the order of `axes`, of length 1 where it has none of that letter."""
    x = x.permute([x_axes.index(letter) for letter in axes if letter in x_axes])
    return x[tuple(slice(None) if letter in x_axes else None for letter in axes)]


def total(parts: Sequence[Tensor]) -> Tensor:
    """Their sum; of one, that one."""
    return sum(parts[1:], parts[0])
