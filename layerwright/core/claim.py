"""A claim of a paper as an experiment: numbers from several seeds, held against what the claim says they must be.

A claim's file measures plain numbers, one set a seed, and lists what is expected of them, controls included. The
decision is the same for all: `judge` puts a Student-t interval over seeds around each mean and asks on which side of
its bounds the whole interval lies. Where it lies on neither, the budget could not decide, and the verdict says so.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from layerwright.core.errors import UserError
from layerwright.core.paper import BY_ID, Paper
from layerwright.core.registry import nearest
from layerwright.core.trials import Budget, Trial

BUDGETS = ("small", "full")
WORDS = {True: "holds", False: "fails", None: "inconclusive"}


@dataclass(frozen=True)
class Expectation:
    """Where the mean of one number over seeds has to lie.

    Attributes:
        number: its name in a trial.
        meaning: what it is, in words.
        unit: its unit.
        low: it has to be above this, where given.
        high: it has to be below this, where given. With neither, the number is reported and decides nothing.
        control: it says whether the experiment can be trusted, not whether the claim is right.
    """

    number: str
    meaning: str
    unit: str = "1"
    low: float | None = None
    high: float | None = None
    control: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words; empty where the number decides nothing."""
        if self.low is None:
            return "" if self.high is None else f"below {self.high:g}"
        return f"above {self.low:g}" if self.high is None else f"between {self.low:g} and {self.high:g}"

    def met(self, low: float, high: float) -> bool | None:
        """True where the interval lies inside the bounds, False where it lies outside, None where it straddles one."""
        if not self.bounds or not (math.isfinite(low) and math.isfinite(high)):
            return None
        floor = -math.inf if self.low is None else self.low
        ceiling = math.inf if self.high is None else self.high
        if floor < low and high < ceiling:
            return True
        return False if high <= floor or low >= ceiling else None


@dataclass(frozen=True)
class Verdict:
    """What an experiment says about a claim.

    Attributes:
        expected: the claim, as far as the experiment tests it, in one sentence.
        measured: by name: meaning, unit, value, low, high, expected (in words), met, control.
        interval: the 95 % interval over seeds of the first number.
        holds: True, False, or None where the budget cannot decide or a control failed.
        conditions: what the numbers depend on: model, sizes, data, seeds.
        figure: a picture as SVG.
    """

    expected: str
    measured: dict[str, dict[str, Any]]
    interval: tuple[float, float]
    holds: bool | None
    conditions: dict[str, Any]
    figure: str | None = None

    @property
    def word(self) -> str:
        """`holds`, `fails` or `inconclusive`."""
        return WORDS[self.holds]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def judge(
    expected: str,
    trials: Sequence[Trial],
    expectations: Sequence[Expectation],
    *,
    conditions: Mapping[str, Any],
    figure: str | None = None,
) -> Verdict:
    """Hold numbers against expectations.

    For a number with values x_1 … x_n over n seeds, mean x̄ and standard deviation s,

        x̄ ± t_{0.975, n−1} · s / √n

    The verdict is `fails` where an interval lies outside its bounds, `holds` where all lie inside, `inconclusive`
    otherwise, and whenever a control lies outside: then the experiment does not measure what it was made for.

    Args:
        expected: the claim in one sentence.
        trials: numbers by name, one mapping a seed; other entries are ignored.
        expectations: what the numbers have to be; the first is the headline.
        conditions: what the numbers depend on.
        figure: a picture.

    Example:
        >>> verdict = judge("x is positive", [{"x": 1.0}, {"x": 1.1}, {"x": 0.9}], [Expectation("x", "x", low=0)],
        ...                 conditions={})
        >>> verdict.word, [round(bound, 2) for bound in verdict.interval]
        ('holds', [0.75, 1.25])
    """
    measured = {e.number: _measured(e, [trial[e.number] for trial in trials]) for e in expectations}
    first = measured[expectations[0].number]
    return Verdict(
        expected, measured, (first["low"], first["high"]), _decide(measured.values()), dict(conditions), figure
    )


def _measured(expectation: Expectation, values: Iterable[float | None]) -> dict[str, Any]:
    x = np.array([math.nan if v is None else v for v in values], dtype=float)
    low, high = _interval(x)
    return {
        "meaning": expectation.meaning,
        "unit": expectation.unit,
        "value": float(x.mean()),
        "low": low,
        "high": high,
        "expected": expectation.bounds,
        "met": expectation.met(low, high),
        "control": expectation.control,
    }


def _interval(x: np.ndarray) -> tuple[float, float]:
    if len(x) < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def _decide(measured: Iterable[Mapping[str, Any]]) -> bool | None:
    deciding = [m for m in measured if m["expected"]]
    if any(m["control"] and m["met"] is False for m in deciding):
        return None
    if any(m["met"] is False for m in deciding):
        return False
    return True if all(m["met"] for m in deciding) else None


@dataclass(frozen=True)
class Claim:
    """A registered claim: the experiment, the paper, and what it costs."""

    name: str
    run: Callable[[int, Budget], Verdict]
    paper: Paper
    minutes: Mapping[str, float]
    seeds: Mapping[str, int]
    title: str
    protocol: str


CLAIMS: dict[str, Claim] = {}


def claim(
    *, paper: str, minutes: tuple[float, float], seeds: tuple[int, int] = (5, 10)
) -> Callable[[Callable[[int, Budget], Verdict]], Callable[[int, Budget], Verdict]]:
    """Register `run(seed, budget) -> Verdict` as the test of a paper's claim, under the name of its file.

    The file's docstring says the claim in its first line, then the protocol, the control, and what counts as failure.

    Args:
        paper: an arXiv number of the bibliography (`core/paper.py`).
        minutes: what the small and the full budget take on two cores.
        seeds: how many seeds they run.

    Raises:
        ValueError: the name is taken, or the file has no docstring.
    """

    def register(run: Callable[[int, Budget], Verdict]) -> Callable[[int, Budget], Verdict]:
        name = run.__module__.rpartition(".")[2]
        if name in CLAIMS and CLAIMS[name].run.__module__ != run.__module__:
            raise ValueError(f"claim {name!r} is registered twice")
        title, _, protocol = (inspect.getdoc(sys.modules[run.__module__]) or "").partition("\n")
        if not (title and protocol.strip()):
            raise ValueError(f"claim {name!r} needs a docstring: the claim in one line, then protocol and control")
        CLAIMS[name] = Claim(
            name, run, BY_ID[paper], dict(zip(BUDGETS, minutes)), dict(zip(BUDGETS, seeds)), title, protocol.strip()
        )
        return run

    return register


def choose(names: Iterable[str], all_of_them: bool = False) -> list[Claim]:
    """The claims of these names, or all.

    Raises:
        UserError: there is none of a name; the nearest is suggested.
    """
    if all_of_them:
        return list(CLAIMS.values())
    names = list(names)
    for name in names:
        if name not in CLAIMS:
            raise UserError(f"unknown claim {name!r}; did you mean {nearest(name, CLAIMS)!r}? `lw claims` lists them")
    return [CLAIMS[name] for name in names]
