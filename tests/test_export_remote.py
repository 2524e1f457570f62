"""`lw reshape --export remote`: shared weights once on disk, and the code that transformers needs beside them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reshaping import answer, prepared
from safetensors.torch import load_file, save_file
from test_cli import fails, run

import layerwright as lw
from layerwright.core import tied
from layerwright.core.edit import apply
from layerwright.core.errors import UserError
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan
from layerwright.core.verify import verify_folders

MODELS = ["llama", "gpt2", "gemma2"]
LOOP = {"loop": {"blocks": [1], "times": 3, "share": "weights"}}
TEXT = "reshape: 1\nsteps: [{loop: {blocks: [1], times: 3, share: weights}}]"
IDS = {"input_ids": torch.arange(20)[None]}

# A user who has transformers alone. What it finds, it prints as JSON.
LOAD = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.modules["layerwright"] = None  # an import of it fails, as where it is not installed
import torch, transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

def said(auto, folder, **options):
    try:
        auto.from_pretrained(folder, **options)
    except ValueError as error:
        return str(error)
    return "nothing"

def places(model):
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 3)
    return [{name: p.data_ptr() for name, p in block.named_parameters()} for block in blocks]

def answers(folder, auto=AutoModelForCausalLM):
    model, keys = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(keys.values()), keys
    where = places(model)
    for p in model.parameters():
        p.data = p.data.clone()  # in the file they lie at odd addresses, where some products round differently
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        before = model(ids[:, :-3], use_cache=True)
        rest = model(ids[:, -3:], past_key_values=before.past_key_values).logits
    return model, where, full, rest

def facts(folder):
    model, where, full, rest = answers(folder)
    found = {
        "refused": [said(auto, folder) for auto in (AutoConfig, AutoModel, AutoModelForCausalLM)],
        "class": type(model).__name__,
        "config": type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__,
        "headless": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
        "moved": (full - load_file(folder / "wanted.st")["logits"]).abs().max().item(),
        "decoded": ((rest - full[:, -3:]).abs().max() / full.abs().max()).item(),
        "shared": [where[1] == where[2] == where[3], where[0] != where[1] != where[4]],
    }
    model.save_pretrained(folder / "again")
    model, where, other, _ = answers(folder / "again")
    found["again"] = {
        "moved": (full - other).abs().max().item(),
        "shared": where[1] == where[2] == where[3],
        "same": [name for name in FILES if (folder / name).read_bytes() == (folder / "again" / name).read_bytes()],
    }
    return found

FILES = ["config.json", "modeling_layerwright_tied.py", "model.safetensors"]
root = Path(sys.argv[1])
ids = load_file(root / "ids.st")["ids"]
found = {name: facts(root / name) for name in json.loads(sys.argv[2])}
bad = root.glob("bad-*")
found["bad"] = {folder.name: said(AutoModelForCausalLM, folder, trust_remote_code=True) for folder in bad}
found["foreign"] = [name for name in sys.modules if name.startswith("layerwright.")]
print()  # transformers has asked something on this line
print(json.dumps(found))
"""


def alone(code: str, place: Path, *words: object) -> str:
    """What a process prints that does not find this package, and leaves nothing in the user's home."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(place / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def shared(name: str) -> tuple[Any, Any]:
    """A model of the zoo whose blocks 1 to 3 share their weights."""
    stack, inputs = prepared(name)
    return apply(stack, Plan((LOOP,)), inputs)[0], inputs


def saved(model: Any, folder: Path) -> Path:
    with quietly():
        tied.save_tied(model, folder, code=True)
    return folder


def config_changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def with_other_code(folder: Path) -> Path:
    """The same folder, whose code would end whatever runs it."""
    (folder / tied.CODE.name).write_text("raise SystemExit('code of the folder was run')\n")
    return folder


def size(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


def written(tmp_path: Path, text: str = TEXT) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama with shared blocks and its code."""
    return saved(shared("llama")[0], tmp_path / "remote")


