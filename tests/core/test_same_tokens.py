from __future__ import annotations

import pytest
import torch

from layerwright.core.errors import UserError
from layerwright.core.same_tokens import check_same_tokens


@pytest.mark.parametrize("other", [[0, 0, 1, 1], [0, 1, 1], [0, 0]])
def test_rows_of_other_tokens_cannot_be_held_against_each_other(other: list[int]) -> None:
    with pytest.raises(UserError, match=f"got 3 tokens of this model and {len(other)} of the other"):
        check_same_tokens(torch.tensor([0, 0, 1]), torch.tensor(other))
