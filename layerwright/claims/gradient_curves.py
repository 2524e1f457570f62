"""Gradients of the attention projections along the tower, for claims about what data do to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import layerwright as lw

ATTENTION = "self_attn."


@dataclass(frozen=True)
class Gradients:
    """What the gradients by the attention projections are like, mean over documents.

    Attributes:
        nuclear_norm: `[matrix, block]`, nat/token.
        nuclear_norm_over_loss: the same of each document over its own loss.
        effective_rank: `[matrix, block]`.
        roughness: mean absolute difference of the nuclear norm between neighbouring blocks, `[matrix]`, nat/token.
    """

    nuclear_norm: np.ndarray
    nuclear_norm_over_loss: np.ndarray
    effective_rank: np.ndarray
    roughness: np.ndarray

    @property
    def relative_roughness(self) -> np.ndarray:
        """The roughness over the mean nuclear norm, `[matrix]`."""
        relative: np.ndarray = self.roughness / self.nuclear_norm.mean(1)
        return relative


def gradients(model: nn.Module, inputs: Mapping[str, Tensor], seed: int) -> Gradients:
    """Survey some documents.

    Args:
        model: a causal language model whose attention projections are found under `self_attn.`.
        inputs: `input_ids`, and where given `attention_mask` and `labels` (-100 where there is no loss).
        seed: of the survey.
    """
    names, every = ["gradient_spectrum", "gradient_roughness"], {"sequences": len(inputs["input_ids"])}
    survey = lw.survey(model, dict(inputs), only=names, options={"gradient_spectrum": every}, seed=seed)
    spectrum, rough = survey["gradient_spectrum"], survey["gradient_roughness"]
    rough = rough[(rough["stretch"] == "all") & (rough["quantity"] == "nuclear_norm")].set_index("matrix")["value"]
    curves = spectrum.pivot(index=["quantity", "matrix"], columns="block", values="value")
    matrices = [name for name in spectrum["matrix"].unique() if name.startswith(ATTENTION)]
    norm, over_loss, rank = (
        curves.loc[[(quantity, name) for name in matrices]].to_numpy()
        for quantity in ("nuclear_norm", "nuclear_norm_over_loss", "effective_rank")
    )
    return Gradients(norm, over_loss, rank, rough.loc[matrices].to_numpy())


def change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over matrices and blocks of ln(after / before).

    Example:
        >>> change(np.array([1.0, 2.0]), np.array([1.0, 2 * np.e]))
        0.5
    """
    return float(np.log(after / before).mean())


def beyond_untrained(trained: float, untrained: float) -> float:
    """By how much a change is more than twice, in either direction, what the untrained copy shows.

    Example:
        >>> beyond_untrained(-0.5, 0.125)
        0.25
    """
    return abs(trained) - 2 * abs(untrained)


def untrained(model: Any, seed: int) -> nn.Module:
    """A copy with the weights that training would start from."""
    torch.manual_seed(seed)
    copy: nn.Module = type(model)(model.config).eval()
    return copy


@torch.no_grad()
def loss_of(model: Any, inputs: Mapping[str, Tensor]) -> float:
    """Mean over documents of the mean loss of their labelled tokens, nat per token."""
    labels = inputs.get("labels", inputs["input_ids"])[:, 1:]
    asked = {name: x for name, x in inputs.items() if name != "labels"}
    nats = nn.functional.cross_entropy(
        model(**asked).logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    return float((nats.sum(1) / (labels != -100).sum(1)).mean())
