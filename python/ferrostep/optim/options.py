"""The options that every optimizer takes, and what is asked of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ferrostep.choices import Backend, MasterWeights, Rounding, StateCodes
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import number, whole
from ferrostep.suggestions import unexpected


class Options(TypedDict, total=False):
    """The options that every optimizer takes as keywords.

    rounding: how a result is rounded to a bfloat16 or float16 parameter: ``"nearest"`` (default), ``"stochastic"``
        (up or down at random, right in expectation, from ``seed``), or ``"kahan"`` (what rounding lost is kept in a
        ``kahan_comp`` buffer of the parameter's dtype and added back, with which a bfloat16 weight has 16 bits: steps
        below about 2**-18 of it still vanish). No effect on float32 and float64.
    state_dtype: dtype of the state. Default: float32 for bfloat16 and float16 parameters, else the parameter's.
        float32, bfloat16 and (for float16 parameters) float16 are possible; float64 parameters keep float64. A mapping
        from names of states to dtypes, such as ``{"exp_avg": torch.bfloat16}``, leaves the others at their default.
        ``"int8"`` keeps the states of element-wise rules as codes of 8 bits (uint8) under their names, beside them a
        float32 scale for each 256 in ``exp_avg_scale`` and so on: 1.016 bytes for each number. States of tensors of
        one dimension or few elements stay as they would be, and those of embeddings, as far as the names tell that come
        with ``model.named_parameters()`` (``wte``, ``...embed...``) or, in MuonAdamW, the modules; of parameters that
        came without names, give embeddings a group of their own with ``"state_dtype": None``. Takes float32, bfloat16
        and float16 parameters.
    min_quant_numel: with ``state_dtype="int8"``, the least number of elements whose states become codes. Default 4096.
    seed: of stochastic rounding, from 0 to 2**64 - 1; default 0.
    master_weights: ``"split"`` keeps the float32 weights of bfloat16 parameters without any loss: the parameter is
        their upper half, rounded to the nearest, and ``master_low`` (int16) what is left. Updates are those of float32
        parameters, bit for bit. ``"float32"`` keeps these weights of bfloat16 and float16 parameters by themselves, in
        ``master_param`` (2 bytes per element more); the parameter is what they round to, written in the same pass, and
        where it is not, someone has written it since: it stands. Default None. No effect on float32 and float64.
    backend: ``"auto"`` (default: Rust for parameters on the CPU, plain torch elsewhere), ``"rust"`` (an error
        elsewhere), or ``"reference"`` (plain torch everywhere).
    skip_nonfinite: leave everything, in all groups, as it is in a step in which a gradient of this group holds a NaN or
        infinity; default False. Costs one more reading of the group's gradients.
    max_grad_norm: multiply the gradients by ``min(1, max_grad_norm / (norm + 1e-6))`` on their way into the step, where
        norm is that of the gradients of all groups that say a ``max_grad_norm``: the step after
        ``torch.nn.utils.clip_grad_norm_``, with one pass over the gradients less. ``grad`` itself is not changed. The
        norm is ``optimizer.last_grad_norm``, a 0-dim tensor; ``float("inf")`` only measures. A norm that is NaN makes
        all of these gradients NaN, as torch's does, unless ``skip_nonfinite`` is there. Default None.
    projection: a set that parameters are put back onto after each step, in the same call: ``"nonnegative"``,
        ``"simplex"``, ``"l1_ball"``, ``"l2_ball"``, ``"linf_ball"``, or a name and numbers such as ``("simplex", 2.0)``
        and ``("box", -1.0, 1.0)``, of :mod:`ferrostep.projections`; rows are those along the last dimension. Or a
        function that changes a parameter in place, such as ``functools.partial(simplex_, dim=0)``; what it raises comes
        when the step is complete, and it is called once more then. Parameters without a gradient stay. 16-bit
        parameters are projected as they are rounded. It excludes ``differentiable``, DTensors whose rows are split (for
        functions, all), NIGT and STORM. Default None.
    foreach, fused, capturable: accepted for torch's sake and without effect: there is one implementation.
    differentiable: let autograd record the step; runs in plain torch.
    """

    rounding: Rounding
    state_dtype: torch.dtype | StateCodes | Mapping[str, torch.dtype | StateCodes | None] | None
    min_quant_numel: int
    seed: int
    master_weights: MasterWeights | None
    backend: Backend
    skip_nonfinite: bool
    max_grad_norm: float | None
    projection: str | Sequence[Any] | Callable[[Tensor], Any] | None
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


DEFAULT_OPTIONS: Options = {
    "rounding": "nearest",
    "state_dtype": None,
    "min_quant_numel": 4096,
    "seed": 0,
    "master_weights": None,
    "backend": "auto",
    "skip_nonfinite": False,
    "max_grad_norm": None,
    "projection": None,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}

CODES = get_args(StateCodes)
ALLOWED: dict[str, tuple[Any, ...]] = {
    "rounding": get_args(Rounding),
    "master_weights": (None, *get_args(MasterWeights)),
    "backend": get_args(Backend),
    "state_dtype": (None, torch.float32, torch.bfloat16, torch.float16, torch.float64, *CODES),
}
"""The values of the options that have a list of them."""


def full_options(owner: str, own: Iterable[str], options: Options) -> Options:
    """The options with their defaults, for a class with arguments ``own``; TypeError for an unknown one."""
    for name in options:
        if name not in DEFAULT_OPTIONS:
            raise unexpected(owner, name, [*own, *DEFAULT_OPTIONS])
    return {**DEFAULT_OPTIONS, **options}


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError for impossible options of a parameter group, RuntimeError for those that exclude each other."""
    if isinstance(group["state_dtype"], Mapping):
        group["state_dtype"] = dict(group["state_dtype"])  # as it is now, and as checkpoints can hold it
    for name, allowed in ALLOWED.items():
        of_states = name == "state_dtype" and isinstance(group[name], Mapping)
        for value in group[name].values() if of_states else (group[name],):
            if value not in allowed:
                raise ValueError(f"Invalid {name} value: {value!r}; expected one of {', '.join(map(repr, allowed))}")
    group["min_quant_numel"] = whole("min_quant_numel", group["min_quant_numel"], 0)
    if asks_for_codes(group):
        _check_codes(group)
    group["seed"] = whole("seed", group["seed"], -math.inf)
    if not 0 <= group["seed"] < 2**64:
        raise Problem.NUMBER.of("seed value", group["seed"], "0 to 2**64 - 1")
    for name in ("skip_nonfinite", "differentiable"):
        if not isinstance(group[name], bool):
            raise wrong_kind(name, group[name], "a bool")
    check_max_grad_norm(group["max_grad_norm"])
    if group["master_weights"] is not None:
        chosen = f"master_weights={group['master_weights']!r}"
        if group["rounding"] != "nearest":
            raise ValueError(f"{chosen} rounds to the nearest and excludes rounding={group['rounding']!r}")
        if group["differentiable"]:
            raise RuntimeError(f"{chosen} does not support `differentiable`")
        for i, p in enumerate(group["params"]):
            if group["master_weights"] == "split" and p.dtype == torch.float16:
                raise ValueError(f"parameter {i} has dtype {p.dtype}, but master_weights='split' takes bfloat16 ones")
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def check_has_shape(place: str, p: Tensor) -> None:
    """Raise RuntimeError for a parameter of a lazy module that has not run yet."""
    if is_lazy(p):
        raise RuntimeError(f"{place} is of a lazy module and has no shape yet: run the module once before")


