"""Imports go one way, and nothing imports torch before it computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerwright

ROOT = Path(layerwright.__file__).parent
ROOMS = ("measures", "theories", "designs", "edits", "trainers", "blocks")
# What each part of the package may import. The list of held-out files is data, so that the core may read it.
CORE = ("maths", "core", "demo.corpus")
MAY_IMPORT = {
    "maths": ("maths",),
    "core": CORE,
    "report": (*CORE, "report"),
    "demo": (*CORE, "demo"),
    **{room: (*CORE, room) for room in ROOMS},
    "findings": (*CORE, "findings"),
    "verbs": (*CORE, *ROOMS, "report", "findings", "verbs"),
    "claims": (*CORE, *ROOMS, "report", "verbs", "claims", *layerwright.__all__),
    "cli": (*CORE, *ROOMS, "report", "verbs", "claims", "cli"),
}
# Against the arrow, inside a function: a survey shows and saves itself, and `claims` is a verb as well as a room.
ALSO = {"core/survey.py": ("report",), "core/theory.py": ("report",), "verbs/claiming.py": ("claims",)}


def imports(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, without the package's name, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        yield from (name.removeprefix("layerwright.") for name in names if name.startswith("layerwright."))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    for file in [*ROOT.glob(f"{part}.py"), *ROOT.glob(f"{part}/**/*.py")]:
        path = file.relative_to(ROOT).as_posix()
        allowed = (*MAY_IMPORT[part], "__version__", *ALSO.get(path, ()))
        wrong = [name for name in imports(file) if not any(f"{name}.".startswith(f"{a}.") for a in allowed)]
        assert not wrong, path


def test_every_part_has_its_place() -> None:
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("command", ["import layerwright; dir(layerwright)", "import layerwright.verbs", "HELP"])
def test_torch_is_not_imported(command: str) -> None:
    lines = "import runpy, sys; sys.argv[1:] = ['--help']\ntry: runpy.run_module('layerwright', run_name='__main__')"
    code = f"{lines}\nexcept SystemExit: pass" if command == "HELP" else f"import sys; {command}"
    heavy = "{'torch', 'transformers', 'pandas'} & sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert not {heavy}, {heavy}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_contents_is_complete() -> None:
    for name in layerwright.__all__:
        assert getattr(layerwright, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        layerwright.nothing_such  # noqa: B018
