"""Whether a classifier points at the means of its classes: NC3, NC4 and their kin."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.class_moments import Classes
from layerwright.maths.collapse import gram

# Classes that are looked at together; distances of features to class means that are held at a time.
_ROWS, _DISTANCES = 512, 2**21


class Duality(NamedTuple):
    """How class means lie to the rows w_c of the classifier.

    Attributes:
        self_duality: NC3, ‖W Mᵀ/‖W Mᵀ‖_F − (I − 11ᵀ/K)/√(K − 1)‖_F; 0 where the rows are the simplex of the means.
        alignment: mean over classes of cos(w_c, μ_c − μ_G), in [-1, 1]; 1 where each row points at its mean.
        alignment_variance: its variance over classes; 0 for uniform duality.
        product: mean over classes of ⟨w_c, μ_c − μ_G⟩.
        product_variance: its variance over classes; 0 for uniform duality.
    """

    self_duality: float
    alignment: float
    alignment_variance: float
    product: float
    product_variance: float


def duality(means: Tensor, weight: Tensor, centre: Tensor) -> Duality:
    """Self-duality and uniform duality, on the smaller of the sides K and d; errors below 1e-7 are rounding.

    Args:
        means: μ_c, `[K, d]`.
        weight: w_c of the same classes, `[K, d]`, as they are: an offset that all rows share counts.
        centre: μ_G.

    Reference: self-duality arXiv 2206.04041, uniform duality 2405.17767.
    """
    products, cosines, count = [], [], len(means)
    for m, w in zip(means.split(_ROWS), weight.split(_ROWS)):
        product = torch.linalg.vecdot(m - centre, w.double())
        norms = torch.linalg.vector_norm(m - centre, dim=1) * torch.linalg.vector_norm(w.double(), dim=1)
        products.append(product)
        cosines.append(torch.where(norms == 0, torch.zeros_like(product), product / norms))
    product, cosine = torch.cat(products), torch.cat(cosines).clamp(-1.0, 1.0)
    if count <= means.shape[1]:
        length = float(torch.linalg.matrix_norm(weight.double() @ (means - centre).mT))
    else:
        length = math.sqrt(max(0.0, float((gram(weight) * gram(means, centre)).sum())))
    # Of the inner product with the simplex only the trace is left, as M has no mean.
    alike = float(product.sum()) / (length * math.sqrt(count - 1)) if length else 0.0
    error = math.sqrt(max(0.0, 1 + bool(length) - 2 * alike))
    return Duality(
        error, float(cosine.mean()), float(cosine.var(correction=0)), float(product.mean()),
        float(product.var(correction=0)),
    )  # fmt: skip


class Agreement:
    """NC4: how often the classifier and the nearest class mean name the same class, over features given again.

    Both choose among the classes seen, argmax ⟨w_c, x⟩ and argmin ‖x − μ_c‖. A feature that the means were made of is
    set beside the mean of its class *without itself*, at n/(n − 1) times the distance to the mean with it: else classes
    of few samples would agree for no other reason.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
        >>> classes = Classes(torch.arange(2), torch.ones(2), means, torch.zeros(2), None)
        >>> agreement = Agreement(classes, torch.eye(2))
        >>> agreement.update(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
        >>> agreement.result()
        1.0

    Reference: arXiv 2008.08186.
    """

    def __init__(self, classes: Classes, weight: Tensor) -> None:
        """Nothing compared yet.

        Args:
            classes: the means.
            weight: w_c in the same order, `[K, d]`.
        """
        self._classes, self._weight = classes, weight
        self._heights = torch.linalg.vecdot(classes.means, classes.means)
        self._agreed, self._seen = 0, 0

    def update(self, features: Tensor, places: Tensor | None = None) -> None:
        """Compare both on more features.

        Args:
            features: x, `[B, d]`.
            places: row of each one's own class, where the means were made of them, `[B]`.
        """
        means, counts = self._classes.means, self._classes.counts
        rows = max(1, _DISTANCES // len(means))
        for start in range(0, len(features), rows):
            part = features[start : start + rows].double()
            distance = torch.linalg.vecdot(part, part)[:, None] + self._heights - 2 * part @ means.mT
            if places is not None:
                own = places[start : start + rows, None]
                further = distance.gather(1, own) * (counts[own] / (counts[own] - 1)).square()
                distance.scatter_(1, own, further.masked_fill(counts[own] < 2, torch.inf))
            named = (part.to(self._weight.dtype) @ self._weight.mT).argmax(1)
            self._agreed += int((named == distance.argmin(1)).sum())
        self._seen += len(features)

    def result(self) -> float:
        """Share of the features on which both agree, in [0, 1]."""
        return self._agreed / self._seen
