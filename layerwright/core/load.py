"""Load a model for measuring: exactly the trained weights, in their own dtype, or a refusal that says why.

A measurement of a half-loaded model looks like any other, so that everything that transformers would pass over with a
warning is an error here: weights that are missing (it fills them with random numbers), of another shape, or of blocks
that the configuration leaves out.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import nn

from layerwright.core import tied
from layerwright.core.errors import UserError
from layerwright.core.shards import Checkpoint

DEMO = Path(__file__).parents[1] / "demo" / "model"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]

# What transformers and torch raise for a checkpoint or a device that they cannot use.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError, AssertionError)


def load_model(
    source: str | Path | nn.Module,
    *,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The model, its tokenizer or None, and what is known about where it came from.

    Args:
        source: `demo`, a local folder, a name on the Hugging Face hub, or a live module, which is passed through as it
            is, on its own device.
        dtype: of the weights; the checkpoint's own unless given.
        device: where to put a model that is loaded.
        trust_remote_code: run Python code from the model's folder where its architecture is not in transformers.

    Returns:
        The model in evaluation mode, the tokenizer, and `{"name", "source", "folder", "class", "notes"}`.

    Raises:
        UserError: the folder is missing or incomplete, its weights are pickled, damaged, or do not fit the
            configuration, or it needs code that is not trusted.
    """
    if isinstance(source, nn.Module):
        if dtype is not None:
            raise UserError("got a dtype for a live model, which is measured as it is; convert it with model.to(dtype)")
        return source, _tokenizer_of(source), about_source(source, type(source).__name__, "live", None)
    chosen = chosen_dtype(dtype)
    folder, origin = locate(str(source), trust_remote_code)
    config = read_json(folder / "config.json")
    Checkpoint.open(folder).verify()
    auto, notes = model_class(folder, config, trust_remote_code)
    with quietly():
        model, loaded = _from_pretrained(auto, folder, chosen, trust_remote_code)
        notes += check_keys(folder, model, loaded)
        tokenizer = load_tokenizer(folder, trust_remote_code)
    try:
        model.to(device)
    except LOAD_ERRORS as error:
        raise UserError(f"device {device!r} cannot be used: {first_line(error)}") from None
    name = folder.resolve().name if origin == "folder" else str(source)
    return model.eval(), tokenizer, about_source(model, name, origin, folder, notes)


def about_source(
    model: nn.Module, name: str, origin: str, folder: Path | None, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What is known about where a model came from."""
    where = None if folder is None else str(folder)
    return {"name": name, "source": origin, "folder": where, "class": type(model).__name__, "notes": list(notes)}


def chosen_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A dtype by its name; `auto`, the checkpoint's own, where none is given."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    if dtype not in DTYPES:
        raise UserError(f"got dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


# Where it is


def locate(name: str, trust_remote_code: bool) -> tuple[Path, str]:
    """The folder of a model, downloaded where the name is one of the hub, and which kind of name it was."""
    if name == "demo":
        return _require_config(DEMO), "demo"
    path = Path(name).expanduser()
    if path.is_dir():
        return _require_config(path), "folder"
    if path.exists():
        raise UserError(f"got the file {path}; expected the model's folder, with config.json and model.safetensors")
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"no folder {path}; expected a model folder, a name on the Hugging Face hub, or `demo`")
    try:
        patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
        # Only files of the top folder: others are the same weights for other programs.
        ignored = ["*/*", "consolidated*"]
        folder = huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no folder {name!r} here, and no model of that name from the Hugging Face hub "
            f"(offline, private or unknown: {type(error).__name__}); give a local folder, or `demo`"
        ) from None
    return _require_config(Path(folder)), "hub"


def _require_config(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    hint = "expected a folder written by save_pretrained"
    if (folder / "adapter_config.json").is_file():
        hint = "it holds an adapter: merge it into its base model and save that"
    raise UserError(f"{folder} has no config.json; {hint}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


# What it holds


def model_class(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> tuple[Any, tuple[str, ...]]:
    """The class that the checkpoint was saved from, so that its head is kept; AutoModel where none is named."""
    if (shared := tied.class_of(config)) is not None:
        return shared, ()  # our own class, also where code comes with the folder: that is not run
    names = config.get("architectures") or ["none"]
    native = getattr(transformers, str(names[0]), None)
    if isinstance(native, type) and issubclass(native, transformers.PreTrainedModel):
        return native, ()
    named = config.get("auto_map", {}).items()
    remote = {auto: code for auto, code in named if auto.startswith("AutoModel") and hasattr(transformers, auto)}
    if not remote:
        return transformers.AutoModel, (f"architecture {names[0]} is unknown: loaded as AutoModel, without its head",)
    auto, code = max(remote.items(), key=lambda item: item[1].endswith(f".{names[0]}"))
    if not trust_remote_code:
        raise UserError(
            f"{folder} needs Python code of its own ({code}), which is not run unless you say so; "
            "read it, then pass --trust-remote-code (trust_remote_code=True)"
        )
    return getattr(transformers, auto), (f"runs code of its own: {code}",)


def _from_pretrained(auto: Any, folder: Path, dtype: Any, trust_remote_code: bool) -> tuple[nn.Module, dict[str, Any]]:
    try:
        return auto.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed with the missing ones, and refused below
        )
    except LOAD_ERRORS as error:
        version = transformers.__version__
        raise UserError(f"{folder} cannot be loaded by transformers {version}: {first_line(error)}") from None


def check_keys(folder: Path, model: nn.Module, loaded: dict[str, Any]) -> tuple[str, ...]:
    """Refuse random or foreign weights; weights of a head that the class does not have are only mentioned."""
    mismatched = {key for key, *_ in loaded["mismatched_keys"]}
    missing = set(loaded["missing_keys"]) - mismatched
    unexpected = set(loaded["unexpected_keys"])
    containers = [f".{path}" for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    surplus = {key for key in unexpected if _is_in(key, containers)}
    for keys, what in ((mismatched, "of another shape than"), (missing, "missing for"), (surplus, "too many for")):
        if keys:
            raise UserError(
                f"{folder}: {len(keys)} weights are {what} the model that config.json describes ({_few(keys)}); "
                "the checkpoint and its configuration do not belong together"
            )
    return (f"weights that the model has no place for were left out: {_few(unexpected)}",) if unexpected else ()


def _is_in(key: str, containers: list[str]) -> bool:
    """Whether a weight is of a numbered member of a container that the model has: then their depths differ."""
    place = "." + re.split(r"\.\d+\.", key)[0]
    return f".{key}" != place and any(place.endswith(c) or c.endswith(place) for c in containers)


def _few(keys: set[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")


# The tokenizer


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a model's folder, or None."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        auto = transformers.AutoTokenizer
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as error:
        raise UserError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from None


def _tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer beside the weights of a live model, where they came from a folder that is still there."""
    folder = Path(getattr(model, "name_or_path", "") or ".")
    if not (folder / "config.json").is_file():
        return None
    with quietly():
        return load_tokenizer(folder, trust_remote_code=False)


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and warnings of transformers: what they say is checked and said in one line instead."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    said = verbosity < log.ERROR
    if said:  # a change of it takes long, as every logger of the process forgets what it knew
        log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if said:
            log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
