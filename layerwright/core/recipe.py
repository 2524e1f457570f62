"""Recipes: tensors without numbers that remember how they are made from the tensors of a checkpoint.

Transformers does not always store a model's weights as the model holds them: experts are files of their own and are
stacked, projections are joined or split, names change. Given recipes in place of the stored tensors it builds the
whole model without reading a byte, and every weight then knows which tensors it needs, and what to do with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Operations that leave the numbers as they are where they leave the dtype.
_UNCHANGED = ("detach", "clone", "contiguous", "to")


class Recipe(Tensor):
    """A meta tensor that notes every operation on it.

    Example:
        >>> a, b = Recipe.of("a", (2, 3), torch.float32), Recipe.of("b", (2, 3), torch.float32)
        >>> both = torch.cat([a.to(torch.float64), b.to(torch.float64)])
        >>> sorted(both.sources()), tuple(both.shape), both.dtype
        (['a', 'b'], (4, 3), torch.float64)
        >>> both.make({"a": torch.zeros(2, 3), "b": torch.ones(2, 3)}).sum().item()
        6.0
    """

    _source: str
    _born: int
    _call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], int | None] | None

    @staticmethod
    def of(source: str, shape: tuple[int, ...], dtype: torch.dtype) -> Recipe:
        """A stored tensor by its name."""
        recipe = _without_numbers(torch.empty(shape, dtype=dtype, device="meta"))
        recipe._source = source
        return recipe

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation on the meta device and note it."""
        kwargs = dict(kwargs or {})
        shown = {key: value for key, value in kwargs.items() if not (func is Tensor.to and key == "device")}
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **shown)
        if isinstance(out, (tuple, list)) and any(isinstance(x, Tensor) for x in out):
            return type(out)(cls._noted(x, func, args, kwargs, k) for k, x in enumerate(out))
        return cls._noted(out, func, args, kwargs, None)

    @classmethod
    def _noted(cls, out: Any, func: Callable[..., Any], args: Any, kwargs: Any, place: int | None) -> Any:
        if not isinstance(out, Tensor) or any(out is x for x in args) or out.device.type != "meta":
            return out
        recipe = _without_numbers(out)
        recipe._call = (func, args, kwargs, place)
        return recipe

    @property
    def copy(self) -> bool:
        """Whether it is a stored tensor as it is, whatever was done to it that changes no number."""
        if self._call is None:
            return True
        func, args, _, _ = self._call
        first = args[0] if args else None
        same = func.__name__ in _UNCHANGED or (func.__name__ == "__getitem__" and args[1:] == (...,))
        return same and isinstance(first, Recipe) and first.dtype == self.dtype and first.copy

    def same_copy(self, other: Any) -> bool:
        """Whether both are the same stored tensor as it is."""
        return isinstance(other, Recipe) and self.copy and other.copy and self.sources() == other.sources()

    def sources(self) -> set[str]:
        """Names of the stored tensors that go into it."""
        if self._call is None:
            return {self._source}
        _, args, kwargs, _ = self._call
        return {name for x in _leaves((args, kwargs)) for name in x.sources()}

    def complete(self) -> bool:
        """Whether all that happened to it was noted: not so where it was written into, as nobody knows what."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._version != self._born:
                return False
        return self._call is None or all(x.complete() for x in _leaves(self._call[1:3]))

    def make(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The numbers, from the stored tensors by name."""
        if self._call is None:
            return stored[self._source]
        func, args, kwargs, place = self._call
        made = func(*_made(args, stored), **_made(kwargs, stored))
        return made if place is None else made[place]


def noted(func: Callable[..., Tensor], *args: Any) -> Tensor:
    """A function of tensors as one operation: what it does inside is not noted, and done when the numbers are made.

    Example:
        >>> a = Recipe.of("a", (2, 2), torch.float32)
        >>> noted(torch.linalg.matrix_power, a, 3).make({"a": 2 * torch.eye(2)}).diagonal().tolist()
        [8.0, 8.0]
    """
    if not _leaves(args):
        return func(*args)
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*(x.as_subclass(Tensor) if isinstance(x, Recipe) else x for x in args))
    return Recipe._noted(out, func, args, {}, None)


def _without_numbers(meta: Tensor) -> Recipe:
    recipe = Tensor._make_subclass(Recipe, meta)
    recipe._source, recipe._call = "", None
    with torch._C.DisableTorchFunctionSubclass():
        recipe._born = recipe._version
    return recipe


def _leaves(x: Any) -> list[Recipe]:
    if isinstance(x, Recipe):
        return [x]
    items = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return [leaf for item in items for leaf in _leaves(item)]


def _made(x: Any, stored: Mapping[str, Tensor]) -> Any:
    if isinstance(x, Recipe):
        return x.make(stored)
    if isinstance(x, dict):
        return {key: _made(item, stored) for key, item in x.items()}
    return type(x)(_made(item, stored) for item in x) if isinstance(x, (tuple, list)) else x
