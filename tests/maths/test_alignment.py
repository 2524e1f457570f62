"""CKA, Procrustes and cosines, against their definitions written out, and their invariances."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from torch import Tensor

from layerwright.maths.alignment import cosine_sums, kernel_alignment, procrustes

WIDTHS = {"narrow": (3, 5, 4), "wide": (60, 80, 50), "mixed": (3, 60, 90)}


def features(*widths: int, n: int = 20, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=generator)
    return [
        shared @ torch.randn(3, w, generator=generator) + torch.randn(n, w, generator=generator) + 2.0 for w in widths
    ]


def naive_cka(x: Tensor, y: Tensor) -> float:
    n = len(x)
    h = torch.eye(n).double() - 1 / n
    k, m = (h @ z.double() @ z.double().T @ h for z in (x, y))
    return float((k * m).sum() / (k.norm() * m.norm()))


def naive_debiased(x: Tensor, y: Tensor) -> float:
    """By the sums over distinct samples of the unbiased estimator."""

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        k, m = (z.double() @ z.double().T for z in (a, b))
        k, m = (z - z.diag().diag() for z in (k, m))
        ones = torch.ones(n).double()
        return (
            (k * m).sum()
            + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * ones @ k @ m @ ones
        ) / (n * (n - 3))

    return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())


@pytest.mark.parametrize("kind", WIDTHS)
def test_all_pairs_are_the_definition(kind: str) -> None:
    xs, ys = features(*WIDTHS[kind]), features(*WIDTHS[kind][:2], seed=1)
    found = kernel_alignment(xs, ys)
    for s, x in enumerate(xs):
        for t, y in enumerate(ys):
            assert found.cka[s, t] == pytest.approx(naive_cka(x, y), rel=1e-10)
            assert found.debiased[s, t] == pytest.approx(naive_debiased(x, y), rel=1e-8)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)).double()).Q


@pytest.mark.parametrize("kind", WIDTHS)
def test_rotations_scales_and_shifts_change_nothing(kind: str) -> None:
    xs = [x.double() for x in features(*WIDTHS[kind])]
    moved = [3.0 * x @ rotation(x.shape[1]) - 5.0 for x in xs]
    for one, other in zip(kernel_alignment(xs, xs), kernel_alignment(xs, moved)):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.diag(), torch.ones(3).double())
    assert [float(procrustes(x, y)) for x, y in zip(xs, moved)] == pytest.approx([0.0] * 3, abs=1e-6)


def test_the_bias_of_few_samples_is_taken_off() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(20, 200, generator=generator) for _ in range(40)] for _ in range(2)]
    found = kernel_alignment(*pairs)
    assert found.cka.min() > 0.8
    error = found.debiased.std() / 40  # 1600 pairs of 40 and 40 features
    assert abs(found.debiased.mean()) < 4 * error


@pytest.mark.parametrize("widths", [(4, 6), (6, 4), (30, 50), (5, 5)])
def test_the_distance_is_that_of_the_best_rotation(widths: tuple[int, int]) -> None:
    x, y = (z.double() for z in features(*widths))
    wide = max(widths)
    padded = [torch.nn.functional.pad(z, (0, wide - z.shape[1])).numpy() for z in (x, y)]
    _, _, disparity = scipy_procrustes(*padded)  # 1 − ‖Xᵀ Y‖_*², as it scales Y as well
    expected = (2 - 2 * (1 - disparity) ** 0.5) ** 0.5
    assert float(procrustes(x, y)) == pytest.approx(expected, rel=1e-7)
    assert float(procrustes(y, x)) == pytest.approx(expected, rel=1e-7)


def test_features_that_do_not_vary_or_are_not_finite_are_not_known() -> None:
    x = features(3)[0]
    constant, broken = torch.full_like(x, 1 / 3), x.index_fill(0, torch.tensor(2), torch.nan)
    found = kernel_alignment([x], [x, constant, broken])
    for values in found:
        assert values.isnan().tolist() == [[False, True, True]]
    assert procrustes(x, constant).isnan()
    assert procrustes(broken, x).isnan()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples_are_defined(n: int) -> None:
    x, y = features(3, 4, n=n)
    found = kernel_alignment([x], [y])
    assert found.debiased.isnan().all()
    assert bool(found.cka.isnan()) == (n == 1)
    assert bool(procrustes(x, y).isnan()) == (n == 1)


def test_cosines_are_summed_over_groups() -> None:
    x, y = features(4, 4)
    y[3] = 0.0
    x[5, 2] = torch.nan
    groups = torch.arange(20) // 7
    total, count = cosine_sums(x, y, groups)
    expected = [torch.cosine_similarity(a.double(), b.double(), dim=0) for a, b in zip(x, y)]
    for group in range(3):
        kept = [c for k, c in enumerate(expected) if k // 7 == group and k not in (3, 5)]
        assert count[group] == len(kept)
        assert total[group] == pytest.approx(float(sum(kept)))
