"""Plans on disk: the same model as in memory, byte for byte where nothing was computed, with little memory."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reshaping import answer, close, prepared
from safetensors.torch import load_file, save_file
from thinned import thinned

from layerwright.core import tensor_writer
from layerwright.core.checksums import write_manifest
from layerwright.core.edit import apply, apply_stored
from layerwright.core.errors import NeedsModel, UserError
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan
from layerwright.core.shards import Checkpoint
from layerwright.core.skeleton import Skeleton

MODELS = [
    "llama", "qwen3", "gemma2", "gemma3", "gpt-neox", "mixtral", "phi", "opt", "bloom", "olmo2", "granite", "gpt2",
    "bert", "vit", "t5 decoder", "t5 encoder", "convnext",
]  # fmt: skip
PLANS: dict[str, tuple[dict[str, Any], ...]] = {
    "drop": ({"drop": [1]},),
    "repeat and swap": ({"order": [0, 2, 2, 1]},),
    "insert": ({"insert": [1]},),
    "recurse": ({"recurse": {"unique": 1, "rank": 4}},),
    "widen": ({"widen": 1.5},),
}
# What no configuration or no weights say.
IMPOSSIBLE = {
    ("mixtral", "widen"), ("bloom", "widen"), ("bert", "insert"), ("convnext", "widen"),
    *((name, kind) for name in ("t5 decoder", "t5 encoder") for kind in ("recurse", "widen")),
}  # fmt: skip
# What only the loaded model can be told, as its files hold weights in another form.
LOADED = {("mixtral", "insert"), ("mixtral", "recurse"), ("vit", "insert"), ("vit", "widen"), ("vit", "recurse")}


def saved(name: str, folder: Path, **options: Any) -> tuple[Any, Any, Path]:
    stack, inputs = prepared(name)
    with quietly():
        stack.model.save_pretrained(folder / "base", max_shard_size="6KB", **options)
    return stack, inputs, folder / "base"


def write(base: Path, plan: Plan, out: Path, blocks: str | None = None) -> Path:
    out.mkdir()
    skeleton, _, _ = Skeleton.load(base)
    apply_stored(skeleton, plan, out, blocks=blocks)
    return out


@pytest.mark.parametrize("name, kind", thinned(5, MODELS, PLANS))
def test_the_folder_holds_what_memory_would(name: str, kind: str, tmp_path: Path) -> None:
    stack, inputs, base = saved(name, tmp_path)
    plan = Plan(PLANS[kind])
    if (name, kind) in IMPOSSIBLE:
        with pytest.raises(UserError):
            apply(stack, plan, inputs)
        with pytest.raises(UserError):
            write(base, plan, tmp_path / "new", stack.tower.path)
        return
    wanted, _ = apply(stack, plan, inputs)
    if (name, kind) in LOADED:
        with pytest.raises(NeedsModel, match="needs the loaded model"):
            write(base, plan, tmp_path / "new", stack.tower.path)
        return
    write(base, plan, tmp_path / "new", stack.tower.path)
    model, _, _ = load_model(tmp_path / "new")
    assert torch.equal(answer(model, inputs), answer(wanted, inputs))
    assert model.config.to_dict().keys() == wanted.config.to_dict().keys()


def test_what_only_moves_is_copied_byte_for_byte(tmp_path: Path) -> None:
    _, _, base = saved("llama", tmp_path)
    out = write(base, Plan(({"drop": [0]},)), tmp_path / "new")
    before, after = (Checkpoint.open(folder) for folder in (base, out))
    for name in after.entries:
        source = (
            name.replace("layers.0.", "layers.1.") if "layers.0." in name else name.replace("layers.1.", "layers.2.")
        )
        assert torch.equal(after.read([name])[name], before.read([source])[source])
    assert len(after.entries) == len(before.entries) - 9


def test_shards_and_their_index_are_cut_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, base = saved("llama", tmp_path)
    monkeypatch.setattr(tensor_writer.write_tensors, "__kwdefaults__", {"shard": 5000, "progress": lambda *a: None})
    out = write(base, Plan(({"stack": 2},)), tmp_path / "new")
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for f in files for t in load_file(out / f).values())
    assert load_model(out)[0].config.num_hidden_layers == 6


def test_tensors_that_nobody_asked_for_stay(tmp_path: Path) -> None:
    _, _, base = saved("llama", tmp_path)
    shards = sorted(base.glob("*.safetensors"))
    tensors = load_file(shards[0]) | {"extra.number": torch.ones(3)}
    save_file(tensors, shards[0], {"format": "pt"})
    index = base / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["extra.number"] = shards[0].name
    index.write_text(json.dumps(document))
    out = write(base, Plan(({"drop": [1]},)), tmp_path / "new")
    assert "extra.number" in Checkpoint.open(out).entries


def test_damage_is_found_while_copying(tmp_path: Path) -> None:
    _, _, base = saved("llama", tmp_path)
    checkpoint = Checkpoint.open(base)
    write_manifest(base, {entry.name: digest for entry, digest in checkpoint.digests()})
    entry = checkpoint.entries["model.layers.2.mlp.up_proj.weight"]
    content = bytearray(entry.file.read_bytes())
    content[entry.start + 5] ^= 1
    entry.file.write_bytes(content)
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj"):
        write(base, Plan(({"drop": [1]},)), tmp_path / "new")


def test_a_file_system_that_cannot_copy_between_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, base = saved("llama", tmp_path)
    wanted = write(base, Plan(({"drop": [1]},)), tmp_path / "quick")

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.copy_file_range", refuse)
    out = write(base, Plan(({"drop": [1]},)), tmp_path / "slow")
    assert (out / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()


def test_a_plan_for_another_base_is_refused(tmp_path: Path) -> None:
    _, _, base = saved("llama", tmp_path)
    out = tmp_path / "new"
    out.mkdir()
    skeleton, _, _ = Skeleton.load(base)
    edit = apply_stored(skeleton, Plan(({"drop": [1]},)), out)
    shutil.rmtree(out)
    write(base, Plan(({"drop": [1]},), sha256=edit.sha256), out)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    with quietly():
        model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="the plan is for the model"):
        write(tmp_path / "other", Plan(({"drop": [1]},), sha256=edit.sha256), tmp_path / "third")


def test_a_second_tower_is_named(tmp_path: Path) -> None:
    _, _, base = saved("t5 encoder", tmp_path)
    write(base, Plan(({"drop": [1]},)), tmp_path / "decoder", "decoder.block")
    config = json.loads((tmp_path / "decoder" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (3, 2)
    with pytest.raises(UserError, match=r"no list of blocks at 'decoder\.blocks'; there are"):
        write(base, Plan(({"drop": [1]},)), tmp_path / "none", "decoder.blocks")


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    stack, inputs = prepared("llama")
    with quietly():
        stack.model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    out = write(tmp_path / "base", Plan(({"insert": [0]}, {"recurse": {"unique": 2, "rank": 2}})), tmp_path / "new")
    assert {e.dtype for e in Checkpoint.open(out).entries.values()} == {torch.bfloat16}
    model, _, _ = load_model(out)
    assert close(answer(model, inputs).float(), answer(model, inputs).float())
    assert model.dtype == torch.bfloat16
