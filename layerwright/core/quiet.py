"""Leave a model as it was found: mode, random state, gradients and flags, also after an exception or Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from layerwright.core.sharded import is_sharded, reshard


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module below `torch.compile`, DDP or DataParallel; other wrappers are called through."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate the model eagerly, without weight gradients or caches of keys and values, then put everything back.

    Evaluation mode, no gradient into any parameter, no compiled calls and no fused encoder fast path (both bypass the
    modules that hooks sit on). Random state of every device is restored. A caller's inference mode is left: tensors
    made in it carry neither gradients nor the version counters that tell whether a block writes into its input.
    """
    modes = {m: m.training for m in model.modules()}
    compiled = {m: m._compiled_call_impl for m in modes if getattr(m, "_compiled_call_impl", None) is not None}
    reshard(model)
    # FSDP2 takes down at the first call which weights are trained; no gradient reaches them as none is asked for.
    trainable = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]
    fast = torch.backends.mha.get_fastpath_enabled()
    # A block that is called again must not find the keys of its last call, also where a wrapper hides the options.
    configs: dict[int, Any] = {
        id(c): c for m in modes if getattr(c := getattr(m, "config", None), "use_cache", 0) is True
    }
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        try:
            for m in modes:
                m.training = False
            for m in compiled:
                m._compiled_call_impl = None
            for c in configs.values():
                c.use_cache = False
            for p in trainable:
                p.requires_grad_(False)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        except BaseException:
            reshard(model, failed=True)
            raise
        finally:
            for c in configs.values():
                c.use_cache = True
            torch.backends.mha.set_fastpath_enabled(fast)
            for p in trainable:
                p.requires_grad_(True)
            for m, call in compiled.items():
                m._compiled_call_impl = call
            for m, mode in modes.items():
                m.training = mode
            reshard(model)
