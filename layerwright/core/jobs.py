"""Many independent jobs: in this process, in processes of this machine, or on a Ray cluster, with the same result.

A job is a key, a pure function and a seed made from the key. It runs on one thread, and its result travels as the bytes
of a packet, so no engine, order, retry or lost machine changes a bit of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import loky

from layerwright.core.errors import UserError
from layerwright.core.job import Job, JobFunction, Outcome, perform, seed_of, versions
from layerwright.core.packet import Packet
from layerwright.core.pool import run_pool
from layerwright.core.trials import code_digest

__all__ = ["Engine", "JobFunction", "JobsFailed", "parse_engine", "run_jobs", "seed_of"]

_NAMED = 3  # keys in a message
_SHOWN = 300  # characters of the first failure


class JobsFailed(UserError):
    """Some jobs raised, or killed their worker each time; all others are finished.

    Attributes:
        failures: key of each failed job, and what went wrong: one line, and the traceback where there is one.
    """

    def __init__(self, failures: Mapping[str, str], jobs: int, store: Path | None) -> None:
        self.failures = dict(failures)
        names = ", ".join(repr(key) for key in list(failures)[:_NAMED]) + (", …" if len(failures) > _NAMED else "")
        first = next(iter(failures.values())).splitlines()[0][:_SHOWN]
        kept = f"; the others are kept in {store}" if store else ""
        super().__init__(f"{len(failures)} of {jobs} jobs failed ({names}), the first with {first}{kept}")


class Engine(NamedTuple):
    """Where jobs run: `serial`, `pool` with a number of workers, or `ray` with an address (empty: this machine's)."""

    kind: str
    workers: int = 0
    address: str = ""


def parse_engine(text: str) -> Engine:
    """The engine that a name means: `serial`, a number of local workers, `auto` (one a core), `ray` or `ray://…`.

    Raises:
        UserError: another name, or Ray is named and not installed.

    Example:
        >>> parse_engine("serial"), parse_engine("4").workers
        (Engine(kind='serial', workers=0, address=''), 4)
    """
    if text == "serial":
        return Engine("serial")
    if text == "auto" or re.fullmatch(r"[1-9][0-9]{0,3}", text):
        return Engine("pool", workers=loky.cpu_count() if text == "auto" else int(text))
    if text == "ray" or re.fullmatch(r"ray://[^\s/]+:[0-9]{1,5}", text):
        if importlib.util.find_spec("ray") is None:
            raise UserError(f"got {text}, but Ray is not installed; pip install 'layerwright[cluster]'")
        return Engine("ray", address=text.removeprefix("ray") and text)
    raise UserError(
        f"got {text!r} for where jobs run; expected serial, a number of local workers from 1 on (or auto: one a core), "
        "ray, or ray://HOST:PORT"
    )


def run_jobs(
    function: JobFunction,
    keys: Sequence[str],
    payload: Any = None,
    *,
    engine: str | int = "serial",
    seed: int = 0,
    store: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    cpus: int = 1,
    retries: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Packet]:
    """`function(key, seed_of(seed, key), payload)` for each key; the same bits whatever the engine.

    Args:
        function: pure, and best at the top of a module: workers import it by name. One written in `__main__` is sent
            as it is, with the values its globals have now.
        keys: all different.
        payload: read by all jobs, changed by none; in workers it is a copy, and its arrays may be read-only.
        engine: see `parse_engine`.
        seed: of the run; each job gets its own.
        store: folder with one file a finished job. What is found there, made by the same function, settings, seed,
            package and torch, is not run again.
        settings: plain data that the results depend on, so also what tells one payload from another.
        cpus: that an engine sets aside for one job. The job still computes on one thread.
        retries: how often a job is run again whose worker died.
        progress: called with the jobs done and all jobs, at first and after each.

    Returns:
        The packets, in the order of the keys.

    Raises:
        JobsFailed: some jobs raised or killed their worker; the others are finished.
        UserError: a job asks for more CPUs than there are, the store cannot be used, or the cluster is lost.

    Example:
        >>> def double(key, seed, payload):
        ...     return Packet({"value": payload[key] * 2}, {})
        >>> {key: packet.data["value"] for key, packet in run_jobs(double, ["a", "b"], {"a": 1, "b": 2}).items()}
        {'a': 2, 'b': 4}
    """
    chosen = parse_engine(str(engine))
    if len(set(keys)) < len(keys):
        raise ValueError("two jobs have the same key")
    shelf = None if store is None else _Shelf(store, _made_by(function, settings or {}, seed))
    packets = {key: kept for key in keys if shelf and (kept := shelf.read(key))}
    left = [(key, seed_of(seed, key)) for key in keys if key not in packets]
    failures: dict[str, str] = {}
    progress(len(packets), len(keys))
    with closing(_outcomes(chosen, function, left, payload, cpus, retries)) as outcomes:
        for key, content, failure in outcomes:
            if failure:
                failures[key] = failure
            else:
                packets[key] = Packet.from_bytes(content)
                if shelf:
                    shelf.write(key, packets[key])
            progress(len(packets) + len(failures), len(keys))
    if failures:
        raise JobsFailed({key: failures[key] for key in keys if key in failures}, len(keys), store)
    return {key: packets[key] for key in keys}


def _outcomes(
    engine: Engine, function: JobFunction, jobs: Sequence[Job], payload: Any, cpus: int, retries: int
) -> Generator[Outcome, None, None]:
    if not jobs:
        return
    if engine.kind == "ray":
        from layerwright.core.cluster import run_cluster

        yield from run_cluster(function, jobs, payload, engine.address, cpus, retries)
        return
    if cpus > (cores := loky.cpu_count()):
        raise UserError(f"a job asks for {cpus} CPUs, this machine has {cores}; ask for fewer")
    if engine.kind == "pool":
        yield from run_pool(function, jobs, payload, engine.workers, retries)
        return
    for key, seed in jobs:
        yield perform(lambda: (function, payload), key, seed)


def _made_by(function: JobFunction, settings: Mapping[str, Any], seed: int) -> str:
    """SHA-256 of all that a result depends on beside its key."""
    name = f"{function.__module__}.{function.__qualname__}"
    everything = json.dumps([name, settings, seed, code_digest(), versions()], sort_keys=True, allow_nan=False)
    return hashlib.sha256(everything.encode()).hexdigest()


class _Shelf:
    """Packets in a folder, one file a key, each with what it was made by."""

    def __init__(self, folder: Path, made_by: str) -> None:
        self._folder = folder
        self._made_by = made_by
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from None

    def _file(self, key: str) -> Path:
        """A name that tells a reader which job it is, and a hash, as names of two keys may read alike."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", key)[:60].strip("-.")
        return self._folder / f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.packet"

    def read(self, key: str) -> Packet | None:
        """The result of a job; None where it is to be run: missing, damaged, or made by something else."""
        try:
            kept = Packet.read(self._file(key))
        except OSError as error:
            raise UserError(f"cannot read {self._file(key)}: {error.strerror or error}; choose another --out") from None
        data = kept.data if kept and isinstance(kept.data, dict) else {}
        if kept is None or (data.get("key"), data.get("made_by")) != (key, self._made_by):
            return None
        return Packet(data["result"], kept.tensors)

    def write(self, key: str, packet: Packet) -> None:
        """Keep a result, in place of an older one."""
        data = {"key": key, "made_by": self._made_by, "result": packet.data}
        Packet(data, packet.tensors).write(self._file(key))
