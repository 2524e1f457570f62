"""Which word may follow which: where the units that a word reads are not what its limit asks for, it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from layerwright.core.errors import UserError
from layerwright.theories.words import Act, Attention, Conv, Dense, Dropout, Flatten, Norm, Pool, Residual, Word

_KNOWN = "Dense, Conv, Attention, Act, Norm, Dropout, Residual, Flatten or Pool"


class Units(NamedTuple):
    """What a word reads.

    Attributes:
        reads: "rows", or where units have positions, "images" or "sequences".
        wide: whether they are many.
        gaussian: whether they are Gaussian.
        branch: whether they are inside of a residual branch.
    """

    reads: str
    wide: bool = False
    gaussian: bool = False
    branch: bool = False


def reads(words: Sequence[Word]) -> str:
    """What a tower reads: "rows", "images" or "sequences".

    Example:
        >>> reads([Dense()]), reads([Conv(3), Pool(), Dense()]), reads([Attention(), Pool(), Dense()])
        ('rows', 'images', 'sequences')
    """
    found = flat(words)
    if any(isinstance(word, Attention) for word in found):
        return "sequences"
    return "images" if any(isinstance(word, Conv | Flatten | Pool) for word in found) else "rows"


def flat(words: Sequence[Word]) -> list[Word]:
    """All words, with those of branches in the place of `Residual`.

    Example:
        >>> flat([Dense(), Residual([Act("relu"), Conv(3)])])[2]
        Conv(size=3, weight_variance=1.0, bias_variance=0.0, padding='same')
    """
    return [part for word in words for part in (flat(word.words) if isinstance(word, Residual) else [word])]


def check(words: Sequence[Word]) -> None:
    """Refuse words whose limit `tower` does not know.

    Raises:
        UserError: and what to write instead.
    """
    kind, found = reads(words), flat(words)
    if kind == "sequences" and any(isinstance(word, Conv) for word in found):
        raise UserError("got Conv and Attention in one tower; expected images or sequences: write one of them")
    if kind != "rows" and not any(isinstance(word, Flatten | Pool) for word in words):
        raise UserError("got positions without a readout; expected Pool() or Flatten(), and then Dense()")
    wrap = {word.padding == "circular" for word in found if isinstance(word, Conv) and word.size > 1}
    if len(wrap) > 1:
        raise UserError("got convolutions of which some are circular; expected all of them, or none")
    _check(words, Units(kind))


def _check(words: Sequence[Word], units: Units) -> None:
    last: tuple[type[Word], ...] = (Dense,)
    if units.branch and units.reads != "rows":
        last = (Conv,) if units.reads == "images" else (Dense, Attention)
    if not words or not isinstance(words[-1], last):
        names = " or ".join(kind.__name__ for kind in last)
        raise UserError(f"got a tower or a branch that does not end with {names}; expected its last word to be that")
    for word in words:
        units = _after(word, units)


def _after(word: Word, units: Units) -> Units:
    """The units that a word gives."""
    name, positions = type(word).__name__, units.reads != "rows"
    match word:
        case Dense() if units.reads == "images":
            raise UserError(
                "got Dense on images; expected Pool() or Flatten() before it, or Conv(1) for a dense layer at each "
                "position"
            )
        case Conv() | Attention() if not positions:
            raise UserError(f"got {name} after Flatten or Pool; expected it before them")
        case Conv() if units.branch and word.padding == "valid" and word.size > 1:
            raise UserError("got a branch that makes images smaller; expected padding='same' or 'circular' in it")
        case Flatten() | Pool() if not positions or units.branch:
            raise UserError(f"got {name} in a branch or twice; expected one readout of the positions")
        case Act() if not units.gaussian:
            raise UserError(
                "got Act on units that are not Gaussian; expected Dense, Conv, Attention, or Residual or Norm after it"
            )
        case Dropout() if units.reads == "images":
            raise UserError("got Dropout on images; expected it after Flatten() or Pool()")
        case Dropout() | Residual() if not units.wide:
            raise UserError(f"got {name} on the inputs; expected Dense, Conv or Attention before it")
        case Dense() | Conv() | Attention():
            return units._replace(wide=True, gaussian=True)
        case Act() | Dropout():
            return units._replace(gaussian=False)
        case Flatten():
            # Positions differ in variance: what an activation makes of them is no function of their mean.
            return units._replace(reads="rows", gaussian=False)
        case Pool():
            return units._replace(reads="rows")
        case Residual():
            _check(word.words, units._replace(branch=True))
            return units
        case Norm():
            return units
    raise UserError(f"got {name} in a tower; expected {_KNOWN}")
