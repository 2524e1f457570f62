"""A model without weights, which are filled in and taken out again block by block."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from layerwright.core.errors import NotByBlocks, UserError
from layerwright.core.load import (
    LOAD_ERRORS,
    about_source,
    check_keys,
    chosen_dtype,
    first_line,
    load_tokenizer,
    locate,
    model_class,
    quietly,
    read_json,
)  # fmt: skip
from layerwright.core.recipe import Recipe
from layerwright.core.shards import Checkpoint

# Stand-ins of loose matrices larger than this repeat one row: a random vocabulary would be as large as the real one.
_LARGE = 2**22


class Skeleton:
    """The model of a checkpoint with all its weights on the meta device, and where to get each of them.

    A weight is named as in `model.named_parameters()`; one that is tied to another goes by the first name. `model`
    runs only where the weights that a call reads are filled in.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, device: str = "cpu") -> None:
        """A model whose weights are recipes from the tensors of a checkpoint."""
        self.model, self.checkpoint, self.device = model, checkpoint, torch.device(device)
        self.recipes: dict[str, Recipe] = {}
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._prefetch: _Prefetch | None = None
        self._collect()

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: str | None = None, device: str = "cpu", trust_remote_code: bool = False
    ) -> tuple[Skeleton, Any, dict[str, Any]]:
        """The skeleton of a folder, hub name or `demo`, its tokenizer, and what is known about where it came from.

        Raises:
            UserError: the checkpoint is damaged, does not fit its configuration, or cannot be taken block by block.
        """
        chosen = chosen_dtype(dtype)
        folder, origin = locate(str(source), trust_remote_code)
        config = read_json(folder / "config.json")
        checkpoint = Checkpoint.open(folder)
        auto, notes = model_class(folder, config, trust_remote_code)
        if not issubclass(auto, transformers.PreTrainedModel) or config.get("quantization_config"):
            what = "is quantized" if config.get("quantization_config") else "is no architecture that transformers names"
            raise NotByBlocks(f"{folder} {what}, and cannot be taken block by block; survey it with --stream never")
        with quietly():
            model, loaded = _without_weights(auto, folder, checkpoint, chosen)
            notes += check_keys(folder, model, loaded)
            tokenizer = load_tokenizer(folder, trust_remote_code)
        name = folder.resolve().name if origin == "folder" else str(source)
        return cls(model.eval(), checkpoint, device), tokenizer, about_source(model, name, origin, folder, notes)

    def _collect(self) -> None:
        """Take the recipes off the model and leave plain meta tensors in their place, tied ones together."""
        names: dict[int, str] = {}
        for path, module in self.model.named_modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if isinstance(tensor, Recipe) and tensor.complete():
                        full = names.setdefault(id(tensor), f"{path}.{name}" if path else name)
                        self.recipes[full] = tensor
                        self._places.setdefault(full, []).append((module, name))
                    elif tensor is not None and tensor.is_meta:
                        raise NotByBlocks(
                            f"weight {path}.{name} is put together in a way that cannot be followed; survey the model "
                            "with --stream never"
                        )
                    elif tensor is not None:
                        kind[name] = tensor.to(self.device)
        for name in self.recipes:
            self._check_dtype(name)
        self.clear(self.recipes)

    def _check_dtype(self, name: str) -> None:
        """Numbers of another precision are converted; whole numbers in place of weights are no weights."""
        wanted = self.recipes[name].dtype
        for source in self._sources([name]):
            found = self.checkpoint.entries[source].dtype
            if found.is_floating_point != wanted.is_floating_point:
                raise UserError(
                    f"{self.checkpoint.folder}: tensor {source} holds {found} and the model has {wanted} there; the "
                    "checkpoint and its configuration do not belong together"
                )

    def below(self, path: str) -> list[str]:
        """Names of the weights of a module and all below it; one that other modules have too is everyone's."""
        inside = set(self.model.get_submodule(path).modules())
        return [name for name, places in self._places.items() if any(m in inside for m, _ in places)]

    def owned(self, module: nn.Module) -> list[str]:
        """Names of the weights that a module holds itself."""
        return [name for name, places in self._places.items() if any(m is module for m, _ in places)]

    def nbytes(self, names: Iterable[str]) -> int:
        """What these weights take in memory."""
        return sum(self.recipes[n].numel() * self.recipes[n].element_size() for n in names)

    def numel(self, names: Iterable[str]) -> int:
        """How many numbers these weights are."""
        return sum(self.recipes[n].numel() for n in names)

    def stored(self, names: Iterable[str]) -> int:
        """What they take on disk."""
        return sum(self.checkpoint.entries[s].nbytes for s in self._sources(names))

    def fill(self, names: Iterable[str]) -> None:
        """Read these weights, unless `prefetch` has done so already, and put them into the model."""
        names = list(names)
        fetched = self._prefetch
        self._prefetch = None
        stored = fetched.wait() if fetched is not None and fetched.names == names else self._read(names)
        if self.device.type == "cuda":  # memory of the side stream must not be given away while this one uses it
            for tensor in stored.values():
                tensor.record_stream(torch.cuda.current_stream(self.device))
        for name in names:
            self._put(name, self.recipes[name].make(stored).to(self.device))

    def prefetch(self, names: Iterable[str]) -> None:
        """Start reading weights that will be filled in next, while the model computes."""
        names = list(names)
        if self._prefetch is not None and self._prefetch.names == names:
            return
        self.stop()
        self._prefetch = _Prefetch(names, lambda: self._read(names))

    def stop(self) -> None:
        """Wait for a read that is under way, and forget it."""
        if self._prefetch is not None:
            self._prefetch.join()
            self._prefetch = None

    def clear(self, names: Iterable[str]) -> None:
        """Take the numbers of these weights out of the model."""
        for name in names:
            self._put(name, torch.empty_like(self.recipes[name].as_subclass(Tensor), device="meta"))

    def zero(self, names: Iterable[str]) -> None:
        """Put zeros that take no memory in place of these weights."""
        for name in names:
            like = self.recipes[name]
            self._put(name, torch.zeros((), dtype=like.dtype, device=self.device).expand(like.shape))

    def pretend(self, names: Iterable[str]) -> None:
        """Put random numbers in place of these weights, for a run that only shows how the model is wired."""
        for name in names:
            self._put(name, self._stand_in(name))

    def pretend_blocks(self, paths: Iterable[str]) -> None:
        """The same for blocks: those of one make share their numbers, so that all take the memory of one."""
        made: dict[Any, Tensor] = {}
        for path in paths:
            for name in self.below(path):
                key = self._make(path, name)
                if key not in made:
                    made[key] = self._stand_in(name, whole=True)
                self._put(name, made[key])

    def pretended(self, paths: Iterable[str]) -> int:
        """What `pretend_blocks` will take in memory."""
        return sum(
            {self._make(path, name): self.nbytes([name]) for path in paths for name in self.below(path)}.values()
        )

    def _make(self, path: str, name: str) -> tuple[Any, ...]:
        """What a weight has in common with that of another block of the same make."""
        return name.removeprefix(path), tuple(self.recipes[name].shape), self.recipes[name].dtype

    def _stand_in(self, name: str, whole: bool = False) -> Tensor:
        """Random numbers; buffers keep their own, as a mask or a decay among them is part of the wiring."""
        like = self.recipes[name]
        if any(attribute in module._buffers for module, attribute in self._places[name]):
            return like.make(self._read([name])).to(self.device)
        one_row = not whole and like.ndim == 2 and like.numel() > _LARGE
        made = _random(torch.empty((1, like.shape[1]) if one_row else like.shape, dtype=like.dtype))
        return made.to(self.device).expand(like.shape)

    def _sources(self, names: Iterable[str]) -> list[str]:
        return sorted({source for name in names for source in self.recipes[name].sources()})

    def _read(self, names: list[str]) -> Mapping[str, Tensor]:
        """The stored tensors, on the device: the copy runs on a stream of its own, beside what is computed."""
        cuda = self.device.type == "cuda"
        stored = self.checkpoint.read(self._sources(names), pin=cuda)
        if not cuda:
            return stored
        side = torch.cuda.Stream(self.device)
        with torch.cuda.stream(side):
            copied = {name: tensor.to(self.device, non_blocking=True) for name, tensor in stored.items()}
        side.synchronize()
        return copied

    def _put(self, name: str, tensor: Tensor) -> None:
        parameter = nn.Parameter(tensor, requires_grad=False)
        for module, attribute in self._places[name]:
            if attribute in module._buffers:
                module._buffers[attribute] = tensor
            else:
                module._parameters[attribute] = parameter


