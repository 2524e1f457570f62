"""What a run with random weights shows of a model, and which models it says cannot be walked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from walking import assert_same_tables, bart, by_hand
from zoo import WIDTH, ZOO, llama, token_ids, vectors

from layerwright.core import skeleton as skeletons
from layerwright.core import wiring as wirings
from layerwright.core.errors import UserError
from layerwright.core.record import record
from layerwright.core.registry import choose
from layerwright.core.runfolder import RunFolder
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.stream import Walk
from layerwright.core.wiring import Wiring


class Block(nn.Module):
    """Adds to the stream, and gives a second tensor beside it; it may leave a number for the next one out of sight."""

    def __init__(self, k: int, notes: dict[int, float]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.notes = k, notes

    def forward(self, x: Tensor, extra: Any, hidden: bool) -> tuple[Tensor, Tensor]:
        level = self.notes.get(self.k - 1, 0.0) if hidden else 0.0
        after = x + self.outer((self.inner(x) + extra).tanh() + level)
        self.notes[self.k] = float(after[0, 0].detach().mean())
        return after, after.mean(1, keepdim=True)


class Chain(nn.Module):
    """Three blocks; `between` makes what the next one is called with from what the last one gave."""

    def __init__(self, between: Callable[[Tensor, Tensor], Any], hidden: bool = False) -> None:
        super().__init__()
        notes: dict[int, float] = {}
        self.between, self.hidden = between, hidden
        self.embedding, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block(k, notes) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, extra = self.embedding(x), torch.zeros(())
        for block in self.blocks:
            x, beside = block(x, extra, self.hidden)
            extra = self.between(beside, x)
        return self.head(x)


def chain(*args: Any, **more: Any) -> Chain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Chain(*args, **more)


INPUTS = vectors(4, 6, 8)
REFUSED: dict[str, Callable[[], Chain]] = {
    "a tensor made of what a block handed on": lambda: chain(lambda beside, x: 2 * beside),
    "a number made of what a block handed on": lambda: chain(lambda beside, x: float(beside.mean())),
    "a tensor made of the stream": lambda: chain(lambda beside, x: x.mean()),
    "what blocks leave in an object": lambda: chain(lambda beside, x: torch.ones(()), hidden=True),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_block_that_depends_on_others_unseen_is_named(case: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Wiring.find(by_hand(REFUSED[case](), tmp_path / "model"), INPUTS)
    assert str(error.value).startswith("blocks.1 is called with more than the stream that depends on the blocks before")
    assert "--stream never" in str(error.value)


@pytest.mark.parametrize("between", [lambda beside, x: beside, lambda beside, x: torch.ones(3, 1, WIDTH)[:1]])
def test_what_is_handed_on_as_it_is_can_be_walked(between: Callable[[Tensor, Tensor], Any], tmp_path: Path) -> None:
    model = chain(between)
    batches = [INPUTS[:3], INPUTS[3:]]
    expected = record(Stack.find(model, INPUTS), batches, choose("standard"), sequences=4)
    skeleton = by_hand(model, tmp_path / "model")
    wiring = Wiring.find(skeleton, batches[0])
    with RunFolder.opened(tmp_path / "walk", {}) as run:
        found = Walk(skeleton, wiring, batches, choose("standard"), run, sequences=4).run()
    assert_same_tables(found, expected)


def test_a_weight_that_is_inside_and_outside_is_named(tmp_path: Path) -> None:
    model = chain(lambda beside, x: beside)
    model.extra = nn.Linear(WIDTH, WIDTH)
    model.blocks[1].inner.weight = model.extra.weight
    with pytest.raises(UserError, match=r"blocks\.1 shares weight blocks\.1\.inner\.weight with a module outside"):
        Wiring.find(by_hand(model, tmp_path / "model"), INPUTS)


class Tied(Chain):
    """Reads the weight of its embedding once more, at the end, and calls no module for it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :1] + self.embedding.weight.sum()


