"""Tiny models of many architectures, each built in milliseconds, with what tracing must find in them."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
import torch
import transformers
from torch import Tensor, nn

BATCH, TOKENS, VOCABULARY, WIDTH, DEPTH = 3, 12, 40, 16, 3


@dataclass(frozen=True)
class Expected:
    """What `Stack.find(model, inputs, blocks)` must say of a model."""

    path: str
    order: tuple[int, ...] = tuple(range(DEPTH))
    width: int = WIDTH
    roles: tuple[str, ...] = ("attention", "mlp")
    causal: bool = True
    head: str | None = "token"
    blocks: str | None = None


Entry = tuple[nn.Module, Any, Expected]
ZOO: dict[str, Callable[[], Entry]] = {}


def entry(name: str) -> Callable[[Callable[[], Entry]], Callable[[], Entry]]:
    """Put a builder into the zoo; its random weights and inputs are the same at each call."""

    def register(build: Callable[[], Entry]) -> Callable[[], Entry]:
        def seeded() -> Entry:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return build()

        ZOO[name] = seeded
        return seeded

    return register


def token_ids(batch: int = BATCH, tokens: int = TOKENS, seed: int = 1) -> Tensor:
    """Random token ids."""
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def pixels(size: int) -> Tensor:
    """Random images."""
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))


def vectors(*shape: int) -> Tensor:
    """Random features."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Transformers language models

_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # ten times the usual, so that blocks of this width do as much as those of large models
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


_BUILT: dict[str, nn.Module] = {}


def language_model(kind: str, model: str | None = None, **changes: Any) -> nn.Module:
    """A tiny model of transformers, new at each call; `kind` is the name of its configuration without `Config`."""
    key = repr((kind, model, changes))
    if key not in _BUILT:
        config = getattr(transformers, f"{kind}Config")(**(_SIZES | changes))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _BUILT[key] = getattr(transformers, model or f"{kind}ForCausalLM")(config)
    return copy.deepcopy(_BUILT[key])


def llama(**changes: Any) -> nn.Module:
    """The Llama of the zoo, in other sizes where asked. Its norms compute in float32 whatever its weights are in."""
    return language_model("Llama", **(_GROUPED | changes))


def gpt2(**changes: Any) -> nn.Module:
    """The GPT-2 of the zoo, in other sizes where asked; in float64 it computes in float64 throughout."""
    return language_model("GPT2", "GPT2LMHeadModel", bos_token_id=0, eos_token_id=0, **changes)


_CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "model.layers", _GROUPED),
    "qwen3": ("Qwen3", "model.layers", _GROUPED),
    "gemma2": ("Gemma2", "model.layers", _GROUPED),
    "gemma3": ("Gemma3Text", "model.layers", _GROUPED),
    "gpt-neox": ("GPTNeoX", "gpt_neox.layers", {}),
    "mixtral": ("Mixtral", "model.layers", _GROUPED | {"num_local_experts": 3}),
    "phi": ("Phi", "model.layers", {}),
    "opt": ("OPT", "model.decoder.layers", {"ffn_dim": 24, "word_embed_proj_dim": WIDTH, "init_std": 0.2}),
    "bloom": ("Bloom", "transformer.h", {}),
    "olmo2": ("Olmo2", "model.layers", {"num_key_value_heads": 2}),
    "granite": ("Granite", "model.layers", {"num_key_value_heads": 2, "residual_multiplier": 0.22}),
}
_CLASSES = {"gemma3": "Gemma3ForCausalLM"}


def _causal(name: str, kind: str, path: str, changes: dict[str, Any]) -> None:
    entry(name)(
        lambda: (language_model(kind, _CLASSES.get(name), **changes), {"input_ids": token_ids()}, Expected(path))
    )


for _name, _settings in _CAUSAL.items():
    _causal(_name, *_settings)


@entry("gpt2")
def _gpt2() -> Entry:
    return gpt2(), {"input_ids": token_ids()}, Expected("transformer.h")


@entry("mamba")
def _mamba() -> Entry:
    model = language_model("Mamba", state_size=4)
    return model, {"input_ids": token_ids()}, Expected("backbone.layers", roles=())  # one mixer is the whole block


@entry("bert")
def _bert() -> Entry:
    model = language_model("Bert", "BertForMaskedLM")
    expected = Expected("bert.encoder.layer", roles=(), causal=False)  # post-normalised: the block is no sum
    return model, {"input_ids": token_ids()}, expected


@entry("albert")
def _albert() -> Entry:
    model = language_model("Albert", "AlbertForMaskedLM", num_hidden_layers=4, embedding_size=8)
    path = "albert.encoder.albert_layer_groups"
    return model, {"input_ids": token_ids()}, Expected(path, (0, 0, 0, 0), roles=(), causal=False)


def t5() -> nn.Module:
    """An encoder and a decoder."""
    config = transformers.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=24, num_layers=DEPTH, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


_T5_INPUTS = {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=10, seed=2)}


@entry("t5 decoder")
def _t5_decoder() -> Entry:
    roles = ("attention", "attention_2", "mlp")
    return t5(), _T5_INPUTS, Expected("decoder.block", roles=roles, blocks="decoder.block")


