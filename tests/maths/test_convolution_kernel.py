"""Kernels of convolutional towers against the recursion over all pairs of positions, written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from layerwright.maths import convolution_kernel
from layerwright.maths.activation import activation
from layerwright.maths.convolution_kernel import flattened, pooled, sampled
from layerwright.maths.convolution_layers import Branch, Convolution, Layer, Nonlinearity, Normalization, wraps
from layerwright.maths.displacements import Displacement, bands, singles, stratified
from layerwright.maths.kernel import Kernels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(k: Tensor, layer: Convolution) -> Tensor:
    """Means over windows of `[n, m, h, w, h, w]`, one pair of positions after another."""
    h, w = k.shape[2:4]
    valid = layer.padding == "valid"
    start = 0 if valid else -((layer.size - 1) // 2)
    shifts = range(start, start + layer.size)
    rows, columns = (n - layer.size + 1 if valid else n for n in (h, w))
    found = k.new_zeros(*k.shape[:2], rows, columns, rows, columns)
    for a, b, c, d in product(range(rows), range(columns), range(rows), range(columns)):
        for i, j in product(shifts, shifts):
            at = (a + i, b + j, c + i, d + j)
            if layer.padding == "circular":
                at = (at[0] % h, at[1] % w, at[2] % h, at[3] % w)
            if all(0 <= p < n for p, n in zip(at, (h, w, h, w))):
                found[:, :, a, b, c, d] += k[(slice(None), slice(None), *at)]
    return found / layer.size**2


def naive(layers: Sequence[Layer], k: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The recursion over all pairs of images and of positions, `[n, n, h, w, h, w]`."""
    for layer in layers:
        q = torch.einsum("nnijij->nij", k)
        q1, q2 = q[:, None, :, :, None, None], q[None, :, None, None, :, :]
        match layer:
            case Convolution():
                k = layer.weight_variance * windows(k, layer) + layer.bias_variance
                t = k + layer.weight_variance * windows(t, layer)
            case Nonlinearity():
                t = t * layer.phi.dual_derivative(q1, k, q2)
                k = layer.phi.dual(q1, k, q2)
            case Normalization():
                scale = ((q1 + layer.eps) * (q2 + layer.eps)).rsqrt()
                k, t = k * scale, t * scale
            case Branch():
                inner = naive(layer.layers, k, t)
                k, t = (old + layer.scale**2 * new for old, new in zip((k, t), inner))
    return k, t


