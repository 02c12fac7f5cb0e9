"""Coefficients of Newton-Schulz, checked once and kept; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import index
from typing import Any

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind

Coefficients = str | Sequence[float] | Sequence[Sequence[float]]
"""A name, a triple for all steps, or a sequence of triples of which the last repeats."""

MAX_STEPS = 99


def schedule_of(coefficients: Coefficients, steps: int | None) -> _core.Schedule:
    """The checked coefficients of every step."""
    hashable: Any = coefficients
    if not isinstance(coefficients, Iterable):
        raise wrong_kind("ns_coefficients", coefficients, "a name, or numbers")
    if not isinstance(coefficients, str):
        hashable = tuple(tuple(x) if isinstance(x, Iterable) else x for x in coefficients)
    if not (steps is None or hasattr(steps, "__index__")):
        raise wrong_kind("ns_steps", steps, "an integer")
    return _schedule(hashable, None if steps is None else index(steps))


@lru_cache(maxsize=64)
def _schedule(coefficients: Any, steps: int | None) -> _core.Schedule:
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise Problem.NUMBER.of("ns_steps value", steps, f"1 to {MAX_STEPS}")
    return _core.Schedule(coefficients, steps)
