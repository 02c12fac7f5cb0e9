"""What a step offers beside the update: closures, hooks, the profiler's entry, zero_grad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.contract.rules.registry import Entry, every_class
from tests.contract.training import assert_same_bits, bits, parameters, set_gradients, train


@pytest.mark.smoke
@every_class
def test_closure(entry: Entry) -> None:
    params, expected = parameters([(7, 2)]), parameters([(7, 2)])
    optimizer, other = entry.build(params), entry.build(expected)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss

    loss = (expected[0] ** 2).sum()
    loss.backward()
    other.step()
    with torch.no_grad():
        assert optimizer.step(closure) == loss
    assert_same_bits(optimizer, other)
    assert optimizer.step(closure=closure) < loss
    assert optimizer.step() is None


@every_class
def test_an_error_in_the_closure_passes_through(entry: Entry) -> None:
    params = parameters([(7, 2)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    before = bits(params[0])

    def closure() -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)
    assert bits(params[0]) == before
    assert not optimizer.state


Register = Callable[[Any, Callable[..., Any]], Any]
PER_INSTANCE: tuple[Register, Register] = (
    lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    lambda optimizer, hook: optimizer.register_step_post_hook(hook),
)
GLOBAL: tuple[Register, Register] = (
    lambda _optimizer, hook: register_optimizer_step_pre_hook(hook),
    lambda _optimizer, hook: register_optimizer_step_post_hook(hook),
)


@pytest.fixture
def handles() -> Iterator[list[Any]]:
    found: list[Any] = []
    yield found
    for handle in found:
        handle.remove()


@pytest.mark.smoke
@every_class
@pytest.mark.parametrize("registers", [PER_INSTANCE, GLOBAL], ids=["instance", "global"])
def test_hooks_run_around_the_step(entry: Entry, registers: tuple[Register, Register], handles: list[Any]) -> None:
    params = parameters([(7, 2)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    start, seen = bits(params[0]), []
    pre, post = registers
    handles.append(pre(optimizer, lambda o, args, kwargs: seen.append(("pre", o, bits(params[0]), kwargs))))
    handles.append(post(optimizer, lambda o, args, kwargs: seen.append(("post", o, bits(params[0]), kwargs))))
    optimizer.step()
    assert seen == [("pre", optimizer, start, {}), ("post", optimizer, bits(params[0]), {})]
    assert bits(params[0]) != start
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 2


@every_class
def test_one_hook_alone_runs(entry: Entry, handles: list[Any]) -> None:
    for register in (*PER_INSTANCE, *GLOBAL):
        params = parameters([(7, 2)])
        optimizer = entry.build(params)
        set_gradients(params, 0)
        calls: list[int] = []
        handle = register(optimizer, lambda *_args, calls=calls: calls.append(1))
        handles.append(handle)
        optimizer.step()
        handle.remove()
        assert calls == [1]


@every_class
def test_a_hook_may_change_the_arguments(entry: Entry) -> None:
    params = parameters([(7, 2)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 42.0), {}))
    assert optimizer.step() == 42.0
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o,), {"closure": lambda: 43.0}))
    assert optimizer.step() == 43.0


@every_class
def test_a_hook_with_an_impossible_result_is_an_error(entry: Entry) -> None:
    params = parameters([(7, 2)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    before = bits(params[0])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert bits(params[0]) == before


@every_class
def test_a_hook_sees_the_closure(entry: Entry) -> None:
    optimizer = entry.build(parameters([(7, 2)]))
    seen: list[tuple[Any, ...]] = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(args))

    def closure() -> float:
        return 1.0

    optimizer.step(closure)
    assert seen == [(optimizer, closure)]


@every_class
def test_the_profiler_shows_the_step(entry: Entry) -> None:
    params = parameters([(7, 2)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert f"Optimizer.step#{type(optimizer).__name__}.step" in {event.name for event in profile.events()}


@every_class
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(entry: Entry, to_none: bool) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 1)
    optimizer.zero_grad(set_to_none=to_none)
    assert all(p.grad is None if to_none else p.grad.count_nonzero() == 0 for p in params)


@every_class
def test_repr_names_the_class_and_the_options(entry: Entry) -> None:
    text = repr(entry.build(parameters([(7, 2)])))
    assert text.startswith(type(entry.build(parameters([(7, 2)]))).__name__)
    assert all(name in text for name in ("lr:", "rounding: nearest", "backend: auto"))


@every_class
def test_a_subclass_keeps_its_step(entry: Entry) -> None:
    class Counting(entry.optimizer):  # type: ignore[misc, name-defined]
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    params, expected = parameters([(7, 2)]), parameters([(7, 2)])
    optimizer, other = Counting(params, **entry.arguments), entry.build(expected)
    train(optimizer, params, 2)
    train(other, expected, 2)
    assert optimizer.calls == 2
    assert_same_bits(optimizer, other)
