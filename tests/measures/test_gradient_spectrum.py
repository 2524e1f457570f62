from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from naive import blocks_of, loss, tables
from torch import Tensor, nn
from zoo import gpt2, llama, token_ids

import layerwright as lw
from layerwright.core import registry
from layerwright.core.desk import Desk
from layerwright.core.errors import UserError
from layerwright.maths.gradient import MatrixGradient
from layerwright.measures.gradient_spectrum import gradient_spectrum

ONLY = ["gradient_spectrum"]


def of(sequences: object) -> dict[str, dict[str, object]]:
    return {ONLY[0]: {"sequences": sequences}}


def survey(model: nn.Module, ids: Tensor, sequences: object = 16) -> pd.DataFrame:
    return lw.survey(model, {"input_ids": ids}, only=ONLY, options=of(sequences))[ONLY[0]]


def test_hand_values() -> None:
    deltas = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    given = MatrixGradient(torch.eye(2).repeat(2, 1, 1), deltas)
    found = {n: x for n, (x, _) in gradient_spectrum(given, torch.tensor([2.0, 2.0]), torch.arange(2)).items()}
    assert {name: x[0].item() for name, x in found.items()} == pytest.approx({
        "nuclear_norm": 4.0, "effective_rank": math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))),
        "frobenius_norm": math.sqrt(10.0), "largest": 3.0, "smallest": 1.0, "ratio": 0.75,
        "nuclear_norm_over_loss": 2.0, "frobenius_norm_over_loss": math.sqrt(2.5), "largest_over_loss": 1.5,
        "smallest_over_loss": 0.5,
    })  # fmt: skip
    assert all(x[1].item() == 0.0 for x in found.values())


def naive(model: nn.Module, ids: Tensor) -> dict[tuple[int, str], list[Tensor]]:
    """Sequence by sequence as published: a backward pass of the mean loss, the matrices, their SVD."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    for row in ids:
        model.zero_grad()
        loss(model.eval()(input_ids=row[None], use_cache=False).logits, row[None]).backward()
        for k, block in enumerate(blocks_of(model)):
            for name, p in block.named_parameters():
                if p.ndim == 2:
                    found.setdefault((k, name.removesuffix(".weight")), []).append(torch.linalg.svdvals(p.grad))
    return found


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
def test_by_backward_passes_and_full_decompositions(make: object) -> None:
    model, ids = make().double(), token_ids(3, 9)  # type: ignore[operator]
    frame = tables(model, {"input_ids": ids}, "gradient_spectrum")["gradient_spectrum"]
    values = frame.set_index(["block", "matrix", "quantity"])["value"]
    for (block, matrix), spectra in naive(model, ids).items():
        ranks = [torch.exp(-torch.special.xlogy(s / s.sum(), s / s.sum()).sum()) for s in spectra]
        for name, expected in (
            ("nuclear_norm", sum(s.sum() for s in spectra) / 3),
            ("effective_rank", sum(ranks) / 3),
            ("frobenius_norm", sum(s.norm() for s in spectra) / 3),
            ("largest", sum(s[0] for s in spectra) / 3),
            ("ratio", sum(s[0] / s.sum() for s in spectra) / 3),
        ):
            assert values[block, matrix, name] == pytest.approx(float(expected), rel=1e-4), (block, matrix, name)


def test_only_labelled_tokens_have_a_loss() -> None:
    model, ids = llama(), token_ids(2, 9)
    labels = ids.clone()
    labels[:, :6] = -100
    frame = tables(model, {"input_ids": ids, "labels": labels}, "gradient_spectrum")["gradient_spectrum"]
    found = frame[(frame.block == 0) & (frame.quantity == "frobenius_norm")].set_index("matrix")["value"]
    norms = torch.zeros(len(found))
    for row in ids:
        model.zero_grad()
        logits = model.eval()(input_ids=row[None], use_cache=False).logits[0, 5:-1]
        nn.functional.cross_entropy(logits, row[6:]).backward()
        norms += torch.stack([blocks_of(model)[0].get_parameter(f"{name}.weight").grad.norm() for name in found.index])
    torch.testing.assert_close(torch.tensor(found.to_numpy()).float(), norms / 2, rtol=1e-4, atol=1e-7)


def test_a_model_without_labels_says_so() -> None:
    from zoo import ZOO

    model, inputs, _ = ZOO["bert"]()
    inputs = {name: x for name, x in inputs.items() if name != "labels"}
    found = lw.survey(model, inputs, only=["gradient_spectrum"])
    assert "gradient_spectrum" not in found.tables
    assert any("no labels" in note for note in found.notes)


def test_the_first_sequences_are_measured_and_more_where_asked_for() -> None:
    model, ids = llama(), [token_ids(n, 6, seed=n) for n in (3, 2)]
    whole = survey(model, torch.cat(ids))
    assert set(whole["tokens"]) == {5}
    for most in (1, 4):
        few, one_by_one = survey(model, torch.cat(ids), most), survey(model, torch.cat(ids)[:most])
        assert set(few["tokens"]) == {most}
        for frame in (few, lw.survey(model, [{"input_ids": x} for x in ids], only=ONLY, options=of(most))[ONLY[0]]):
            np.testing.assert_allclose(frame["value"], one_by_one["value"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sequences", [0, 1.5, True])
def test_how_many_sequences_is_a_whole_number(sequences: object) -> None:
    with pytest.raises(UserError, match=f"got sequences={sequences}; expected a whole number from 1 on"):
        survey(llama(), token_ids(2, 6), sequences)


def test_a_measure_that_says_no_number_sees_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient_size(matrix_gradient: MatrixGradient) -> Tensor:
        """Square of the length of a gradient."""
        return matrix_gradient.square()

    monkeypatch.setattr(registry, "MEASURES", registry.MEASURES.copy())
    registry.measure(unit="1", tier="by name")(gradient_size)
    desk = Desk([registry.MEASURES["gradient_size"]], {})
    assert desk.first("matrix") > 10**6
    assert Desk([registry.MEASURES["gradient_spectrum"]], of(5)).first("matrix") == 5


@pytest.mark.parametrize("place, words", [("lm_head", "got a loss that"), ("model.layers.1", "got block 1 that")])
def test_what_is_not_differentiable_is_refused_in_one_line(place: str, words: str) -> None:
    model = llama()
    model.get_submodule(place).register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(UserError, match=f"{words} is not differentiable by the stream; expected") as error:
        survey(model, token_ids(2, 6))
    assert "\n" not in str(error.value)
