"""Trials: the same experiment under several seeds, each result kept, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from layerwright.core.errors import UserError
from layerwright.core.files import write_files

Trial = Mapping[str, Any]
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Budget:
    """How large an experiment is, and where the results of its trials are kept.

    Attributes:
        name: `small` or `full`; each claim says what that means for it.
        seeds: number of trials.
        folder: where results are kept; nowhere if None.
        progress: called with the trials done and the trials to do.

    Example:
        >>> Budget(seeds=2).repeat(lambda seed, power: {"x": seed**power}, 3, power=2)
        [{'x': 9}, {'x': 16}]
    """

    name: str = "small"
    seeds: int = 5
    folder: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None

    def repeat(self, trial: Callable[..., Trial], first: int, **settings: Any) -> list[Trial]:
        """`trial(seed, **settings)` for the seeds from `first` on; the ones already kept are read, not run.

        A trial gives plain numbers and lists of them, by name. It runs with torch's random numbers seeded, and the
        caller's are put back afterwards. A kept result counts only where code, weights and settings are the same.

        Raises:
            UserError: the folder cannot be written.
        """
        results = []
        for k in range(self.seeds):
            self.progress(k, self.seeds)
            results.append(self._one(trial, first + k, settings))
        self.progress(self.seeds, self.seeds)
        return results

    def _one(self, trial: Callable[..., Trial], seed: int, settings: Mapping[str, Any]) -> Trial:
        made_by = {"code": code_digest(), "settings": json.loads(json.dumps(settings))}
        name = f"{trial.__name__.strip('_')}-{seed}.json"
        kept = None if self.folder is None else _read(self.folder / name)
        if kept is not None and {key: kept.get(key) for key in made_by} == made_by:
            return kept["numbers"]
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            numbers = plain(trial(seed, **settings))
        if self.folder is not None:
            document = {"seed": seed, "seconds": round(time.perf_counter() - start, 1), **made_by, "numbers": numbers}
            write_files(self.folder, {name: lambda: json.dumps(document, indent=1, allow_nan=False)})
        return numbers


def _read(file: Path) -> dict[str, Any] | None:
    """A kept result; None where there is none, or what is there is no result (then it is made again)."""
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; choose another --out") from None
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("numbers"), dict) else None


def plain(value: Any) -> Any:
    """Plain data for strict JSON: arrays as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def code_digest() -> str:
    """SHA-256 over the package's source and the bundled model: what a kept number was made by."""
    sha = hashlib.sha256()
    for file in sorted([*_PACKAGE.rglob("*.py"), *_PACKAGE.rglob("*.safetensors")]):
        sha.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()[:16]
