from __future__ import annotations

import pytest
import torch
from inside import padded
from naive import stream
from zoo import llama, token_ids

from layerwright.measures.high_frequency import high_frequency


def test_by_loops_over_the_states_of_a_model() -> None:
    model, ids = llama(), token_ids(2, 12)
    inputs = padded(ids, [12, 7])
    states, _, _ = stream(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
    for state in states:
        found = high_frequency(state, inputs["attention_mask"].bool(), lengths=(5, 12))
        for b, n in enumerate([12, 7]):
            for length, tokens in ((0, n), (5, 5), (12, 12)):
                values, where = found[(length,)]
                if tokens > n:
                    assert not where[b].any()
                    continue
                x = state[b, :tokens].double()
                above = sum((row - x.mean(0)).square().sum() for row in x)
                assert values[b, 0].item() == pytest.approx(float((above / x.square().sum()).sqrt()), rel=1e-5)
                assert where[b].tolist() == [t < tokens for t in range(12)]


@pytest.mark.parametrize("make, expected", [(torch.ones, 0.0), (lambda *n: torch.eye(n[1])[None], (2 / 3) ** 0.5)])
def test_alike_tokens_have_none_and_orthogonal_ones_nearly_all(make: object, expected: float) -> None:
    state = make(1, 3, 3)  # type: ignore[operator]
    found = high_frequency(state, torch.ones(1, 3, dtype=torch.bool))
    assert found[(0,)][0].tolist() == [pytest.approx([expected] * 3)]
    assert not found[(16,)][1].any()


def test_scale_and_rotation_change_nothing_and_a_zero_stream_has_none() -> None:
    torch.manual_seed(0)
    state, real = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    before, after = (high_frequency(x, real)[(0,)][0] for x in (state, 7.0 * state @ turn))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)
    assert (high_frequency(torch.zeros(1, 6, 4), real[:1])[(0,)][0] == 0).all()
