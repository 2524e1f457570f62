"""The loss on the line between two models."""

from __future__ import annotations

import copy

import pytest
import torch
from naive import loss
from torch import Tensor, nn
from zoo import ConvNet, gpt2, llama, pixels, token_ids

from layerwright.core.errors import UserError
from layerwright.core.linear_path import linear_path


def two(make: type[nn.Module] | None = None) -> tuple[nn.Module, nn.Module]:
    """Two classifiers of one architecture."""
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    return made[0], made[1]


def data() -> dict[str, Tensor]:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(2))
    return {"input": x, "labels": torch.arange(9) % 3}


def between(a: nn.Module, b: nn.Module, t: float) -> nn.Module:
    model, mine, its = copy.deepcopy(a), a.state_dict(), b.state_dict()
    means = {n: (1 - t) * x + t * its[n] if x.is_floating_point() else x for n, x in mine.items()}
    model.load_state_dict(means)
    return model.eval()


def test_every_point_is_the_loss_of_the_mean_of_the_weights() -> None:
    a, b = two()
    found = linear_path(a, b, [data()], 5)
    assert found.positions.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    for t, value in zip(found.positions.tolist(), found.losses.tolist()):
        expected = nn.functional.cross_entropy(between(a, b, t)(data()["input"]), data()["labels"])
        assert value == pytest.approx(expected.item(), rel=1e-5)


def test_language_models_with_tied_weights() -> None:
    a, b, ids = gpt2(), gpt2(), token_ids(2, 6)
    with torch.no_grad():
        for p in b.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    found = linear_path(a, b, [{"input_ids": ids[:1]}, {"input_ids": ids[1:]}], 3)
    with torch.no_grad():
        expected = [loss(between(a, b, t)(input_ids=ids).logits, ids).item() for t in (0.0, 0.5, 1.0)]
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_there_and_back_is_the_same_way() -> None:
    a, b = two()
    there, back = linear_path(a, b, [data()], 5), linear_path(b, a, [data()], 5)
    torch.testing.assert_close(there.losses, back.losses.flip(0))
    assert there.barrier == pytest.approx(back.barrier, abs=1e-6)


def test_a_convex_loss_has_no_barrier_and_a_symmetry_makes_one() -> None:
    def linear(seed: int) -> nn.Module:
        model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Linear(5, 3))
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)))
        return model

    assert linear_path(linear(0), linear(1), [data()], 9).barrier <= 1e-6
    a, _ = two()
    opt = torch.optim.Adam(a.parameters(), 0.05)
    for _ in range(60):
        opt.zero_grad()
        nn.functional.cross_entropy(a(data()["input"]), data()["labels"]).backward()
        opt.step()
    b = copy.deepcopy(a)
    with torch.no_grad():  # the same function with other signs inside
        for layer in (b[0].weight, b[0].bias, b[2].weight):
            layer.neg_()
    found = linear_path(a, b, [data()], 9)
    assert float(found.losses[0]) == pytest.approx(float(found.losses[-1]), rel=1e-5)
    assert found.barrier > 0.3


def test_running_statistics_go_along() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = ConvNet(blocks=1)
    b = copy.deepcopy(a)
    b.layer1.bn1.running_mean += 1.0
    inputs = {"x": pixels(8), "labels": torch.tensor([0, 1, 2])}
    found = linear_path(a, b, [inputs], 3)
    for t, value in zip((0.0, 0.5, 1.0), found.losses.tolist()):
        expected = nn.functional.cross_entropy(between(a, b, t)(inputs["x"]), inputs["labels"])
        assert value == pytest.approx(expected.item(), rel=1e-5)


def test_models_are_left_as_they_were() -> None:
    a, b = two()
    a.train()
    before = [x.clone() for m in (a, b) for x in m.state_dict().values()]
    linear_path(a, b, [data()], 3)
    assert a.training
    after = [x for m in (a, b) for x in m.state_dict().values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after))


def test_bad_input() -> None:
    a, b = two()
    with pytest.raises(UserError, match="expected at least 2 points"):
        linear_path(a, b, [data()], 1)
    with pytest.raises(UserError, match="and 0 batches"):
        linear_path(a, b, [], 3)
    ids = {"input_ids": token_ids(2, 6)}
    with pytest.raises(UserError, match=r"0.mlp.down_proj.weight is \(16, 24\) in the first and \(16, 32\)"):
        linear_path(llama(), llama(intermediate_size=32), [ids])
    with pytest.raises(UserError, match="in the first and None in the second"):
        linear_path(llama(), llama(num_hidden_layers=2), [ids])
    with pytest.raises(UserError, match="no labels"):
        linear_path(a, b, [{"input": data()["input"]}])
