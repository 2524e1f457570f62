"""An endless shuffled order, in which any place can be asked for without those before it."""

from __future__ import annotations

import torch

from layerwright.core.job import seed_of


class Order:
    """Epoch after epoch all items, each epoch in an order of its own.

    Nothing of it has to be kept for a run to go on: place k is the same whoever asks, and when.

    Example:
        >>> order = Order(3, seed=0)
        >>> first, second = order.at(0, 3), order.at(3, 3)
        >>> sorted(first) == sorted(second) == [0, 1, 2], order.at(2, 2) == [first[2], second[0]]
        (True, True)
    """

    def __init__(self, items: int, seed: int) -> None:
        """An order of so many items."""
        self._items, self._seed = items, seed
        self._epoch, self._order = -1, [0]

    def at(self, place: int, count: int) -> list[int]:
        """The items at `count` places from `place` on."""
        return [self._shuffled(k // self._items)[k % self._items] for k in range(place, place + count)]

    def _shuffled(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, f"epoch {epoch}"))
            self._epoch, self._order = epoch, torch.randperm(self._items, generator=generator).tolist()
        return self._order
