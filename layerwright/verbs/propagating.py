"""`signal_propagation`: what theory says of a network of the user's own, beside what the network does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.paper import BY_ID
from layerwright.core.registry import BY_NAME
from layerwright.core.sharded import is_sharded
from layerwright.core.stack import Stack
from layerwright.core.survey import Survey
from layerwright.core.tangent.model import given
from layerwright.core.theory import Picture, Prediction
from layerwright.core.tower_ops import Dense, Elementwise, Given, Norm, Reading, Sum
from layerwright.core.tower_reader import read_tower
from layerwright.core.tower_trace import no_tower
from layerwright.maths import kernel, propagation
from layerwright.maths.activation import Activation, activation
from layerwright.maths.kernel import State
from layerwright.verbs.measuring import INDEPENDENT

NAME = "signal_propagation"
TITLE = "How signals and gradients go through the network: predicted and measured"
DEFINITION = (
    "By layer, the mean square of its units (`variance`), the mean cosine between two inputs (`correlation`), and the "
    "squared length of the gradient by its units, of the outputs along a random direction (`gradient`). Intervals are "
    "over the units of the layer."
)
FORMULA = "K ← C_b + C_W E φ(u) φ(v),   ‖gradient‖² ← χ⊥ ‖gradient‖², χ⊥ = C_W E φ′(u)²,   u, v ~ N(0, K)"
ASSUMES = (
    "weights and biases drawn independently with mean 0, as at initialisation; their variances C_W and C_b are those "
    "of the network's own numbers. Infinite width: the intervals are those of the layer's own draw, and what the "
    "layers before it drew otherwise than expected is carried on beside them, more of it with depth over width."
)
PAPER = "2106.10165"
UNITS = {"variance": "1", "correlation": "1", "gradient": "1"}


def signal_propagation(model: nn.Module, inputs: Any, *, seed: int = 0) -> Prediction:
    """Hold theory against a network at initialisation, layer by layer.

    The network is read off one call as a tower of dense layers, elementwise activations, norms and residual sums; how
    it is written does not matter. Each layer's C_W and C_b are those of its own weights and biases, so that nothing is
    fitted and no initialisation is asked for. In a trained network the gap is what training has made of it.

    Args:
        model: any module that is such a tower.
        inputs: one batch, as the model takes it: a tensor, an array, a tuple, or a dict of named ones. 32 rows of it
            are looked at.
        seed: of the directions of gradients, and of the intervals.

    Returns:
        a row for each layer and quantity (`variance`, `correlation`, `gradient`): what is `predicted`, and the `value`
        measured, with an interval over the layer's units; its picture, and `save`.

    Raises:
        UserError: the network is no such tower, or its activation has no limit; the message says where, in one line.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
        >>> _ = net[0].weight.data.copy_(torch.eye(4)), net[2].weight.data.fill_(1.0)
        >>> found = signal_propagation(net, torch.ones(2, 4)).table
        >>> found[["layer", "name", "quantity", "weight_variance"]].values.tolist()[:2]
        [[0, '0', 'variance', 1.0], [0, '0', 'correlation', 1.0]]

    Reference: arXiv 2106.10165.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"got a model of type {type(model).__name__}; expected a torch module")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"got seed={seed!r}; expected a whole number from 0 on")
    reading = read_tower(model, given(inputs, model), seed)
    _check(reading)
    try:
        table = _table(reading, seed)
    except ValueError as error:
        raise UserError(f"theory does not match this network: {error}") from None
    about = {
        "name": NAME, "title": TITLE, "definition": DEFINITION, "formula": FORMULA, "assumes": ASSUMES,
        "paper": BY_ID[PAPER].to_dict(), "options": {"seed": seed},
    }  # fmt: skip
    return Prediction(table, {"units": "unit"}, [*reading.notes, *_gaps(table)], _picture(table), about)


def beside(survey: Survey, stack: Stack, inputs: Any, seed: int) -> None:
    """Put what theory predicts of a surveyed model beside what was measured; or say why there is nothing to say.

    Args:
        survey: gets a table; the size of the stream from independent branches goes where there is more to be said.
        stack: its model.
        inputs: a batch.
        seed: of the survey.
    """
    try:
        _check_readable(stack)
        found = signal_propagation(stack.model, inputs, seed=seed)
    except UserError as error:
        survey.notes.append(str(error))
        return
    survey.tables.pop(INDEPENDENT, None)
    survey.tables[NAME] = _as_measured(found)
    survey.notes += [f"{NAME}: {note}" for note in found.notes]


def _check_readable(stack: Stack) -> None:
    """Say at once of a large model what a trace of it would come to."""
    if any(p.is_meta or is_sharded(p) for p in stack.model.parameters()):
        raise no_tower("its weights are not all in memory here")
    if "attention" in stack.role_names:
        raise no_tower("its blocks have attention")


def _as_measured(found: Prediction) -> pd.DataFrame:
    """The prediction as a table of a survey: a row for what was measured, and one for what was predicted."""
    columns = ["layer", "numbers", "quantity", "value", "low", "high", "name"]
    measured = found.table.assign(numbers="measured")[columns]
    predicted = found.table.assign(numbers="predicted", value=found.table["predicted"], low=np.nan, high=np.nan)[
        columns
    ]
    frame = pd.concat([measured, predicted], ignore_index=True)
    about = {key: found.theory[key] for key in ("name", "title", "definition", "formula", "paper")}
    frame.attrs = about | {"unit": UNITS, "range": [None, None], "tier": BY_NAME, "index": columns[:3]}
    return frame


