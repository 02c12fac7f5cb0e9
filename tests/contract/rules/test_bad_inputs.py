"""Bad input gets a clear error, and nothing has changed then: no buffer, no step count, no new state."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable

import pytest
import torch
from torch.nn import Parameter

from ferrostep import _core
from tests.bad_inputs.torch_cases import CASES, STEP_CASES, Case, Trial
from tests.contract.rules.registry import Entry, every, every_class, every_elementwise_class, one_of_each_class
from tests.contract.snapshot import Snapshot
from tests.contract.training import parameters, set_gradients, train


def attempt(entry: Entry, case: Case, dtype: torch.dtype, **options: object) -> None:
    """Run a step over a bad input: the error must be the case's and everything as it was."""
    if case.complex and not entry.complex:
        pytest.skip("this rule has no complex form")
    trial = Trial(entry.build, dtype, entry.state, **case.options, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.spoil(trial)
        optimizer = trial.optimizer
    before = Snapshot(optimizer, others=trial.params)
    with pytest.raises(case.error) as caught:
        optimizer.step()
    before.assert_unchanged()
    message = case.message.replace("exp_avg", entry.state)
    assert re.search(message, str(caught.value)), f"{caught.value!r} does not match {message!r}"


def over(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Run a test with each case."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@over(CASES)
def test_bad_input_changes_nothing(entry: Entry, case: Case, dtype: torch.dtype, boundary: str) -> None:
    attempt(entry, case, dtype)


@pytest.mark.smoke
@every(lambda entry: entry in one_of_each_class() and entry.name == "adamw")
@over(STEP_CASES)
def test_a_bad_step_count_changes_nothing(entry: Entry, case: Case, boundary: str) -> None:
    attempt(entry, case, torch.float32)


@every_class
@over([case for case in CASES if case.also_reference])
def test_bad_input_changes_nothing_in_plain_torch(entry: Entry, case: Case) -> None:
    attempt(entry, case, torch.float32, backend="reference")


@every_elementwise_class
def test_a_bad_parameter_elsewhere_leaves_those_on_the_cpu_unchanged(entry: Entry) -> None:
    """A step that is part Rust, part plain torch checks both parts first."""
    good, other = Parameter(torch.ones(3)), Parameter(torch.zeros(3))
    optimizer = entry.build([{"params": [good]}, {"params": [other], "backend": "reference"}])
    for p in (good, other):
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[other]["exp_avg"] = torch.zeros(5)
    before = Snapshot(optimizer)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    before.assert_unchanged()


@every_class
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [None, "fast", [1.0], torch.ones(2)], ids=str)
def test_a_live_edit_to_nonsense_changes_nothing(entry: Entry, name: str, value: object) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
    train(optimizer, params, 1)
    set_gradients(params, 1)
    optimizer.param_groups[1][name] = value
    before = Snapshot(optimizer)
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        optimizer.step()
    before.assert_unchanged()


@every_class
@pytest.mark.parametrize("value", ["up", None, 3])
def test_a_live_edit_to_an_unknown_rounding_changes_nothing(entry: Entry, value: object) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
    set_gradients(params, 1)
    optimizer.param_groups[1]["rounding"] = value
    before = Snapshot(optimizer)
    with pytest.raises((TypeError, ValueError), match="rounding"):
        optimizer.step()
    before.assert_unchanged()


@every(lambda entry: entry.state == "momentum_buffer" and entry in one_of_each_class())
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_live_edit_to_an_impossible_eps_changes_nothing(entry: Entry, value: float) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
    train(optimizer, params, 1)
    set_gradients(params, 1)
    optimizer.param_groups[1]["eps"] = value
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="Invalid eps"):
        optimizer.step()
    before.assert_unchanged()


@every_class
def test_a_step_under_fake_tensor_mode_is_refused(entry: Entry) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    params = parameters([(5, 3)])
    optimizer = entry.build(params)
    set_gradients(params, 0)
    before = Snapshot(optimizer)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError):
        optimizer.step()
    before.assert_unchanged()


@every_class
def test_nothing_is_changed_inside_functional_transforms(entry: Entry) -> None:
    params = parameters([(5, 3)])
    optimizer = entry.build(params)

    def run(grad: torch.Tensor) -> torch.Tensor:
        params[0].grad = None
        with contextlib.suppress(RuntimeError):
            params[0].grad = grad
        if params[0].grad is None:
            raise RuntimeError("torch refuses the gradient itself")
        optimizer.step()
        return grad

    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="without memory"):
        torch.func.vmap(run, out_dims=0)(torch.ones(2, 5, 3))
    assert torch.equal(params[0], before[0])


def test_the_batch_runs_once() -> None:
    batch = _core.Batch()
    assert batch.run(1)
    with pytest.raises(RuntimeError, match="has run already"):
        batch.run(1)


def rule() -> _core.Rule:
    return _core.Rule("Lion", {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False})


def test_the_batch_refuses_lists_that_do_not_go_together() -> None:
    t = [torch.ones(2), torch.ones(2)]
    cases = [
        ((rule(), t, t[:1], {"exp_avg": t}), ValueError, "grad .*came as a list of 1 tensors, expected 2"),
        ((rule(), t, t, {"exp_avg": t[:1]}), ValueError, "exp_avg .*came as a list of 1 tensors, expected 2"),
        ((rule(), t, t, {}), ValueError, "the rule has 1 states, got 0"),
        ((rule(), t, t, {"a": t, "b": t}), ValueError, "the rule has 1 states, got 2"),
        ((object(), t, t, {"exp_avg": t}), TypeError, "is not an update rule"),
        ((rule(), tuple(t), t, {"exp_avg": t}), TypeError, "list"),
        ((rule(), [3.0, t[0]], t, {"exp_avg": t}), TypeError, "param is a float, expected a torch.Tensor"),
        ((rule(), [None, t[0]], t, {"exp_avg": t}), TypeError, "param is a NoneType, expected a torch.Tensor"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            _core.Batch().add(*arguments)
    with pytest.raises(ValueError, match=r"rounding='kahan' needs compensation buffers"):
        _core.Batch().add(rule(), t, t, {"exp_avg": t}, rounding="kahan")
    with pytest.raises(ValueError, match=r"step .*came as a list of 0 tensors, expected 2"):
        _core.Batch().add(rule(), t, t, {"exp_avg": t}, steps=[])
    with pytest.raises(OverflowError):
        _core.Batch().add(rule(), t, t, {"exp_avg": t}, seed=-1)


def test_positions_that_are_too_few_are_an_error() -> None:
    t = [torch.ones(2), torch.ones(2)]
    grads, moments = [torch.ones(2), torch.ones(2)], [torch.ones(2), torch.ones(2)]
    with pytest.raises(ValueError, match="positions"):
        _core.Batch().add(rule(), t, grads, {"exp_avg": moments}, positions=[4])
