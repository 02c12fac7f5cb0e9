"""What takes the place of the sign in Lion-K: the rules in Rust, and the checks of the arguments, for both twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from ferrostep import choices
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import whole

KERNELS = {
    "sign": "Lion",
    "deadzone": "LionDeadZone",
    "topk": "LionTopK",
    "huber": "LionHuber",
    "identity": "LionIdentity",
    "lp": "LionLp",
    "l2": "LionL2",
    "row": "LionRow",
}
"""The Rust rules."""
OF_ELEMENTS = ("sign", "deadzone", "huber", "identity")
"""What looks at each element by itself."""
LARGEST_SUMMED = 8.0
"""Powers up to this one are summed as they are, in float64; greater ones would leave its range."""


class Number(NamedTuple):
    """What ``kappa_param`` is to be."""

    expected: str
    holds: Callable[[Any], bool]


def a_number(expected: str, low: float, *, above: bool = False) -> Number:
    """A finite number of at least ``low``, or above it."""
    return Number(expected, lambda x: x is not None and (low < x if above else low <= x) and x < math.inf)


NONE = Number("None", lambda x: x is None)
# Of the least normal number the inverse is finite, in float32, too.
NUMBERS = {
    "lp": a_number("a finite number greater than 1", 1.0, above=True),
    "deadzone": a_number("a finite number of at least 0", 0.0),
    "topk": a_number("a whole number of at least 1", 1),
    "huber": a_number("a finite number of at least 1.2e-38", 1.2e-38),
}


def check_kappa(name: str, value: Any, _group: Mapping[str, Any]) -> Any:
    """The value; TypeError or ValueError unless it is one of the words, or can be called."""
    if callable(value):
        return value
    if not isinstance(value, str):
        raise wrong_kind(name, value, "a str or a callable")
    if value == "nuclear":
        raise ValueError(f"Invalid {name}: 'nuclear' is Muon's direction; take ferrostep.optim.Muon for matrices")
    if value not in get_args(choices.Kappa):
        raise wrong_choice(name, value, *get_args(choices.Kappa))
    return value


def check_kappa_param(name: str, value: Any, group: Mapping[str, Any]) -> Any:
    """The value; TypeError or ValueError unless it is what the group's ``kappa`` takes."""
    kappa = group["kappa"]
    number = NONE if callable(kappa) else NUMBERS.get(kappa, NONE)
    if kappa == "topk" and value is not None:
        value = whole(name, value, -math.inf)
    try:
        holds = number.holds(value)
    except TypeError:
        raise wrong_kind(name, value, "a number") from None
    if not holds:
        chosen = "a callable kappa" if callable(kappa) else f"kappa={kappa!r}"
        raise Problem.NUMBER.of(name, value, f"{number.expected} for {chosen}")
    return value


def has_kernel(kappa: Any, kappa_param: Any) -> bool:
    """Whether there is a Rust rule: not for a callable, nor for the norm of a great power."""
    if callable(kappa) or kappa not in KERNELS:
        return False
    # A step will say if the power is no number.
    return kappa != "lp" or not (isinstance(kappa_param, (int, float)) and kappa_param > LARGEST_SUMMED)
