"""Sublayers are found by what they add, whatever they are called and however the block adds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import WIDTH, ZOO, vectors

from layerwright.core import sublayers
from layerwright.core.quiet import undisturbed
from layerwright.core.replay import Replay
from layerwright.core.stack import Stack
from layerwright.core.sublayers import Sublayer, _scale, explains, find_sublayers


class Block(nn.Module):
    """x + g f(x) + g w(x): `f` mixes tokens, `w` does not; their names say nothing."""

    def __init__(self, gate: float = 1.0, parallel: bool = False) -> None:
        super().__init__()
        self.f, self.w = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, WIDTH)
        self.gate, self.parallel = gate, parallel

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.gate * self.f(x)[0]
        return y + self.gate * self.w(x if self.parallel else y)


def parts_of(*blocks: nn.Module, dtype: torch.dtype = torch.float32) -> list[list[tuple[str, float, bool]]]:
    model = nn.Sequential(*blocks).to(dtype)
    stack = Stack.find(model, 3 * vectors(2, 6, WIDTH).to(dtype))
    return [[(s.path, round(s.scale, 5), s.parallel) for s in parts] for parts in stack.parts]


def test_sequential_and_parallel() -> None:
    assert parts_of(Block(), Block()) == [[("f", 1.0, False), ("w", 1.0, False)]] * 2


def test_gates_differ_from_block_to_block() -> None:
    found = parts_of(Block(0.25), Block(), Block(1.005), Block(0.25))
    assert [parts[0][1] for parts in found] == [0.25, 1.0, 1.005, 0.25]
    assert [parts[1][1] for parts in found] == [0.25, 1.0, 1.005, 0.25]


class Parallel(nn.Module):
    """x + f(n(x)) + w(n(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.f, self.w = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.n(x)
        return self.f(normed) + self.w(normed) + x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_parallel_parts_read_the_blocks_input(dtype: torch.dtype) -> None:
    assert parts_of(Parallel(), Parallel(), dtype=dtype) == [[("f", 1.0, True), ("w", 1.0, True)]] * 2


def test_a_single_branch_is_the_block_itself() -> None:
    class Single(Parallel):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(self.n(x))

    assert parts_of(Single(), Single()) == [[], []]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_post_normalised_block_is_no_sum(dtype: torch.dtype) -> None:
    class Post(Parallel):
        def forward(self, x: Tensor) -> Tensor:
            y = self.n(x + self.f(x))
            return self.n(y + self.w(y))

    assert parts_of(Post(), Post(), dtype=dtype) == [[], []]


def test_a_step_as_small_as_the_rounding_is_not_explained_by_what_happens_to_lie_near() -> None:
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(2, 12, WIDTH, generator=generator).bfloat16()
    step = current * torch.finfo(torch.bfloat16).eps * torch.randint(0, 2, current.shape, generator=generator)
    normed = nn.functional.rms_norm(current, (WIDTH,))
    assert _scale(current, current + step, step) == 1.0
    assert _scale(current, current + step, normed) is None


def test_a_dead_part_is_known_from_other_blocks_of_its_make() -> None:
    dead, dying = Block(), Block()
    nn.init.zeros_(dead.w.weight), nn.init.zeros_(dead.w.bias)
    for p in dying.parameters():
        nn.init.zeros_(p)
    assert parts_of(dead, dying, Block()) == [[("f", 1.0, False), ("w", 1.0, False)]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma2", "granite", "vit", "t5 decoder"])
def test_parts_add_up_to_the_block(name: str, dtype: torch.dtype) -> None:
    model, inputs, expected = ZOO[name]()
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    stack = Stack.find(model.to(dtype), inputs, expected.blocks)
    with undisturbed(stack.model), torch.no_grad():
        replay = Replay(stack, inputs)
        for k, parts in enumerate(stack.parts):
            added = outputs(stack.blocks[k], parts, lambda k=k: replay.block(k, replay.states[k]))
            added = torch.stack([s.scale * x.double() for s, x in zip(parts, added, strict=True)])
            before, after = replay.states[k].double(), replay.states[k + 1].double()
            # Each addition rounds a state that is no larger than all that went into it.
            rounding = len(parts) * torch.finfo(dtype).eps * (before.abs() + added.abs().sum(0))
            rounding += 1e-14 * added.abs().sum(0)  # a scale is a least-squares fit in float64
            assert ((after - before - added.sum(0)).abs() <= rounding).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "granite", "phi", "mamba", "vit"])
def test_what_is_left_out_at_a_glance_would_not_have_fitted(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, expected = ZOO[name]()
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    asked: list[list[str]] = []
    near = sublayers._Near.to

    def note(self: sublayers._Near, current: Tensor, target: Tensor) -> list[sublayers._Output]:
        left = {id(o) for o in near(self, current, target)}
        out = [o for o in self.outputs if id(o) not in left]
        asked.append([o.path for o in out])
        assert [o.path for o in out if _scale(current, target, o.value) is not None] == []
        return self.outputs

    stack = Stack.find(model.to(dtype), inputs, expected.blocks)
    monkeypatch.setattr(sublayers._Near, "to", note)
    assert Stack.find(model, inputs, expected.blocks).parts == stack.parts
    assert any(asked)


def outputs(block: nn.Module, parts: tuple[Sublayer, ...], run) -> list[Tensor]:
    seen: dict[str, list[Tensor]] = {s.path: [] for s in parts}
    handles = [
        block.get_submodule(path).register_forward_hook(
            lambda m, x, y, path=path: seen[path].append(y if isinstance(y, Tensor) else y[0])
        )
        for path in seen
    ]
    run()
    for handle in handles:
        handle.remove()
    return [seen[s.path][s.call] for s in parts]


def test_explains_refuses_wrong_parts() -> None:
    block, x = Block(0.5), vectors(2, 6, WIDTH)
    right = find_sublayers(block, lambda: block(x), x)
    assert explains(right, block, lambda: block(x), x)
    for wrong in (
        (),
        right[:1],
        (right[0], Sublayer("w", 0, "mlp", 0.4, False)),
        (Sublayer("w", 1, "mlp", 1.0, False),),
    ):
        assert not explains(wrong, block, lambda: block(x), x)
