"""What every transform and every chain of them promises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.optim import AuON, HybridAuON, Muon, MuonWithAuxAdamW
from ferrostep.optim.base import arithmetic_dtype
from tests.contract.rules.registry import Entry, every
from tests.contract.training import bits, normal
from tests.contract.transforms.registry import (
    CHAINS,
    DIVIDE_BY_COSH,
    LINKS,
    ORTHOGONALIZE,
    Chain,
    Stepped,
    every_chain,
    rule,
    step,
)

SHAPES = ((5, 3), (3, 5), (1, 7), (7, 1), (16, 24), (200, 170), (1, 1), (0, 4))
DTYPES = ((torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16), (torch.float16, torch.float16))


def gradients(shapes: Any = SHAPES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [normal(shape, dtype, i) for i, shape in enumerate(shapes)]


def assert_same(actual: Stepped, expected: list[Tensor]) -> None:
    for one, other in zip(actual.tensors(), expected, strict=True):
        assert bits(one) == bits(other)


def test_every_transform_is_in_the_registry() -> None:
    makers = {name for name in vars(_core.Transform) if not name.startswith("_")}
    tested = {link.make.func.__name__ for link in LINKS}  # type: ignore[attr-defined] # partials
    assert tested == makers
    assert {link for chain in CHAINS for link in chain.links} == set(LINKS)


@every_chain
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_equals_the_reference(chain: Chain, dtype: torch.dtype, state_dtype: torch.dtype | None, isa: str) -> None:
    """In 16 bits, too: the gradients are exact in bfloat16, so that the momentum is not rounded."""
    grads = [g.bfloat16().to(dtype) for g in gradients()]
    relative = {torch.float64: 1e-9, torch.float32: 2e-6, torch.float16: 2e-3}[dtype]
    for g, p in zip(grads, step(chain, grads, state_dtype=state_dtype).params, strict=True):
        expected = chain.oracle(g) if g.numel() else g.double()
        size = expected.abs().max().item() if g.numel() else 0.0
        torch.testing.assert_close(p.double(), expected, rtol=relative, atol=relative * size)


@every_chain
@pytest.mark.parametrize(
    "deficient",
    [
        lambda x: x[:, :1] @ x[:1],
        lambda x: x * (torch.arange(len(x)) != 1)[:, None],
        lambda x: x * (torch.arange(x.shape[1]) == 2),
    ],
    ids=["rank 1", "a row of zeros", "one column"],
)
def test_takes_directions_that_lack_rank(chain: Chain, deficient: Callable[[Tensor], Tensor]) -> None:
    grads = [deficient(g) for g in gradients(((5, 3), (16, 24), (24, 16)))]
    for g, p in zip(grads, step(chain, grads).params, strict=True):
        torch.testing.assert_close(p, chain.oracle(g), rtol=1e-8, atol=1e-8 * p.abs().max().item())


@every_chain
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_a_zero_direction_moves_nothing(chain: Chain, dtype: torch.dtype, state_dtype: torch.dtype | None) -> None:
    grads = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    for tensor in step(chain, grads, state_dtype=state_dtype, steps=2).tensors():
        assert torch.equal(tensor, torch.zeros_like(tensor))


@every_chain
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spreads_over_its_matrix_only(chain: Chain, value: float) -> None:
    grads = gradients(dtype=torch.float32)
    before = step(chain, grads).params
    grads[5][-1, -1] = value
    after = step(chain, grads).params
    for i, (p, q) in enumerate(zip(after, before, strict=True)):
        if i != 5:
            assert bits(p) == bits(q)
    assert after[5].isnan().all() if chain.spreads else not after[5][-1, -1].isfinite()


@every_chain
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_a_matrix_alone_is_the_same_among_others(
    chain: Chain, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    grads = gradients(dtype=dtype)
    alone = [tensor for g in grads for tensor in step(chain, [g], state_dtype=state_dtype, steps=3).tensors()]
    assert_same(step(chain, grads, state_dtype=state_dtype, steps=3), alone)


@every_chain
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(chain: Chain, threads: int) -> None:
    grads = gradients((*SHAPES, (300, 331)), torch.float32)
    assert_same(step(chain, grads, steps=2, threads=threads), step(chain, grads, steps=2, threads=1).tensors())


@every_chain
@pytest.mark.parametrize(
    ("shape", "layout", "matrices"),
    [
        ((8, 4, 3, 3), {"layout": "flatten"}, lambda x: [x.flatten(1)]),
        ((3, 8, 4), {"layout": "batch"}, list),
        ((2, 3, 4, 5), {"layout": "batch"}, lambda x: list(x.flatten(0, 1))),
        ((12, 5), {"num_heads": 3}, lambda x: list(x.split(4))),
        ((12, 5), {"split_sizes": [6, 2, 4]}, lambda x: list(x.split([6, 2, 4]))),
    ],
    ids=str,
)
def test_a_layout_is_its_matrices_by_themselves(
    chain: Chain, shape: tuple[int, ...], layout: dict[str, Any], matrices: Callable[[Tensor], list[Tensor]]
) -> None:
    g = normal(shape, torch.float32, 0)
    as_one = step(chain, [g], steps=3, **layout)
    apart = step(chain, matrices(g), steps=3)
    for one, many in zip(as_one.tensors(), [apart.params, *apart.states.values()], strict=True):
        assert bits(one) == b"".join(bits(part) for part in many)


@every_chain
@pytest.mark.parametrize("scale", [2.0**-6, 2.0**40])
def test_grows_with_the_direction_by_its_degree(chain: Chain, scale: float) -> None:
    grads = gradients()
    larger = step(chain, [g * scale for g in grads]).params
    for p, q in zip(step(chain, grads).params, larger, strict=True):
        expected = p * scale**chain.degree
        size = expected.abs().max().item() if p.numel() else 0.0
        torch.testing.assert_close(q, expected, rtol=1e-6, atol=1e-6 * size)


@every_chain
def test_matches_adamws_step_by_the_norm_of_what_it_makes(chain: Chain) -> None:
    grads = gradients()
    matched = step(chain, grads, adjust_lr="match_rms_adamw").params
    for p, q in zip(step(chain, grads).params, matched, strict=True):
        rows, cols = p.shape
        factor = 0.2 * (rows * cols / chain.squared_norm(rows, cols)) ** 0.5 if p.numel() else 1.0
        torch.testing.assert_close(q, p * factor, rtol=1e-14, atol=0)


@every_chain
@pytest.mark.parametrize(("dtype", "state_dtype"), DTYPES, ids=str)
def test_the_stages_by_themselves_are_the_step(
    chain: Chain, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    arguments = {"lr": 0.5, "momentum": 0.75, "nesterov": True, "weight_decay": 0.125, "cautious_weight_decay": True}
    grads = gradients(dtype=dtype)
    whole = step(chain, grads, state_dtype=state_dtype, steps=2, **arguments)
    before = step(chain, grads, state_dtype=state_dtype, **arguments)
    params, momenta = before.params, before.states["momentum_buffer"]
    direction, only_moves, along_move = rule(chain, **arguments).stages()

    def run(stage: Any, params: list[Tensor], grads: list[Tensor], **states: list[Tensor]) -> None:
        batch = _core.Batch()
        batch.add(stage, params, grads, states)
        batch.run(2)

    kept = [x.clone() for x in (*params, *momenta)]
    directions = [torch.empty_like(m) for m in momenta]
    run(direction, params, grads, direction=directions, momentum_buffer=momenta)
    assert all(map(torch.equal, kept, (*params, *momenta)))
    moves = [torch.full_like(u, torch.nan, dtype=arithmetic_dtype(u)) for u in directions]
    run(only_moves, moves, directions, **{**before.states, "momentum_buffer": directions})
    run(along_move, params, grads, momentum_buffer=momenta, move=moves)
    relative = 0.0 if state_dtype is None else torch.finfo(state_dtype).eps
    for one, other in zip(before.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=max(relative, 1e-6), atol=1e-7)


@every_chain
def test_states_are_named_by_their_transforms(chain: Chain) -> None:
    assert rule(chain).states == ["momentum_buffer", *chain.states]


@every(lambda entry: issubclass(entry.optimizer, (Muon, AuON, HybridAuON, MuonWithAuxAdamW)))
def test_optimizers_keep_the_states_of_their_chains(entry: Entry) -> None:
    optimizer: Any = entry.build([torch.nn.Parameter(torch.ones(entry.shapes[0]))])
    plain = optimizer.rule(optimizer.param_groups[0])
    assert plain.native().states == list(plain.states)


def test_transforms_that_write_come_first() -> None:
    with pytest.raises(ValueError, match="Invalid transforms: transform 1 writes elements, expected before"):
        step(Chain("misplaced", (DIVIDE_BY_COSH, ORTHOGONALIZE)), [])


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "the rule has 2 states, got 1"),
        ([torch.zeros(2, 3)], "second_momentum_buffer of parameter 0 in group 0 has shape [2, 3], expected [2, 1]"),
        (
            [torch.zeros(2, 1).double()],
            "second_momentum_buffer of parameter 0 in group 0 has dtype float64, expected float32",
        ),
    ],
    ids=["none", "shape", "dtype"],
)
def test_states_of_transforms_are_checked(states: list[Tensor], message: str) -> None:
    chain = next(chain for chain in CHAINS if chain.states)
    memory = [torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3)]
    named = {
        "momentum_buffer": memory[2:],
        **{name: [state] for name, state in zip(chain.states, states, strict=False)},
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        _core.Batch().add(rule(chain), memory[:1], memory[1:2], named, group=0)
