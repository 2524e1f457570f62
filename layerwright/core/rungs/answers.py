"""What models answer to a batch, and how far two answers are apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, call, on_device, real_tokens
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.replay import in_float
from layerwright.core.trace import first_tensor
from layerwright.maths.entropy import kl_divergence

# How far apart two computations of the same numbers may be, over the largest of them (at least 1).
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
_AT_ONCE = 2**21


class Apart(NamedTuple):
    """How far answers are apart.

    Attributes:
        error: largest |Δ|.
        scale: the largest finite |answer|, at least 1: what the tolerance is a part of.
        top1: share of tokens whose likeliest class is the same; answers that are equally likely are the same.
        kl: mean KL(p‖q) over tokens, p the first model's, in nat.
    """

    error: float
    scale: float
    top1: float
    kl: float

    @property
    def relative(self) -> float:
        """The error over the scale."""
        return self.error / self.scale


@dataclass(frozen=True)
class Preserved:
    """Whether a step left the function as it was: what it declares, and what was measured.

    Attributes:
        step: its name.
        declared: `exact`, `approximate` or `none`.
        max_error: largest |Δ logit|.
        limit: how large it may be in an exact step: the dtype's tolerance times the largest |logit|, at least 1.
        top1: share of tokens with the same likeliest class.
        kl: mean KL(before‖after) in nat.
    """

    step: str
    declared: str
    max_error: float
    limit: float
    top1: float
    kl: float

    @property
    def held(self) -> bool:
        """Whether the step was exact."""
        return self.max_error <= self.limit and self.top1 == 1.0


def preserved(before: nn.Module, after: nn.Module, inputs: Inputs, *, step: str, declared: str) -> Preserved:
    """Measure on a batch what a step did to the function.

    Args:
        before: the model before the step.
        after: the model after it.
        inputs: a batch.
        step: its name.
        declared: what it says it does: `exact`, `approximate` or `none`.

    Raises:
        UserError: the models answer over different classes.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> preserved(model, model, torch.ones(1, 2), step="insert", declared="exact").held
        True
    """
    with undisturbed(unwrap(before)), undisturbed(unwrap(after)), torch.no_grad():
        found = apart(answer(before, inputs), answer(after, inputs), inputs)
    limit = max(tolerance(before), tolerance(after)) * found.scale
    return Preserved(step, declared, found.error, limit, found.top1, found.kl)


def answer(model: nn.Module, inputs: Inputs) -> Tensor:
    """What a model answers: logits, or the features of a model without a head, as `[B, N, V]` in float32 or wider."""
    return read_answer(call(model, on_device(inputs, model)))


def read_answer(output: Any) -> Tensor:
    """The same from a model's output.

    Raises:
        UserError: there is no tensor in it.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = logits if isinstance(logits, Tensor) else first_tensor(output)
    if found is None:
        raise UserError(f"the model returned {type(output).__name__} without a tensor; expected logits or features")
    found = in_float(found)
    return found.unsqueeze(1) if found.ndim < 3 else found.flatten(1, -2)


def apart(before: Tensor, after: Tensor, inputs: Inputs) -> Apart:
    """How far two answers `[B, N, V]` to a batch are apart, at its real tokens.

    Raises:
        UserError: they are of different shapes.

    Example:
        >>> a, b = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[0.0, 5.0]]])
        >>> found = apart(a, b, {})
        >>> found.error, found.scale, found.top1, found.relative
        (1.0, 4.0, 1.0, 0.25)
    """
    if before.shape != after.shape:
        what = "classes" if before.shape[:-1] == after.shape[:-1] else "answers"
        sizes = [x.shape[-1] if what == "classes" else list(x.shape) for x in (before, after)]
        raise UserError(
            f"the models give {sizes[0]} and {sizes[1]} {what} on the same batch and cannot be compared; expected two "
            "models with one vocabulary"
        )
    real = real_tokens(inputs, before, mask_name(inputs))
    p, q = before[real], after[real].to(before.device)
    error, agreed, divergence = 0.0, 0.0, 0.0
    # A few tokens at a time: in float64, a large vocabulary takes more memory than the model.
    for part in torch.arange(len(p), device=p.device).split(max(1, _AT_ONCE // p.shape[-1])):
        a, b = p[part].double(), q[part].double()
        error = max(error, largest(a, b))
        agreed += top1(a, b) * len(part)
        divergence += float(kl_divergence(a, b).sum())
    count = max(1, len(p))
    return Apart(error, scale(p), agreed / count if len(p) else 1.0, divergence / count)


def largest(x: Tensor, y: Tensor) -> float:
    """Largest |x − y|; equal infinities and NaN in the same places do not differ.

    Example:
        >>> inf, nan = float("inf"), float("nan")
        >>> largest(torch.tensor([1.0, -inf, nan]), torch.tensor([1.5, -inf, nan]))
        0.5
        >>> largest(torch.tensor([1.0]), torch.tensor([nan]))
        inf
    """
    same = (x == y) | (x.isnan() & y.isnan())
    delta = (x - y).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(delta.max()) if delta.numel() else 0.0


def scale(x: Tensor) -> float:
    """The largest finite |x|, at least 1."""
    known = x[x.isfinite()]
    return max(1.0, float(known.abs().max())) if known.numel() else 1.0


def top1(p: Tensor, q: Tensor) -> float:
    """Share of rows whose largest entry in q is also the largest in p, or as large as that.

    Example:
        >>> top1(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]]))
        0.5
    """
    if not len(p):
        return 1.0
    best = p.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
    return float((best == p.amax(-1)).double().mean())


def tolerance(model: nn.Module) -> float:
    """How far two computations of a model's numbers may be apart, by the coarsest dtype of its weights.

    Example:
        >>> tolerance(nn.Linear(1, 1)), tolerance(nn.Linear(1, 1).bfloat16())
        (1e-05, 0.02)
    """
    return max((_TOLERANCES.get(p.dtype, 1e-5) for p in model.parameters() if p.is_floating_point()), default=1e-5)


def mask_name(inputs: Inputs, causal: bool = True) -> str:
    """Which mask says what tokens of a tower are real: a decoder beside an encoder has its own."""
    own = isinstance(inputs, Mapping) and "decoder_input_ids" in inputs and causal
    return "decoder_attention_mask" if own else "attention_mask"


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model's forward names an argument."""
    return name in inspect.signature(inspect.unwrap(model.forward)).parameters
