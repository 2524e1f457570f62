"""The Gauss-Newton matrix of the cross entropy, against derivatives taken by autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev, vmap

from layerwright.maths.gauss_newton import gauss_newton_values, softmax_curvature, softmax_root

DRAW = torch.Generator().manual_seed(0)


def test_the_factor_is_the_second_derivative_whatever_the_label() -> None:
    logits = torch.randn(5, dtype=torch.float64, generator=DRAW)
    root = softmax_root(logits)
    for label in range(5):
        expected = hessian(lambda z, c=label: nn.functional.cross_entropy(z, torch.tensor(c)), logits)
        torch.testing.assert_close(root @ root.T, expected)
        columns = [softmax_curvature(logits, t) for t in torch.eye(5).double()]
        torch.testing.assert_close(torch.stack(columns, 1), expected)


def test_the_root_of_a_certain_answer_is_finite() -> None:
    root = softmax_root(torch.tensor([0.0, 1000.0]))
    assert (root == 0).all()


class Net(nn.Module):
    """tanh between two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).tanh())


def dense(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """(1/N) Σ JᵀSJ by the weight of that name, from Jacobians."""
    own = {n: p.detach() for n, p in net.named_parameters()}

    def logits(weight: Tensor, row: Tensor) -> Tensor:
        return functional_call(net, {**own, name: weight}, (row,))

    jacobians = vmap(jacrev(logits), (None, 0))(own[name], x).flatten(2)
    roots = softmax_root(net(x).detach())
    return torch.einsum("ncp,nck,ndk,ndq->pq", jacobians, roots, roots, jacobians) / len(x)


def test_last_layer_with_its_bias() -> None:
    net, x = Net().double(), torch.randn(6, 3, dtype=torch.float64, generator=DRAW)
    hidden = net.inner(x).tanh().detach()
    found = gauss_newton_values(hidden, softmax_root(net(x).detach()).mT)
    expected = torch.linalg.eigvalsh(dense(net, "outer.weight", x)).flip(0)
    torch.testing.assert_close(found[:12], expected, rtol=1e-8, atol=1e-12)
    assert found[12:].max() < 1e-12  # 18 columns, 12 weights
    with_bias = torch.cat([hidden, torch.ones(6, 1)], 1)
    whole = gauss_newton_values(with_bias, softmax_root(net(x).detach()).mT)
    assert float(whole.sum()) > float(found.sum())


def test_an_inner_layer_from_what_comes_back_to_it() -> None:
    net, x = Net().double(), torch.randn(2, 3, dtype=torch.float64, generator=DRAW)
    roots = softmax_root(net(x).detach())

    def after(given: Tensor) -> Tensor:
        return net.outer(given.tanh())

    back = vmap(jacrev(after))(net.inner(x).detach())  # [N, C, o]
    found = gauss_newton_values(x, torch.einsum("nck,nco->nko", roots, back))
    expected = torch.linalg.eigvalsh(dense(net, "inner.weight", x)).flip(0)
    torch.testing.assert_close(found, expected[:6], rtol=1e-8, atol=1e-12)  # 6 columns, 12 weights
    assert expected[6:].abs().max() < 1e-12


def test_scale_and_order_of_samples() -> None:
    x, deltas = torch.randn(4, 5, generator=DRAW), torch.randn(4, 3, 2, generator=DRAW)
    base = gauss_newton_values(x, deltas)
    torch.testing.assert_close(gauss_newton_values(2.0 * x, deltas), 4.0 * base)
    torch.testing.assert_close(gauss_newton_values(x.flip(0), deltas.flip(0)), base)
    torch.testing.assert_close(
        gauss_newton_values(x.repeat(2, 1), deltas.repeat(2, 1, 1))[:12], base, atol=1e-7, rtol=0
    )
