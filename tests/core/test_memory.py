"""How much memory is left is asked of all who may refuse it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers

from layerwright.core import memory
from layerwright.core.memory import available_memory, returning_memory

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits are read from Linux's /proc")


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine with 64 GB, no limits, and a process of 2 GB."""
    limits = {"RLIMIT_DATA": -1, "RLIMIT_AS": -1}
    known = SimpleNamespace(RLIM_INFINITY=-1, RLIMIT_DATA="RLIMIT_DATA", RLIMIT_AS="RLIMIT_AS")
    known.getrlimit = lambda name: (limits[name], -1)
    monkeypatch.setattr(memory, "resource", known)
    monkeypatch.setattr(memory, "_meminfo", lambda: 64 * 2**30)
    monkeypatch.setattr(memory, "_status", lambda: {"VmData": 2 * 2**30, "VmSize": 5 * 2**30, "VmRSS": 2**30})
    monkeypatch.setattr(memory, "_cgroup", lambda: [])
    return limits


def test_the_tightest_limit_counts(plenty: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() == 64 * 2**30
    plenty["RLIMIT_AS"] = 25 * 2**30
    assert available_memory() == 20 * 2**30
    plenty["RLIMIT_DATA"] = 10 * 2**30
    assert available_memory() == 8 * 2**30
    monkeypatch.setattr(memory, "_cgroup", lambda: [3 * 2**30])
    assert available_memory() == 3 * 2**30
    plenty["RLIMIT_DATA"] = 2**30
    assert available_memory() == 0
    monkeypatch.setattr(memory, "resource", None)
    assert available_memory() == 3 * 2**30


def test_a_system_that_tells_nothing(plenty: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(OSError()))
    assert available_memory() > 2**40


@pytest.mark.parametrize("content, left", [("8589934592", [7 * 2**30]), ("max", [])])
def test_a_container(content: str, left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_status", lambda: {"VmRSS": 2**30})
    monkeypatch.setattr(Path, "read_text", lambda self: content + "\n")
    assert memory._cgroup() == left


@linux
def test_this_process_is_measured() -> None:
    status = memory._status()
    assert 2**20 < status["VmRSS"] <= status["VmSize"] + 2**20
    assert 0 < available_memory() < 2**50


def test_memory_is_given_back_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda option, size: seen.append((option, size)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with pytest.raises(AssertionError, match="inside"), returning_memory():
        assert seen != [(-3, 2**20)], "inside"
    assert seen == [(-3, 2**20), (-3, 2**25)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # a C library without mallopt
    with returning_memory():
        assert len(seen) == 2


CAPPED = """
import resource, sys
import torch, layerwright.measures, layerwright.core.engine, layerwright.findings
from transformers.models.llama import modeling_llama
from layerwright import cli
from layerwright.core.memory import _status

for room in map(int, sys.argv[1].split(",")):
    resource.setrlimit(resource.RLIMIT_DATA, (_status()["VmData"] + (room << 20), resource.RLIM_INFINITY))
    print(cli._run(sys.argv[2:]))
"""


@linux
def test_a_limit_on_memory_is_one_line_before_the_walk(tmp_path: Path) -> None:
    """Blocks of 62 MB: one does not fit into 90 MB, and the walk, which holds two, not into 220."""
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=4000, num_hidden_layers=2, num_attention_heads=8, vocab_size=64
    )  # fmt: skip
    with (tmp_path / "model.safetensors").open("wb") as stream:
        shapes = {"model.embed_tokens": [64, 1024], "lm_head": [64, 1024], "model.norm": [1024]}
        for k in range(2):
            block = f"model.layers.{k}."
            shapes |= {f"{block}self_attn.{name}_proj": [1024, 1024] for name in "qkvo"}
            shapes |= {f"{block}mlp.{name}_proj": [4000, 1024] for name in ("gate", "up")}
            shapes |= {f"{block}mlp.down_proj": [1024, 4000], f"{block}input_layernorm": [1024]}
            shapes |= {f"{block}post_attention_layernorm": [1024]}
        header, place = {}, 0
        for name, shape in shapes.items():
            size = 4 * int(np.prod(shape))
            header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
            place += size
        written = json.dumps(header).encode()
        stream.write(len(written).to_bytes(8, "little") + written)
        stream.truncate(stream.tell() + place)  # zeros that take no room on the disk
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    np.savez(tmp_path / "data.npz", input_ids=np.zeros((1, 8), dtype=int))
    arguments = ["survey", tmp_path, "--arrays", tmp_path / "data.npz", "--stream", "always", "--tier", "quick"]
    program = [sys.executable, "-c", CAPPED, "90,220", *map(str, arguments), "--out", str(tmp_path / "out")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2"], done.stderr
    first, said, second = done.stderr.splitlines()
    assert first.startswith("error: one block of each kind takes 1")
    assert said.startswith("block by block: reads")
    assert second.startswith("error: the walk needs 2")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["walk"]
    assert not (tmp_path / "out" / "walk" / "records").exists()
