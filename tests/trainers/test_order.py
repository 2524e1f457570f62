"""An endless shuffled order."""

from __future__ import annotations

import pytest

from layerwright.trainers.order import Order


@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_every_epoch_has_all_items_in_an_order_of_its_own(items: int) -> None:
    order = Order(items, seed=3)
    epochs = [order.at(k * items, items) for k in range(4)]
    assert all(sorted(epoch) == list(range(items)) for epoch in epochs)
    if items == 100:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_place_is_the_same_however_it_is_reached() -> None:
    whole = Order(7, seed=0).at(0, 40)
    assert [x for k in range(0, 40, 5) for x in Order(7, seed=0).at(k, 5)] == whole
    backwards = Order(7, seed=0)
    assert [backwards.at(k, 1)[0] for k in reversed(range(40))] == whole[::-1]


def test_another_seed_is_another_order() -> None:
    assert Order(50, seed=0).at(0, 50) != Order(50, seed=1).at(0, 50)
