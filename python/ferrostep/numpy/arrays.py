"""What the functions for NumPy arrays have in common."""

from __future__ import annotations

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
    try:
        number = index(most)
    except TypeError:
        raise TypeError(f"num_threads is a {type(most).__name__}, expected an integer or None") from None
    if number < 1:
        raise ValueError(f"num_threads is {number}, expected at least 1, or None for all that the process may use")
    return min(number, MOST_THREADS)
