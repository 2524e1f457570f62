"""The tower is found in every architecture, and where it is not the message says what to do."""

from __future__ import annotations

import pytest
import torch
from thinned import thinned
from torch import Tensor, nn
from zoo import TOKENS, WIDTH, ZOO, ConvNet, Residual, language_model, llama, pixels, t5, token_ids, vectors

from layerwright.core.errors import UserError
from layerwright.core.stack import Stack


@pytest.mark.parametrize("name, dtype", thinned(2, ZOO, [torch.float32, torch.bfloat16]))
def test_zoo(name: str, dtype: torch.dtype) -> None:
    model, inputs, expected = ZOO[name]()
    stack = Stack.find(model.to(dtype), cast(inputs, dtype), expected.blocks)
    assert stack.tower.path == expected.path
    assert stack.order == expected.order
    assert stack.width == expected.width
    assert tuple(stack.role_names) == expected.roles
    assert stack.causal == expected.causal
    assert stack.head == expected.head


def cast(inputs, dtype: torch.dtype):
    """Floating inputs in the model's dtype."""
    if isinstance(inputs, dict):
        return {name: cast(x, dtype) for name, x in inputs.items()}
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def test_every_tower_is_reported_and_blocks_chooses() -> None:
    inputs = {"input_ids": token_ids()}
    paths = {t.path for t in Stack.find(t5(), inputs).towers if t.surveyable}
    assert {"encoder.block", "decoder.block"} <= paths
    for path in ("encoder.block", "decoder.block"):
        assert Stack.find(t5(), inputs, path).tower.path == path


def test_stages_are_a_tower_and_so_are_the_blocks_of_each() -> None:
    stack = Stack.find(ConvNet(blocks=2), pixels(8))
    assert [t.path for t in stack.towers if t.surveyable] == ["layer{1..4}", "layer1", "layer2", "layer3", "layer4"]
    assert Stack.find(ConvNet(blocks=2), pixels(8), "layer3").depth == 2


def test_a_container_names_the_longest_stretch_in_it_that_chains() -> None:
    model = nn.Sequential(nn.Linear(8, WIDTH), *(Residual() for _ in range(3)), nn.Linear(WIDTH, 2))
    stack = Stack.find(nn.ModuleDict({"net": model})["net"], vectors(4, 8), "(model)")
    assert stack.tower.block_paths == ("1", "2", "3")


def error(model: nn.Module, inputs, blocks: str | None = None) -> str:
    with pytest.raises(UserError) as raised:
        Stack.find(model, inputs, blocks)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_nothing_like_a_tower() -> None:
    message = error(nn.Bilinear(4, 4, 3), (vectors(2, 4), vectors(2, 4)))
    assert "no tower of at least two chained blocks found" in message
    assert "no container whose children run one after another" in message
    assert "--blocks" in message


class OuterAddition(nn.Module):
    """The residual addition is made by the model, not by its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


def test_addition_outside_the_block_is_named_and_what_to_do() -> None:
    message = error(OuterAddition(), vectors(2, 5, WIDTH))
    assert "branches (3 x Linear, outputs do not feed the next input)" in message
    assert "residual addition inside" in message
    assert "--blocks PATH" in message


def test_pointing_at_blocks_that_do_not_chain() -> None:
    message = error(OuterAddition(), vectors(2, 5, WIDTH), "branches")
    assert "branches (3 x Linear, outputs do not feed the next input) cannot be surveyed" in message


def test_a_tower_of_one_block() -> None:
    model = llama(num_hidden_layers=1)
    assert "at least two chained blocks" in error(model, {"input_ids": token_ids()})
    assert "model.layers" in error(model, {"input_ids": token_ids()}, "model.layers")


def test_a_wrong_path_is_answered_with_the_right_ones() -> None:
    message = error(llama(), {"input_ids": token_ids()}, "transformer.h")
    assert "no blocks ran at 'transformer.h'" in message
    assert "model.layers" in message


class UNet(nn.Module):
    """Halves whose states shrink and grow, joined by skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(c, 2 * c, 3, 2, 1) for c in (3, 6, 12))
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, c // 4, 2, 2) for c in (48, 24))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for block in self.up:
            x = block(torch.cat([x, kept.pop()], dim=1))
        return x


