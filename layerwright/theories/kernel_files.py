"""Kernels larger than memory, in two files that are mapped into it tile by tile."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from layerwright.core.errors import UserError
from layerwright.core.files import flush
from layerwright.core.jobs import parse_engine, run_jobs
from layerwright.core.packet import Packet
from layerwright.maths.kernel_tiles import Plan, fill, tiles

NAMES = ("nngp", "ntk")
# Rows and columns of what one job works out and maps into memory: whole pages of a row even where it is mirrored.
_BLOCK = 1024
_PROBED = 16
_GB = 1e9


def write_kernels(
    plan: Plan, folder: Path, dtype: torch.dtype, jobs: str | int, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Both kernels in `nngp.npy` and `ntk.npy`, complete or not there.

    Until they are, they lie beside their names, with a folder of the blocks that are done. A run that was stopped goes
    on from there if it is started again with the same tower and inputs.

    Args:
        plan: of the kernels.
        folder: where to; made if it is not there.
        dtype: of the numbers in the files.
        jobs: as in `run_jobs`, on this machine.
        progress: called with the blocks done and all blocks.

    Returns:
        both, mapped, to be read only.

    Raises:
        UserError: the folder cannot be written, has too little space, the kernels overflow, or jobs of another machine.
    """
    if parse_engine(str(jobs)).kind == "ray":
        raise UserError(f"got jobs={jobs!r}; expected jobs on this machine, which share its files: serial, or a number")
    n, m = plan.inputs.shape
    fresh, store = [folder / f".{name}.npy.partial" for name in NAMES], folder / ".kernel_blocks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not all(_fits(path, (n, m), dtype) for path in fresh):
            for path in fresh:
                path.unlink(missing_ok=True)
            shutil.rmtree(store, ignore_errors=True)
            _reserve(fresh, (n, m), dtype)
        one = plan.inputs.one
        keys = [f"{i} {j}" for i in range(0, n, _BLOCK) for j in range(i if one else 0, m, _BLOCK)]
        payload = plan, [str(path) for path in fresh]
        run_jobs(_block, keys, payload, engine=jobs, store=store, settings=_made_by(plan, dtype), progress=progress)
        for path, name in zip(fresh, NAMES):
            path.replace(folder / f"{name}.npy")
        flush(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
    shutil.rmtree(store, ignore_errors=True)
    nngp, ntk = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES)
    return nngp, ntk


def _block(key: str, seed: int, payload: tuple[Plan, list[str]]) -> Packet:
    """Write one block, and what mirrors it. What is mapped is let go of at its end, so that memory stays small."""
    plan, paths = payload
    maps = [open_memmap(path, mode="r+") for path in paths]
    nngp, ntk = (torch.from_numpy(part) for part in maps)
    rows, columns = (slice(start, start + _BLOCK) for start in map(int, key.split()))
    fill(plan, tiles(plan, rows, columns), nngp, ntk[None])
    for part in maps:
        part.flush()
    return Packet({}, {})


def _fits(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether a file is what an earlier run began."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.empty(0, _numpy(dtype)).dtype


def _reserve(paths: list[Path], shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Files of that size whose space is taken at once: a mapped file that finds a full disk ends the process."""
    needed, free = len(paths) * shape[0] * shape[1] * dtype.itemsize, shutil.disk_usage(paths[0].parent).free
    if needed > free:
        raise UserError(
            f"got {shape[0]} × {shape[1]} inputs, whose kernels take {needed / _GB:.2f} GB; expected at most "
            f"{free / _GB:.2f} GB, which are free in {paths[0].parent}: choose another folder, or float32"
        )
    for path in paths:
        open_memmap(path, mode="w+", dtype=_numpy(dtype), shape=shape).flush()
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _numpy(dtype: torch.dtype) -> Any:
    return np.float32 if dtype == torch.float32 else np.float64


def _made_by(plan: Plan, dtype: torch.dtype) -> dict[str, str]:
    """What tells one kernel from another: its inputs, and of the tower, which is a function, what it makes of some."""
    x, y = plan.inputs.x, plan.inputs.y
    parts = [x] if y is x else [x, y]
    rows, columns = (slice(0, min(_PROBED, size)) for size in plan.inputs.shape)
    found = torch.empty(1 + plan.layers, rows.stop, columns.stop, dtype=plan.dtype)
    plan.write(rows, columns, list(found))
    seen = (hashlib.sha256(part.contiguous().numpy().tobytes()) for part in (*parts, *plan.variances, found))
    return {"type": str(dtype), "numbers": " ".join(digest.hexdigest() for digest in seen)}
