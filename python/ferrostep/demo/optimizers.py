"""The optimizers that `compare` knows: one table, one line each.

torch is not imported here, so that `compare --help` can list the names without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ferrostep.suggestions import meant

from . import DemoError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Factory = Callable[["nn.Module"], "Optimizer"]


def of(path: str, **options: Any) -> Factory:
    """A factory that gives every parameter of the model to the class at `path`, imported when it is called."""
    module, name = path.rsplit(".", 1)

    def make(model: nn.Module) -> Optimizer:
        cls = getattr(importlib.import_module(module), name)
        return cls(model.parameters(), **options)  # type: ignore[no-any-return]

    return make


def around(base: Factory) -> Factory:
    """A factory of `SAM` around what `base` makes."""

    def make(model: nn.Module) -> Optimizer:
        from ferrostep.optim import SAM

        return SAM(base(model))

    return make


def hidden_matrices(path: str, **options: Any) -> Factory:
    """A factory that gives hidden matrices to the class at `path` and the rest to AdamW."""
    module, name = path.rsplit(".", 1)

    def make(model: nn.Module) -> Optimizer:
        from ferrostep.optim import AdamW, MuonWithAuxAdamW, muon_param_groups

        from .chain import Chain

        groups = muon_param_groups(model, exclude=NOT_HIDDEN, muon=options, adamw=ADAMW)
        cls = getattr(importlib.import_module(module), name)
        if cls is MuonWithAuxAdamW:
            return MuonWithAuxAdamW(groups)
        hidden, rest = ([group for group in groups if group["use_muon"] is whether] for whether in (True, False))
        return Chain(cls(hidden, **options), AdamW(rest))

    return make


def projected(**options: Any) -> Factory:
    """A factory of `FRUGAL`, of which the hidden matrices keep a part of the state."""

    def make(model: nn.Module) -> Optimizer:
        from ferrostep.optim import FRUGAL, frugal_param_groups

        return FRUGAL(frugal_param_groups(model), **options)

    return make


NOT_HIDDEN = ("embedding", "position")

# Options of one rule are the same for every implementation of it. The rates come from a coarse grid on about the
# default run; Lion's step is a sign, hence the smaller rate and the larger decay (Chen et al. 2023, section 5).
# Those of Adam, Adagrad, AdaGradNorm, Adamax, diffGrad, EGD, FRUGAL, Lion-K, NAdam, NIGT, OptimisticAdam, OptimisticMD,
# RAdam, RMSprop and STORM are first guesses.
ADAGRAD_NORM: dict[str, Any] = {"lr": 3.0}
ADAMW: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
ADAM: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.99)}
DIFFGRAD: dict[str, Any] = ADAMW | {"lr": 6e-3, "decoupled_weight_decay": True}
EGD: dict[str, Any] = {"lr": 1.0}
EGD_ADAM: dict[str, Any] = {"lr": 0.03, "adam": True}
FRUGAL: dict[str, Any] = ADAMW | {"lr": 1e-3, "update_gap": 20}
GALORE: dict[str, Any] = FRUGAL | {"selection": "svd", "state_free": "none", "reset_state": False}
GD: dict[str, Any] = {"lr": 1.0}
LION: dict[str, Any] = {"lr": 3e-4, "betas": (0.95, 0.98), "weight_decay": 1.0}
LION_IDENTITY: dict[str, Any] = LION | {"lr": 0.3, "weight_decay": 1e-3}
LION_NORM: dict[str, Any] = LION | {"lr": 0.03, "weight_decay": 0.01}
LION_ROW: dict[str, Any] = LION | {"lr": 3e-3, "weight_decay": 0.1}
LION_TOPK: dict[str, Any] = LION | {"lr": 1e-3, "weight_decay": 0.3}
MUON: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1}
AUON: dict[str, Any] = {"lr": 5e-3}
HYBRID_AUON: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
NIGT: dict[str, Any] = {"lr": 0.3}
OPTIMISTIC_ADAM: dict[str, Any] = {"lr": 1e-3}
OPTIMISTIC_MD: dict[str, Any] = {"lr": 0.3}
SOPHIA: dict[str, Any] = {"lr": 2.5e-4, "betas": (0.965, 0.99), "weight_decay": 0.2}
ADAGRAD: dict[str, Any] = {"lr": 0.03}
RMSPROP: dict[str, Any] = {"lr": 1e-3}
SGD: dict[str, Any] = {"lr": 0.3, "momentum": 0.9}
SIGN_SGD: dict[str, Any] = {"lr": 1e-3, "betas": (0.0, 0.0), "weight_decay": 0.1}
STORM: dict[str, Any] = {"lr": 0.3}

OPTIMIZERS: dict[str, Factory] = {
    "adagrad": of("ferrostep.optim.Adagrad", **ADAGRAD),
    "adam": of("ferrostep.optim.Adam", **ADAM),
    "adamax": of("ferrostep.optim.Adamax", **ADAM),
    "adamw": of("ferrostep.optim.AdamW", **ADAMW),
    "adagrad_norm": of("ferrostep.optim.AdaGradNorm", **ADAGRAD_NORM),
    "adamw_int8": of("ferrostep.optim.AdamW", **ADAMW, state_dtype="int8"),
    "egd": hidden_matrices("ferrostep.optim.EGD", **EGD),
    "egd_adam": hidden_matrices("ferrostep.optim.EGD", **EGD_ADAM),
    "badam": projected(**FRUGAL, selection="block", state_free="none"),
    "frugal": projected(**FRUGAL),
    "frugal_signs": projected(**FRUGAL, density=0.0),
    "frugal_tenth": projected(**FRUGAL, density=0.1),
    "frugal_whole": projected(**FRUGAL, density=1.0),
    "galore": projected(**GALORE),
    "gd": of("ferrostep.optim.SGD", **GD),
    "lion": of("ferrostep.optim.Lion", **LION),
    "lion_deadzone": of("ferrostep.optim.Lion", **LION, kappa="deadzone", kappa_param=1e-3),
    "lion_huber": of("ferrostep.optim.Lion", **LION, kappa="huber", kappa_param=1e-3),
    "lion_identity": of("ferrostep.optim.Lion", **LION_IDENTITY, kappa="identity"),
    "lion_l2": of("ferrostep.optim.Lion", **LION_NORM, kappa="l2"),
    "lion_lp": of("ferrostep.optim.Lion", **LION_NORM, kappa="lp", kappa_param=1.5),
    "lion_row": of("ferrostep.optim.Lion", **LION_ROW, kappa="row"),
    "lion_topk": of("ferrostep.optim.Lion", **LION_TOPK, kappa="topk", kappa_param=100),
    "diffgrad": of("ferrostep.optim.DiffGrad", **DIFFGRAD),
    "nadam": of("ferrostep.optim.NAdam", **ADAM),
    "nigt": of("ferrostep.optim.NIGT", **NIGT),
    "muon": hidden_matrices("ferrostep.optim.MuonWithAuxAdamW", **MUON),
    "normuon": hidden_matrices("ferrostep.optim.MuonWithAuxAdamW", **MUON, normalize="normuon"),
    "muon_adamw": of("ferrostep.optim.MuonAdamW", **ADAMW | {"betas": (0.95, 0.95)}),
    "auon": hidden_matrices("ferrostep.optim.AuON", **AUON),
    "hybrid_auon": hidden_matrices("ferrostep.optim.HybridAuON", **HYBRID_AUON),
    "radam": of("ferrostep.optim.RAdam", **ADAM),
    "rmsprop": of("ferrostep.optim.RMSprop", **RMSPROP),
    "optimistic_adam": of("ferrostep.optim.OptimisticAdam", **OPTIMISTIC_ADAM),
    "optimistic_md": of("ferrostep.optim.OptimisticMD", **OPTIMISTIC_MD),
    "sam_adamw": around(of("ferrostep.optim.AdamW", **ADAMW)),
    "sam_sgd": around(of("ferrostep.optim.SGD", **SGD)),
    "sgd": of("ferrostep.optim.SGD", **SGD),
    "sign_sgd": of("ferrostep.optim.Lion", **SIGN_SGD),
    "sophia_g": of("ferrostep.optim.SophiaG", **SOPHIA, rho=0.2),
    "sophia_h": of("ferrostep.optim.SophiaH", **SOPHIA, gamma=0.01),
    "storm": of("ferrostep.optim.STORM", **STORM),
    "torch.adamw": of("torch.optim.AdamW", **ADAMW, fused=True),
    "torch.adamw-foreach": of("torch.optim.AdamW", **ADAMW, foreach=True),
    "torch.muon": hidden_matrices("torch.optim.Muon", **MUON),
    "torch.sgd": of("torch.optim.SGD", **SGD),
    "lion-pytorch": of("lion_pytorch.Lion", **LION),
}
DEFAULT = ("adamw", "lion", "torch.adamw")


def parse(names: str) -> list[str]:
    """The names in a list such as `"adamw, lion"`, each once; `DemoError` if one is unknown or none is there."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise DemoError(f"no optimizer named; known: {', '.join(OPTIMIZERS)}")
    for name in chosen:
        if name not in OPTIMIZERS:
            near = meant(name, OPTIMIZERS)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise DemoError(f"unknown optimizer {name!r}{hint}; known: {', '.join(OPTIMIZERS)}")
    return chosen


def build(name: str, model: nn.Module) -> Optimizer:
    """The optimizer `name` over the model's parameters; `DemoError` if its package is not installed."""
    try:
        return OPTIMIZERS[name](model)
    except ImportError as error:
        raise DemoError(f"optimizer {name!r} cannot be loaded: {error}") from error
