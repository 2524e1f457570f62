"""Small models and texts that many tests need, made once a session; nothing is downloaded."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that asks the hub must fail at once
# Models this small gain nothing from a second thread, and lose most of their time to it where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where Python is told to keep nothing that it compiled, each process that a test starts compiles the whole package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest

# Imported where they are used: the process that only hands tests out to others need not wait for them.
if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A shell has what it runs in the background ignore Ctrl-C, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCE = "The stream grows with depth, and every block adds a little to it. "


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end, and what tests leave is small: garbage is looked for less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def byte_tokenizer(front: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, after `<s>` (id 0) and `</s>` (id 1); with `front` every text starts with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if front:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_config(**changes: object) -> LlamaConfig:
    """Three blocks of width 16."""
    from transformers import LlamaConfig

    settings = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    return LlamaConfig(**(settings | changes))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts nothing in front."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def front_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts `<s>` in front of every text."""
    return byte_tokenizer(front=True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A three-block Llama with its tokenizer, as save_pretrained leaves them. Tests copy it before they change it."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LlamaForCausalLM:
    """The same model, live. Shared by all tests: not to be changed."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 2,600 bytes of English."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SENTENCE * 40)
    return path


@pytest.fixture
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rung `reload` loads the folder in this process, which takes milliseconds; a fresh one takes five seconds."""
    import subprocess

    from torch import nn

    from layerwright.core.load import quietly
    from layerwright.core.quiet import undisturbed
    from layerwright.core.rungs import fresh
    from layerwright.core.rungs import reload as rung

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        fresh.main(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(rung.subprocess, "run", run)
    # What the script sets for good in its own process is put back.
    with quietly(), undisturbed(nn.Identity()):
        yield
