"""A model is loaded exactly as it was trained, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

from layerwright.core.errors import UserError
from layerwright.core.load import load_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_folder_keeps_its_class_weights_and_tokenizer(tiny_folder: Path, tiny_model) -> None:
    model, tokenizer, info = load_model(tiny_folder)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny_model.parameters(), strict=True))
    assert len(tokenizer("ab")["input_ids"]) == 2
    assert (info["name"], info["source"], info["notes"]) == ("tiny-llama", "folder", [])


def test_the_dtype_is_the_checkpoint_own_unless_asked(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_config()).bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype is torch.bfloat16
    assert load_model(tmp_path, dtype="float32")[0].dtype is torch.float32


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path)
    model, tokenizer, _ = load_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer is None


def test_shards_are_checked_and_loaded(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    load_model(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        load_model(tmp_path)


def test_a_live_model_passes_through(tiny_model) -> None:
    module = nn.Linear(2, 2)
    assert load_model(module)[0] is module
    assert load_model(module)[1] is None
    assert load_model(tiny_model)[1] is not None, "the tokenizer lies beside the weights"
    with pytest.raises(UserError, match="live model"):
        load_model(module, dtype="float32")


def test_loading_is_quiet_and_leaves_verbosity_alone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change_weights(folder, lambda w: w | {"extra.head": torch.zeros(2)})
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    info = load_model(folder)[2]
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
    assert "extra.head" in info["notes"][0]


def test_a_base_model_without_a_named_class(folder: Path) -> None:
    change_config(folder, architectures=None)
    model, _, info = load_model(folder)
    assert type(model) is LlamaModel
    assert "without its head" in info["notes"][0]
    assert "lm_head.weight" in info["notes"][1]


def test_missing_weights_are_not_filled_with_random_numbers(folder: Path) -> None:
    change_weights(folder, lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k})
    with pytest.raises(UserError, match=r"3 weights are missing.*model\.layers\.1\.mlp"):
        load_model(folder)


def test_a_configuration_of_another_depth_or_width_is_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"weights are too many.*model\.layers\.2"):
        load_model(folder)
    change_config(folder, num_hidden_layers=3, intermediate_size=24)
    with pytest.raises(UserError, match="weights are of another shape"):
        load_model(folder)


REMOTE = """
from transformers import LlamaForCausalLM
class StrangeForCausalLM(LlamaForCausalLM):
    pass
"""


def test_remote_code_runs_only_when_trusted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "modeling_strange.py").write_text(REMOTE)
    auto_map = {"AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM"}
    change_config(folder, architectures=["StrangeForCausalLM"], auto_map=auto_map)
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_model(folder)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    model, _, info = load_model(folder, trust_remote_code=True)
    assert type(model).__name__ == "StrangeForCausalLM"
    assert "modeling_strange" in info["notes"][0]


@pytest.mark.parametrize("options, words", [({"dtype": "int3"}, "float32"), ({"device": "nowhere"}, "nowhere")])
def test_unknown_dtype_and_device(tiny_folder: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_model(tiny_folder, **options)
