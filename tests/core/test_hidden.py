"""The hidden activations of feed-forward parts: found without names, right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inside import inside, padded
from naive import blocks_of, first, hooked
from thinned import thinned
from torch import Tensor, nn
from zoo import WIDTH, ZOO, gpt2, llama, token_ids, vectors

from layerwright.core.hidden import HiddenFinder, out_weight
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack

WHERE = {
    "llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gemma2": "mlp.down_proj", "gpt-neox": "mlp.dense_4h_to_h",
    "opt": "fc2", "olmo2": "mlp.down_proj", "bert": "output.dense", "albert": "albert_layers.0.ffn_output",
    "t5 decoder": "layer.2.DenseReluDense.wo", "vit": "mlp.fc2", "swin": "mlp.fc2", "convnext": "pwconv2",
    "nn.TransformerEncoder": "linear2", "nn.TransformerEncoder, norm first": "linear2", "looped core": "outer",
    "mamba": "mixer.out_proj", "peft": "mlp.down_proj", "mixtral": None, "resnet": None, "nn.Sequential": None,
}  # fmt: skip


@pytest.mark.parametrize("name, dtype", thinned(2, WHERE, [torch.float32, torch.bfloat16]))
def test_the_last_matrix_of_the_feed_forward_part(name: str, dtype: torch.dtype) -> None:
    model, inputs, expected = ZOO[name]()
    model.to(dtype)
    cast = (
        {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
        if isinstance(inputs, dict)
        else None
    )
    inputs = inputs.to(dtype) if cast is None else cast
    stack = Stack.find(model, inputs, expected.blocks)
    with undisturbed(stack.model), torch.no_grad():
        replay, finder = Replay(stack, inputs), HiddenFinder(stack)
        for k, b in enumerate(stack.order):
            found = finder.of(k, replay)
            assert found is (None if WHERE[name] is None else stack.blocks[b].get_submodule(WHERE[name]))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("left", [False, True])
def test_what_is_given_is_what_the_matrix_read_at_drawn_tokens(make: Any, left: bool) -> None:
    model, inputs = make().eval(), padded(token_ids(3, 30), [30, 20, 5], left)
    read: list[Tensor] = []
    matrices = [b.mlp.down_proj if make is llama else b.mlp.c_proj for b in blocks_of(model)]
    with hooked(*((m, lambda module, args, output: read.append(args[0])) for m in matrices)), torch.no_grad():
        model(**inputs)
    given = inside(model, inputs, "hidden")
    for k, module in enumerate(matrices):
        hidden, there, weight = (given["hidden", k][name] for name in ("hidden", "hidden_tokens", "out_weight"))
        assert hidden.shape == (3, 16, read[k].shape[-1])
        assert there.sum(1).tolist() == [16, 16, 5]
        assert (hidden[~there] == 0).all()
        assert torch.equal(weight, module.weight if make is llama else module.weight.T)
        for b in range(3):
            real = read[k][b][inputs["attention_mask"][b].bool()]
            nearest = torch.cdist(hidden[b][there[b]], real, compute_mode="donot_use_mm_for_euclid_dist")
            assert nearest.amin(1).max() < 1e-5
            assert nearest.argmin(1).unique().numel() == there[b].sum()  # no token twice


def test_the_same_tokens_whatever_the_padding_and_the_batch() -> None:
    model, ids = llama(), token_ids(2, 30)
    whole = inside(model, padded(ids, [30, 20], left=True), "hidden")["hidden", 1]
    alone = inside(model, {"input_ids": ids[:1]}, "hidden")["hidden", 1]
    torch.testing.assert_close(whole["hidden"][:1], alone["hidden"], rtol=1e-4, atol=1e-6)


class Hushed(nn.Module):
    """A linear layer whose weight cannot be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._inner = [linear]

    def forward(self, x: Tensor) -> Tensor:
        return self._inner[0](x)


def test_the_matrix_of_a_quantized_layer_is_tried_out() -> None:
    linear = nn.Linear(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(out_weight(Hushed(linear), vectors(2, 5)), linear.weight, rtol=1e-5, atol=1e-6)


class Experts(nn.Module):
    """x + W₂ tanh(W₁ x) for one of two experts a token, each with matrices of its own, after a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.experts = nn.Linear(WIDTH, WIDTH), nn.ModuleList([self._mlp(), self._mlp()])
        self.join = nn.Identity()

    @staticmethod
    def _mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 24), nn.Tanh(), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        chosen = (x[..., :1] > 0).to(x)
        return x + self.join(chosen * self.experts[0](x) + (1 - chosen) * self.experts[1](x))


def test_where_a_part_has_several_last_matrices_none_is_taken_for_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Experts(), Experts()), vectors(2, 6, WIDTH)
    assert [part.role for part in Stack.find(model, x).parts[0]] == ["attention", "mlp"]
    assert inside(model, x, "hidden") == {}


def test_a_model_is_left_as_it_was() -> None:
    model, inputs = llama(), {"input_ids": token_ids()}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inside(model, inputs)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert first(model.eval()(**inputs)).isfinite().all()
