"""A model several times larger than the memory that there may be, and memory that does not grow with depth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is watched in Linux's /proc"),
]

MB = 2**20


def write(folder: Path, depth: int, width: int, mlp: int) -> tuple[int, int]:
    """A Llama in bfloat16 that asks for float32, a shard a block; bytes of all and of one block in float32.

    It is never held: blocks are alike, and written one after another.
    """
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth, num_attention_heads=8, vocab_size=1000
    )  # fmt: skip
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    shards: dict[int, dict[str, torch.Tensor]] = {}
    for name, p in model.state_dict().items():
        block = int(name.split(".")[2]) if ".layers." in name else -1
        make = name.split(".", 3)[-1] if block >= 0 else name
        if make not in made:
            numbers = torch.randn(p.shape, generator=generator) * 0.02
            made[make] = (numbers if p.ndim > 1 else numbers + 1).to(torch.bfloat16)
        shards.setdefault(block, {})[name] = made[make]
    home = {}
    for block, tensors in shards.items():
        file = f"model-{block + 1:05d}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        home |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    numbers = {block: sum(x.numel() for x in tensors.values()) for block, tensors in shards.items()}
    return 4 * sum(numbers.values()), 4 * numbers[0]


WATCHED = """
import json, resource, sys, threading, time
import torch, layerwright.measures, layerwright.core.engine, layerwright.findings, layerwright.report, pandas
from transformers.models.llama import modeling_llama
from layerwright import verbs
from layerwright.core import engine
from layerwright.core.memory import _status

def look(): status = _status(); return [status["RssAnon"], status["VmData"]]

given = json.loads(sys.argv[1])
engine._LARGE = 0  # the models of these tests are small ones, which would keep freed memory for speed
options = {key: given[key] for key in ("stream", "tier", "skip")}

def survey(model, out):
    ids = torch.randint(0, 1000, (given["sequences"], given["length"]), generator=torch.Generator().manual_seed(1))
    return verbs.survey(model, {"input_ids": ids}, out=out, **options)

survey(given["small"], None)  # some libraries are only imported when they are used
base = most = look()

def watch():
    global most
    while True:
        most = [max(pair) for pair in zip(most, look())]
        time.sleep(0.005)

if given["cap"]:
    resource.setrlimit(resource.RLIMIT_DATA, (given["cap"], given["cap"]))
threading.Thread(target=watch, daemon=True).start()
result = survey(given["model"], given["out"])
print(json.dumps({"rss": most[0] - base[0], "data": most[1] - base[1], "base": base[1], "tables": sorted(result.tables),
                  "checks": [check.passed for check in result.checks]}))
"""


def watched(model: Path, out: Path | None = None, **changes: Any) -> subprocess.CompletedProcess[str]:
    small = model.with_name("small")
    if not small.exists():
        write(small, 2, 32, 64)
    given: dict[str, Any] = {"model": str(model), "small": str(small), "stream": "always", "tier": "standard"}
    given |= {"skip": ["weight_spectrum"], "cap": 0, "sequences": 2, "length": 16, "out": str(out) if out else None}
    given |= changes
    return subprocess.run([sys.executable, "-c", WATCHED, json.dumps(given)], capture_output=True, text=True)


def test_a_model_of_three_times_the_memory(tmp_path: Path) -> None:
    """Under a hard limit on all data of the process, its libraries among them."""
    cap = 1100 * MB
    depth, sequences, length, width = 25, 2, 16, 1536
    whole, block = write(tmp_path / "model", depth, width, 5632)
    assert whole >= 3 * cap
    more = {"cap": cap, "sequences": sequences, "length": length}
    done = watched(tmp_path / "model", tmp_path / "out", **more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    states = (depth + 1) * sequences * length * width * 4
    assert max(found["rss"], found["data"]) <= 2 * block + states + 300 * MB
    assert {"first_order_skip", "jacobian_identity", "skip_effect", "logit_lens"} <= set(found["tables"])
    assert all(found["checks"])
    plain = watched(tmp_path / "model", stream="never", tier="quick", **more)
    assert plain.returncode != 0
    assert "memory" in plain.stderr


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    sizes, peaks = {}, {}
    for depth in (8, 32):
        sizes[depth], block = write(tmp_path / str(depth), depth, 512, 1376)
        done = watched(tmp_path / str(depth))
        assert done.returncode == 0, done.stderr
        peaks[depth] = json.loads(done.stdout)["rss"]
    # Tables of pairs of blocks, and their bootstrap, do grow.
    assert peaks[32] - peaks[8] < 0.15 * (sizes[32] - sizes[8])
    assert peaks[32] < 2 * block + 50 * MB
