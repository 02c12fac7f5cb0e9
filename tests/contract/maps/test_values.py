"""Every map's image: against oracles and the reference, in every dtype, layout and place."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from ferrostep import _core, maps, projections
from tests.contract.subprocesses import run_python
from tests.contract.training import bits

from .registry import DTYPES, ENTRIES, SIMPLEX, Entry, every_dtype, every_map, sample

SHAPES = ((1, 1), (5, 2), (4, 17), (2, 3, 70), (4, 1000), (3, 0, 5), (33,))
ROUNDING = {torch.float64: 1e-15, torch.float32: 1e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_near(actual: Tensor, expected: Tensor, size: float) -> None:
    """Up to a few roundings of numbers of this size, or of the last one."""
    allowed = 4 * ROUNDING[actual.dtype]
    arithmetic = allowed if actual.dtype == torch.float64 else 4e-7
    torch.testing.assert_close(actual.double(), expected.double(), rtol=allowed, atol=arithmetic * size, equal_nan=True)


def test_the_registry_has_all_that_is_public() -> None:
    named = {f.__name__ for entry in ENTRIES for f in (entry.function, entry.in_place)}
    assert named == set(projections.__all__)
    assert {entry.numpy.__name__ for entry in ENTRIES} == {entry.function.__name__ for entry in ENTRIES}
    assert set(maps.MAPS) == {entry.function.__name__ for entry in ENTRIES}


@every_map
@every_dtype
def test_images_are_the_oracles_and_the_references(entry: Entry, dtype: torch.dtype, isa: str) -> None:
    for shape in SHAPES:
        x = sample(shape, dtype)
        y = entry(x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        rows = x.double().numpy().reshape(-1, shape[-1])
        expected = [torch.from_numpy(entry.oracle(row, **entry.arguments)) for row in rows]
        size = 1 + max(entry.arguments.values())
        assert_near(y, torch.stack(expected).view(shape) if expected else x, size)
        assert_near(y, entry.reference(x, **entry.arguments), size)


@every_map
@every_dtype
def test_instruction_sets_and_threads_give_the_same_bits(entry: Entry, dtype: torch.dtype) -> None:
    before = _core.isa()
    x, v = sample((90, 701), dtype), sample((90, 701), dtype, seed=1)
    found = set()
    try:
        for name in _core.supported_isas():
            _core.use_isa(name)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                y, product = torch.func.vjp(entry, x)
                found.add((bits(y), bits(product(v)[0])))
    finally:
        _core.use_isa(before)
    assert len(found) == 1


@every_map
def test_no_row_changes_anothers_bits(entry: Entry) -> None:
    for size in (3, 40, 20_000):
        x = sample((6, size), torch.float32)
        y = entry(x)
        for i, row in enumerate(x):
            assert torch.equal(entry(row), y[i])
            assert torch.equal(entry(row.expand(3, size)), y[i].expand(3, size))
        x[2, 1], x[4] = float("nan"), float("inf")
        others = [0, 1, 3, 5]
        assert torch.equal(entry(x)[others], y[others])


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0]


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 2).contiguous().transpose(0, 2)


def offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


LAYOUTS = (torch.clone, channels_last, every_other, transposed, offset)


@every_map
@every_dtype
@pytest.mark.parametrize("lay", LAYOUTS, ids=lambda lay: lay.__name__)
def test_any_layout_and_dimension_gives_the_same_bits(
    entry: Entry, dtype: torch.dtype, lay: Callable[[Tensor], Tensor], boundary: str
) -> None:
    x = sample((4, 3, 5, 6), dtype)
    for dim in range(-4, 4):
        last = entry(x.movedim(dim, -1).contiguous()).movedim(-1, dim)
        laid = lay(x)
        assert torch.equal(entry(laid, dim), last)
        version = laid._version
        assert entry.in_place(laid, **entry.arguments, dim=dim) is laid
        assert torch.equal(laid, last)
        assert laid._version > version


@every_map
def test_results_are_laid_out_as_inputs(entry: Entry) -> None:
    x = channels_last(sample((4, 3, 5, 6)))
    assert entry(x, 1).stride() == x.stride()


@every_map
@every_dtype
def test_in_place_is_not_recorded(entry: Entry, dtype: torch.dtype) -> None:
    x = sample((4, 30), dtype)
    expected = entry(x)
    parameter = torch.nn.Parameter(x.clone())
    assert entry.in_place(parameter, **entry.arguments) is parameter
    assert parameter.is_leaf and parameter.requires_grad
    assert torch.equal(parameter.detach(), expected)
    with torch.inference_mode():
        assert torch.equal(entry.in_place(x.clone(), **entry.arguments), expected)


@every_map
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_numpys_twin_has_the_same_bits(entry: Entry, dtype: type) -> None:
    x = sample((4, 3, 50)).numpy().astype(dtype)
    torchs = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else None
    expected = bits(entry(torch.from_numpy(x) if torchs is None else torchs))
    for threads in (None, 1, 3):
        assert entry.numpy(x, **entry.arguments, num_threads=threads).tobytes() == expected
    out = np.zeros_like(x)
    assert entry.numpy(x, **entry.arguments, out=out) is out
    assert out.tobytes() == expected
    columns = np.asfortranarray(x)
    assert entry.numpy(columns, **entry.arguments, out=columns) is columns
    assert np.ascontiguousarray(columns).tobytes() == expected
    turned = np.moveaxis(x, 2, 0)
    assert np.ascontiguousarray(np.moveaxis(entry.numpy(turned, **entry.arguments, dim=0), 0, 2)).tobytes() == expected


def test_numpys_twins_need_no_torch() -> None:
    assert run_python("import sys, ferrostep.numpy.projections; print('torch' in sys.modules)") == "False\n"


@every_map
def test_projections_stay_and_bring_nothing_apart(entry: Entry) -> None:
    a, b = sample((50, 40)), sample((50, 40), seed=1)
    pa, pb = entry(a), entry(b)
    size = max(entry.arguments.values())
    torch.testing.assert_close(entry(pa), pa, rtol=0, atol=1e-15 * (1 + size))
    assert ((pa - pb).norm(dim=1) <= (a - b).norm(dim=1) * (1 + 1e-12)).all()


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("row", "s", "image"),
    [
        ([0.5, 1.2, -0.3, 0.9, 0.2], 1.0, [0, 0.65, 0, 0.35, 0]),
        ([0.5, 1.2, -0.3, 0.9, 0.2], 2.0, [0.3, 1, 0, 0.7, 0]),
        ([1.0, 1.0, 1.0, 0.0], 1.0, [1 / 3, 1 / 3, 1 / 3, 0]),
        ([4.0], 3.0, [3]),
        ([-7.0, -7.0], 1.0, [0.5, 0.5]),
        ([1.0, 2.0], 0.0, [0, 0]),
        ([INF, 2.0], 0.0, [0, 0]),
        ([INF, 0.0, INF, -INF], 1.0, [0.5, 0, 0.5, 0]),
        ([-INF, 0.25, 0.0], 1.0, [0, 0.625, 0.375]),
        ([-INF, -INF], 1.0, [0.5, 0.5]),
        ([0.0, NAN, 1.0], 1.0, [NAN, NAN, NAN]),
        ([INF, NAN, -INF], 1.0, [NAN, NAN, NAN]),
        ([NAN, NAN], 0.0, [NAN, NAN]),
        ([1e8 + 0.5, 1e8 + 1.25, 1e8], 1.0, [0.125, 0.875, 0]),
        ([0.0, 0.5, -3e38, -3e38, -3e38], 1.0, [0.25, 0.75, 0, 0, 0]),
    ],
    ids=str,
)
def test_the_simplex_by_hand(row: list[float], s: float, image: list[float], isa: str) -> None:
    for dtype in DTYPES[: 1 if max(row) == 1e8 + 1.25 else 2]:
        x, expected = torch.tensor(row, dtype=dtype), torch.tensor(image, dtype=dtype)
        for project in (SIMPLEX["function"], SIMPLEX["reference"]):
            torch.testing.assert_close(project(x, s), expected, equal_nan=True, rtol=1e-6, atol=1e-7)


def test_numbers_near_the_greatest() -> None:
    most = torch.finfo(torch.float64).max
    x = torch.tensor([[0.0, 0.5, -most, -most, -most], [most, most, 1.0, -most, -INF]], dtype=torch.float64)
    for project in (SIMPLEX["function"], SIMPLEX["reference"]):
        assert project(x, 1.0).tolist() == [[0.25, 0.75, 0, 0, 0], [0.5, 0.5, 0, 0, 0]]


def test_a_peer_agrees() -> None:
    entmax = pytest.importorskip("entmax")  # `pip install --no-deps entmax` is enough
    x = sample((50, 300)).requires_grad_()
    v = sample((50, 300), seed=1)
    ours, theirs = projections.simplex(x), entmax.sparsemax(x, dim=-1)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, x, v), torch.autograd.grad(theirs, x, v), strict=True):
        torch.testing.assert_close(one, other)
