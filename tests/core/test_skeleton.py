"""A model whose weights come and go has exactly the weights of the loaded one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from walking import by_hand
from zoo import ZOO, llama

from layerwright.core.errors import UserError
from layerwright.core.load import load_model
from layerwright.core.recipe import Recipe
from layerwright.core.shards import Checkpoint
from layerwright.core.skeleton import Skeleton


def loaded(model: nn.Module, folder: Path, **more: Any) -> Skeleton:
    model.save_pretrained(folder)
    return Skeleton.load(folder, **more)[0]


@pytest.fixture
def skeleton(tmp_path: Path) -> Skeleton:
    return loaded(llama(), tmp_path)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "t5 decoder", "resnet", "albert"])
def test_a_filled_skeleton_is_the_loaded_model(name: str, dtype: str | None, tmp_path: Path) -> None:
    """Experts are stacked, names change, weights are tied, buffers are stored."""
    skeleton = loaded(ZOO[name]()[0], tmp_path, dtype=dtype)
    assert all(p.is_meta for p in skeleton.model.parameters())
    skeleton.fill(skeleton.recipes)
    expected = load_model(tmp_path, dtype=dtype)[0]
    found, wanted = skeleton.model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(found[key].dtype == x.dtype and torch.equal(found[key], x) for key, x in wanted.items())
    assert not skeleton.model.training
    assert not any(p.requires_grad for p in skeleton.model.parameters())
    if name != "mixtral":  # experts of one tensor are many in the file
        assert set(skeleton.recipes) == {key for key in wanted if key in dict(expected.named_parameters())} | {
            key for key, _ in expected.named_buffers() if key in wanted
        }


def test_nothing_is_read_until_it_is_needed(skeleton: Skeleton) -> None:
    assert skeleton.checkpoint.bytes_read.total() == 0
    block = skeleton.below("model.layers.1")
    skeleton.fill(block)
    assert len(block) == 9
    assert set(skeleton.checkpoint.bytes_read) == set(block)
    assert skeleton.stored(block) == skeleton.checkpoint.bytes_read.total() == skeleton.nbytes(block)
    skeleton.clear(block)
    assert all(p.is_meta for p in skeleton.model.parameters())


def test_zeros_take_no_memory(skeleton: Skeleton) -> None:
    skeleton.zero(["lm_head.weight"])
    weight = skeleton.model.lm_head.weight
    assert weight.shape == (40, 16)
    assert not weight.any()
    assert weight.untyped_storage().nbytes() == 4


def test_a_tied_weight_is_one(tmp_path: Path) -> None:
    skeleton = loaded(llama(tie_word_embeddings=True), tmp_path)
    assert skeleton.below("lm_head") == ["model.embed_tokens.weight"] == skeleton.owned(skeleton.model.lm_head)
    skeleton.fill(["model.embed_tokens.weight"])
    assert skeleton.model.lm_head.weight is skeleton.model.model.embed_tokens.weight


def test_what_was_read_ahead_is_not_read_again(skeleton: Skeleton) -> None:
    first, second = skeleton.below("model.layers.0"), skeleton.below("model.layers.1")
    skeleton.prefetch(first)
    skeleton.prefetch(first)
    skeleton.fill(first)
    assert skeleton.checkpoint.bytes_read.total() == skeleton.stored(first)
    skeleton.prefetch(first)
    skeleton.prefetch(second)  # the plan changed: the last word counts
    skeleton.fill(second)
    assert skeleton.checkpoint.bytes_read.total() == 2 * skeleton.stored(first) + skeleton.stored(second)
    before = threading.active_count()
    skeleton.prefetch(first)
    skeleton.stop()
    assert threading.active_count() == before


def test_an_error_while_reading_ahead_comes_out_where_the_weights_are_needed(skeleton: Skeleton) -> None:
    block = skeleton.below("model.layers.0")
    file = skeleton.checkpoint.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    skeleton.prefetch(block)
    with pytest.raises(UserError, match="changed while it was in use"):
        skeleton.fill(block)
    skeleton.prefetch(block)
    skeleton.stop()  # nobody needs them any more


def test_buffers_keep_their_numbers_where_weights_are_random(tmp_path: Path) -> None:
    skeleton = loaded(ZOO["resnet"]()[0], tmp_path)
    skeleton.pretend(skeleton.recipes)
    found, stored = skeleton.model.state_dict(), load_model(tmp_path)[0].state_dict()
    buffers = {name for name, _ in skeleton.model.named_buffers()}
    assert len(buffers) > 9
    assert {name for name, x in stored.items() if torch.equal(found[name], x)} == buffers


@pytest.mark.parametrize(
    "change, words",
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized"),
        ({"architectures": ["Mine"]}, "is no architecture that transformers names"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=f"{words}, and cannot be taken block by block; survey it with --stream never"):
        Skeleton.load(tmp_path)


@pytest.mark.parametrize("spoil", ["written into", "another tensor"])
def test_a_weight_that_cannot_be_followed_is_named(spoil: str, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    recipe = Recipe.of("weight", (2, 3), torch.float32)
    if spoil == "written into":
        recipe[:1].mul_(2.0)
    made = recipe if spoil == "written into" else torch.zeros(2, 3, device="meta")
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight = nn.Parameter(made, requires_grad=False)
    with pytest.raises(UserError, match=r"weight 0\.weight is put together in a way that cannot be followed"):
        Skeleton(model, Checkpoint.open(tmp_path))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = by_hand(nn.Sequential(nn.Linear(3, 2, bias=False)), tmp_path / "a").checkpoint.folder
    save_file({"0.weight": torch.ones(2, 3, dtype=torch.int64)}, folder / "model.safetensors")
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    recipe = Recipe.of("0.weight", (2, 3), torch.int64).to(torch.float32)
    model[0].weight = nn.Parameter(recipe, requires_grad=False)
    with pytest.raises(UserError, match=r"tensor 0\.weight holds torch\.int64 and the model has torch\.float32"):
        Skeleton(model, Checkpoint.open(folder))
