"""Rung 4: what was saved loads in a fresh process with plain transformers, and answers the same, bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.load import quietly, read_json
from layerwright.core.replay import Replay
from layerwright.core.rungs import fresh
from layerwright.core.rungs.answers import largest, read_answer
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.outcome import FAILED, PASSED, Outcome, not_run
from layerwright.core.shards import Checkpoint
from layerwright.core.tied import CODE, brings_code

_PACKAGE = Path(__file__).parents[3]
_ALIGNMENT = 64
_LIMIT = "no key too many or too few, error 0"
_PLAIN = "in plain transformers"


def reload(case: Case) -> Outcome:
    """Save the new model where it is not saved yet, load it in another process, and compare everything."""
    if not isinstance(case.after, transformers.PreTrainedModel):
        return not_run(f"{type(case.after).__name__} is no model of transformers: there is no folder to load it from")
    if case.folder is None and case.save is None:
        return not_run("the new model was not saved")
    if (how := _how(case)) != _PLAIN and case.requirements.get("reload") == "plain":
        return Outcome(FAILED, f"only loads {how}; the plan asks for a plain folder", _LIMIT)
    if case.folder is not None and _with_code(case) and (foreign := _foreign_code(case.folder)):
        return not_run(f"{foreign}, and code of others is not run here; load the folder yourself if you trust it")
    with tempfile.TemporaryDirectory(prefix="reload-") as scratch:
        folder = case.folder
        if folder is None:
            folder = Path(scratch) / "model"
            folder.mkdir()
            assert case.save is not None
            with quietly():
                case.save(folder)
        answer, tensors = in_fresh_process(case, folder, Path(scratch) / "desk")
        return _compared(case, folder, answer, tensors)


def in_fresh_process(case: Case, folder: Path, desk: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What another process says of a folder: plain data, and tensors by name. What stops it is under `error`."""
    desk.mkdir()
    config = getattr(case.after, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    request = {
        "folder": str(folder.resolve()),
        "imports": list(case.imports),
        "trust_remote_code": _with_code(case),
        "options": {} if attention is None else {"attn_implementation": attention},
        "blocks": list(case.new.tower.block_paths),
        "device": str(case.new_pass.states[0].device),
        "threads": torch.get_num_threads(),
    }
    (desk / "request.json").write_text(json.dumps(request))
    save_file(_named(case), desk / "inputs.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["HF_MODULES_CACHE"] = str(desk / "modules")  # where transformers copies the code that it runs
    if case.imports:
        environment["PYTHONPATH"] = os.pathsep.join([str(_PACKAGE), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
    # -P: the folder of the script, whose files have plain names, must not come before the packages that it imports.
    command = [sys.executable, "-P", fresh.__file__, str(desk)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not (desk / "answer.json").exists():
        return {"error": _ended(done)}, {}
    return json.loads((desk / "answer.json").read_text()), load_file(desk / "answer.safetensors")


def _how(case: Case) -> str:
    """How a fresh process gets to load what the new model saves."""
    if case.imports:
        return f"after `import {case.imports[0]}`"
    return f"with trust_remote_code=True, by {CODE.name}" if _with_code(case) else _PLAIN


def _with_code(case: Case) -> bool:
    return brings_code(getattr(case.after, "config", None))


def _foreign_code(folder: Path) -> str | None:
    """What transformers would run in a folder that this version of the package did not write."""
    named = read_json(folder / "config.json").get("auto_map") or {}
    if other := [str(code) for code in named.values() if not str(code).startswith(f"{CODE.stem}.")]:
        return f"config.json names the code {other[0]}"
    if not (folder / CODE.name).is_file() or (folder / CODE.name).read_bytes() != CODE.read_bytes():
        return f"{CODE.name} is not the file that this version writes"
    return "it holds custom_generate" if (folder / "custom_generate").exists() else None


def _named(case: Case) -> dict[str, Tensor]:
    """The batch by name, as the live model took it."""
    if not isinstance(case.inputs, Mapping):
        name = getattr(case.after, "main_input_name", "input_ids")
        first = case.inputs if isinstance(case.inputs, Tensor) else case.inputs[0]
        return {name: first.detach().cpu().contiguous()}
    given = {k: x for k, x in case.inputs.items() if isinstance(x, Tensor) and k != "labels"}
    if getattr(case.after.config, "is_encoder_decoder", False) and "decoder_input_ids" not in given:
        given["decoder_input_ids"] = given["input_ids"]
    return {name: x.detach().cpu().contiguous().clone() for name, x in given.items()}


def _ended(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended without an answer, in one line."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the fresh process was ended by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the fresh process ended with exit code {done.returncode}"


# Comparing


def _compared(case: Case, folder: Path, answer: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Outcome:
    if "error" in answer:
        return Outcome(FAILED, f"cannot be loaded and run: {answer['error']}", _LIMIT)
    surplus = _ours(case, answer["unexpected"])
    counts = {"missing": answer["missing"], "mismatched": answer["mismatched"], "unexpected": surplus}
    numbers: dict[str, Any] = {kind: len(keys) for kind, keys in counts.items()}
    wrong = (
        _keys(answer["missing"], "missing in the file, which leaves them random")
        or _keys(answer["mismatched"], "of another shape in the file")
        or _keys(surplus, "in the file and have no place in the model")
        or _weights(case, answer)
    )
    if wrong is None:
        numbers["tensors"] = len(answer["digests"])
        numbers["max_error"], wrong = _answers(case, case.new_pass, tensors)
        if wrong is not None and _moved(case.after):
            with _aligned(case.after):
                numbers["max_error"], wrong = _answers(case, Replay(case.new, case.new_inputs), tensors)
    if wrong is not None:
        return Outcome(FAILED, wrong, _LIMIT, numbers)
    left_out = len(answer["unexpected"]) - len(surplus)
    note = f"; {left_out} weights have no place, as in the base's own folder" if left_out else ""
    what = f"{len(answer['digests'])} tensors and all answers equal bit for bit{note}"
    return Outcome(PASSED, f"loads in a fresh process {_how(case)}: {what}", _LIMIT, numbers)


def _keys(keys: Sequence[str], what: str) -> str | None:
    if not keys:
        return None
    listed = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} weights are {what}: {listed}"


def _ours(case: Case, unexpected: Sequence[str]) -> list[str]:
    """Weights without a place that the edit left there; the base's own file may have had some outside its blocks."""
    source = Path(getattr(case.before, "name_or_path", "") or "/nowhere")
    outside = [name for name in unexpected if not re.search(r"\.\d+\.", name)]
    if not outside or not (source / "config.json").is_file():
        return list(unexpected)
    try:
        known = Checkpoint.open(source).entries
    except UserError:
        return list(unexpected)
    return [name for name in unexpected if name not in outside or name not in known]


def _weights(case: Case, answer: Mapping[str, Any]) -> str | None:
    """A weight that came back as another."""
    if answer["class"] != type(case.after).__name__:
        return f"came back as {answer['class']}; it was {type(case.after).__name__} when it was saved"
    live, loaded = fresh.digests(case.after), answer["digests"]
    for name in [*live, *loaded]:
        if name not in loaded or name not in live:
            return f"{name} is {'not ' if name not in loaded else 'only '}in the model that was loaded"
        if live[name] != loaded[name]:
            return f"{name} came back as another: the file does not hold what the model has in memory"
    return None


def _answers(case: Case, passed: Replay, tensors: Mapping[str, Tensor]) -> tuple[float, str | None]:
    """The largest difference between answers, and the first block that makes one."""
    live = passed.states[1:]
    states = [tensors[f"state.{k}"] for k in range(sum(name.startswith("state.") for name in tensors))]
    wanted, got = read_answer(passed.output).cpu(), read_answer(tensors["answer"])
    error = largest(wanted.double(), got.double()) if wanted.shape == got.shape else float("inf")
    if len(states) != len(live):
        return error, f"runs {len(states)} blocks after loading, and ran {len(live)} before"
    for j, (a, b) in enumerate(zip(live, states)):
        if off := largest(a.cpu().double(), b.double()):
            return error, f"{case.place(j)} computes something else after loading: {off:.2g} off; its weights are equal"
    return error, f"answers are {error:.2g} off after loading, and every block is right" if error else None


def _moved(model: nn.Module) -> list[nn.Parameter]:
    """Weights at odd addresses, as in a mapped file: some products round differently there."""
    return [p for p in model.parameters() if p.data_ptr() % _ALIGNMENT]


@contextmanager
def _aligned(model: nn.Module) -> Iterator[None]:
    """Such weights elsewhere for a while."""
    before = {p: p.data for p in _moved(model)}
    try:
        for p in before:
            p.data = p.data.clone()
        yield
    finally:
        for p, data in before.items():
            p.data = data
