"""A model taken block by block gives what the loaded model gives: tables, states on disk, and the tower itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from thinned import thinned
from torch import nn
from walking import (
    asked,
    assert_same_answer,
    assert_same_states,
    assert_same_tables,
    bart,
    data_for,
    hurry,
    minimax,
    walked,
    zamba,
)  # fmt: skip
from zoo import ZOO, gpt2, language_model, llama, pixels, t5, token_ids

from layerwright.core import engine
from layerwright.core.budget import Budget
from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.packet import Packet
from layerwright.core.runfolder import RunFolder
from layerwright.core.skeleton import Skeleton
from layerwright.core.states import StateFile

# Live modules that no folder holds as they are: own classes, wrappers, compiled ones.
LIVE = {
    "layer1..layer4", "nn.TransformerEncoder", "nn.TransformerEncoder, norm first", "nn.Sequential", "looped core",
    "own wrapper", "peft", "torch.compile", "compiled in place", "ddp", "timm",
}  # fmt: skip
# A state comes back from disk with its numbers in a row, and a convolution adds up in another order then.
ROUNDED = {"convnext": 2e-5}
SHARDED = ("llama", "qwen3", "gpt2", "mixtral")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def saved(model: nn.Module, folder: Path, **settings: Any) -> Path:
    model.save_pretrained(folder, **settings)
    return folder


def assert_equal(
    model: nn.Module, inputs: Any, tmp_path: Path, rounding: float = 0.0, batch: int = 2, prefix: int = 0, **more: Any
) -> tuple[engine.Answer, dict[str, int]]:
    """Save the model, survey it with both engines, compare all they give; the walk's answer, and what it read."""
    folder = saved(model, tmp_path / "model", **more.pop("saving", {}))
    data = data_for(model, inputs, batch, prefix)
    expected = engine.in_memory(asked(folder, data, **more))
    found, reads = walked(asked(folder, data, out=tmp_path / "out", **more))
    assert_same_answer(found, expected, rounding)
    assert_same_states(tmp_path / "out", expected)
    buffers = dict(expected.stack.model.named_buffers())  # they are read once more, to see how the model is wired
    return found, {name: times for name, times in reads.items() if name not in buffers}


@pytest.mark.parametrize("name", thinned(3, [name for name in ZOO if name not in LIVE]))
def test_every_architecture(name: str, tmp_path: Path) -> None:
    model, inputs, expected = ZOO[name]()
    saving = {"max_shard_size": "6KB"} if name in SHARDED else {}
    found, reads = assert_equal(model, inputs, tmp_path, ROUNDED.get(name, 0.0), blocks=expected.blocks, saving=saving)
    assert found.stack.tower.path == expected.path
    assert found.stack.order == expected.order
    assert set(reads.values()) == ({1} if name == "albert" else {1, 2}), "a shared block stays"
    assert len([*(tmp_path / "model").glob("*.safetensors")]) > (4 if saving else 0)


def test_the_zoo_is_walked_wherever_it_can_be_saved() -> None:
    for name in LIVE - {"timm", "peft", "ddp", "compiled in place"}:
        assert not isinstance(ZOO[name]()[0], transformers.PreTrainedModel), name


