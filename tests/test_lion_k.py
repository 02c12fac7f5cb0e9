"""Lion-K: the gradients of its convex functions, what they solve, and the arguments that choose them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

import ferrostep.numpy
from ferrostep import _core, choices
from ferrostep.kappas import KERNELS, LARGEST_SUMMED, NUMBERS
from ferrostep.optim import Lion
from tests.contract.training import assert_close, assert_same_bits, bits, normal, parameters, train

GUIDE = Path(__file__).parents[1] / "docs" / "lion.md"
PARAMS: dict[str, Any] = {"lp": 1.5, "deadzone": 0.3, "topk": 7, "huber": 0.3}
"""A ``kappa_param`` for each kappa that takes one."""
CHOSEN = [{"kappa": kappa, "kappa_param": PARAMS.get(kappa)} for kappa in get_args(choices.Kappa)]
CHOSEN += [{"kappa": "lp", "kappa_param": p} for p in (2.0, 3.0, 20.0, 1.01)]
OF_WHOLE = [chosen for chosen in CHOSEN if chosen["kappa"] in ("lp", "l2", "row", "topk")]
every_kappa = pytest.mark.parametrize("chosen", CHOSEN, ids=lambda chosen: f"{chosen['kappa']}-{chosen['kappa_param']}")
every_backend = pytest.mark.parametrize("backend", ["auto", "reference"])


def direction(u: Tensor, **options: Any) -> Tensor:
    """What takes the place of ``u``: with these arguments it is all that a step does."""
    p = torch.nn.Parameter(torch.zeros_like(u))
    p.grad = u.clone()
    Lion([p], lr=1.0, betas=(0.0, 0.0), **options).step()
    return -p.detach()


BY_HAND: dict[tuple[str, float | None], tuple[float, float, float, float]] = {
    ("lp", 2.0): (0.599880036, -0.799840048, 0.019996001, 0.0),
    ("lp", 1.5): (0.732371932, -0.845670265, 0.133712209, 0.0),
    ("lp", 3.0): (0.4448480928, -0.7908410538, 0.0004942757, 0.0),
    ("l2", None): (0.599880036, -0.799840048, 0.019996001, 0.0),
    ("row", None): (1.0, -1.0, 1.0, 0.0),
    ("huber", 1.0): (1.0, -1.0, 0.1, 0.0),
    ("deadzone", 0.5): (1.0, -1.0, 0.0, 0.0),
    ("topk", 2): (1.0, -1.0, 0.0, 0.0),
    ("sign", None): (1.0, -1.0, 1.0, 0.0),
    ("identity", None): (3.0, -4.0, 0.1, 0.0),
}


@pytest.mark.smoke
@every_backend
@pytest.mark.parametrize(("kappa", "kappa_param"), BY_HAND)
def test_a_gradient_by_hand(kappa: str, kappa_param: float | None, backend: str) -> None:
    u = torch.tensor([3.0, -4.0, 0.1, 0.0], dtype=torch.float64)
    found = direction(u, kappa=kappa, kappa_param=kappa_param, backend=backend)
    expected = torch.tensor(BY_HAND[kappa, kappa_param], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9)


@every_backend
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("p", [1.01, 1.5, 2.0, 3.0, 20.0])
def test_the_dual_norm_is_1(p: float, dtype: torch.dtype, scale: float, backend: str) -> None:
    found = direction(normal((5, 33), dtype, 3) * scale, kappa="lp", kappa_param=p, backend=backend).double()
    dual = torch.linalg.vector_norm(found, p / (p - 1))
    assert dual.item() == pytest.approx(1.0, rel=1e-12 if dtype == torch.float64 else 1e-5)


@every_backend
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 7), (4,), ()], ids=str)
def test_rows_have_norm_1(shape: tuple[int, ...], backend: str) -> None:
    found = direction(normal(shape, torch.float64, 3), kappa="row", backend=backend)
    rows = found.reshape(shape[0] if shape else 1, -1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64), rtol=1e-14, atol=0.0)


@every_backend
@pytest.mark.parametrize("kappa", ["lp", "l2", "row", "topk"])
def test_what_is_zero_stays_zero(kappa: str, backend: str) -> None:
    p = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = Lion([p], lr=0.1, kappa=kappa, kappa_param=PARAMS.get(kappa), backend=backend)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, 5))
    empty = torch.nn.Parameter(torch.ones(0, 5))
    empty.grad = torch.ones(0, 5)
    Lion([empty], kappa=kappa, kappa_param=PARAMS.get(kappa), backend=backend).step()


@every_backend
def test_of_equally_large_elements_the_first_are_taken(backend: str) -> None:
    u = torch.tensor([[1.0, -2.0, 2.0], [0.5, -2.0, 2.0]])
    taken = direction(u, kappa="topk", kappa_param=3, backend=backend)
    assert taken.tolist() == [[0, -1, 1], [0, -1, 0]]
    transposed = direction(u.t(), kappa="topk", kappa_param=2, backend=backend)  # by place, not by memory
    assert transposed.tolist() == [[0, 0], [-1, -1], [0, 0]]
    assert direction(u, kappa="topk", kappa_param=100, backend=backend).tolist() == u.sign().tolist()
    many = direction(torch.ones(100_000), kappa="topk", kappa_param=50_001, backend=backend)
    assert torch.equal(many, torch.cat([torch.ones(50_001), torch.zeros(49_999)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 2, 97, 40_000, 79_999, 80_000], ids=str)
def test_the_largest_of_many_with_equal_ones(k: int, dtype: torch.dtype, isa: str) -> None:
    """Against a sort by size, then by place: of numbers that are often equal, on several threads' parts."""
    u = (normal((2, 40_000), torch.float64, 5) * 4).round().to(dtype) / 4
    u[0, 7], u[1, 7] = float("inf"), float("nan")
    size = u.flatten().abs()
    size = torch.where(size.isnan(), float("inf"), size)
    taken = size.sort(descending=True, stable=True).indices[:k]
    expected = torch.zeros_like(size)
    expected[taken] = u.flatten()[taken].sign()
    for backend in ("rust", "reference"):
        found = direction(u, kappa="topk", kappa_param=k, backend=backend)
        assert torch.equal(found.flatten(), expected), backend


