"""Jobs on a Ray cluster. Ray places them and moves their bytes; what a lost machine had is handed out again here."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from itertools import islice
from typing import Any

import cloudpickle

from layerwright.core.errors import UserError
from layerwright.core.job import Job, JobFunction, Outcome, describe, perform, versions

INSTALL = "pip install 'layerwright[cluster]'"
_AHEAD = 1000  # jobs in Ray's queue, so that results are taken in while others are still handed over
_POLL_S = 0.2
_QUIET = 25  # polls without a result
_TRIES = 3


def run_cluster(
    function: JobFunction, jobs: Sequence[Job], payload: Any, address: str, cpus: int, retries: int
) -> Iterator[Outcome]:
    """Outcomes as they come. Running jobs are cancelled when the iterator is closed, also by Ctrl-C.

    Args:
        function: what a job runs; imported by name on the machines, unless it was written in `__main__`.
        jobs: key and seed of each.
        payload: goes to each machine once, and is unpacked by each worker once; its arrays are read-only.
        address: `ray://HOST:PORT`, or empty for the cluster of this machine, which is started where there is none.
        cpus: of one job, as Ray counts them.
        retries: how often a job is run again whose worker or machine was lost.

    Raises:
        UserError: no connection, it is lost on the way, or no machine has so many CPUs.
    """
    with _session(address) as ray:
        _check_cpus(ray, cpus)
        run = _Run(ray, function, payload, cpus, retries)
        try:
            yield from run.run(jobs)
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            raise UserError(
                f"lost the Ray cluster {address or 'of this machine'}: {_line(error)}; start it again and repeat: what "
                "was finished is in the store, if there is one"
            ) from None
        except ImportError as error:  # a client's head node unpacks what it is given
            raise UserError(f"{_line(error)} on the Ray cluster; install the same packages on all machines") from None
        except BaseException:
            run.cancel()
            raise


class _Run:
    """Jobs that were handed to Ray."""

    def __init__(self, ray: Any, function: JobFunction, payload: Any, cpus: int, retries: int) -> None:
        self._ray = ray
        # Ray's own retries are off: it repeats a job that ran out of memory for ever (measured with 2.60).
        self._work = ray.remote(num_cpus=cpus, max_retries=0)(_work)
        # The function as bytes: where it cannot be imported, that is to be the failure of a job.
        self._given: Any = cloudpickle.dumps(function), payload
        self._cpus = cpus
        self._retries = retries
        self._running: dict[Any, Job] = {}
        self._losses: Counter[Job] = Counter()

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Keep Ray's queue filled, and hand out what arrives."""
        self._given = [self._ray.put(self._given)]
        left = iter(jobs)
        quiet = 0
        while True:
            for job in islice(left, _AHEAD - len(self._running)):
                self._start(job)
            if not self._running:
                return
            running = list(self._running)
            ready, _ = self._ray.wait(running, num_returns=len(running), timeout=_POLL_S)
            quiet = 0 if ready else quiet + 1
            if quiet % _QUIET == _QUIET - 1:  # a machine may be gone without which no job can run
                _check_cpus(self._ray, self._cpus)
            for future in ready:
                outcome = self._settle(future)
                if outcome is not None:
                    yield outcome

    def _start(self, job: Job) -> None:
        self._running[self._work.remote(*job, self._given, versions())] = job

    def _settle(self, future: Any) -> Outcome | None:
        """The outcome of a job; None where its worker was lost and it is to be run again."""
        errors = self._ray.exceptions
        job = self._running.pop(future)
        try:
            return self._ray.get(future)
        except errors.RayTaskError as error:  # what a job raises is in its outcome: this comes before it
            if not isinstance(error.cause, errors.ObjectLostError):  # of the payload, with a machine
                return Outcome(job[0], b"", describe(error.cause or error))
            loss = error.cause
        except errors.RaySystemError:
            raise
        except errors.RayError as error:
            loss = error
        self._losses[job] += 1
        if self._losses[job] <= self._retries:
            self._start(job)
            return None
        reason = f"its worker was lost ({self._losses[job]} times): {type(loss).__name__}: {_line(loss)}"
        return Outcome(job[0], b"", f"{reason}\n{loss}")

    def cancel(self) -> None:
        """Stop what still runs."""
        for future in self._running:
            with suppress(Exception):
                self._ray.cancel(future, force=True)


# What this worker was given, by the name of the object: unpacked for its first job, and kept for the next ones.
_unpacked: dict[str, tuple[bytes, Any]] = {}


def _work(key: str, seed: int, given: list[Any], expected: str) -> Outcome:
    """One job, on some machine; a list, as Ray would unpack a bare object again for each job."""
    if versions() != expected:
        reason = f"a machine has {versions()}, the one that started the jobs has {expected}; install the same on all"
        return Outcome(key, b"", reason)
    (place,) = given
    if place.hex() not in _unpacked:
        _unpacked.clear()
        _unpacked[place.hex()] = import_module("ray").get(place)
    function, payload = _unpacked[place.hex()]
    return perform(lambda: (cloudpickle.loads(function), payload), key, seed)


@contextmanager
def _session(address: str) -> Iterator[Any]:
    """Ray, connected; only what was started here is shut down."""
    ray = _import(address)
    # Ray tells of lost workers on stdout, where a command may be writing JSON.
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            if address:
                raise UserError(
                    f"got {address}, but this process is connected to Ray already; call ray.shutdown() first, or "
                    "choose the engine ray, which takes the connection that is there"
                )
            yield ray
            return
        handler, state = signal.getsignal(signal.SIGTERM), random.getstate()
        try:
            _connect(ray, address)
            if threading.current_thread() is threading.main_thread():  # where Ray has put a handler of its own
                signal.signal(signal.SIGTERM, handler)
            yield ray
        finally:
            ray.shutdown()
            random.setstate(state)  # from which Ray draws names


def _import(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A job sees the accelerators that a job in the driver would see.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address:
            import_module("grpc")
        return import_module("ray")
    except ImportError as error:
        raise UserError(f"Ray cannot be imported ({_line(error)}); {INSTALL}") from None


def _connect(ray: Any, address: str) -> None:
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if address:
                _be_client(ray, address, options)
                return
            try:
                ray.init("auto", **options)
            except ConnectionError as error:
                if error.__cause__:  # there is one, which cannot be reached or wants a token
                    raise
                ray.init("local", include_dashboard=False, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot connect to the Ray cluster {address or 'of this machine'}: {_line(error)}; expected one that runs "
            "(`ray stop` forgets one that does not), with the same Ray, Python and token (see docs/cluster.md)"
        ) from None


def _be_client(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    """Connect from outside. The head node starts a process for each client, which on a busy one fails now and then."""
    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(address, **options)
            return
        except ConnectionAbortedError:
            ray.shutdown()
            if not tries_left:
                raise


def _check_cpus(ray: Any, cpus: int) -> None:
    """Ray waits for ever for a machine that can take a job."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > largest:
        raise UserError(
            f"a job asks for {cpus} CPUs, the largest machine of the Ray cluster has {largest:g}; ask for fewer, or "
            "add a larger machine"
        )


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
