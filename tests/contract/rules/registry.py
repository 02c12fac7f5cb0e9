"""The optimizers that the contract is tested over. A new optimizer joins by one entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lion_pytorch
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from ferrostep.optim import (
    EGD,
    FRUGAL,
    NIGT,
    SGD,
    STORM,
    Adagrad,
    AdaGradNorm,
    Adam,
    Adamax,
    AdamW,
    AuON,
    DiffGrad,
    HybridAuON,
    Lion,
    Muon,
    MuonAdamW,
    MuonWithAuxAdamW,
    NAdam,
    OptimisticAdam,
    OptimisticMD,
    RAdam,
    RMSprop,
    SophiaG,
    SophiaH,
    shards,
)
from ferrostep.optim.base import NewState, arithmetic_dtype
from ferrostep.optim.muon_with_adamw import MUON as MUON_GROUP
from ferrostep.optim.rules import Rule, RuleOptimizer
from ferrostep.optim.taken import Taken

SHAPES = ((5, 3), (), (17,), (0, 4), (2, 3, 4, 5), (1000,), (2, 129))


class CurvedRule(Rule):
    """Sophia with a Hessian estimate from the first step on: without one, every step is a sign."""

    def zero_state(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Eighths from -3 to 3, SophiaG's not negative: exact in every dtype, each from the parameter's element."""
        state = super().zero_state(name, p, group)
        if name == "hessian" and state.is_floating_point():  # no codes
            with torch.no_grad():
                eighths = ((p.double() * 64).round() % 7 - 3) / 8
                state.copy_(eighths.abs() if "rho" in group else eighths)
        return state


class CurvedSophiaG(SophiaG):
    __doc__ = SophiaG.__doc__

    def rule(self, group: dict[str, Any]) -> Rule:
        return CurvedRule(*super().rule(group))


class CurvedSophiaH(SophiaH):
    __doc__ = SophiaH.__doc__

    def rule(self, group: dict[str, Any]) -> Rule:
        return CurvedRule(*super().rule(group))


class RoundedNIGT(NIGT):
    __doc__ = NIGT.__doc__

    def _check_precision(self, group: dict[str, Any]) -> None:
        """Take 16-bit parameters without masters, too: what it is warned of is no matter to the contract."""


class TransportedSTORM(STORM):
    __doc__ = STORM.__doc__

    def _check_precision(self, group: dict[str, Any]) -> None:
        """As RoundedNIGT."""

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """With a closure as of any optimizer."""
        return RuleOptimizer._step(self, closure)

    def _take(self, new_state: NewState) -> Taken:
        """Step with a transport that follows from the parameter's shape."""
        for p in self._begun():
            new_state.set(p, "transport", some_1024ths(p))
        return super()._take(new_state)


def some_1024ths(p: Tensor) -> Tensor:
    """From -3 to 3 of them, each by its element's index: exact in every dtype."""
    whole = torch.empty(p.shape, dtype=p.dtype if p.is_complex() else arithmetic_dtype(p))
    pairs = torch.view_as_real(whole) if p.is_complex() else whole
    pairs.copy_((torch.arange(pairs.numel()) % 7 - 3).view(pairs.shape) / 1024)
    if shards.is_distributed(p):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, p.device_mesh, p.placements)
    return torch.empty_like(p, dtype=whole.dtype, requires_grad=False).copy_(whole)


