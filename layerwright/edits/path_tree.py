"""Monte-Carlo tree search over orders of blocks: skip a stretch, or loop it. Knows no model, only rewards of paths."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log, sqrt

from layerwright.core.paths import Path

# How often a random child is followed in place of the most promising one, and how long a path may get, over L.
_RANDOM, _LONGEST = 0.1, 2
# A search ends after that many simulations for each path it may try, however few paths they led to.
_IDLE = 10


@dataclass(frozen=True)
class Moves:
    """What may be done to a path: skip up to `skip` neighbouring entries, or run up to `repeat` of them once more.

    Example:
        >>> Moves(skip=2, repeat=1, longest=4).of((0, 1, 2))
        [(1, 2), (0, 2), (0, 1), (2,), (0,), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 2, 2)]
    """

    skip: int
    repeat: int
    longest: int

    @classmethod
    def on(cls, depth: int, skip: int, repeat: int) -> Moves:
        """The moves on a tower of so many blocks: a path is at most twice as long."""
        return cls(skip, repeat, _LONGEST * depth)

    def of(self, path: Path) -> list[Path]:
        """All paths that are one move away; none is empty, or the path itself."""
        found: dict[Path, None] = {}
        for k in range(1, min(self.skip, len(path) - 1) + 1):
            found |= {path[:s] + path[s + k :]: None for s in range(len(path) - k + 1)}
        for k in range(1, min(self.repeat, self.longest - len(path)) + 1):
            found |= {path[: s + k] + path[s:]: None for s in range(len(path) - k + 1)}
        found.pop(path, None)
        return list(found)


@dataclass
class Found:
    """What was tried: the reward of each path, and how many moves from the whole one it was.

    The whole path comes first.
    """

    rewards: dict[Path, float] = field(default_factory=dict)
    moves: dict[Path, int] = field(default_factory=dict)

    @property
    def best(self) -> Path:
        """The path of the highest reward, of those the shortest, then the one of fewest blocks.

        The whole path, where nothing was rewarded.
        """
        top = max(self.rewards.values())
        if top <= 0:
            return next(iter(self.rewards))
        return min((p for p, r in self.rewards.items() if r == top), key=lambda p: (len(p), len(set(p)), p))


@dataclass
class _Node:
    path: Path
    moves: int
    children: list[_Node] = field(default_factory=list)
    untried: list[Path] | None = None
    visits: int = 0
    total: float = 0.0

    def score(self, parent: _Node, depth: int, explore: float, length_cost: float) -> float:
        """Mean reward, plus a bonus for what was hardly tried, minus the cost of the path's length."""
        bonus = explore * sqrt(log(parent.visits) / self.visits)
        return self.total / self.visits + bonus - length_cost * len(self.path) / depth


@dataclass(frozen=True)
class Budget:
    """How long to look, and when to be content: the same for a search and for the luck that it is held against.

    Attributes:
        paths: the whole one among them.
        shorter: end at a path that many blocks shorter whose reward is no less than that of the whole path, or at the
            first reward where the whole path has none; 0 to go on to the end.
    """

    paths: int
    shorter: int

    def spent(self, found: Found) -> bool:
        """Whether to end after the path that was tried last."""
        if len(found.rewards) >= self.paths:
            return True
        (whole, base), (path, reward) = next(iter(found.rewards.items())), next(reversed(found.rewards.items()))
        content = reward > 0 and reward >= base and (base <= 0 or len(path) <= len(whole) - self.shorter)
        return self.shorter > 0 and content


def search_tree(
    whole: Path,
    reward: Callable[[Path], float],
    moves: Moves,
    budget: Budget,
    *,
    explore: float,
    length_cost: float,
    seed: int,
) -> Found:
    """Look for a path of high reward, starting from the whole one.

    A simulation goes down the tree to a node with an untried move, by the largest

        R̄ + c·√(ln N / n) − λ·|path| / L

    (R̄ the mean reward below a child, n and N the visits of it and of its parent; one time in ten it takes a random
    child), tries one such move, and adds the reward to all nodes above. The reward of a path is asked for once.

    Args:
        whole: the unchanged path, which is tried first.
        reward: of a path, at least 0.
        moves: from path to path.
        budget: how many paths, and when to end before.
        explore: c.
        length_cost: λ.
        seed: of what is random.

    Example:
        >>> found = search_tree((0, 1, 2), lambda p: float(2 in p), Moves(1, 0, 3), Budget(7, 2), explore=1.8,
        ...                     length_cost=3.0, seed=0)
        >>> found.best
        (2,)
    """
    draw, found, root = random.Random(seed), Found(), _Node(whole, 0)
    # Different moves may lead to one path: such a simulation adds to the tree, and costs nothing.
    for _ in range(_IDLE * budget.paths):
        trail = _descend(root, moves, draw, lambda n, parent: n.score(parent, len(whole), explore, length_cost))
        path, count = trail[-1].path, trail[-1].moves
        if new := path not in found.rewards:
            found.rewards[path], found.moves[path] = reward(path), count
        for node in trail:
            node.visits += 1
            node.total += found.rewards[path]
        if new and budget.spent(found):
            break
    return found


def _descend(root: _Node, moves: Moves, draw: random.Random, score: Callable[[_Node, _Node], float]) -> list[_Node]:
    """The nodes from the root to the one whose path is tried next, which is new unless there are no more moves."""
    trail = [root]
    while (node := trail[-1]).visits:
        if untried := _untried(node, moves, draw):
            node.children.append(_Node(untried.pop(), node.moves + 1))
            trail.append(node.children[-1])
        elif not node.children:
            break
        elif draw.random() < _RANDOM:
            trail.append(draw.choice(node.children))
        else:
            trail.append(max(node.children, key=lambda child: score(child, node)))
    return trail


def _untried(node: _Node, moves: Moves, draw: random.Random) -> list[Path]:
    if node.untried is None:
        node.untried = moves.of(node.path)
        draw.shuffle(node.untried)
    return node.untried


def random_paths(whole: Path, reward: Callable[[Path], float], moves: Moves, budget: Budget, seed: int) -> Found:
    """Random paths under the budget of a search: what luck alone finds.

    Each is as many random moves from the whole path as one that a search tries which is told of no reward.

    Args:
        whole: the unchanged path, which is tried first.
        reward: of a path, at least 0.
        moves: from path to path.
        budget: how many paths, and when to end before.
        seed: of what is random.
    """
    blind = search_tree(
        whole, lambda path: 0.0, moves, replace(budget, shorter=0), explore=1.0, length_cost=0.0, seed=seed
    )
    draw, found = random.Random(seed), Found()
    for count in blind.moves.values():
        # A path that was drawn before is drawn again, and after some tries a move further away; a small tower may have
        # no others in the end.
        tries = (_walk(whole, count + n // 50, moves, draw) for n in range(200))
        path = next((p for p in tries if p not in found.rewards), None)
        if path is not None:
            found.rewards[path], found.moves[path] = reward(path), count
            if budget.spent(found):
                break
    return found


def _walk(path: Path, count: int, moves: Moves, draw: random.Random) -> Path:
    for _ in range(count):
        path = draw.choice(moves.of(path) or [path])
    return path