# Transformers alone


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without this package says of folders of three architectures, and of two that are damaged."""
    root = tmp_path_factory.mktemp("remote")
    ids = shared("llama")[1]["input_ids"]
    save_file({"ids": ids}, root / "ids.st")
    for name in MODELS:
        model, _ = shared(name)
        saved(model, root / name)
        with torch.no_grad():
            save_file({"logits": model(ids, use_cache=False).logits}, root / name / "wanted.st")
    config_changed(saved(shared("llama")[0], root / "bad-name"), tied={"model.layers.9.w": "model.layers.1.w"})
    lost = saved(shared("llama")[0], root / "bad-file") / "model.safetensors"
    tensors = load_file(lost)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lost, {"format": "pt"})
    return json.loads(alone(LOAD, root, root, json.dumps(MODELS)).splitlines()[-1]) | {"root": root}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_alone_loads_the_model_once_the_code_is_trusted(found: dict[str, Any], name: str) -> None:
    facts, kind = found[name], type(shared(name)[0])
    assert facts["class"] == f"Tied{kind.__name__}"
    assert facts["config"] == f"Tied{kind.config_class.__name__}"
    assert facts["headless"].startswith("Tied")
    assert facts["moved"] == 0
    assert facts["decoded"] <= 1e-6
    assert found["foreign"] == []


@pytest.mark.parametrize("name", MODELS)
def test_without_trust_transformers_refuses_in_its_own_words(found: dict[str, Any], name: str) -> None:
    for words in found[name]["refused"]:
        assert "pass the argument `trust_remote_code=True`" in words


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shared_is_one_in_memory_and_once_on_disk(found: dict[str, Any], name: str) -> None:
    assert found[name]["shared"] == [True, True]
    model, base = shared(name)[0], prepared(name)[0].model
    assert size(found["root"] / name) < sum(x.nbytes for x in model.state_dict().values())
    assert size(found["root"] / name) == sum(p.nbytes for p in base.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_loaded_by_the_code_is_saved_with_it(found: dict[str, Any], name: str) -> None:
    files = ["config.json", "modeling_layerwright_tied.py", "model.safetensors"]
    assert found[name]["again"] == {"moved": 0, "shared": True, "same": files}


def test_transformers_alone_says_which_shared_weight_there_is_not(found: dict[str, Any]) -> None:
    assert "shares the weight 'model.layers.9.w'" in found["bad"]["bad-name"]
    assert "3 weights that blocks share are missing in the file, as model.layers.1.mlp.up_" in found["bad"]["bad-file"]
    assert all("\n" not in words for words in found["bad"].values())


def test_the_code_needs_nothing_of_this_package_and_is_copied_as_it_is(folder: Path) -> None:
    copied = folder / tied.CODE.name
    assert copied.read_bytes() == tied.CODE.read_bytes()
    nodes = ast.walk(ast.parse(copied.read_text()))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
    assert {str(name).partition(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "transformers"}
    assert not any(n.level for n in imports if isinstance(n, ast.ImportFrom))


# Beside this package


def test_the_code_in_a_folder_is_not_run_where_this_package_is(folder: Path, tmp_path: Path, capsys: Any) -> None:
    with_other_code(folder)
    for trust in (False, True):
        model = load_model(folder, trust_remote_code=trust)[0]
        assert type(model).__module__ == "layerwright.core.modeling_layerwright_tied"
        with quietly():
            auto = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
        assert type(auto) is type(model)
    np.savez(tmp_path / "ids.npz", input_ids=np.arange(20)[None])
    code, out, err = run(
        capsys, "survey", folder, "--arrays", tmp_path / "ids.npz", "--only", "residual_contribution", "--json"
    )
    assert code == 0, out + err


def test_verify_runs_no_code_but_ours(folder: Path, tmp_path: Path) -> None:
    with quietly():
        prepared("llama")[0].model.save_pretrained(tmp_path / "base")
    named = json.loads((folder / "config.json").read_text())["auto_map"]

    def finding(place: Path) -> str:
        rung = verify_folders(tmp_path / "base", place, until="reload")["reload"]
        assert rung.verdict == "not run"
        return rung.finding

    config_changed(folder, auto_map=named | {"AutoModel": "other/place--modeling.Model"})
    assert "config.json names the code other/place--modeling.Model" in finding(folder)
    config_changed(folder, auto_map=named)
    (folder / "custom_generate").mkdir()
    assert "holds custom_generate" in finding(folder)
    (folder / "custom_generate").rmdir()
    assert "is not the file that this version writes" in finding(with_other_code(folder))


def test_a_folder_goes_on_bringing_its_code_when_our_class_saves_it(folder: Path, tmp_path: Path) -> None:
    model: Any = load_model(folder)[0]
    assert tied.imports_of(model) == ()
    with quietly():
        model.save_pretrained(tmp_path / "again")
    for name in ("config.json", tied.CODE.name, "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_code_that_the_base_names_is_not_taken_for_ours() -> None:
    model, _ = shared("llama")
    model.config.auto_map = {"AutoConfig": "configuration_other.OtherConfig"}
    assert not hasattr(tied.tied(model).config, "auto_map")
    named = tied.tied(model, code=True).config.auto_map
    assert named["AutoConfig"] == "modeling_layerwright_tied.TiedConfig"
    assert named["AutoModelForCausalLM"] == "modeling_layerwright_tied.TiedLlamaForCausalLM"
    assert model.config.auto_map == {"AutoConfig": "configuration_other.OtherConfig"}


@pytest.mark.slow
def test_code_that_was_run_before_the_import_does_not_get_in_its_way(folder: Path, tmp_path: Path) -> None:
    code = """
