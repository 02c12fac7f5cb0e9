"""What the functions of rows for NumPy arrays have in common."""

from __future__ import annotations

import numpy as np

from ferrostep import _core
from ferrostep.errors import NAMED_FLOATS, Problem, wrong_kind
from ferrostep.numpy.arrays import Array, number, threads, whole


def mapped(kernel: _core.Map, x: Array, dim: int, out: Array | None, num_threads: int | None) -> Array:
    """The image of every row, in ``out`` or a new array."""
    check(x)
    to = np.empty_like(x) if out is None else out
    kernel.forward(x, to, whole("dim", dim, -np.inf), threads(num_threads))
    return to


def check(x: Array) -> None:
    """Raise TypeError or ValueError for what is no array of real numbers."""
    if not isinstance(x, np.ndarray):
        raise wrong_kind("x", x, "a numpy.ndarray")
    if np.iscomplexobj(x):
        raise Problem.DTYPE.of("x", x.dtype, NAMED_FLOATS)


def vector(name: str, value: Array | float, x: Array, dim: int) -> Array:
    """A number for each element of the rows: those of an array, or one number for all."""
    check(x)
    if not isinstance(value, np.ndarray):
        size = x.shape[dim] if -x.ndim <= whole("dim", dim, -np.inf) < x.ndim else 0  # the kernel will name it
        return np.full(size, number(name, value))
    if value.ndim != 1:
        raise Problem.SHAPE.of(name, list(value.shape), "one dimension: a number for each element of a row of x")
    if value.dtype.kind not in "fiu":
        raise Problem.DTYPE.of(name, value.dtype, "real numbers")
    return value.astype(np.float64)
