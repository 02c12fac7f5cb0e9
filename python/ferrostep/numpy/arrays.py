"""What the functions for NumPy arrays have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from operator import index
from typing import Any, TypeAlias

import numpy.typing as npt

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind

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


def whole(name: str, value: int, low: float, high: float = math.inf) -> int:
    """A whole number from ``low`` to below ``high``; TypeError or ValueError, by its name, for anything else."""
    try:
        number = index(value)
    except TypeError:
        raise wrong_kind(name, value, "an integer") from None
    check(name, number, low, high)
    return number


def check(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise TypeError or ValueError unless it is a number from ``low`` to below ``high``."""
    try:
        fits = bool(low <= value < high)
    except (TypeError, ValueError, RuntimeError):  # also an array of several
        raise wrong_kind(name, value, "a number") from None
    if not fits:
        raise Problem.NUMBER.of(name, value, f"{low} <= {name} < {high}")


def truth(name: str, value: object) -> bool:
    """Anything for true or false, as Python takes it, but for words: ``"False"`` of a command line would be true."""
    if isinstance(value, str):
        raise wrong_kind(name, value, "a bool")
    return bool(value)


def real(name: str, value: float, low: float) -> float:
    """A finite number of at least ``low``; TypeError or ValueError, by its name, for anything else."""
    if not isinstance(value, Real):  # also what could be made one, such as a tensor, whose gradient would be lost
        raise wrong_kind(name, value, "a number")
    if not low <= value < math.inf:
        expected = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
        raise Problem.NUMBER.of(name, value, expected)
    try:
        return float(value)
    except OverflowError:
        raise beyond(name, value) from None


def positive(name: str, value: float) -> float:
    """A finite number above 0; TypeError or ValueError, by its name, for anything else."""
    if isinstance(value, Real) and not 0 < value < math.inf:
        raise Problem.NUMBER.of(name, value, "a finite number above 0")
    return real(name, value, 0.0)


def beyond(name: str, value: object) -> Exception:
    """The ValueError for a number that no float comes near."""
    return Problem.NUMBER.of(name, f"{type(value).__name__} beyond all floats", "a finite number")


def number(name: str, value: Any) -> float:
    """The number as a float; TypeError or ValueError, by its name, for what is none, or beyond all floats."""
    try:
        if hasattr(value, "__float__") and "complex" not in str(getattr(value, "dtype", "")):
            return float(value)
    except OverflowError:
        raise beyond(name, value) from None
    except (TypeError, ValueError, RuntimeError):  # not one element, or one without memory
        pass
    raise wrong_kind(name, value, "a number")


def listed(name: str, given: Any, expected: str = "a list") -> list[Any]:
    """The elements; TypeError, by its name, for what is one array or tensor, or nothing to go through."""
    if hasattr(given, "dtype") or isinstance(given, str) or not isinstance(given, Iterable):
        raise wrong_kind(name, given, expected)
    return list(given)


def writable(name: str, given: Any) -> list[Any]:
    """As :func:`listed`, of what is changed in place: TypeError where there is nothing to change."""
    arrays = listed(name, given)
    for place, array in enumerate(arrays):
        if array is None:
            raise TypeError(f"{name}[{place}] is None, expected an array to write to")
    return arrays


def nested(name: str, given: Any) -> list[list[Any]]:
    """The elements of lists in a list; at least one list."""
    lists = [listed(f"{name}[{i}]", each) for i, each in enumerate(listed(name, given))]
    if not lists:
        raise Problem.EMPTY.of(name, "nothing", "one gradient at least")
    return lists


def scales(scale: Any, like: Any) -> list[float]:
    """The scale as one number, or one for each sample of an array or tensor; TypeError or ValueError for others."""
    if not hasattr(scale, "__float__"):
        raise wrong_kind("scale", scale, "a number, or an array of one for each sample")
    shape = list(getattr(scale, "shape", []))
    if not shape:
        return [float(scale)]
    samples, *others = like.shape or [1]
    if math.prod(shape) != 1 and shape not in ([samples], [samples] + [1] * len(others)):
        expected = f"{[samples]}: one for each sample of {list(like.shape)}"
        raise Problem.SHAPE.of("scale", shape, expected)
    each = scale.reshape(-1).tolist()
    if not all(isinstance(x, Real) for x in each):
        raise Problem.NOT_REAL.of("scale", scale.dtype, "real numbers")
    return [float(x) for x in each]


def numbers(name: str, given: Any, of: tuple[str, Sequence[Any]]) -> list[float]:
    """The elements as numbers, one for each of a named list; TypeError or ValueError, by their name, for others."""
    if getattr(given, "ndim", 1) != 1:
        raise Problem.SHAPE.of(name, list(given.shape), "one dimension")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise wrong_kind(name, given, "numbers")
    row = [number(f"{name}[{i}]", x) for i, x in enumerate(given)]
    each, elements = of
    if len(row) != len(elements):
        raise Problem.COUNT.of(name, f"{len(row)} numbers", f"{len(elements)}: one for each of {each}")
    return row


def integers(name: str, given: Any) -> list[int]:
    """The elements as integers; TypeError, by their name, for anything else."""
    return [whole(f"{name}[{i}]", x, -math.inf) for i, x in enumerate(listed(name, given))]
