"""Attention, watched where it is computed: no table of names, and no option of the model that is asked to return it.

A call of attention is a fused call (`scaled_dot_product_attention`), or a product whose result goes on to a softmax of
the same shape. Its probabilities are worked out again from its operands, so that both ways give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from layerwright.core.calls import exchanged
from layerwright.core.replay import in_float
from layerwright.core.trace import first_tensor, tensors

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm", "einsum")


@dataclass
class AttentionCall:
    """One call of attention.

    Attributes:
        query: `[…, T, d]`.
        key: `[…, S, d]`, of as many heads or fewer.
        scores: what goes into the softmax, `[…, T, S]`, where it is written out; else None, and the rest holds.
        mask: added to the scores, or where they count.
        causal: whether token t sees keys up to t only.
        scale: of the scores, None for 1/√d.

    Example:
        >>> AttentionCall(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), causal=True).probabilities()
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000]]])
    """

    query: Tensor
    key: Tensor
    scores: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the probabilities."""
        if self.scores is not None:
            return tuple(self.scores.shape)
        return (*self.query.shape[:-1], self.key.shape[-2])

    def probabilities(self, rows: slice = slice(None)) -> Tensor:
        """The share of each key in what each token gets, `[…, T, S]` in float32 or wider, for rows of the first axis.

        NaN at a token that sees no key.
        """
        if self.scores is not None:
            return in_float(self.scores[rows]).softmax(-1)
        query, key = in_float(self.query[rows]), in_float(self.key[rows])
        if query.ndim > 2 and query.shape[-3] != key.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        scores = query * (query.shape[-1] ** -0.5 if self.scale is None else self.scale) @ key.mT
        if self.causal:
            seen = torch.ones(self.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        if self.mask is not None:
            mask = self.mask.expand(self.shape)[rows]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)


class AttentionWatch(TorchFunctionMode):
    """Notes each call of attention by its number among the products, and multiplies some queries.

    Attributes:
        calls: what was seen.
    """

    def __init__(self, factors: Mapping[int, float] | None = None) -> None:
        """Watch what is called inside; `factors` multiply the queries of the calls of these numbers."""
        super().__init__()
        self.calls: dict[int, AttentionCall] = {}
        self._factors = factors or {}
        self._count = 0
        self._product: tuple[int, AttentionCall, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Watch one call of torch."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func is F.multi_head_attention_forward:  # what it calls is not watched, as all that a watcher calls is not
            unwatched = {**func.__globals__, "has_torch_function": lambda _: False}
            with self:
                return FunctionType(func.__code__, unwatched, name, func.__defaults__)(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(func, dict(zip(_SDPA, args)) | kwargs)
        if name in _PRODUCTS and len(operands := list(tensors((args, kwargs)))) > 1:
            return self._multiply(func, args, kwargs, *operands[-2:])
        if name == "softmax" and self._product is not None:
            self._softmax(first_tensor((args, kwargs)), kwargs.get("dim", args[1] if len(args) > 1 else None))
        return func(*args, **kwargs)

    def _softmax(self, scores: Tensor | None, dim: Any) -> None:
        """A softmax after a product, of what may be its result."""
        assert self._product is not None
        (number, call, product), self._product = self._product, None
        if scores is None or scores.shape[-2:] != product.shape[-2:] or scores.numel() != product.numel():
            return
        if dim in (-1, scores.ndim - 1):
            self.calls[number] = call
            call.scores = scores

    def _fused(self, func: Any, given: dict[str, Any]) -> Any:
        given["query"] = self._multiplied(given["query"])
        self.calls[self._count] = AttentionCall(
            given["query"], given["key"], mask=given.get("attn_mask"), causal=bool(given.get("is_causal")),
            scale=given.get("scale"),
        )  # fmt: skip
        self._count += 1
        return func(**given)

    def _multiply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], query: Tensor, key: Tensor) -> Any:
        """A product, of what may be queries and keys."""
        times = self._multiplied(query)
        args, kwargs = exchanged((args, kwargs), lambda x: times if x is query else x)
        out = func(*args, **kwargs)
        self._product = (self._count, AttentionCall(times, key), out)
        self._count += 1
        return out

    def _multiplied(self, query: Tensor) -> Tensor:
        return query * self._factors[self._count] if self._count in self._factors else query


def self_attention(run: Callable[[Tensor], Any], state: Tensor) -> list[AttentionCall]:
    """The calls of attention, while a block runs, whose keys are made of the stream that goes into it.

    Args:
        run: the block, from the state that goes in. No weight of it may ask for a gradient.
        state: that goes in.
    """
    state = state.detach().requires_grad_()
    # The graph is there only to tell whose keys depend on the state, as those of an encoder do not: it holds no tensor.
    with torch.enable_grad(), saved_tensors_hooks(lambda x: None, lambda x: x), AttentionWatch() as watch:
        run(state)
    return [call for call in watch.calls.values() if call.key.requires_grad]
