from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import layerwright as lw
from layerwright.theories.towers import Act, Conv, Dense, Flatten, Pool, Residual, tower


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(2).standard_normal((12, 4))
    return x, np.sin(x[:, 0]) + x[:, 1]


def test_two_orthogonal_inputs_by_hand() -> None:
    found = lw.predict("wide_network", {"inputs": np.eye(2)}, depth=1)
    off = 1 / (2 * math.pi)
    assert found["output_variance"] == pytest.approx(0.5)
    assert found["output_correlation"] == pytest.approx(1 / math.pi)
    assert found["last_layer_share"] == pytest.approx(0.5)
    assert found["largest_eigenvalue"] == pytest.approx((1 + off) / 2)
    assert found["condition_number"] == pytest.approx((1 + off) / (1 - off))
    assert found["largest_learning_rate"] == pytest.approx(4 / (1 + off))
    assert "left_out_error" not in set(found.table["quantity"])


def test_steps_above_the_largest_learning_rate_diverge(data: tuple[np.ndarray, np.ndarray]) -> None:
    """Gradient descent on Σ (f − y)² / 2N of a wide network itself."""
    found = lw.predict("wide_network", {"inputs": data[0]}, depth=1)
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    ends = []
    for share in (0.8, 1.2):
        net = tower([Dense(2.0), Act("relu"), Dense()]).network(4, 4096, seed=1).double()
        losses = []
        for _ in range(25):
            loss = (net(x).squeeze() - y).square().sum() / (2 * len(y))
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= share * found["largest_learning_rate"] * p.grad  # type: ignore[operator]
            losses.append(float(loss.detach()))
        ends.append(max(losses[-5:]) / losses[0])
    assert ends[0] < 0.2
    assert ends[1] > 5


