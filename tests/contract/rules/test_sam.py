"""SAM around any optimizer: the papers' step, the weights back with every bit, and the base optimizer's interface."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.offload import HostOptimizer
from ferrostep.optim import NIGT, SAM, AdamW, Muon
from tests.contract.training import assert_close, assert_same_bits, bits, copies, parameters, set_gradients

BASES: tuple[Callable[..., torch.optim.Optimizer], ...] = (
    lambda params: AdamW(params, lr=0.01),
    lambda params: AdamW(params, lr=0.01, backend="reference", max_grad_norm=1.0),
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params: NIGT(params, lr=0.01),
)
every_base = pytest.mark.parametrize("base", BASES, ids=["AdamW", "reference", "torch-SGD", "NIGT"])


def loss_of(params: list[Parameter]) -> Tensor:
    """A quartic, of which gradients differ from point to point."""
    return sum((p.abs() ** 4 / 4 + p.abs() ** 2 * (i + 1)).sum() for i, p in enumerate(params))


def closure_of(params: list[Parameter]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = loss_of(params)
        loss.backward()
        return loss

    return closure


def plain_step(base: torch.optim.Optimizer, params: list[Parameter], rho: float, adaptive: bool) -> None:
    """The papers' step, in plain torch."""
    base.zero_grad()
    loss_of(params).backward()
    with torch.no_grad():
        ways = [(p.grad * (p.abs() if adaptive else 1.0)) for p in params]
        norm = sum(way.abs().double().square().sum() for way in ways) ** 0.5
        before = [p.clone() for p in params]
        for p in params:
            p += p.grad * (p.abs() ** 2 if adaptive else 1.0) * (rho / (norm.item() + 1e-12))
    base.zero_grad()
    loss_of(params).backward()
    with torch.no_grad():
        for p, weights in zip(params, before, strict=True):
            p.copy_(weights)
    base.step()


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_the_papers_step(base: Any, adaptive: bool, dtype: torch.dtype) -> None:
    ours, theirs = parameters([(30,), (), (5, 7)], dtype), parameters([(30,), (), (5, 7)], dtype)
    optimizer, other = SAM(base(ours), rho=0.3, adaptive=adaptive), base(theirs)
    for step in range(3):
        expected = loss_of(ours)
        loss = optimizer.step(closure_of(ours))
        assert torch.equal(loss, expected), step
        plain_step(other, theirs, 0.3, adaptive)
    assert_close(optimizer, other, 1e-5 if dtype == torch.float32 else 1e-12, least_size=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_weights_come_back_with_every_bit(dtype: torch.dtype, adaptive: bool, isa: str) -> None:
    params = parameters([(300,), (), (0, 3), (5, 7)], dtype)
    params[3].data = params[3].data.t().contiguous().t()
    optimizer = SAM(torch.optim.SGD(params, lr=0.0), rho=0.3, adaptive=adaptive)
    before = [bits(p) for p in params]
    set_gradients(params, 0)
    optimizer.first_step()
    assert [bits(p) for p in params] != before and all(p.grad is not None for p in params)
    optimizer.second_step(zero_grad=True)
    assert [bits(p) for p in params] == before and all(p.grad is None for p in params)


def test_the_way_is_as_long_as_rho() -> None:
    params = parameters([(300,), (5, 7)], torch.float64)
    before = [p.detach().clone() for p in params]
    optimizer = SAM(AdamW(params), rho=0.25)
    set_gradients(params, 0)
    optimizer.first_step(zero_grad=True)
    moved = sum((p.detach() - old).square().sum() for p, old in zip(params, before, strict=True)) ** 0.5
    assert moved.item() == pytest.approx(0.25)
    assert all(p.grad is None for p in params)


@every_base
def test_an_error_in_the_closure_restores_the_weights(base: Any) -> None:
    params = parameters([(30,), (5, 7)])
    optimizer = SAM(base(params))
    before = copies(optimizer)
    calls = []

    def closure() -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure_of(params)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_same_bits(copies(optimizer), before)
    optimizer.step(closure)


def test_parameters_without_gradients_stay() -> None:
    params = parameters([(3,), (4,)])
    optimizer = SAM(torch.optim.SGD(params, lr=0.1))
    params[0].grad = torch.ones(3)
    before = bits(params[1])
    optimizer.first_step()
    assert bits(params[1]) == before
    optimizer.second_step()
    assert bits(params[1]) == before


@every_base
def test_schedulers_checkpoints_and_copies_see_the_base_optimizer(base: Any) -> None:
    params, others = parameters([(30,), (5, 7)]), parameters([(30,), (5, 7)])
    optimizer, other = SAM(base(params)), SAM(base(others))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step(closure_of(params))
    scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == rate / 2
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups is other.base_optimizer.param_groups
    for each, own in ((optimizer, params), (other, others)):
        each.step(closure_of(own))
    assert_same_bits(optimizer, other)
    again = pickle.loads(pickle.dumps(copy.deepcopy(optimizer)))
    assert_same_bits(again, optimizer)
    assert (again.rho, again.adaptive) == (0.05, False)
    optimizer.add_param_group({"params": parameters([(2,)])})
    assert len(optimizer.base_optimizer.param_groups) == 2


def test_the_hooks_of_checkpoints_are_called() -> None:
    optimizer, calls = SAM(AdamW(parameters([(3,)]))), []

    def seen(name: str) -> Callable[..., None]:
        return lambda owner, *_state_dict: calls.append((name, owner))

    optimizer.register_state_dict_pre_hook(seen("before saving"))
    optimizer.register_state_dict_post_hook(seen("after saving"))
    optimizer.register_load_state_dict_pre_hook(seen("before loading"))
    optimizer.register_load_state_dict_post_hook(seen("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    names = ["before saving", "after saving", "before loading", "after loading"]
    assert calls == [(name, optimizer) for name in names]


def test_a_copy_between_both_steps_knows_the_way_back() -> None:
    params = parameters([(30,), (5, 7)])
    optimizer = SAM(AdamW(params), rho=0.5)
    closure_of(params)()
    optimizer.first_step(zero_grad=True)
    others, other = copy.deepcopy((params, optimizer))
    for each, own in ((optimizer, params), (other, others)):
        closure_of(own)()
        each.second_step()
    assert_same_bits(other, optimizer)


def test_schedulers_take_the_second_step_for_a_step(recwarn: pytest.WarningsRecorder) -> None:
    params = parameters([(3,)])
    optimizer = SAM(AdamW(params))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    set_gradients(params, 0)
    optimizer.first_step()
    optimizer.second_step()
    scheduler.step()
    assert not recwarn


@every_base
def test_a_step_without_any_gradient_leaves_the_weights(base: Any) -> None:
    """As torch's: all parameters may be frozen for a while."""
    params = parameters([(3,), (4,)])
    optimizer = SAM(base(params))
    before = copies(optimizer)
    assert optimizer.step(lambda: 1.5) == 1.5
    assert_same_bits(optimizer, before)
    optimizer.step(closure_of(params))
    assert bits(params[0]) != bits(before["0.0.param"])


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), "1", None, torch.ones(2)], ids=str)
def test_an_impossible_rho_between_steps_is_refused(rho: Any) -> None:
    optimizer = SAM(AdamW(parameters([(3,)])), rho=0.5)
    with pytest.raises((TypeError, ValueError), match="rho"):
        optimizer.rho = rho
    assert optimizer.rho == 0.5


