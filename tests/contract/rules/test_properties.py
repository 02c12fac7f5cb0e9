"""Properties over drawn shapes, strides and splits."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from ferrostep.optim.base import SCALARS
from tests.contract.rules.registry import ENTRIES, Entry, one_of_each_class
from tests.contract.training import assert_same_bits, bits, normal, set_gradients, train

ELEMENTWISE = st.sampled_from([entry for entry in ENTRIES if entry.elementwise])
CLASSES = st.sampled_from(one_of_each_class())
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
SHAPES = st.lists(st.integers(0, 6), max_size=5).map(tuple)
QUICK = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def views(draw: Any, shape: tuple[int, ...]) -> Any:
    """How to lay out a tensor of this shape: an order of its dimensions, steps over gaps, an offset."""
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    offset = draw(st.integers(0, 3))

    def lay_out(values: Tensor) -> Tensor:
        strides, width = [0] * len(shape), 1
        for dim in reversed(order):
            strides[dim] = width * steps[dim]
            width *= max(1, shape[dim] * steps[dim])
        base = torch.full((width + offset,), float("nan"), dtype=values.dtype)
        return base.as_strided(shape, strides, offset).copy_(values)

    return lay_out


@st.composite
def layouts(draw: Any) -> Any:
    """A shape with a layout each for parameter, gradient and state."""
    shape = draw(SHAPES)
    return shape, [draw(views(shape)) for _ in range(3)]


@QUICK
@given(entry=ELEMENTWISE, dtype=DTYPES, drawn=layouts())
def test_any_strides_give_the_bits_of_contiguous_tensors(entry: Entry, dtype: torch.dtype, drawn: Any) -> None:
    assume(entry.complex or not dtype.is_complex)
    shape, (of_param, of_grad, of_state) = drawn
    values = normal(shape, dtype, 1)
    p, expected = Parameter(of_param(values)), Parameter(values.clone())
    optimizer, other = entry.build([p]), entry.build([expected])
    for step in range(3):
        grad = normal(shape, dtype, 2, step)
        p.grad, expected.grad = of_grad(grad), grad
        if step == 1:
            state = optimizer.state[p]
            for name, value in state.items():
                if name not in SCALARS:
                    state[name] = of_state(value)
        optimizer.step()
        other.step()
    assert_same_bits(optimizer, other)
    base = p.detach().view(-1) if p.is_contiguous() else None
    if base is None and p.numel():
        # What lies between the elements is still NaN.
        whole = torch.empty(0, dtype=dtype).set_(p.untyped_storage())
        assert int(whole.isnan().sum()) == whole.numel() - p.numel()


@QUICK
@given(
    entry=ELEMENTWISE,
    dtype=DTYPES,
    rounding=st.sampled_from(["nearest", "kahan"]),
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=6),
)
def test_a_tensor_split_into_several_gives_the_same_bits(
    entry: Entry, dtype: torch.dtype, rounding: str, sizes: list[int]
) -> None:
    assume(entry.complex or not dtype.is_complex)
    whole = Parameter(normal((sum(sizes),), dtype, 1))
    pieces = [Parameter(piece.clone()) for piece in whole.detach().split(sizes)]
    optimizer, other = entry.build([whole], rounding=rounding), entry.build(pieces, rounding=rounding)
    for step in range(3):
        whole.grad = normal(whole.shape, dtype, 2, step)
        for piece, grad in zip(pieces, whole.grad.split(sizes), strict=True):
            piece.grad = grad
        optimizer.step()
        other.step()
    assert bits(whole) == b"".join(bits(piece) for piece in pieces)


@QUICK
@given(
    entry=CLASSES,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    groups=st.lists(st.integers(0, 3), min_size=len(ENTRIES[0].shapes), max_size=len(ENTRIES[0].shapes)),
)
def test_any_grouping_of_parameters_gives_the_same_bits(entry: Entry, dtype: torch.dtype, groups: list[int]) -> None:
    params = [Parameter(normal(shape, dtype, 0, i)) for i, shape in enumerate(entry.shapes)]
    expected = [Parameter(p.detach().clone()) for p in params]
    members = [[p for p, g in zip(params, groups, strict=False) if g == number] for number in sorted(set(groups))]
    optimizer, other = entry.build([{"params": group} for group in members]), entry.build(expected)
    train(optimizer, params, 2)
    train(other, expected, 2)
    assert [bits(p) for p in params] == [bits(p) for p in expected]


@QUICK
@given(
    entry=CLASSES,
    lr=st.floats(0, 1),
    weight_decay=st.floats(0, 1),
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
    maximize=st.booleans(),
)
def test_any_hyperparameters_equal_the_reference(entry: Entry, **hyperparameters: Any) -> None:
    if "betas" not in entry.arguments:
        del hyperparameters["betas"]
    results = []
    for backend in ("rust", "reference"):
        params = [Parameter(normal(shape, torch.float64, 0, i)) for i, shape in enumerate(entry.shapes)]
        optimizer = entry.build(params, **hyperparameters, backend=backend)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-10, atol=1e-10)


@QUICK
@given(entry=CLASSES, size=st.integers(0, 300), value=st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_skip_nonfinite_finds_any_place(entry: Entry, size: int, value: float) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        p, q = Parameter(torch.ones(size + 1, 1, dtype=dtype)), Parameter(torch.ones(3, 2, dtype=dtype))
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        p.grad[size] = value
        entry.build([q, p], skip_nonfinite=True).step()
        assert p.eq(1).all() and q.eq(1).all()