def test_a_weight_that_is_read_again_without_a_call_is_kept(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied(lambda beside, x: beside)
    wiring = Wiring.find(by_hand(model, tmp_path / "model"), INPUTS)
    assert (wiring.before, set(wiring.after)) == ([], {"head.weight", "head.bias"})
    assert set(wiring.both) == {"embedding.weight", "embedding.bias"}
    assert wiring.error == 0.0


def found(model: nn.Module, inputs: Any, folder: Path, blocks: str | None = None) -> tuple[Skeleton, Wiring]:
    model.save_pretrained(folder)
    skeleton, _, _ = Skeleton.load(folder)
    return skeleton, Wiring.find(skeleton, inputs, blocks)


PHASES: dict[str, tuple[Callable[[], nn.Module], set[str], set[str], set[str]]] = {
    "llama": (llama, {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}, set()),
    "tied": (lambda: llama(tie_word_embeddings=True), set(), {"model.norm.weight"}, {"model.embed_tokens.weight"}),
    "gpt2": (
        ZOO["gpt2"],
        {"transformer.wpe.weight"},
        {"transformer.ln_f.weight", "transformer.ln_f.bias"},
        {"transformer.wte.weight"},
    ),
}


@pytest.mark.parametrize("name", PHASES)
def test_when_weights_outside_the_blocks_are_read(name: str, tmp_path: Path) -> None:
    build, before, after, both = PHASES[name]
    model = build()
    skeleton, wiring = found(model[0] if isinstance(model, tuple) else model, {"input_ids": token_ids()}, tmp_path)
    assert (set(wiring.before), set(wiring.after), set(wiring.both)) == (before, after, both)
    assert wiring.error == 0.0
    blocks = {name for path in wiring.stack.tower.block_paths for name in skeleton.below(path)}
    assert blocks | before | after | both == set(skeleton.recipes)


def test_a_weight_of_the_model_itself_is_read_before_and_after(tmp_path: Path) -> None:
    inputs = {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=10, seed=2)}
    _, wiring = found(bart(), inputs, tmp_path, "model.decoder.layers")
    assert "final_logits_bias" in wiring.both
    assert "model.encoder.layers.0.fc1.weight" in wiring.before
    assert wiring.error == 0.0


def test_no_weight_is_left_and_no_random_number_is_used_up(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        skeleton, _ = found(llama(), {"input_ids": token_ids()}, tmp_path)
        drawn = torch.rand(2)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(2))
    assert all(p.is_meta for p in skeleton.model.parameters())
    assert skeleton.checkpoint.bytes_read.total() == 0


def test_a_model_without_a_tower_leaves_nothing_either(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    skeleton, _, _ = Skeleton.load(tmp_path)
    with pytest.raises(UserError, match="no blocks ran at 'nowhere'"):
        Wiring.find(skeleton, {"input_ids": token_ids()}, "nowhere")
    assert all(p.is_meta for p in skeleton.model.parameters())


def test_blocks_share_their_stand_ins_and_a_large_vocabulary_takes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def of(skeleton: Skeleton, stack: Stack, piece: Any) -> None:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in stack.model.parameters()}
        seen.append(sum(storages.values()))

    monkeypatch.setattr(Wiring, "_of", of)
    monkeypatch.setattr(skeletons, "_LARGE", 40 * WIDTH - 1)
    skeleton, _ = found(llama(num_hidden_layers=6), {"input_ids": token_ids()}, tmp_path)
    block = skeleton.nbytes(skeleton.below("model.layers.0"))
    assert skeleton.pretended(f"model.layers.{k}" for k in range(6)) == block
    assert seen == [block + 3 * 4 * WIDTH], "a row of the embedding, the last norm, a row of the head"


def test_memory_for_a_block_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wirings, "available_memory", lambda: 2**26)
    with pytest.raises(UserError, match="takes 64 MB of memory and 64 MB is free; choose a smaller --dtype"):
        found(llama(), {"input_ids": token_ids()}, tmp_path)
