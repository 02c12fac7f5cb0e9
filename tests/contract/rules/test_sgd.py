"""How SGD begins: a parameter's momentum is its first gradient, whenever that comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ferrostep.optim import SGD
from tests.contract.rules.registry import MOMENTUM
from tests.contract.training import assert_close, assert_same_bits, copies, parameters, set_gradients, train

SHAPES = ((5, 3), (17,), (2, 4))
every_backend = pytest.mark.parametrize("backend", ["rust", "reference"])


def step(optimizer: Any, params: Any, number: int, without: tuple[int, ...] = ()) -> None:
    """Step ``number``, in which some parameters have no gradient."""
    set_gradients(params, number)
    for i in without:
        params[i].grad = None
    optimizer.step()


@every_backend
def test_parameters_may_begin_at_different_steps(backend: str) -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, peer = SGD(ours, **MOMENTUM, backend=backend), torch.optim.SGD(theirs, **MOMENTUM)
    for number, without in enumerate([(0, 2), (1,), (), ()]):
        for params, each in ((ours, optimizer), (theirs, peer)):
            step(each, params, number, without)
        assert_close(optimizer, peer, 1e-12, least_size=1.0)


@every_backend
@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"rounding": "kahan"}, {"master_weights": "split"}])
def test_they_may_with_each_rounding(backend: str, options: dict[str, Any]) -> None:
    """The momentum of the one that begins later is its gradient in the state's dtype."""
    params = parameters(SHAPES, torch.bfloat16)
    optimizer = SGD(params, lr=0.1, momentum=0.9, dampening=0.5, **options, backend=backend)
    step(optimizer, params, 0, without=(1,))
    assert params[1] not in optimizer.state
    step(optimizer, params, 1)
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], params[1].grad.float())
    assert not torch.equal(optimizer.state[params[0]]["momentum_buffer"], params[0].grad.float())


@every_backend
@pytest.mark.parametrize("lost", [{}, {"momentum_buffer": None}], ids=["absent", "None"])
def test_a_loaded_state_without_momentum_begins_as_torchs(backend: str, lost: dict[str, Any]) -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, peer = SGD(ours, **MOMENTUM, backend=backend), torch.optim.SGD(theirs, **MOMENTUM)
    for params, each in ((ours, optimizer), (theirs, peer)):
        train(each, params, 2)
        saved = each.state_dict()
        saved["state"][1] = lost
        each.load_state_dict(saved)
        train(each, params, 2, start=2)
    assert_close(optimizer, peer, 1e-12, least_size=1.0)


@every_backend
@pytest.mark.parametrize("options", [{}, {"rounding": "stochastic"}, {"rounding": "kahan"}], ids=str)
def test_momentum_may_come_later(backend: str, options: dict[str, Any]) -> None:
    """Also where steps without it have left something in the state."""
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer = SGD(ours, lr=0.1, backend=backend, **options)
    for params, each in ((ours, optimizer), (theirs, torch.optim.SGD(theirs, lr=0.1))):
        train(each, params, 2)
        each.param_groups[0]["momentum"] = 0.8
        train(each, params, 2, start=2)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@every_backend
def test_a_skipped_step_is_not_the_first(backend: str) -> None:
    params, others = parameters(SHAPES), parameters(SHAPES)
    optimizer = SGD(params, **MOMENTUM, skip_nonfinite=True, backend=backend)
    set_gradients(params, 0)
    params[1].grad[3] = float("nan")
    before = copies(optimizer)
    optimizer.step()
    assert_same_bits(optimizer, before)
    other = SGD(others, **MOMENTUM, backend=backend)
    train(optimizer, params, 3)
    train(other, others, 3)
    assert_same_bits(optimizer, other)


@every_backend
def test_ema_init_begins_with_the_average_from_zeros_on(backend: str) -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SGD([p], lr=1.0, momentum=0.75, dampening=0.75, ema_init=True, backend=backend)
    for grad, expected in ((4.0, 1.0), (4.0, 1.75), (0.0, 1.3125)):
        p.grad = torch.full_like(p, grad)
        optimizer.step()
        assert optimizer.state[p]["momentum_buffer"].item() == expected
    assert p.item() == -(1.0 + 1.75 + 1.3125)