def _check(reading: Reading) -> None:
    for number, x in reading.values.items():
        if not x.isfinite().all():
            raise UserError(
                f"got NaN or infinite numbers in {reading.steps[number].name}; expected finite ones: leave such inputs "
                "out, or repair the weights"
            )


def _table(reading: Reading, seed: int) -> pd.DataFrame:
    """What is predicted and what is measured, a row for each layer and quantity."""
    phis = {n: activation(s.function) for n, s in enumerate(reading.steps) if isinstance(s, Elementwise)}
    kernels = _forward(reading, phis)
    gradients = _backward(reading, phis, kernels)
    rows = []
    for layer, number in enumerate(sorted(reading.gradients)):
        step, x, k = reading.steps[number], reading.values[number], kernels[number]
        variances = (step.weight_variance, step.bias_variance) if isinstance(step, Dense) else (np.nan, np.nan)
        about = [layer, step.name, x.shape[1], *variances]
        predicted = (k.q1.mean(), _correlation(k), gradients[number].mean())
        measured = propagation.measured(x, reading.gradients[number], seed)
        if number == max(reading.gradients):  # the direction itself, of length 1 whatever its units
            measured = measured._replace(gradient=propagation.Interval(1.0, 1.0, 1.0))
        for quantity, theirs, found in zip(measured._fields, predicted, measured, strict=True):
            rows.append([*about, quantity, float(theirs), *found])
    columns = ["layer", "name", "units", "weight_variance", "bias_variance", "quantity"]
    return pd.DataFrame(rows, columns=[*columns, "predicted", "value", "low", "high"])


def _forward(reading: Reading, phis: Mapping[int, Activation]) -> list[State]:
    """The kernel of every step."""
    found: list[State] = []
    for number, step in enumerate(reading.steps):
        of = [found[k] for k in step.of]
        match step:
            case Given():
                found.append(kernel.inputs(reading.values[number]))
            case Dense():
                found.append(kernel.dense(step.weight_variance, step.bias_variance)(of[0]))
            case Elementwise():
                found.append(kernel.nonlinear(phis[number])(of[0]))
            case Norm():
                found.append(_times(kernel.norm(step.eps)(of[0]), step.scale))
            case Sum():
                first, *others = (_times(k, s) for k, s in zip(of, step.scales, strict=True))
                found.append(kernel.add(first, *others))
    return found


def _times(k: State, scale: float) -> State:
    return replace(k, **{name: scale**2 * getattr(k, name) for name in ("q1", "q2", "nngp", "ntk")})


def _backward(reading: Reading, phis: Mapping[int, Activation], kernels: Sequence[State]) -> list[Tensor]:
    """The squared length of the gradient by every step's units, for each input, of an end along a unit vector.

    Ways that meet have gone through different weights, and are uncorrelated.
    """
    found = [torch.zeros_like(kernels[0].q1) for _ in reading.steps]
    found[-1] += 1
    for number, step in reversed([*enumerate(reading.steps)]):
        factors: Sequence[Tensor | float] = ()
        match step:
            case Dense():
                factors = [step.weight_variance]
            case Elementwise():
                factors = [phis[number].diagonal_derivative(kernels[step.of[0]].q1)]
            case Norm():
                factors = [step.scale**2 / (kernels[step.of[0]].q1 + step.eps)]
            case Sum():
                factors = [s**2 for s in step.scales]
        for k, factor in zip(step.of, factors, strict=True):
            found[k] = found[k] + factor * found[number]
    return found


def _correlation(k: State) -> Tensor:
    """Mean over pairs of inputs that are not zero there."""
    scale = (k.q1[:, None] * k.q2).sqrt()
    pairs = (scale > 0).fill_diagonal_(False)
    return (k.nngp[pairs] / scale[pairs]).mean()


def _gaps(table: Any) -> list[str]:
    """Where prediction and measurement are farthest apart, in words."""
    notes = []
    for quantity in ("variance", "gradient"):
        rows = table[table["quantity"] == quantity]
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.abs(np.log(rows["value"] / rows["predicted"]))
        if np.isfinite(apart).any():
            row = rows.loc[apart[np.isfinite(apart)].idxmax()]
            notes.append(
                f"{quantity}: measured and predicted are farthest apart at {row['name']}, {row['value']:.4g} against "
                f"{row['predicted']:.4g}"
            )
    return notes


def _picture(table: pd.DataFrame) -> Picture | None:
    """Variance and gradient; of a residual network, those of the stream alone."""
    sums = table[table["weight_variance"].isna()]
    series: dict[str, list[tuple[float, ...]]] = {}
    for quantity in ("variance", "gradient"):
        rows = (sums if sums["layer"].nunique() > 1 else table).query("quantity == @quantity")
        rows = rows[rows[["predicted", "low"]].min(axis=1) > 0]
        if len(rows):
            series[quantity] = [*rows[["layer", "value", "low", "high"]].itertuples(index=False, name=None)]
            series[f"({quantity}, predicted)"] = [*rows[["layer", "predicted"]].itertuples(index=False, name=None)]
    return Picture(series, across="layer", up="mean square (1)", log=True) if series else None
