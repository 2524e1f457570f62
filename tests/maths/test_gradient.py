"""Gradients of a matrix from token factors, against the matrices themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layerwright.maths.gradient import MatrixGradient, input_gram

SHAPES = [(5, 9, 7), (12, 9, 7), (8, 8, 20), (1, 6, 6), (40, 3, 50), (2, 9, 7)]  # tokens, rows, columns


def factors(tokens: int, rows: int, columns: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * rows)
    x = torch.randn(batch, tokens, columns, generator=generator)
    delta = torch.randn(batch, tokens, rows, generator=generator)
    return x, delta * torch.logspace(0, -3, tokens)[:, None]  # a spread of singular values


def matrix(x: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([torch.einsum("to,ti->oi", d.double(), a.double()) for a, d in zip(x, delta)])


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_the_materialised_gradient(shape: tuple[int, int, int]) -> None:
    x, delta = factors(*shape)
    expected = torch.linalg.svdvals(matrix(x, delta))[:, : min(shape)]
    torch.testing.assert_close(MatrixGradient(x, delta).values(), expected, rtol=1e-5, atol=1e-8)


def test_tokens_that_are_alike_have_a_singular_gram() -> None:
    x, delta = factors(6, 9, 11)
    x[:, 3] = x[:, 1]  # Cholesky fails, the values must not
    expected = torch.linalg.svdvals(matrix(x, delta))[:, :6]
    torch.testing.assert_close(MatrixGradient(x, delta).values(), expected, rtol=1e-5, atol=1e-7)


def test_padding_adds_zeros_only() -> None:
    x, delta = factors(5, 9, 12)
    longer = torch.cat([x, torch.ones_like(x[:, :2])], 1), torch.cat([delta, torch.zeros_like(delta[:, :2])], 1)
    found, expected = MatrixGradient(*longer).values(), MatrixGradient(x, delta).values()
    torch.testing.assert_close(found[:, :5], expected)
    assert found[:, 5:].max() < 1e-6 * found[:, 0].min()


def test_what_is_not_finite_is_nan_in_its_own_sample_only() -> None:
    x, delta = factors(5, 9, 7)
    expected = MatrixGradient(x, delta).values()
    delta[1, 2, 3] = torch.inf
    found = MatrixGradient(x, delta).values()
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("shape", SHAPES)
def test_inner_products_are_those_of_the_materialised_gradients(shape: tuple[int, int, int]) -> None:
    one, two = factors(*shape), factors(*shape)
    two = two[0].flip(0) + 1.0, two[1].flip(1)
    a, b = matrix(*one).flatten(1), matrix(*two).flatten(1)
    found = MatrixGradient(*one)
    torch.testing.assert_close(found.product(MatrixGradient(*two)), (a * b).sum(1))
    cosine, known = found.cosine(MatrixGradient(*two))
    torch.testing.assert_close(cosine, torch.cosine_similarity(a, b))
    assert known.all()


@pytest.mark.parametrize("shape", [(2, 9, 7), (5, 9, 7), (12, 9, 7)])
def test_some_samples_are_those_of_the_whole(shape: tuple[int, int, int]) -> None:
    gradient = MatrixGradient(*factors(*shape))
    whole = gradient.values(), gradient.square()
    part = gradient.of(slice(0, 3, 2))
    for found, expected in zip((part.values(), part.square()), whole):
        torch.testing.assert_close(found, expected[::2])
    expected = (gradient.dense()[::2] * gradient.dense()[1:]).sum((1, 2))
    torch.testing.assert_close(part.product(gradient.of(slice(1, 3))), expected)
    assert gradient.of(slice(0, 0)).values().shape == (0, min(shape))
    assert gradient.of(slice(3, 3)).product(gradient.of(slice(0, 0))).shape == (0,)


def test_matrices_that_read_one_tensor_share_its_gram() -> None:
    x, delta = factors(2, 9, 7)
    gram = input_gram(x)
    found = MatrixGradient(x, delta, gram).product(MatrixGradient(x, delta.flip(1), gram))
    torch.testing.assert_close(found, (matrix(x, delta) * matrix(x, delta.flip(1))).sum((1, 2)))


def test_a_gradient_of_zeros_has_no_direction() -> None:
    x, delta = factors(5, 9, 7)
    cosine, known = MatrixGradient(x, 0 * delta).cosine(MatrixGradient(x, delta))
    assert not known.any()
    assert (cosine == 0).all()