class _Prefetch:
    """A read in a thread of its own; what it raises comes out of `wait`."""

    def __init__(self, names: list[str], read: Any) -> None:
        self.names = names
        self._result: Mapping[str, Tensor] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self._thread.start()

    def _run(self, read: Any) -> None:
        try:
            self._result = read()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        self._thread.join()

    def wait(self) -> Mapping[str, Tensor]:
        self.join()
        if self._error is not None:
            raise self._error
        result, self._result = self._result, {}
        return result


def _without_weights(
    auto: Any, folder: Path, checkpoint: Checkpoint, dtype: str | torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """Let transformers build and check the model as always, with recipes for weights."""
    stored = {name: Recipe.of(name, entry.shape, entry.dtype) for name, entry in checkpoint.entries.items()}
    try:
        config = auto.config_class.from_pretrained(folder, local_files_only=True)
        return auto.from_pretrained(
            None, config=config, state_dict=stored, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except LOAD_ERRORS as error:
        version = transformers.__version__
        raise UserError(f"{folder} cannot be loaded by transformers {version}: {first_line(error)}") from None


def _random(x: Tensor) -> Tensor:
    """Fill with numbers of the size that weights have: matrices that keep the norm, vectors around one."""
    if not x.is_floating_point():
        return x.zero_()
    return x.normal_(1.0, 0.1) if x.ndim < 2 else x.normal_(0.0, x.shape[-1] ** -0.5)
