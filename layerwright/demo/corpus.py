"""The text the bundled model was trained on, and the files it never saw: the Python standard library's own source.

Nothing is downloaded: the files are found beside the running interpreter. A file is held out by the hash of its path,
so that the split does not depend on the order of a directory listing. The list of held-out files of the bundled model
is stored with it (`model/heldout.json`), because a later Python may move or rename a file that training saw.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

# Machine-written tables and vendored grammars: text, but not prose or code that a person wrote.
_NOT_SOURCE = ("site-packages", "dist-packages", "encodings", "lib2to3", "__pycache__", "turtledemo")
_TESTS = ("test", "tests", "idle_test")


def root() -> Path:
    """The folder of the standard library of the running interpreter."""
    return Path(sysconfig.get_paths()["stdlib"])


def _source_files() -> list[Path]:
    paths = (p.relative_to(root()) for p in root().rglob("*.py"))
    return sorted(p for p in paths if not any(part in _NOT_SOURCE for part in p.parts))


def _is_held_out(path: Path) -> bool:
    return int(hashlib.md5(path.as_posix().encode(), usedforsecurity=False).hexdigest(), 16) % 12 == 0


def split() -> tuple[list[Path], list[Path], list[Path]]:
    """Library files for training, test files for training, held-out library files (paths relative to `root()`).

    A test file named after a held-out module is left out altogether: it repeats that module's names.
    """
    files = _source_files()
    library = [p for p in files if not any(part in _TESTS for part in p.parts)]
    held_out = [p for p in library if _is_held_out(p)]
    hidden = {"test_" + p.stem.strip("_") for p in held_out}
    tests = [p for p in files if any(part in _TESTS for part in p.parts) and p.stem not in hidden]
    return [p for p in library if not _is_held_out(p)], tests, held_out


def read(path: Path) -> str | None:
    """The text of one file of the library, or None where it is absent, empty or not UTF-8."""
    try:
        return (root() / path).read_bytes().decode("utf-8") or None
    except (OSError, UnicodeDecodeError):
        return None