@every_kappa
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rust_is_the_plain_rule(chosen: dict[str, Any], dtype: torch.dtype, isa: str) -> None:
    shapes = [(5, 3), (), (17,), (0, 4), (2, 3, 4, 5), (129, 2), (33_000,), (7, 5000)]
    ours, plain = parameters(shapes, dtype), parameters(shapes, dtype)
    ours[0].data, plain[0].data = ours[0].data.t(), plain[0].data.t()
    options = {"lr": 0.02, "weight_decay": 0.3, "maximize": True, **chosen}
    optimizer, reference = Lion(ours, **options), Lion(plain, **options, backend="reference")
    train(optimizer, ours, 4)
    train(reference, plain, 4)
    assert_close(optimizer, reference, 1e-12 if dtype == torch.float64 else 2e-6 if dtype == torch.float32 else 8e-3)


@every_kappa
@pytest.mark.parametrize("options", [{}, {"rounding": "kahan"}, {"rounding": "stochastic"}], ids=str)
def test_bits_do_not_depend_on_instruction_sets_and_threads(chosen: dict[str, Any], options: dict[str, Any]) -> None:
    results = []
    before = _core.isa(), torch.get_num_threads()
    try:
        for isa, threads in ((before[0], 1), (before[0], 2), ("portable", 3)):
            _core.use_isa(isa)
            torch.set_num_threads(threads)
            params = parameters([(70_000,), (301, 7), (3, 40_000)], torch.bfloat16 if options else torch.float32)
            optimizer = Lion(params, lr=0.1, **chosen, **options)
            train(optimizer, params, 3)
            results.append(optimizer)
    finally:
        _core.use_isa(before[0])
        torch.set_num_threads(before[1])
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@every_kappa
@every_backend
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_what_is_not_finite(chosen: dict[str, Any], special: float, backend: str) -> None:
    u = normal((3, 20), torch.float32, 3)
    u[1, 4] = special
    found = direction(u, **chosen, backend=backend)
    other = direction(u, **chosen, backend="reference")
    assert torch.equal(found.isnan(), other.isnan())
    if chosen["kappa"] in ("lp", "l2"):
        assert found.isnan().all()
    if chosen["kappa"] == "row":
        assert found[1].isnan().all()
        assert found[::2].isfinite().all()


