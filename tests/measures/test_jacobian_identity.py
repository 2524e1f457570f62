from __future__ import annotations

import pytest
import torch
from naive import blocks_of, column, tables
from torch import Tensor, nn
from zoo import WIDTH, gpt2, token_ids, vectors

from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.measures.jacobian_identity import jacobian_identity


def test_hand_values() -> None:
    v = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 2.0]]])
    assert jacobian_identity(v, 1.5 * v).tolist() == [0.5, 0.5]
    assert jacobian_identity(v, v).tolist() == [0.0, 0.0]
    assert jacobian_identity(v, torch.zeros_like(v)).tolist() == [1.0, 1.0]


class Scales(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_a_multiple_of_the_identity_is_known_without_error() -> None:
    """J = c I gives |c − 1| whatever the probe."""
    model = nn.Sequential(*(Scales(c) for c in (1.0, 3.0, 0.5, 0.0)))
    frame = tables(model, vectors(6, WIDTH), "jacobian_identity")["jacobian_identity"]
    torch.testing.assert_close(column(frame), torch.tensor([0.0, 2.0, 0.5, 1.0]).double(), rtol=1e-6, atol=1e-6)
    assert (frame["std"] < 1e-6).all()


def test_against_the_whole_jacobian_with_the_error_of_the_probes() -> None:
    """‖J − I‖_F / √n by automatic differentiation of every output; the estimate is a mean over independent probes."""
    model, inputs = gpt2().double(), {"input_ids": token_ids(3, 5)}
    exact = []
    with undisturbed(model):
        replay = Replay(Stack.find(model, inputs), inputs)
        for k in range(3):
            jacobian = torch.autograd.functional.jacobian(lambda x, k=k: replay.block(k, x), replay.states[k].detach())
            # A sequence acts on itself alone: the blocks of the Jacobian between sequences are zero.
            own = torch.stack([jacobian[b, :, :, b].reshape(5 * WIDTH, 5 * WIDTH) for b in range(3)])
            distance = own - torch.eye(5 * WIDTH, dtype=torch.float64)
            exact.append(torch.linalg.matrix_norm(distance).div((5 * WIDTH) ** 0.5).mean())
    seeds = 60
    runs = torch.stack(
        [column(tables(model, inputs, "jacobian_identity", seed=seed)["jacobian_identity"]) for seed in range(seeds)]
    )
    error = runs.std(0) / seeds**0.5
    found, expected = runs.mean(0), torch.stack(exact)
    # The mean of a root lies below the root of the mean by about half the squared spread of one probe.
    bias = 3 * runs.var(0) / (2 * expected)
    assert ((found - expected).abs() < 4 * error + bias).all()
    assert (error < 0.02 * expected).all()


def test_a_dead_block_is_the_identity() -> None:
    model = gpt2()
    for part in (blocks_of(model)[1].attn.c_proj, blocks_of(model)[1].mlp.c_proj):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    found = column(tables(model, {"input_ids": token_ids()}, "jacobian_identity")["jacobian_identity"])
    assert found[1] == 0.0
    assert (found[[0, 2]] > 0.01).all()


def test_the_length_of_the_probe_does_not_matter() -> None:
    v, w = vectors(2, 3, WIDTH), vectors(3, 3, WIDTH)[1:]
    torch.testing.assert_close(jacobian_identity(100 * v, 100 * w), jacobian_identity(v, w))


def test_a_probe_of_nothing_is_defined() -> None:
    zero = torch.zeros(1, 2, 3)
    assert jacobian_identity(zero, zero).item() == pytest.approx(0.0)
