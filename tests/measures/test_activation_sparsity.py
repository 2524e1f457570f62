from __future__ import annotations

from typing import Any

import pytest
import torch
from inside import inside, padded
from naive import blocks_of
from torch import Tensor, nn
from zoo import gpt2, language_model, llama, token_ids

from layerwright.measures.activation_sparsity import activation_sparsity

MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": lambda: language_model("Bert", "BertForMaskedLM"),
    "gemma2": lambda: language_model("Gemma2", num_key_value_heads=2, head_dim=8),
}


def measured(model: nn.Module, inputs: Any, **options: Any) -> list[dict[float, Tensor]]:
    given = inside(model, inputs, "hidden")
    found = [activation_sparsity(**quantities, **options) for quantities in given.values()]
    return [{error: values for (error,), (values, _) in block.items()} for block in found]


def matrix(model: nn.Module, k: int) -> nn.Module:
    if hasattr(model, "bert"):
        return model.bert.encoder.layer[k].output.dense
    mlp = blocks_of(model)[k].mlp
    return mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj


def read_by(model: nn.Module, module: nn.Module, inputs: Any) -> Tensor:
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    with torch.no_grad():
        model.eval()(**inputs)
    handle.remove()
    return read[0]


def naive(a: Tensor, w: Tensor, error: float) -> float:
    """Token by token, neuron by neuron: of all thresholds the largest whose mean error is allowed."""
    each = a.abs() * w.norm(dim=0)
    best = 0.0
    for threshold in each.flatten().unique().tolist():
        errors = []
        for t in range(len(a)):
            tail = sum((a[t, i] * w[:, i] for i in range(w.shape[1]) if each[t, i] <= threshold), torch.zeros(len(w)))
            errors.append(float(tail.norm() / (w @ a[t]).norm()))
        if sum(errors) / len(errors) <= error:
            best = float((each <= threshold).double().mean())
    return best


@pytest.mark.parametrize("name", MODELS)
def test_by_loops_over_what_the_model_computes(name: str) -> None:
    """Twelve tokens of 24 or 64 neurons: between two levels lies about one neuron of one token."""
    model = MODELS[name]()
    inputs = {"input_ids": token_ids(1, 4)}
    found = measured(model, inputs, targets=(0.1, 0.4))[1]
    module = matrix(model, 1)
    weight = module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T
    hidden = read_by(model, module, inputs)[0]
    for error in (0.1, 0.4):
        assert found[error].item() == pytest.approx(naive(hidden, weight, error), abs=0.025), error


def relu_model() -> nn.Module:
    sizes = {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.2}
    return language_model("OPT", **sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_an_error_it_is_the_share_of_exact_zeros_of_relu(dtype: torch.dtype) -> None:
    model, inputs = relu_model().to(dtype), {"input_ids": token_ids(3, 12)}
    for k, found in enumerate(measured(model, inputs)):
        hidden = read_by(model, model.model.decoder.layers[k].fc2, inputs).view(3, 12, 24)
        expected = (hidden == 0).double().mean((1, 2))
        torch.testing.assert_close(found[0.0].double(), expected, rtol=1e-6, atol=1e-6)
        assert (expected > 0.2).all()


def test_smooth_activations_have_no_exact_zeros() -> None:
    assert all((found[0.0] == 0).all() for found in measured(llama(), {"input_ids": token_ids()}))


@pytest.mark.parametrize("name", MODELS)
def test_a_larger_error_leaves_out_more(name: str) -> None:
    targets = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
    for found in measured(MODELS[name](), {"input_ids": token_ids()}, targets=targets):
        shares = torch.stack([found[error] for error in (0.0, *targets)])
        assert (shares.diff(dim=0) >= 0).all()
        assert ((shares >= 0) & (shares <= 1)).all()


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left: bool) -> None:
    model, ids = llama(), token_ids(2, 12)
    together = measured(model, padded(ids, [12, 12], left))
    inputs = padded(token_ids(2, 20), [12, 20], left)
    inputs["input_ids"][0, 8:] = ids[0] if left else inputs["input_ids"][0, 8:]
    if not left:
        inputs["input_ids"][0, :12] = ids[0]
    for found, expected in zip(measured(model, inputs), together, strict=True):
        for error, shares in expected.items():
            assert found[error][0].item() == pytest.approx(shares[0].item(), abs=1e-5)


def test_neurons_may_change_places() -> None:
    torch.manual_seed(0)
    hidden, weight, order = torch.randn(1, 5, 30).relu(), torch.randn(8, 30), torch.randperm(30)
    there = torch.ones(1, 5, dtype=torch.bool)
    one, other = (
        activation_sparsity(hidden, there, weight),
        activation_sparsity(hidden[..., order], there, weight[:, order]),
    )
    for key, (shares, _) in one.items():
        torch.testing.assert_close(shares, other[key][0], rtol=1e-5, atol=1e-6)


def test_a_sequence_without_tokens_does_not_count() -> None:
    there = torch.tensor([[True, True], [False, False]])
    found = activation_sparsity(torch.ones(2, 2, 4), there, torch.eye(4))
    assert all(where.flatten().tolist() == [True, False] for _, where in found.values())
