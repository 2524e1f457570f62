"""All skips in one walk up the tower give what one full run of the model for each skip gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import column, first, forward, hooked, tables, without
from torch import Tensor, nn
from zoo import ZOO, gpt2, llama, token_ids

import layerwright.core.record as recording
import layerwright.core.replay as replay
from layerwright.core.batch import Batch
from layerwright.core.desk import Desk
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.skips import SkipPass
from layerwright.core.stack import Stack


def skip_pass(model: nn.Module, inputs: Any, seed: int = 0) -> SkipPass:
    stack = Stack.find(model, inputs)
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        batch = Batch(inputs, 0, 0, 4, seed)
        batch.settle(stack.layout.tokens(replay.states[0]), replay.states[0])
        return SkipPass(stack, Desk([], {}), batch, replay, seed)


@pytest.mark.parametrize("length", [2, 3, 6, 12, 40])
def test_split_points_leave_tokens_on_both_sides(length: int) -> None:
    run = skip_pass(llama(), {"input_ids": token_ids(3, length)})
    for seed in range(20):
        split = run._splits(seed)
        assert split is not None
        assert ((split >= 1) & (split < length)).all()
        if length >= 16:
            assert ((split >= 8) & (split < length - 4)).all()


def test_split_points_count_from_the_first_real_token() -> None:
    ids, mask = token_ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[:, :11] = 0
    padded = skip_pass(llama(), {"input_ids": ids, "attention_mask": mask}).split
    plain = skip_pass(llama(), {"input_ids": ids[:, 11:]}).split
    assert torch.equal(padded, plain + 11)


def test_an_encoder_has_no_later_tokens() -> None:
    model, inputs, _ = ZOO["bert"]()
    assert skip_pass(model, inputs).split is None
    frame = tables(model, inputs, "skip_effect")["skip_effect"]
    assert set(frame["quantity"]) == {"later"}


def test_streams_are_those_of_full_runs_bit_for_bit() -> None:
    model, ids = gpt2(num_hidden_layers=4).double(), token_ids()
    run = skip_pass(model, {"input_ids": ids})
    assert run.split is not None
    found: dict[tuple[int, int, str], Tensor] = {}

    class Listener(Desk):
        def wants(self, *scopes: str) -> bool:
            return "skip" in scopes

        def evaluate(self, scope: str, quantities: Any, prefix: str = "") -> dict:
            found["last"] = quantities["skipped_update"]
            return {}

    give = run._give

    def listen(kind: str, key: tuple[int, int, str], given: dict[str, Tensor]) -> None:
        found[key] = given["skipped_update"]
        give(kind, key, given)

    run.desk, run._give = Listener([], {}), listen
    with undisturbed(model), torch.no_grad():
        run.run(lambda n: None)
    for s in range(4):
        for kind, until in (("later", None), ("future", run.split)):
            h, _ = without(model, s, ids, until)
            for k in range(s + 1, 4):
                assert torch.equal(found[s, k, kind], h[k + 1] - h[k])


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "mixtral", "mamba", "gpt-neox", "looped core", "peft", "own wrapper"]
)
def test_the_loss_without_a_block_in_any_architecture(name: str) -> None:
    """Full runs with a hook that hands on a block's input, the first token kept; shared blocks only at their turn."""
    model, inputs, _ = ZOO[name]()
    stack = Stack.find(model, inputs)
    ids = inputs["input_ids"]
    found = column(tables(model, inputs, "skip_output")["skip_output"], quantity="loss_increase")
    base = mean_loss(logits_of(model, ids), ids)
    for s, b in enumerate(stack.order):
        turn = stack.order[:s].count(b)
        seen = 0

        def bypass(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen - 1 != turn:  # noqa: B023 - used at once
                return output
            x = args[0] if args else kwargs["hidden_states"]
            out = torch.cat([first(output)[:, :1], x[:, 1:]], dim=1)
            return out if isinstance(output, Tensor) else (out, *output[1:])

        handle = stack.blocks[b].register_forward_hook(bypass, with_kwargs=True)
        changed = mean_loss(logits_of(model, ids), ids)
        handle.remove()
        assert found[s].item() == pytest.approx((changed - base).item(), abs=2e-6)


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        output = model.eval()(input_ids=ids)
    return output if isinstance(output, Tensor) else output.logits


def mean_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())


def test_an_encoder_skips_at_every_token() -> None:
    model, inputs, _ = ZOO["bert"]()
    labels = token_ids(seed=5)
    found = column(tables(model, {**inputs, "labels": labels}, "skip_output")["skip_output"], quantity="loss_increase")
    model.eval()
    base = nn.functional.cross_entropy(forward_logits(model, inputs).flatten(0, 1), labels.flatten())
    for s, block in enumerate(model.bert.encoder.layer):
        with hooked((block, lambda m, x, y: x[0] if isinstance(y, Tensor) else (x[0], *y[1:]))):
            changed = nn.functional.cross_entropy(forward_logits(model, inputs).flatten(0, 1), labels.flatten())
        assert found[s].item() == pytest.approx((changed - base).item(), abs=2e-6)


def forward_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_images() -> None:
    """A grid of features and one answer a picture."""
    model, inputs, _ = ZOO["resnet"]()
    labels = torch.tensor([1, 0, 1])
    found = column(tables(model, {**inputs, "labels": labels}, "skip_output")["skip_output"], quantity="loss_increase")
    model.eval()
    base = nn.functional.cross_entropy(forward_logits(model, inputs), labels)
    for s, block in enumerate(model.resnet.encoder.stages[1].layers[1:]):
        with hooked((block, lambda m, x, y: x[0])):
            changed = nn.functional.cross_entropy(forward_logits(model, inputs), labels)
        assert found[s].item() == pytest.approx((changed - base).item(), abs=2e-6)


def test_pieces_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llama(), {"input_ids": token_ids(5)}
    names = ("skip_effect", "skip_output")
    whole = tables(model, inputs, *names)
    monkeypatch.setattr(replay, "_LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(recording, "_STATE_BYTES", 1)
    pieces = tables(model, inputs, *names)
    for name in names:
        numbers = whole[name].select_dtypes("number").to_numpy()
        torch.testing.assert_close(
            torch.tensor(pieces[name].select_dtypes("number").to_numpy()), torch.tensor(numbers), rtol=1e-5, atol=1e-6
        )


def test_logits_of_the_plain_run_are_the_models_own() -> None:
    model, ids = llama(), token_ids()
    assert torch.equal(skip_pass(model, {"input_ids": ids}).replay.output.logits, forward(model, ids))
