"""EGD: oracles of the spec, signs, zeros, floors and clamps, and a public form of the same rule."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import _core
from ferrostep.optim import EGD
from tests.contract.training import bits, normal, parameters, set_gradients, train

both = pytest.mark.parametrize("backend", ["rust", "reference"])
P = (1.0, -1.0, 0.5, 0.0)
G = (1.0, 1.0, -2.0, 3.0)


def stepped(
    values: Sequence[float], grad: Sequence[float], steps: int = 1, dtype: Any = torch.float64, **own: Any
) -> Tensor:
    """The parameter after steps with the same gradient."""
    p = Parameter(torch.tensor(values, dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer = EGD([p], **{"lr": 0.1, **own})
    for _ in range(steps):
        p.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
    return p.detach()


def close(actual: Tensor, expected: Sequence[float] | Tensor, relative: float = 1e-14) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=relative, atol=0)


@pytest.mark.smoke
@both
def test_by_hand(backend: str) -> None:
    e = math.exp
    close(stepped(P, G, backend=backend), (e(-0.1), -e(0.1), 0.5 * e(0.2), 0.0))
    close(stepped(P, G, 2, backend=backend), (0.8187307531, -1.2214027582, 0.7459123488, 0.0), 1e-9)
    close(stepped(P, G, maximize=True, backend=backend), (e(0.1), -e(-0.1), 0.5 * e(-0.2), 0.0))
    close(stepped(P, G, 3, weight_decay=0.4, backend=backend), (e(-0.42), -e(0.18), 0.5 * e(0.48), 0.0))
    # Momentum sums up 1, 1.5, 1.75; the decay is the same in every step.
    arguments = {"momentum": 0.5, "weight_decay": 0.4, "backend": backend}
    close(stepped(P, G, 3, **arguments), (e(-0.545), -e(0.305), 0.5 * e(0.73), 0.0))
    # Adam's first directions are signs.
    close(stepped(P, G, 1, adam=True, eps=0.0, backend=backend), (e(-0.1), -e(0.1), 0.5 * e(0.1), 0.0))
    close(stepped(P, G, update="gd", weight_decay=0.4, backend=backend), (0.86, -1.06, 0.68, -0.3))


@both
def test_is_linear_in_logarithms(backend: str) -> None:
    p = normal((300,), torch.float64, 1)
    q = Parameter(p.clone())
    optimizer = EGD([q], lr=0.05, backend=backend)
    total = torch.zeros_like(p)
    for step in range(10):
        q.grad = normal((300,), torch.float64, 2, step)
        total += q.grad
        optimizer.step()
    torch.testing.assert_close(q.detach().abs().log(), p.abs().log() - 0.05 * p.sign() * total, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@both
def test_signs_never_change(dtype: torch.dtype, backend: str) -> None:
    params = parameters([(3, 70), (41,)], dtype)
    before = [p.sign() for p in params]
    optimizer = EGD(params, lr=0.5, momentum=0.5, min_abs=2.0**-14, backend=backend)
    train(optimizer, params, 8)
    for p, signs in zip(params, before, strict=True):
        assert torch.equal(p.sign(), signs)


@both
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
def test_zero_stays_zero(special: float, backend: str, isa: str) -> None:
    for options in ({}, {"momentum": 0.9}, {"adam": True}):
        p = stepped([0.0, -0.0] * 20, [special] * 40, 2, torch.float32, backend=backend, **options)
        assert bits(p) == bits(torch.tensor([0.0, -0.0] * 20))


@both
def test_infinite_gradients_multiply_by_the_limits(backend: str, isa: str) -> None:
    inf = math.inf
    moved = stepped([0.5, 0.5, -0.5, -0.5], [inf, -inf, inf, -inf], dtype=torch.float32, backend=backend)
    least = torch.finfo(torch.float32).smallest_normal
    assert moved.tolist() == [least, inf, -inf, -least]
    assert stepped([1.0], [math.nan], backend=backend).isnan().all()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("update", ["eg", "eg+-"])
def test_infinite_weights_stay_so(update: Any, dtype: torch.dtype, backend: str, isa: str) -> None:
    inf = math.inf
    weights, gradients = [inf, -inf] * 9, [1.0, -2.0, -1.0, 2.0, 0.0, 0.0, inf, inf, -inf, -inf] + [3.0] * 8
    options: dict[str, Any] = {"update": update, "dtype": dtype, "backend": backend}
    for limit in (None, 0.5):
        assert stepped(weights, gradients, max_exponent=limit, **options).tolist() == weights
    among = stepped([1.0, inf, -inf, inf], [-1.0, 1.0, 1.0, math.nan], **options)
    assert 1.1 < among[0] < 1.2 and among[1:3].tolist() == [inf, -inf] and among[3].isnan()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("update", ["eg", "eg+-"])
def test_weights_near_the_greatest_number_are_finite_where_they_shrink(
    update: Any, dtype: torch.dtype, backend: str, isa: str
) -> None:
    greatest, eps = torch.finfo(dtype).max, torch.finfo(dtype).eps
    exponents = torch.linspace(0.0, 8.0, 100, dtype=dtype)
    shrunk = stepped([greatest] * 100, exponents.tolist(), dtype=dtype, lr=1.0, update=update, backend=backend)
    close(shrunk, (greatest * (-exponents.double()).exp()), (8192 if update == "eg+-" else 4) * eps)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("update", ["eg", "eg+-"])
def test_weights_that_grow_beyond_the_greatest_number_are_infinite(
    update: Any, dtype: torch.dtype, backend: str, isa: str
) -> None:
    greatest, exponents = torch.finfo(dtype).max, torch.linspace(0.4, 80.0, 100, dtype=dtype)
    for sign in (1.0, -1.0):
        slopes = (-sign * exponents).tolist()
        grown = stepped([sign * greatest] * 100, slopes, dtype=dtype, lr=1.0, update=update, backend=backend)
        assert torch.equal(grown, torch.full_like(grown, sign * math.inf))


@both
def test_a_lesser_weight_whose_power_is_beyond_the_range_is_within(backend: str) -> None:
    (moved,) = stepped([1e30], [100.0], dtype=torch.float32, lr=1.0, update="eg+-", backend=backend)
    assert moved.isfinite()


@both
def test_a_power_beyond_the_range_may_have_a_product_within(backend: str, isa: str) -> None:
    moved = stepped([1e-38, -3e38], [-120.0, -120.0], dtype=torch.float32, lr=1.0, backend=backend)
    close(moved.double(), (1e-38 * math.exp(120.0), -3e38 * math.exp(-120.0)), 1e-6)


@both
def test_an_exponent_is_clamped_as_a_whole(backend: str) -> None:
    moved = stepped([1.0, -1.0, 1.0, 0.0], [50.0, 50.0, 5.0, 50.0], max_exponent=1.0, weight_decay=1.0, backend=backend)
    close(moved, (math.exp(-1), -math.exp(1), math.exp(-0.6), 0.0))
    assert stepped([1.0], [math.nan], max_exponent=1.0, backend=backend).isnan().all()


@both
def test_no_step_takes_a_weight_below_the_floor(backend: str, isa: str) -> None:
    moved = stepped([1.0, -1.0, 1e-3, 0.0], [99.0, -99.0, 99.0, 1.0], min_abs=1e-2, backend=backend)
    assert moved.tolist() == [1e-2, -1e-2, 1e-3, 0.0]
    least = torch.finfo(torch.float32).smallest_normal
    assert stepped([1.0], [1e4], dtype=torch.float32, backend=backend).item() == least
    assert stepped([1.0], [1e5], backend=backend).item() == torch.finfo(torch.float64).smallest_normal


def test_small_steps_add_up_in_bfloat16() -> None:
    for way in ({"rounding": "kahan"}, {"master_weights": "split"}):
        p = stepped([1.0, -2.0], [1.0, -1.0], 200, torch.bfloat16, lr=1e-3, **way)
        close(p, (math.exp(-0.2), -2 * math.exp(-0.2)), 2.0**-8)
    p = stepped([1.0] * 4000, [1.0] * 4000, 200, torch.bfloat16, lr=1e-3, rounding="stochastic")
    assert p.double().mean().item() == pytest.approx(math.exp(-0.2), rel=2e-3)
    assert stepped([1.0], [1.0], 200, torch.bfloat16, lr=1e-3).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_state_every_instruction_set_gives_the_same_bits(dtype: torch.dtype, isa: str) -> None:
    results = []
    for name in (isa, "portable"):
        before = _core.isa()
        _core.use_isa(name)
        try:
            params = parameters([(1037,)], dtype)
            train(EGD(params, lr=0.1), params, 5)
        finally:
            _core.use_isa(before)
        results.append(bits(params[0]))
    assert results[0] == results[1]


def test_one_warning_tells_of_zeros() -> None:
    gain, bias = Parameter(torch.ones(3)), Parameter(torch.tensor([0.0, 1.0, 0.0]))
    with pytest.warns(UserWarning, match=r"parameter 1 in group 0 has 2 zeros.*update='gd'") as caught:
        optimizer = EGD([gain, bias])
        optimizer.add_param_group({"params": [Parameter(torch.zeros(2))]})
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EGD([{"params": [gain]}, {"params": [bias], "update": "gd"}])
        copy.deepcopy(optimizer)


def test_groups_choose_their_update() -> None:
    weight, bias = Parameter(torch.ones(3)), Parameter(torch.zeros(3))
    optimizer = EGD([{"params": [weight]}, {"params": [bias], "update": "gd", "lr": 0.5, "adam": True}], lr=0.1)
    set_gradients([weight, bias], 0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), (-0.1 * weight.grad).exp())
    torch.testing.assert_close(bias.detach(), -0.5 * bias.grad.sign())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "Invalid momentum value: 1.0"),
        ({"momentum": 0.5, "adam": True}, "momentum=0.5 and adam=True exclude each other"),
        ({"max_exponent": 0.0}, "Invalid max_exponent value: 0.0; expected a finite number greater than 0"),
        ({"min_abs": -1.0}, "Invalid min_abs value: -1.0"),
        ({"update": "sgd"}, "Invalid update: 'sgd'; expected 'eg', 'eg[+]-' or 'gd'"),
        ({"hypentropy_beta": 0.0}, "Invalid hypentropy_beta value: 0.0"),
        ({"update": "eg+-", "simplex_dim": 0}, "simplex_dim=0 and update='eg[+]-' exclude each other"),
        ({"update": "eg+-", "min_abs": 0.1}, "min_abs=0.1 and update='eg[+]-' exclude each other"),
        ({"update": "eg+-", "noise": 0.1}, "noise=0.1 and update='eg[+]-' exclude each other"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EGD([torch.ones(2)], **arguments)


@pytest.mark.smoke
@both
def test_free_signs_by_hand(backend: str) -> None:
    """From ``p cosh(z) + sqrt(p^2 + beta^2) sinh(z)``: 0 leaves 0, and a small weight changes its sign."""
    e, beta = math.exp, 0.75
    moved = stepped((1.0, -1.0, 0.0, 0.1), (1.0, 1.0, -2.0, 4.0), update="eg+-", hypentropy_beta=beta, backend=backend)
    expected = [
        math.cosh(0.1) - 1.25 * math.sinh(0.1),
        -math.cosh(0.1) - 1.25 * math.sinh(0.1),
        0.75 * math.sinh(0.2),
        0.1 * math.cosh(0.4) - math.hypot(0.1, 0.75) * math.sinh(0.4),
    ]
    assert expected[-1] < 0
    close(moved, expected)
    decayed = stepped((1.0,), (1.0,), update="eg+-", hypentropy_beta=beta, weight_decay=0.4, backend=backend)
    close(decayed, [e(-0.04) * expected[0]])
    ascended = stepped((1.0,), (-1.0,), update="eg+-", hypentropy_beta=beta, maximize=True, backend=backend)
    close(ascended, expected[:1])


DIRECTIONS: dict[str, dict[str, Any]] = {"plain": {}, "momentum": {"momentum": 0.5}, "adam": {"adam": True}}


@both
@pytest.mark.parametrize("options", DIRECTIONS.values(), ids=DIRECTIONS)
def test_free_signs_are_those_of_two_weights(options: dict[str, Any], backend: str) -> None:
    """EG+-: one weight follows EGD, the other the opposite gradients, and the parameter is their difference."""
    beta, own = 0.3, {"lr": 0.05, "backend": backend, **options}
    p = Parameter(normal((300,), torch.float64, 1))
    total = torch.hypot(p.detach(), torch.tensor(beta, dtype=torch.float64))
    plus, minus = Parameter((total + p.detach()) / 2), Parameter((total - p.detach()) / 2)
    free = EGD([p], update="eg+-", hypentropy_beta=beta, **own)
    both_weights = EGD([{"params": [plus]}, {"params": [minus], "maximize": True}], **own)
    signs = p.detach().sign()
    for step in range(20):
        p.grad = normal((300,), torch.float64, 2, step)
        plus.grad = minus.grad = p.grad
        free.step()
        both_weights.step()
    torch.testing.assert_close(p.detach(), (plus - minus).detach(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close((plus * minus).detach(), torch.full_like(p, beta**2 / 4), rtol=1e-11, atol=0)
    assert (p.detach().sign() != signs).any()


@both
def test_free_signs_lie_between_descent_and_egd(backend: str) -> None:
    """Weights far below beta move as by gradient descent with ``lr * beta``, those far above as by EGD."""
    small, large = (1e-9, -2e-9, 0.0), (1e9, -2e9, 3e9)
    gradient = (1.0, 2.0, -1.0)
    moved = stepped(small, gradient, lr=1e-10, update="eg+-", hypentropy_beta=1.0, backend=backend)
    close(moved, torch.tensor(small, dtype=torch.float64) - 1e-10 * torch.tensor(gradient, dtype=torch.float64), 1e-9)
    moved = stepped(large, gradient, update="eg+-", hypentropy_beta=1.0, backend=backend)
    close(moved, stepped(large, gradient, backend=backend))


@both
def test_free_signs_at_the_ends_of_the_range(backend: str, isa: str) -> None:
    inf = math.inf
    options: dict[str, Any] = {"dtype": torch.float32, "update": "eg+-", "backend": backend}
    assert stepped([0.5, -0.5, 0.0] * 9, [inf, inf, -inf] * 9, **options).tolist() == [-inf, -inf, inf] * 9
    assert stepped([1e30, -1e30, 1e-30, 0.0] * 9, [0.0] * 36, **options).tolist() == pytest.approx(
        [1e30, -1e30, 1e-30, 0.0] * 9, rel=1e-6
    )
    limited = stepped([0.0, 1.0], [1e9, -1e9], max_exponent=1.0, **options)
    close(limited, [-1e-2 * math.sinh(1), math.cosh(1) + math.hypot(1, 1e-2) * math.sinh(1)], 1e-6)
    assert stepped([1.0], [math.nan], **options).isnan().all()
    greatest = torch.finfo(torch.float32).max
    kept = stepped([greatest, -greatest] * 9, [0.0] * 18, **options)
    assert kept.tolist() == [greatest, -greatest] * 9


def test_free_signs_warn_of_no_zeros() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EGD([torch.zeros(3)], update="eg+-")


SIMPLEX = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]], dtype=torch.float64)


@both
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_on_the_simplex_it_is_hedge(dim: int, backend: str) -> None:
    """The weights are those of the summed losses (Hedge), whichever way the rows lie; a 0 stays 0."""
    rows = SIMPLEX if dim else SIMPLEX.T
    p = Parameter(rows.clone())
    with pytest.warns(UserWarning, match="zeros"):
        optimizer = EGD([p], lr=0.2, simplex_dim=dim, backend=backend)
    total = torch.zeros_like(rows)
    for step in range(5):
        p.grad = normal(rows.shape, torch.float64, 3, step)
        total += p.grad
        optimizer.step()
    torch.testing.assert_close(p.detach(), (rows.log() - 0.2 * total).softmax(dim), rtol=1e-13, atol=0)
    assert (p.detach() == 0).equal(rows == 0)


def rows_of(shape: Sequence[int], dtype: torch.dtype) -> Parameter:
    return Parameter(normal(shape, torch.float64, 4).softmax(-1).to(dtype))


@pytest.mark.parametrize("shape", [(7, 3), (5, 1), (2, 40_000), (0, 4), (3, 0), (4000, 17), (2, 3, 33)], ids=str)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"adam": True}], ids=str)
def test_rows_of_any_length_equal_the_reference(shape: tuple[int, ...], options: dict[str, Any], isa: str) -> None:
    if 0 in shape[-1:]:
        with pytest.raises(ValueError, match="an element along dim"):
            EGD([rows_of(shape, torch.float32)], simplex_dim=-1)
        return
    results = []
    for backend in ("rust", "reference"):
        p = rows_of(shape, torch.float32)
        optimizer = EGD([p], lr=0.1, simplex_dim=-1, backend=backend, **options)
        train(optimizer, [p], 3)
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=3e-6, atol=0)
    torch.testing.assert_close(
        results[0].double().sum(-1), torch.ones(shape[:-1], dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_the_same_bits_on_every_instruction_set_and_thread(
    dtype: torch.dtype, rounding: str, isa: str
) -> None:
    results = []
    for name, threads in ((isa, 1), (isa, 3), ("portable", 1)):
        before, some = _core.isa(), torch.get_num_threads()
        _core.use_isa(name)
        torch.set_num_threads(threads)
        try:
            p = rows_of((1000, 70), dtype)
            train(EGD([p], lr=0.1, momentum=0.5, simplex_dim=-1, rounding=rounding), [p], 2)
        finally:
            _core.use_isa(before)
            torch.set_num_threads(some)
        results.append(bits(p))
    assert results[0] == results[1] == results[2]


def test_kahan_keeps_rows_on_the_simplex() -> None:
    p = rows_of((64, 50), torch.bfloat16)
    optimizer = EGD([p], lr=1e-3, simplex_dim=-1, rounding="kahan")
    train(optimizer, [p], 20)
    sums = (p.double() + optimizer.state[p]["kahan_comp"].double()).sum(-1)
    assert (sums - 1).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("rows", "arguments", "error", "message"),
    [
        ([0.5, 0.6], {}, ValueError, "parameter 1 has a row along dim -1 with sum 1.1"),
        ([1.5, -0.5], {}, ValueError, "parameter 1 has numbers that are negative"),
        ([math.nan, 1.0], {}, ValueError, "parameter 1 has numbers that are negative or NaN"),
        ([0.5, 0.5], {"simplex_dim": 1}, IndexError, "Invalid dim: 1; expected -1 to 0 for parameter"),
        ([0.5, 0.5], {"weight_decay": 0.1}, ValueError, "weight_decay=0.1 and simplex_dim exclude each other"),
        ([0.5, 0.5], {"noise": 0.1}, ValueError, "noise=0.1 and simplex_dim exclude each other"),
    ],
    ids=str,
)
def test_what_is_not_on_the_simplex_is_refused(
    rows: list[float], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    good, bad = torch.tensor([0.25, 0.75]), torch.tensor(rows)
    with pytest.raises(error, match=message):
        EGD([good, bad], **{"simplex_dim": -1, **arguments})
    EGD([{"params": [good]}, {"params": [bad], "update": "gd"}], simplex_dim=-1)


@pytest.mark.parametrize("shape", [(300, 211), (5,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_normal_in_the_logarithm(shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    found = []
    for backend in ("rust", "reference"):
        p = Parameter(torch.ones(shape, dtype=dtype))
        p.grad = torch.zeros_like(p)
        EGD([p], lr=0.04, noise=0.5, seed=11, backend=backend).step()
        found.append(p.detach().double().log() / 0.1)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=3e-6)
    if found[0].numel() > 100:
        z = found[0].flatten()
        assert abs(z.mean()) < 0.016 and abs(z.var() - 1) < 0.023  # four standard errors
        assert abs(torch.corrcoef(torch.stack((z[:-1], z[1:])))[0, 1]) < 0.016


@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_noise_follows_from_the_seed_alone(dtype: torch.dtype, rounding: str) -> None:
    """Whatever the threads and instruction sets, and in a run that is resumed."""
    results = []
    for seed, threads, name in ((3, 1, "portable"), (3, 3, _core.isa()), (4, 1, _core.isa())):
        before, some = _core.isa(), torch.get_num_threads()
        _core.use_isa(name)
        torch.set_num_threads(threads)
        try:
            params = parameters([(300, 301), (5, 7)], dtype)
            options: dict[str, Any] = {"lr": 0.01, "noise": 2.0, "momentum": 0.5, "rounding": rounding}
            optimizer = EGD(params, seed=seed, **options)
            train(optimizer, params, 2)
            resumed = EGD(params, **options)
            resumed.load_state_dict(optimizer.state_dict())
            train(resumed if threads == 1 else optimizer, params, 2, start=2)
        finally:
            _core.use_isa(before)
            torch.set_num_threads(some)
        results.append([bits(p) for p in params])
    assert results[0] == results[1] != results[2]


@both
def test_momentum_may_come_later_but_not_adam(backend: str) -> None:
    """The noise counts steps; a momentum begins at any of them, and Adam's averages only at the first."""
    (p,), (q,) = params, others = parameters([(9,)]), parameters([(9,)])
    options = {"lr": 0.1, "noise": 0.5, "backend": backend}
    optimizer, other = EGD(params, **options), EGD(others, **options, momentum=0.5)
    train(optimizer, params, 2)
    other.state[q]["step"] = optimizer.state[p]["step"].clone()
    q.data.copy_(p)
    optimizer.param_groups[0]["momentum"] = 0.5
    other.state[q]["momentum_buffer"] = torch.zeros_like(q)
    train(optimizer, params, 2, start=2)
    train(other, others, 2, start=2)
    assert bits(p) == bits(q)
    late = EGD(parameters([(9,)]), **options)
    train(late, late.param_groups[0]["params"], 1)
    late.param_groups[0]["adam"] = True
    with pytest.raises(KeyError, match="has step, but no exp_avg, exp_avg_sq"):
        train(late, late.param_groups[0]["params"], 1)


def test_noise_keeps_signs_and_zeros_and_leaves_descent_alone() -> None:
    values = torch.tensor([1e-38, -1e-38, 0.0, -0.0] * 10)
    p = Parameter(values.clone())
    q = Parameter(values.clone())
    with pytest.warns(UserWarning, match="zeros"):
        optimizer = EGD([{"params": [p]}, {"params": [q], "update": "gd"}], lr=1.0, noise=9.0)
    for _ in range(4):
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
        optimizer.step()
    assert torch.equal(p.sign(), values.sign()) and not torch.equal(p, values)
    assert torch.equal(q, values)


def test_a_generator_is_no_seed() -> None:
    with pytest.raises(TypeError, match="seed"):
        EGD([torch.ones(2)], noise=1.0, seed=torch.Generator())
