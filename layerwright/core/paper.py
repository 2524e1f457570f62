"""The bibliography: every paper a method rests on, by its arXiv number. Authors' names live here, not in the API."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Paper:
    """A paper: arXiv number, title, year, and what it claims in one line."""

    arxiv: str
    title: str
    year: int
    claim: str

    @property
    def url(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def to_dict(self) -> dict[str, str | int]:
        """Plain data, with the address."""
        return asdict(self) | {"url": self.url}


_PAPERS = (
    Paper("2505.13898", "Do Language Models Use Their Depth Efficiently?", 2025,
          "The second half of the blocks changes the stream and later computation much less than the first."),
    Paper("2502.05795", "The Curse of Depth in Large Language Models", 2025,
          "Under pre-normalisation the stream grows with depth, and deep blocks become near-identities."),
    Paper("2510.03470", "On residual network depth", 2025,
          "A residual tower is an ensemble of paths whose output explodes with depth unless the branches are scaled."),
    Paper("2403.03853", "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024,
          "Blocks that hardly turn the stream (low block influence) can be removed."),
    Paper("2403.17887", "The Unreasonable Ineffectiveness of the Deeper Layers", 2024,
          "Stretches of blocks with a small angular distance can be removed with little loss."),
    Paper("2303.08112", "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023,
          "Intermediate states can be decoded into predictions that converge to the output with depth."),
    Paper("2512.14064", "What Affects the Effective Depth of Large Language Models?", 2025,
          "Effective depth, by several thresholds, does not keep up with the number of blocks."),
    Paper("2410.23743", "What Happened in LLMs Layers when Trained for Fast vs. Slow Thinking: A Gradient Perspective",
          2024, "Terse answers give larger gradients that differ more from block to block than detailed ones."),
    Paper("2504.10766", "How Instruction and Reasoning Data shape Post-Training: Data Quality through the Lens of "
          "Layer-wise Gradients", 2025,
          "Better data give gradients of a lower nuclear norm and a higher effective rank."),
    Paper("1501.01571", "An Introduction to Matrix Concentration Inequalities", 2015,
          "The stable rank is a robust stand-in for the rank."),
    Paper("2410.20672", "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA", 2024,
          "A few blocks that run several times, with a low-rank correction for each depth, keep most of a model."),
    Paper("2507.07996", "Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs", 2025,
          "For most samples that a model gets right, a shorter path through its blocks does too."),
    Paper("2405.15319", "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training",
          2024, "A small model stacked on itself trains to a loss for fewer FLOPs than a large one from scratch."),
    Paper("2303.00980", "Learning to Grow Pretrained Models for Efficient Transformer Training", 2023,
          "Weights of a larger model as learned linear combinations of those of a smaller one save training."),
    Paper("2309.08414", "Make Deep Networks Shallow Again", 2023,
          "Residual blocks side by side reach the loss of the same blocks one after another."),
    Paper("2107.11817", "Go Wider Instead of Deeper", 2021,
          "One block shared by all depths, with experts and each depth's own norms, needs fewer parameters."),
)  # fmt: skip

BY_ID = {p.arxiv: p for p in _PAPERS}
