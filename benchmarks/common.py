"""What the benchmarks share: the model of the targets, alternating medians, and peak memory in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def random_llama(depth: int = 12, width: int = 512, vocabulary: int = 4096) -> LlamaForCausalLM:
    """A Llama-style model with random weights: 12 blocks of width 512 unless asked otherwise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 21 // 8, num_hidden_layers=depth,
        num_attention_heads=width // 64, num_key_value_heads=width // 64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens(model: LlamaForCausalLM, sequences: int = 8, length: int = 256) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, model.config.vocab_size, (sequences, length), generator=torch.Generator().manual_seed(1))


def word(token: int) -> str:
    """How a token id is written in the texts for peers."""
    return f"t{token}" if token else "<s>"


def save_with_tokenizer(model: LlamaForCausalLM, folder: str) -> PreTrainedTokenizerFast:
    """The model in a folder with a tokenizer of one word a token (`t17`), for peers that load from disk."""
    words = {word(k): k for k in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=word(0), pad_token=word(0))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall seconds of each, taken in turn so that a busy minute hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(script: str, contender: str) -> float:
    """Median over three processes of the peak resident memory in MB of one contender (`script --only contender`)."""
    command = [sys.executable, script, "--only", contender]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return statistics.median(json.loads(run.stdout.splitlines()[-1])["peak_mb"] for run in runs)


def report_peak() -> None:
    """Print this process's peak resident memory, for `peak_memory`."""
    print(json.dumps({"peak_mb": peak_so_far()}))


def peak_so_far() -> float:
    """This process's peak resident memory in MB.

    From /proc, because `ru_maxrss` starts at the peak of the process that this one was forked from.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