def least(kappa: str, kappa_param: float | None, centre: Tensor) -> Tensor:
    """Where ``abs(p - centre)^2 / 2`` is least under Lion-K with weight decay 1, rates falling to 0."""
    p = torch.nn.Parameter(torch.zeros_like(centre))
    optimizer = Lion([p], betas=(0.9, 0.99), weight_decay=1.0, kappa=kappa, kappa_param=kappa_param)
    for step in range(4000):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.998**step
        p.grad = p.detach() - centre
        optimizer.step()
    return p.detach()


IMPLIED: dict[str, tuple[float | None, Callable[[Tensor], Tensor]]] = {
    "sign": (None, lambda c: c.clamp(-1, 1)),
    "l2": (None, lambda c: c / c.norm().clamp(min=1)),
    "row": (None, lambda c: c / c.norm(dim=1, keepdim=True).clamp(min=1)),
    "deadzone": (0.5, lambda c: (c.sign() * (c.abs() - 0.5).clamp(min=0)).clamp(-1, 1)),
    "huber": (0.5, lambda c: (c / 1.5).clamp(-1, 1)),
    "identity": (None, lambda c: c / 2),
}


@pytest.mark.parametrize("kappa", IMPLIED)
def test_weight_decay_implies_a_problem(kappa: str) -> None:
    kappa_param, solution = IMPLIED[kappa]
    centre = torch.tensor([[3.0, -0.7], [0.3, 0.2], [-1.1, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(least(kappa, kappa_param, centre), solution(centre), rtol=0.0, atol=0.02)


def test_sign_is_todays_lion() -> None:
    ours, plain = parameters([(33,)]), parameters([(33,)])
    first, second = Lion(ours, kappa="sign"), Lion(plain)
    train(first, ours, 3)
    train(second, plain, 3)
    assert_same_bits(first, second)
    assert first.rule(first.param_groups[0]) == second.rule(second.param_groups[0])


def test_a_callable_takes_the_place_of_the_sign() -> None:
    u = normal((5, 33), torch.float64, 3)
    found = direction(u, kappa=lambda u: u / u.abs().sum())
    torch.testing.assert_close(found, u / u.abs().sum(), rtol=1e-15, atol=0.0)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"kappa": torch.sign}, "a callable kappa"),
        ({"kappa": "topk", "kappa_param": 3, "state_dtype": "int8"}, "kappa='topk' with state_dtype='int8'"),
        ({"kappa": "lp", "kappa_param": 9.0}, "kappa='lp' with kappa_param=9.0"),
    ],
    ids=str,
)
def test_what_has_no_kernel_excludes_rust(chosen: dict[str, Any], named: str) -> None:
    with pytest.raises(RuntimeError, match=f"{named} runs in plain torch and excludes backend='rust'"):
        Lion(parameters([(3,)]), **chosen, backend="rust")


def test_groups_may_differ() -> None:
    first, second = parameters([(4, 4), (4, 4)])
    groups = [{"params": [first]}, {"params": [second], "kappa": "huber", "kappa_param": 0.5}]
    optimizer = Lion(groups, lr=0.1)
    train(optimizer, [first, second], 2)
    alone = parameters([(4, 4), (4, 4)])
    huber = Lion(alone, lr=0.1, kappa="huber", kappa_param=0.5)
    train(huber, alone, 2)
    assert bits(second) == bits(alone[1])
    assert bits(first) != bits(alone[0])


