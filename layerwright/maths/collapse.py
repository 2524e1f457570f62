"""How far features have collapsed to their class means, and how evenly the means lie: NC1, NC2 and their kin.

Whether the K classes or the width d are more, beside the means nothing larger is made than a few d × d matrices, one
column of K numbers a statistic and a few tiles of pairs: 8 (K d + 6 d² + 10 K + 2²²) bytes with the means, 130 MB at
20 000 classes and width 512.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from layerwright.maths.class_moments import Classes

# Classes that are looked at together, and beside as many others.
_TILE = 512
# Squares: features in float32 are known to about 1e-7 of their length, so that what is nearer than 1e-6 is alike.
_ROUNDING = 1e-12


class Alike(ValueError):
    """All class means are the same, so that nothing can be set in proportion to their spread."""


class Between(NamedTuple):
    """How class means spread: Σ_B = Σ (μ_c − μ_G)(μ_c − μ_G)ᵀ / K by its eigenvalues.

    Attributes:
        classes: K.
        centre: μ_G, the mean of the class means, `[d]`.
        values: its min(K − 1, d) largest eigenvalues, largest first; the others are zero.
        directions: their eigenvectors, `[d, r]`, of the r that are more than rounding.
    """

    classes: int
    centre: Tensor
    values: Tensor
    directions: Tensor


def between(means: Tensor) -> Between:
    """The spread of class means, on the smaller of the sides K and d.

    Raises:
        ValueError: there is but one class.
        Alike: all means are the same.

    Example:
        >>> between(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()).values
        tensor([1.], dtype=torch.float64)
    """
    count, width = means.shape
    if count < 2:
        raise ValueError(f"got {count} class; expected two or more")
    centre = means.mean(0)
    if count <= width:
        centred = means - centre
        values, vectors = torch.linalg.eigh(centred @ centred.mT / count)
        directions = torch.nn.functional.normalize(centred.mT @ vectors, dim=0)
    else:
        values, directions = torch.linalg.eigh(gram(means, centre) / count)
    values, directions = values.flip(0)[: count - 1].clamp_min(0.0), directions.flip(1)[:, : count - 1]
    if values.sum() <= _ROUNDING * centre.square().sum() or values[0] == 0:
        raise Alike("got class means that are all the same; expected features that differ between classes")
    return Between(count, centre, values, directions[:, values > _ROUNDING * values[0]])


def variability(covariance: Tensor, spread: Between) -> float:
    """NC1: Tr(Σ_W Σ_B†) / K, the within-class variance over that of the means in each direction; 0 when collapsed.

    Directions in which the means spread less than 1e-6 of the widest do not count. Since μ_G is the mean of the class
    means, Σ_B has a rank of K − 1 at most, and the form that keeps its K − 1 largest eigenvalues is the same number.

    Reference: arXiv 2008.08186; truncated in 2106.02073.
    """
    directions = spread.directions
    within = torch.linalg.vecdot(directions, covariance @ directions, dim=0)
    return float((within / spread.values[: directions.shape[1]]).sum() / spread.classes)


def etf_error(spread: Between) -> float:
    """NC2: ‖M Mᵀ/‖M Mᵀ‖_F − (I − 11ᵀ/K)/√(K − 1)‖_F with M the centred class means; 0 for a simplex ETF.

    Both matrices have the ones vector in their kernel and the second is the same in all other directions, so that the
    eigenvalues of Σ_B say it all.

    Reference: arXiv 2206.04041.
    """
    ideal = 1 / math.sqrt(spread.classes - 1)
    values = spread.values / torch.linalg.vector_norm(spread.values)
    missing = (spread.classes - 1 - len(values)) * ideal**2
    return math.sqrt(float((values - ideal).square().sum()) + missing)


def norm_spread(means: Tensor, spread: Between) -> float:
    """NC2, equinorm: standard deviation over mean of ‖μ_c − μ_G‖; 0 where all are as far from the centre.

    Reference: arXiv 2008.08186.
    """
    norms = torch.cat([torch.linalg.vector_norm(part - spread.centre, dim=1) for part in means.split(_TILE)])
    return float(norms.std(correction=0) / norms.mean())


class Pairs(NamedTuple):
    """What pairs of different classes say.

    Attributes:
        cdnv: class-distance normalized variance, mean of (σ_c² + σ_c'²) / (2 ‖μ_c − μ_c'‖²).
        cosine: mean of cos(μ_c − μ_G, μ_c' − μ_G), in [-1, 1]; -1/(K − 1) for a simplex ETF.
        cosine_spread: its standard deviation; 0 where all angles are equal.
        uniformity: variance of log 1/‖u_c − u_c'‖ with u the unit vectors of μ_c − μ_G, in nat².
        coinciding: share of pairs of the same mean, for which CDNV would be infinite: they are left out of it.
    """

    cdnv: float
    cosine: float
    cosine_spread: float
    uniformity: float
    coinciding: float


def pairs(means: Tensor, variances: Tensor, spread: Between) -> Pairs:
    """Statistics over all pairs of classes, a tile of pairs at a time: K² d / 2 multiplications.

    Means nearer than 1e-6 of their length coincide; directions nearer than that count as 1e-6 apart.

    Reference: CDNV arXiv 2112.15121; equal angles 2008.08186; uniformity 2303.06484, as in 2405.17767.
    """
    count = spread.classes
    cosine, uniformity = _Sums(-1 / (count - 1)), _Sums(0.5 * math.log((count - 1) / (2 * count)))
    ratio, apart = 0.0, 0
    for one, two, different in _tile_pairs(means, variances, spread.centre):
        product = (one.centred @ two.centred.mT)[different]
        distance = (one.square[:, None] + two.square)[different].sub_(product, alpha=2)
        ratios = (one.variances[:, None] + two.variances)[different].div_(distance)
        near = distance <= _ROUNDING * (one.length[:, None] + two.length)[different]
        apart += near.numel() - int(near.sum())
        ratio += float(ratios.masked_fill_(near, 0.0).sum()) / 2
        cosines = product.mul_((one.inverse[:, None] * two.inverse)[different]).clamp_(-1.0, 1.0)
        cosine.add(cosines)
        uniformity.add(cosines.mul_(-2).add_(2).clamp_min_(_ROUNDING).log_().mul_(-0.5))
    return Pairs(
        ratio / apart if apart else math.nan, cosine.mean, math.sqrt(cosine.variance), uniformity.variance,
        1 - apart / cosine.count,
    )  # fmt: skip


UNITS = dict.fromkeys(
    ("nc1", "variance_ratio", "cdnv", "equinorm", "equiangularity", "etf_error", "uniformity", "coinciding", "cosine",
     "classes", "samples"),
    "1",
)  # fmt: skip


def collapse(classes: Classes, spread: Between) -> dict[str, float]:
    """NC1, NC2 and their kin by name, as defined above; all but the last three are 0 for a collapsed simplex."""
    of_pairs = pairs(classes.means, classes.variances, spread)
    found = {} if classes.covariance is None else {"nc1": variability(classes.covariance, spread)}
    return found | {
        "variance_ratio": classes.within / float(spread.values.sum()),
        "cdnv": of_pairs.cdnv,
        "equinorm": norm_spread(classes.means, spread),
        "equiangularity": of_pairs.cosine_spread,
        "etf_error": etf_error(spread),
        "uniformity": of_pairs.uniformity,
        "coinciding": of_pairs.coinciding,
        "cosine": of_pairs.cosine,
        "classes": float(spread.classes),
        "samples": float(classes.counts.sum()),
    }


def gram(rows: Tensor, centre: Tensor | None = None) -> Tensor:
    """Xᵀ X of centred rows, a tile of rows at a time, `[d, d]`, float64."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(_TILE):
        x = part.double() if centre is None else part - centre
        total.addmm_(x.mT, x)
    return total


class _Tile(NamedTuple):
    """Some classes: centred means, ‖·‖² of them, 1/‖·‖ (0 of zero), ‖·‖² of the means as they are, variances."""

    centred: Tensor
    square: Tensor
    inverse: Tensor
    length: Tensor
    variances: Tensor


def _tile(means: Tensor, variances: Tensor, centre: Tensor) -> _Tile:
    centred = means - centre
    square, length = torch.linalg.vecdot(centred, centred), torch.linalg.vecdot(means, means)
    return _Tile(centred, square, square.rsqrt().masked_fill(square == 0, 0.0), length, variances)


def _tile_pairs(
    means: Tensor, variances: Tensor, centre: Tensor
) -> Iterator[tuple[_Tile, _Tile, Tensor | EllipsisType]]:
    """Tiles of classes beside tiles, and where in a matrix of them the pairs are that no other tile shows."""
    for a in range(0, len(means), _TILE):
        one = _tile(means[a : a + _TILE], variances[a : a + _TILE], centre)
        yield one, one, torch.ones(len(one.square), len(one.square), dtype=torch.bool, device=means.device).triu(1)
        for b in range(a + _TILE, len(means), _TILE):
            yield one, _tile(means[b : b + _TILE], variances[b : b + _TILE], centre), ...


class _Sums:
    """Mean and variance of numbers that come in parts, about a value that they are near to."""

    def __init__(self, near: float) -> None:
        self.near, self.count, self._sum, self._squares = near, 0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        x = x - self.near
        self.count += x.numel()
        self._sum += float(x.sum())
        self._squares += float(x.square().sum())

    @property
    def mean(self) -> float:
        return self.near + self._sum / self.count

    @property
    def variance(self) -> float:
        return max(0.0, self._squares / self.count - (self._sum / self.count) ** 2)
