"""The words a measure may use as argument names, and what the recorder hands over for each.

A measure says what it needs by naming its arguments; this table is the whole contract. A name that is neither here nor
the name of another measure raises when the package is imported.

Shapes: B sequences of a batch, T tokens, d width, L blocks (applications), V classes or vocabulary. Tensors are
float32 or wider whatever the model computes in. Padding is masked by the recorder, not by the measure: where a measure
returns one number a token, tokens that do not count are dropped afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One word of the contract: which pass supplies it (`scope`), its shape and its meaning."""

    scope: str
    shape: str
    meaning: str


QUANTITIES: dict[str, Quantity] = {
    "before": Quantity("block", "[B, T, d]", "the stream that a block, or a sublayer of it, adds to"),
    "update": Quantity("block", "[B, T, d]", "what the block or the sublayer adds"),
    "after": Quantity("block", "[B, T, d]", "the stream after a block (asks for whole blocks only)"),
    "state": Quantity("point", "[B, T, d]", "one of the L + 1 states of the stream, in turn"),
    "last_token": Quantity("tower", "[L + 1, B, d]", "all states of the stream at each sequence's last real token"),
    "lens_logits": Quantity("lens", "[L + 1, n, V]", "every state decoded by the rest of the model, at sampled tokens"),
    "final_logits": Quantity("lens", "[n, V]", "the model's own output at the same tokens"),
    "skipped_update": Quantity("skip", "[B, T, d]", "`update` of a block when an earlier block is skipped"),
    "skipped_log_probabilities": Quantity("skip_output", "[B, T, V]", "ln p of every class when a block is skipped"),
    "log_probabilities": Quantity("skip_output", "[B, T, V]", "ln p of every class in the unchanged model"),
    "labels": Quantity("skip_output", "[B, T]", "the class that the output should name, -100 where there is none"),
    "gradient": Quantity(
        "gradient", "[B, T, d]", "derivative of the mean loss by the stream after a block, times T; 0 at a first token"
    ),
    "matrix_gradient": Quantity(
        "matrix",
        "B x [o, i]",
        "derivative of each sequence's mean loss by one weight matrix (`maths.gradient`)",
    ),
    "loss": Quantity("matrix", "[B]", "that loss, nat/token"),
    "sequence_numbers": Quantity("matrix", "[B]", "number of each sequence in the data, from 0 on"),
    "other_gradient": Quantity(
        "matrix_pair", "B x [o, i]", "the same of another matrix of the block, of the next block, of the next sequence"
    ),
    "real": Quantity("point", "[B, T]", "which tokens are no padding"),
    "attention": Quantity("attention", "[b, H, T, T]", "probabilities of a block's self-attention, zero at padding"),
    "hidden": Quantity("hidden", "[B, n, m]", "what the last matrix of a feed-forward part reads, at sampled tokens"),
    "hidden_tokens": Quantity("hidden", "[B, n]", "which of these tokens are there"),
    "out_weight": Quantity("hidden", "[d, m]", "that matrix"),
    "hessian": Quantity("curvature", "n x n", "second derivative of the mean loss by the weights of a block, or all"),
    "gauss_newton": Quantity("curvature", "n x n", "its part from the curvature of the loss by the logits"),
    "probe": Quantity("jacobian", "[B, T, d]", "a standard normal vector at a block's output, zero on padding"),
    "pullback": Quantity("jacobian", "[B, T, d]", "the transposed Jacobian of the block applied to `probe`"),
    "branches": Quantity("expansion", "L x ([B, T, d] -> [B, T, d])", "what each block adds to a state, as a function"),
    "bottom": Quantity("expansion", "[B, T, d]", "the stream before the first block"),
    "top": Quantity("expansion", "[B, T, d]", "the stream after the last block"),
    "features": Quantity("collection", "[L + 1, n, d]", "every state at the collected places, tokens or sequences"),
    "sequences": Quantity("collection", "[n]", "number of the sequence of each of these places"),
    "positions": Quantity("collection", "[n]", "position in the sequence"),
    "targets": Quantity("collection", "[n]", "class that the output should name there, -100 where there is none"),
    "token_ids": Quantity("collection", "[n]", "the token there, -1 where the input is not of tokens"),
    "head_inputs": Quantity("collection", "[n, d]", "what the last linear map of the model reads there"),
    "head_weight": Quantity("collection", "[V, d]", "its weight"),
    "summaries": Quantity(
        "collection", "[L + 1, S, d]", "every state of each sequence's last token, or mean over tokens"
    ),
    "sequence_labels": Quantity("collection", "[S]", "label of each sequence where the data gives one, else -100"),
    "other_features": Quantity("pair", "[L' + 1, n', d']", "`features` of the other model, or on the other data"),
    "other_summaries": Quantity("pair", "[L' + 1, S', d']", "`summaries` of the other"),
    "other_sequences": Quantity("pair", "[n']", "`sequences` of the other; negative where its data are others"),
    "weight": Quantity("weight", "[rows, columns]", "one weight matrix of a block"),
}

# A measure that names quantities of several scopes belongs to the last of them in this order: `update` beside
# `skipped_update` is a skip measure, beside `gradient` a gradient measure.
SCOPES = (
    "block", "point", "tower", "lens", "attention", "hidden", "skip", "skip_output", "gradient", "matrix",
    "matrix_pair", "jacobian", "expansion", "weight", "curvature", "collection", "pair", "table",
)  # fmt: skip

# What the recorder puts into the leading columns of a scope's tables.
INDEX: dict[str, tuple[str, ...]] = {
    "block": ("block", "part"),
    "point": ("point",),
    "tower": (),
    "lens": ("point",),
    "skip": ("source", "block", "quantity"),
    "skip_output": ("source",),
    "gradient": ("block",),
    "matrix": ("block", "matrix"),
    "matrix_pair": ("block", "matrix", "beside"),
    "jacobian": ("block",),
    "expansion": (),
    "attention": ("block",),
    "hidden": ("block",),
    "weight": ("block", "matrix"),
    "curvature": ("blocks",),
    "collection": (),
    "pair": (),
    "table": (),
}
