from __future__ import annotations

import torch

from layerwright.claims import byte_models


def test_flops_of_a_step_are_six_for_each_weight_and_byte_and_those_of_attention() -> None:
    model, rows, length = byte_models.llama(16, 3, 12, seed=0), 2, 12
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name)
    attention = 3 * 2 * 2 * rows * length**2 * 16 * 3  # blocks, two products, two operations, forward and backward
    assert byte_models.step_flops(model, rows, length) == 6 * weights * rows * length + attention
    assert all(p.grad is None for p in model.parameters())


def test_training_lowers_the_loss_and_one_seed_gives_one_model() -> None:
    ids = torch.arange(600) % 7

    def trained() -> tuple[list[float], torch.nn.Module]:
        model = byte_models.llama(16, 2, 12, seed=0)
        return byte_models.fit(model, ids, 12, 4, 12, torch.Generator().manual_seed(1)), model

    (losses, one), (again, other) = trained(), trained()
    assert losses == again
    assert losses[-1] < losses[0] - 1
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_windows_are_pieces_of_the_text() -> None:
    ids = torch.arange(50)
    found = byte_models.windows(ids, 4, 6, torch.Generator().manual_seed(0))
    assert found.shape == (4, 6)
    assert (found - found[:, :1] == torch.arange(6)).all()