REFUSED = [
    *(
        ({"kappa": kappa}, ValueError, f"Invalid kappa_param: None; expected {number.expected} for kappa={kappa!r}")
        for kappa, number in NUMBERS.items()
    ),
    ({"kappa": "lp", "kappa_param": 1.0}, ValueError, "Invalid kappa_param: 1.0; expected a finite number greater"),
    ({"kappa": "lp", "kappa_param": float("inf")}, ValueError, "Invalid kappa_param: inf; expected a finite number"),
    ({"kappa": "lp", "kappa_param": float("nan")}, ValueError, "Invalid kappa_param: nan; expected a finite number"),
    ({"kappa": "topk", "kappa_param": 0}, ValueError, "Invalid kappa_param: 0; expected a whole number of at least 1"),
    ({"kappa": "topk", "kappa_param": 2.5}, TypeError, "kappa_param is a float, expected an integer"),
    ({"kappa": "huber", "kappa_param": 0.0}, ValueError, "Invalid kappa_param: 0.0; expected"),
    ({"kappa": "deadzone", "kappa_param": -0.1}, ValueError, "Invalid kappa_param: -0.1; expected"),
    ({"kappa": "huber", "kappa_param": "1"}, TypeError, "kappa_param is a str, expected"),
    ({"kappa_param": 1.0}, ValueError, "Invalid kappa_param: 1.0; expected None for kappa='sign'"),
    (
        {"kappa": torch.sign, "kappa_param": 1.0},
        ValueError,
        "Invalid kappa_param: 1.0; expected None for a callable kappa",
    ),
    ({"kappa": "nuclear"}, ValueError, "Invalid kappa: 'nuclear' .*Muon"),
    ({"kappa": "hubert"}, ValueError, "Invalid kappa: 'hubert'; expected 'sign', 'lp', .* or 'identity'"),
    ({"kappa": None}, TypeError, "kappa is a NoneType, expected a str or a callable"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_impossible_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    params = parameters([(3,)])
    with pytest.raises(error, match=message):
        Lion(params, **arguments)
    optimizer = Lion(params)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": parameters([(4,)]), **arguments})
    optimizer.param_groups[0].update(arguments)
    before = bits(params[0])
    params[0].grad = torch.ones(3)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert bits(params[0]) == before


@pytest.mark.parametrize("chosen", OF_WHOLE, ids=str)
def test_norms_are_of_real_numbers(chosen: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=f"kappa='{chosen['kappa']}' does not support complex parameters"):
        Lion(parameters([(3,)], torch.complex64), **chosen)


@every_kappa
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_arrays_have_the_same_bits(chosen: dict[str, Any], dtype: Any) -> None:
    if chosen["kappa"] == "lp" and chosen["kappa_param"] > LARGEST_SUMMED:
        pytest.skip("runs in plain torch")
    p = torch.nn.Parameter(normal((37, 90), getattr(torch, dtype.__name__), 1))
    param, exp_avg = p.detach().numpy().copy(), np.zeros((37, 90), dtype)
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2, **chosen}
    optimizer = Lion([p], **options)
    for step in range(3):
        p.grad = normal((37, 90), p.dtype, 2, step)
        optimizer.step()
        ferrostep.numpy.lion_(param, p.grad.numpy(), exp_avg, **options)
    assert param.tobytes() == bits(p)
    assert exp_avg.tobytes() == bits(optimizer.state[p]["exp_avg"])


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        *((chosen, error, message) for chosen, error, message in REFUSED if chosen.get("kappa") is not torch.sign),
        ({"kappa": torch.sign}, TypeError, "kappa is a .*, expected a str, as a callable takes torch's tensors"),
        ({"kappa": "lp", "kappa_param": 9.0}, ValueError, "Invalid kappa_param: 9.0; expected at most 8.0 for arrays"),
    ],
    ids=str,
)
def test_arrays_refuse_the_same(chosen: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays = [np.ones(3, np.float32) for _ in range(3)]
    with pytest.raises(error, match=message):
        ferrostep.numpy.lion_(*arrays, **chosen)
    assert all((array == 1).all() for array in arrays)


@pytest.mark.parametrize("chosen", [chosen for chosen in OF_WHOLE if chosen["kappa_param"] != 20.0], ids=str)
def test_norms_of_arrays_are_of_real_numbers(chosen: dict[str, Any]) -> None:
    arrays = [np.ones(3, np.complex64) for _ in range(3)]
    with pytest.raises(
        TypeError, match=f"param has dtype complex64, expected float32, .* for kappa='{chosen['kappa']}'"
    ):
        ferrostep.numpy.lion_(*arrays, **chosen)


def test_the_guides_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    exec(compile(example, GUIDE.name, "exec"), {})


def test_the_guide_has_every_kappa() -> None:
    rows = re.findall(r"^\| `\"(\w+)\"`", GUIDE.read_text(), re.M)
    assert sorted(rows) == sorted(get_args(choices.Kappa))


def test_every_kappa_has_its_rule_in_rust() -> None:
    assert set(KERNELS) == set(get_args(choices.Kappa))
    assert set(KERNELS.values()) <= set(_core.rules())
