"""Look for a better path through the blocks for each sample: skip some, loop others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from layerwright.core.base_pass import Answers
from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size, rows
from layerwright.core.jobs import run_jobs
from layerwright.core.packet import Packet
from layerwright.core.paths import Path, Paths
from layerwright.core.plan import Plan
from layerwright.core.planner import Keep, planner
from layerwright.core.reduce import Key
from layerwright.core.stack import Stack
from layerwright.core.steps.choice import number, one_of, whole
from layerwright.core.table import table
from layerwright.edits.path_tree import Budget, Found, Moves, random_paths, search_tree

REWARDS = ("gold", "agreement", "confidence")
_KINDS = ("full", "found", "random")


@planner(paper="2507.07996", tier="deep")
def search_paths(
    paths: Paths, seed: int, jobs: str, keep: Keep, *, reward: str = "gold", samples: int = 32, simulations: int = 200,
    answer: int = 1, explore: float = 1.8, length_cost: float = 3.0, skip: int = 2, repeat: int = 1, shorter: int = 2,
) -> Plan:  # fmt: skip
    """Search a path through the blocks for each sample, by Monte-Carlo tree search, and take the one that serves most.

    A path lists the blocks that run. A move skips up to `skip` neighbouring entries, or runs up to `repeat` of them
    once more; a simulation follows the largest R̄ + c·√(ln N / n) − λ·|path| / L to an untried move. The reward is

        gold: 1 for the right answer,   agreement: 1 for the whole model's,   confidence: the answer's probability

    As the published search sees the right answer, what it finds for a sample is an upper bound: given as many tries,
    random paths find right answers too (pass@n). So three numbers stand side by side: the whole model, the paths found,
    and the best random paths under the same budget and the same rule when to end. Half of the samples are held out: the
    plan is the path with the highest mean reward over the searched half, judged on the other, beside the best of the
    random ones.

    Args:
        paths: the model on the data, one sample a sequence; its last labelled tokens are the answer.
        seed: of the search.
        jobs: where samples are searched, each a job of its own.
        keep: gets two tables, `search_paths` by sample and `search_paths_shared`.
        reward: `gold`, or without labels `agreement` or `confidence`.
        samples: how many sequences, half of them held out.
        simulations: of a search that try a new path, and as many random paths.
        answer: tokens of an answer.
        explore: c.
        length_cost: λ.
        skip: most neighbouring entries skipped by a move.
        repeat: most neighbouring entries repeated by a move.
        shorter: a search ends at a path that many blocks shorter with no less reward, or at the first reward where the
            whole path has none; 0 to go on to the end.

    Returns:
        a plan with one `order` step.

    Raises:
        UserError: fewer than two samples, an unknown reward, no labels for `gold`, or a number that cannot be used.

    Reference: arXiv 2507.07996; constants of published code.
    """
    one_of(reward, "reward", REWARDS)
    settings = {
        "reward": reward,
        "answer": whole(answer, "answer"),
        "explore": _at_least_zero(explore, "explore"),
        "length_cost": _at_least_zero(length_cost, "length_cost"),
        "moves": Moves.on(paths.depth, whole(skip, "skip", 0), whole(repeat, "repeat", 0)),
        "budget": Budget(whole(simulations, "simulations"), whole(shorter, "shorter", 0)),
    }
    found = search(paths, whole(samples, "samples", 2), settings, seed, jobs)
    keep("search_paths", found.table)
    keep("search_paths_shared", found.shared)
    return Plan(({"order": list(found.path)},), why=found.why())


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        path: the one with the highest mean reward over the searched samples.
        table: by sample and kind (`full`, `found`, `random`): path, length, reward, right, paths tried.
        shared: by kind, one path for all: length, and how many of the held-out samples it is right for.
        reward: what was rewarded.
        depth: L.
    """

    path: Path
    table: pd.DataFrame
    shared: pd.DataFrame
    reward: str
    depth: int

    def why(self) -> str:
        """The numbers in words."""
        known = bool(self.table["right"].notna().all())
        column, word = ("right", "right") if known else ("agrees", "as the whole model")
        rows = {kind: self.table[self.table["kind"] == kind] for kind in _KINDS}
        one = {kind: self.shared[self.shared["kind"] == kind].iloc[0] for kind in _KINDS}
        hits = {kind: f"{int(rows[kind][column].sum())} of {len(rows[kind])}" for kind in _KINDS}
        length = {kind: f"{rows[kind]['length'].mean():.1f} blocks" for kind in _KINDS}
        shared = {kind: int(one[kind][column]) for kind in _KINDS}
        note = " (an upper bound, as the search sees the right answer)" if self.reward == "gold" else ""
        tried = {kind: f"{rows[kind]['tried'].mean():.0f} tried" for kind in _KINDS}
        return (
            f"A path for each sample, {tried['found']} on average: {word} for {hits['found']}{note} with "
            f"{length['found']}; random paths, {tried['random']}: {hits['random']} with {length['random']}; the whole "
            f"model: {hits['full']} with {self.depth}. One path for all, {list(self.path)}: {word} for "
            f"{shared['found']} of {int(one['found']['held_out'])} held-out samples; the best random path, "
            f"{int(one['random']['length'])} blocks: {shared['random']}; the whole model: {shared['full']}."
        )


