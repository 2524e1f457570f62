"""Arrays by name from this package and from a peer that runs in a Python of its own; read by both, so numpy alone."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def both(
    script: str, doc: str | None, ours: Callable[[], Arrays], theirs: Callable[[], Arrays]
) -> tuple[Arrays, Arrays]:
    """Both; in the peer's process, which runs the same script, it writes its own and ends."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", help="the interpreter of the environment with neural-tangents")
    p.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.as_peer:
        np.savez(a.as_peer, **theirs())
        sys.exit()
    if not a.peer:
        p.error("give --peer PYTHON")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "theirs.npz")
        subprocess.run([a.peer, script, "--as-peer", file], check=True, capture_output=True)
        return ours(), dict(np.load(file))


def far(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The largest difference over the largest number."""
    if np.isnan(theirs).any():
        return "the peer's is NaN"
    return f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.0e}"
