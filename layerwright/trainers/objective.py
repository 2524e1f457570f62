"""What a model is asked to say, and how far it is from saying it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import call
from layerwright.core.replay import in_float, read_logits
from layerwright.core.sources import Batch
from layerwright.maths.similarity import relative_error

IGNORED = -100  # as a label: the position has none


class Objective(NamedTuple):
    """Cross-entropy of the class that each position should name.

    Attributes:
        kind: `next token` (a causal language model), `token` or `sequence` (a class for each, given as labels).
        classes: over which the model answers.
    """

    kind: str
    classes: int

    @classmethod
    def find(cls, model: nn.Module, inputs: Batch) -> Objective:
        """The objective that a model and its data allow.

        Args:
            model: in evaluation mode.
            inputs: one batch.

        Raises:
            UserError: the model gives no logits, or the data has no labels for those that it gives.
        """
        with torch.no_grad():
            logits = _logits(model, inputs)
            labels, ids = inputs.get("labels"), token_ids(inputs)
            if logits.ndim == 3 and ids is not None and logits.shape[:2] == ids.shape:
                if _is_causal(model, inputs, ids, logits):
                    return cls("next token", logits.shape[-1])
                if labels is not None and labels.shape == logits.shape[:2]:
                    return cls("token", logits.shape[-1])
                raise UserError(
                    "the model sees later tokens, so that the next one is no task for it; expected a causal language "
                    "model, or data with labels for every token"
                )
        if logits.ndim == 2 and labels is not None and labels.shape == logits.shape[:1]:
            return cls("sequence", logits.shape[-1])
        shape = None if labels is None else tuple(labels.shape)
        raise UserError(
            f"the model gives logits of shape {tuple(logits.shape)} and the data labels of shape {shape}; expected "
            "token ids for a causal language model, or a label for each logit"
        )

    def logits(self, model: nn.Module, inputs: Batch) -> Tensor:
        """What the model answers, `[batch, position, class]`, float32 or wider; a sequence has one position."""
        logits = in_float(_logits(model, inputs))
        return logits[:, None] if self.kind == "sequence" else logits

    def targets(self, inputs: Batch) -> Tensor:
        """The class that each position should name, `[batch, position]`; −100 for none."""
        labels = inputs.get("labels")
        if self.kind == "sequence":
            assert labels is not None
            return labels[:, None]
        ids = token_ids(inputs) if labels is None else labels
        assert ids is not None
        if self.kind == "token":
            return ids
        following = torch.full_like(ids, IGNORED)
        following[:, :-1] = ids[:, 1:]
        mask = inputs.get("attention_mask")
        if mask is not None:
            following[:, :-1].masked_fill_(mask[:, 1:] == 0, IGNORED)
        return following


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln p(target) at each position, `[batch, position]`, nat; 0 where there is no target.

    Example:
        >>> cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))  # ln 4
        tensor([[1.3863, 0.0000]])
    """
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(targets.shape)


def token_ids(inputs: Batch) -> Tensor | None:
    """The token ids of a batch, whatever the model calls them; None where it has none."""
    whole = (x for name, x in inputs.items() if name != "labels" and x.ndim == 2 and not x.is_floating_point())
    return inputs["input_ids"] if "input_ids" in inputs else next(whole, None)


def _logits(model: nn.Module, inputs: Batch) -> Tensor:
    logits = read_logits(call(model, inputs), torch.empty(0))
    if logits is None or logits.ndim < 2:
        raise UserError(
            f"{type(model).__name__} gives no logits; expected a model with a language-model head, such as one loaded "
            "by AutoModelForCausalLM"
        )
    return logits


def _is_causal(model: nn.Module, inputs: Batch, ids: Tensor, logits: Tensor) -> bool:
    """Change the later half of the tokens: in a causal model the earlier half answers as before."""
    half = ids.shape[1] // 2
    other = ids.clone()
    other[:, half:] = (ids[:, half:] + 1) % min(logits.shape[-1], int(ids.max()) + 2)
    named = {name: other if x is ids else x for name, x in inputs.items()}
    again = _logits(model, named)
    return half > 0 and relative_error(in_float(again[:, :half]), in_float(logits[:, :half])) <= 1e-3