_SIDES = {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=10, seed=2)}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Any, str | None]] = {
    "shared between blocks": (zamba, {"input_ids": token_ids()}, None),
    "structure in buffers": (minimax, {"input_ids": token_ids()}, None),
    "weights of the whole": (bart, _SIDES, "model.decoder.layers"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_in_unusual_places(name: str, tmp_path: Path) -> None:
    build, inputs, blocks = OTHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    assert_equal(model, inputs, tmp_path, blocks=blocks)


@pytest.mark.parametrize("name", ["llama", "mamba", "t5 decoder"])  # Mamba keeps its stream in float32
def test_half_precision(name: str, tmp_path: Path) -> None:
    model, inputs, expected = ZOO[name]()
    found, _ = assert_equal(model.to(torch.bfloat16), inputs, tmp_path, blocks=expected.blocks)
    assert next(iter(found.stack.model.parameters())).dtype == torch.bfloat16


@pytest.mark.parametrize("stored, read", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_folder_read_in_another_precision(stored: str, read: str, tmp_path: Path) -> None:
    model = llama().to(getattr(torch, stored))
    found, reads = assert_equal(model, {"input_ids": token_ids()}, tmp_path, dtype=read)
    assert next(iter(found.stack.model.parameters())).dtype == getattr(torch, read)
    assert set(reads.values()) == {1, 2}


def lines(side: str, *lengths: int) -> dict[str, torch.Tensor]:
    mask = torch.stack([torch.arange(max(lengths)) < n for n in lengths]).long()
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": token_ids(len(lengths), max(lengths)).masked_fill(mask == 0, 0), "attention_mask": mask}


DATA: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "right padding": lambda: (llama(), lines("right", 11, 40, 6, 17, 12)),
    "left padding": lambda: (gpt2(), lines("left", 11, 40, 6, 17, 12)),
    "batches of unequal length": lambda: (llama(), [*token_ids(2, 30), *token_ids(1, 9), *token_ids(2, 17)]),
    "one sequence": lambda: (llama(), {"input_ids": token_ids(1)}),
    "an encoder with labels": lambda: (
        language_model("Bert", "BertForMaskedLM"),
        lines("right", 9, 20, 13) | {"labels": token_ids(3, 20, seed=3)},
    ),
    "images with labels": lambda: (ZOO["vit"]()[0], {"pixel_values": pixels(16), "labels": torch.tensor([0, 1, 1])}),
    "both sides of T5 padded": lambda: (
        t5(),
        lines("right", 9, 20, 13) | {f"decoder_{name}": x for name, x in lines("right", 8, 5, 7).items()},
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_data_of_every_kind(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = DATA[name]()
    found, _ = assert_equal(model, inputs, tmp_path, blocks="decoder.block" if "T5" in name else None)
    assert ("first_order_skip" in found.recording.tables) == (name != "images" and found.stack.head is not None)


def test_a_prefix_is_left_out(tmp_path: Path) -> None:
    found, _ = assert_equal(llama(), lines("right", 11, 20, 7), tmp_path, prefix=3)
    assert found.recording.tokens == 11 + 20 + 7 - 3 * 3


def test_more_tokens_than_the_sample_of_a_quantile_holds(tmp_path: Path) -> None:
    inputs = {"input_ids": token_ids(75, 60)}
    assert_equal(llama(num_hidden_layers=2), inputs, tmp_path, batch=30, skip=("skip_effect", "skip_output"))


def test_options_a_seed_and_the_deep_tier(tmp_path: Path) -> None:
    options = {"effective_depth": {"kl_share": 0.3}}
    assert_equal(llama(), {"input_ids": token_ids()}, tmp_path, tier="deep", options=options, seed=5)


# One of each pass over the model.
ALONE = ("block_influence", "angular_distance", "logit_lens", "skip_effect", "first_order_skip", "jacobian_identity")


@pytest.mark.parametrize("measure", ALONE)
def test_a_measure_alone(measure: str, tmp_path: Path) -> None:
    found, reads = assert_equal(llama(), {"input_ids": token_ids()}, tmp_path, only=(measure,))
    assert measure in found.recording.tables
    blocks = {times for name, times in reads.items() if ".layers." in name and ".0." not in name}
    last = {times for name, times in reads.items() if ".layers.2." in name}
    assert blocks == ({1, 2} if measure in ("first_order_skip", "jacobian_identity") else {1})
    assert last == {1}, "the uppermost block is still there on the way down"


def test_a_quick_survey_reads_every_weight_once(tmp_path: Path) -> None:
    _, reads = assert_equal(llama(tie_word_embeddings=True), {"input_ids": token_ids()}, tmp_path, tier="quick")
    assert set(reads.values()) == {1}


def test_dead_and_broken_blocks_are_noted_alike(tmp_path: Path) -> None:
    model = llama(num_hidden_layers=5)
    with torch.no_grad():
        for matrix in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            matrix.weight.zero_()
        model.model.layers[3].mlp.up_proj.weight[2, 3] = torch.nan
    folder = saved(model, tmp_path / "model")
    data = data_for(model, {"input_ids": token_ids()})
    expected = engine.in_memory(asked(folder, data))
    found = engine.by_walk(asked(folder, data))
    assert_same_tables(found.recording, expected.recording)
    assert found.recording.notes == expected.recording.notes
    assert any("holds 1 NaN" in note for note in found.recording.notes)
    assert found.stack.parts == expected.stack.parts


def test_no_state_is_left_where_no_folder_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = saved(llama(), tmp_path / "model")
    engine.by_walk(asked(folder, {"input_ids": token_ids()}, tier="quick"))
    assert [*(tmp_path / "temporary").iterdir()] == []


def test_the_budget_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def check(self: Budget, folder: Path) -> None:
        assert len(said) == 1
        assert "block by block: reads" in said[0]
        assert [*(folder / "states").iterdir()] == []
        raise UserError("no")

    monkeypatch.setattr(Budget, "check", check)
    folder = saved(llama(), tmp_path / "model")
    with pytest.raises(UserError, match="no"):
        engine.by_walk(asked(folder, {"input_ids": token_ids()}, out=tmp_path / "out", say=said.append))
    assert not (tmp_path / "out" / "walk" / "records").exists()


def test_progress_only_moves_forward_and_arrives(tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    folder = saved(llama(), tmp_path / "model")
    data = data_for(load_model(folder)[0], {"input_ids": token_ids(4)})
    report = lambda stage, done, total: seen.setdefault(stage, []).append((done, total))  # noqa: E731
    engine.by_walk(asked(folder, data, progress=report))
    assert set(seen) == {"up", "output", "down"}
    for stage, steps in seen.items():
        total = 2 if stage == "output" else 6
        assert steps == [(done, total) for done in range(1, total + 1)], stage


def test_weights_are_there_only_while_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeletons: list[Skeleton] = []
    there: dict[str, list[set[str]]] = {}

    def load(*args: Any, real: Any = Skeleton.load, **more: Any) -> Any:
        skeletons.append((found := real(*args, **more))[0])
        return found

    def look(stage: str, done: int, total: int) -> None:
        held = {
            ".".join(name.split(".")[:3])
            for name, p in skeletons[0].model.named_parameters()
            if not p.is_meta and p.untyped_storage().nbytes() > 4
        }
        there.setdefault(stage, []).append(held)

    monkeypatch.setattr(Skeleton, "load", load)
    folder = saved(llama(), tmp_path / "model")
    data = data_for(load_model(folder)[0], {"input_ids": token_ids(2)})
    engine.by_walk(asked(folder, data, progress=look))
    blocks = [{f"model.layers.{k}"} for k in range(3)]
    assert there["up"] == blocks
    assert there["output"] == [{"model.layers.2", "model.norm.weight", "lm_head.weight"}]
    assert there["down"] == blocks[::-1]


def test_states_are_on_the_disk_before_their_record_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: set[str] = set()
    append, flush, commit = StateFile.append, StateFile.flush, RunFolder.commit
    commits: list[str] = []

    def note(self: StateFile, tensor: torch.Tensor) -> None:
        written.add(self.path.name)
        append(self, tensor)

    def forget(self: StateFile) -> None:
        flush(self)
        written.discard(self.path.name)

    def check(self: RunFolder, name: str, packet: Packet) -> None:
        assert written == set(), name
        commits.append(name)
        commit(self, name, packet)

    monkeypatch.setattr(StateFile, "append", note)
    monkeypatch.setattr(StateFile, "flush", forget)
    monkeypatch.setattr(RunFolder, "commit", check)
    engine.by_walk(asked(saved(llama(), tmp_path / "model"), {"input_ids": token_ids()}))
    assert commits == ["bottom", "up-0000", "up-0001", "up-0002", "top", "down-0002", "down-0001", "down-0000"]


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "model")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        engine.by_walk(asked(folder, {"input_ids": token_ids()}, tier="quick"))
        found = torch.rand(3)
        torch.manual_seed(7)
        assert torch.equal(found, torch.rand(3))
