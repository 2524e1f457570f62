"""What a model is asked to say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, gpt2, language_model, llama, t5, token_ids

from layerwright.core.errors import UserError
from layerwright.trainers.objective import Objective, cross_entropy

CAUSAL = ("llama", "qwen3", "gemma2", "gemma3", "gpt-neox", "mixtral", "phi", "opt", "bloom", "olmo2", "granite")


def refused(model: nn.Module, inputs: Any) -> str:
    with pytest.raises(UserError) as error:
        Objective.find(model.eval(), inputs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_learn_the_next_token(name: str) -> None:
    model, inputs, _ = ZOO[name]()
    assert Objective.find(model.eval(), inputs) == Objective("next token", 40)


def test_the_loss_is_that_of_transformers() -> None:
    model, ids = gpt2().eval(), token_ids()
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    objective = Objective.find(model, inputs)
    targets = objective.targets(inputs)
    with torch.no_grad():
        losses = cross_entropy(objective.logits(model, inputs), targets)
        expected = model(**inputs, labels=ids.masked_fill(mask == 0, -100)).loss
    assert losses.shape == ids.shape
    assert float(losses.sum() / (targets != -100).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_the_target_is_the_token_that_follows() -> None:
    objective = Objective("next token", 9)
    ids = torch.tensor([[5, 6, 7, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert objective.targets({"input_ids": ids}).tolist() == [[6, 7, 0, -100], [2, 3, 4, -100]]
    padded = objective.targets({"input_ids": ids, "attention_mask": mask})
    assert padded.tolist() == [[6, 7, -100, -100], [2, 3, 4, -100]]
    labels = torch.tensor([[-100, -100, 7, 0], [-100, 2, 3, 4]])
    assert objective.targets({"input_ids": ids, "labels": labels}).tolist() == [[-100, 7, 0, -100], [2, 3, 4, -100]]


def test_cross_entropy_of_a_uniform_answer() -> None:
    losses = cross_entropy(torch.zeros(2, 3, 8), torch.tensor([[1, 2, -100], [-100, 7, 0]]))
    torch.testing.assert_close(losses, math.log(8) * torch.tensor([[1.0, 1, 0], [0, 1, 1]]))


def test_masked_models_need_labels_for_tokens() -> None:
    model = language_model("Bert", "BertForMaskedLM")
    inputs = {"input_ids": token_ids()}
    assert "the model sees later tokens" in refused(model, inputs)
    labels = token_ids(seed=2).masked_fill(token_ids(seed=3) > 5, -100)
    objective = Objective.find(model, inputs | {"labels": labels})
    assert objective.kind == "token"
    assert objective.targets(inputs | {"labels": labels}) is labels


def test_an_encoder_and_decoder_is_no_causal_model() -> None:
    assert "the model sees later tokens" in refused(t5(), {"input_ids": token_ids()})


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_labels_of_sequences() -> None:
    model, x, labels = Classifier(), torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    inputs = {"x": x, "labels": labels}
    objective = Objective.find(model, inputs)
    assert objective == Objective("sequence", 4)
    losses = cross_entropy(objective.logits(model, inputs), objective.targets(inputs))
    torch.testing.assert_close(losses[:, 0], nn.functional.cross_entropy(model(x), labels, reduction="none"))
    assert "and the data labels of shape None" in refused(model, {"x": x})
    assert "and the data labels of shape (5, 2)" in refused(model, {"x": x, "labels": labels[:, None].expand(5, 2)})


def test_a_model_without_a_head_is_refused() -> None:
    said = refused(llama().model, {"input_ids": token_ids()})
    assert said.startswith("LlamaModel gives no logits; expected a model with a language-model head")
