"""What was saved loads in a fresh process and answers the same; what does not come back right is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgery import FULL, SLIDING, case, climb, gemma, nudged, saved
from zoo import ZOO, gpt2, language_model, llama, token_ids

from layerwright.core.rungs import fresh
from layerwright.core.rungs.case import Case
from layerwright.core.rungs.reload import reload


def folder_case(tmp_path: Path, order: tuple[int, ...] = (0, 2), base: Any = None, **more: Any) -> Case:
    """A right edit, saved."""
    given = case(order, base, **more)
    given.folder = saved(given.after, tmp_path / "new")
    return given


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# In a process of its own, as in the fast suite where a plan is applied (tests/test_reshape.py)


@pytest.mark.slow
def test_a_right_edit_comes_back_bit_for_bit_in_a_fresh_process() -> None:
    given = case((0, 2, 1, 2))
    given.save = given.after.save_pretrained
    found = climb(reload, given)
    assert found.verdict == "passed", found.finding
    assert found.numbers == {"missing": 0, "mismatched": 0, "unexpected": 0, "tensors": 39, "max_error": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mamba", "bert", "vit", "t5 decoder", "albert", "mixtral"])
def test_every_architecture_comes_back_in_a_fresh_process(name: str) -> None:
    model, inputs, expected = ZOO[name]()
    given = Case(model.eval(), model, inputs, blocks=expected.blocks, save=model.save_pretrained)
    found = climb(reload, given)
    assert found.verdict == "passed", found.finding
    assert found.numbers["max_error"] == 0.0


@pytest.mark.slow
def test_what_a_fresh_process_says_is_one_line(tmp_path: Path) -> None:
    given = folder_case(tmp_path)
    edit_config(given.folder, model_type="nothing_such")
    found = climb(reload, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("cannot be loaded and run: ValueError: ")
    assert "nothing_such" in found.finding
    assert "\n" not in found.finding


@pytest.mark.parametrize(
    "code, expected",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL, as when memory runs out"),
        ("raise SystemExit(3)", "the fresh process ended with exit code 3"),
        ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such'"),
        ("pass", "the fresh process ended with exit code 0"),
    ],
)
def test_a_process_that_ends_without_an_answer_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str
) -> None:
    given = folder_case(tmp_path)
    (script := tmp_path / "script.py").write_text(code)
    monkeypatch.setattr(fresh, "__file__", str(script))
    found = climb(reload, given)
    assert found.verdict == "failed"
    assert found.finding.endswith(expected)


# What went wrong on the way to the disk


@pytest.mark.usefixtures("no_fresh_process")
@pytest.mark.parametrize("build", [llama, gpt2, gemma])
def test_a_right_edit_passes(tmp_path: Path, build: Any) -> None:
    found = climb(reload, folder_case(tmp_path, (0, 2, 1, 2), build()))
    assert found.verdict == "passed", found.finding
    assert found.numbers["max_error"] == 0.0


@pytest.mark.usefixtures("no_fresh_process")
def test_a_stale_depth_leaves_weights_missing(tmp_path: Path) -> None:
    given = folder_case(tmp_path)
    edit_config(given.folder, num_hidden_layers=3, layer_types=None)
    found = climb(reload, given)
    assert found.finding.startswith("9 weights are missing in the file, which leaves them random: model.layers.2.")


@pytest.mark.usefixtures("no_fresh_process")
def test_a_depth_too_small_leaves_weights_over(tmp_path: Path) -> None:
    given = folder_case(tmp_path, (0, 1, 2, 1))
    edit_config(given.folder, num_hidden_layers=3)
    found = climb(reload, given)
    assert found.finding.startswith("9 weights are in the file and have no place in the model: model.layers.3.")


@pytest.mark.usefixtures("no_fresh_process")
def test_a_tied_file_without_its_copies_leaves_weights_missing(tmp_path: Path) -> None:
    given = folder_case(tmp_path, (0, 1, 0, 1))

    def deduplicate(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.2." in name or ".layers.3." in name]:
            del tensors[name]

    edit_weights(given.folder, deduplicate)
    found = climb(reload, given)
    assert found.finding.startswith("18 weights are missing in the file, which leaves them random: model.layers.2.")


@pytest.mark.usefixtures("no_fresh_process")
def test_a_dropped_tensor_is_named(tmp_path: Path) -> None:
    given = folder_case(tmp_path)
    edit_weights(given.folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    found = climb(reload, given)
    assert found.finding == (
        "1 weights are missing in the file, which leaves them random: model.layers.1.mlp.up_proj.weight"
    )


@pytest.mark.usefixtures("no_fresh_process")
def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    given = folder_case(tmp_path)
    edit_weights(given.folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(8)}))
    assert climb(reload, given).finding == "1 weights are of another shape in the file: model.norm.weight"


@pytest.mark.usefixtures("no_fresh_process")
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_one_unit_in_the_last_place_is_named(tmp_path: Path, name: str) -> None:
    """Also in a row of the embedding that no token of the batch reads."""
    given = folder_case(tmp_path, inputs={"input_ids": token_ids().clamp_max(30)})
    edit_weights(given.folder, lambda tensors: nudged(tensors[name], tensors[name].numel() - 1))
    found = climb(reload, given)
    assert found.finding == f"{name} came back as another: the file does not hold what the model has in memory"


@pytest.mark.usefixtures("no_fresh_process")
def test_a_list_that_was_not_remapped_on_disk_is_found_by_the_block_that_it_changes(tmp_path: Path) -> None:
    given = folder_case(tmp_path, (0, 2, 1), gemma((SLIDING, FULL, SLIDING)))
    edit_config(given.folder, layer_types=[SLIDING, FULL, SLIDING])
    found = climb(reload, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("block 1 (model.layers.1) computes something else after loading")
    assert found.finding.endswith("its weights are equal")


@pytest.mark.usefixtures("no_fresh_process")
def test_a_list_of_the_old_length_says_why_it_does_not_load(tmp_path: Path) -> None:
    given = folder_case(tmp_path, (0, 2), gemma())
    edit_config(given.folder, layer_types=[SLIDING, FULL, SLIDING])
    found = climb(reload, given)
    assert found.finding.startswith("cannot be loaded and run: ")
    assert "num_hidden_layers" in found.finding


@pytest.mark.usefixtures("no_fresh_process")
def test_another_class_is_said(tmp_path: Path) -> None:
    given = folder_case(tmp_path)
    edit_config(given.folder, architectures=["LlamaModel"])
    assert "have no place in the model: lm_head.weight" in climb(reload, given).finding
    edit_config(given.folder, architectures=["MistralForCausalLM"])
    assert climb(reload, given).verdict == "failed"
    edit_config(given.folder, architectures=["OwnForCausalLM"])
    expected = "config.json names the architecture 'OwnForCausalLM', which transformers does not have"
    assert expected in climb(reload, given).finding


@pytest.mark.usefixtures("no_fresh_process")
@pytest.mark.parametrize("damage", ["cut", "gone", "no config", "code"])
def test_a_folder_that_cannot_be_loaded_says_why_in_one_line(tmp_path: Path, damage: str) -> None:
    given = folder_case(tmp_path)
    weights = given.folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "gone":
        weights.unlink()
    elif damage == "no config":
        (given.folder / "config.json").unlink()
    else:
        edit_config(given.folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
        (given.folder / "own.py").write_text("raise RuntimeError('code of the folder ran')\n")
    found = climb(reload, given)
    assert found.verdict == "failed"
    assert found.finding.startswith("cannot be loaded and run: ")
    assert "\n" not in found.finding
    assert "code of the folder ran" not in found.finding


@pytest.mark.usefixtures("no_fresh_process")
def test_weights_that_the_bases_own_folder_has_too_many_are_only_mentioned(tmp_path: Path) -> None:
    saved(llama(), tmp_path / "base")
    base = type(llama()).from_pretrained(tmp_path / "base")
    given = folder_case(tmp_path, (0, 2), base)
    edit_weights(given.folder, lambda tensors: tensors.update({"extra.weight": torch.ones(2)}))
    assert "have no place in the model: extra.weight" in climb(reload, given).finding
    edit_weights(tmp_path / "base", lambda tensors: tensors.update({"extra.weight": torch.ones(2)}))
    found = climb(reload, given)
    assert found.verdict == "passed"
    assert found.finding.endswith("1 weights have no place, as in the base's own folder")


@pytest.mark.usefixtures("no_fresh_process")
def test_weights_at_odd_addresses_are_no_difference(tmp_path: Path) -> None:
    """A product of one row rounds differently where its matrix starts at an odd address, as in a mapped file."""
    base = language_model("ViT", "ViTForImageClassification", image_size=16, patch_size=4, num_labels=301)
    inputs = {"pixel_values": torch.randn(1, 3, 16, 16)}
    given = Case(base.eval(), base, inputs, folder=saved(base, tmp_path / "new"))
    weight = base.classifier.weight
    room = torch.empty(weight.numel() + 1)
    room[1:] = weight.detach().flatten()
    odd = room[1:].view(weight.shape)
    weight.data = odd
    found = climb(reload, given)
    assert found.verdict == "passed", found.finding
    assert weight.data.data_ptr() == odd.data_ptr()


# What does not apply


def test_a_model_that_is_not_of_transformers_is_not_run() -> None:
    model, inputs, _ = ZOO["nn.Sequential"]()
    found = climb(reload, Case(model, model, inputs))
    assert found == ("not run", "Sequential is no model of transformers: there is no folder to load it from", "", {})


def test_a_model_that_was_not_saved_is_not_run() -> None:
    assert climb(reload, case((0, 2))).finding == "the new model was not saved"


def test_a_folder_that_needs_imports_is_not_plain(tmp_path: Path) -> None:
    given = folder_case(tmp_path, imports=("layerwright.tied",), requirements={"reload": "plain"})
    found = climb(reload, given)
    assert found.verdict == "failed"
    assert found.finding == "only loads after `import layerwright.tied`; the plan asks for a plain folder"


@pytest.mark.slow
def test_a_class_of_another_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass OwnForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import own_classes  # type: ignore[import-not-found]

    base = llama().eval()
    own = own_classes.OwnForCausalLM(base.config)
    own.load_state_dict(base.state_dict())
    given = Case(base, own.eval(), {"input_ids": token_ids()}, folder=saved(own, tmp_path / "new"))
    assert "OwnForCausalLM" in climb(reload, given).finding
    given.imports = ("own_classes",)
    found = climb(reload, given)
    assert found.verdict == "passed", found.finding
    assert "after `import own_classes`" in found.finding
    shutil.rmtree(tmp_path / "new")