class Experts(nn.Module):
    """All read the same state, and their outputs are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts]).mean(0)


def test_halves_of_a_u_net_are_no_tower() -> None:
    assert "down (3 x Conv2d, the shape changes on the way)" in error(UNet(), pixels(16))


def test_parallel_experts_are_no_tower() -> None:
    assert "experts (3 x Residual, outputs do not feed the next input)" in error(Experts(), vectors(2, 5, WIDTH))


class InPlace(Residual):
    """Adds into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.outer(self.inner(x).tanh())
        return x


def test_a_block_that_writes_into_its_input() -> None:
    message = error(nn.Sequential(InPlace(), InPlace()), vectors(2, 5, WIDTH))
    assert "block 0 (0) writes into its input" in message
    assert "out of place" in message


def test_relu_in_place_between_layers_writes_into_its_input() -> None:
    layers = (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))
    assert "writes into its input" in error(nn.Sequential(*layers), vectors(4, WIDTH))


@pytest.mark.parametrize("norm_first", [False, True])
def test_tokens_in_front_of_the_batch_are_told_apart_from_sequences(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=False, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    message = error(model, vectors(TOKENS, 4, WIDTH))
    assert "the first axis of the inputs must be the batch" in message
    assert "batch_first=True" in message


@pytest.mark.parametrize("padded", ["right", "left"])
def test_padding_does_not_hide_that_tokens_look_ahead(padded: str) -> None:
    ids = token_ids(4)
    mask = torch.ones_like(ids)
    mask[:3, slice(6, None) if padded == "right" else slice(0, 6)] = 0  # the first sequences are the shorter ones
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert not Stack.find(language_model("Bert", "BertForMaskedLM"), inputs).causal
    assert Stack.find(llama(), inputs).causal


def test_long_left_padding_is_not_what_is_traced() -> None:
    ids = token_ids(2, 40)
    mask = torch.ones_like(ids)
    mask[:, :30] = 0
    stack = Stack.find(language_model("Bert", "BertForMaskedLM"), {"input_ids": ids, "attention_mask": mask})
    assert not stack.causal


def test_nan_in_one_block_does_not_hide_the_rest() -> None:
    for model, causal in ((llama(), True), (language_model("ViT", "ViTModel", image_size=16, patch_size=4), False)):
        block = Stack.find(model, inputs_of(model)).blocks[0]
        next(p for p in block.parameters() if p.ndim == 2).data[0, 0] = torch.nan
        stack = Stack.find(model, inputs_of(model))
        assert stack.causal == causal
        assert [[s.role for s in parts] for parts in stack.parts] == [["attention", "mlp"]] * 3


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    return {"pixel_values": pixels(16)} if model.main_input_name == "pixel_values" else {"input_ids": token_ids()}


class Answers(nn.Module):
    """Residual blocks and a head whose answer comes in one of several wrappings."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.blocks, self.head, self.wrap = nn.ModuleList([Residual(), Residual()]), nn.Linear(WIDTH, 7), wrap

    def forward(self, x: Tensor):
        for block in self.blocks:
            x = block(x)
        return self.wrap(self.head(x))


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y, None), lambda y: [y], lambda y: {"logits": y}])
def test_logits_are_read_in_any_wrapping(wrap) -> None:
    assert Stack.find(Answers(wrap), vectors(2, TOKENS, WIDTH)).head == "token"


def test_logits_that_need_all_tokens_are_not_read_off_one() -> None:
    stack = Stack.find(Answers(lambda y: y + y.cumsum(1)), vectors(2, TOKENS, WIDTH))
    assert (stack.head, stack.tokenwise) == ("token", False)  # the blocks are causal, so that a logit has its token
    stack = Stack.find(t5(), {"input_ids": token_ids()}, "encoder.block")
    assert (stack.head, stack.tokenwise) == (None, False)  # as many logits as tokens, but those of the decoder
