from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.maths import filter as module
from layerwright.maths.filter import first_tokens, high_pass, largest_singular_value


def matrices(kind: str, n: int, count: int = 5) -> Tensor:
    torch.manual_seed(0)
    if kind == "identity":
        return torch.eye(n).expand(count, n, n)
    if kind == "uniform":
        return torch.full((count, n, n), 1 / n)
    scores = torch.randn(count, n, n) * {"flat": 0.1, "usual": 1.0, "sharp": 20.0, "first": 1.0}[kind]
    if kind == "first":
        scores[..., 0] += 8.0
    return scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)


@pytest.mark.parametrize("kind", ["identity", "uniform", "flat", "usual", "sharp", "first"])
@pytest.mark.parametrize("n", [1, 2, 7, 30, 150])
def test_the_largest_singular_value_of_a_full_decomposition(kind: str, n: int) -> None:
    x = matrices(kind, n)
    centred = high_pass(x, torch.ones(5, n, dtype=torch.bool))
    by_hand = (torch.eye(n).double() - 1 / n) @ x.double()
    torch.testing.assert_close(centred.double(), by_hand, rtol=0.0, atol=1e-6)
    for given in (x, centred, x.reshape(5, 1, n, n)):
        expected = torch.linalg.svdvals(given.double())[..., 0]
        torch.testing.assert_close(largest_singular_value(given).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_matrix_gives_the_same_whatever_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([matrices(kind, 40, 2) for kind in ("flat", "sharp", "first", "identity")])
    together = largest_singular_value(x)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    torch.testing.assert_close(largest_singular_value(x), together, rtol=1e-6, atol=0.0)


def test_rectangles_and_numbers_that_are_not_finite() -> None:
    torch.manual_seed(0)
    for shape in ((3, 4, 90), (3, 90, 4), (0, 4, 4)):
        x = torch.randn(shape)
        expected = torch.linalg.svdvals(x.double())[..., 0]
        torch.testing.assert_close(largest_singular_value(x).double(), expected, rtol=1e-5, atol=1e-6)
    x = torch.eye(3).repeat(3, 1, 1)
    x[0, 0, 0], x[1, 1, 1] = torch.nan, torch.inf
    assert largest_singular_value(x).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("n, places, whole", [(0, 3, [True, True]), (2, 2, [True, True]), (3, 3, [False, True])])
def test_the_first_tokens_stand_behind_padding_in_front(n: int, places: int, whole: list[bool]) -> None:
    real = torch.tensor([[False, True, True, False], [False, True, True, True]])
    tokens, enough = first_tokens(real, n)
    assert enough.tolist() == whole
    assert tokens[1].nonzero().flatten().tolist() == [1, 2, 3][:places]
    assert not (tokens & ~real).any()


def test_a_sequence_without_tokens_has_no_differences() -> None:
    assert torch.equal(high_pass(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)), torch.zeros(1, 3, 2))
    assert not first_tokens(torch.zeros(1, 3, dtype=torch.bool), 0)[1].any()