def test_a_base_of_matrices() -> None:
    params = parameters([(6, 5)])
    optimizer = SAM(Muon(params, lr=0.01))
    before = bits(params[0])
    optimizer.step(closure_of(params))
    assert bits(params[0]) != before


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda params: SAM(params), TypeError, "base_optimizer is a list, expected a torch.optim.Optimizer"),
        (lambda params: SAM(AdamW(params), rho=-0.1), ValueError, "Invalid rho: -0.1; expected a finite number"),
        (lambda params: SAM(AdamW(params), rho="1"), TypeError, "rho is a str, expected a number"),
        (lambda params: SAM(AdamW(params), adaptive="no"), TypeError, "adaptive is a str, expected a bool"),
        (lambda params: SAM(AdamW(params)).step(), TypeError, "SAM.step needs a closure"),
        (lambda params: SAM(AdamW(params)).second_step(), RuntimeError, "second_step was called without first_step"),
        (
            lambda params: SAM(HostOptimizer(params, torch.optim.AdamW, offload_gradients=True)).first_step(),
            RuntimeError,
            "SAM does not support offload_gradients",
        ),
    ],
    ids=["no-optimizer", "negative", "str", "word", "no-closure", "no-first-step", "offload-gradients"],
)
def test_impossible_uses(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(parameters([(3,)], torch.bfloat16))


def test_a_tensor_that_cannot_be_perturbed_changes_nothing() -> None:
    params = parameters([(3,), (4,)])
    optimizer = SAM(torch.optim.SGD(params, lr=0.1))
    set_gradients(params, 0)
    params[1].data = params[0].data[:1].expand(4)
    before = [bits(p) for p in params]
    with pytest.raises((ValueError, RuntimeError), match="parameter 1 in group 0"):
        optimizer.first_step()
    assert [bits(p) for p in params] == before
    params[1].data = torch.ones(4)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="first_step was called twice without second_step"):
        optimizer.first_step()
