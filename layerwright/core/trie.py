"""A trie of states: the work that paths with the same start share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor


class Trie:
    """States by the path that led to them; beyond a limit of bytes those least recently used are given up.

    Example:
        >>> import torch
        >>> trie = Trie(2**20)
        >>> trie.put(trie.nodes((0, 1))[-1], torch.ones(2))
        >>> length, state = trie.deepest(trie.nodes((0, 1, 2)))
        >>> length, state.tolist()
        (2, [1.0, 1.0])
    """

    def __init__(self, limit: int) -> None:
        """Hold at most so many bytes of states."""
        self.limit, self.held = limit, 0
        self._edges: dict[tuple[int, int], int] = {}
        self._states: OrderedDict[int, Tensor] = OrderedDict()

    def nodes(self, path: Iterable[int]) -> list[int]:
        """The node of each start of a path, the empty one first."""
        nodes = [0]
        for k in path:
            nodes.append(self._edges.setdefault((nodes[-1], k), len(self._edges) + 1))
        return nodes

    def deepest(self, nodes: Sequence[int]) -> tuple[int, Tensor | None]:
        """Length of the longest start of a path whose state is held, and the state; None where there is none."""
        found = [n for n, node in enumerate(nodes) if node in self._states]
        # The shorter a start, the more paths share it: it is given up last.
        for n in reversed(found):
            self._states.move_to_end(nodes[n])
        return (found[-1], self._states[nodes[found[-1]]]) if found else (0, None)

    def get(self, node: int) -> Tensor | None:
        """The state of a node, where it is held."""
        return self._states.get(node)

    def put(self, node: int, state: Tensor) -> None:
        """Hold the state of a node, if it fits at all."""
        size = state.numel() * state.element_size()
        if node in self._states or size > self.limit:
            return
        self._states[node] = state
        self.held += size
        while self.held > self.limit:
            _, given_up = self._states.popitem(last=False)
            self.held -= given_up.numel() * given_up.element_size()
