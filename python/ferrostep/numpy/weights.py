"""Weights of several tasks' gradients, from the matrix of their inner products, in float64.

For the arguments see the functions of the same names in :mod:`ferrostep.gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real

import numpy as np

from ferrostep import _core
from ferrostep.numpy.arrays import Array, check, integers, numbers


def pcgrad_weights(gram: Array, orders: Sequence[Sequence[int] | Array] | Array) -> Array:
    """PCGrad: ``orders[i]`` is the order in which task i meets the others (itself is passed over)."""
    lists = [order.tolist() if isinstance(order, np.ndarray) else order for order in orders]
    return _core.pcgrad(checked(gram), [integers(f"orders[{i}]", order) for i, order in enumerate(lists)])


def min_norm_weights(
    gram: Array,
    *,
    initial: Sequence[float] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """MGDA: the point of least norm in the convex hull."""
    return _core.min_norm(checked(gram), initial=_initial(initial), callback=callback)


def cagrad_weights(
    gram: Array,
    *,
    c: float = 0.5,
    initial: Sequence[float] | Array | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Array:
    """CAGrad: the mean gradient, moved by at most ``c`` of its norm towards the worst combination."""
    check("c", c, 0.0)
    return _core.cagrad(checked(gram), c=float(c), initial=_initial(initial), callback=callback)


def aligned_mtl_weights(gram: Array) -> Array:
    """Aligned-MTL: the mean of the gradients after their singular values were made equal to the least."""
    gram = checked(gram)
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * len(gram) * np.finfo(np.float64).eps
    mean = np.full(len(gram), 1 / len(gram))
    if not kept.any():
        return mean
    values, vectors = values[kept], vectors[:, kept]
    result: Array = np.sqrt(values[0]) * (vectors / np.sqrt(values)) @ (vectors.T @ mean)
    return result


def _initial(given: Sequence[float] | Array | None) -> list[float] | None:
    return None if given is None else numbers("initial", given)


def checked(gram: Array) -> Array:
    """The matrix in float64; TypeError or ValueError unless it is square and finite."""
    if not isinstance(gram, np.ndarray):
        _check_numbers(gram)
    elif gram.dtype.kind not in "fiub":
        raise TypeError(f"gram has dtype {gram.dtype}, expected real numbers")
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ValueError(f"gram has shape {list(matrix.shape)}, expected a square matrix")
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
