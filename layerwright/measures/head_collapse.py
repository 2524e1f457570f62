"""How far what the head reads has collapsed to class means, and whether the head points at them."""

from __future__ import annotations

from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.core.labelled import labelled
from layerwright.core.registry import measure
from layerwright.maths.class_moments import ClassMoments
from layerwright.maths.collapse import UNITS, Alike, between, collapse
from layerwright.maths.duality import Agreement, Duality, duality

_UNITS = UNITS | dict.fromkeys((*Duality._fields, "agreement"), "1")


@measure(unit=_UNITS, tier="deep", paper="2405.17767")
def head_collapse(
    head_inputs: Tensor, head_weight: Tensor, targets: Tensor, *, least: int = 2
) -> dict[tuple[str], float]:
    """How far what the model's head reads has collapsed to class means, and whether the head's rows point at them.

    The quantities of `neural_collapse` for the inputs of the last linear map, after the final norm, by next token or
    label. Beside them, with w_c the row of that map for class c and M_c its centred mean,

        self_duality = ‖W Mᵀ/‖W Mᵀ‖ − (I − 11ᵀ/K)/√(K − 1)‖
        alignment, alignment_variance = mean and variance over classes of cos(w_c, M_c)
        product, product_variance = mean and variance over classes of ⟨w_c, M_c⟩
        agreement = mean of [argmax_c ⟨w_c, x⟩ = argmin_c ‖x − μ_c‖]

    At full collapse `self_duality` and the variances are 0, `alignment` and `agreement` 1. Only the rows of the classes
    that take part are looked at, without a bias. For `agreement` each x is set beside the mean of its class without x.

    Args:
        head_inputs: `[n, d]`.
        head_weight: `[V, d]`.
        targets: `[n]`.
        least: fewest samples of a class that takes part.

    Returns:
        by quantity.

    Raises:
        UserError: fewer than two classes, inputs that are not finite or are the same for all classes, labels that the
            head has no row for.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])
        >>> found = head_collapse(x, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
        >>> [found[name,] for name in ("self_duality", "alignment", "product", "agreement")]
        [0.0, 1.0, 2.0, 1.0]

    Reference: arXiv 2405.17767; self-duality 2206.04041, agreement 2008.08186.
    """
    chosen = labelled(head_inputs[None], targets, least)
    if chosen.classes[-1] >= len(head_weight):
        raise UserError(f"got label {int(chosen.classes[-1])}; expected one of the head's {len(head_weight)} classes")
    ((_, x),) = chosen.points()
    moments = ClassMoments(len(chosen.classes), x.shape[1])
    moments.add(x, chosen.places)
    classes = moments.result()
    try:
        spread = between(classes.means)
    except Alike as error:
        raise UserError(f"at the head {error}") from error
    weight = head_weight[chosen.classes[classes.labels]]
    agreement = Agreement(classes, weight)
    agreement.update(x, moments.rows(chosen.places))
    dual = duality(classes.means, weight, spread.centre)
    found = collapse(classes, spread) | dual._asdict() | {"agreement": agreement.result()}
    return {(name,): value for name, value in found.items()}
