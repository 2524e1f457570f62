"""Ranks share a survey: each batch counts once and in its order, and all ranks end with the numbers of one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_ranks import DATA, HALF, plain, ragged, sharded
from torch import Tensor, nn
from zoo import llama, token_ids

import layerwright as lw
from layerwright.core.errors import UserError
from layerwright.core.packet import Packet
from layerwright.core.ranks import Ranks, rounds
from layerwright.core.reduce import Group, Reducer
from layerwright.core.replay import Replay
from layerwright.core.sharded import is_sharded, whole
from layerwright.core.stack import Stack
from layerwright.core.weights import matrices

ROOT = Path(__file__).parents[2]


# Dealing batches out


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_batch_is_dealt_out_once_among_its_kind(size: int) -> None:
    kinds = "aabacbbbaaaacaabaaabbabab" * 3
    dealt = list(rounds(kinds, size))
    assert sorted(n for numbers in dealt for n in numbers) == list(range(len(kinds)))
    assert all(len(numbers) <= size and len({kinds[n] for n in numbers}) == 1 for numbers in dealt)


def test_batches_of_one_kind_keep_all_ranks_busy() -> None:
    assert list(rounds("aaaaa", 2)) == [[0, 1], [2, 3], [4]]


def together(size: int, in_step: bool, work: Callable[[Ranks], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `work` gives on every rank, each a thread; what one sends all receive."""
    meet, sent = threading.Barrier(size, timeout=20), {}
    found: dict[int, Any] = {}

    def exchange(self: Ranks, content: bytes, source: int) -> bytes:
        if self.rank == source:
            sent["content"] = content
        meet.wait()
        content = sent["content"]
        meet.wait()
        return content

    def run(rank: int) -> None:
        try:
            found[rank] = work(Ranks(rank, size, in_step))
        except UserError as error:
            found[rank] = str(error)

    monkeypatch.setattr(Ranks, "_sent", exchange)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def mapped(ranks: Ranks, batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """The shapes worked on here, and first sequences and rows as all ranks see them."""
    ran: list[Any] = []

    def work(group: list[Any], first: int) -> Packet:
        (inputs,) = group
        ran.append(tuple(inputs["input_ids"].shape))
        return Packet({"first": first}, {"ids": inputs["input_ids"]})

    return ran, [(p.data["first"], p.tensors["ids"]) for p in ranks.map([[batch] for batch in batches], work)]


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_results_come_in_the_order_of_the_data_on_every_rank(
    in_step: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = plain(3, 2, 3, 3, 1, 2, 3)
    for _, results in together(size, in_step, lambda ranks: mapped(ranks, batches), monkeypatch):
        assert [first for first, _ in results] == [0, 3, 5, 8, 11, 12, 14]
        assert all(torch.equal(ids, b["input_ids"]) for (_, ids), b in zip(results, batches, strict=True))


def test_in_step_all_ranks_run_batches_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = plain(3, 2, 3, 3, 1, 2, 3)
    first, second = together(2, True, lambda ranks: mapped(ranks, batches)[0], monkeypatch)
    assert first == second
    assert len(first) == 4  # two of two threes, one of two twos, and the single one twice


def test_ranks_with_replicas_share_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = plain(3, 2, 3, 3, 1)
    first, second = together(2, False, lambda ranks: mapped(ranks, batches)[0], monkeypatch)
    assert [n for n, _ in first] == [3, 3, 1]
    assert [n for n, _ in second] == [2, 3]


def test_in_step_the_longest_sequences_are_equally_long(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = ragged(2, 2, 2, 2, 2, 2)
    ran: dict[int, list[int]] = {}

    def work(ranks: Ranks) -> None:
        def note(group: list[Any], first: int) -> Packet:
            ran.setdefault(ranks.rank, []).append(int(group[0]["attention_mask"].sum(1).max()))
            return Packet({}, {})

        assert len(list(ranks.map([[batch] for batch in batches], note))) == len(batches)

    together(2, True, work, monkeypatch)
    assert ran[0] == ran[1]


# What ranks read


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1)])
def test_data_that_one_rank_cannot_read_stops_all(bad: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(rank: int) -> str:
        if rank in bad:
            raise UserError("no file a.txt")
        return "data"

    found = together(2, False, lambda ranks: ranks.same(lambda: read(ranks.rank), str), monkeypatch)
    assert all("no file a.txt" in message for message in found)
    assert all(("on rank" in found[rank]) == (rank not in bad) for rank in range(2))


def test_data_that_differs_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = together(3, False, lambda ranks: ranks.same(lambda: ranks.rank // 2, str), monkeypatch)
    assert len(set(found)) == 1
    assert "rank 2 got other data" in found[0]


def test_one_process_reads_alone() -> None:
    assert Ranks.of(llama()) == Ranks.of("demo") == Ranks()
    assert Ranks().same(lambda: 3, str) == 3


# Samples of tokens


@pytest.mark.parametrize("lengths", [[1024] * 40, [8192, 8192, 8192, 8192], [4096, 8192, 1024, 16384, 2048]])
def test_samples_that_were_thinned_apart_are_those_of_one_pass(lengths: list[int]) -> None:
    one, parts = Reducer(), Reducer()
    for k, n in enumerate(lengths):
        values = torch.randn(1, n, generator=torch.Generator().manual_seed(k))
        alone = Reducer()
        for reducer in (one, alone):
            reducer.add(("row",), values)
            reducer.close_batch(None)
        (group,) = alone.groups.values()
        parts.merge((("row",),), Group([group.sums], group.sample, group.stride, group.seen))
    assert (parts.finish().sample == one.finish().sample).all()
    assert (parts.finish().total == one.finish().total).all()


# FSDP2 on a single rank


@pytest.fixture
def group() -> None:
    """A group of this process alone; it stays, as there can be only one."""
    dist = torch.distributed
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def rows(survey: lw.Survey) -> Any:
    return survey.to_dict()["tables"]


@pytest.mark.usefixtures("group")
def test_a_sharded_model_gives_the_numbers_of_the_whole_one() -> None:
    expected, found = lw.survey(llama(), plain(2, 3)), lw.survey(sharded(llama()), plain(2, 3))
    assert_equal(rows(found), rows(expected))
    assert all(check.passed for check in found.checks)
    assert found.model["parameters"] == expected.model["parameters"]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("options", [{}, {"reshard_after_forward": False}, {"mp_policy": HALF}])
def test_a_sharded_model_is_left_as_it_was(options: dict[str, Any]) -> None:
    def steps(survey: bool) -> tuple[list[Tensor], list[Any]]:
        model = sharded(llama(), **options).train()
        model.lm_head.weight.requires_grad_(False)
        if survey:
            lw.survey(model, plain(2))
        state = [(is_sharded(p), p.requires_grad, p.grad, m.training) for m in model.modules() for p in m.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        dtypes = [None if p.grad is None else p.grad.dtype for p in model.parameters()]
        optimizer.step()
        return [whole(p) for p in model.parameters()], [state, dtypes]

    (expected, state), (found, after) = steps(False), steps(True)
    assert after == state
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("group")
def test_a_survey_that_breaks_off_leaves_a_sharded_model_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerwright.core.forward import BlockPass

    model = sharded(llama())

    def fail(*args: Any) -> None:
        raise UserError("in the middle of a forward pass")

    with monkeypatch.context() as patch:
        patch.setattr(BlockPass, "end", fail)
        with pytest.raises(UserError, match="in the middle"):
            lw.survey(model, plain(2))
    assert all(is_sharded(p) for p in model.parameters())
    loss = model(input_ids=token_ids(), labels=token_ids()).loss
    loss.backward()
    assert torch.equal(loss.detach(), llama()(input_ids=token_ids(), labels=token_ids()).loss.detach())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.usefixtures("group")
def test_no_block_is_gathered_to_read_the_output() -> None:
    model = sharded(llama())
    stack = Stack.find(model, plain(2)[0])
    replay = Replay(stack, plain(2)[0])
    ran: list[nn.Module] = []
    for block in stack.blocks:
        block.register_forward_pre_hook(lambda module, args: ran.append(module))
    state = replay.states[-1].detach().requires_grad_()
    logits = replay.tail(state).logits
    assert not ran
    torch.autograd.grad(logits.sum(), state)
    assert all(is_sharded(p) for p in model.parameters())
    replay.block(0, state.detach())
    assert ran == stack.blocks[:1]


@pytest.mark.usefixtures("group")
def test_sharded_weights_are_measured_whole() -> None:
    model, expected = sharded(llama()), llama()
    for block, plain_block in zip(model.model.layers, expected.model.layers, strict=True):
        for (name, matrix), (plain_name, plain_matrix) in zip(matrices(block), matrices(plain_block), strict=True):
            assert name == plain_name
            assert not is_sharded(matrix)
            assert torch.equal(matrix, plain_matrix)


@pytest.mark.usefixtures("group")
def test_a_block_that_does_not_gather_its_own_weights_is_named() -> None:
    from torch.distributed.fsdp import fully_shard

    model = llama()
    fully_shard(model.model.layers[0])
    with pytest.raises(UserError, match=r"block model\.layers\.1 is sharded only .* call fully_shard on each block"):
        Stack.find(fully_shard(model), plain(2)[0])


# Two processes


def run_on_two_ranks(script: Path, *args: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), *args], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample script left what it saw."""
    out = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(ROOT / "tests" / "sample_ranks.py", str(out))
    return out


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """All numbers of all tables, to the rounding of float32."""
    assert list(found) == list(expected)
    for name, table in expected.items():
        assert found[name]["columns"] == table["columns"]
        for row, other in zip(found[name]["rows"], table["rows"], strict=True):
            assert row == [pytest.approx(x, rel=2e-5, abs=2e-6) if isinstance(x, float) else x for x in other], name


def without_time(survey: dict[str, Any]) -> dict[str, Any]:
    return survey | {"settings": {k: v for k, v in survey["settings"].items() if k != "seconds"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_two_ranks_give_the_numbers_of_one_process(name: str, seen: list[dict[str, Any]]) -> None:
    expected = lw.survey(llama(), DATA[name][1], tier="deep").to_dict()
    found, other = (rank[name] for rank in seen)
    assert without_time(found) == without_time(other)
    assert_equal(found["tables"], expected["tables"])
    assert found["data"] == expected["data"]
    assert found["notes"] == expected["notes"]
    assert [check["name"] for check in found["checks"]] == [check["name"] for check in expected["checks"]]
    assert all(check["passed"] for check in found["checks"])


@pytest.mark.slow
def test_only_rank_0_writes(folder: Path, seen: list[dict[str, Any]]) -> None:
    for name in DATA:
        assert json.loads((folder / f"{name}-0" / "survey.json").read_text()) == seen[0][name]
        assert not (folder / f"{name}-1").exists()


@pytest.mark.slow
def test_training_goes_on_as_if_there_had_been_no_survey(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["unchanged"] == dict.fromkeys(("ddp", "fsdp", "half", "offload"), True)


@pytest.mark.slow
def test_self_tests_know_the_precision_that_a_sharded_model_computes_in(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["half"]["model"]["dtype"] == "float32"
    for check in seen[0]["half"]["checks"]:
        assert check["passed"]
        assert check["tolerance"] == 8 * torch.finfo(torch.bfloat16).eps


@pytest.mark.slow
def test_bad_input_stops_all_ranks_with_one_line_each(seen: list[dict[str, Any]]) -> None:
    expected = {
        "bad on every rank": ("embedding has 40 rows",) * 2,
        "bad on one": ("on rank 1: got token id 40", "got token id 40"),
        "other data": ("rank 1 got other data or settings",) * 2,
        "other seed": ("rank 1 got other data or settings",) * 2,
        "jobs": ("leave the jobs out",) * 2,
        "whole model only": ("call fully_shard on each block",) * 2,
        "after all": ("",) * 2,
    }
    for name, parts in expected.items():
        for rank, part in zip(seen, parts, strict=True):
            assert part in rank["refusals"][name]
            assert bool(part) == bool(rank["refusals"][name])


@pytest.mark.slow
def test_the_documented_script_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "survey_sharded.py").write_text(script)
    printed = run_on_two_ranks(tmp_path / "survey_sharded.py", cwd=tmp_path)
    assert printed.count("nonfinite") == 1  # the head of the table, from one rank
    assert (tmp_path / "report" / "survey.json").is_file()
