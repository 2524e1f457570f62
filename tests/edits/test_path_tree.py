from __future__ import annotations

import random
from collections import Counter
from math import log, sqrt

import pytest

from layerwright.core.paths import Path
from layerwright.edits.path_tree import Budget, Found, Moves, _Node, random_paths, search_tree

SETTINGS = {"explore": 1.8, "length_cost": 3.0, "seed": 0}
LONG = Budget(200, 0)


def naive_moves(path: Path, skip: int, repeat: int, longest: int) -> set[Path]:
    """Every way to cut out a stretch, and every way to run one again, by building lists."""
    found = set()
    for start in range(len(path)):
        for stop in range(start + 1, len(path) + 1):
            size = stop - start
            if size <= skip and size < len(path):
                found.add(tuple(x for k, x in enumerate(path) if not start <= k < stop))
            if size <= repeat and len(path) + size <= longest:
                again = list(path)
                again[stop:stop] = path[start:stop]
                found.add(tuple(again))
    return found - {path}


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("repeat", [0, 1, 3])
def test_moves_are_all_skips_and_repeats(skip: int, repeat: int) -> None:
    draw = random.Random(0)
    for _ in range(30):
        path = tuple(draw.randrange(4) for _ in range(draw.randrange(1, 7)))
        moves = Moves(skip, repeat, 7)
        found = moves.of(path)
        assert set(found) == naive_moves(path, skip, repeat, 7)
        assert len(set(found)) == len(found)


def test_no_move_leaves_the_path_as_it_was_or_empties_it() -> None:
    """Published code has a repeat by zero passes: a child that is its parent."""
    assert Moves(4, 4, 8).of((3,)) == [(3, 3)]
    assert Moves(1, 0, 8).of((2, 2, 2)) == [(2, 2)]
    assert Moves(0, 0, 8).of((0, 1)) == []


def test_a_path_is_at_most_twice_as_long_as_the_tower_is_deep() -> None:
    """Published code forgets the depth in children and takes 28."""
    moves = Moves.on(3, 0, 4)
    assert moves.longest == 6
    found = search_tree((0, 1, 2), lambda p: float(len(p)), moves, LONG, **{**SETTINGS, "length_cost": 0.0})
    assert max(map(len, found.rewards)) == 6


def test_the_score_by_hand() -> None:
    parent = _Node((0, 1, 2, 3), 0, visits=7)
    child = _Node((0, 2, 3), 1, visits=3, total=2.0)
    expected = 2 / 3 + 1.8 * sqrt(log(7) / 3) - 3.0 * 3 / 4
    assert child.score(parent, 4, 1.8, 3.0) == pytest.approx(expected)


def test_the_whole_path_is_tried_first_and_each_path_once() -> None:
    asked: Counter[Path] = Counter()

    def reward(path: Path) -> float:
        asked[path] += 1
        return float(3 not in path)

    found = search_tree((0, 1, 2, 3), reward, Moves.on(4, 2, 1), LONG, **SETTINGS)
    assert next(iter(found.rewards)) == (0, 1, 2, 3)
    assert set(asked.values()) == {1}
    assert set(asked) == set(found.rewards) == set(found.moves)
    assert found.moves[(0, 1, 2, 3)] == 0


def test_a_search_that_is_rewarded_comes_nearer_than_luck() -> None:
    """Subsets of ten blocks are to be found, and a path is worth what it has in common with one."""
    draw, gained = random.Random(0), 0.0
    for seed in range(12):
        good = set(draw.sample(range(10), 4))

        def reward(path: Path) -> float:
            return len(set(path) & good) / len(set(path) | good)  # noqa: B023 - used at once

        moves = Moves.on(10, 2, 0)
        found = search_tree(tuple(range(10)), reward, moves, LONG, explore=0.3, length_cost=0.0, seed=seed)
        luck = random_paths(tuple(range(10)), reward, moves, LONG, seed)
        gained += reward(found.best) - reward(luck.best)
    assert gained / 12 > 0.05


def test_a_cost_of_length_leads_to_shorter_paths() -> None:
    def mean_length(cost: float) -> float:
        settings = {**SETTINGS, "length_cost": cost}
        found = search_tree(tuple(range(10)), lambda p: 0.5, Moves.on(10, 2, 1), LONG, **settings)
        return sum(map(len, found.rewards)) / len(found.rewards)

    assert mean_length(3.0) < mean_length(0.0)


