"""Euclidean projections of rows onto sets, as :mod:`ferrostep.projections`, for NumPy arrays."""

from __future__ import annotations

import math

from ferrostep import _core
from ferrostep.numpy.arrays import Array, number, real
from ferrostep.numpy.rows import mapped, vector

__all__ = [
    "box",
    "box_section",
    "halfspace",
    "hyperplane",
    "isotonic",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "nonnegative",
    "permutahedron",
    "simplex",
]


def box(x: Array, lo: float, hi: float, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """The nearest numbers from ``lo`` to ``hi``.

    As :func:`ferrostep.projections.box`.

    Args:
        x: any shape with a dimension and an element at least.
        lo, hi: numbers, infinite ones too; for arrays of bounds, there is ``numpy.clip``.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import box
        >>> box(np.array([0.5, -3.0, 2.0]), -1.0, 1.0)
        array([ 0.5, -1. ,  1. ])
    """
    return mapped(_core.Map.clip(number("lo", lo), number("hi", hi)), x, -1, out, num_threads)


def box_section(
    x: Array,
    lo: Array | float,
    hi: Array | float,
    w: Array | float,
    c: float,
    dim: int = -1,
    *,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """The nearest rows from ``lo`` to ``hi`` with ``w.p = c``.

    As :func:`ferrostep.projections.box_section`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lo, hi, w: finite numbers, or arrays of shape (n,) of them.
        c: a finite number that is ``w.p`` for some such p.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import box_section
        >>> box_section(np.array([0.5, 1.25, -0.25]), 0.0, 1.0, 1.0, 1.5)
        array([0.5, 1. , 0. ])
    """
    return mapped(_section(x, lo, hi, w, c, dim), x, dim, out, num_threads)


def _section(x: Array, lo: Array | float, hi: Array | float, w: Array | float, c: float, dim: int) -> _core.Map:
    vectors = [vector(name, each, x, dim) for name, each in (("lo", lo), ("hi", hi), ("w", w))]
    return _core.Map.section(number("c", c), *vectors)


def halfspace(
    x: Array, a: Array, b: float, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows with ``a.x <= b``.

    As :func:`ferrostep.projections.halfspace`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        a: shape (n,): finite numbers, not all 0.
        b: a finite number.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import halfspace
        >>> halfspace(np.array([2.0, 1.0]), np.array([1.0, 1.0]), 1.0)
        array([1., 0.])
    """
    return mapped(_core.Map.plane(number("b", b), vector("a", a, x, dim), True), x, dim, out, num_threads)


def hyperplane(
    x: Array, a: Array, b: float, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows with ``a.x = b``.

    As :func:`ferrostep.projections.hyperplane`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        a: shape (n,): finite numbers, not all 0.
        b: a finite number.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import hyperplane
        >>> hyperplane(np.array([2.0, 1.0]), np.array([1.0, 1.0]), 1.0)
        array([1., 0.])
    """
    return mapped(_core.Map.plane(number("b", b), vector("a", a, x, dim), False), x, dim, out, num_threads)


def isotonic(
    x: Array,
    weight: Array | None = None,
    increasing: bool = True,
    dim: int = -1,
    *,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """The nearest rows that do not fall (or rise).

    As :func:`ferrostep.projections.isotonic`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        weight: positive numbers of shape (n,). Default: all 1.
        increasing: whether rows are not to fall, or not to rise. Default: True.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import isotonic
        >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]))
        array([1. , 2.5, 2.5, 4. ])
    """
    return mapped(
        _core.Map.isotonic(increasing, None if weight is None else vector("weight", weight, x, dim)),
        x,
        dim,
        out,
        num_threads,
    )


def l1_ball(
    x: Array, r: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows with at most ``r`` as the sum of magnitudes.

    As :func:`ferrostep.projections.l1_ball`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        r: the radius, a finite number of at least 0. Default: 1.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import l1_ball
        >>> l1_ball(np.array([2.0, -1.5]))
        array([ 0.75, -0.25])
    """
    return mapped(_core.Map.l1_ball(real("r", r, 0.0), False), x, dim, out, num_threads)


def l2_ball(
    x: Array, r: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows with a Euclidean norm of at most ``r``.

    As :func:`ferrostep.projections.l2_ball`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        r: the radius, a finite number of at least 0. Default: 1.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import l2_ball
        >>> l2_ball(np.array([0.0, -8.0]), 2.0)
        array([ 0., -2.])
    """
    return mapped(_core.Map.l2_ball(real("r", r, 0.0), False), x, dim, out, num_threads)


def linf_ball(x: Array, r: float = 1.0, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """The nearest numbers from ``-r`` to ``r``.

    As :func:`ferrostep.projections.linf_ball`.

    Args:
        x: any shape with a dimension and an element at least.
        r: the radius, a finite number of at least 0. Default: 1.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import linf_ball
        >>> linf_ball(np.array([0.5, -3.0]), 2.0)
        array([ 0.5, -2. ])
    """
    return mapped(_core.Map.clip(-real("r", r, 0.0), r), x, -1, out, num_threads)


def nonnegative(x: Array, *, out: Array | None = None, num_threads: int | None = None) -> Array:
    """``max(x, 0)`` of each number.

    As :func:`ferrostep.projections.nonnegative`.

    Args:
        x: any shape with a dimension and an element at least.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import nonnegative
        >>> nonnegative(np.array([0.5, -3.0]))
        array([0.5, 0. ])
    """
    return mapped(_core.Map.clip(0.0, math.inf), x, -1, out, num_threads)


def permutahedron(
    x: Array, w: Array, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows among the averages of permutations of ``w``.

    As :func:`ferrostep.projections.permutahedron`.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        w: finite numbers of shape (n,), in any order.
        dim: the dimension of the rows. Default: the last.
        out: where the result goes, of the shape and dtype of ``x``, which it may be. Default: a new array.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The result, in ``out`` or a new array.

    Raises:
        TypeError, ValueError, IndexError: an array or number that cannot be taken; nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from ferrostep.numpy.projections import permutahedron
        >>> permutahedron(np.array([10.0, -10.0]), np.array([1.0, 2.0]))
        array([2., 1.])
    """
    return mapped(_core.Map.sorted(vector("w", w, x, dim), False), x, dim, out, num_threads)


def simplex(
    x: Array, s: float = 1.0, dim: int = -1, *, out: Array | None = None, num_threads: int | None = None
) -> Array:
    """The nearest rows of nonnegative numbers with the sum ``s``.

    As :func:`ferrostep.projections.simplex`.

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
    return mapped(_core.Map.simplex(real("s", s, 0.0)), x, dim, out, num_threads)
