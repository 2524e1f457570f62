"""A path gives what the model gives with its blocks in that order, and paths that start alike share the work."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from naive import forward
from thinned import thinned
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from zoo import ZOO, gpt2, language_model, llama, token_ids, vectors

from layerwright.core.base_pass import BasePass
from layerwright.core.errors import UserError
from layerwright.core.inputs import call
from layerwright.core.paths import Path, Paths
from layerwright.core.replay import read_logits
from layerwright.core.stack import Stack
from layerwright.core.trie import Trie

ORDERS: list[Path] = [(0, 2), (2, 1, 0), (0, 1, 1, 2), (1,), (0, 0, 0, 2, 2), (0, 1, 2)]


def rearranged(model: nn.Module, path: Path) -> nn.Module:
    """The model as a user would rewire it: another list of blocks, another depth, per-block settings moved along."""
    model = copy.deepcopy(model)
    container, name = next(
        (m, n) for m in model.modules() for n, c in m.named_children() if isinstance(c, nn.ModuleList)
    )
    blocks = getattr(container, name)
    setattr(container, name, nn.ModuleList(blocks[k] for k in path))
    config = getattr(container, "config", None)
    if config is not None:
        kinds = vars(config).get("layer_types")
        config.num_hidden_layers = len(path)
        if kinds:
            config.layer_types = [kinds[k] for k in path]
    return model.eval()


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        output = call(model, inputs)
    logits = read_logits(output, torch.zeros(0))
    assert logits is not None
    return logits


def last(model: nn.Module, inputs: Any, path: Path) -> Tensor:
    """The model's output had its tower run in this order."""
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        state = paths.state(path, 0)
        output = paths.runs[0].replay.tail(state)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize(
    "name",
    thinned(
        2, ["llama", "qwen3", "gpt2", "opt", "gemma2", "gpt-neox", "mixtral", "phi", "mamba", "bloom", "bert", "vit"]
    ),
)
def test_a_path_is_a_full_forward_with_the_blocks_in_that_order(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    for path in ORDERS:
        expected = outputs(rearranged(model, path), inputs)
        torch.testing.assert_close(last(model, inputs, path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_in_a_plain_tower_bit_for_bit(dtype: torch.dtype) -> None:
    model, inputs = llama().to(dtype), {"input_ids": token_ids()}
    for path in ORDERS:
        assert torch.equal(last(model, inputs, path), outputs(rearranged(model, path), inputs))


@pytest.mark.parametrize("left", [True, False])
def test_padded_batches(left: bool) -> None:
    model, ids, mask = gpt2(), token_ids(4, 12), torch.ones(4, 12, dtype=torch.long)
    for row, n in enumerate((0, 3, 5, 7)):
        mask[row, slice(0, n) if left else slice(12 - n, 12)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    for path in ORDERS:
        expected = forward(rearranged(model, path), ids, attention_mask=mask)
        found = last(model, inputs, path)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
        with Paths(Stack.find(model, inputs), [inputs]) as paths:
            losses = paths.loss(path)
        labels = ids[:, 1:].masked_fill(~(mask[:, 1:] * mask[:, :-1]).bool(), -100)
        naive = cross_entropy(expected[:, :-1].transpose(1, 2), labels, reduction="none").sum(1) / (labels >= 0).sum(1)
        torch.testing.assert_close(losses, naive.double(), rtol=1e-5, atol=1e-6)


def test_a_sliding_block_keeps_its_window_wherever_it_runs() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = language_model(
        "Gemma3Text", "Gemma3ForCausalLM", num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=kinds
    )
    inputs = {"input_ids": token_ids()}
    for path in ORDERS:
        expected = outputs(rearranged(model, path), inputs)
        torch.testing.assert_close(last(model, inputs, path), expected, rtol=1e-5, atol=1e-5)


def test_a_looped_tower_is_counted_by_applications() -> None:
    model, inputs, _ = ZOO["looped core"]()
    expected = model.embedding(inputs["input_ids"])
    for k in (0, 1, 1):
        expected = model.core[k](expected)
    torch.testing.assert_close(last(model, inputs, (0, 1, 3)), model.head(expected), rtol=0, atol=0)


def test_a_tower_without_logits_has_states() -> None:
    model, inputs, _ = ZOO["nn.TransformerEncoder, norm first"]()
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        states = paths.states((0, 2), 0)
        with torch.no_grad():
            assert torch.equal(states[2], model.layers[2](model.layers[0](inputs)))
        with pytest.raises(UserError, match="no logits"):
            paths.loss((0, 2))
        with pytest.raises(UserError, match="answers nothing"):
            paths.answers((0, 2))


def test_losses_over_batches_are_those_of_one() -> None:
    model, ids = llama(), token_ids(5)
    stack = Stack.find(model, {"input_ids": ids})
    orders = ORDERS[:3]
    with Paths(stack, [{"input_ids": ids}]) as paths:
        one = paths.losses(orders)
        mean = paths.mean(one)
    with Paths(stack, [{"input_ids": ids[:2]}, {"input_ids": ids[2:]}]) as paths:
        torch.testing.assert_close(paths.losses(orders), one, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(paths.mean(one), mean)
    expected = [
        cross_entropy(forward(rearranged(model, p), ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for p in orders
    ]
    torch.testing.assert_close(mean.float(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_prefix_counts_for_nothing() -> None:
    model, ids = llama(), token_ids(5)
    stack = Stack.find(model, {"input_ids": ids})
    with Paths(stack, [{"input_ids": ids}], prefix=4) as paths:
        found = paths.loss((0, 2))
        assert paths.weights.tolist() == [7.0] * 5
    logits = forward(rearranged(model, (0, 2)), ids)[:, 4:-1]
    expected = cross_entropy(logits.transpose(1, 2), ids[:, 5:], reduction="none").mean(1)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)


# What is shared


def test_single_skips_cost_half_the_block_calls() -> None:
    """L(L−1)/2 beside the unchanged pass, against L(L−1) of full forwards."""
    depth, inputs = 6, {"input_ids": token_ids()}
    stack = Stack.find(gpt2(num_hidden_layers=depth), inputs)
    with Paths(stack, [inputs]) as paths:
        skips = [tuple(k for k in range(depth) if k != s) for s in range(depth)]
        shared = paths.losses(skips)
        # The last skip is the start of the unchanged pass, which has run.
        assert paths.calls == depth + depth * (depth - 1) // 2
    with Paths(stack, [inputs], memory=0) as paths:
        assert torch.equal(paths.losses(skips), shared)
        assert paths.calls == depth + depth * (depth - 1)


def test_pairs_share_what_single_skips_ran() -> None:
    """All pairs cost C(L, 2) + C(L, 3) block calls, C(L, 2)·(L−2) without sharing."""
    depth, inputs = 7, {"input_ids": token_ids()}
    with Paths(Stack.find(gpt2(num_hidden_layers=depth), inputs), [inputs]) as paths:
        paths.losses([tuple(k for k in range(depth) if k not in pair) for pair in combinations(range(depth), 2)])
        # After leaving out i and j, L−1−j blocks run; after i alone, those up to the last that a pair leaves out.
        pairs = sum(depth - 1 - j for _, j in combinations(range(depth), 2))
        singles = sum(depth - 2 - i for i in range(depth - 1))
        assert paths.calls == depth + pairs + singles
        assert paths.calls - depth < (depth - 2) * depth * (depth - 1) / 2 / 2


def test_a_path_is_run_once() -> None:
    inputs = {"input_ids": token_ids()}
    with Paths(Stack.find(llama(), inputs), [inputs]) as paths:
        first = paths.loss((0, 2))
        calls = paths.calls
        assert torch.equal(paths.losses([(0, 2), (0, 2)]), torch.stack([first, first]))
        paths.loss(paths.whole)
        assert paths.calls == calls


@pytest.mark.parametrize("states", [0, 1, 2, 5])
def test_little_memory_costs_time_and_no_digit(states: int) -> None:
    model, inputs = llama(num_hidden_layers=5), {"input_ids": token_ids()}
    orders = [p for n in (2, 3) for p in combinations(range(5), n)]
    stack = Stack.find(model, inputs)
    with Paths(stack, [inputs]) as paths:
        expected = paths.losses(orders)
        size = paths.states(paths.whole, 0)[0].nbytes
        least = paths.calls
    with Paths(stack, [inputs], memory=states * size) as paths:
        assert torch.equal(paths.losses(orders), expected)
        assert paths.calls >= least
        assert paths._trie.held <= states * size


def test_the_states_of_one_branch_are_enough_for_sorted_paths() -> None:
    model, inputs = llama(num_hidden_layers=6), {"input_ids": token_ids()}
    stack = Stack.find(model, inputs)
    skips = [tuple(k for k in range(6) if k != s) for s in range(6)]
    with Paths(stack, [inputs]) as paths:
        paths.losses(skips)
        calls, size = paths.calls, paths.states(paths.whole, 0)[0].nbytes
    with Paths(stack, [inputs], memory=8 * size) as paths:
        paths.losses(skips)
        assert paths.calls == calls


def test_the_trie_gives_up_what_was_used_longest_ago() -> None:
    trie = Trie(8)
    a, b, c = (trie.nodes((k,))[-1] for k in range(3))
    trie.put(a, torch.zeros(1))
    trie.put(b, torch.zeros(1))
    trie.deepest(trie.nodes((0,)))
    trie.put(c, torch.zeros(1))
    assert trie.get(a) is not None
    assert trie.get(b) is None
    assert trie.get(c) is not None
    trie.put(b, torch.zeros(3))  # larger than the whole limit
    assert trie.get(b) is None
    assert trie.held == 8


def test_the_shorter_start_outlives_the_longer() -> None:
    trie = Trie(8)
    nodes = trie.nodes((0, 1))
    for node in nodes[1:]:
        trie.put(node, torch.zeros(1))
    trie.deepest(nodes)
    trie.put(trie.nodes((5,))[-1], torch.zeros(1))
    assert trie.get(nodes[1]) is not None
    assert trie.get(nodes[2]) is None


# Answers


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba", "looped core"])
@pytest.mark.parametrize("n", [1, 3])
def test_answers_are_read_off_the_full_output(name: str, n: int) -> None:
    model, inputs, _ = ZOO[name]()
    ids, path = inputs["input_ids"], (0, 1)
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        found = paths.answers(path, n)
        output = paths.runs[0].replay.tail(paths.state(path, 0))
    logits = output if isinstance(output, Tensor) else output.logits
    p, choice = logits[:, -1 - n : -1].softmax(-1).max(-1)
    assert torch.equal(found.choice, choice)
    torch.testing.assert_close(found.confidence, p.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.label, ids[:, -n:])


def test_answers_of_padded_sequences_are_at_their_own_ends() -> None:
    model, ids, mask = gpt2(), token_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[1, 8:] = 0
    mask[2, 2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        found = paths.answers((0, 2), 2)
    assert found.label.tolist() == [ids[0, 10:].tolist(), ids[1, 6:8].tolist(), [int(ids[2, 1])] * 2]
    expected = forward(rearranged(model, (0, 2)), ids, attention_mask=mask).argmax(-1)
    assert found.choice.tolist() == [expected[0, 9:11].tolist(), expected[1, 5:7].tolist(), [int(expected[2, 0])] * 2]


def test_a_right_answer_is_one_that_would_be_written() -> None:
    """Greedy decoding token by token gives the labels exactly where every choice is the label."""
    model, ids = llama(), token_ids(3, 9)
    path = (0, 1, 1, 2)
    small = rearranged(model, path)
    written = ids[:, :7]
    for _ in range(2):
        written = torch.cat([written, forward(small, written)[:, -1:].argmax(-1)], dim=1)
    written[1, 8] = (written[1, 8] + 1) % 40  # the second sequence is given another answer than it would write
    inputs = {"input_ids": written}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        found = paths.answers(path, 2)
    assert (found.choice == found.label).all(1).tolist() == [True, False, True]


def test_answers_without_labels_are_at_the_last_token() -> None:
    model, inputs, _ = ZOO["bert"]()
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        found = paths.answers((0, 2))
        assert not paths.labelled
    expected = forward(rearranged(model, (0, 2)), inputs["input_ids"])[:, -1:]
    assert torch.equal(found.choice, expected.argmax(-1))
    assert (found.label == -100).all()


def test_a_picture_has_one_answer() -> None:
    model, inputs, _ = ZOO["vit"]()
    inputs = {**inputs, "labels": torch.tensor([1, 0, 1])}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        found, losses = paths.answers((0, 2), 5), paths.loss((0, 2))
    logits = outputs(rearranged(model, (0, 2)), inputs)
    assert torch.equal(found.choice, logits.argmax(-1, keepdim=True))
    assert found.label.flatten().tolist() == [1, 0, 1]
    torch.testing.assert_close(losses, cross_entropy(logits, inputs["labels"], reduction="none").double())


# What cannot be done


@pytest.mark.parametrize("path", [(), (3,), (0, -1)])
def test_paths_that_name_no_block(path: Path) -> None:
    inputs = {"input_ids": token_ids()}
    with Paths(Stack.find(llama(), inputs), [inputs]) as paths, pytest.raises(UserError, match="blocks 0 to 2"):
        paths.loss(path)


def test_a_loss_needs_labels() -> None:
    model, inputs, _ = ZOO["bert"]()
    with Paths(Stack.find(model, inputs), [inputs]) as paths, pytest.raises(UserError, match="holds no labels"):
        paths.loss((0,))


def test_no_data() -> None:
    with Paths(Stack.find(llama(), {"input_ids": token_ids()}), []) as paths, pytest.raises(UserError, match="no data"):
        paths.loss((0,))


def test_outside_of_a_with_statement() -> None:
    inputs = {"input_ids": token_ids()}
    with pytest.raises(RuntimeError, match="with statement"):
        Paths(Stack.find(llama(), inputs), [inputs]).loss((0,))


class Handing(nn.Module):
    """Each block also hands on a number that it made of the stream."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x + self.linear(x) + (0.0 if extra is None else extra), x.mean(-1, keepdim=True)

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([self.Block(), self.Block(), self.Block()]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        extra = None
        for block in self.blocks:
            x, extra = block(x, extra)
        return self.head(x)


def test_blocks_that_hand_on_more_than_the_stream_have_one_order() -> None:
    x = vectors(3, 8)
    with Paths(Stack.find(Handing(), x), [x]) as paths, pytest.raises(UserError, match="hands later blocks more"):
        paths.state((0, 2), 0)


def test_what_blocks_hand_on_may_be_the_same_for_every_stream() -> None:
    """T5's blocks share one table of position biases, made by the first: an order is still an order."""
    model, inputs, expected = ZOO["t5 decoder"]()
    with Paths(Stack.find(model, inputs, expected.blocks), [inputs]) as paths:
        found = paths.runs[0].replay.tail(paths.state((0, 2, 2, 1), 0)).logits
        assert paths.runs[0].replay.handed_on
    blocks = model.decoder.block
    model.decoder.block = nn.ModuleList(blocks[k] for k in (0, 2, 2, 1))
    with torch.no_grad():
        logits = model.eval()(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = llama().train(), {"input_ids": token_ids()}
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with Paths(Stack.find(model, inputs), [inputs]) as paths:
        paths.losses(ORDERS)
        assert not model.training
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert "forward" not in vars(model.model.layers[0])


def test_a_base_pass_does_not_keep_its_states() -> None:
    inputs = {"input_ids": token_ids()}
    with Paths(Stack.find(llama(), inputs), [inputs]) as paths:
        run: BasePass = paths.runs[0]
        assert len(run.replay.states) == 1
        assert run.replay.output is None