import sys, transformers
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
first = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
sys.path.insert(0, sys.argv[2])
import layerwright as lw, torch
from layerwright.core import tied
for trust in (True, False):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    assert type(model).__module__.startswith("layerwright."), type(model)
assert type(first).__module__.startswith("transformers_modules.") and type(first) is not type(model)
back = tied.plain(first)
assert type(back).__name__ == "LlamaForCausalLM" and not hasattr(back.config, "auto_map")
new, report = lw.reshape(first, lw.Plan(({"drop": [0]},)), out="new", export="remote", until="decode")
assert report.ok, report.ladder.lines()
assert new.model.layers[0].mlp.up_proj.weight is new.model.layers[1].mlp.up_proj.weight
print(type(new).__module__)
"""
    printed = alone(code, tmp_path, folder, Path(lw.__file__).parents[1])
    assert printed.split()[-1] == "layerwright.core.modeling_layerwright_tied"


# The command line


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_remote_folder_is_written_checked_and_comes_with_its_warning(
    tiny_folder: Path, tmp_path: Path, capsys: Any, fresh: bool, request: pytest.FixtureRequest
) -> None:
    if not fresh:
        request.getfixturevalue("no_fresh_process")
    out = tmp_path / "new"
    code, said, err = run(capsys, "reshape", tiny_folder, written(tmp_path), "--export", "remote", "--out", out)
    assert code == 0, said + err
    assert err.splitlines() == [tied.WARNING]
    rungs = json.loads((out / "reshape.json").read_text())["ladder"]["rungs"]
    assert "with trust_remote_code=True, by modeling_layerwright_tied.py" in rungs[3]["finding"]
    card = (out / "README.md").read_text()
    assert card.count("## Python code in this folder") == 1
    assert "**who loads this folder with\n`trust_remote_code=True` runs that file**" in card
    assert (out / "tokenizer.json").is_file()
    assert size(out) == size(tiny_folder)
    wanted, _ = lw.reshape(load_model(tiny_folder)[0], Plan.load(written(tmp_path)), until="none")
    loaded = load_model(out)[0]
    assert torch.equal(answer(loaded, IDS), answer(wanted, IDS))
    assert tied.ties_of(loaded) == tied.ties_of(wanted)


def test_a_plan_that_asks_for_a_plain_folder_does_not_take_a_remote_one(
    tiny_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path, TEXT + "\nverify: {reload: plain}")
    code, out, _ = run(capsys, "reshape", tiny_folder, path, "--export", "remote", "--out", tmp_path / "new")
    assert code == 1
    assert "the plan asks for a plain folder" in " ".join(out.split())


def test_a_remote_base_is_reshaped_to_any_export_and_plain_is_free_of_code(
    tiny_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    def reshape(base: Path, path: Path, export: str, out: str) -> Path:
        code, said, err = run(
            capsys, "reshape", base, path, "--export", export, "--out", tmp_path / out, "--verify", "none"
        )
        assert code == 0, said + err
        assert (tied.WARNING in err) == (export == "remote")
        return tmp_path / out

    base = reshape(tiny_folder, written(tmp_path), "remote", "base")
    with_other_code(base)
    drop = written(tmp_path, "reshape: 1\nsteps: [{drop: [0]}]")
    made = {export: reshape(base, drop, export, export) for export in tied.EXPORTS}
    answers = [answer(load_model(folder)[0], IDS) for folder in made.values()]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    for export, folder in made.items():
        code = folder / tied.CODE.name
        card = (folder / "README.md").read_text()
        named = "auto_map" in json.loads((folder / "config.json").read_text())
        assert code.is_file() == named == (export == "remote")
        assert card.count("## Python code in this folder") == (export == "remote")
        assert card.count("## How this model was made") == 2
    assert (made["remote"] / tied.CODE.name).read_bytes() == tied.CODE.read_bytes()


@pytest.mark.slow
def test_a_live_model_is_saved_and_checked_the_same_way(tiny_folder: Path, tmp_path: Path) -> None:
    model, lines = load_model(tiny_folder)[0], []
    plan = Plan((LOOP,))
    new, report = lw.reshape(model, plan, out=tmp_path / "new", export="remote", say=lines.append)
    assert report.ok, report.ladder.lines()
    assert type(new).__name__ == "TiedLlamaForCausalLM"
    assert "with trust_remote_code=True" in report.ladder["reload"].finding
    assert lines == [tied.WARNING]
    found = verify_folders(tiny_folder, tmp_path / "new", until="reload")
    assert found.ok, found.lines()
    assert "with trust_remote_code=True" in found["reload"].finding


# Bad input


def test_an_unknown_export_is_refused_and_the_nearest_named(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    for more in ([written(tmp_path)], ["--plan-with", "drop_by_angle"]):
        words = fails(capsys, "reshape", tiny_folder, *more, "--export", "remot", "--out", tmp_path / "new")
        assert "unknown export 'remot'; did you mean 'remote'? There are plain, tied, remote" in words
    with pytest.raises(UserError, match="did you mean 'plain'"):
        lw.reshape(tiny_folder, Plan((LOOP,)), export="plane")


def test_nothing_to_share_is_said_and_nothing_is_written(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path, "reshape: 1\nsteps: [{drop: [0]}]")
    words = fails(capsys, "reshape", tiny_folder, path, "--export", "remote", "--out", tmp_path / "new")
    assert "no two blocks share a weight" in words
    assert not (tmp_path / "new").exists()


def test_a_class_that_no_auto_class_loads_is_refused() -> None:
    class Own(transformers.LlamaForCausalLM):
        """A model of the user's own."""

    config, ties = transformers.GPT2Config(), {"a": "b"}
    assert tied.with_ties(transformers.GPT2DoubleHeadsModel, config, ties)[0].__name__ == "TiedGPT2DoubleHeadsModel"
    with pytest.raises(UserError, match="no Auto class of transformers loads GPT2DoubleHeadsModel"):
        tied.with_ties(transformers.GPT2DoubleHeadsModel, config, ties, code=True)
    with pytest.raises(UserError, match="Own is no class of transformers' own"):
        tied.with_ties(Own, transformers.LlamaConfig(), ties)


def test_ties_that_name_no_weight_fail_in_one_line_here_too(folder: Path, tmp_path: Path, capsys: Any) -> None:
    config_changed(folder, tied={"model.layers.9.w": "model.layers.1.w"})
    assert "shares the weight 'model.layers.9.w'" in fails(capsys, "survey", folder, "--out", tmp_path / "out")
    assert "shares the weight 'model.layers.9.w'" in fails(
        capsys, "reshape", folder, written(tmp_path), "--out", tmp_path / "new"
    )
