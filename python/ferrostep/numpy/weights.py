"""Weights of several tasks' gradients, from the matrix of their inner products: small problems, solved in float64.

For the arguments see the functions of the same names in :mod:`ferrostep.gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np

from ferrostep.errors import Problem
from ferrostep.numpy.arrays import Array, check

HULL = 1e-7
"""The hull's least norm is 0 below this part of the largest: a gram of float64 tells no more than its root of 1e-16."""
MOST = 1e6
"""The most that CAGrad adds of all gradients, in units of the mean's square over the largest: ``t |g|^2 / |g_0|^2``."""


def pcgrad_weights(gram: Array, orders: Sequence[Sequence[int]]) -> Array:
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
    gram = checked(gram)
    rows = np.eye(len(gram))
    for i, order in enumerate(orders):
        for j in order:
            along = rows[i] @ gram[:, j]
            if j != i and along < 0:
                rows[i, j] -= along / gram[j, j]
    return rows


def min_norm_weights(gram: Array) -> Array:
    """MGDA (arXiv 1810.04650): the point of least norm in the convex hull.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.

    Returns:
        T numbers of at least 0 that sum up to 1, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> min_norm_weights(np.array([[1.0, 0.0], [0.0, 4.0]])).round(4)
        array([0.8, 0.2])
    """
    gram = checked(gram)
    return _least_on_simplex(gram, np.zeros(len(gram)))


def cagrad_weights(gram: Array, *, c: float = 0.5) -> Array:
    """CAGrad: the mean gradient g_0 moved by ``t g_w``, at most ``r = c |g_0|``, towards the worst combination w.

    w has the least ``t |g_w|^2 / 2 + <g_w, g_0>`` on the simplex (arXiv 2110.14048, equation 4); ``t |g_w|`` grows with
    t, and t = r / s is found by halving for ``s = |g_w|``.

    With 0 in the hull no task gains without another's loss, so one that has nothing to gain changes nothing, and ``t
    g_w`` ends where no task loses any more, at the latest at -g_0: there t stays finite, where ``r / |g_w|`` would not.

    Args:
        gram: of :func:`ferrostep.numpy.gram`, shape (T, T), of any real dtype.
        c: how far from the mean gradient, as a share of its norm, from 0. Default 0.5.

    Returns:
        T numbers, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``c`` no number of at least 0.

    Example:
        >>> cagrad_weights(np.eye(2)).round(4)
        array([0.75, 0.75])
    """
    check("c", c, 0.0)
    c = float(c)
    gram = checked(gram)
    count = len(gram)
    mean = np.full(count, 1 / count)
    along, length = gram @ mean, _norm(gram, mean)
    high = float(np.sqrt(gram.diagonal().max()))
    if c * length == 0 or high == 0:
        return mean
    low = _norm(gram, _least_on_simplex(gram, np.zeros(count)))
    if low <= HULL * high:
        c = min(c, 1.0)
        gram, along = np.pad(gram, (0, 1)), np.append(along, 0.0)
        low = c * high**2 / (MOST * length)
    radius = c * length
    low = min(low, high)
    for _ in range(100):
        s = (low + high) / 2
        w = _least_on_simplex(radius / s * gram, along)
        norm = _norm(gram, w)
        low, high = (s, high) if norm > s else (low, s)
        if high - low <= 1e-15 * high:
            break
    result: Array = mean + radius / max(norm, s) * w[:count]
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


def _norm(gram: Array, w: Array) -> float:
    return math.sqrt(max(float(w @ gram @ w), 0.0))


def _least_on_simplex(quadratic: Array, linear: Array) -> Array:
    """The least ``w^T quadratic w / 2 + linear^T w`` for ``w >= 0`` that sums up to 1, by an active set."""
    count = len(linear)
    scale = max(np.abs(quadratic).max(), np.abs(linear).max())
    if scale == 0:
        return np.full(count, 1 / count)
    # A ridge for gradients that are linearly dependent, to which it prefers zero itself.
    ridge = 1e-14 * np.diag(quadratic.diagonal() > 0)
    quadratic, linear = quadratic / scale + ridge, linear / scale
    w = np.zeros(count)
    w[np.argmin(quadratic.diagonal() / 2 + linear)] = 1.0
    for _ in range(20 * count):
        slope = quadratic @ w + linear
        best = int(np.argmin(slope))
        if slope[best] >= w @ slope - 1e-15:
            break
        active = w > 0
        active[best] = True
        w = _towards(w, active, quadratic, linear)
    return w


def _towards(w: Array, active: Array, quadratic: Array, linear: Array) -> Array:
    """The least where only the active ones may differ from 0; those that it would make negative leave, one by one."""
    while True:
        chosen = np.flatnonzero(active)
        size = len(chosen)
        system = np.zeros((size + 1, size + 1))
        system[:size, :size] = quadratic[np.ix_(chosen, chosen)]
        system[size, :size] = system[:size, size] = 1.0
        goal = np.zeros(len(w))
        goal[chosen] = np.linalg.solve(system, np.append(-linear[chosen], 1.0))[:size]
        if (goal >= 0).all():
            result: Array = goal / goal.sum()
            return result
        falling = goal < 0
        steps = np.where(falling, w / np.where(falling, w - goal, 1.0), np.inf)
        first = int(np.argmin(steps))
        w = w + steps[first] * (goal - w)
        w[first], active[first] = 0.0, False


def checked(gram: Array) -> Array:
    """The matrix in float64; TypeError or ValueError unless it is square and finite."""
    if not isinstance(gram, np.ndarray):
        _check_numbers(gram)
    elif gram.dtype.kind not in "fiub":
        raise Problem.NOT_REAL.of("gram", gram.dtype, "real numbers")
    matrix = np.asarray(gram, dtype=np.float64)
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
