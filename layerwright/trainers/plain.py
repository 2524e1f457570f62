"""The plain training loop: what finishes growing, recursing and healing.

AdamW, linear warm-up, a cosine to a tenth, gradients clipped at 1, the mean taken over all tokens of a step however
they are split into passes. A run in a folder that is stopped anywhere goes on from its last checkpoint, on a CPU to the
same bits.
"""

from __future__ import annotations

import copy
import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from layerwright.core.errors import UserError
from layerwright.core.load import first_line, load_model
from layerwright.core.progress import Progress
from layerwright.core.quiet import undisturbed, unwrap
from layerwright.core.runfolder import RunFolder
from layerwright.core.sharded import is_sharded
from layerwright.core.sources import LENGTH, Reader
from layerwright.trainers import publish
from layerwright.trainers.checkpoint import Checkpoints, State
from layerwright.trainers.corpus import Corpus, collate, read_corpus
from layerwright.trainers.held_out import compare
from layerwright.trainers.loop import Loop
from layerwright.trainers.objective import Objective
from layerwright.trainers.precision import Widened, numbers
from layerwright.trainers.settings import Settings
from layerwright.trainers.training import Training, curve_of


def train(
    model: str | Path | nn.Module,
    data: Any,
    *,
    steps: int,
    lr: float = 3e-4,
    batch: int = 16,
    length: int | None = None,
    accumulate: int = 1,
    warmup: int | None = None,
    weight_decay: float = 0.1,
    seed: int = 0,
    dtype: str = "auto",
    teacher: str | Path | nn.Module | None = None,
    alpha: float = 0.5,
    temperature: float = 1.0,
    every: int | None = None,
    out: str | Path | None = None,
    page: publish.Page | None = None,
    in_place: bool = False,
    tokenizer: Any = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Training:
    """Train a model on, for a number of steps.

    Args:
        model: a live module, of which a copy is trained, a local folder, a hub name, or `demo`.
        data: text file or folder, `.jsonl`, `.npz`, tensors, a Hugging Face dataset, or `demo`, the text that the
            bundled model was trained on. A twentieth of the documents is held out.
        steps: updates of the weights.
        lr: learning rate at its peak.
        batch: sequences in one pass.
        length: tokens in a sequence; 256 unless given or the model takes fewer.
        accumulate: passes whose gradients make one update.
        warmup: steps until the peak; a twentieth of all steps unless given.
        weight_decay: of matrices; vectors have none.
        seed: of the order of the data and of dropout.
        dtype: of the products of matrices: `float32`, `bfloat16`, or `auto`, bfloat16 on a GPU that has it. Weights are
            trained in float32 and stored in the dtype that they came in.
        teacher: a model over the same vocabulary to learn from beside the text: a live module, folder or name.
        alpha: weight of the teacher, 1 − alpha that of the text.
        temperature: at which the two distributions are compared.
        every: steps between two held-out losses and checkpoints; a tenth of all steps, at most 100, unless given.
        out: folder for the trained model, `training.json` and `train.html`. A run that was stopped goes on from there.
        page: what makes `train.html` of the document in `training.json`; none is written without it.
        in_place: train the caller's own live model instead of a copy.
        tokenizer: for text with a live module.
        device: where to compute; a live module stays on its own.
        trust_remote_code: run code that comes with the model.
        progress: called with the stage, what is done of it, and all of it.

    Returns:
        the trained model, the curve, and the held-out loss before and after with the interval of their difference.

    Raises:
        UserError: something given cannot be used, a loss is not finite, or the folder cannot be written.
    """
    settings = Settings.of(
        steps, warmup, every, lr=lr, batch=batch, length=LENGTH if length is None else length, accumulate=accumulate,
        weight_decay=weight_decay, seed=seed, dtype=dtype, alpha=None if teacher is None else alpha,
        temperature=temperature,
    )  # fmt: skip
    if in_place and (out is not None or not isinstance(model, nn.Module)):
        raise UserError("got in_place; expected a live model and no out: a folder keeps a copy that can go on")
    progress("loading", 0, 1)
    given, found, about = load_model(model, device=device, trust_remote_code=trust_remote_code)
    given, tokenizer = unwrap(given), tokenizer if tokenizer is not None else found
    _check_weights(given)
    settings = replace(settings, length=Reader(given, tokenizer, length, 0, 0).sequence_length())
    with ExitStack() as closing:
        closing.enter_context(torch.inference_mode(False))
        closing.enter_context(torch.enable_grad())
        pupil = _pupil(given, isinstance(model, nn.Module) and not in_place, closing)
        widened = Widened(pupil)
        closing.callback(widened.narrow)
        master = _master(teacher, pupil, tokenizer, trust_remote_code, closing)
        progress("loading", 1, 1)
        corpus = read_corpus(
            data, pupil, tokenizer, length=settings.length, tokens=settings.tokens,
            progress=lambda done, total: progress("reading", done, total),
        )  # fmt: skip
        objective = _objective(pupil, master, corpus)
        request = _Request(pupil, widened, master, tokenizer, corpus, objective, settings, about["name"], progress)
        return request.run(None) if out is None else _in_folder(request, Path(out), page)


class _Request(NamedTuple):
    """All that a run needs."""

    model: nn.Module
    widened: Widened
    teacher: nn.Module | None
    tokenizer: Any
    corpus: Corpus
    objective: Objective
    settings: Settings
    name: str
    progress: Progress

    def run(self, checkpoints: Checkpoints | None) -> Training:
        """Train to the end."""
        loop = Loop(self.model, self.objective, self.corpus, self.settings, self.teacher)
        state = loop.run(self.widened, checkpoints, lambda done, total: self.progress("training", done, total))
        self.widened.narrow()
        return self._training(state)

    def _training(self, state: State) -> Training:
        about = {
            "name": self.name,
            "class": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "objective": self.objective.kind,
            "teacher": None if self.teacher is None else type(self.teacher).__name__,
        }
        return Training(
            self.model, curve_of(state.rows), compare(state.before, state.after, self.settings.seed),
            self.settings.to_dict(), self.corpus.to_dict(), about, list(self.corpus.notes),
        )  # fmt: skip

    def depends_on(self) -> dict[str, Any]:
        """Everything that the weights at the end depend on, for a run that goes on later."""
        from layerwright import __version__

        return self.settings.to_dict() | {
            "model": _identity(self.model),
            "teacher": None if self.teacher is None else _identity(self.teacher),
            "data": self.corpus.to_dict()["digest"],
            "device": str(next(self.model.parameters()).device),
            "threads": torch.get_num_threads(),
            "layerwright": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _in_folder(request: _Request, out: Path, page: publish.Page | None) -> Training:
    publish.check_saveable(request.model)
    depends_on = request.depends_on()
    done = publish.finished(out, depends_on)
    if done is not None:
        device = str(next(request.model.parameters()).device)
        return Training.of_document(done, load_model(out, device=device)[0])
    folder = out / publish.RUN
    keep = True
    try:
        with RunFolder.opened(folder, depends_on) as run:
            try:
                training = request.run(Checkpoints(run))
                document = training.to_dict() | {"run": depends_on}
                publish.publish(out, folder / "result", training.model, request.tokenizer, document, page)
                keep = False
            except BaseException:
                keep = Checkpoints(run).exist()
                raise
    finally:
        if not keep:
            RunFolder(folder).finished()
    return training


def _identity(model: nn.Module) -> str:
    """Class and SHA-256 of all numbers."""
    sha = hashlib.sha256()
    for name, x in numbers(model):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{type(model).__name__} {sha.hexdigest()[:16]}"


# What can be trained


def _check_weights(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    weights = dict(model.named_parameters())
    if any(map(is_sharded, weights.values())):
        raise UserError("the model's weights are spread over ranks; expected a model in one place: gather it first")
    if getattr(model, "hf_quantizer", None) or getattr(config, "quantization_config", None):
        raise UserError("the model's weights are quantised; expected floating-point weights: train it before that")
    for name, p in weights.items():
        if not p.is_floating_point() or p.dtype.itemsize < 2:
            raise UserError(f"weight {name} is {str(p.dtype).removeprefix('torch.')}; expected floating-point weights")
    if not any(p.requires_grad for p in weights.values()):
        raise UserError("no weight of the model asks for a gradient; call requires_grad_() on those to be trained")


def _pupil(given: nn.Module, copied: bool, closing: ExitStack) -> nn.Module:
    """The module that is trained; a caller's own one gets its modes back."""
    if copied:
        try:
            return copy.deepcopy(given)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"the model cannot be copied: {first_line(error)}; pass in_place=True") from None
    for module in given.modules():
        closing.callback(setattr, module, "training", module.training)
    given.zero_grad(set_to_none=True)
    return given


def _master(
    teacher: str | Path | nn.Module | None,
    pupil: nn.Module,
    tokenizer: Any,
    trust_remote_code: bool,
    closing: ExitStack,
) -> nn.Module | None:
    """The teacher in evaluation mode, without gradients, left as it was found."""
    if teacher is None:
        return None
    device = str(next(pupil.parameters()).device)
    dtype = None if isinstance(teacher, nn.Module) else "float32"
    master, other, _ = load_model(teacher, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    master = unwrap(master)
    if {id(p) for p in pupil.parameters()} & {id(p) for p in master.parameters()}:
        raise UserError("the teacher shares weights with the model that is trained in place; expected a copy of it")
    if tokenizer is not None and other is not None and tokenizer.get_vocab() != other.get_vocab():
        raise UserError(
            f"the teacher's vocabulary of {len(other.get_vocab()):,} tokens is not that of the model "
            f"({len(tokenizer.get_vocab()):,} tokens); expected one tokenizer for both"
        )
    closing.enter_context(undisturbed(master))
    return master


def _objective(pupil: nn.Module, master: nn.Module | None, corpus: Corpus) -> Objective:
    """What both models are asked to say."""
    batch = collate(corpus.train[:2], next(pupil.parameters()).device)
    with undisturbed(pupil):
        objective = Objective.find(pupil, batch)
    if master is not None:
        its = Objective.find(master, batch)
        if its != objective:
            raise UserError(
                f"the teacher answers over {its.classes:,} classes ({its.kind}), the model over {objective.classes:,} "
                f"({objective.kind}); expected one vocabulary"
            )
    return objective
