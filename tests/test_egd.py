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


def stepped(values: Sequence[float], grad: Sequence[float], steps: int = 1, dtype: Any = torch.float64, **own: Any) -> Tensor:
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
    with pytest.warns(UserWarning, match="parameter 1 in group 0 has 2 zeros.*update='gd'") as caught:
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
        ({"update": "sgd"}, "Invalid update: 'sgd'; expected 'eg' or 'gd'"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EGD([torch.ones(2)], **arguments)
