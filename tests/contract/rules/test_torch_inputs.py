"""Classes that are torch's, through torch's own lists of inputs and error inputs."""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    optim_db,
    optim_error_inputs_func_adagrad,
    optim_error_inputs_func_adam,
    optim_error_inputs_func_adamax,
    optim_error_inputs_func_adamw,
    optim_error_inputs_func_muon,
    optim_error_inputs_func_nadam,
    optim_error_inputs_func_radam,
    optim_error_inputs_func_rmsprop,
    optim_error_inputs_func_sgd,
    optim_inputs_func_adagrad,
    optim_inputs_func_adam,
    optim_inputs_func_adamax,
    optim_inputs_func_adamw,
    optim_inputs_func_nadam,
    optim_inputs_func_radam,
    optim_inputs_func_rmsprop,
    optim_inputs_func_sgd,
)

from ferrostep.optim import SGD, Adagrad, Adam, Adamax, AdamW, Muon, NAdam, RAdam, RMSprop
from tests.contract.training import assert_close, parameters, set_gradients, train

SHAPES = ((5, 3), (4,), ())


def inputs() -> list[Any]:
    lists = (
        (Adagrad, torch.optim.Adagrad, optim_inputs_func_adagrad("cpu")),
        (Adam, torch.optim.Adam, optim_inputs_func_adam("cpu")),
        (Adamax, torch.optim.Adamax, optim_inputs_func_adamax("cpu")),
        (AdamW, torch.optim.AdamW, optim_inputs_func_adamw("cpu")),
        (NAdam, torch.optim.NAdam, optim_inputs_func_nadam("cpu")),
        (RAdam, torch.optim.RAdam, optim_inputs_func_radam("cpu")),
        (RMSprop, torch.optim.RMSprop, optim_inputs_func_rmsprop("cpu")),
        (SGD, torch.optim.SGD, optim_inputs_func_sgd("cpu")),
    )
    return [
        pytest.param(ours, peer, entry.kwargs, id=f"{peer.__name__}-{entry.desc}")
        for ours, peer, listed in lists
        for entry in listed
    ]


@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}, {"differentiable": True}], ids=str)
@pytest.mark.parametrize(("ours", "peer", "arguments"), inputs())
def test_inputs(
    ours: Any, peer: Any, arguments: dict[str, Any], flags: dict[str, bool], request: pytest.FixtureRequest
) -> None:
    if not flags.keys() <= inspect.signature(peer).parameters.keys():
        pytest.skip("torch has no such form")
    if flags.get("differentiable"):
        request.getfixturevalue("float64_steps")
    # Differentiable steps change parameters that are no leaves.
    as_leaf = not flags.get("differentiable")
    optimizers = []
    for build in (ours, peer):
        params = parameters(SHAPES, torch.float64)
        params = params if as_leaf else [p.clone() for p in params]
        optimizer = build(params, **{**arguments, **flags})
        for step in range(4):
            set_gradients(params, step)
            optimizer.step()
        optimizers.append(optimizer)
    assert_close(*optimizers, 1e-12, least_size=1.0)


FLAGS = (False, True)
DECAY = {"weight_decay": (0.0, 0.1), "maximize": FLAGS}
ADAMS = DECAY | {"amsgrad": FLAGS}
CHOICES: dict[Any, dict[str, tuple[Any, ...]]] = {
    Adagrad: DECAY | {"lr_decay": (0.0, 0.1), "initial_accumulator_value": (0.0, 0.5)},
    Adam: ADAMS | {"decoupled_weight_decay": FLAGS},
    Adamax: DECAY,
    AdamW: ADAMS,
    NAdam: DECAY | {"decoupled_weight_decay": FLAGS, "momentum_decay": (0.0, 0.02)},
    RAdam: DECAY | {"decoupled_weight_decay": FLAGS},
    RMSprop: DECAY | {"momentum": (0.0, 0.8), "centered": FLAGS},
    SGD: DECAY | {"momentum": (0.0, 0.8), "dampening": (0.0, 0.3), "nesterov": FLAGS},
}
"""What may be combined, of each class."""