class Task(NamedTuple):
    """What a job needs: the model, the samples, and how to search."""

    stack: Stack
    samples: Sequence[Inputs]
    prefix: int
    settings: dict[str, Any]


def search(paths: Paths, samples: int, settings: dict[str, Any], seed: int, jobs: str = "serial") -> Search:
    """Search a path for every other sample, and hold the best of them against the samples between.

    Args:
        paths: the model on the data.
        samples: how many sequences, taken evenly.
        settings: as the options of `search_paths`, with `moves` and `budget`.
        seed: of the search.
        jobs: where samples are searched.

    Raises:
        UserError: fewer than two sequences, or no labels where they are rewarded.
    """
    chosen = _evenly(paths.batches, samples)
    searched, held_out = chosen[::2], chosen[1::2]
    task = Task(paths.stack, searched, paths.prefix, settings)
    _check_labels(task)
    packets = run_jobs(
        search_sample, [str(k) for k in range(len(searched))], task, engine=jobs, seed=seed,
        progress=lambda done, total: paths.progress("samples", done, total),
    )  # fmt: skip
    per_sample = [packet.data for packet in packets.values()]
    shared = _share(task, held_out, per_sample)
    path = tuple(map(int, shared[shared["kind"] == "found"]["path"].iloc[0].split()))
    return Search(path, _by_sample(per_sample), shared, settings["reward"], paths.depth)


def _check_labels(task: Task) -> None:
    """Before any work is done."""
    with Paths(task.stack, task.samples[:1], prefix=task.prefix) as one:
        if task.settings["reward"] == "gold" and not one.labelled:
            raise UserError(
                "the data holds no labels, and the reward `gold` is for right answers; give data with labels, or ask "
                "for the reward `agreement` or `confidence`"
            )


def search_sample(key: str, seed: int, task: Task) -> Packet:
    """The job: search a path for one sample, then try random ones under the same budget."""
    settings = task.settings
    with Paths(task.stack, [task.samples[int(key)]], prefix=task.prefix) as paths:
        full = paths.answers(paths.whole, settings["answer"])

        def reward(path: Path) -> float:
            return float(rewards(paths.answers(path, settings["answer"]), full, settings["reward"])[0])

        moves, budget = settings["moves"], settings["budget"]
        how = {name: settings[name] for name in ("explore", "length_cost")}
        found = search_tree(paths.whole, reward, moves, budget, **how, seed=seed)
        null = random_paths(paths.whole, reward, moves, budget, seed + 1)
        kinds = {"full": Found({paths.whole: found.rewards[paths.whole]}), "found": found, "random": null}
        data = {kind: _told(paths, f, full, settings["answer"]) for kind, f in kinds.items()}
    return Packet(data, {})


def rewards(given: Answers, full: Answers, kind: str) -> Tensor:
    """What answers are worth, `[sequences]`, in [0, 1].

    Args:
        given: the answers of a path.
        full: those of the whole model.
        kind: `gold`, `agreement`, or `confidence`, the geometric mean over an answer's tokens.

    Example:
        >>> import torch
        >>> one = Answers(torch.tensor([[3, 4]]), torch.tensor([[0.5, 0.5]]), torch.tensor([[3, 5]]))
        >>> [rewards(one, one, kind).item() for kind in REWARDS]
        [0.0, 1.0, 0.5]
    """
    if kind == "confidence":
        return given.confidence.log().mean(1).exp().nan_to_num(0.0)
    return (given.choice == (given.label if kind == "gold" else full.choice)).all(1).double()


