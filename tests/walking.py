"""Both engines on one folder, side by side, and what a walk read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from zoo import language_model

import layerwright.measures  # noqa: F401 - registers every measure
from layerwright.core import budget, engine, reduce, table
from layerwright.core.data import Data, load_data
from layerwright.core.inputs import moved
from layerwright.core.quiet import undisturbed
from layerwright.core.recipe import Recipe
from layerwright.core.recording import Recording
from layerwright.core.registry import choose
from layerwright.core.replay import Replay
from layerwright.core.shards import Checkpoint
from layerwright.core.skeleton import Skeleton
from layerwright.core.stack import Stack
from layerwright.core.states import States


def few_replicates(patch: pytest.MonkeyPatch) -> None:
    """Intervals from few replicates of the bootstrap, for tests in which any number of them will do."""
    patch.setattr(reduce, "REPLICATES", 20)
    patch.setattr(table, "REPLICATES_OF_DERIVED", 5)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Few bootstrap replicates, no waiting for the disk, no measuring of speed: nothing here depends on them."""
    few_replicates(patch)
    patch.setattr(budget, "_speed", lambda stack, device: 1e9)
    patch.setattr("os.fsync", lambda descriptor: None)


def data_for(model: nn.Module, inputs: Any, batch: int = 2, prefix: int = 0) -> Data:
    """Inputs as both engines take them; batches of two leave the last of three or five sequences alone."""
    return load_data(inputs, model, batch_size=batch, prefix=prefix)


def asked(
    folder: Path, data: Any, tier: str = "standard", only: tuple[str, ...] = (), skip: tuple[str, ...] = (), **more: Any
) -> engine.Request:
    """What is asked of either engine."""
    return engine.Request(folder, data, choose(tier, only, skip), **more)


@contextmanager
def opened() -> Iterator[list[Checkpoint]]:
    """The checkpoints that are opened meanwhile, which count what is read."""
    found: list[Checkpoint] = []
    real = Checkpoint.open.__func__  # type: ignore[attr-defined]

    def note(cls: type[Checkpoint], folder: Path) -> Checkpoint:
        found.append(real(cls, folder))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "open", classmethod(note))
        yield found


def walked(request: engine.Request) -> tuple[engine.Answer, Counter[str]]:
    """The answer of a walk, and how often it read each tensor."""
    with opened() as checkpoints:
        answer = engine.by_walk(request)
    return answer, times_read(checkpoints)


def times_read(checkpoints: list[Checkpoint]) -> Counter[str]:
    """How often each tensor was read, over all checkpoints."""
    times: Counter[str] = Counter()
    for checkpoint in checkpoints:
        for name, entry in checkpoint.entries.items():
            whole, rest = divmod(checkpoint.bytes_read[name], entry.nbytes)
            assert rest == 0, name
            times[name] += whole
    return times


def assert_same_tables(found: Recording, expected: Recording, rounding: float = 0.0) -> None:
    """All tables with all they carry: bit for bit, or within a rounding."""
    assert list(found.tables) == list(expected.tables)
    for name, frame in expected.tables.items():
        tolerance: dict[str, Any] = {"rtol": rounding, "atol": rounding} if rounding else {"check_exact": True}
        pd.testing.assert_frame_equal(found.tables[name], frame, obj=name, **tolerance)
        assert found.tables[name].attrs == frame.attrs


def assert_same_answer(found: engine.Answer, expected: engine.Answer, rounding: float = 0.0) -> None:
    """Tables, notes, and what is known of the tower."""
    assert_same_tables(found.recording, expected.recording, rounding)
    mine, its = found.stack, expected.stack
    assert (mine.tower, mine.towers, mine.width) == (its.tower, its.towers, its.width)
    assert (mine.causal, mine.head, mine.tokenwise) == (its.causal, its.head, its.tokenwise)
    assert _parts(mine) == _parts(its)
    assert (mine.layout.batch, mine.layout.width, mine.layout.ndim) == (
        its.layout.batch, its.layout.width, its.layout.ndim,
    )  # fmt: skip
    for name in ("notes", "sequences", "tokens"):
        assert getattr(found.recording, name) == getattr(expected.recording, name)
    assert all(check.passed for check in found.recording.checks), found.recording.checks
    names = {check.name for check in expected.recording.checks}
    assert {check.name for check in found.recording.checks} == (
        names - {"blocks called again = forward pass"} | {"block by block = forward pass"}
    )


def _parts(stack: Stack) -> list[list[Any]]:
    """A scale is fitted to a state, and another state gives another last digit."""
    return [[replace(part, scale=round(part.scale, 6)) for part in parts] for parts in stack.parts]


def assert_same_states(out: Path, expected: engine.Answer) -> None:
    """Every state of every batch on disk is what the loaded model has in memory, bit for bit."""
    stack = expected.stack
    device = next(stack.model.parameters()).device
    for place, batch in enumerate(expected.data.batches):
        with undisturbed(stack.model), torch.no_grad():
            states = Replay(stack, moved(batch, device)).states
        files = States(out / engine.WALK / "states" / f"{place:04d}-state", stack.depth, states[0])
        assert len(files) == len(states)
        assert all(map(_same_bits, files, states)), place


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


# Models with weights in unusual places


def zamba() -> nn.Module:
    """Two blocks hold the same weights."""
    kinds = ["mamba", "hybrid", "hybrid"]
    sizes = {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 1, "num_mem_blocks": 1}
    return language_model("Zamba2", num_hidden_layers=3, layers_block_type=kinds, num_key_value_heads=2, **sizes)


def minimax() -> nn.Module:
    """What makes its linear attention causal is a buffer that is stored with the weights."""
    return language_model("MiniMax", num_key_value_heads=2, head_dim=8, num_local_experts=2, block_size=4)


def bart() -> nn.Module:
    """The model itself holds a bias of its logits, beside its modules."""
    config = transformers.BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=40, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, init_std=0.2,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


def by_hand(model: nn.Module, folder: Path) -> Skeleton:
    """The skeleton of any module: its parameters in a file, recipes in their place."""
    folder.mkdir()
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    recipes: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) not in recipes:
                entry = checkpoint.entries[f"{path}.{name}" if path else name]
                recipe = Recipe.of(entry.name, entry.shape, entry.dtype)
                recipes[id(p)] = nn.Parameter(recipe, requires_grad=False)
            module._parameters[name] = recipes[id(p)]
    return Skeleton(model.eval(), checkpoint)
