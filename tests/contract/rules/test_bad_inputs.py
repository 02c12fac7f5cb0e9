"""Bad input gets a clear error, and nothing has changed then: no buffer, no step count, no new state."""

from __future__ import annotations

import contextlib
import gc
import re
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from ferrostep import _core
from ferrostep.optim import Lion
from tests.bad_inputs.torch_cases import CASES, STEP_CASES, Case, Trial
from tests.contract.rules.registry import (
    Entry,
    every,
    every_class,
    every_class_of_matrices,
    every_elementwise_class,
    one_of_each_class,
)
from tests.contract.snapshot import Snapshot
from tests.contract.training import assert_same_bits, copies, parameters, set_gradients, train


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
    optimizer.state[other][entry.state] = torch.zeros(5)
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
@pytest.mark.parametrize("value", ["up", ["nearest"], 3])
def test_a_live_edit_to_an_unknown_word_changes_nothing(entry: Entry, value: object) -> None:
    for name in ("rounding", "master_weights", "backend", "normalize"):
        params = parameters(entry.shapes, torch.bfloat16)
        optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
        if name not in optimizer.param_groups[1]:
            continue
        set_gradients(params, 1)
        optimizer.param_groups[1][name] = value
        before = Snapshot(optimizer)
        with pytest.raises((TypeError, ValueError), match=name):
            optimizer.step()
        before.assert_unchanged()


@every_class_of_matrices
def test_a_live_edit_to_a_number_stands_for_a_truth_value(entry: Entry) -> None:
    """As in the constructor; element-wise rules name it."""
    for name in ("maximize", "nesterov", "cautious_weight_decay", "skip_zero_grad"):
        ends = []
        for value in (True, 1):
            params = parameters(entry.shapes)
            optimizer = entry.build(params)
            optimizer.param_groups[0].update({name: value} if name in optimizer.param_groups[0] else {})
            set_gradients(params, 1)
            optimizer.step()
            ends.append(copies(optimizer))
        assert_same_bits(*ends)


@every_class_of_matrices
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_live_edit_to_an_impossible_eps_changes_nothing(entry: Entry, value: float) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
    train(optimizer, params, 1)
    set_gradients(params, 1)
    optimizer.param_groups[1]["eps"] = value
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="eps"):
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


NONSENSE = (None, "x", -1, [], (0.9,), {"nope": 1}, object(), 1j)
SAID = {
    "lr": "learning rate",
    "eps": "epsilon",
    "weight_decay": "weight decay",
    "adjust_lr_fn": "Adjust learning rate",
    "amsgrad": "max_exp_avg_sq",
    "centered": "grad_avg",
    "nesterov": "Nesterov",
}
"""How errors in torch's words, or in those of the state that an option asks for, call it."""


@every_class
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: type(value).__name__)
def test_nonsense_is_refused_by_its_name_or_without_effect(entry: Entry, value: Any) -> None:
    params = parameters(entry.shapes)
    train(entry.build(params), params, 1)
    for name in entry.build(params).param_groups[0].keys() - {"params"}:
        with refusal(name):
            entry.build([{"params": params, name: value}])
        optimizer = entry.build([{"params": params[:2]}, {"params": params[2:]}])
        train(optimizer, params, 1)
        set_gradients(params, 1)
        optimizer.param_groups[1][name] = value
        before = Snapshot(optimizer)
        with refusal(name) as caught:
            optimizer.step()
        if caught:
            before.assert_unchanged()


@contextlib.contextmanager
def refusal(name: str) -> Iterator[list[Exception]]:
    """What is raised, if anything is, is to name the option; pyo3 does so in a note."""
    caught: list[Exception] = []
    try:
        yield caught
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        caught.append(error)
        words = " ".join([str(error), *getattr(error, "__notes__", [])])
        assert any(word in words for word in (name, name.removeprefix("ns_"), SAID.get(name, name))), repr(error)


@every_class
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_live_edit_beyond_all_floats_is_refused(entry: Entry, name: str) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    set_gradients(params, 0)
    optimizer.param_groups[0][name] = 10**400
    before = Snapshot(optimizer)
    with refusal(name) as caught:
        optimizer.step()
    assert "too large" in str(caught[0])
    before.assert_unchanged()


@every_class
def test_a_differentiable_step_of_a_leaf_changes_nothing(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:1]}, {"params": params[1:]}])
    train(optimizer, params, 1)
    optimizer.param_groups[1]["differentiable"] = True
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="param of parameter 0 in group 1: a leaf Variable that requires grad"):
        optimizer.step()
    before.assert_unchanged()


def test_a_rules_hyperparameters_may_be_any_keys() -> None:
    class EqualToAll(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    class Greedy:
        def __init__(self, given: dict[str, Any]) -> None:
            self.given = given

        def __float__(self) -> float:
            self.given.pop("lr", None)
            return 0.5

    good = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}
    _core.Rule("Lion", {**good, EqualToAll("x"): 1})
    given: dict[str, Any] = dict(good)
    given["beta2"] = Greedy(given)
    _core.Rule("Lion", given)
    for number in (10**400, np.ones(2), "x"):
        with pytest.raises((TypeError, ValueError), match="lr"):
            _core.Rule("Lion", {**good, "lr": number})
    for key in (3, "momentum", object()):
        with pytest.raises(TypeError, match="Lion has no hyperparameter"):
            _core.Rule("Lion", {**good, key: 1})


def test_a_batch_may_go_to_another_thread() -> None:
    batch = _core.Batch()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(batch.run, 1).result()
    optimizer = Lion(parameters([(3,)]))
    set_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    next(iter(optimizer.state.values()))["exp_avg"] = torch.ones(9)
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(optimizer.step).exception()
    assert isinstance(error, ValueError)
    del error  # and with it the batch, in this thread
    gc.collect()
