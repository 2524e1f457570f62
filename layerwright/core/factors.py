"""Token factors of every weight matrix of a block: what it reads, and the derivative of the loss by what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from layerwright.core.anatomy import input_axis
from layerwright.core.layout import Layout
from layerwright.maths.gradient import MatrixGradient, input_gram
from layerwright.maths.patches import patches


class FactorWatch:
    """Watches one call of a block with a graph, and the way back through it.

    No parameter needs a gradient, so that frozen and quantized weights are measured as well. A matrix that is used
    several times has the sum of the gradients of its uses: their factors stand one after another.

    Attributes:
        leaves: what matrices gave that no state goes into; the way back must be asked for them too.
    """

    def __init__(self, block: nn.Module, layout: Layout, samples: int, tokens: int) -> None:
        """Watch a block on a batch of so many samples of so many tokens."""
        self.block, self.layout, self.samples, self.tokens = block, layout, samples, tokens
        self.leaves: list[Tensor] = []
        self._uses: dict[str, list[_Use]] = {}
        self._trying = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the calls that are made inside."""
        names: dict[int, str] = {}  # one name for a weight that two modules share
        handles = []
        try:
            for path, module in self.block.named_modules():
                if not any(module.children()):
                    name = names.setdefault(id(getattr(module, "weight", module)), path)
                    handles.append(module.register_forward_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradients(self, per_sample: Tensor) -> dict[str, MatrixGradient]:
        """The gradients of each matrix, once the way back was gone; matrices that read one tensor share its Gram.

        Args:
            per_sample: factors `[B]` for the derivatives of each sample.
        """
        found: dict[str, MatrixGradient] = {}
        grams: dict[tuple[int, ...], Tensor] = {}
        scale = per_sample.reshape(-1, 1, 1)
        for name, uses in self._uses.items():
            if all(use.delta is None for use in uses):
                continue  # the loss does not depend on it
            inputs, deltas = _behind([u.inputs for u in uses]), _behind([u.deltas() for u in uses])
            gradient = MatrixGradient(inputs, deltas * scale.to(deltas))
            if not gradient.full and len(uses) == 1:
                if uses[0].key not in grams:
                    grams[uses[0].key] = input_gram(inputs)
                gradient = MatrixGradient(inputs, gradient.deltas, grams[uses[0].key])
            found[name] = gradient
        return found

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not self._is_matrix(module, x, output):
                return None
            inputs = self._by_sample(_columns(module, x.detach()))
            if inputs is None:
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                self.leaves.append(output)
            use = _Use(inputs, output.shape[1] if isinstance(module, _ConvNd) else output.shape[-1], x)
            self._uses.setdefault(name, []).append(use)

            def take(delta: Tensor) -> None:
                use.delta = self._by_sample(_rows(module, delta))

            # A hook on a tensor sees the derivative by these numbers also where they are overwritten later, but one on
            # a view does not: what follows gets a copy.
            output.register_hook(take)
            return output.clone() if output._is_view() else output

        return hook

    def _is_matrix(self, module: nn.Module, x: Tensor, output: Tensor) -> bool:
        """Whether what a module did to a tensor is a product with one matrix (and a bias)."""
        if isinstance(module, _ConvNd):
            return module.groups == 1 and len(module.kernel_size) <= 2 and module.padding_mode == "zeros"
        if not x.is_floating_point() or x.shape[:-1] != output.shape[:-1] or self._trying:
            return False
        if (getattr(module, "in_features", 0), getattr(module, "out_features", 0)) == (x.shape[-1], output.shape[-1]):
            return True  # any linear layer, quantized ones too
        self._trying = True  # trying calls the module, and so this hook
        with torch.no_grad():
            axis = input_axis(module, x.detach())
        self._trying = False
        return axis is not None

    def _by_sample(self, x: Tensor) -> Tensor | None:
        """`[B, T, d]`, float32 or wider; None where samples are mixed, as among tokens sent to experts."""
        if self.layout.batch == 1 and x.ndim == self.layout.ndim:
            x = x.movedim(1, 0)
        elif x.shape[0] != self.samples and x.numel() != self.samples * self.tokens * x.shape[-1] and self.samples > 1:
            return None
        x = x.reshape(self.samples, -1, x.shape[-1])
        return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _Use:
    """One call of a matrix."""

    def __init__(self, inputs: Tensor, width: int, x: Tensor) -> None:
        self.inputs, self._width, self.key = inputs, width, (x.data_ptr(), *x.shape)
        self.delta: Tensor | None = None

    def deltas(self) -> Tensor:
        """The derivatives, zero where nothing depends on this call."""
        return self.inputs.new_zeros(*self.inputs.shape[:2], self._width) if self.delta is None else self.delta


def unread(block: nn.Module, names: Iterable[str]) -> list[str]:
    """Weights of a block with several axes that belong to no module of these names."""
    own = tuple(f"{name}." if name else name for name in names)
    return [name for name, p in block.named_parameters() if p.ndim > 1 and not name.startswith(own)]


def _behind(uses: list[Tensor]) -> Tensor:
    """Tokens of one use behind those of another."""
    return uses[0] if len(uses) == 1 else torch.cat(uses, 1)


def _columns(module: nn.Module, x: Tensor) -> Tensor:
    """What the matrix meets, `[…, i]`: of a convolution the patches under the kernel."""
    if not isinstance(module, _ConvNd):
        return x
    assert not isinstance(module.padding, str) or module.padding in ("same", "valid")
    pad = module._reversed_padding_repeated_twice if module.padding == "same" else _both_sides(module)
    x, nothing = nn.functional.pad(x, pad), [0] * len(module.kernel_size)
    return patches(x, module.kernel_size, module.stride, nothing, module.dilation)


def _both_sides(module: _ConvNd) -> list[int]:
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    sides: Any = module.padding
    return [side for n in reversed(sides) for side in (n, n)]


def _rows(module: nn.Module, delta: Tensor) -> Tensor:
    return delta.flatten(2).mT if isinstance(module, _ConvNd) else delta