def is_coded(name: str, group: Mapping[str, Any]) -> bool:
    """Whether a group asks for a state of this name to be codes."""
    return chosen_dtype(name, group) in CODES


def chosen_dtype(name: str, group: Mapping[str, Any]) -> Any:
    """What ``state_dtype`` says of a state of this name."""
    option = group["state_dtype"]
    return option.get(name) if isinstance(option, Mapping) else option


def without_codes(option: Any) -> Any:
    """What ``state_dtype`` says but for codes."""
    if not isinstance(option, Mapping):
        return None if option in CODES else option
    return {name: chosen for name, chosen in option.items() if chosen not in CODES}


def asks_for_codes(group: Mapping[str, Any]) -> bool:
    """Whether a group asks for any state to be codes."""
    option = group["state_dtype"]
    return any(is_coded(name, group) for name in option) if isinstance(option, Mapping) else is_coded("", group)


def _check_codes(group: Mapping[str, Any]) -> None:
    if group["differentiable"]:
        raise RuntimeError("state_dtype='int8' does not support `differentiable`")
    for i, p in enumerate(group["params"]):
        if p.is_complex() or p.dtype == torch.float64:
            expected = "float32, bfloat16 or float16 (state_dtype='int8')"
            raise Problem.DTYPE.of(f"parameter {i}", p.dtype, expected)


def check_max_grad_norm(value: Any) -> None:
    """Raise for what is neither None nor a number of at least 0."""
    if value is None:
        return
    if not number("max_grad_norm", value.detach() if isinstance(value, Tensor) else value) >= 0:
        raise Problem.NUMBER.of("max_grad_norm value", value, "a number of at least 0, or None")


def check_real(params: Iterable[Tensor], owner: str) -> None:
    """Raise for parameters that a rule of real numbers cannot take."""
    if any(p.is_complex() for p in params):
        raise RuntimeError(f"{owner} does not support complex parameters")