def _told(paths: Paths, found: Found, full: Answers, answer: int) -> dict[str, Any]:
    """The best of what was found, as plain data."""
    best = found.best
    given = paths.answers(best, answer)
    known = paths.labelled
    return {
        "path": list(best),
        "tried": len(found.rewards),
        "reward": found.rewards[best],
        "right": float(rewards(given, full, "gold")[0]) if known else None,
        "agrees": float(rewards(given, full, "agreement")[0]),
    }


def _share(task: Task, held_out: Sequence[Inputs], per_sample: Sequence[Any]) -> pd.DataFrame:
    """One path for all: the best of those found, and of the random ones, by the searched samples."""
    kind_of_reward, n = task.settings["reward"], task.settings["answer"]
    chosen: dict[str, Path] = {}
    with Paths(task.stack, task.samples, prefix=task.prefix) as paths:
        full = paths.answers(paths.whole, n)
        for kind in _KINDS:
            # The whole path is a candidate too: nothing says that another serves all samples better.
            candidates = {paths.whole, *(tuple(data[kind]["path"]) for data in per_sample)}
            worth = {p: rewards(paths.answers(p, n), full, kind_of_reward).sum().item() for p in sorted(candidates)}
            chosen[kind] = min(worth, key=lambda p: (-worth[p], len(p), p))
    with Paths(task.stack, held_out, prefix=task.prefix) as paths:
        full = paths.answers(paths.whole, n)
        judged = [_judged(paths, path, full, task.settings) for path in chosen.values()]
    keys: list[Key] = [(kind, " ".join(map(str, path))) for kind, path in chosen.items()]
    return table(["kind", "path"], keys, _columns(judged), _meta("search_paths_shared", "One path for all samples"))


def _judged(paths: Paths, path: Path, full: Answers, settings: Mapping[str, Any]) -> dict[str, float]:
    """A path on held-out samples."""
    given = paths.answers(path, settings["answer"])
    return {
        "length": len(path),
        "reward": rewards(given, full, settings["reward"]).mean().item(),
        "right": rewards(given, full, "gold").sum().item() if paths.labelled else np.nan,
        "agrees": rewards(given, full, "agreement").sum().item(),
        "held_out": paths.sequences,
    }


def _columns(listed: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    whole_numbers = ("length", "tried", "held_out")
    names = [name for name in listed[0] if name != "path"]
    return {n: np.array([one[n] for one in listed], dtype=int if n in whole_numbers else float) for n in names}


def _by_sample(per_sample: Sequence[Any]) -> pd.DataFrame:
    listed = [(k, kind, data[kind]) for k, data in enumerate(per_sample) for kind in _KINDS]
    keys: list[Key] = [(k, kind, " ".join(map(str, one["path"]))) for k, kind, one in listed]
    columns = _columns([one | {"length": len(one["path"])} for *_, one in listed])
    return table(["sample", "kind", "path"], keys, columns, _meta("search_paths", "The best path of each sample"))


def _meta(name: str, title: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "unit": {"length": "block", "tried": "1", "reward": "1", "right": "sequence", "agrees": "sequence"},
        "definition": "full: the whole model; found: by tree search; random: best of as many random paths.",
    }


def _evenly(batches: Sequence[Inputs], samples: int) -> list[Inputs]:
    """So many sequences of the data, one a batch, taken evenly.

    Raises:
        UserError: there are fewer than two.
    """
    places = [(b, row) for b, inputs in enumerate(batches) for row in range(batch_size(inputs))]
    if len(places) < 2:
        raise UserError(f"got {len(places)} sequences; expected at least two, one to search on and one held out")
    count = min(samples, len(places))
    chosen = [places[k * len(places) // count] for k in range(count)]
    return [rows(batches[b], slice(row, row + 1)) for b, row in chosen]


def _at_least_zero(value: Any, what: str) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else number(value, what)
