"""Every way to the kernels of rows gives what the maps of the tower say, pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from layerwright.core.errors import UserError
from layerwright.maths import kernel
from layerwright.theories import row_kernels
from layerwright.theories.towers import Act, Dense, Dropout, Norm, Residual, Tower, Word, tower

BLOCK = [Act("relu"), Dense(2.0)]
TOWERS: dict[str, list[Word]] = {
    "relu": [Dense(2.0), *BLOCK, *BLOCK, Act("relu"), Dense()],
    "gelu with biases": [Dense(1.5, 0.3), Act("gelu"), Dense(1.5, 0.3), Act("gelu"), Dense(1.0, 0.2)],
    "tanh": [Dense(1.5), Act("tanh"), Dense(1.5, 0.1), Act("tanh"), Dense()],
    "residual": [Dense(), Residual(BLOCK, 0.5), Residual(BLOCK, 0.5), Dense()],
    "before norms": [Norm(), Dense(), Residual([Norm(), Act("erf"), Dense(2.0, 0.1)]), Norm(0.1), Act("relu"), Dense()],
    "dropout": [Dense(2.0), Act("relu"), Dropout(0.7), Dense(2.0), Residual([Dropout(0.5), Dense()]), Dense()],
}


def rows(kind: str) -> Tensor:
    """Rows with a duplicate, a neighbour, and, where norms differ, a zero."""
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[7], x[11] = x[3], x[12] + 0.1
    if kind == "equal norms":
        return x / x.norm(dim=1, keepdim=True) * 2
    x[9] = 0
    return x


def by_maps(made: Tower, x: Tensor) -> kernel.Kernels:
    return made._fold(kernel.inputs(x))


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", ["norms that differ", "equal norms"])
@pytest.mark.parametrize("name", TOWERS)
def test_large_kernels_are_those_of_the_maps(name: str, kind: str) -> None:
    made, x = tower(TOWERS[name]), rows(kind)
    assert len(x) ** 2 > row_kernels._FEW  # so that the maps are not what is taken
    exact, found, single = by_maps(made, x), made.kernel(x), made.kernel(x, dtype=torch.float32)
    # Series stop where what is left out is below 1e-6 of the diagonal.
    close = 1e-6 if name == "tanh" else 1e-12
    for part in ("nngp", "ntk"):
        assert apart(getattr(found, part), getattr(exact, part)) < close
        assert apart(getattr(single, part), getattr(exact, part)) < 1e-5
        assert getattr(single, part).dtype == torch.float32
    assert torch.equal(found.nngp.diagonal(), found.q1)
    assert apart(made.split(x).sum(0), exact.ntk) < close


def test_second_inputs_and_whole_numbers() -> None:
    made = tower(TOWERS["relu"])
    g = torch.Generator().manual_seed(0)  # of rows that are parallel, but not equal, relu keeps half of the digits
    x, y = torch.randint(-3, 4, (70, 5), generator=g), torch.randint(-3, 4, (90, 5), generator=g)
    found, exact = made.kernel(x, y), made._fold(kernel.inputs(x.double(), y.double()))
    assert apart(found.nngp, exact.nngp) < 1e-12
    assert apart(found.ntk, exact.ntk) < 1e-12


def test_files_hold_what_memory_would(tmp_path: Path) -> None:
    made, x = tower(TOWERS["gelu with biases"]), rows("norms that differ")
    nngp, ntk = made.kernel_to(tmp_path, x, dtype=torch.float64)
    kernels = made.kernel(x)
    assert np.allclose(nngp, kernels.nngp, rtol=1e-12, atol=0)
    assert np.allclose(ntk, kernels.ntk, rtol=1e-12, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nngp.npy", "ntk.npy"]


def test_a_run_that_was_stopped_goes_on_and_leaves_nothing_else(tmp_path: Path, monkeypatch) -> None:
    from layerwright.theories import kernel_files

    monkeypatch.setattr(kernel_files, "_BLOCK", 32)
    made, x = tower(TOWERS["relu"]), rows("equal norms")
    done: list[str] = []
    fill = kernel_files.fill

    def dies(*args: object, **kwargs: object) -> None:
        done.append("block")
        if len(done) == 4:
            raise KeyboardInterrupt
        fill(*args, **kwargs)

    monkeypatch.setattr(kernel_files, "fill", dies)
    with pytest.raises(KeyboardInterrupt):
        made.kernel_to(tmp_path, x, dtype=torch.float64)
    assert not (tmp_path / "ntk.npy").exists()
    before = len(done)
    _, ntk = made.kernel_to(tmp_path, x, dtype=torch.float64)
    assert len(done) - before < 6  # of six blocks some were there
    assert np.allclose(ntk, made.kernel(x).ntk, rtol=1e-12, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nngp.npy", "ntk.npy"]


@pytest.mark.parametrize(
    "x, words",
    [
        (torch.full((70, 3), torch.nan), "NaN or infinite"),
        (torch.zeros(70, 0), "expected rows"),
        (torch.ones(70, 3, dtype=torch.complex64), "complex"),
    ],
)
def test_bad_rows_are_one_line(x: Tensor, words: str, tmp_path: Path) -> None:
    made = tower(TOWERS["relu"])
    for run in (lambda: made.kernel(x), lambda: made.kernel_to(tmp_path, x)):
        with pytest.raises(UserError, match=words) as error:
            run()
        assert "\n" not in str(error.value)


def test_more_inputs_than_memory_are_refused_before_they_are_worked_on(monkeypatch) -> None:
    made, x = tower(TOWERS["relu"]), rows("equal norms")
    monkeypatch.setattr(row_kernels, "available_memory", lambda: 80 * 80 * 16 - 1)  # two kernels
    monkeypatch.setattr(row_kernels, "planned", None)
    with pytest.raises(UserError, match=r"got 80 × 80 inputs, .* which are free: write them into files with kernel_to"):
        made.kernel(x)
    with pytest.raises(UserError, match=r"take fewer, as in split\(x\[:100\], x\)"):
        made.split(x)


def test_files_are_refused_where_no_space_is_left(tmp_path: Path, monkeypatch) -> None:
    from collections import namedtuple

    from layerwright.theories import kernel_files

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(kernel_files.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 100))
    with pytest.raises(UserError, match="choose another folder, or float32"):
        tower(TOWERS["relu"]).kernel_to(tmp_path, rows("equal norms"))
    assert not list(tmp_path.glob("*.npy"))


def test_one_input_has_a_kernel_in_memory_and_in_files(tmp_path: Path) -> None:
    made, x = tower(TOWERS["gelu with biases"]), rows("norms that differ")[:1]
    exact = by_maps(made, x)
    assert torch.equal(made.kernel(x).ntk, exact.ntk)
    _, ntk = made.kernel_to(tmp_path, x, dtype=torch.float64)
    assert np.allclose(ntk, exact.ntk, rtol=1e-12, atol=0)


def test_norms_that_differ_go_without_a_table_and_agree_with_those_that_do_not() -> None:
    made, x = tower(TOWERS["tanh"]), rows("equal norms")
    nearly = x * (1 + 1e-9 * torch.arange(80.0, dtype=torch.float64))[:, None]
    assert (made.way(x), made.way(nearly), made.way(nearly[:3])) == ("table", "tiles", "at once")
    assert apart(made.kernel(nearly).ntk, made.kernel(x).ntk) < 1e-6


def test_the_second_call_reads_the_table_of_the_first() -> None:
    x, calls = rows("equal norms"), []
    made = tower(TOWERS["relu"])

    def fold(start: kernel.State) -> kernel.State:
        calls.append(start.nngp.shape)
        return made._fold(start)

    first = row_kernels.row_kernels(fold, x, None, torch.float64, False)
    made_of = len(calls)
    second = row_kernels.row_kernels(fold, x, None, torch.float64, False)
    assert len(calls) == made_of > 0
    assert torch.equal(first.ntk, second.ntk)
