"""What the functions for NumPy arrays have in common."""

from __future__ import annotations

import math
from operator import index
from typing import Any, TypeAlias

import numpy.typing as npt

from ferrostep import _core

Array: TypeAlias = npt.NDArray[Any]


MOST_THREADS = 1024
"""More are not started, whatever a caller allows."""


def threads(most: int | None) -> int:
    """At most so many threads; by default as many as there are CPUs that the process may use.

    Raises:
        TypeError, ValueError: ``num_threads`` is no integer of at least 1.
    """
    if most is None:
        return _core.available_cpus()
    return min(whole("num_threads", most, 1), MOST_THREADS)


def whole(name: str, value: int, low: int, high: float = math.inf) -> int:
    """A whole number from ``low`` to below ``high``; TypeError or ValueError, by its name, for anything else."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}, expected an integer") from None
    check(name, number, low, high)
    return number


def check(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise TypeError or ValueError unless it is a number from ``low`` to below ``high``."""
    try:
        fits = low <= value < high
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number") from None
    if not fits:
        raise ValueError(f"Invalid {name}: {value}; expected {low} <= {name} < {high}")