@entry("t5 encoder")
def _t5_encoder() -> Entry:
    return t5(), _T5_INPUTS, Expected("encoder.block", causal=False, head=None, blocks="encoder.block")


# Vision


@entry("vit")
def _vit() -> Entry:
    model = language_model("ViT", "ViTForImageClassification", image_size=16, patch_size=4)
    return model, {"pixel_values": pixels(16)}, Expected("vit.layers", causal=False, head="sequence")


@entry("swin")
def _swin() -> Entry:
    config = transformers.SwinConfig(
        embed_dim=8, depths=[1, 3], num_heads=[1, 2], image_size=16, patch_size=2, window_size=2, initializer_range=0.2
    )
    model = transformers.SwinForImageClassification(config)
    expected = Expected("swin.encoder.layers.1.blocks", causal=False, head="sequence")
    return model, {"pixel_values": pixels(16)}, expected


@entry("convnext")
def _convnext() -> Entry:
    config = transformers.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 3], image_size=16, patch_size=2, layer_scale_init_value=0.5
    )
    model = transformers.ConvNextForImageClassification(config)
    expected = Expected("convnext.encoder.stages.1.layers", roles=(), causal=False, head="sequence")
    return model, {"pixel_values": pixels(16)}, expected


@entry("resnet")
def _resnet() -> Entry:
    config = transformers.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 4], embedding_size=8, layer_type="basic")
    model = transformers.ResNetForImageClassification(config)
    # The first block of a stage halves the grid, so that the stream starts after it.
    expected = Expected("resnet.encoder.stages.1.layers[1:4]", roles=(), causal=False, head="sequence")
    return model, {"pixel_values": pixels(16)}, expected


class ConvBlock(nn.Module):
    """A basic residual block as torchvision writes it: rectified in place, after the addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ConvNet(nn.Module):
    """Stages as attributes `layer1 … layer4`; with `blocks = 1` the stages themselves are the only tower."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for k in range(1, 5):
            stage = ConvBlock(8) if blocks == 1 else nn.Sequential(*(ConvBlock(8) for _ in range(blocks)))
            setattr(self, f"layer{k}", stage)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
        return self.fc(x.mean((2, 3)))


@entry("layer1..layer4")
def _stages() -> Entry:
    expected = Expected("layer{1..4}", (0, 1, 2, 3), width=8, roles=(), causal=False, head="sequence")
    return ConvNet(blocks=2), pixels(8), expected


# Plain modules


def _encoder(norm_first: bool, expected: Expected) -> Entry:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False), vectors(BATCH, TOKENS, WIDTH), expected


@entry("nn.TransformerEncoder")
def _post_norm() -> Entry:
    return _encoder(False, Expected("layers", roles=(), causal=False, head=None))


@entry("nn.TransformerEncoder, norm first")
def _pre_norm() -> Entry:
    return _encoder(True, Expected("layers", causal=False, head=None))


@entry("nn.Sequential")
def _mlp() -> Entry:
    layers = (nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    return nn.Sequential(*layers), vectors(6, 8), Expected("(model)[1:4]", roles=(), causal=False, head="sequence")


class Residual(nn.Module):
    """x + W₂ tanh(W₁ x)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).tanh())


class Looped(nn.Module):
    """A core of two blocks that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.core = nn.ModuleList([Residual(), Residual()])

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for _ in range(3):
            for block in self.core:
                x = block(x)
        return self.head(x)


@entry("looped core")
def _looped() -> Entry:
    return Looped(), {"input_ids": token_ids()}, Expected("core", (0, 1, 0, 1, 0, 1), roles=())


# Wrappers


class Wrapper(nn.Module):
    """A user's own module around a language model, which hides its options and gives bare logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = llama()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids).logits


@entry("own wrapper")
def _wrapper() -> Entry:
    return Wrapper(), {"input_ids": token_ids()}, Expected("model.model.layers")


@entry("peft")
def _peft() -> Entry:
    peft = pytest.importorskip("peft", reason="peft is no dependency")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, for what peft calls
        model = peft.get_peft_model(llama(), config)
    return model, {"input_ids": token_ids()}, Expected("base_model.model.model.layers")


@entry("torch.compile")
def _compiled() -> Entry:
    return torch.compile(llama(), backend="eager"), {"input_ids": token_ids()}, Expected("model.layers")


@entry("compiled in place")
def _compiled_in_place() -> Entry:
    model = llama()
    model.compile(backend="eager")
    return model, {"input_ids": token_ids()}, Expected("model.layers")


@entry("ddp")
def _ddp() -> Entry:
    dist = torch.distributed
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapped = nn.parallel.DistributedDataParallel(llama())
    return wrapped, {"input_ids": token_ids()}, Expected("model.layers")


@entry("timm")
def _timm() -> Entry:
    timm = pytest.importorskip("timm", reason="timm is no dependency: it brings torchvision")
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=WIDTH, depth=3, num_heads=2)
    return model, pixels(16), Expected("blocks", causal=False, head="sequence")
