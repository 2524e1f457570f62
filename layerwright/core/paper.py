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
    Paper("2405.17767", "Linguistic Collapse: Neural Collapse in (Large) Language Models", 2024,
          "With training and scale, what a language model's head reads collapses to one mean for each next token."),
    Paper("2210.16658", "Perturbation Analysis of Neural Collapse", 2023,
          "Later layers, which move the features before them only a little, are more collapsed to their class means."),
    Paper("1703.00810", "Opening the Black Box of Deep Neural Networks via Information", 2017,
          "Layers first fit the labels and then compress the input, as seen in the information plane."),
    Paper("2410.24200", "Length-Induced Embedding Collapse in Transformer-based Models", 2024,
          "Attention is a low-pass filter that attenuates more in long texts; a temperature below 1 counters it."),
    Paper("2411.02335", "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity", 2024,
          "Activation sparsity grows with training for ReLU and falls for SiLU, and hardly depends on size."),
    Paper("2404.07066", "Exploring Concept Depth: How Large Language Models Acquire Knowledge at Different Layers?",
          2024, "Simple concepts can be read off shallow blocks, complex ones only off deeper ones."),
    Paper("2310.15010", "Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings", 2023,
          "The mean angle to the others ranks embeddings by centrality and tells two corpora apart."),
    Paper("2511.05933", "Reinforcement Learning Improves Traversal of Hierarchical Knowledge in LLMs", 2025,
          "Reinforcement learning changes the states of queries more than those of statements of fact."),
    Paper("1706.04454", "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks", 2017,
          "The Hessian has a bulk at zero that scales with width, and about as many outliers as there are classes."),
    Paper("2311.04163", "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", 2023,
          "Small groups of examples with large gradients in opposite directions make training sharpen and spike."),
    Paper("2310.17086", "Transformers Learn Higher-Order Optimization Methods for In-Context Learning: A Study with "
          "Linear Models", 2023,
          "Layers of a transformer that regresses in context match iterations of Newton, about 3 to a middle layer."),
    Paper("1312.6120", "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2013,
          "Modes are learned one after another, and from orthogonal matrices in a time that hardly grows with depth."),
    Paper("2301.00437", "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", 2023,
          "Features end at right angles, their lengths set by the samples of their class; small classes vanish."),
    Paper("2311.14646", "More is Better in Modern Machine Learning: when Infinite Overparameterization is Optimal and "
          "Overfitting is Obligatory", 2023,
          "More features and more data never hurt where the ridge is tuned, and the best ridge often nearly fits."),
    Paper("1806.07572", "Neural Tangent Kernel: Convergence and Generalization in Neural Networks", 2018,
          "An infinitely wide network trained by gradient flow is kernel regression with a kernel fixed at the start."),
    Paper("2204.14126", "Wide and Deep Neural Networks Achieve Optimality for Classification", 2022,
          "Depth to infinity makes a classifier one of three: nearest neighbour, majority, or a singular kernel."),
    Paper("1904.11955", "On Exact Computation with an Infinitely Wide Neural Net", 2019,
          "The tangent kernel of an infinitely wide convolutional network, with global average pooling, is exact."),
    Paper("2006.10540", "Infinite attention: NNGP and NTK for deep attention networks", 2020,
          "With many heads attention has kernels, in closed form where its scores are scaled by 1/width."),
    Paper("2206.08720", "Fast Finite Width Neural Tangent Kernel", 2022,
          "The tangent kernel of a finite network takes far less than its Jacobian where layers' structure is used."),
    Paper("2108.13097", "A theory of representation learning gives a deep generalisation of kernel methods", 2021,
          "Kernels that learn: Gram matrices that trade the likelihood against a divergence from layer to layer."),
    Paper("2404.03176", "Information-Theoretic Generalization Bounds for Deep Neural Networks", 2024,
          "A bound by a layer's distribution shrinks with depth, and one layer is a funnel of generalization."),
    Paper("2208.01003", "What Can Be Learnt With Wide Convolutional Neural Networks?", 2022,
          "Deep convolutional kernels learn at the rate of the size of the patches that the target depends on."),
    Paper("2509.21519", "Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking", 2025,
          "Features are the maxima of an energy, and emerge above a number of samples of order M log M."),
    Paper("2102.06701", "Explaining Neural Scaling Laws", 2021,
          "Loss falls as 1/data or 1/width where variance limits it, and by its dimension where resolution does."),
    Paper("2308.16898", "Transformers as Support Vector Machines", 2023,
          "Attention trained by gradient descent separates the best tokens from the rest with the largest margin."),
    Paper("2212.07677", "Transformers learn in-context by gradient descent", 2022,
          "One layer of linear attention can take one step of gradient descent on the examples in its context."),
    Paper("2106.10165", "The Principles of Deep Learning Theory", 2021,
          "Criticality keeps signals alive at depth, and depth over width says how far a network is from Gaussian."),
    Paper("2107.11817", "Go Wider Instead of Deeper", 2021,
          "One block shared by all depths, with experts and each depth's own norms, needs fewer parameters."),
)  # fmt: skip

BY_ID = {p.arxiv: p for p in _PAPERS}
