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
    Paper("1501.01571", "An Introduction to Matrix Concentration Inequalities", 2015,
          "The stable rank is a robust stand-in for the rank."),
)  # fmt: skip

BY_ID = {p.arxiv: p for p in _PAPERS}
