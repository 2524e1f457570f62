"""The memory of this process: how much more it may take, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows, where a process has no such limits
    resource = None  # type: ignore[assignment]

_M_MMAP_THRESHOLD = -3  # malloc.h
_RETURNED, _KEPT = 2**20, 2**25


def available_memory() -> int:
    """Bytes that this process may still take: what the system has, and what limits leave."""
    found = [_meminfo()]
    for limit, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")) if resource else ():
        soft, _ = resource.getrlimit(getattr(resource, limit))
        if soft != resource.RLIM_INFINITY:
            found.append(soft - _status().get(used, 0))
    found.extend(_cgroup())
    return max(0, min(found))


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**62  # not known here: the system's own refusal will do


def _status() -> dict[str, int]:
    try:
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def _cgroup() -> list[int]:
    """A container's limit; what it counts as used holds files that would be given up, so that only we are counted."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return []
    return [int(limit) - _status().get("VmRSS", 0)] if limit.isdigit() else []


@contextmanager
def returning_memory() -> Iterator[None]:
    """Let every freed tensor of a megabyte or more go back to the system at once, where the C library is glibc.

    It keeps freed pieces of up to 32 MB for reuse, and does not find room in the gaps between them: with block after
    block in and out, a process grows to several times what it holds.
    """
    _set_threshold(_RETURNED)
    try:
        yield
    finally:
        _set_threshold(_KEPT)


def _set_threshold(size: int) -> None:
    with suppress(OSError, AttributeError, TypeError):  # another C library, with its own ways
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
