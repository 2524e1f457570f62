"""What a walk is said to take is what it takes, and what cannot be finished is not begun."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from walking import asked, data_for, hurry, opened
from zoo import ZOO, gpt2, llama, token_ids

from layerwright.core import budget as budgets
from layerwright.core import engine
from layerwright.core.budget import Budget, readable
from layerwright.core.errors import UserError


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard": (lambda: llama(num_hidden_layers=5), {}),
    "quick": (llama, {"tier": "quick"}),
    "gradients only": (llama, {"only": ("first_order_skip",)}),
    "gradients side by side": (llama, {"tier": "deep", "only": ("gradient_similarity",)}),
    "tied, in half": (lambda: gpt2().to(torch.bfloat16), {}),
    "stream in float32": (lambda: ZOO["mamba"]()[0].to(torch.bfloat16), {}),
    "shared": (lambda: ZOO["albert"]()[0], {}),
    "not causal": (lambda: ZOO["bert"]()[0], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_to_read_and_disk_are_what_it_takes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, more = CASES[case]
    model: nn.Module = build()
    model.save_pretrained(tmp_path / "model")
    said: list[Budget] = []
    most = 0

    def look(stage: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, sum(file.stat().st_size for file in (tmp_path / "out" / "walk" / "states").iterdir()))

    monkeypatch.setattr(Budget, "check", lambda self, folder: said.append(self))
    data = data_for(model, {"input_ids": token_ids(4)})
    with opened() as checkpoints:
        engine.by_walk(asked(tmp_path / "model", data, out=tmp_path / "out", progress=look, **more))
    assert checkpoints[-1].bytes_read.total() == said[0].read
    headers = 64 * len([*(tmp_path / "out" / "walk" / "states").iterdir()])
    assert said[0].disk * 0.8 <= most <= said[0].disk + headers
    held = checkpoints[-1].entries.values()
    assert said[0].weights == sum(entry.nbytes for entry in held)


def budget(**changes: float) -> Budget:
    settings: dict[str, Any] = {"read": 1, "weights": 1, "memory": 3 * 2**30, "disk": 2 * 2**30, "seconds": 1.0}
    return Budget(**(settings | changes))


def refusal(asked: Budget, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        asked.check(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_too_little_of_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=2 * 2**30 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(budgets, "available_memory", lambda: 3 * 2**30 - 1)
    said = refusal(budget(), tmp_path)
    assert re.search(
        r"needs 2\.0 GB of disk and .* has 2\.0 GB free; choose another --out, or fewer --max-tokens", said
    )
    free.free += 1
    assert "needs 3.0 GB of memory and 3.0 GB is free; choose a smaller --dtype" in refusal(budget(), tmp_path)
    monkeypatch.setattr(budgets, "available_memory", lambda: 3 * 2**30)
    budget().check(tmp_path)


def test_what_was_written_before_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    (tmp_path / "states").mkdir()
    assert "of disk" in refusal(budget(disk=130, memory=0), tmp_path)
    (tmp_path / "states" / "0000-state-0000").write_bytes(bytes(30))
    budget(disk=130, memory=0).check(tmp_path)
    assert "of disk" in refusal(budget(disk=131, memory=0), tmp_path)


@pytest.mark.parametrize(
    "n, words",
    [(0, "0 bytes"), (999, "999 bytes"), (1536, "1.5 kB"), (2**20, "1.0 MB"), (2**31, "2.0 GB"), (2**42, "4096.0 GB")],
)
def test_bytes_are_readable(n: float, words: str) -> None:
    assert readable(n) == words


@pytest.mark.parametrize(
    "seconds, words", [(0.01, "1 s"), (89, "89 s"), (95, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_times_are_readable(seconds: float, words: str) -> None:
    assert budget(seconds=seconds).describe().endswith(f"takes about {words}")
