"""Run in a process of its own: load a folder with plain transformers and say what came of it.

Nothing of this package is imported but what the request says. What goes in and out are JSON and safetensors files.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of each tensor of a state dict, with its dtype and shape; tied ones are read once."""
    known: dict[tuple[Any, ...], str] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in known or not tensor.numel():
            sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
            known[key] = sha.hexdigest()
        found[name] = known[key]
    return found


def main(folder: Path) -> None:
    """Answer the request in a folder, in the same folder; what goes wrong is an answer too."""
    request = json.loads((folder / "request.json").read_text())
    try:
        answer, tensors = _answer(request, load_file(folder / "inputs.safetensors"))
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        answer, tensors = {"error": f"{type(error).__name__}: {said[:_LONGEST]}"}, {}
    save_file(tensors or {"": torch.zeros(0)}, folder / "answer.safetensors")
    (folder / "answer.json").write_text(json.dumps(answer))


def _answer(request: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.set_num_threads(request["threads"])
    model, keys = _loaded(request)
    answer: dict[str, Any] = {name: sorted(keys[name]) for name in ("missing", "unexpected", "mismatched")}
    answer |= {"class": type(model).__name__, "digests": digests(model)}
    states: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output
        states.append(first)

    for path in request["blocks"]:
        with_path = dict(model.named_modules()).get(path)
        if with_path is not None:
            with_path.register_forward_hook(note)
    given = {name: x.to(request["device"]) for name, x in inputs.items()}
    if "use_cache" in inspect.signature(inspect.unwrap(model.forward)).parameters:
        given["use_cache"] = False  # type: ignore[assignment]
    with torch.no_grad():
        output = model(**given)
    logits = output.get("logits")
    tensors = {"answer": next(iter(output.values())) if logits is None else logits}
    tensors |= {f"state.{k}": state for k, state in enumerate(states)}
    return answer, {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}


def _loaded(request: Mapping[str, Any]) -> tuple[nn.Module, dict[str, set[str]]]:
    """The model of the class that config.json names, and the keys that do not fit."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    known = [transformers, *(importlib.import_module(name) for name in request["imports"])]
    folder, trusted = request["folder"], request["trust_remote_code"]
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    name = (getattr(config, "architectures", None) or [""])[0]
    # A class that comes with the folder is found by the Auto class that is told so.
    autos = [auto for auto, code in config.auto_map.items() if code.endswith(f".{name}")] if trusted else [name]
    made_by = next((getattr(m, auto) for m in known for auto in autos if auto and hasattr(m, auto)), None)
    if made_by is None:
        raise ValueError(f"config.json names the architecture {name!r}, which transformers does not have")
    model, keys = made_by.from_pretrained(
        folder,
        config=config,
        dtype="auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trusted,
        ignore_mismatched_sizes=True,  # so that they are listed
        output_loading_info=True,
        **request["options"],
    )
    found = {kind: {k if isinstance(k, str) else k[0] for k in keys[f"{kind}_keys"]} for kind in _KINDS}
    found["missing"] -= found["mismatched"]
    return _settled(model.to(request["device"]).eval()), found


def _settled(model: nn.Module) -> nn.Module:
    """The model as the live one was called: without caches, and its weights at even addresses.

    Weights that lie in a mapped file start anywhere, and some products round differently there.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.clone()
    return model


_LONGEST = 400
_KINDS = ("missing", "unexpected", "mismatched")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    desk = Path(sys.argv[1])
    if not json.loads((desk / "request.json").read_text())["imports"]:
        sys.modules["layerwright"] = None  # type: ignore[assignment]  # it is not found, as where it is not installed
    main(desk)