def combinations() -> list[Any]:
    return [
        pytest.param(cls, dict(zip(choices, chosen, strict=True)), id=f"{cls.__name__}-{chosen}")
        for cls, choices in CHOICES.items()
        for chosen in itertools.product(*choices.values())
    ]


@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize(("cls", "arguments"), combinations())
def test_every_combination_of_options_is_torchs(cls: Any, arguments: dict[str, Any], backend: str) -> None:
    """Numbers and states; or the error, where options exclude each other."""
    peer = getattr(torch.optim, cls.__name__)
    options = arguments | {"lr": 0.01}
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    try:
        expected = peer(theirs, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            cls(ours, **options, backend=backend)
        return
    optimizer = cls(ours, **options, backend=backend)
    train(optimizer, ours, 6)  # RAdam begins to divide at the 6th
    train(expected, theirs, 6)
    assert_close(optimizer, expected, 1e-12, least_size=1.0)


def error_inputs() -> list[Any]:
    lists = (
        (Adagrad, "Adagrad", optim_error_inputs_func_adagrad("cpu", torch.float32)),
        (Adam, "Adam", optim_error_inputs_func_adam("cpu", torch.float32)),
        (Adamax, "Adamax", optim_error_inputs_func_adamax("cpu", torch.float32)),
        (AdamW, "AdamW", optim_error_inputs_func_adamw("cpu", torch.float32)),
        (NAdam, "NAdam", optim_error_inputs_func_nadam("cpu", torch.float32)),
        (RAdam, "RAdam", optim_error_inputs_func_radam("cpu", torch.float32)),
        (RMSprop, "RMSprop", optim_error_inputs_func_rmsprop("cpu", torch.float32)),
        (SGD, "SGD", optim_error_inputs_func_sgd("cpu", torch.float32)),
        (Muon, "Muon", optim_error_inputs_func_muon("cpu", torch.float32)),
    )
    return [
        pytest.param(ours, entry, id=f"{name}-{entry.optimizer_error_input.desc}")
        for ours, name, listed in lists
        for entry in listed
    ]


@pytest.mark.parametrize(("ours", "entry"), error_inputs())
def test_error_inputs(ours: Any, entry: Any) -> None:
    # What torch's Muon refuses at its first step, complex parameters, ours refuses at once.
    assert entry.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR or "complex" in entry.error_regex
    spoiled = entry.optimizer_error_input
    params = parameters([(2,), (3,)]) if spoiled.params is None else spoiled.params
    if issubclass(entry.error_type, Warning):
        with pytest.warns(entry.error_type, match=entry.error_regex):
            ours(params, **spoiled.kwargs)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(entry.error_type, match=entry.error_regex):
                ours(params, **spoiled.kwargs)


def test_every_option_of_torchs_class_is_accepted() -> None:
    """Trainers pass them by name."""
    (info,) = [info for info in optim_db if info.optim_cls is torch.optim.AdamW]
    assert {"foreach", "fused", "differentiable"} <= set(info.supported_impls)
    params = parameters([(2,)])
    for flag in ("foreach", "fused", "capturable", "differentiable", "maximize", "amsgrad"):
        AdamW(params, **{flag: True})
        AdamW(params, **{flag: False})
    AdamW(params, foreach=None, fused=None)


def test_muons_defaults_are_torchs() -> None:
    ours, theirs = Muon(parameters([(2, 2)])).defaults, torch.optim.Muon(parameters([(2, 2)])).defaults
    assert {name: ours[name] for name in theirs} == theirs
    assert list(ours)[: len(theirs)] == list(theirs)


@pytest.mark.parametrize("cls", CHOICES)
def test_arguments_and_defaults_are_torchs(cls: Any) -> None:
    peer = getattr(torch.optim, cls.__name__)
    ours, theirs = cls(parameters([(2,)])).defaults, peer(parameters([(2,)])).defaults
    assert {name: ours[name] for name in theirs} == theirs

    flags = ("foreach", "capturable", "maximize", "differentiable")  # only by name

    def positional(cls: Any) -> list[str]:
        own = inspect.signature(cls.__init__).parameters.values()
        return [each.name for each in own if each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in flags]

    assert positional(cls) == positional(peer)
