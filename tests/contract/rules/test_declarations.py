"""An optimizer is there as a whole: rule, reference, class, tables and documents say the same names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.optim import Optimizer

import ferrostep.numpy
from ferrostep import _core, optim, reference
from ferrostep.demo.optimizers import OPTIMIZERS
from ferrostep.optim import sophia
from ferrostep.optim.rules import Rule, RuleOptimizer
from tests.contract.rules.registry import ENTRIES, Entry, every_class, every_entry
from tests.contract.training import parameters

PUBLIC = [
    each
    for each in map(optim.__dict__.get, optim.__all__)
    if isinstance(each, type) and issubclass(each, Optimizer) and each is not RuleOptimizer
]
every_public_class = pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)

OF_REFRESHES: dict[str, Callable[..., Any]] = {
    each.kernel: each.reference for each in (sophia.SQUARE, sophia.PRODUCT, sophia.ESTIMATE)
}
"""Rules that are no optimizer's step."""


def rule_of(entry: Entry) -> Rule:
    optimizer = entry.build(parameters(entry.shapes))
    assert isinstance(optimizer, RuleOptimizer)
    return optimizer.rule(optimizer.param_groups[0])


def hyperparameters_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


@every_public_class
def test_the_class_is_in_the_registry(cls: type) -> None:
    assert any(cls in entry.optimizer.__mro__ for entry in ENTRIES)


@every_public_class
def test_the_class_is_in_the_readmes_list(cls: type) -> None:
    listed = re.findall(r"^\| `optim\..*?\|", (Path(__file__).parents[3] / "README.md").read_text(), re.M)
    assert re.search(rf"\b{cls.__name__}\b", " ".join(listed))


@every_public_class
def test_the_demo_knows_the_class(cls: type) -> None:
    name = "muon" if cls is optim.MuonWithAuxAdamW else cls.__name__.lower()
    assert name in {known.replace("_", "") for known in OPTIMIZERS}


def test_every_rule_of_rust_is_some_classs() -> None:
    used = {rule_of(entry).kernel for entry in ENTRIES}
    assert _core.rules().keys() == {name for name in used if isinstance(name, str)} | OF_REFRESHES.keys()


@every_entry
def test_rust_and_plain_torch_have_the_same_hyperparameters(entry: Entry) -> None:
    rule = rule_of(entry)
    assert set(rule.hyperparameters) <= set(hyperparameters_of(rule.reference))
    if isinstance(rule.kernel, str):
        states, types, depends_on_step = _core.rules()[rule.kernel]
        assert rule.states == states
        assert list(rule.hyperparameters) == list(types) == hyperparameters_of(rule.reference)
        assert rule.counts_steps >= depends_on_step
        annotations = rule.reference.__annotations__
        assert {name: annotations[name] == "bool" for name in types} == {name: types[name] is bool for name in types}


@pytest.mark.parametrize("name", OF_REFRESHES)
def test_refreshes_have_the_same_hyperparameters(name: str) -> None:
    assert list(_core.rules()[name][1]) == hyperparameters_of(OF_REFRESHES[name])


@every_entry
def test_the_docstring_names_the_states(entry: Entry) -> None:
    documentation = entry.optimizer.__doc__ or ""
    states = documentation[documentation.index("State per parameter") :]
    rule = rule_of(entry)
    named = "Muon's or AdamW's" in states or all(f"``{name}``" in states for name in rule.states)
    assert named, rule.states


@every_class
def test_defaults_and_groups_are_those_of_the_signature(entry: Entry) -> None:
    declared = {each for cls in entry.optimizer.__mro__ for each in vars(cls).get("_arguments", ())}
    optimizer = entry.build(parameters(entry.shapes))
    assert declared <= optimizer.param_groups[0].keys()


def test_reference_is_public() -> None:
    for entry in ENTRIES:
        assert rule_of(entry).reference.__name__ in reference.__all__


@pytest.mark.parametrize(
    ("function", "cls"), [(ferrostep.numpy.adamw_, optim.AdamW), (ferrostep.numpy.lion_, optim.Lion)]
)
def test_defaults_for_arrays_are_those_of_the_class(function: Callable[..., Any], cls: type[RuleOptimizer]) -> None:
    given = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    shared = given.keys() & cls._arguments.keys()
    assert len(shared) >= 4
    assert {name: given[name] for name in shared} == {name: cls._arguments[name].default for name in shared}


LION = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}


@pytest.mark.parametrize(
    ("name", "hyperparameters", "error", "message"),
    [
        ("Leon", LION, ValueError, 'Invalid name: "Leon"; expected one of .*Lion'),
        ("Lion", {}, TypeError, 'Lion is missing the hyperparameter "lr"'),
        ("Lion", {**LION, "eps": 0.0}, TypeError, "Lion has no hyperparameter 'eps'"),
        ("Lion", {**LION, 3: 0.0}, TypeError, "Lion has no hyperparameter '3'"),
        ("Lion", {**LION, "lr": None}, TypeError, "lr is a NoneType, expected a number"),
        ("Lion", {**LION, "maximize": 1}, TypeError, "maximize is a int, expected a bool"),
        ("Lion", [], TypeError, "hyperparameters|dict"),
    ],
    ids=str,
)
def test_a_rule_refuses_other_hyperparameters(
    name: str, hyperparameters: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _core.Rule(name, hyperparameters)


def test_hyperparameters_come_from_a_group_by_name() -> None:
    group = {"lr": np.float32(0.5), "betas": [0.8, 0.9], "weight_decay": 0.0, "maximize": True, "seed": 3}
    found = _core.hyperparameters("Lion", group)
    assert found == {"lr": 0.5, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.0, "maximize": True}
    del group["weight_decay"]
    with pytest.raises(KeyError, match="weight_decay"):
        _core.hyperparameters("Lion", group)
