"""The arguments of optimizers: the signature of a constructor says their defaults and, by annotations, their checks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from torch import Tensor

from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import truth, whole

Check: TypeAlias = Callable[[str, Any, Mapping[str, Any]], Any]
"""From an argument's name, its value and the group that it is in: the value as the group is to keep it.

Raises torch's errors for impossible values.
"""


class Argument(NamedTuple):
    """An argument of an optimizer, which a parameter group may have for itself."""

    default: Any
    checks: tuple[Check, ...]
    kind: str
    """Its type, as errors say it."""


def arguments_of(constructor: Callable[..., Any]) -> dict[str, Argument]:
    """The arguments that a constructor's signature declares, but for ``params``, ``options`` and :data:`OF_OPTIMIZER`.

    What is annotated as ``bool`` becomes one, what as a number must be one, and what as ``Literal`` one of its words;
    ``Annotated`` brings other checks.
    """
    arguments = {}
    _self, _params, *own = inspect.signature(constructor, eval_str=True).parameters.values()
    for parameter in own:
        notes = getattr(parameter.annotation, "__metadata__", ())
        if parameter.kind is not parameter.VAR_KEYWORD and OF_OPTIMIZER not in notes:
            kind = inspect.formatannotation(getattr(parameter.annotation, "__origin__", parameter.annotation))
            checks = (*checks_of_kind(parameter.annotation), *notes)
            arguments[parameter.name] = Argument(parameter.default, checks, kind)
    return arguments


def checks_of_kind(annotation: Any) -> tuple[Check, ...]:
    """The checks that a value is of the kind that an annotation says, if the kind is one that has a check."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [word for each in kinds if get_origin(each) is Literal for word in get_args(each)]
    if words and kind is annotation:  # else Annotated brings the words of the error, too
        return (one_of([None, *words] if NoneType in kinds else words),)
    checks = [KINDS[each] for each in kinds if each in KINDS]
    return tuple(if_given(check) if NoneType in kinds else check for check in checks)


def check_arguments(arguments: Mapping[str, Argument], group: dict[str, Any]) -> None:
    """Raise torch's errors for impossible arguments of a group; the others are put as the group keeps them.

    Raises:
        TypeError: one that cannot be compared, taken apart or whatever else its check does, by its name.
    """
    for name, argument in arguments.items():
        value = group[name]
        try:
            for check in argument.checks:
                group[name] = check(name, group[name], group)
        except (TypeError, LookupError, RuntimeError) as error:
            if str(error).startswith(name):
                raise
            raise wrong_kind(name, value, argument.kind) from error


OF_OPTIMIZER = "of the optimizer"
"""Marks an argument that is the optimizer's and not its groups'."""


def as_bool(name: str, value: object, _group: Mapping[str, Any]) -> bool:
    """Take anything for true or false, but for words."""
    return truth(name, value)


def as_number(name: str, value: Any, _group: Mapping[str, Any]) -> Any:
    """The value; TypeError unless it is a number or a tensor of one."""
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise wrong_kind(name, value, "a number")
    return value


def as_integer(name: str, value: int, _group: Mapping[str, Any]) -> int:
    """Take what has an index for an integer."""
    return whole(name, value, -math.inf)


def as_tuple(name: str, value: Iterable[Any], _group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Take a sequence as it is now: a list may change."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise wrong_kind(name, value, "a sequence")
    return tuple(value)


def check_lr(_name: str, lr: float | Tensor, _group: Mapping[str, Any]) -> float | Tensor:
    """Raise torch's errors for a learning rate."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    check_range("learning rate", lr, 0.0)
    return lr


def check_lr_of_adam(name: str, lr: float | Tensor, group: Mapping[str, Any]) -> float | Tensor:
    """Raise torch's errors for a learning rate, with that of its Adam and AdamW."""
    if isinstance(lr, Tensor) and group["foreach"] and not group["capturable"]:
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    return check_lr(name, lr, group)


def check_betas(
    name: str, betas: tuple[float | Tensor, float | Tensor], group: Mapping[str, Any]
) -> tuple[float | Tensor, float | Tensor]:
    """Raise torch's errors for impossible betas; one-element tensors are squeezed."""
    if isinstance(betas, str) or not hasattr(betas, "__len__") or (isinstance(betas, Tensor) and betas.ndim == 0):
        raise wrong_kind(name, betas, "two numbers")
    if len(betas) != 2:
        raise Problem.COUNT.of(name, f"length {len(betas)}", "two numbers")
    for i in range(2):
        as_number(f"{name}[{i}]", betas[i], group)
    check_range("beta parameter at index 0", betas[0], 0.0, 1.0)
    check_range("beta parameter at index 1", betas[1], 0.0, 1.0)
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            if group["foreach"] and not group["capturable"]:
                raise ValueError(f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True")
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element")
    first, second = (b.squeeze() if isinstance(b, Tensor) else b for b in betas)
    return first, second


def check_range(name: str, value: Any, low: float, high: float | None = None) -> Any:
    """The value; torch's ValueError unless ``low <= value`` (and ``value < high``)."""
    if not (low <= value and (high is None or value < high)):
        raise ValueError(f"Invalid {name}: {value}")
    return value


def check_positive(name: str, value: float) -> float:
    """The value; ValueError unless it is a number greater than 0 and not infinite."""
    if not 0.0 < value < math.inf:
        raise Problem.NUMBER.of(name, value, "a finite number greater than 0")
    return value


def within(low: float, high: float | None = None, *, called: str | None = None) -> Check:
    """A check of ``low <= value`` (and ``value < high``)."""
    return lambda name, value, _group: check_range(f"{called or name} value", value, low, high)


def positive(*, called: str | None = None) -> Check:
    """A check of ``0 < value < inf``."""
    return lambda name, value, _group: check_positive(f"{called or name} value", value)


def one_of(choices: Collection[Any], message: str | None = None) -> Check:
    """A check for one of ``choices``; a ``message`` of its own may name the ``{value}``."""

    def check(name: str, value: Any, _group: Mapping[str, Any]) -> Any:
        if value not in choices:
            raise ValueError(message.format(value=value)) if message else wrong_choice(name, value, *choices)
        return value

    return check


def if_given(check: Check) -> Check:
    """The check, for what is not None."""
    return lambda name, value, group: None if value is None else check(name, value, group)


KINDS: Mapping[Any, Check] = {bool: as_bool, float: as_number, int: as_integer}
"""The checks that annotations bring by themselves."""

LearningRate: TypeAlias = Annotated[float | Tensor, check_lr]
AdamsLearningRate: TypeAlias = Annotated[float | Tensor, check_lr_of_adam]
Betas: TypeAlias = Annotated[tuple[float | Tensor, float | Tensor], check_betas]
AtLeastZero: TypeAlias = Annotated[float, within(0.0)]
Epsilon: TypeAlias = Annotated[float, within(0.0, called="epsilon")]
