"""Eigenvalues, traces and products of our curvature operators beside those of curvlinops and PyHessian.

    python benchmarks/curvature.py

Run it in an environment of its own (`pip install curvlinops-for-pytorch pyhessian` brings torchvision, which breaks
transformers beside a CPU torch). A peer that cannot be imported is left out. The model is a small classifier, trained a
little so that eigenvalues stand apart, in float64; PyHessian gives the Hessian of the whole model only, by power
iteration. Equality is what is asked for, not speed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerwright.core.curvature import GaussNewton, Hessian, Loss
from layerwright.core.stack import Stack
from layerwright.maths.lanczos import dense, largest, traces, with_error

TOP = 5
OURS = {"Hessian": Hessian, "Gauss-Newton": GaussNewton}
Numbers = dict[str, list[float]]


class Block(nn.Module):
    """x + W₂ tanh(W₁ x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One state to the next."""
        return x + self.outer(self.inner(x).tanh())


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Ten overlapping clusters and a network of 1,284 weights."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 10
    x = (torch.randn(10, 20)[labels] + torch.randn(200, 20)).double()
    model = nn.Sequential(nn.Linear(20, 14), Block(14), Block(14), nn.Linear(14, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model, x, labels


def numbers(product: Callable[[Tensor], Tensor], size: int) -> list[float]:
    """The largest eigenvalues and the trace, of the matrix itself."""
    matrix = dense(product, size)
    return [*torch.linalg.eigvalsh(matrix).flip(0)[:TOP].tolist(), float(matrix.trace())]


def main() -> None:
    warnings.simplefilter("ignore")  # of the peers
    model, x, labels = problem()
    inputs = {"input": x, "labels": labels}
    loss = Loss(Stack.find(model, inputs), [inputs])
    rows: dict[str, Numbers] = {}
    for name, kind in OURS.items():
        m = kind(loss)
        trace, error = with_error(traces(m.product, m.size, 64))
        rows[name] = {
            "ours, dense": numbers(m.product, m.size),
            "ours, Lanczos": [*largest(m.product, m.size, TOP).values.tolist(), float(trace)],
        }
        print(f"{name}: {m.size} weights; the trace from 64 probes has a standard error of {float(error):.3f}")
    compare_curvlinops(model, (x, labels), loss, rows)
    compare_pyhessian(model, x, labels, rows)
    header = ("matrix", "by", *(f"λ{k + 1}" for k in range(TOP)), "trace")
    print(*(" | ".join(line) for line in (header, tuple("---" for _ in header))), sep="\n")
    for name, found in rows.items():
        for by, values in found.items():
            print(" | ".join((name, by, *(f"{v:.6f}" for v in values))))


def compare_curvlinops(model: nn.Module, data: tuple[Tensor, Tensor], loss: Loss, rows: dict[str, Numbers]) -> None:
    try:
        from curvlinops import GGNLinearOperator, HessianLinearOperator
    except ImportError:
        return print("curvlinops is not installed")
    kinds = {"Hessian": HessianLinearOperator, "Gauss-Newton": GGNLinearOperator}
    groups = {"whole model": list(model.parameters()), "block 1": list(model[2].parameters())}
    for name, kind in kinds.items():
        for group, params in groups.items():
            mine = OURS[name](loss, None if group == "whole model" else loss.group(1))
            its = kind(model, nn.CrossEntropyLoss(), params, [data])
            v = torch.randn(mine.size, generator=torch.Generator().manual_seed(1)).double()
            expected = torch.as_tensor(its @ v)
            error = float((mine.product(v) - expected).abs().max() / expected.abs().max())
            print(f"{name} of the {group} times a vector: largest relative difference to curvlinops {error:.1e}")
            if group == "whole model":
                rows[name]["curvlinops, dense"] = numbers(lambda v, its=its: torch.as_tensor(its @ v), mine.size)


def compare_pyhessian(model: nn.Module, x: Tensor, labels: Tensor, rows: dict[str, Numbers]) -> None:
    try:
        from pyhessian import hessian
    except ImportError:
        return print("pyhessian is not installed")
    its = hessian(model, nn.CrossEntropyLoss(), data=(x, labels), cuda=False)
    values, _ = its.eigenvalues(maxIter=2000, tol=1e-9, top_n=TOP)
    probes = its.trace(maxIter=64, tol=0.0)
    rows["Hessian"]["PyHessian"] = [*values, sum(probes) / len(probes)]
    with contextlib.suppress(Exception):
        its.density(iter=8)
        return
    print("PyHessian's spectral density fails on this torch")


if __name__ == "__main__":
    main()
