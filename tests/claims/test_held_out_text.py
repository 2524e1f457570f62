from __future__ import annotations

import torch

from layerwright.claims import held_out_text
from layerwright.claims.recursive_start import practice_text


def test_seeds_share_no_window_until_all_are_used_up() -> None:
    windows = torch.arange(24)
    parts = [set(held_out_text.part(windows, seed, 6).tolist()) for seed in range(5)]
    assert set.union(*parts[:4]) == set(range(24))
    assert parts[4] == parts[0]


def test_the_bundled_model_is_read_in_float32_with_enough_text() -> None:
    model, _, windows = held_out_text.demo(48)
    assert model.dtype == torch.float32
    assert windows.shape[1] == 48
    assert len(windows) > 8 * 64  # windows and seeds of the largest claim


def test_text_to_train_on_is_not_the_held_out_text() -> None:
    held_out, practice = held_out_text.demo(48)[2], practice_text(48)
    assert practice.shape[1] == 48
    same = {tuple(w.tolist()) for w in held_out} & {tuple(w.tolist()) for w in practice}
    assert len(same) < 0.005 * len(practice)  # modules of the library repeat each other's docstrings
