"""Jobs in processes of this machine: each worker is a pool of one, so that a worker that dies names its job."""

# A new worker imports this module before it reads what it is given off a pipe, while the driver waits: nothing that
# takes long is imported up here.
from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import cache
from typing import TYPE_CHECKING, Any

import cloudpickle
from loky import BrokenProcessPool, ProcessPoolExecutor

if TYPE_CHECKING:
    from layerwright.core.job import Job, JobFunction, Outcome

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# A worker that keeps a model between its jobs does not leak. Versions before 3.7 do not know this, and say so.
_MAY_GROW = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
_GREW = "A worker (stopped|was restarted) while some jobs"
_WATCH_S = 0.5


def run_pool(function: JobFunction, jobs: Sequence[Job], payload: Any, workers: int, retries: int) -> Iterator[Outcome]:
    """Outcomes as they come. Workers are killed when the iterator is closed, also by Ctrl-C.

    Args:
        function: what a job runs.
        jobs: key and seed of each.
        payload: goes to each worker once.
        workers: processes at a time.
        retries: how often a job is run again whose worker died.
    """
    pool = _Pool(cloudpickle.dumps((function, payload)), min(workers, len(jobs)), retries)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_GREW, category=UserWarning)
        try:
            yield from pool.run(jobs)
        finally:
            pool.kill()


class _Pool:
    """Workers, which of them are idle, and jobs that are running."""

    def __init__(self, given: bytes, workers: int, retries: int) -> None:
        self._given = given
        self._retries = retries
        self._workers: set[ProcessPoolExecutor] = set()
        self._idle = [self._worker() for _ in range(workers)]
        self._running: dict[Future[Outcome], tuple[Job, ProcessPoolExecutor]] = {}
        self._deaths: Counter[Job] = Counter()

    def _worker(self) -> ProcessPoolExecutor:
        given = (os.getpid(), self._given)
        worker = ProcessPoolExecutor(1, initializer=_begin, initargs=given, env=_ONE_THREAD | _MAY_GROW)
        self._workers.add(worker)
        return worker

    def _replaced(self, worker: ProcessPoolExecutor) -> ProcessPoolExecutor:
        worker.shutdown(kill_workers=True)
        self._workers.discard(worker)
        return self._worker()

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Keep all workers busy; hand out what has arrived only after they are."""
        left = deque(jobs)
        arrived: list[Outcome] = []
        while left or self._running or arrived:
            while left and self._idle:
                self._start(left.popleft())
            yield from arrived
            arrived = [outcome for future in self._wait() if (outcome := self._settle(future, left))]

    def _start(self, job: Job) -> None:
        worker = self._idle.pop()
        try:
            future = worker.submit(_work, *job)
        except BrokenProcessPool:  # it died while it was idle: no job is to blame
            worker = self._replaced(worker)
            future = worker.submit(_work, *job)
        self._running[future] = job, worker

    def _wait(self) -> list[Future[Outcome]]:
        return list(wait(self._running, return_when=FIRST_COMPLETED).done) if self._running else []

    def _settle(self, future: Future[Outcome], left: deque[Job]) -> Outcome | None:
        """The outcome of a job; None where its worker died and it is to be run again."""
        from layerwright.core.job import Outcome, describe

        job, worker = self._running.pop(future)
        error = future.exception()
        if not isinstance(error, BrokenProcessPool):
            self._idle.append(worker)
            return future.result() if error is None else Outcome(job[0], b"", describe(error))
        self._idle.append(self._replaced(worker))
        self._deaths[job] += 1
        if self._deaths[job] <= self._retries:
            left.append(job)
            return None
        return Outcome(job[0], b"", f"its worker process died ({self._deaths[job]} times), perhaps for want of memory")

    def kill(self) -> None:
        """End all workers at once, whatever they are doing."""
        for worker in self._workers:
            worker.shutdown(kill_workers=True)


_given = b""


def _begin(driver: int, given: bytes) -> None:
    """In a new worker: leave Ctrl-C to the driver, end with it, and keep what was given until the first job."""
    global _given
    _given = given
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()


def _end_with(driver: int) -> None:
    """End this process when the driver is gone: a driver that was killed cannot end its workers."""
    while os.getppid() == driver:
        time.sleep(_WATCH_S)
    os._exit(1)


@cache
def _unpacked() -> tuple[JobFunction, Any]:
    """The function and the payload; not in `_begin`, where a failure would look like a dead worker."""
    return cloudpickle.loads(_given)


def _work(key: str, seed: int) -> Outcome:
    from layerwright.core.job import perform

    return perform(_unpacked, key, seed)
