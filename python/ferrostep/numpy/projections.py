"""Euclidean projections of rows onto sets, as :mod:`ferrostep.projections`, for NumPy arrays."""

from __future__ import annotations

import numpy as np

from ferrostep import _core
from ferrostep.errors import NAMED_FLOATS, Problem, wrong_kind
from ferrostep.numpy.arrays import Array, real, threads, whole

__all__ = ["simplex"]


def simplex(
    x: Array, s: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows of nonnegative numbers with the sum ``s``, as :func:`ferrostep.projections.simplex`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        s: the sum, a finite number of at least 0. Default: 1.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import simplex
        >>> simplex(np.array([0.5, 1.25, -0.25, 0.75]))
        array([0.  , 0.75, 0.  , 0.25])
    """
    kernel = _core.Map.simplex(real("s", s, 0.0))
    if not isinstance(x, np.ndarray):
        raise wrong_kind("x", x, "a numpy.ndarray")
    if np.iscomplexobj(x):
        raise Problem.DTYPE.of("x", x.dtype, NAMED_FLOATS)
    to = np.empty_like(x) if out is None else out
    kernel.forward(x, to, whole("dim", dim, -np.inf), threads(num_threads))
    return to
