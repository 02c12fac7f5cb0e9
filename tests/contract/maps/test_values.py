"""Every map's image: against oracles and the reference, in every dtype, layout and place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from ferrostep import _core, maps, projections
from ferrostep.projections import prox
from ferrostep.reference import projections as reference
from tests.contract.subprocesses import run_python
from tests.contract.training import bits

from .registry import DTYPES, ENTRIES, Entry, every_dtype, every_kind, every_map, every_set, sample

SHAPES = ((1, 1), (5, 2), (4, 17), (2, 3, 70), (4, 1000), (3, 0, 5), (33,))
ROUNDING = {torch.float64: 1e-15, torch.float32: 1e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_near(actual: Tensor, expected: Tensor, size: float) -> None:
    """Up to a few roundings of numbers of this size, or of the last one."""
    allowed = 4 * ROUNDING[actual.dtype]
    arithmetic = allowed if actual.dtype == torch.float64 else 4e-7
    torch.testing.assert_close(actual.double(), expected.double(), rtol=allowed, atol=arithmetic * size, equal_nan=True)


def test_the_registry_has_all_that_is_public() -> None:
    names = {entry.name for entry in ENTRIES}
    in_place = {f"{entry.name}_" for entry in ENTRIES if entry.in_place is not None}
    others = {"prox", "moreau", "Affine", "affine", "birkhoff", "transport"}  # not of rows by kernels
    assert names | in_place == {*projections.__all__, *prox.__all__} - others
    assert set(maps.MAPS) == names
    assert {entry.numpy.__name__ for entry in ENTRIES} == names


@every_map
@every_dtype
def test_images_are_the_oracles_and_the_references(entry: Entry, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = sample(shape, dtype)
        y = entry(x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        given = entry.given(shape[-1])
        rows = x.double().numpy().reshape(-1, shape[-1])
        expected = [torch.from_numpy(np.asarray(entry.oracle(row, **given))) for row in rows]
        numbers = [value for value in given.values() if not isinstance(value, np.ndarray)]
        size = max([1.0, *numbers, *(float(each.abs().max()) for each in (x, *expected) if each.numel())]) + 1
        assert_near(y, torch.stack(expected).view(shape) if expected else x, size)
        assert_near(y, entry.reference(x), size)


@every_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_instruction_sets_and_threads_give_the_same_bits(entry: Entry, dtype: torch.dtype) -> None:
    before = _core.isa()
    x, v = sample((90, 401), dtype), sample((90, 401), dtype, seed=1)
    leaf = x.clone().requires_grad_()
    found = set()
    try:
        for name, threads in itertools.product(_core.supported_isas(), (1, 3)):
            _core.use_isa(name)
            torch.set_num_threads(threads)
            y = entry(leaf)
            found.add((bits(y.detach()), bits(torch.autograd.grad(y, leaf, v)[0])))
    finally:
        _core.use_isa(before)
    assert len(found) == 1


@every_kind
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


@every_kind
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
        if entry.in_place is not None:
            assert entry.change(laid, dim) is laid
            assert torch.equal(laid, last)
            assert laid._version > version


@every_kind
def test_results_are_laid_out_as_inputs(entry: Entry) -> None:
    x = channels_last(sample((4, 3, 5, 6)))
    assert entry(x, 1).stride() == x.stride()


@every_set
def test_in_place_is_not_recorded(entry: Entry) -> None:
    x = sample((4, 30))
    expected = entry(x)
    parameter = torch.nn.Parameter(x.clone())
    assert entry.change(parameter) is parameter
    assert parameter.is_leaf and parameter.requires_grad
    assert torch.equal(parameter.detach(), expected)
    with torch.inference_mode():
        inferred = x.clone()
        assert torch.equal(entry.change(inferred), expected)
        inferred.copy_(x)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        entry.change(inferred)
    assert torch.equal(inferred, x)


@every_map
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numpys_twin_has_the_same_bits(entry: Entry, dtype: type) -> None:
    x = sample((4, 3, 50)).numpy().astype(dtype)
    given = entry.given(50)
    torchs = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else None
    expected = bits(entry(torch.from_numpy(x) if torchs is None else torchs))
    for threads in (None, 1):
        assert entry.numpy(x, **given, num_threads=threads).tobytes() == expected
    out = np.zeros_like(x)
    assert entry.numpy(x, **given, out=out) is out
    assert out.tobytes() == expected
    columns = np.asfortranarray(x)
    assert entry.numpy(columns, **given, out=columns) is columns
    assert np.ascontiguousarray(columns).tobytes() == expected
    turned = np.moveaxis(x, 2, 0)
    image = entry.numpy(turned, **given, **entry.along(0))
    assert np.ascontiguousarray(np.moveaxis(image, 0, 2)).tobytes() == expected


def test_numpys_twins_need_no_torch() -> None:
    assert (
        run_python("import sys, ferrostep.numpy.projections, ferrostep.numpy.prox; print('torch' in sys.modules)")
        == "False\n"
    )


@every_map
def test_nothing_is_brought_apart_and_projections_stay(entry: Entry) -> None:
    a, b = sample((50, 40)), sample((50, 40), seed=1)
    pa, pb = entry(a), entry(b)
    if "weight" not in entry.arguments:  # with weights, another distance is not brought apart
        assert ((pa - pb).norm(dim=1) <= (a - b).norm(dim=1) * (1 + 1e-12)).all()
    if entry.is_projection:
        torch.testing.assert_close(entry(pa), pa, rtol=0, atol=1e-14 * (1 + float(pa.abs().max())))


INF, NAN = float("inf"), float("nan")
X, Y, V = [0.5, 1.2, -0.3, 0.9, 0.2], [0.8, -1.5, 0.1, -0.4, 2], [1, -2, 3, 0.5, -1]
Z = [1, 3, 2, 4, 3.5, 3.7, 6, 5]


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
        for project in (projections.simplex, reference.simplex):
            torch.testing.assert_close(project(x, s), expected, equal_nan=True, rtol=1e-6, atol=1e-7)


def test_numbers_near_the_greatest() -> None:
    most = torch.finfo(torch.float64).max
    x = torch.tensor([[0.0, 0.5, -most, -most, -most], [most, most, 1.0, -most, -INF]], dtype=torch.float64)
    for project in (projections.simplex, reference.simplex):
        assert project(x, 1.0).tolist() == [[0.25, 0.75, 0, 0, 0], [0.5, 0.5, 0, 0, 0]]


def test_norms_beyond_the_greatest() -> None:
    most = torch.finfo(torch.float64).max
    x = torch.tensor([[most, -most, most, -most]], dtype=torch.float64)
    for ball in (projections.l2_ball, maps.MAPS["l2_ball"].plain):
        for r in (1.0, 1e-9, most / 2):
            torch.testing.assert_close(ball(x, r), x.sign() * r / 2, rtol=1e-15, atol=0)
    for lasso in (prox.group_lasso, maps.MAPS["group_lasso"].plain):
        torch.testing.assert_close(lasso(x, most), x / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("size", [1e-310, 1e-308, torch.finfo(torch.float64).max], ids=str)
def test_derivatives_of_norms_at_the_ends_of_the_range(size: float) -> None:
    """The inverse of such a norm is beyond the range, or the norm itself is."""
    v = torch.tensor([[0.1, 0.2, 0.3, -0.4]], dtype=torch.float64)
    product = (v - v.mean()) / 2
    for function, expected in ((projections.l2_ball, product), (prox.group_lasso, v - product)):
        for each in (function, maps.MAPS[function.__name__].plain):
            x = torch.full_like(v, size, requires_grad=True)
            torch.testing.assert_close(torch.autograd.grad(each(x, size), x, v)[0], expected, rtol=1e-9, atol=1e-12)


def test_a_row_without_a_number_has_no_derivative() -> None:
    x = torch.tensor([[INF, NAN, 1.0]], requires_grad=True)
    for function in (projections.l2_ball, prox.group_lasso):
        assert torch.autograd.grad(function(x, 1.0).sum(), x)[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_cuts_nothing_off_keeps_the_sign_of_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1.5, -1.5] * 20, dtype=dtype)
    for function, arguments in ((prox.soft_threshold, [0.0]), (prox.ridge, [0.5]), (prox.elastic_net, [0.0, 1.0])):
        for each in (function, maps.MAPS[function.__name__].plain):
            assert torch.equal(each(x, *arguments).signbit(), x.signbit())


DEGREES: dict[Any, int] = {"a": 0, "weight": 0, "gamma": -1, ("box_section", "w"): 0}
DEGREES |= dict.fromkeys([("ridge", "lambd"), ("nonnegative_ridge", "lambd")], 0)


@every_map
@pytest.mark.parametrize("power", [-900, -600, 600, 1000])
def test_all_scales_with_the_rows(entry: Entry, power: int) -> None:
    """Also where squares are beyond the range. Arguments go with the rows, by the powers in ``DEGREES``, else by 1."""
    scale, x, v = 2.0**power, sample((4, 12)), sample((4, 12), seed=1)
    degrees = {name: DEGREES.get((entry.name, name), DEGREES.get(name, 1)) for name in entry.arguments}
    given = {
        name: value if isinstance(value, bool) else value * scale ** degrees[name]
        for name, value in entry.tensors(12).items()
    }
    for function in (entry.function, maps.MAPS[entry.name].plain):
        leaf = (x * scale).requires_grad_()
        image = function(leaf, **given)
        torch.testing.assert_close(image / scale, entry(x), rtol=1e-11, atol=1e-12)
        (product,) = torch.autograd.grad(image, leaf, v)
        torch.testing.assert_close(product, entry.product(x, v), rtol=1e-11, atol=1e-11)
    if entry.name == "group_lasso":
        groups = torch.arange(12) % 3
        image = prox.group_lasso(x * scale, groups=groups, **given)
        torch.testing.assert_close(image / scale, prox.group_lasso(x, groups=groups, **entry.arguments))


ORACLES: tuple[tuple[str, dict[str, Any], list[float], list[float], list[float] | None], ...] = (
    ("simplex", {"s": 1.0}, X, [0, 0.65, 0, 0.35, 0], [0, -1.25, 0, 1.25, 0]),
    ("simplex", {"s": 2.0}, X, [0.3, 1, 0, 0.7, 0], [7 / 6, -11 / 6, 0, 2 / 3, 0]),
    ("l1_ball", {"r": 1.5}, Y, [0, -0.5, 0, 0, 1], [0, -1.5, 0, 0, -1.5]),
    ("l1_ball", {"r": 3.0}, Y, [11 / 30, -32 / 30, 0, 0, 47 / 30], [1 / 3, -4 / 3, 0, 0, -5 / 3]),
    (
        "l2_ball",
        {"r": 2.0},
        Y,
        [0.602167943596, -1.129064894242, 0.075270992949, -0.301083971798, 1.50541985899],
        [0.590653400765, -1.201563867622, 2.237872722394, 0.457383229112, -1.157851251319],
    ),
    ("hyperplane", {"a": [1, 2, -1, 0, 3], "b": 1.0}, Y, [0.62, -1.86, 0.28, -0.4, 1.46], [1.6, -0.8, 2.4, 0.5, 0.8]),
    (
        "box_section",
        {"lo": 0.0, "hi": 0.6, "w": [1, 2, 1, 1, 1], "c": 1.5},
        X,
        [7 / 60, 13 / 30, 0, 31 / 60, 0],
        [1.416666666667, -1.166666666667, 0, 0.916666666667, 0],
    ),
    ("soft_threshold", {"lambd": 0.5}, Y, [0.3, -1, 0, 0, 1.5], [1, -2, 0, 0, -1]),
    ("elastic_net", {"lambd": 0.5, "gamma": 0.25}, Y, [0.3 / 1.125, -1 / 1.125, 0, 0, 1.5 / 1.125], None),
    (
        "group_lasso",
        {"lambd": 1.2},
        Y,
        [0.438699233842, -0.822561063455, 0.05483740423, -0.219349616921, 1.096748084606],
        [0.645607959541, -1.279061679427, 1.657276366564, 0.225570062533, -0.305289249208],
    ),
    ("sorted_l1", {"w": [1, 0.8, 0.6, 0.4, 0.2]}, Y, [0.2, -0.7, 0, 0, 1], None),
    ("permutahedron", {"w": [1, 2, 3, 4, 5]}, Y, [3.6, 1.3, 2.9, 2.4, 4.8], None),
    ("permutahedron", {"w": [1, 2, 3, 4, 5]}, [10 * y for y in Y], [4, 1, 3, 2, 5], None),
    ("permutahedron", {"w": [0.1, 0.2, 0.3]}, [3e12, 1e12, 2e12], [0.3, 0.1, 0.2], None),
    ("isotonic", {}, Z, [1, 2.5, 2.5, 56 / 15, 56 / 15, 56 / 15, 5.5, 5.5], None),
    ("isotonic", {"weight": [1, 2, 1, 1, 3, 1, 0.5, 2]}, Z, [1, 8 / 3, 8 / 3, 3.625, 3.625, 3.7, 5.2, 5.2], None),
)
"""Of issue 20's table of oracles: the map, its arguments, a row, its image, and the product of V with the Jacobian."""


