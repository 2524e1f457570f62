"""Survey documents as the report reads them, made up with a fixed seed: all tables of a Llama, or almost nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Document = dict[str, Any]
Rows = list[list[Any]]

OVER_TOKENS = ("value", "low", "high", "std", "p95", "max", "tokens", "nonfinite")
DERIVED = ("value", "low", "high")
MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
DEPTH = {"arxiv": "2505.13898", "title": "Do Language Models Use Their Depth Efficiently?", "year": 2025}
CURSE = {"arxiv": "2502.05795", "title": "The Curse of Depth in Large Language Models", "year": 2025}
LENS_UNITS = {"kl": "nat", "top5_overlap": "1", "top1_agreement": "1"}
OUTPUT_UNITS = {"probability_shift": "1", "kl": "nat", "loss_increase": "nat/token"}
GROWTH_UNITS = {"rate": "1/block", "ratio": "1"}
SCORE_UNITS = dict.fromkeys(("later", "future", "output"), "block")
EFFECTIVE_UNITS = {"kl": "block", "overlap": "block", "kl_ratio": "1", "overlap_ratio": "1"}

# Name, index columns, unit, formula, paper.
TABLES: tuple[tuple[str, str, Any, str, Any], ...] = (
    ("residual_contribution", "block part", "1", "‖u_l‖ / ‖h_l‖", DEPTH),
    ("residual_cosine", "block part", "1", "cos(u_l, h_l)", DEPTH),
    ("stream_scale", "point", "1", "σ_l = rms(h_l)", CURSE),
    ("stream_growth", "quantity", GROWTH_UNITS, "slope of log σ_l over l", CURSE),
    ("jacobian_identity", "block", "1", "‖J_l − I‖_F / √n", CURSE),
    ("block_influence", "block", "1", "1 − cos(h_l, h_{l+1})", None),
    ("angular_distance", "block gap", "1", "arccos(cos(h_l, h_{l+n})) / π", CURSE),
    ("logit_lens", "point quantity", LENS_UNITS, "KL(softmax(W Norm(h_l)) ‖ softmax(y))", DEPTH),
    ("effective_depth", "quantity", EFFECTIVE_UNITS, "first l with KL < ½ max KL", DEPTH),
    ("skip_effect", "source block quantity", "1", "‖u_l − ū_l‖ / ‖u_l‖", DEPTH),
    ("skip_output", "source quantity", OUTPUT_UNITS, "loss without block s − loss", DEPTH),
    ("depth_score", "quantity", SCORE_UNITS, "Σ l·e_l / Σ e_l", DEPTH),
    ("first_order_skip", "block", "nat/token", "−⟨∂L/∂h_{l+1}, u_l⟩", None),
    ("first_order_agreement", "quantity", "1", "Spearman's ρ", None),
    ("weight_spectrum", "block matrix quantity", "1", "‖W‖_F² / ‖W‖₂²", None),
)


@pytest.fixture(scope="session")
def llama() -> Document:
    """All tables of the first measures for 12 blocks, with findings and self-tests."""
    return fabricate(12)


@pytest.fixture(scope="session")
def llama_of_depth() -> Callable[[int], Document]:
    """As `llama`, for any depth."""
    return fabricate


@pytest.fixture(scope="session")
def minimal() -> Document:
    """Three blocks, a quick tier without sublayers, undefined numbers, a failed self-test, nothing found."""
    return fabricate_minimal()


@pytest.fixture(scope="session")
def new_table() -> Callable[..., Document]:
    """Makes a table that the report has never heard of: index columns and rows of index values."""
    return unheard_of


def fabricate(depth: int) -> Document:
    """A document of a Llama-like model."""
    draw = random.Random(depth)
    loss = [_loss_increase(b / (depth - 1)) + draw.uniform(0, 0.05) for b in range(depth)]
    rows = {name: list(make(depth, loss, draw)) for name, make in _ROWS.items()}
    tables = {name: table(name, index.split(), rows[name], *meta) for name, index, *meta in TABLES}
    model = _model("demo", "LlamaForCausalLM", "model.layers", depth, 256, 9_437_440)
    checks = [
        {"name": "h₀ + Σ updates = h_L", "error": 3.1e-7, "tolerance": 1e-4, "passed": True, "note": "parts add up"},
        {"name": "lens(h_L) = logits", "error": 0.0, "tolerance": 1e-4, "passed": True, "note": "the last state"},
    ]
    return _document(model, "standard", tables, checks, [], _findings(depth, loss))


def fabricate_minimal() -> Document:
    """A document with hardly anything in it."""
    rows = [[b, v, None, None, None, None, v, 64, 0 if v else 64] for b, v in enumerate([0.5, None, 0.25])]
    tables = {
        "residual_contribution": table(
            "residual_contribution",
            ["block", "part"],
            [[r[0], "block", *r[1:]] for r in rows],
            "1",
            "‖u_l‖ / ‖h_l‖",
            DEPTH,
        ),
        "block_influence": table("block_influence", ["block"], rows, "1", "1 − cos", None),
        "stream_growth": table(
            "stream_growth", ["quantity"], [["rate", None, None, None]], GROWTH_UNITS, "slope", CURSE
        ),
    }
    check = {
        "name": "h₀ + Σ updates = h_L",
        "error": None,
        "tolerance": 1e-4,
        "passed": False,
        "note": "block 1 gives NaN",
    }
    note = "logit_lens was not run: the model has no head"
    return _document(
        _model("(Sequential)", "Sequential", "(model)[0:3]", 3, 8, 216), "quick", tables, [check], [note], []
    )


def table(name: str, index: list[str], rows: Rows, unit: Any, formula: str, paper: Any) -> Document:
    """One table of the document; which numbers it has follows from the length of its rows."""
    numbers = (OVER_TOKENS, DERIVED)[len(rows[0]) - len(index) == len(DERIVED)]
    title = name.replace("_", " ").capitalize()
    return {
        "columns": [*index, *numbers], "rows": rows, "unit": unit, "formula": formula, "paper": paper,
        "title": title, "definition": f"What {title} is: a mean over all tokens.", "range": [0, None],
    }  # fmt: skip


def unheard_of(index: str, places: Rows) -> Document:
    """A table with made-up numbers."""
    draw = random.Random(0)
    return table(
        "a_new_measure", index.split(), [[*p, *spread(draw.random(), 0.1, draw)] for p in places], "bit", "x", None
    )


def spread(value: float, width: float, draw: random.Random) -> list[Any]:
    """The numbers of a row in the order of OVER_TOKENS."""
    half = abs(value) * width * draw.uniform(0.6, 1.4)
    return [
        value,
        value - half,
        value + half,
        4 * half,
        value + 6 * half,
        value + abs(value) * draw.random() * 3,
        4096,
        0,
    ]


def _loss_increase(place: float) -> float:
    return 4.8 * math.exp(-9 * place) + 0.035 + 2.5 * max(0.0, place - 0.82)


def _model(name: str, kind: str, path: str, depth: int, width: int, parameters: int) -> Document:
    return {
        "name": name, "class": kind, "blocks": path, "depth": depth, "unique_depth": depth, "width": width,
        "parameters": parameters, "dtype": "float32", "device": "cpu", "order": list(range(depth)), "causal": True,
        "parts": [], "towers": [{"path": path, "depth": depth, "block_class": "Block"}],
    }  # fmt: skip


def _document(
    model: Document, tier: str, tables: Document, checks: list[Document], notes: list[str], findings: list[Document]
) -> Document:
    data = {"source": "held-out files", "kind": "text", "sequences": 16, "tokens": 4096, "length": 256, "prefix": 1}
    settings = {
        "tier": tier,
        "measures": list(tables),
        "options": {},
        "seed": 0,
        "layerwright": "0.1.0",
        "seconds": 21.4,
    }
    return {
        "schema": 1, "layerwright": "0.1.0", "model": model, "data": data, "settings": settings, "checks": checks,
        "notes": notes, "findings": findings, "tables": tables,
    }  # fmt: skip


def _findings(depth: int, loss: list[float]) -> list[Document]:
    size = max(2, depth // 5)
    start = min(range(2, depth - size), key=lambda b: sum(loss[b : b + size]))
    weak = list(range(start, start + size))
    plan = f"reshape: 1\nbase: demo\nwhy: these blocks hardly matter for the loss\nsteps:\n- drop: {weak}\n"

    def finding(
        tone: str, title: str, blocks: list[int], evidence: list[str], advice: str, plan: str | None
    ) -> Document:
        return {"rule": title.lower().replace(" ", "_"), "tone": tone, "title": title, "blocks": blocks,
                "evidence": evidence, "advice": advice, "plan": plan}  # fmt: skip

    return [
        finding("act", f"Blocks {weak[0]}–{weak[-1]} hardly matter for the loss", weak,
                [f"skipping block {b} raises the loss by {loss[b]:.3f} nat/token" for b in weak[:3]],
                "Try the model without them, then verify the loss on your own data.", plan),
        finding("protect", "The first block must not be touched", [0], [f"skipping it costs {loss[0]:.2f} nat/token"],
                "Leave it out of every plan that drops, swaps or ties blocks.", None),
        finding("watch", "The stream grows 12.6-fold from bottom to top", [], ["rate 0.211 per block"], "", None),
        finding("good", "One backward pass orders the blocks well", [], ["rank correlation 0.91"], "", None),
    ]  # fmt: skip


def _parts(depth: int, _: list[float], draw: random.Random, cosine: bool = False) -> Iterator[list[Any]]:
    for b in range(depth):
        size = 0.34 + 0.5 * math.exp(-b) + 0.25 * (b / (depth - 1)) ** 6
        for part, share in (("attention", 0.42 * (1.2 - b / depth)), ("mlp", 0.8), ("block", 1.0)):
            turn = 0.45 * math.sin(3.5 * b / depth + 3.4) + 0.1 * share
            yield [b, part, *spread((turn if cosine else size * share) * draw.uniform(0.9, 1.1), 0.05, draw)]


def _angles(depth: int, _: list[float], draw: random.Random) -> Iterator[list[Any]]:
    for gap in range(1, depth + 1):
        for b in range(depth + 1 - gap):
            yield [b, gap, *spread(0.5 * (1 - math.exp(-0.16 * gap * (0.6 + 1.4 * math.exp(-b)))), 0.03, draw)]


def _lens(depth: int, _: list[float], draw: random.Random) -> Iterator[list[Any]]:
    for p in range(depth + 1):
        done = p / depth
        values = {"kl": 9.1 * (1 - done) ** 1.6, "top5_overlap": done**1.7, "top1_agreement": done**2.1}
        yield from ([p, quantity, *spread(value, 0.04, draw)] for quantity, value in values.items())


def _effects(depth: int, _: list[float], draw: random.Random) -> Iterator[list[Any]]:
    for s in range(depth):
        for b in range(s + 1, depth):
            size = (0.12 + 0.9 * math.exp(-1.2 * s)) * math.exp(-0.1 * (b - s)) * draw.uniform(0.8, 1.2)
            yield [s, b, "later", *spread(size, 0.05, draw)]
            yield [s, b, "future", *spread(0.55 * size, 0.05, draw)]


def _outputs(_: int, loss: list[float], draw: random.Random) -> Iterator[list[Any]]:
    for s, rise in enumerate(loss):
        for quantity, value in (("probability_shift", 0.7 * rise**0.5), ("kl", 0.8 * rise), ("loss_increase", rise)):
            yield [s, quantity, *spread(value, 0.12, draw)]


def _spectra(depth: int, _: list[float], draw: random.Random) -> Iterator[list[Any]]:
    for b in range(depth):
        for k, matrix in enumerate(MATRICES):
            stable = 12 + 6 * k + 8 * math.sin(b / 2 + k) + draw.uniform(-2, 2)
            yield [b, matrix, "stable_rank", stable, None, None]
            yield [b, matrix, "frobenius_norm", 22.0 + k, None, None]


_ROWS: dict[str, Callable[[int, list[float], random.Random], Iterator[list[Any]]]] = {
    "residual_contribution": _parts,
    "residual_cosine": lambda n, loss, draw: _parts(n, loss, draw, cosine=True),
    "stream_scale": lambda n, _, d: ([p, *spread(0.31 * math.exp(2.5 * p / n), 0.01, d)] for p in range(n + 1)),
    "stream_growth": lambda *_: iter([["rate", 0.2113, 0.2098, 0.2127], ["ratio", 12.62, 12.4, 12.83]]),
    "jacobian_identity": lambda n, _, d: ([b, *spread(0.2 + 0.9 * math.exp(-0.7 * b), 0.05, d)] for b in range(n)),
    "block_influence": lambda n, _, d: ([b, *spread(0.05 + 0.5 * math.exp(-1.1 * b), 0.05, d)] for b in range(n)),
    "angular_distance": _angles,
    "logit_lens": _lens,
    "effective_depth": lambda *_: iter(
        [["kl", 5.0, 5.0, 6.0], ["overlap", None, None, None], ["kl_ratio", 0.5, 0.5, 0.6]]
    ),
    "skip_effect": _effects,
    "skip_output": _outputs,
    "depth_score": lambda *_: iter([["later", 3.1, 2.9, 3.4], ["future", 2.6, 2.4, 2.9], ["output", 4.4, 4.0, 4.8]]),
    "first_order_skip": lambda _, loss, d: ([b, *spread(v * d.uniform(0.25, 0.8), 0.1, d)] for b, v in enumerate(loss)),
    "first_order_agreement": lambda *_: iter([["rank_correlation", 0.91, 0.83, 0.95]]),
    "weight_spectrum": _spectra,
}
