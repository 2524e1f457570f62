"""Labelled points on a sphere, with some to classify: what theories of deep classifiers read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from layerwright.core.errors import UserError
from layerwright.maths.kernel_classifier import merged
from layerwright.theories.wide_data import rows_of

# Samples whose kernels are held at once, and the share of them that is asked about where no queries are given.
_MOST, _THIRD = 8000, 3
# Cosines of inputs that are 0 but for rounding.
_ZERO = 1e-12


class SphereData(NamedTuple):
    """Points of norm 1.

    Attributes:
        inputs: different ones, `[N, columns]`.
        targets: the mean of the one-hot labels of each, `[N, C]`, classes in their order.
        queries: points to classify, `[M, columns]`.
        truth: their labels, as places among the classes, `[M]`, or None.
        notes: what was done to them.
    """

    inputs: np.ndarray
    targets: np.ndarray
    queries: np.ndarray
    truth: np.ndarray | None
    notes: list[str]


def sphere_data(inputs: object, labels: object, queries: object, query_labels: object) -> SphereData | None:
    """Arrays of a user, scaled to norm 1 and each point once; None where there are none.

    Args:
        inputs: `[N, columns]`.
        labels: whole numbers, `[N]`.
        queries: `[M, columns]`; None holds out every third input.
        query_labels: as the labels, `[M]`, or None.

    Raises:
        UserError: arrays that do not fit, zero vectors, negative products, or more rows than fit into memory.

    Example:
        >>> found = sphere_data(np.array([[3, 4], [3, 4]]), np.array([0, 1]), np.eye(2), None)
        >>> found.inputs.tolist(), found.targets.tolist()
        ([[0.6, 0.8]], [[0.5, 0.5]])
    """
    if inputs is None and labels is None and queries is None and query_labels is None:
        return None
    if inputs is None or labels is None or (queries is None and query_labels is not None):
        raise UserError(
            "got labels without their rows, or inputs without labels; expected inputs and labels, and queries for "
            "query_labels"
        )
    x, y = _directions(inputs, "inputs"), _labels_of(labels, "labels", inputs)
    notes = []
    if queries is None:
        held = np.arange(len(x)) % _THIRD == min(_THIRD, len(x)) - 1
        if len(x) < 2:
            raise UserError("got 1 input and no queries; expected queries, or more inputs to hold some out")
        notes.append(f"every third input, {held.sum()} in all, is held out and asked about")
        new, truth, x, y = x[held], y[held], x[~held], y[~held]
    else:
        new = _directions(queries, "queries")
        truth = None if query_labels is None else _labels_of(query_labels, "query_labels", queries)
    if x.shape[1] != new.shape[1]:
        raise UserError(f"got inputs of {x.shape[1]} columns and queries of {new.shape[1]}; expected the same")
    if max(len(x), len(new)) > _MOST:
        raise UserError(
            f"got {max(len(x), len(new))} rows; expected at most {_MOST}, whose kernels fit into memory: take a sample"
        )
    _refuse_negative(x, new)
    names, codes = np.unique(y if truth is None else np.concatenate([y, truth]), return_inverse=True)
    found = merged(x, codes[: len(y)], len(names))
    if twins := len(x) - len(found.points):
        notes.append(
            f"{twins} of {len(x)} inputs stand there more than once and count once, {found.mixed} of those left with "
            "the mean of labels that differ"
        )
    return SphereData(found.points, found.targets, new, None if truth is None else codes[len(y) :], notes)


def _directions(given: object, name: str) -> np.ndarray:
    found = rows_of(given, name)
    # Twice: a norm may overflow, or vanish.
    found = found / np.maximum(np.abs(found).max(1, keepdims=True), np.finfo(float).tiny)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    if not norms.all():
        raise UserError(
            f"got {int((norms == 0).sum())} of {len(found)} {name} that are zero vectors, which have no direction; "
            "leave those rows out"
        )
    return np.asarray(found / norms)


def _labels_of(given: object, name: str, rows: object) -> np.ndarray:
    found = np.asarray(given)
    if found.dtype.kind not in "biu" or found.shape != np.asarray(rows).shape[:1]:
        raise UserError(f"got {name} of type {found.dtype}, shape {found.shape}; expected a whole number for each row")
    return found.astype(int)


def _refuse_negative(x: np.ndarray, new: np.ndarray) -> None:
    if min(x.min(), new.min()) >= 0:
        return
    least = min(float((x @ x.T).min()), float((new @ x.T).min()))
    if least < -_ZERO:
        raise UserError(
            f"got inputs at a cosine of {least:.3g}; expected no negative ones, or the theorem does not hold (an odd "
            "activation flips the label of an opposite input): shift each feature so that it is never below 0"
        )