@pytest.mark.parametrize("name, arguments, row, image, product", ORACLES, ids=[case[0] for case in ORACLES])
def test_values_worked_out_by_hand(
    name: str, arguments: dict[str, Any], row: list[float], image: list[float], product: list[float] | None
) -> None:
    given = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in arguments.items()}
    function = getattr(prox if hasattr(prox, name) else projections, name)
    x = torch.tensor(row, dtype=torch.float64, requires_grad=True)
    y = function(x, **given)
    torch.testing.assert_close(y, torch.tensor(image, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    if product is not None:
        (found,) = torch.autograd.grad(y, x, torch.tensor(V, dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor(product, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_nan_stays_in_its_row(entry: Entry) -> None:
    x = sample((4, 30))
    expected = entry(x)
    x[2, 7] = NAN
    leaf = x.clone().requires_grad_()
    for y in (entry(leaf), entry.reference(leaf)):
        if entry.has_rows:
            assert y[2].isnan().all()
        assert y[2, 7].isnan()
        torch.testing.assert_close(y[[0, 1, 3]], expected[[0, 1, 3]])
    (grad,) = torch.autograd.grad(entry(leaf).sum(), leaf)
    assert grad[[0, 1, 3]].isfinite().all()
    assert "a" in entry.arguments or grad[2, 7].isnan()  # planes have one Jacobian everywhere


@pytest.mark.parametrize(
    ("name", "arguments", "row", "image"),
    [
        ("l1_ball", {"r": 0.0}, [1.0, -2.0], [0, 0]),
        ("l1_ball", {"r": 1.0}, [INF, -2.0, -INF], [0.5, 0, -0.5]),
        ("l1_ball", {"r": 1.0}, [0.5, -0.5], [0.5, -0.5]),
        ("l2_ball", {"r": 0.0}, [1.0, -2.0], [0, 0]),
        ("l2_ball", {"r": 1.0}, [INF, -2.0, 0.0], [1, 0, 0]),
        ("l2_ball", {"r": 5.0}, [1e200, 0.0], [5, 0]),
        ("l2_ball", {"r": 0.0}, [0.0, 0.0], [0, 0]),
        ("box", {"lo": -INF, "hi": 0.0}, [INF, -INF, -1.0], [0, -INF, -1]),
        ("soft_threshold", {"lambd": 0.0}, [0.0, -2.0, INF], [0, -2, INF]),
        ("group_lasso", {"lambd": 1.0}, [0.0, 0.0], [0, 0]),
        ("group_lasso", {"lambd": 0.0}, [3.0, -1.0], [3, -1]),
        ("linf", {"lambd": 0.0}, [3.0, -1.0], [3, -1]),
        ("box_section", {"lo": 0.0, "hi": 1.0, "w": 1.0, "c": 2.0}, [5.0, -5.0], [1, 1]),
        ("box_section", {"lo": 0.0, "hi": 1.0, "w": 1.0, "c": 0.0}, [5.0, -5.0], [0, 0]),
        ("box_section", {"lo": 0.5, "hi": 0.5, "w": 1.0, "c": 1.0}, [5.0, -5.0], [0.5, 0.5]),
        ("isotonic", {}, [3.0], [3]),
        ("isotonic", {"increasing": False}, [1.0, 1.0, 2.0], [4 / 3, 4 / 3, 4 / 3]),
    ],
    ids=str,
)
def test_edges(name: str, arguments: dict[str, Any], row: list[float], image: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float64)
    function = getattr(prox if hasattr(prox, name) else projections, name)
    torch.testing.assert_close(function(x, **arguments), torch.tensor(image, dtype=torch.float64), atol=1e-12, rtol=0)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf, **arguments), leaf, torch.ones_like(x))
    assert not grad.isnan().any()


def test_isotonic_regression_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.isotonic")
    x, weight = sample((20, 50)), torch.rand(50, dtype=torch.float64) + 0.5
    for given, increasing in ((None, True), (weight, True), (weight, False)):
        image = projections.isotonic(x, given, increasing)
        for row, each in zip(x.numpy(), image.numpy(), strict=True):
            weights = None if given is None else given.numpy()
            expected = sklearn.isotonic_regression(row, sample_weight=weights, increasing=increasing)
            np.testing.assert_allclose(each, expected, rtol=1e-12, atol=1e-12)


def test_soft_thresholds_are_torchs() -> None:
    x = sample((6, 40), torch.float32)
    assert torch.equal(prox.soft_threshold(x, 0.25), torch.nn.functional.softshrink(x, 0.25))


def test_moreaus_decomposition_gives_what_was_split() -> None:
    x = sample((6, 40))
    dual = prox.moreau(prox.soft_threshold)
    torch.testing.assert_close(dual(x, 0.7), projections.linf_ball(x, 0.7))
    torch.testing.assert_close(prox.linf(x, 0.7) + projections.l1_ball(x, 0.7), x)
    torch.testing.assert_close(prox.group_lasso(x, 0.7) + projections.l2_ball(x, 0.7), x)


def test_groups_are_rows_of_their_own() -> None:
    x = sample((4, 7)).requires_grad_()
    groups = torch.tensor([0, 2, 0, 1, 2, 2, 0])
    y = prox.group_lasso(x, 0.8, groups=groups)
    for group in range(3):
        torch.testing.assert_close(y[:, groups == group], prox.group_lasso(x[:, groups == group], 0.8))
    assert torch.autograd.gradcheck(lambda x: prox.group_lasso(x, 0.8, groups=groups), x)
    torch.testing.assert_close(prox.group_lasso(x, 0.8, groups=groups * 10**15), y)  # numbers may be any