def test_the_best_is_the_shortest_of_the_highest_reward_then_of_the_fewest_blocks() -> None:
    rewards = {(0, 1, 2): 0.0, (0, 1): 1.0, (1, 2): 1.0, (1, 1): 1.0, (2,): 0.9, (0, 1, 2, 2): 1.0}
    assert Found(rewards).best == (1, 1)
    assert Found({(0, 1, 2): 0.0, (0,): 0.0}).best == (0, 1, 2)


def test_a_search_ends_where_a_shorter_path_is_as_good() -> None:
    whole = tuple(range(6))
    found = search_tree(whole, lambda p: 1.0, Moves.on(6, 2, 1), Budget(200, 2), **SETTINGS)
    paths = list(found.rewards)
    assert len(paths[-1]) <= 4
    assert all(len(p) > 4 for p in paths[:-1])
    assert len(found.best) == len(paths[-1])


def test_a_search_ends_at_the_first_reward_where_the_whole_path_has_none() -> None:
    whole = tuple(range(6))
    found = search_tree(whole, lambda p: float(p.count(3) == 2), Moves.on(6, 2, 1), Budget(200, 2), **SETTINGS)
    assert list(found.rewards.values()).count(1.0) == 1
    assert found.best.count(3) == 2


def test_the_same_seed_searches_the_same() -> None:
    def run(seed: int) -> list[Path]:
        return list(
            search_tree(tuple(range(8)), lambda p: 0.0, Moves.on(8, 2, 1), LONG, **{**SETTINGS, "seed": seed}).rewards
        )

    assert run(3) == run(3)
    assert run(3) != run(4)


@pytest.mark.parametrize("depth", [1, 2])
def test_towers_with_few_paths_are_searched_to_the_end(depth: int) -> None:
    found = search_tree(tuple(range(depth)), lambda p: 0.0, Moves.on(depth, 2, 0), LONG, **SETTINGS)
    assert len(found.rewards) == 2**depth - 1


def test_simulations_that_lead_to_a_path_again_do_not_count() -> None:
    found = search_tree(tuple(range(12)), lambda p: 0.0, Moves.on(12, 2, 1), LONG, **SETTINGS)
    assert len(found.rewards) == 200


def test_as_many_random_paths_as_a_search_may_try() -> None:
    moves = Moves.on(12, 2, 1)
    null = random_paths(tuple(range(12)), lambda p: 1 / len(p), moves, LONG, 5)
    assert len(null.rewards) == 200
    assert next(iter(null.rewards)) == tuple(range(12))
    searched = search_tree(tuple(range(12)), lambda p: 1 / len(p), moves, LONG, **SETTINGS)
    assert set(null.rewards) != set(searched.rewards)
    assert abs(sum(null.moves.values()) - sum(searched.moves.values())) < 0.3 * sum(searched.moves.values())


def test_luck_ends_by_the_same_rule() -> None:
    """Else the paths of a search that ended early would be held against fewer random ones, just where it had luck."""
    whole, moves = tuple(range(6)), Moves.on(6, 2, 1)
    null = random_paths(whole, lambda p: 1.0, moves, Budget(200, 2), 0)
    assert len(list(null.rewards)[-1]) <= 4
    assert all(len(p) > 4 for p in list(null.rewards)[:-1])
    assert len(random_paths(whole, lambda p: 0.0, moves, Budget(200, 2), 0).rewards) == 200


def test_two_searchers_without_guidance_are_as_lucky() -> None:
    """A reward by lot, one path in thirty: a search and luck find one about as often under the same budget."""
    moves, hits = Moves.on(8, 2, 1), [0, 0]
    for seed in range(200):

        def reward(path: Path) -> float:
            return float(random.Random(f"{seed} {path}").random() < 1 / 30 and len(path) != 8)  # noqa: B023

        for n, found in enumerate(
            (
                search_tree(tuple(range(8)), reward, moves, Budget(20, 2), **SETTINGS),
                random_paths(tuple(range(8)), reward, moves, Budget(20, 2), seed),
            )
        ):
            hits[n] += max(found.rewards.values()) > 0
    assert 60 < min(hits) <= max(hits) < 120  # 1 − (29/30)^19 of 200 is 95
    assert abs(hits[0] - hits[1]) < 30


def test_where_there_are_no_more_paths_there_are_fewer_random_ones() -> None:
    null = random_paths((0, 1), lambda p: 0.0, Moves.on(2, 1, 0), LONG, 5)
    assert set(null.rewards) <= {(0, 1), (0,), (1,)}
