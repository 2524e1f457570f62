"""The mean loss of a model on some data as a function of its weights, that can be differentiated twice.

The loss is the mean cross entropy over the labelled tokens. Weights count whether they are frozen or not, in float32
where the model is in half precision; a weight that is used several times is one weight, and all of its uses count.
Quantized weights are constants. The model's own modules run, with the plain form of attention: the fused ones have no
second derivative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerwright.core.batch import Batch
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, call, on_device, rows
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay, in_float, read_logits
from layerwright.core.sharded import is_sharded
from layerwright.core.stack import Stack


class Loss:
    """The mean loss of a model over the labelled tokens of some batches, as a function of its weights.

    Attributes:
        stack: the model and its tower.
        weights: its weights by name, each once, float32 or wider.
        tokens: how many have a label.
        classes: how many different labels there are.
    """

    def __init__(self, stack: Stack, batches: Iterable[Inputs], prefix: int = 0) -> None:
        """Look at every batch once.

        Args:
            stack: the model and its tower.
            batches: the data; one portion of it at a time is in memory with its graph.
            prefix: leading tokens of each sequence that have no loss.

        Raises:
            UserError: there are no labels, a block leaves NaN behind, or the weights are spread over processes.
        """
        self.stack = stack
        if any(map(is_sharded, stack.model.parameters())):
            raise UserError("the weights are spread over processes; curvature needs a model that one process holds")
        named = dict(stack.model.named_parameters())
        self.weights = {name: in_float(p.detach()) for name, p in named.items() if p.is_floating_point()}
        self._called = _Called(stack.model)
        self._portions = [p for batch in batches for p in self._look(on_device(batch, stack.model), prefix)]
        labels = [p.targets for p in self._portions]
        self.tokens = sum(map(len, labels))
        if not self.tokens:
            raise UserError(
                "the data holds no labels for this model's output, so that there is no loss to differentiate; give "
                "labels with the data"
            )
        self.classes = len(torch.cat(labels).unique())

    def value(self, tensors: Mapping[str, Tensor] | None = None) -> float:
        """The loss, nat/token, at other weights (and buffers, by name) where they are given."""
        with torch.no_grad():
            return sum(float(self._nats(p, tensors or {})) for p in self._portions) / self.tokens

    def gradient(self, names: Sequence[str] | None = None) -> Tensor:
        """The derivative by the weights of these names (all), one after another, `[P]`, float64."""
        chosen = self.leaves(names)
        total = flat([torch.zeros_like(w) for w in chosen.values()])
        with differentiating():
            for portion in self._portions:
                total += flat(derivative(self._nats(portion, chosen), list(chosen.values())))
        return total / self.tokens

    def check(self) -> None:
        """Hold that the gradient is finite.

        Raises:
            UserError: it is not; the block that is to blame is named.
        """
        sizes = [w.numel() for w in self.weights.values()]
        pieces = dict(zip(self.weights, self.gradient().split(sizes)))
        bad = {name for name, g in pieces.items() if not g.isfinite().all()}
        if not bad:
            return
        # The derivative comes from above: the topmost block that spoils its own is the one to blame.
        groups = [(k, self.group(b)) for k, b in enumerate(self.stack.order)]
        where = next((self._title(k) for k, names in reversed(groups) if bad & {*names}), "the rest of the model")
        raise UserError(
            f"{where} gives gradients with NaN or infinite numbers; expected finite ones; repair its weights"
        )

    @property
    def in_one(self) -> bool:
        """Whether the data is one portion."""
        return len(self._portions) == 1

    def group(self, b: int) -> list[str]:
        """Names of the weights of a distinct block."""
        own = {id(p) for p in self.stack.blocks[b].parameters()}
        return [name for name, p in self.stack.model.named_parameters() if id(p) in own and name in self.weights]

    def leaves(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Weights that gradients are asked for; their numbers are the model's own."""
        chosen = self.weights if names is None else names
        return {name: self.weights[name].detach().requires_grad_() for name in chosen}

    def portions(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[n, C]` of the labelled tokens and their labels, one portion of the data after another."""
        for portion in self._portions:
            yield self._logits(portion, tensors), portion.targets

    def _look(self, inputs: Inputs, prefix: int) -> Iterator[_Portion]:
        with undisturbed(self.stack.model), torch.no_grad():
            replay = Replay(self.stack, inputs)
            batch = Batch.of(self.stack, inputs, 0, prefix, None, 0)
            batch.settle(self.stack.layout.tokens(replay.states[0]), replay.states[0])
            self._check_states(replay)
            labels = batch.labels(self.stack)
            logits = read_logits(replay.output, replay.states[-1])
            if labels is None or logits is None:
                return
            _check_labels(labels, logits.shape[-1])
            few = replay.few_sequences()
        for sequences in few:
            targets = labels[sequences].flatten()
            places = (targets != -100).nonzero().flatten()
            if len(places):
                state = replay.states[-1].index_select(self.stack.layout.batch, sequences)
                yield _Portion(_in_float(rows(inputs, sequences)), state, places, targets[places])

    def _check_states(self, replay: Replay) -> None:
        bad = next((k for k, state in enumerate(replay.states) if not state.isfinite().all()), None)
        if bad is not None:
            where = "what stands before the tower" if bad == 0 else self._title(bad - 1)
            raise UserError(
                f"{where} gives states with NaN or infinite numbers; expected finite ones; repair its weights"
            )

    def _title(self, k: int) -> str:
        return f"block {k} ({self.stack.tower.block_paths[self.stack.order[k]]})"

    def _logits(self, portion: _Portion, tensors: Mapping[str, Tensor]) -> Tensor:
        with undisturbed(self.stack.model), sdpa_kernel(SDPBackend.MATH):
            output = self._called.with_tensors({**self.weights, **tensors}, portion.inputs)
        logits = read_logits(output, portion.state)
        assert logits is not None
        return in_float(logits).reshape(-1, logits.shape[-1])[portion.places]

    def _nats(self, portion: _Portion, tensors: Mapping[str, Tensor]) -> Tensor:
        """The summed loss of a portion."""
        return nn.functional.cross_entropy(self._logits(portion, tensors), portion.targets, reduction="sum")


class _Portion(NamedTuple):
    """Some sequences: inputs, the last state, which of the flattened logits have a label, and which label."""

    inputs: Inputs
    state: Tensor
    places: Tensor
    targets: Tensor


class _Called(nn.Module):
    """The model as a module that is called with one batch, and with other tensors than its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        half = {name: b for name, b in model.named_buffers() if b.is_floating_point() and b.itemsize < 4}
        self._wide = {name: in_float(b) for name, b in half.items()}

    def forward(self, inputs: Inputs) -> Any:
        return call(self.model, inputs)

    def with_tensors(self, tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
        """Run it; a tensor that has several names needs one of them only."""
        named = {f"model.{name}": x for name, x in {**self._wide, **tensors}.items()}
        return torch.func.functional_call(self, named, (inputs,))


@contextmanager
def differentiating() -> Iterator[None]:
    """Derivatives also where the caller has switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def derivative(number: Tensor, by: list[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """The gradient, with the graph left for another; zeros where it does not depend on a weight."""
    if not number.requires_grad:
        return [torch.zeros_like(w) for w in by]
    return torch.autograd.grad(number, by, retain_graph=True, create_graph=create_graph, materialize_grads=True)


def flat(pieces: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector, float64."""
    return torch.cat([x.detach().double().flatten() for x in pieces])


def _not_finite(where: str, what: str) -> UserError:
    return UserError(f"{where} gives {what} with NaN or infinite numbers; expected finite ones; repair its weights")


def _check_labels(labels: Tensor, classes: int) -> None:
    given = labels[labels != -100]
    if len(given) and (given.is_floating_point() or given.min() < 0 or given.max() >= classes):
        kind = str(given.dtype).removeprefix("torch.")
        raise UserError(
            f"got labels of type {kind} from {given.min()} to {given.max()}; expected whole numbers from 0 to "
            f"{classes - 1}, or -100 for none; give classes that the model knows"
        )


def _in_float(inputs: Inputs) -> Inputs:
    """Inputs in half precision, as images, in float32."""
    if isinstance(inputs, Tensor):
        return in_float(inputs) if inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple):
        return tuple(_in_float(x) if isinstance(x, Tensor) else x for x in inputs)
    return {key: _in_float(x) if isinstance(x, Tensor) else x for key, x in inputs.items()}
