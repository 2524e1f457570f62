"""Theories: functions that say what a limit or a solvable model predicts. They see numbers and arrays, never a model.

A theory is a plain function that gives a `Prediction`. Its positional arguments are arrays that a user brings
(`--arrays FILE.npz`), those with a default may be left out; keyword-only arguments are options. Its docstring has a
section `Assumes:`, for a prediction is worth what its assumptions are.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from layerwright.core.errors import UserError
from layerwright.core.files import write_files
from layerwright.core.paper import BY_ID, Paper
from layerwright.core.registry import check_options, nearest, read_docstring
from layerwright.core.theory_inputs import check_real, of_kind
from layerwright.core.trials import plain

SCHEMA = 1
_FORMS = (".json", ".csv", ".svg")


@dataclass(frozen=True)
class Picture:
    """Lines to be drawn.

    Attributes:
        series: points `(x, y)`, or `(x, y, low, high)` with an interval, by the name of their line; a name that starts
            with `(` is drawn dashed.
        across: name and unit of the horizontal axis.
        up: name and unit of the vertical axis.
        log: whether the vertical axis is logarithmic.
        log_across: whether the horizontal one is.
    """

    series: Mapping[str, Sequence[tuple[float, ...]]]
    across: str
    up: str
    log: bool = False
    log_across: bool = False


@dataclass(frozen=True)
class Prediction:
    """What a theory says.

    Attributes:
        table: the numbers; its columns' units are in `units`.
        units: of the columns that have one; a column `unit` speaks for its row.
        notes: what the reader has to know beside them: what was fallen back to, where the theory says nothing.
        picture: how it looks, where that helps.
        theory: name, title, assumptions, paper and options; `predict` fills it in.
    """

    table: pd.DataFrame
    units: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    picture: Picture | None = None
    theory: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, quantity: str) -> float:
        """The value of a quantity, where the table has one a row.

        Raises:
            KeyError: there is none of that name.
        """
        if "quantity" not in self.table:
            raise KeyError(quantity)
        found = self.table.loc[self.table["quantity"] == quantity, "value"]
        if found.empty:
            raise KeyError(quantity)
        return float(found.iloc[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite are null."""
        columns = list(self.table.columns)
        rows = [plain(row) for row in self.table.itertuples(index=False, name=None)]
        return {
            "schema": SCHEMA, "theory": plain(dict(self.theory)), "columns": columns, "rows": rows,
            "units": dict(self.units), "notes": list(self.notes),
        }  # fmt: skip

    def svg(self) -> str:
        """The picture.

        Raises:
            UserError: there is none.
        """
        from layerwright.report.lines import lines

        if self.picture is None:
            raise UserError(f"{self.theory.get('name', 'this')} draws nothing; save it as .json or .csv")
        p = self.picture
        label = str(self.theory.get("title", ""))
        finite = {name: [x for x in points if all(map(math.isfinite, x))] for name, points in p.series.items()}
        series = {name: points for name, points in finite.items() if points}
        if not series:
            raise UserError("got a prediction without a finite number to draw; save it as .json or .csv")
        return lines(series, across=p.across, up=p.up, log=p.log, log_across=p.log_across, label=label)

    def save(self, file: str | Path) -> Path:
        """Write it as its name ends: `.json` (everything), `.csv` (the table) or `.svg` (the picture).

        Raises:
            UserError: the name ends otherwise, or there is no picture.
        """
        path = check_form(file)
        content = {
            ".json": lambda: json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False),
            ".csv": lambda: self.table.to_csv(index=False),
            ".svg": self.svg,
        }[path.suffix]()
        write_files(path.parent, {path.name: lambda: content})
        return path


def check_form(file: str | Path) -> Path:
    """The path of a file that a prediction can be written to.

    Raises:
        UserError: its name ends otherwise.
    """
    path = Path(file)
    if path.suffix not in _FORMS:
        raise UserError(f"got {path.name}; expected a name that ends with one of {', '.join(_FORMS)}")
    return path


@dataclass(frozen=True)
class Theory:
    """A registered theory.

    Attributes:
        name: of the theory.
        function: from arrays and options to a prediction.
        needs: names of its arrays, and whether it can do without.
        options: names and defaults of the others.
        paper: where it comes from.
        title: one line.
        definition: the prose of the docstring.
        formula: its indented block.
        assumes: what has to be true.
    """

    name: str
    function: Callable[..., Prediction]
    needs: Mapping[str, bool]
    options: Mapping[str, Any]
    paper: Paper
    title: str
    definition: str
    formula: str
    assumes: str