@dataclass(frozen=True)
class Entry:
    """An optimizer with its arguments, and what may be asked of it."""

    name: str
    optimizer: Callable[..., Optimizer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    peer: Callable[..., Optimizer] | None = None
    """A public implementation of the same rule, to be called with the parameters."""
    elementwise: bool = True
    """Whether each element is updated by itself: any shape, and a tensor may be split into several."""
    complex: bool = True
    """Whether it takes complex parameters, as pairs of real ones."""
    any_shape: bool = True
    """Whether it takes parameters of any shape; all take those of two dimensions."""
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    """Shapes of the parameters that it is tested with."""
    state: str = "exp_avg"
    """The name of a state with the parameter's shape; empty where there is none."""
    exact: bool = True
    """Whether every instruction set gives the same bits, which products of matrices do not, and the reference the same
    but for a few roundings."""
    has_one_rule: bool = True
    """Whether all parameters of a group have the same rule, and their states from the first step on."""
    amplifies: bool = False
    """Whether it amplifies roundings by so much that the reference's numbers are only near."""

    @property
    def sums(self) -> bool:
        """Whether its rule is to know a sum over elements."""
        optimizer = self.build([torch.nn.Parameter(torch.zeros(self.shapes[0]))])
        return any(rule.summed is not None for rule in optimizer._rules(optimizer.param_groups[0]))

    @property
    def begins_late(self) -> bool:
        """Whether its states may begin after steps without them, which were counted."""
        optimizer = self.build([torch.nn.Parameter(torch.zeros(self.shapes[0]))])
        return "step" in optimizer.rule(optimizer.param_groups[0]).early

    def build(self, params: Iterable[Any], **changes: Any) -> Optimizer:
        """The optimizer over ``params``, with its arguments and these changes."""
        return self.optimizer(params, **{**self.arguments, **changes})


class Combined(MuonWithAuxAdamW):
    __doc__ = MuonWithAuxAdamW.__doc__

    def __init__(self, params: Iterable[Any], **arguments: Any) -> None:
        """Muon for groups that do not say otherwise."""
        self.own = {name: arguments.pop(name) for name in MUON_GROUP if name in arguments}
        params = list(params)
        is_one_group = params and not isinstance(params[0], dict)
        super().__init__([{"params": params}] if is_one_group else params, **arguments)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group."""
        super().add_param_group({"use_muon": True, **self.own, **param_group})


ADAMW = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
MATRICES = ((5, 3), (16, 24), (0, 4), (1, 7), (2, 129), (40, 12))
# Newton-Schulz amplifies rounding by several hundred: in float64 that stays below what is tested here.
MUON = {"lr": 1e-2, "ns_precision": "float64"}
OF_MUON: Any = {
    "elementwise": False,
    "complex": False,
    "any_shape": False,
    "shapes": MATRICES,
    "state": "momentum_buffer",
    "exact": False,
}
AUON = {"lr": 1e-2, "weight_decay": 0.1}
OF_AUON: Any = {"elementwise": False, "complex": False, "state": "momentum_buffer"}
EGD_MOMENTUM = {"lr": 3e-3, "momentum": 0.9, "weight_decay": 0.1}
OF_NIGT: Any = {"elementwise": False, "state": "momentum_buffer"}
DESCENT = {"lr": 3e-3, "weight_decay": 0.1}
MOMENTUM = DESCENT | {"momentum": 0.8, "dampening": 0.3}
ADAGRAD = DESCENT | {"lr_decay": 0.1, "initial_accumulator_value": 0.5}
RMSPROP = DESCENT | {"alpha": 0.9}
CENTERED = RMSPROP | {"centered": True, "momentum": 0.5}
OF_ADAM = DESCENT | {"betas": (0.8, 0.95), "eps": 1e-7}
FRUGAL_ADAMW = ADAMW | {"update_gap": 2, "state_free_lr_scale": 0.5}
FRUGAL_SGDM = FRUGAL_ADAMW | {"selection": "randk", "inner": "sgdm", "state_free": "sgd"}
NADAM = OF_ADAM | {"momentum_decay": 0.02, "decoupled_weight_decay": True}
OF_FRUGAL: Any = {"elementwise": False, "complex": False, "state": "", "has_one_rule": False}
LION = {"lr": 3e-3, "betas": (0.9, 0.97), "weight_decay": 0.2}

ENTRIES = (
    Entry("adagrad-norm", AdaGradNorm, {"lr": 0.3, "weight_decay": 0.1}, elementwise=False, state=""),
    Entry("adamw", AdamW, ADAMW, partial(torch.optim.AdamW, **ADAMW)),
    Entry("adamw-amsgrad", AdamW, ADAMW | {"amsgrad": True}, partial(torch.optim.AdamW, **ADAMW, amsgrad=True)),
    Entry("adamw-maximize", AdamW, ADAMW | {"maximize": True}, partial(torch.optim.AdamW, **ADAMW, maximize=True)),
    Entry("adam", Adam, ADAMW, partial(torch.optim.Adam, **ADAMW)),
    Entry("adagrad", Adagrad, ADAGRAD, partial(torch.optim.Adagrad, **ADAGRAD), state="sum"),
    Entry("adamax", Adamax, OF_ADAM, partial(torch.optim.Adamax, **OF_ADAM)),
    Entry("diffgrad", DiffGrad, ADAMW | {"weight_decay": 0.2}),
    Entry("egd", EGD, EGD_MOMENTUM, state="momentum_buffer"),
    Entry("egd-plain", EGD, {"lr": 1e-2, "max_exponent": 1.0}, state=""),
    Entry("egd-adam", EGD, {"lr": 1e-2, "adam": True, "betas": (0.8, 0.95), "eps": 1e-7}),
    Entry("egd-free", EGD, EGD_MOMENTUM | {"update": "eg+-", "hypentropy_beta": 0.3}, state="momentum_buffer"),
    Entry("frugal", FRUGAL, FRUGAL_ADAMW, **OF_FRUGAL),
    Entry("frugal-randk", FRUGAL, FRUGAL_SGDM, **OF_FRUGAL),
    Entry("lion", Lion, LION, partial(lion_pytorch.Lion, **LION)),
    Entry("lion-maximize", Lion, LION | {"maximize": True}),
    Entry("lion-huber", Lion, LION | {"kappa": "huber", "kappa_param": 0.5}),
    Entry("lion-lp", Lion, LION | {"kappa": "lp", "kappa_param": 1.7}, elementwise=False, complex=False),
    Entry("lion-topk", Lion, LION | {"kappa": "topk", "kappa_param": 9}, elementwise=False, complex=False),
    Entry("muon", Muon, MUON, **OF_MUON),
    Entry("muon-maximize", Muon, MUON | {"maximize": True}, **OF_MUON),
    Entry(
        "muon-batch",
        Muon,
        MUON | {"ndim_policy": "batch", "ns_algorithm": "gram", "nesterov": False},
        **OF_MUON | {"shapes": ((2, 3, 8), (5, 3), (2, 2, 4, 4))},
    ),
    Entry(
        "muon-flatten",
        Muon,
        MUON | {"ndim_policy": "flatten", "skip_zero_grad": True},
        **OF_MUON | {"shapes": ((6, 2, 3, 3), (5, 3), (4, 3, 5))},
    ),
    Entry(
        "muon-heads",
        Muon,
        MUON | {"num_heads": 3, "cautious_weight_decay": True},
        **OF_MUON | {"shapes": ((6, 5), (12, 7), (3, 9))},
    ),
    Entry("muon-split", Muon, MUON | {"split_sizes": (4, 2)}, **OF_MUON | {"shapes": ((6, 5), (6, 20))}),
    Entry("muon-float32", Muon, {"lr": 1e-2, "ns_precision": "float32"}, **OF_MUON, amplifies=True),
    Entry("muon-auto", Muon, {"lr": 1e-2}, **OF_MUON | {"shapes": ((64, 96), (5, 3), (40, 33))}, amplifies=True),
    Entry("muon-with-adamw", Combined, MUON, **OF_MUON),
    Entry("muon-adamw", MuonAdamW, MUON | {"use_muon": True}, **OF_MUON),
    Entry("muon-adamw-of-adamw", MuonAdamW, ADAMW | {"use_muon": False}, partial(torch.optim.AdamW, **ADAMW)),
    Entry("normuon", Muon, MUON | {"normalize": "normuon"}, **OF_MUON),
    Entry("auon", AuON, AUON, **OF_AUON),
    Entry("auon-package", AuON, AUON | {"variant": "package", "nesterov": False, "maximize": True}, **OF_AUON),
    Entry("hybrid-auon", HybridAuON, AUON | {"ns_precision": "float64"}, **OF_MUON),
    Entry("hybrid-auon-package", HybridAuON, AUON | MUON | {"variant": "package"}, **OF_MUON),
    Entry("optimistic-adam", OptimisticAdam, ADAMW | {"optimism": 0.7}),
    Entry("optimistic-md", OptimisticMD, {"lr": 1e-2, "weight_decay": 0.1}, state="prev_grad"),
    Entry("nadam", NAdam, NADAM, partial(torch.optim.NAdam, **NADAM)),
    Entry(
        "optimistic-md-adaptive",
        OptimisticMD,
        {"lr": 0.3, "weight_decay": 0.1, "adaptive": "variation", "radius": 3.0},
        elementwise=False,
        state="prev_grad",
    ),
    Entry("nigt", RoundedNIGT, {"lr": 0.01, "scope": "tensor"}, **OF_NIGT),
    Entry("nigt-global", RoundedNIGT, {"lr": 0.05, "weight_decay": 0.1, "schedule": "n-pg-igt"}, **OF_NIGT),
    Entry("radam", RAdam, OF_ADAM, partial(torch.optim.RAdam, **OF_ADAM)),
    Entry("rmsprop", RMSprop, RMSPROP, partial(torch.optim.RMSprop, **RMSPROP), state="square_avg"),
    Entry("rmsprop-centered", RMSprop, CENTERED, partial(torch.optim.RMSprop, **CENTERED), state="square_avg"),
    Entry("sgd", SGD, MOMENTUM, partial(torch.optim.SGD, **MOMENTUM), state="momentum_buffer"),
    Entry("sgd-plain", SGD, DESCENT, partial(torch.optim.SGD, **DESCENT), state=""),
    Entry("sophia-g", CurvedSophiaG, LION | {"rho": 0.05, "bs": 32}, complex=False),
    Entry("sophia-h", CurvedSophiaH, LION | {"gamma": 1.6}, complex=False),
    Entry(
        "storm",
        TransportedSTORM,
        {"lr": 0.01, "correction": "hessian", "scope": "tensor"},
        **OF_NIGT | {"complex": False},
    ),
    Entry("storm-adaptive", TransportedSTORM, DESCENT | {"normalize": False, "schedule": "storm"}, **OF_NIGT),
)


def every(wanted: Callable[[Entry], Any] = lambda _entry: True) -> pytest.MarkDecorator:
    """Run a test with each ``entry`` that is wanted."""
    entries = [entry for entry in ENTRIES if wanted(entry)]
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


def one_of_each_class() -> list[Entry]:
    """The first entry of every optimizer class: for promises in which the variants do not differ.

    Not of a class without states of the parameters' shapes, which most of these promises are about.
    """
    return [entry for entry in {entry.optimizer: entry for entry in reversed(ENTRIES)}.values() if entry.state][::-1]


every_entry = every()
every_class = every(lambda entry: entry in one_of_each_class())
every_near_the_reference = every(lambda entry: not entry.amplifies)
every_with_state = every(lambda entry: entry.state)
every_with_state_near_the_reference = every(lambda entry: entry.state and not entry.amplifies)
every_with_peer = every(lambda entry: entry.peer is not None)
every_elementwise = every(lambda entry: entry.elementwise)
every_complex = every(lambda entry: entry.complex)
every_class_of_any_shape = every(lambda entry: entry.any_shape and entry in one_of_each_class())
every_elementwise_class = every(lambda entry: entry.elementwise and entry in one_of_each_class())
every_class_of_matrices = every(
    lambda entry: (
        not entry.elementwise
        and entry in one_of_each_class()
        and entry.optimizer not in (RoundedNIGT, TransportedSTORM)  # of a norm over all elements
    )
)
every_that_subtracts = every(
    lambda entry: entry.elementwise and entry in one_of_each_class() and entry.optimizer is not EGD
)
every_coded_class = every(lambda entry: entry.elementwise and entry.state and entry in one_of_each_class())
