"""`lw reshape --export tied` end to end: shared weights once on disk, checked, verified again and reshaped again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reshaping import answer
from safetensors.torch import load_file
from test_cli import fails, run

import layerwright as lw
from layerwright.core import tied
from layerwright.core.load import load_model
from layerwright.core.plan import Plan

LOOP = "reshape: 1\nsteps: [{loop: {blocks: [1], times: 3, share: weights}}]"
RECURSE = "reshape: 1\nsteps: [{recurse: {unique: 1, share: weights}}]"
QUICKLY = ("--verify", "decode")  # without another process, which takes seconds
IDS = {"input_ids": torch.arange(20)[None]}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def size(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    "text, fresh", [(LOOP, False), *(pytest.param(text, True, marks=pytest.mark.slow) for text in (LOOP, RECURSE))]
)
def test_a_folder_with_shared_weights_is_written_and_checked(
    tiny_folder: Path, tmp_path: Path, capsys: Any, text: str, fresh: bool, request: pytest.FixtureRequest
) -> None:
    if not fresh:
        request.getfixturevalue("no_fresh_process")
    path = written(tmp_path, text)
    code, out, err = run(capsys, "reshape", tiny_folder, path, "--export", "tied", "--out", tmp_path / "new")
    assert code == 0, out + err
    assert "loading" not in err
    assert "`import" in out
    assert size(tmp_path / "new") <= size(tiny_folder)
    wanted, _ = lw.reshape(load_model(tiny_folder)[0], Plan.load(path), until="none")
    loaded = load_model(tmp_path / "new")[0]
    assert torch.equal(answer(loaded, IDS), answer(wanted, IDS))
    assert tied.ties_of(loaded) == tied.ties_of(wanted)


@pytest.mark.usefixtures("no_fresh_process")
def test_it_is_verified_again_and_no_plain_folder(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path, LOOP)
    run(capsys, "reshape", tiny_folder, path, "--export", "tied", "--out", tmp_path / "new", "--verify", "none")
    code, out, _ = run(capsys, "verify", tiny_folder, tmp_path / "new", "--verify", "reload", "--json")
    assert code == 0, out
    assert [rung["verdict"] for rung in json.loads(out)["rungs"]][:4] == ["passed"] * 4
    path.write_text(LOOP + "\nverify: {reload: plain}")
    code, out, _ = run(capsys, "reshape", tiny_folder, path, "--export", "tied", "--out", tmp_path / "other")
    assert code == 1


@pytest.mark.slow
def test_a_live_model_comes_back_in_the_class_that_shares(tiny_folder: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(tiny_folder)
    plan = Plan.load(written(tmp_path, LOOP))
    new, report = lw.reshape(model, plan, out=tmp_path / "new", export="tied")
    assert report.ok, report.ladder.lines()
    assert type(new).__name__ == "TiedLlamaForCausalLM"
    assert size(tmp_path / "new") == size(tiny_folder)
    assert report.ladder["reload"].verdict == "passed"


def test_a_tied_base_is_reshaped_again_and_goes_on_sharing(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    run(
        capsys, "reshape", tiny_folder, written(tmp_path, LOOP), "--export", "tied", "--out", tmp_path / "a",
        "--verify", "none",
    )  # fmt: skip
    again = written(tmp_path, "reshape: 1\nsteps: [{drop: [0]}]")
    code, out, _ = run(capsys, "reshape", tmp_path / "a", again, "--export", "tied", "--out", tmp_path / "b", *QUICKLY)
    assert code == 0, out
    loaded: Any = load_model(tmp_path / "b")[0]
    weights = [block.mlp.up_proj.weight for block in loaded.model.layers]
    assert len(weights) == 4
    assert weights[0] is weights[1] is weights[2]
    assert weights[3] is not weights[0]
    code, out, _ = run(capsys, "reshape", tmp_path / "a", again, "--out", tmp_path / "c", *QUICKLY)
    assert code == 0, out
    plain: Any = load_model(tmp_path / "c")[0]
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert torch.equal(answer(plain, IDS), answer(loaded, IDS))


def test_a_tied_base_whose_weights_were_parted_becomes_plain_again(tiny_folder: Path, tmp_path: Path) -> None:
    new, _ = lw.reshape(load_model(tiny_folder)[0], Plan.load(written(tmp_path, LOOP)), until="none", export="tied")
    model: Any = new
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else torch.nn.Parameter(p.detach().clone())
    model.save_pretrained(tmp_path / "parted")
    assert json.loads((tmp_path / "parted" / "config.json").read_text())["tied"] == {}
    plan = Plan(({"drop": [0]},))
    lw.reshape(tmp_path / "parted", plan, out=tmp_path / "plain", until="none")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "llama"


def test_nothing_to_share_is_said(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path, "reshape: 1\nsteps: [{drop: [0]}]")
    assert "no two blocks share" in fails(
        capsys, "reshape", tiny_folder, path, "--export", "tied", "--out", tmp_path / "new"
    )
    assert "unknown export 'tide'; did you mean 'tied'?" in fails(
        capsys, "reshape", tiny_folder, path, "--export", "tide", "--out", tmp_path / "new"
    )