THEORIES: dict[str, Theory] = {}


def theory(*, paper: str) -> Callable[[Callable[..., Prediction]], Callable[..., Prediction]]:
    """Register a function as a theory.

    Args:
        paper: an arXiv number of the bibliography (`core/paper.py`).

    Raises:
        ValueError: the name is taken, or the docstring or its section `Assumes:` is missing.
    """

    def register(function: Callable[..., Prediction]) -> Callable[..., Prediction]:
        name = function.__name__
        if name in THEORIES and THEORIES[name].function.__module__ != function.__module__:
            raise ValueError(f"theory {name!r} is registered twice")
        parameters = inspect.signature(function).parameters.values()
        needs = {p.name: p.default is not p.empty for p in parameters if p.kind is not p.KEYWORD_ONLY}
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        title, definition, formula = read_docstring(function)
        definition = definition.split(" Assumes:")[0]
        THEORIES[name] = Theory(
            name, function, needs, options, BY_ID[paper], title, definition, formula, _assumes(function)
        )
        return function

    return register


def _assumes(function: Callable[..., Any]) -> str:
    """The section of the docstring that says what has to be true."""
    _, found, rest = (inspect.getdoc(function) or "").partition("\nAssumes:\n")
    if not found:
        raise ValueError(f"theory {function.__name__!r} does not say what it assumes")
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line.strip())
    return " ".join(filter(None, lines))


def find_theory(name: str) -> Theory:
    """The theory of that name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in THEORIES:
        raise UserError(
            f"unknown theory {name!r}; did you mean {nearest(name, THEORIES)!r}? `lw list theories` shows all"
        )
    return THEORIES[name]


def predict(name: str, arrays: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None) -> Prediction:
    """What a theory predicts.

    Args:
        name: of the theory.
        arrays: by name, those that it needs.
        options: of the theory.

    Raises:
        UserError: the theory, an array or an option is unknown, an array is missing, or a value cannot be used.
    """
    chosen, arrays, options = find_theory(name), dict(arrays or {}), dict(options or {})
    check_options(f"theory {name!r}", chosen.options, options)
    options = {option: of_kind(option, value, chosen.options[option]) for option, value in options.items()}
    if missing := [need for need, spare in chosen.needs.items() if need not in arrays and not spare]:
        raise UserError(f"theory {name!r} needs the array {missing[0]!r}; give it with --arrays FILE.npz")
    if unknown := [given for given in arrays if given not in chosen.needs]:
        expected = f"expected {', '.join(chosen.needs)}" if chosen.needs else "it takes none"
        raise UserError(f"theory {name!r} does not read the array {unknown[0]!r}; {expected}")
    for array, value in arrays.items():
        check_real(array, value)
    made = _made(chosen, arrays, options)
    about = {
        "name": name, "title": chosen.title, "definition": chosen.definition, "formula": chosen.formula,
        "assumes": chosen.assumes, "paper": chosen.paper.to_dict(),
        "options": {key: _named(value) for key, value in (dict(chosen.options) | options).items()},
    }  # fmt: skip
    return Prediction(made.table, made.units, made.notes, made.picture, about)


def _made(chosen: Theory, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Prediction:
    """What a theory makes of them; where its numbers leave what a computer holds, that is said in one line."""
    try:
        return chosen.function(**arrays, **options)
    except UserError:
        raise
    except (ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "allocate memory" in reason:
            what = "asks for more memory than there is; expected smaller sizes or arrays"
        elif isinstance(error, RuntimeError) and not reason.startswith("linalg."):
            raise
        else:
            what = f"has no numbers for these arrays and options ({reason}); expected less extreme ones"
        raise UserError(f"theory {chosen.name!r} {what}") from error


def _named(value: Any) -> Any:
    """A function by its name, which a file can hold."""
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


def quantities(rows: Sequence[tuple[str, float | str, str, str]]) -> pd.DataFrame:
    """A table of single numbers: quantity, value, unit, and what it is.

    Example:
        >>> quantities([("depth", 3.0, "block", "how many there are")])["value"].tolist()
        [3.0]
    """
    return pd.DataFrame(rows, columns=["quantity", "value", "unit", "meaning"])