def written_out(layers: Sequence[Layer], x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both kernels, for a readout of each position and for one of the mean."""
    k = torch.einsum("nchw,mcij->nmhwij", x, x) / x.shape[1]
    found = naive(layers, k, torch.zeros_like(k))
    apart = [torch.einsum("nmijij->nm", part) / part[0, 0].numel() ** 0.5 for part in found]
    return (apart[0], apart[1]), (found[0].mean((2, 3, 4, 5)), found[1].mean((2, 3, 4, 5)))


def plain(name: str, padding: str) -> list[Layer]:
    phi = Nonlinearity(activation(name))
    return [Convolution(3, 2.0, 0.1, padding), phi, Convolution(2, 1.5, 0.0, padding), phi]


def residual(name: str, padding: str) -> list[Layer]:
    phi = Nonlinearity(activation(name))
    branch = Branch([Normalization(0.1), phi, Convolution(3, 1.5, 0.1, padding)], 0.7)
    return [Convolution(1, 1.5), branch, Branch([phi, Convolution(1)], 0.5), Normalization(0.1), phi]


CASES = [
    (plain, "relu", "same"), (plain, "linear", "same"), (plain, "abs", "valid"), (plain, "tanh", "valid"),
    (plain, "gelu", "circular"), (residual, "erf", "same"), (residual, "relu", "circular"),
]  # fmt: skip


@pytest.mark.parametrize("build, name, padding", CASES)
def test_the_recursion_over_all_pairs_of_positions(
    build: Callable[[str, str], list[Layer]], name: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, x = build(name, padding), random(3, 2, 5, 4)
    x[2] = x[0]
    expected = written_out(layers, x)
    for read, exact in zip((flattened, pooled, pooled), (*expected, expected[1])):
        for found, rows, columns in (
            (read(layers, x), slice(3), slice(3)),
            (read(layers, x[:2], x[1:]), slice(2), slice(1, 3)),
        ):
            torch.testing.assert_close(found.nngp, exact[0][rows, columns], rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(found.ntk, exact[1][rows, columns], rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(found.q1, exact[0].diagonal()[rows], rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(found.q2, exact[0].diagonal()[columns], rtol=1e-11, atol=1e-12)
        # Once more with one displacement at a time, and a few pairs at a time.
        monkeypatch.setattr(convolution_kernel, "_BAND", 0)
        monkeypatch.setattr(convolution_kernel, "_BYTES", 8)
        monkeypatch.setattr(convolution_kernel, "_VECTOR", 2)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_the_diagonal_is_exact_where_positions_are_apart(name: str) -> None:
    x = torch.cat([random(4, 2, 5, 5), random(4, 2, 5, 5)[:2]])
    phi = activation(name)
    k = flattened([Convolution(1, 1.7, 0.1), Nonlinearity(phi), Convolution(1, 1.7)], x)
    pixels = 1.7 * x.square().mean(1) + 0.1
    q = (1.7 * phi.diagonal(pixels)).mean((1, 2))
    t = q + (1.7 * pixels * phi.diagonal_derivative(pixels)).mean((1, 2))
    for found, exact in ((k.nngp, q), (k.ntk, t)):
        torch.testing.assert_close(found.diagonal(), exact, rtol=1e-14, atol=0)
        torch.testing.assert_close(found[:2, 4:].diagonal(), exact[:2], rtol=1e-14, atol=0)


def test_the_pooled_kernel_of_equal_images_is_the_same_in_every_place() -> None:
    x = torch.cat([random(2, 1, 6, 5), random(2, 1, 6, 5)[:1]])
    k = pooled(plain("relu", "same"), x)
    assert torch.equal(k.nngp.diagonal(), k.q1)
    assert torch.equal(k.nngp[0, 2], k.q1[0])
    torch.testing.assert_close(k.ntk[0, 2], k.ntk[0, 0], rtol=1e-14, atol=0)
    assert torch.equal(k.ntk, k.ntk.T)


def test_kernels_are_positive() -> None:
    x = random(8, 2, 6, 6)
    for read in (flattened, pooled):
        k = read(plain("relu", "same"), x)
        for part in (k.nngp, k.ntk):
            assert torch.linalg.eigvalsh(part).min() > -1e-12


@pytest.mark.parametrize("read", [flattened, pooled])
def test_parts_by_layer_add_up(read: Callable[..., Kernels]) -> None:
    x, layers = random(2, 1, 4, 4), residual("relu", "same")
    parts, whole = read(layers, x, by_layer=True), read(layers, x)
    assert parts.ntk.shape == (3, 2, 2)
    torch.testing.assert_close(parts.ntk.sum(0), whole.ntk)
    last = read([*layers, Convolution(1)], x, by_layer=True)
    torch.testing.assert_close(last.ntk[-1], whole.nngp)


def test_single_numbers_are_near_double_ones() -> None:
    x = random(4, 3, 8, 8)
    for read in (flattened, pooled):
        single, double = read(plain("relu", "same"), x.float()), read(plain("relu", "same"), x)
        assert single.ntk.dtype == torch.float32
        torch.testing.assert_close(single.ntk.double(), double.ntk, rtol=1e-5, atol=1e-6)


def test_black_images_have_a_kernel_of_their_biases() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    for name in ("relu", "tanh"):
        without = [Convolution(3, 2.0), Nonlinearity(activation(name))]
        assert not pooled(without, x).ntk.any()
        assert pooled([Convolution(3, 2.0, 0.1), *without[1:]], x).ntk > 0


def test_images_too_small_and_two_kinds_of_border() -> None:
    with pytest.raises(ValueError, match="2×5 pixels at a filter of 3×3"):
        pooled([Convolution(3, padding="valid")], random(1, 1, 2, 5))
    with pytest.raises(ValueError, match="some are circular"):
        wraps([Convolution(3), Branch([Convolution(3, padding="circular")], 1.0)])


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (5, 4), (4, 6)])
def test_displacements_and_their_mirrors_are_all_there_are(height: int, width: int, circular: bool) -> None:
    found = singles(height, width, circular)
    both = [*found, *(d.mirror for d in found if d.mirrored)]
    every = {((c - a) % height if circular else c - a, (d - b) % width if circular else d - b)
             for a, b, c, d in product(range(height), range(width), range(height), range(width))}  # fmt: skip
    keys = [(d.down % height, (d.across or 0) % width) if circular else d[:2] for d in both]
    assert len(keys) == len(set(keys))
    assert set(keys) == every
    rows = [*bands(height, width, circular)]
    assert len(rows) + sum(d.mirrored for d in rows) == (height if circular else 2 * height - 1)
    assert found[0] == Displacement(0, 0, False)


@pytest.mark.parametrize("circular", [False, True])
def test_a_sample_of_displacements_counts_every_pair_of_positions_on_average(circular: bool) -> None:
    height, width = 7, 6
    totals, shares = [], []
    for seed in range(200):
        sample = stratified(height, width, circular, share=0.15, halves=3, seed=seed)
        overlaps = [
            height * width if circular else (height - d.down) * (width - abs(d.across or 0)) for d in sample.drawn
        ]
        # A function of the displacement that is not its overlap, with as many of the mirrored.
        values = torch.tensor(
            [n * (1 + d.mirrored) / (1 + d.down**2 + (d.across or 0) ** 2) for d, n in zip(sample.drawn, overlaps)]
        )
        totals.append(torch.from_numpy(sample.weights) @ values.double())
        shares.append(sample.share)
    every = singles(height, width, circular)
    exact = sum((height * width if circular else (height - d.down) * (width - abs(d.across or 0))) * (1 + d.mirrored)
                / (1 + d.down**2 + (d.across or 0) ** 2) for d in every)  # fmt: skip
    seen = torch.stack(totals)
    assert ((seen.mean(0) - exact).abs() <= 3 * seen.std(0) / math.sqrt(200)).all()
    assert 0.08 < sum(shares) / 200 < 0.25


def test_all_displacements_are_a_sample_without_error() -> None:
    layers, x = plain("relu", "valid")[:2], random(2, 1, 4, 3)  # 2×1 positions, and so two displacements
    found, exact = sampled(layers, x, share=1.0), pooled(layers, x)
    assert found.share == 1.0
    for k in (found.kernels, *found.halves):
        torch.testing.assert_close(k.ntk, exact.ntk)