def test_what_is_learned_is_kernel_regression(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    found = lw.predict("wide_network", {"inputs": x, "targets": y}, activation="erf", depth=2, bias_variance=0.1)
    layer = Dense(2.0, 0.1)
    k = tower([layer, Act("erf"), layer, Act("erf"), Dense()]).kernel(torch.from_numpy(x))
    y = y - y.mean()
    for kernel, name in ((k.ntk.numpy(), "left_out_error"), (k.nngp.numpy(), "left_out_error_last_layer")):
        errors = []
        for i in range(12):
            rest = np.arange(12) != i
            errors.append(y[i] - kernel[i, rest] @ np.linalg.solve(kernel[np.ix_(rest, rest)], y[rest]))
        assert found[name] == pytest.approx(np.square(errors).mean() / np.square(y).mean())
    t = k.ntk.numpy()
    assert found["alignment"] == pytest.approx(y @ t @ y / (np.linalg.norm(t) * (y @ y)))
    f, rate = np.zeros(12), found["largest_learning_rate"] / 200
    for _ in range(round(found["time_to_learn"] / rate)):
        f -= rate * t @ (f - y) / 12
    assert np.square(f - y).sum() / np.square(y).sum() == pytest.approx(0.01, rel=0.05)
    assert found["steps_to_learn"] == pytest.approx(found["time_to_learn"] * found["largest_eigenvalue"])


def test_residual_branches_keep_inputs_apart(data: tuple[np.ndarray, np.ndarray]) -> None:
    plain, residual = (lw.predict("wide_network", {"inputs": data[0]}, depth=20, residual=r) for r in (None, 0.2))
    assert plain["output_correlation"] > residual["output_correlation"] + 0.3
    branch = [Dense(2.0), *[Residual([Act("relu"), Dense(2.0)], 0.2)] * 20, Dense()]
    assert residual["output_variance"] == pytest.approx(float(tower(branch).kernel(data[0]).q1.mean()))  # type: ignore[arg-type]


def test_the_picture_shows_learning_or_else_the_spectrum(data: tuple[np.ndarray, np.ndarray]) -> None:
    learning, spectrum = lw.predict("wide_network").picture, lw.predict("wide_network", {"inputs": data[0]}).picture
    assert learning is not None
    assert spectrum is not None
    errors = [error for _, error in learning.series["training"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.9 > 0.01 > errors[-1] >= 0
    assert len(spectrum.series["T/N"]) == 12
    assert lw.predict("wide_network").svg().startswith("<svg")


def test_duplicates_and_zero_vectors_are_said(data: tuple[np.ndarray, np.ndarray]) -> None:
    x = np.concatenate([data[0], data[0][:2], np.zeros((1, 4))])
    y = np.concatenate([data[1], data[1][:2], [0.0]])
    found = lw.predict("wide_network", {"inputs": x, "targets": y})
    assert found["condition_number"] == math.inf
    assert math.isfinite(found["left_out_error"])
    assert found.notes[:2] == [
        "1 of 15 inputs are zero vectors", "2 of 15 inputs stand there more than once: the kernels are singular",
    ]  # fmt: skip
    assert [note.split(":")[0] for note in found.notes[2:]] == ["T is singular", "K is singular"]


def test_norms_for_which_there_is_no_table_are_said() -> None:
    x = np.random.default_rng(0).standard_normal((70, 3))
    same = x / np.linalg.norm(x, axis=1, keepdims=True)
    options = {"bias_variance": 0.1}
    notes = [lw.predict("wide_network", {"inputs": given}, **options).notes for given in (x, same)]
    assert ["no table" in " ".join(said) for said in notes] == [True, False]


def test_one_sample_has_a_kernel() -> None:
    found = lw.predict("wide_network", {"inputs": np.array([[3, 4]])}, depth=2)
    assert math.isnan(found["output_correlation"])
    assert found["condition_number"] == 1
    assert found["largest_eigenvalue"] == pytest.approx(3 * 12.5)
    assert "left_out_error" not in set(lw.predict("wide_network", samples=1).table["quantity"])


def test_whole_numbers_are_read(data: tuple[np.ndarray, np.ndarray]) -> None:
    x = np.round(3 * data[0])
    whole, real = (lw.predict("wide_network", {"inputs": given}) for given in (x.astype(np.int32), x))
    assert whole.table.equals(real.table)


NAN, ONES = np.array([[math.nan, 1.0]]), np.ones((2, 2))


@pytest.mark.parametrize("readout", ["pool", "flatten"])
def test_images_are_read_by_convolutions(readout: str) -> None:
    x = np.random.default_rng(4).standard_normal((6, 2, 5, 4))
    given = {"inputs": np.concatenate([x, x[:1]]), "targets": np.arange(7.0)}
    found = lw.predict("wide_network", given, depth=2, bias_variance=0.1, filter_size=2, readout=readout)
    layer, last = Conv(2, 2.0, 0.1), Pool() if readout == "pool" else Flatten()
    k = tower([layer, Act("relu"), layer, Act("relu"), last, Dense()]).kernel(torch.from_numpy(given["inputs"]))
    assert found["output_variance"] == pytest.approx(float(k.q1.mean()))
    assert found["largest_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(k.ntk)[-1]) / 7)
    assert found["alignment"] > 0
    assert found.notes[0].startswith("1 of 7 inputs stand there more than once")


def test_residual_blocks_of_convolutions() -> None:
    x = np.random.default_rng(5).standard_normal((4, 1, 3, 3))
    found = lw.predict("wide_network", {"inputs": x}, depth=2, residual=0.5)
    words = [Conv(3, 2.0), *[Residual([Act("relu"), Conv(3, 2.0)], 0.5)] * 2, Pool(), Dense()]
    assert found["output_variance"] == pytest.approx(float(tower(words).kernel(torch.from_numpy(x)).q1.mean()))


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({"inputs": NAN}, {}, "got inputs that are NaN"), ({"inputs": np.ones(3)}, {}, r"got inputs \(3,\)"),
        ({"inputs": np.ones((2, 5, 5))}, {}, r"got inputs \(2, 5, 5\); expected rows .*, or images, \[N, C, H, W\]"),
        ({"inputs": np.ones((2, 1, 5, 5))}, {"readout": "max"}, "got readout='max'; expected one of pool, flatten"),
        ({"inputs": np.ones((2, 1, 5, 5))}, {"filter_size": 0}, "got size=0"), ({}, {"readout": []}, "got readout"),
        ({"inputs": np.ones((0, 3))}, {}, r"got inputs \(0, 3\)"),
        ({"inputs": np.zeros((3, 2))}, {}, "kernel of zeros"),
        ({"inputs": np.array([["a"]])}, {}, "expected real numbers"), ({"targets": ONES}, {}, "targets without inputs"),
        ({"inputs": ONES, "targets": np.ones(3)}, {}, r"got targets \(3, 1\) for 2 inputs"),
        ({"inputs": ONES, "targets": np.ones(2)}, {}, "the same for all inputs"),
        ({"inputs": ONES[:1], "targets": np.ones(1)}, {}, "targets of one input"),
        ({"inputs": ONES, "targets": NAN[0]}, {}, "got targets that are NaN"),
        ({}, {"activation": "step"}, "no tangent kernel"), ({}, {"activation": "rellu"}, "nearest: 'relu'"),
        ({}, {"depth": 0}, "depth=0"), ({}, {"samples": 1.5}, "samples=1.5"), ({}, {"dimension": 0}, "dimension=0"),
        ({}, {"weight_variance": -1.0}, "weight_variance=-1.0"), ({}, {"residual": math.inf}, "scale=inf"),
        ({}, {"weight_variance": 1e9, "depth": 60}, "not finite|overflow"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(arrays: dict, options: dict, words: str) -> None:
    with pytest.raises(lw.UserError, match=words) as raised:
        lw.predict("wide_network", arrays, **options)
    assert "\n" not in str(raised.value)
