"""An optimizer is there as a whole: rule, reference, class, tables and documents say the same names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrostep.numpy
from ferrostep import _core, kappas, optim, reference
from ferrostep.demo.optimizers import OPTIMIZERS
from ferrostep.optim import frugal, points, rmsprop, sam, sophia, storm
from ferrostep.optim.arguments import arguments_of
from ferrostep.optim.rules import Rule, RuleOptimizer
from tests.contract.rules.registry import ENTRIES, Entry, every_class, every_entry
from tests.contract.training import parameters

PUBLIC = [
    each
    for each in map(optim.__dict__.get, optim.__all__)
    if isinstance(each, type) and issubclass(each, RuleOptimizer) and each is not RuleOptimizer
]
every_public_class = pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)

OF_REFRESHES: dict[str, Callable[..., Any]] = {
    each.kernel: each.reference for each in (sophia.SQUARE, sophia.PRODUCT, sophia.ESTIMATE)
}
"""Rules that are no optimizer's step."""

OF_OTHERS = {points.BLEND.name, sam.ASCENT.name}
"""Those that move parameters from one point to another."""


CHOSEN = {
    *kappas.KERNELS.values(),
    *(rule.name for own in (frugal.INNER, frugal.STATE_FREE, rmsprop.RULES) for rule in own.values()),
    *(rule.name for rule in storm.RULES),
}
"""Those of which arguments choose one."""


def rule_of(entry: Entry) -> Rule:
    optimizer = entry.build(parameters(entry.shapes))
    assert isinstance(optimizer, RuleOptimizer)
    return optimizer.rule(optimizer.param_groups[0])


def hyperparameters_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


@every_public_class
def test_the_class_is_in_the_registry(cls: type) -> None:
    known = {each for entry in ENTRIES for each in entry.optimizer.__mro__}
    assert cls in known, f"{cls.__name__}: an Entry is missing in tests/contract/rules/registry.py"


@every_entry
def test_the_class_is_public(entry: Entry) -> None:
    assert set(entry.optimizer.__mro__) & set(PUBLIC), (
        f"{entry.optimizer.__name__}: its name is missing in __all__ of python/ferrostep/optim/__init__.py"
    )


@every_public_class
def test_the_class_is_in_the_readmes_list(cls: type) -> None:
    listed = re.findall(r"^\| `optim\..*?\|", (Path(__file__).parents[3] / "README.md").read_text(), re.M)
    missing = f"{cls.__name__}: a line is missing in README.md's table of optimizers"
    assert re.search(rf"\b{cls.__name__}\b", " ".join(listed)), missing


@every_public_class
def test_the_demo_knows_the_class(cls: type) -> None:
    name = "muon" if cls is optim.MuonWithAuxAdamW else cls.__name__.lower()
    known = {known.replace("_", "") for known in OPTIMIZERS}
    assert name in known, f"{cls.__name__}: a line is missing in python/ferrostep/demo/optimizers.py"


def test_every_rule_of_rust_is_some_classs() -> None:
    used = {rule_of(entry).kernel for entry in ENTRIES}
    unused = _core.rules().keys() - used - OF_REFRESHES.keys() - OF_OTHERS - CHOSEN
    assert not unused, f"no optimizer of tests/contract/rules/registry.py has Rust's {', '.join(unused)} for its rule"


@pytest.mark.parametrize("cls", sorted(set(PUBLIC) - {optim.MuonWithAuxAdamW}, key=lambda cls: cls.__name__))
def test_numbers_are_checked(cls: type[RuleOptimizer]) -> None:
    """A number of a signature is annotated by what it must be, and ``_arguments`` has all of them."""
    declared = arguments_of(cls.__init__)
    own = {name: argument for each in cls.__mro__ for name, argument in vars(each).get("_arguments", {}).items()}
    assert declared.keys() <= own.keys(), f"{cls.__name__} lacks `_arguments = arguments_of(__init__)`"
    for name, argument in declared.items():
        is_number = isinstance(argument.default, float)
        assert argument.checks or not is_number, (
            f"{cls.__name__}'s {name} has no check: annotate it (optim/arguments.py)"
        )


@every_entry
def test_rust_and_plain_torch_have_the_same_hyperparameters(entry: Entry) -> None:
    rule = rule_of(entry)
    assert set(rule.hyperparameters) <= set(hyperparameters_of(rule.reference))
    if isinstance(rule.kernel, str):
        states, types, depends_on_step, *_ = _core.rules()[rule.kernel]
        assert rule.states == states
        in_rust, in_torch = list(types), hyperparameters_of(rule.reference)
        assert list(rule.hyperparameters) == in_rust == in_torch, f"Rust has {in_rust}, plain torch {in_torch}"
        assert rule.counts_steps >= depends_on_step
        annotations = rule.reference.__annotations__
        assert {name: annotations[name] == "bool" for name in types} == {name: types[name] is bool for name in types}


@pytest.mark.parametrize("name", OF_REFRESHES)
def test_refreshes_have_the_same_hyperparameters(name: str) -> None:
    assert list(_core.rules()[name][1]) == hyperparameters_of(OF_REFRESHES[name])


@every_entry
def test_the_docstring_names_the_states(entry: Entry) -> None:
    _, found, states = (entry.optimizer.__doc__ or "").partition("State per parameter")
    assert found, f'{entry.optimizer.__name__}\'s docstring lacks the paragraph "State per parameter"'
    missing = [name for name in rule_of(entry).states if f"``{name}``" not in states]
    assert not missing or "Muon's or AdamW's" in states, f"{entry.optimizer.__name__}'s docstring lacks {missing}"


@every_class
def test_defaults_and_groups_are_those_of_the_signature(entry: Entry) -> None:
    declared = {each for cls in entry.optimizer.__mro__ for each in vars(cls).get("_arguments", ())}
    optimizer = entry.build(parameters(entry.shapes))
    assert declared <= optimizer.param_groups[0].keys()


def test_reference_is_public() -> None:
    for entry in ENTRIES:
        name = rule_of(entry).reference.__name__
        assert name in reference.__all__, f"{name} is missing in __all__ of python/ferrostep/reference/__init__.py"


@pytest.mark.parametrize(
    ("function", "cls"),
    [
        (ferrostep.numpy.adamw_, optim.AdamW),
        (ferrostep.numpy.lion_, optim.Lion),
        (ferrostep.numpy.sgd_, optim.SGD),
    ],
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
