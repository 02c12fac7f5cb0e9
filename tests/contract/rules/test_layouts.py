"""Memory layouts: whatever the strides, the numbers are those of the contiguous tensor, and gaps stay as they are."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import _core
from tests.contract.rules.registry import Entry, every_class, every_elementwise, every_elementwise_class
from tests.contract.training import assert_same_bits, bits, contents, normal, parameters, train


def with_gaps(tensor: Tensor) -> Tensor:
    """In every second element of a larger base, which is NaN elsewhere."""
    base = torch.full([2 * size for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    return base[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


def last_dimension_outermost(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def with_offset(tensor: Tensor) -> Tensor:
    """Contiguous, but not aligned to more than the element."""
    base = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return base[1:].view(tensor.shape).copy_(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "last outermost": last_dimension_outermost,
    "gaps": with_gaps,
    "offset": with_offset,
    "rows with gaps": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
SHAPE = (4, 3, 5, 6)


@every_elementwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_gives_the_bits_of_the_contiguous_one(
    entry: Entry, layout: str, dtype: torch.dtype, boundary: str
) -> None:
    if dtype.is_complex and not entry.complex:
        pytest.skip("this rule has no complex form")
    values = normal(SHAPE, dtype, 3)
    p, expected = Parameter(LAYOUTS[layout](values.clone())), Parameter(values.clone())
    assert layout in ("contiguous", "offset") or not p.is_contiguous()
    optimizer, other = entry.build([p]), entry.build([expected])
    train(optimizer, [p], 3)
    train(other, [expected], 3)
    assert_same_bits(optimizer, other)


@every_elementwise_class
@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_the_gradient_may_have_another_layout(entry: Entry, of_param: str, of_grad: str) -> None:
    values, grad = normal(SHAPE, torch.float32, 3), normal(SHAPE, torch.float32, 4)
    p, expected = Parameter(LAYOUTS[of_param](values.clone())), Parameter(values.clone())
    p.grad, expected.grad = LAYOUTS[of_grad](grad.clone()), grad.clone()
    before = bits(p.grad)
    optimizer, other = entry.build([p]), entry.build([expected])
    for _ in range(2):
        optimizer.step()
        other.step()
    assert_same_bits(optimizer, other)
    assert bits(p.grad) == before


@every_elementwise_class
@pytest.mark.parametrize("of_param", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("of_state", LAYOUTS)
def test_the_state_may_have_another_layout(entry: Entry, of_param: str, of_state: str) -> None:
    values = normal(SHAPE, torch.bfloat16, 3)
    p, expected = Parameter(LAYOUTS[of_param](values.clone())), Parameter(values.clone())
    optimizer, other = entry.build([p], rounding="kahan"), entry.build([expected], rounding="kahan")
    train(optimizer, [p], 1)
    state = optimizer.state[p]
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            state[name] = LAYOUTS[of_state](value)
    train(optimizer, [p], 2, start=1)
    train(other, [expected], 3)
    assert_same_bits(optimizer, other)


@every_elementwise_class
def test_new_state_has_the_layout_of_a_dense_parameter(entry: Entry) -> None:
    p = Parameter(normal(SHAPE, torch.float32, 3).to(memory_format=torch.channels_last))
    optimizer = entry.build([p])
    train(optimizer, [p], 1)
    moments = [t for name, t in contents(optimizer).items() if name.endswith(entry.state)]
    assert moments
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in moments)


@every_elementwise_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_follows_the_order_in_memory(entry: Entry, dtype: torch.dtype) -> None:
    for name, layout in LAYOUTS.items():
        results = []
        for backend in ("rust", "reference"):
            p = Parameter(layout(normal(SHAPE, dtype, 3)))
            optimizer = entry.build([p], rounding="stochastic", seed=11, backend=backend)
            train(optimizer, [p], 2)
            results.append(p.detach().clone())
        torch.testing.assert_close(*results, rtol=2**-6, atol=1e-6)
        if dtype != torch.float32:  # with other noise, about half would be rounded to the other neighbour
            assert (results[0] == results[1]).double().mean() > 0.98, f"{name}: other noise than plain torch's"


@every_elementwise_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_interleaved_parameters_of_one_base(entry: Entry, dtype: torch.dtype, boundary: str) -> None:
    base = normal((40, 7), dtype, 6)
    columns = [Parameter(base[:, i]) for i in (0, 1, 3, 6)]
    block = Parameter(base[:20, 4:6])
    base_before = base.clone()
    alone = [Parameter(p.detach().clone()) for p in (*columns, block)]
    optimizer, other = entry.build([*columns, block]), entry.build(alone)
    train(optimizer, [*columns, block], 3)
    train(other, alone, 3)
    assert_same_bits(optimizer, other)
    untouched = torch.ones(40, 7, dtype=torch.bool)
    untouched[:, [0, 1, 3, 6]] = False
    untouched[:20, 4:6] = False
    assert bits(base[untouched]) == bits(base_before[untouched])
    assert bits(base[:, 0]) == bits(columns[0])
    assert bits(base[:, 0]) != bits(base_before[:, 0])


def test_overlap_is_found_where_places_are_shared() -> None:
    rng = random.Random(0)
    found = set()
    for _ in range(600):
        base = np.zeros((6, 7, 4), rng.choice([np.float32, np.float64]))
        turned = base.transpose(rng.sample(range(3), 3))
        both = []
        for _ in range(2):
            part = turned[tuple(slice(rng.randrange(4), None, rng.choice([1, 1, 2, 3])) for _ in range(3))]
            both.append(part[:: rng.choice([1, -1]), :, :: rng.choice([1, -1])])
        shared = np.shares_memory(*both)
        found.add(shared)
        with pytest.raises(ValueError, match="shares memory") if shared else contextlib.nullcontext():
            _core.ema(both, [np.ones(part.shape, part.dtype) for part in both], 0.5, 1)
    assert found == {True, False}


def test_columns_of_a_large_base_are_told_apart_in_little_time() -> None:
    base = np.zeros((2048, 4096), np.float32)
    halves = [base[:, :2048], base[:, 2048:]]
    ones = [np.ones_like(half) for half in halves]
    start = time.monotonic()
    _core.ema(halves, ones, 0.5, 2)
    assert time.monotonic() - start < 5  # byte by byte it was half a minute
    assert (base == 0.5).all()


@every_elementwise_class
def test_neighbouring_parameters_of_one_base(entry: Entry) -> None:
    base = normal((1000,), torch.float32, 6)
    pieces = [Parameter(piece) for piece in base.split([1, 3, 16, 100, 880])]
    whole = Parameter(base.clone())
    optimizer, other = entry.build(pieces), entry.build([whole])
    for step in range(3):
        grad = normal((1000,), torch.float32, 7, step)
        for p, piece in zip(pieces, grad.split([1, 3, 16, 100, 880]), strict=True):
            p.grad = piece
        whole.grad = grad
        optimizer.step()
        other.step()
    assert bits(base) == bits(whole)


@every_elementwise_class
def test_expanded_and_shared_gradients_are_read(entry: Entry) -> None:
    params, expected = parameters([(5, 3), (5, 3)]), parameters([(5, 3), (5, 3)])
    one = torch.full((1, 1), 0.3).expand(5, 3)
    for p in params:
        p.grad = one
    for p in expected:
        p.grad = torch.full((5, 3), 0.3)
    optimizer, other = entry.build(params), entry.build(expected)
    for _ in range(2):
        optimizer.step()
        other.step()
    assert_same_bits(optimizer, other)


@every_class
def test_a_parameter_whose_memory_is_replaced(entry: Entry) -> None:
    params, expected = parameters([(5, 3)]), parameters([(5, 3)])
    optimizer, other = entry.build(params), entry.build(expected)
    train(optimizer, params, 2)
    train(other, expected, 2)
    params[0].data = params[0].data.t().contiguous().t()
    train(optimizer, params, 2, start=2)
    train(other, expected, 2, start=2)
    assert_same_bits(optimizer, other)


@every_class
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_dimensions_of_one_may_have_any_stride(entry: Entry, shape: tuple[int, int]) -> None:
    values = normal(shape, torch.float32, 8)
    strides = tuple(1 if size > 1 else 12345 for size in shape)
    p = Parameter(torch.as_strided(values.clone(), shape, strides))
    expected = Parameter(values)
    optimizer, other = entry.build([p]), entry.build([expected])
    train(optimizer, [p], 2)
    train(other, [expected], 2)
    assert_same_bits(optimizer, other)
