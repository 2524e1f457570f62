"""A survey leaves a model and the process exactly as it found them, also when it is broken off."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from thinned import thinned
from torch import nn
from walking import few_replicates
from zoo import llama, token_ids

from layerwright import verbs
from layerwright.core.quiet import undisturbed, unwrap

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
          "_backward_hooks", "_forward_hooks_always_called")  # fmt: skip


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    few_replicates(monkeypatch)


def used_model() -> nn.Module:
    """A model in the middle of its life: partly in training, partly frozen, with gradients and hooks."""
    model = llama()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    model.train()
    model.model.layers[1].eval()
    model.model.layers[2].mlp.eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    model.model.layers[1].register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    model.model.layers[1].mlp.register_full_backward_hook(lambda module, gin, gout: None)
    own = model.model.layers[2].forward
    model.model.layers[2].forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


def everything(model: nn.Module) -> dict[str, Any]:
    """All that must not change, by identity or as a copy."""
    return {
        "mode": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradient objects": [id(p.grad) for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "weight objects": [id(p) for p in model.parameters()],
        "weights": [p.detach().clone() for p in (*model.parameters(), *model.buffers())],
        "hooks": [[list(getattr(m, name).items()) for name in _HOOKS] for m in model.modules()],
        "options": [dict(vars(m.config)) for m in model.modules() if hasattr(m, "config")],
        "forward": [m.__dict__.get("forward") for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "torch random state": torch.get_rng_state(),
        "numpy random state": str(np.random.get_state()),
        "python random state": random.getstate(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients enabled": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        pairs = zip(value, after[name], strict=True) if isinstance(value, list) else [(value, after[name])]
        for a, b in pairs:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def survey(model: nn.Module) -> None:
    verbs.survey(model, {"input_ids": token_ids()}, tier="deep")


def test_after_a_survey() -> None:
    model = used_model()
    before = everything(model)
    survey(model)
    assert_same(before, everything(model))


class Broken(Exception):
    """What goes wrong in the user's model."""


def calls_until(model: nn.Module, path: str, error: type[BaseException] | None, last: int | None) -> int:
    """Survey with a module that raises at its `last` call; gives how often it was called."""
    count = 0

    def raise_at_last(module: nn.Module, args: Any) -> None:
        nonlocal count
        count += 1
        if count == last:
            assert error is not None
            raise error

    handle = model.get_submodule(path).register_forward_pre_hook(raise_at_last)
    before = everything(model)
    try:
        if error is None:
            survey(model)
        else:
            with pytest.raises(error):
                survey(model)
        assert_same(before, everything(model))
    finally:
        handle.remove()
    return count


@pytest.mark.parametrize(
    "path, error", thinned(2, ["model.layers.1", "model.layers.2.mlp", "model.norm"], [Broken, KeyboardInterrupt])
)
def test_after_an_exception_anywhere(path: str, error: type[BaseException]) -> None:
    model = used_model()
    total = calls_until(model, path, None, None)
    # Tracing, replays, the forward pass, skips and gradients call a module in turn: break off in each.
    for last in sorted({1, 2, total // 4, total // 2, 3 * total // 4, total}):
        assert calls_until(model, path, error, last) == last


def test_fast_path_is_off_inside_and_restored_either_way() -> None:
    flag = torch.backends.mha.get_fastpath_enabled()
    try:
        for value in (True, False):
            torch.backends.mha.set_fastpath_enabled(value)
            with undisturbed(nn.Linear(2, 2)):
                assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.mha.get_fastpath_enabled() is value
    finally:
        torch.backends.mha.set_fastpath_enabled(flag)


def test_inside_there_is_no_training_and_no_gradient_into_weights() -> None:
    model = used_model()
    with undisturbed(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


def test_inside_a_callers_inference_mode() -> None:
    model = llama()
    expected = verbs.survey(model, {"input_ids": token_ids()}).to_dict()["tables"]
    with torch.inference_mode():
        assert verbs.survey(model, {"input_ids": token_ids()}).to_dict()["tables"] == expected
        assert torch.is_inference_mode_enabled()


def test_compiled_calls_are_left_aside_and_come_back() -> None:
    model = llama()
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    with undisturbed(model):
        assert model._compiled_call_impl is None
    assert model._compiled_call_impl is compiled is not None


def test_unwrap() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    assert unwrap(model) is model
