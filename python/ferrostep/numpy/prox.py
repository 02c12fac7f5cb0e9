"""Proximal operators of rows, as :mod:`ferrostep.projections.prox`, for NumPy arrays."""

from __future__ import annotations

from ferrostep import _core
from ferrostep.numpy.arrays import Array, real
from ferrostep.numpy.rows import mapped, vector

__all__ = [
    "elastic_net",
    "group_lasso",
    "linf",
    "nonnegative_lasso",
    "nonnegative_ridge",
    "ridge",
    "soft_threshold",
    "sorted_l1",
]


def elastic_net(
    x: Array, lambd: float = 1.0, gamma: float = 1.0, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Of ``f = lambd (|x|_1 + gamma |x|^2 / 2)``: the soft threshold over ``1 + lambd gamma``.

    As :func:`ferrostep.projections.prox.elastic_net`.

    Args:
        x: any shape with a dimension and an element at least.
        lambd, gamma: finite numbers of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import elastic_net
        >>> elastic_net(np.array([0.75, -1.5, 0.25]), 0.5, 2.0)
        array([ 0.125, -0.5  ,  0.   ])
    """
    return mapped(
        _core.Map.shrink(real("lambd", lambd, 0.0), 1 / (1 + lambd * real("gamma", gamma, 0.0)), False),
        x,
        -1,
        out,
        num_threads,
    )


def group_lasso(
    x: Array, lambd: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Of ``f = lambd |x|_2``: ``max(0, 1 - lambd / norm) x``.

    As :func:`ferrostep.projections.prox.group_lasso`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import group_lasso
        >>> group_lasso(np.array([3.0, -4.0]), 2.5)
        array([ 1.5, -2. ])
    """
    return mapped(_core.Map.l2_ball(real("lambd", lambd, 0.0), True), x, dim, out, num_threads)


def linf(
    x: Array, lambd: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Of ``f = lambd max(abs(x))``: what the projection onto the l1 ball takes away.

    As :func:`ferrostep.projections.prox.linf`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import linf
        >>> linf(np.array([2.0, -0.5, 1.5]))
        array([ 1.25, -0.5 ,  1.25])
    """
    return mapped(_core.Map.l1_ball(real("lambd", lambd, 0.0), True), x, dim, out, num_threads)


def nonnegative_lasso(
    x: Array, lambd: float = 1.0, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Of ``f = lambd |x|_1`` where nothing is negative: ``max(x - lambd, 0)``.

    As :func:`ferrostep.projections.prox.nonnegative_lasso`.

    Args:
        x: any shape with a dimension and an element at least.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import nonnegative_lasso
        >>> nonnegative_lasso(np.array([0.75, -1.5]), 0.5)
        array([0.25, 0.  ])
    """
    return mapped(_core.Map.shrink(real("lambd", lambd, 0.0), 1.0, True), x, -1, out, num_threads)


def nonnegative_ridge(
    x: Array, lambd: float = 1.0, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """Of ``f = lambd |x|^2 / 2`` where nothing is negative: ``max(x, 0) / (1 + lambd)``.

    As :func:`ferrostep.projections.prox.nonnegative_ridge`.

    Args:
        x: any shape with a dimension and an element at least.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import nonnegative_ridge
        >>> nonnegative_ridge(np.array([0.75, -1.5]), 2.0)
        array([0.25, 0.  ])
    """
    return mapped(_core.Map.shrink(0.0, 1 / (1 + real("lambd", lambd, 0.0)), True), x, -1, out, num_threads)


def ridge(x: Array, lambd: float = 1.0, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """Of ``f = lambd |x|^2 / 2``: ``x / (1 + lambd)``.

    As :func:`ferrostep.projections.prox.ridge`.

    Args:
        x: any shape with a dimension and an element at least.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import ridge
        >>> ridge(np.array([0.75, -1.5]), 2.0)
        array([ 0.25, -0.5 ])
    """
    return mapped(_core.Map.shrink(0.0, 1 / (1 + real("lambd", lambd, 0.0)), False), x, -1, out, num_threads)


def soft_threshold(x: Array, lambd: float = 1.0, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """Of ``f = lambd |x|_1``: ``sign(x) max(abs(x) - lambd, 0)``.

    As :func:`ferrostep.projections.prox.soft_threshold`.

    Args:
        x: any shape with a dimension and an element at least.
        lambd: the factor of f, a finite number of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import soft_threshold
        >>> soft_threshold(np.array([0.75, -1.5, 0.25]), 0.5)
        array([ 0.25, -1.  ,  0.  ])
    """
    return mapped(_core.Map.shrink(real("lambd", lambd, 0.0), 1.0, False), x, -1, out, num_threads)


def sorted_l1(x: Array, w: Array, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """Of SLOPE's ``f = sum_i w_i |x|_(i)``.

    As :func:`ferrostep.projections.prox.sorted_l1`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        w: finite numbers of at least 0 of shape (n,), in any order.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.prox import sorted_l1
        >>> sorted_l1(np.array([0.75, -1.5, 0.25]), np.array([1.0, 0.5, 0.25]))
        array([ 0.25, -0.5 ,  0.  ])
    """
    return mapped(_core.Map.sorted(vector("w", w, x, dim), True), x, dim, out, num_threads)
