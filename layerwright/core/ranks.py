"""The processes that survey one model together: each takes its share of the batches, and all get the whole result.

A model wrapped with DDP is whole on every rank, so that any split will do. Of a model sharded with FSDP2 every call of
a block gathers its weights from all ranks: all must make the same calls in the same order. How many calls a batch takes
follows from its shape, so that batches of one kind are run at the same time, one on each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from layerwright.core.errors import UserError
from layerwright.core.inputs import Inputs, batch_size
from layerwright.core.packet import Packet
from layerwright.core.quiet import unwrap
from layerwright.core.sharded import device_of, is_sharded, reshard, sharded_modules
from layerwright.core.trace import tensors

T = TypeVar("T")

# Batches of one kind are looked for among so many times the number of ranks: results wait for those before them.
_AHEAD = 4


@dataclass(frozen=True)
class Ranks:
    """The processes that hold a model between them; one where it is an ordinary model.

    Attributes:
        rank: number of this process.
        size: number of processes.
        in_step: whether a call of the model is a call of all of them.
        device: where tensors that are sent lie.
    """

    rank: int = 0
    size: int = 1
    in_step: bool = False
    device: str = "cpu"

    @classmethod
    def of(cls, model: Any) -> Ranks:
        """Those that share a live model.

        Raises:
            UserError: the model is distributed in another way than over all ranks by DDP or FSDP2.
        """
        dist = torch.distributed
        if not isinstance(model, nn.Module) or not dist.is_available() or not dist.is_initialized():
            return cls()
        size = dist.get_world_size()
        reshard(model)
        if size == 1 or not _is_distributed(model, size):
            return cls()
        device = next((str(device_of(p)) for p in model.parameters()), "cpu")
        # A DDP module that is no outer wrapper is called as it is, and may send its buffers.
        return cls(dist.get_rank(), size, bool(sharded_modules(model) or _replicas(unwrap(model))), device)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, packet: Packet, ranks: int | None = None) -> Iterator[Packet]:
        """What each of the first `ranks` processes (or of all) hands in, on every rank."""
        for source in range(self.size if ranks is None else ranks):
            content = self._sent(packet.to_bytes() if source == self.rank else b"", source)
            yield Packet.from_bytes(content)

    def _sent(self, content: bytes, source: int) -> bytes:
        """The bytes that one process has."""
        length = torch.tensor(len(content), device=self.device)
        torch.distributed.broadcast(length, source)
        buffer = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if source == self.rank:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        torch.distributed.broadcast(buffer, source)
        return buffer.cpu().numpy().tobytes()

    def same(self, read: Callable[[], T], told: Callable[[T], str]) -> T:
        """What every process reads for itself; `told` says in words or a digest what it is.

        Raises:
            UserError: on all of them, where one cannot read, or finds something else than the others.
        """
        if self.size == 1:
            return read()
        found, mine = None, None
        try:
            found = read()
            answer = {"told": told(found)}
        except UserError as error:
            mine, answer = error, {"error": str(error)}
        answers = [packet.data for packet in self.gather(Packet(answer, {}))]
        for rank, other in enumerate(answers):
            if "error" in other:
                raise mine or UserError(f"on rank {rank}: {other['error']}")
            if other != answers[0]:
                raise UserError(
                    f"rank {rank} got other data or settings than rank 0; expected the same on every rank, as the "
                    "survey splits the data itself; load it without a DistributedSampler and without shuffling"
                )
        assert found is not None
        return found

    def map(self, groups: Sequence[list[Inputs]], work: Callable[[list[Inputs], int], Packet]) -> Iterator[Packet]:
        """What comes of every group of batches, in their order, on every rank.

        Args:
            groups: the same on every rank.
            work: called with a group and the number of its first sequence, on one of the ranks (or on several, where
                they must keep in step, and counted once).
        """
        firsts = list(accumulate((sum(map(batch_size, group)) for group in groups), initial=0))
        kinds = [tuple(map(_kind, group)) if self.in_step else None for group in groups]
        waiting: dict[int, Packet] = {}
        done = 0
        for numbers in rounds(kinds, self.size):
            packet = Packet({}, {})
            if self.in_step or self.rank < len(numbers):
                n = numbers[min(self.rank, len(numbers) - 1)]
                packet = work(groups[n], firsts[n])
            waiting.update(zip(numbers, self.gather(packet, len(numbers)), strict=True))
            while done in waiting:
                yield waiting.pop(done)
                done += 1


def rounds(kinds: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Numbers of groups of batches to run at the same time: of one kind, at most `size`, each number once.

    Example:
        >>> list(rounds("abaab", 2))
        [[0, 2], [3], [1, 4]]
    """
    for start in range(0, len(kinds), _AHEAD * size):
        alike: dict[Hashable, list[int]] = {}
        for n, kind in enumerate(kinds[start : start + _AHEAD * size], start):
            alike.setdefault(kind, []).append(n)
        for numbers in alike.values():
            yield from (numbers[k : k + size] for k in range(0, len(numbers), size))


def _kind(inputs: Inputs) -> Hashable:
    """What the number of calls follows from: names and shapes, and how many real tokens a sequence has at most."""
    if not isinstance(inputs, Mapping):
        return tuple(x.shape for x in tensors(inputs))
    named = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    masks = [x for name, x in named.items() if name.endswith("attention_mask") and x.ndim == 2]
    return tuple((name, x.shape) for name, x in named.items()), tuple(int(x.bool().sum(1).max()) for x in masks)


def _replicas(model: nn.Module) -> list[nn.parallel.DistributedDataParallel]:
    return [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]


def _is_distributed(model: nn.Module, size: int) -> bool:
    """Whether the model is spread over ranks; then it must be over all of them, and data-parallel only."""
    groups = [m.process_group for m in _replicas(model)]
    sharded: list[Any] = [p for p in model.parameters() if is_sharded(p)]
    if (
        any(group.size() != size for group in groups)
        or any(p.device_mesh.size() != size for p in sharded)
        or not all(placement.is_replicate() for p in sharded for placement in p.placements[:-1])
        or (sharded and not sharded_modules(model))
        or any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    ):
        raise UserError(
            f"the model is not spread over the {size} ranks as a survey expects, by DistributedDataParallel or "
            "fully_shard (FSDP2) over all of them and nothing else; wrap it so, or survey it in one process"
        )
    return bool(groups or sharded)
