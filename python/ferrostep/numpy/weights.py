"""Weights of several tasks' gradients, from the matrix of their inner products, in float64.

For the arguments see the functions of the same names in :mod:`ferrostep.gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real

import numpy as np

from ferrostep import _core
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import Array, check, integers, listed, number, numbers

SINGULAR = 1e-12
"""What is below this part of the numbers that it was made of counts as rounding."""


def pcgrad_weights(gram: Array, orders: Sequence[Sequence[int] | Array] | Array) -> Array:
    """PCGrad (arXiv 2001.06782, Algorithm 1), as :func:`ferrostep.gradients.pcgrad_weights`.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        orders: ``orders[i]`` is the order in which task i meets the others (itself is passed over).

    Returns:
        Shape (T, T), float64: row i makes the projected gradient of task i.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> pcgrad_weights(np.array([[1.0, -1.0], [-1.0, 2.0]]), orders=[[1], [0]])
        array([[1. , 0.5],
               [1. , 1. ]])
    """
    lists = [order.tolist() if isinstance(order, np.ndarray) else order for order in orders]
    return _core.pcgrad(checked(gram), [integers(f"orders[{i}]", order) for i, order in enumerate(lists)])


def min_norm_weights(
    gram: Array,
    *,
    initial: Sequence[float] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """MGDA (arXiv 1810.04650): the point of least norm in the convex hull.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        initial, callback: as of :func:`ferrostep.gradients.min_norm_weights`.

    Returns:
        T numbers of at least 0 that sum up to 1, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` no such weights.

    Example:
        >>> min_norm_weights(np.array([[1.0, 0.0], [0.0, 4.0]])).round(4)
        array([0.8, 0.2])
    """
    gram = checked(gram)
    return _core.min_norm(gram, initial=_initial(initial, gram), callback=callback)


def cagrad_weights(
    gram: Array,
    *,
    c: float = 0.5,
    initial: Sequence[float] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """CAGrad (arXiv 2110.14048, equation 4): the mean gradient, moved towards the worst combination.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        c: by how much at most, as a share of the mean gradient's norm, from 0. Default 0.5.
        initial, callback: as of :func:`ferrostep.gradients.cagrad_weights`.

    Returns:
        T numbers, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, ``c`` no number of at least 0, or
            ``initial`` not T finite numbers.

    Example:
        >>> cagrad_weights(np.eye(2)).round(4)
        array([0.75, 0.75])
    """
    c = number("c", c)
    check("c", c, 0.0)
    gram = checked(gram)
    return _core.cagrad(gram, c=c, initial=_initial(initial, gram), callback=callback)


def upgrad_weights(
    gram: Array,
    *,
    initial: Sequence[Sequence[float]] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """UPGrad (arXiv 2406.16232): every gradient projected onto the dual cone of all.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        initial, callback: as of :func:`ferrostep.gradients.upgrad_weights`.

    Returns:
        Shape (T, T), float64: row i makes the projected gradient of task i. Their mean makes the update.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` no T rows of T.

    Example:
        >>> upgrad_weights(np.array([[1.0, -1.0], [-1.0, 2.0]])).round(4)
        array([[1. , 0.5],
               [1. , 1. ]])
    """
    gram = checked(gram)
    if initial is None:
        return _core.upgrad(gram, callback=callback)
    given = listed("initial", initial.tolist() if isinstance(initial, np.ndarray) else initial)
    rows = [numbers(f"initial[{i}]", row, of=("gram's rows", list(gram))) for i, row in enumerate(given)]
    if len(rows) != len(gram):
        raise Problem.COUNT.of("initial", f"{len(rows)} rows", f"{len(gram)}: one for each of gram's rows")
    return _core.upgrad(gram, initial=rows, callback=callback)


def nash_mtl_weights(
    gram: Array,
    *,
    initial: Sequence[float] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """Nash-MTL (arXiv 2202.01017): every task gains the same share of the product of all gains.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        initial, callback: as of :func:`ferrostep.gradients.nash_mtl_weights`.

    Returns:
        T numbers of at least 0, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` not T finite numbers.

    Example:
        >>> weights = nash_mtl_weights(np.array([[1.0, 0.0], [0.0, 4.0]]))
        >>> (weights / weights.sum()).round(4)
        array([0.6667, 0.3333])
    """
    gram = checked(gram)
    return _core.nash_mtl(gram, initial=_initial(initial, gram), callback=callback)


def imtl_g_weights(gram: Array) -> Array:
    """IMTL-G (Liu et al. 2021): an update with the same projection on every gradient's direction.

    See :func:`ferrostep.gradients.imtl_g_weights`.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.

    Returns:
        T numbers that sum up to 1, float64; or zeros.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> imtl_g_weights(np.array([[1.0, 0.0], [0.0, 4.0]])).round(4)
        array([0.6667, 0.3333])
    """
    gram = checked(gram)
    lengths = np.sqrt(np.diag(gram).clip(0.0))
    result = np.zeros(len(gram))
    there = lengths > 0
    if not there.any():
        return result
    # Of directions, as the inverse of the gram itself would lose those of small gradients.
    lengths = lengths[there]
    cosines = gram[np.ix_(there, there)] / lengths[:, None] / lengths
    values, vectors = np.linalg.eigh(cosines)
    along = vectors.sum(0)
    kept = (values > values[-1] * SINGULAR) & (np.abs(along) > SINGULAR)
    parts = vectors[:, kept] @ (along[kept] / values[kept]) * (lengths.min() / lengths)
    if abs(parts.sum()) > SINGULAR * np.abs(parts).sum():
        result[there] = parts / parts.sum()
    return result


def aligned_mtl_weights(gram: Array) -> Array:
    """Aligned-MTL: the mean of the gradients after their singular values were made equal to the least.

    See :func:`ferrostep.gradients.aligned_mtl_weights` (CVPR 2023, Algorithm 1).

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.

    Returns:
        T numbers, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> aligned_mtl_weights(np.array([[1.0, 0.0], [0.0, 4.0]])).round(4)
        array([0.5 , 0.25])
    """
    gram = checked(gram)
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * len(gram) * np.finfo(np.float64).eps
    mean = np.full(len(gram), 1 / len(gram))
    if not kept.any():
        return mean
    values, vectors = values[kept], vectors[:, kept]
    result: Array = np.sqrt(values[0]) * (vectors / np.sqrt(values)) @ (vectors.T @ mean)
    return result


def _initial(given: Sequence[float] | Array | None, gram: Array) -> list[float] | None:
    return None if given is None else numbers("initial", given, of=("gram's rows", list(gram)))


def checked(gram: Array) -> Array:
    """The matrix in float64; TypeError or ValueError unless it is square and finite."""
    if not isinstance(gram, np.ndarray):
        _check_numbers(gram)
    elif gram.dtype.kind not in "fiub":
        raise Problem.NOT_REAL.of("gram", gram.dtype, "real numbers")
    try:
        matrix = np.asarray(gram, dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"gram is no square matrix of floats: {error}") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise Problem.SHAPE.of("gram", list(matrix.shape), "a square matrix")
    if not np.isfinite(matrix).all():
        raise ValueError("gram has NaN or infinity, expected finite numbers")
    return matrix


def _check_numbers(gram: object) -> None:
    """Refuse what is no matrix, such as the gradients themselves."""
    for row in gram if isinstance(gram, Iterable) else [gram]:
        for x in row if isinstance(row, Iterable) else [row]:
            if not isinstance(x, Real):
                what = f"is a {type(gram).__name__}" if x is gram else f"has a {type(x).__name__} in it"
                raise TypeError(f"gram {what}, expected a square matrix of numbers, as of gram(gradients)")
