"""One job: a key, a pure function, and a seed made from the key. It gives the same bits wherever it runs."""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg  # noqa: F401  loads its BLAS, which must be there to be held to one thread
import torch
from threadpoolctl import ThreadpoolController

from layerwright import __version__
from layerwright.core.packet import Packet

JobFunction = Callable[[str, int, Any], Packet]
Job = tuple[str, int]  # key and seed


class Outcome(NamedTuple):
    """What became of a job: the bytes of its packet, or why there are none.

    The first line of `failure` says what went wrong; a traceback may follow.
    """

    key: str
    content: bytes
    failure: str


def seed_of(seed: int, key: str) -> int:
    """The seed of one job, below 2^63: a hash of the run's seed and the key, the same on every machine.

    Example:
        >>> seed_of(0, "block 3"), seed_of(1, "block 3")
        (5985121109910637973, 2570286954871527668)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8], "big") >> 1


def versions() -> str:
    """What must be the same on all machines for their results to be the same."""
    return f"layerwright {__version__} with torch {torch.__version__}"


def perform(load: Callable[[], tuple[JobFunction, Any]], key: str, seed: int) -> Outcome:
    """Run one job; an exception in it is part of the outcome.

    Bytes, not a packet, and text, not an exception: both cross between processes whatever the job's author put in.

    Args:
        load: gives the function and its payload. What their import does to random states is done before the seeding.
        key: of the job.
        seed: of the job.
    """
    try:
        function, payload = load()
        with one_thread(seed):
            packet = function(key, seed, payload)
            if not isinstance(packet, Packet):
                raise TypeError(f"the job gave {type(packet).__name__}; expected a Packet")
            return Outcome(key, packet.to_bytes(), "")
    except (Exception, SystemExit) as error:
        return Outcome(key, b"", describe(error))


def describe(error: BaseException) -> str:
    """An exception as text: one line that says what, then the traceback."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}\n{''.join(traceback.format_exception(error))}"


@contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """One thread for torch and for the BLAS of numpy and scipy, seeded random numbers, float32, gradients on.

    The number of threads changes the last bits of sums and decompositions. The caller's settings and random states
    are put back.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_blas().limit(limits=1, user_api="blas"))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(random.setstate, random.getstate())
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@cache
def _blas() -> ThreadpoolController:
    """The libraries that were loaded by the first job; finding them takes 4 ms, so not for each."""
    return ThreadpoolController()
