"""How the known tables are presented: section, words, axis. A table without an entry gets the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from layerwright.report.scale import Kind


@dataclass(frozen=True)
class Look:
    """Options of a table's picture.

    `mark` is `line` or `bar`; `axis` forces a kind of scale; `statistics` are the columns a heat map offers, the first
    one shown; `wide` gives the table the whole width of the page; `first` is the quantity to begin with.
    """

    section: str = "other"
    title: str = ""
    caption: str = ""
    mark: str = "line"
    axis: Kind | None = None
    statistics: tuple[str, ...] = ("value",)
    wide: bool = False
    first: str = ""


# Key, heading, and what the section is about.
SECTIONS = (
    ("stream", "The residual stream", "What each block adds to the state that it is handed, and how that state grows."),
    ("angles", "Angles", "How far the direction of the stream turns over one block, and over stretches of blocks."),
    ("lens", "The lens", "What the model would predict if it had to answer from an intermediate state."),
    ("skips", "Skips", "What changes in later blocks and in the output when one block is left out."),
    ("gradients", "Gradients", "Which matrices the loss would still change, how strongly, and in how many directions."),
    ("curvature", "Curvature", "How the loss bends: why a learning rate that works for one block fails for another."),
    ("inside", "Inside the blocks", "What attention lets through, and how many hidden units do the work."),
    (
        "representations",
        "Representations",
        "What is known where: classes, concepts, and how states of layers map to each other.",
    ),
    ("theory", "Theory", "What theory predicts of the network as it is drawn at random, beside what was measured."),
    ("weights", "Weights", "What can be read off the weight matrices without any data."),
    ("other", "Other measures", "Measures without a section of their own."),
)

LOOKS = {
    "residual_contribution": Look(
        "stream", "How much each part adds to the stream",
        "Length of an update over the length of the stream it is added to: the higher, the more the block rewrites."),
    "residual_cosine": Look(
        "stream", "Whether an update strengthens or erases the stream",
        "Above zero an update points along the stream, below zero it removes what is there, at zero it is new."),
    "stream_scale": Look(
        "stream", "How large the stream is along the tower",
        "State 0 enters block 0; on this axis a straight line is exponential growth.", axis="log"),
    "jacobian_identity": Look(
        "stream", "How far each block is from doing nothing",
        "Distance of a block's Jacobian from the identity: near zero, a block hands on what it is given."),
    "stream_growth": Look(
        "stream", "How fast the stream grows",
        "The growth of one block, and of the whole tower from its first state to its last."),
    "residual_expansion": Look(
        "stream", "How much of the tower is paths through one block, two, three",
        "Energy of each order over that of all the tower adds, and how much the orders up to it explain together."),
    "block_influence": Look(
        "angles", "How far each block turns the stream",
        "One minus the cosine between a block's input and its output: near zero, the direction stays as it was."),
    "angular_distance": Look(
        "angles", "How far the stream turns over a stretch of blocks",
        "Column: the block where a stretch begins; row: how many blocks it spans; colour: the angle over π."),
    "logit_lens": Look(
        "lens", "How close an early answer comes to the final one",
        "Every state of the stream, read out as if it were the last, compared with what the model answers in the end.",
        wide=True),
    "effective_depth": Look(
        "lens", "By which block the prediction has formed",
        "Three thresholds from the literature; each ratio is the block index plus one, over the number of blocks."),
    "skip_effect": Look(
        "skips", "What later blocks do differently when one block is skipped",
        "Row: the skipped block; column: the block whose update changes; colour: that change over the update's length.",
        statistics=("max", "value"), wide=True),
    "skip_output": Look(
        "skips", "What the output loses when one block is skipped",
        "One bar for each skipped block, with its 95 % interval over sequences.", mark="bar", wide=True,
        first="loss_increase"),
    "depth_score": Look(
        "skips", "Where in the tower the effects of skipping are centred",
        "The average block, counted from 1, weighted by what skipping it does: low where early blocks matter most."),
    "first_order_skip": Look(
        "skips", "Loss when a block is skipped: predicted and measured",
        "Predicted from one backward pass. Left: each number is a block; on the diagonal, the prediction is exact.",
        wide=True),
    "first_order_agreement": Look(
        "skips", "How well the prediction orders the blocks",
        "Rank correlation of the predicted and the measured loss increase: 1 is the same order, 0 none."),
    "gradient_spectrum": Look(
        "gradients", "How large each matrix's gradient is, and how many directions it has",
        "Singular values of one sequence's gradient, mean over sequences. A line or row for each matrix of the block.",
        wide=True, first="nuclear_norm"),
    "gradient_roughness": Look(
        "gradients", "How much gradients differ from one block to the next",
        "Mean absolute difference between neighbouring blocks, over all blocks and over each third of the tower.",
        wide=True),
    "gradient_similarity": Look(
        "gradients", "Whether gradients point the same way",
        "Cosine with another matrix of the block, with the same one of the next block, and of another sequence.",
        wide=True),
    "attention_filter": Look(
        "inside", "How much of what tells tokens apart each head lets through",
        "Column: block; row: head; colour: the gain. Length 0 is whole sequences.", wide=True, first="mean"),
    "high_frequency": Look(
        "inside", "How much of the stream differs from token to token",
        "Its norm without the mean over tokens: near zero, all tokens are alike. Length 0 is whole sequences."),
    "activation_sparsity": Look(
        "inside", "How many hidden units can be left out",
        "Share of units whose contributions may go for an error of so much of what the part adds (cett).", wide=True),
    "curvature": Look(
        "curvature", "How the loss bends along the weights of each block",
        "Largest eigenvalues of the Hessian and of its Gauss-Newton part, by block and of the whole model.", wide=True),
    "spectral_density": Look(
        "curvature", "How the eigenvalues are spread", "Density on a grid by stochastic Lanczos, and its error.",
        wide=True),
    "neural_collapse": Look(
        "representations", "How far classes have collapsed to their means",
        "At every state of the stream: smaller variance within classes, and means that stand evenly apart.", wide=True),
    "head_collapse": Look(
        "representations", "The same where the head reads, and against the head's own weights", wide=True),
    "concept_probe": Look(
        "representations", "From which layer on a concept can be read off linearly",
        "Accuracy of a linear probe; selectivity is what it has over a probe of shuffled labels.", wide=True),
    "information_plane": Look(
        "representations", "What states say of the input and of the label",
        "In bit, by binning and by a kernel; an estimate at its ceiling says only that all samples differ.", wide=True),
    "embedding_depth": Look(
        "representations", "How central each text is among the others",
        "Statistical depth of the sequences' summaries: 2 is the centre."),
    "similarity": Look(
        "representations", "How alike the states of two layers are", "Of this model, or of this one and the other.",
        wide=True),
    "linear_maps": Look(
        "representations", "How well a linear map takes one layer to another",
        "Error on held-out sequences over that of the mean: 0 is a perfect map, 1 none.", wide=True),
    "signal_propagation": Look(
        "theory", "How signals and gradients go through the layers",
        "Mean square of the units, cosine between inputs, squared gradient; intervals are over the layer's units.",
        wide=True),
    "independent_branches": Look(
        "theory", "How large the stream would be if blocks were independent",
        "Above the prediction, blocks write along what is there; below it, they take from it."),
    "weight_spectrum": Look(
        "weights", "How many directions each weight matrix uses, and how large it is",
        "One line for each matrix; a matrix of low rank acts on few directions of its input.", wide=True),
}  # fmt: skip

# What the axes and quantities are called in pictures; any other name is said as it is written.
WORDS = {
    "point": "state of the stream",
    "source": "skipped block",
    "gap": "blocks in the stretch",
    "kl": "KL divergence",
    "top5_overlap": "overlap of the five likeliest tokens",
    "top1_agreement": "agreement on the likeliest token",
    "later": "later blocks, all tokens",
    "future": "later blocks, future tokens only",
    "output": "output",
    "loss_increase": "increase of the loss",
    "probability_shift": "shift of the probabilities",
    "future_loss_increase": "increase of the loss, future tokens only",
    "future_probability_shift": "shift of the probabilities, future tokens only",
    "future_kl": "KL divergence, future tokens only",
    "kl_ratio": "KL divergence, ratio",
    "cosine_ratio": "cosine, ratio",
    "overlap_ratio": "overlap, ratio",
    "nuclear_norm": "nuclear norm",
    "nuclear_norm_over_loss": "nuclear norm over the loss",
    "frobenius_norm_over_loss": "length over the loss",
    "largest_over_loss": "largest singular value over the loss",
    "smallest_over_loss": "smallest singular value over the loss",
    "largest": "largest singular value",
    "smallest": "smallest singular value",
    "ratio": "largest singular value over their sum",
    "max": "largest over tokens",
    "value": "mean over tokens",
}
