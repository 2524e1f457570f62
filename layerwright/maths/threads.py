"""Independent pieces of one computation on all threads at once, each on one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def on_threads(run: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    """The results of all pieces in their order, on as many threads as torch has here.

    Where several threads share each operation, they wait for each other after every one: with small tensors, or beside
    other work, that takes most of the time.

    Example:
        >>> list(on_threads(lambda n: n * n, [1, 2, 3]))
        [1, 4, 9]
    """
    threads = min(len(pieces), torch.get_num_threads())
    if threads <= 1:
        yield from map(run, pieces)
        return
    with on_one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(run, pieces)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Torch on one thread, for what comes right before `on_threads`: others would still be busy waiting beside it.

    Example:
        >>> with on_one_thread():
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
