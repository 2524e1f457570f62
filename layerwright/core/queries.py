"""What makes the queries of a block: the parts of its weights that, times c, make the scores of its attention c times.

No table of names. The block is called on a small batch while the products of queries and keys are watched, wherever
they are computed. Gradients tell which weights the queries depend on and the keys do not. Of these are taken, from the
last to run on, as many as it takes: a weight and its bias, or the scale of a norm after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor, nn

from layerwright.core.attention import AttentionWatch
from layerwright.core.errors import UserError
from layerwright.core.fit import instead
from layerwright.core.recipe import noted
from layerwright.maths.similarity import relative_error

_SAME = 1e-5

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """A piece of a weight that makes queries.

    Attributes:
        name: of the weight.
        axis: along which the weight holds other things too, as keys and values.
        places: for each place along the axis, whether it is of the piece; None where the whole weight is.
        neutral: 0 where the weight is a norm's scale less one, else 1.
    """

    name: str
    axis: int
    places: tuple[bool, ...] | None
    neutral: float = 1.0

    def times(self, weight: Tensor, factor: float) -> Tensor:
        """The weight with this piece so many times as large.

        Raises:
            UserError: it has another shape than the weight that the piece was found in.

        Example:
            >>> Piece("w", 0, (True, False)).times(torch.ones(2, 3), 0.5).tolist()
            [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
            >>> Piece("w", 0, None, neutral=0.0).times(torch.zeros(2), 0.5).tolist()
            [-0.5, -0.5]
        """
        if self.places is not None and weight.shape[self.axis] != len(self.places):
            raise UserError(f"{self.name} has another shape than in the base; fold before steps that widen")
        return noted(_times, weight, self, factor)


def _times(weight: Tensor, piece: Piece, factor: float) -> Tensor:
    made = weight * factor + (factor - 1.0) * (1.0 - piece.neutral)
    if piece.places is None:
        return made
    shape = [1] * weight.ndim
    shape[piece.axis] = -1
    return torch.where(torch.tensor(piece.places, device=weight.device).reshape(shape), made, weight)


def query_pieces(title: str, block: nn.Module, run: Run, state: Tensor, order: Sequence[str]) -> tuple[Piece, ...]:
    """The pieces of a block's weights that make the queries of its self-attention.

    Random numbers stand in for the weights meanwhile, as a bias of zero would pass for one that does not matter.

    Args:
        title: what to call the block in messages.
        block: the block.
        run: the block, from the state that goes in to the one that comes out.
        state: that goes in.
        order: names of the weights in the order in which their modules run.

    Raises:
        UserError: no attention is seen, or no weights divide all that its scores are made of.
    """
    torch.manual_seed(0)
    names = [name for name in order if block.get_parameter(name).is_floating_point()]
    search = _Search(title, block, run, state)
    with instead(block, {name: _stand_in(block.get_parameter(name)) for name in names}):
        candidates = search.candidates(names)
        search.check_unbiased(candidates)
        pieces = tuple(dict.fromkeys(p for number, some in candidates.items() for p in search.enough(number, some)))
        search.check(pieces, candidates)
    return pieces


def _stand_in(p: Tensor) -> Tensor:
    """Random numbers of the size that weights have."""
    return p + 0.5 * torch.randn_like(p) if p.ndim < 2 else torch.randn_like(p) * p.shape[-1] ** -0.5


class _Search:
    """Trials on one block."""

    def __init__(self, title: str, block: nn.Module, run: Run, state: Tensor) -> None:
        self._title, self._block, self._run, self._state = title, block, run, state
        self._eps = torch.finfo(state.dtype).eps

    def candidates(self, names: Sequence[str]) -> dict[int, list[Piece]]:
        """For each call of self-attention the pieces that its queries depend on and its keys do not, the last first.

        Attention whose keys do not depend on the block's state, as those of an encoder, is none to itself.

        Raises:
            UserError: there is no such call.
        """
        weights = [self._block.get_parameter(name).requires_grad_() for name in names]
        state = self._state.detach().clone().requires_grad_()
        with torch.enable_grad(), AttentionWatch() as watch:
            self._run(state)
        found = {}
        for number, call in watch.calls.items():
            of_state, *by_key = _reached(call.key, [state, *weights])
            if of_state.any():
                pieces = map(_piece, names, _reached(call.query, weights), by_key)
                found[number] = [piece for piece in pieces if piece is not None][::-1]
        for weight in weights:
            weight.requires_grad_(False)
        if not found:
            raise UserError(
                f"{self._title} shows no attention to its own stream; expected scaled_dot_product_attention, or the "
                "softmax of a product"
            )
        return found

    def check_unbiased(self, numbers: Iterable[int]) -> None:
        """Without queries all that is seen must be seen alike: scores are products, masks and functions of them.

        Raises:
            UserError: some call adds a bias to its scores.
        """
        with AttentionWatch(dict.fromkeys(numbers, 0.0)) as watch:
            self._run(self._state)
        for number in numbers:
            seen = watch.calls[number].probabilities()
            seen = seen / seen.amax(-1, keepdim=True)
            if ((seen > _SAME) & (seen < 1 - _SAME)).any():
                raise UserError(
                    f"{self._title} adds a bias to the scores of its attention, which no weight of its queries divides"
                )

    def enough(self, number: int, candidates: Iterable[Piece]) -> tuple[Piece, ...]:
        """Of the candidates as many as it takes to make the query of a call: what doubling each adds is the query.

        Raises:
            UserError: they do not make it.
        """
        query = self._query(number)
        pieces: list[Piece] = []
        added: list[Tensor] = []
        for piece in (way for candidate in candidates for way in self._ways(candidate)):
            pieces.append(piece)
            added.append(self._query(number, piece) - query)
            each = torch.stack(added, dim=1)
            taken = torch.linalg.lstsq(each, query.unsqueeze(1)).solution.squeeze(1) > 0.5
            if relative_error(each[:, taken].sum(1), query) <= max(_SAME, 8 * self._eps):
                return tuple(compress(pieces, taken.tolist()))
        raise UserError(f"{self._title} has no weights of which its queries are a multiple, and its keys are not")

    def check(self, pieces: Iterable[Piece], numbers: Iterable[int]) -> None:
        """Hold half of the pieces against half of the queries.

        Raises:
            UserError: the block gives something else.
        """
        with AttentionWatch(dict.fromkeys(numbers, 0.5)):
            wanted = self._run(self._state) - self._state
        with instead(self._block, self._times(pieces, 0.5)):
            got = self._run(self._state) - self._state
        if relative_error(got.double(), wanted.double()) > max(_SAME, 16 * self._eps):
            raise UserError(f"{self._title} uses the weights that make its queries for something else too")

    def _query(self, number: int, *pieces: Piece) -> Tensor:
        """The query of a call, where pieces are twice as large."""
        with instead(self._block, self._times(pieces, 2.0)), AttentionWatch() as watch:
            self._run(self._state)
        return watch.calls[number].query.double().flatten().cpu()

    def _ways(self, piece: Piece) -> list[Piece]:
        """The piece, and where it is a vector also the same as a norm's scale less one."""
        vector = self._block.get_parameter(piece.name).ndim == 1
        return [piece, replace(piece, neutral=0.0)] if vector else [piece]

    def _times(self, pieces: Iterable[Piece], factor: float) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for piece in pieces:
            made[piece.name] = piece.times(made.get(piece.name, self._block.get_parameter(piece.name)), factor)
        return made


def _reached(x: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Which numbers of each leaf a tensor depends on."""
    if not x.requires_grad:
        return [torch.zeros_like(leaf, dtype=torch.bool) for leaf in leaves]
    grads = torch.autograd.grad(x, leaves, torch.randn_like(x), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x, dtype=torch.bool) if g is None else g != 0 for g, x in zip(grads, leaves)]


def _piece(name: str, by_query: Tensor, by_key: Tensor) -> Piece | None:
    """What of a weight only queries depend on, along the axis on which they have the largest share."""
    shares = []
    for axis, length in enumerate(by_query.shape):
        query, key = (mask.movedim(axis, 0).reshape(length, -1).any(1) for mask in (by_query, by_key))
        shares.append(query & ~key)
    sizes = [float(places.double().mean()) for places in shares]
    if not sizes or max(sizes) == 0:
        return None
    axis = sizes.index(max(sizes))
    return Piece(name, axis, None if shares[axis].all() else tuple(shares[axis].tolist()))
