"""The trace and the Frobenius norm of a symmetric matrix, from its products with random signs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ferrostep.curvature import vectors
from ferrostep.curvature.operators import LinearOperator, finite, random_vector
from ferrostep.numpy.arrays import whole
from ferrostep.suggestions import suggesting


class Estimate(NamedTuple):
    """A mean over random vectors, of :func:`trace` and :func:`frobenius`.

    Example:
        >>> mean, standard_error = Estimate(6.0, 0.5)
    """

    value: float
    standard_error: float
    """Of the value; NaN for one vector."""


@suggesting
def trace(op: LinearOperator, probes: int = 10, *, seed: int = 0) -> Estimate:
    """An unbiased estimate of the trace: the mean of ``v' A v`` over vectors v of random signs (Hutchinson 1990).

    Args:
        op: the matrix, as an operator on vectors of shape (P,) and of its dtype.
        probes: vectors, each costing a product, at least 1. Default 10.
        seed: of the vectors; any machine and number of threads has the same. Default 0.

    Returns:
        The mean and its standard error, which is ``sqrt(2 / probes)`` times the root of the sum of squares off the
        diagonal: exact for a diagonal matrix.

    Raises:
        TypeError, ValueError: an impossible argument, or a product that is not finite, as of a loss that is NaN.

    Example:
        >>> diagonal = torch.tensor([1.0, 2.0, 3.0])
        >>> trace(LinearOperator(lambda v: diagonal * v, 3), probes=2)
        Estimate(value=6.0, standard_error=0.0)
    """
    return mean([product for product, _ in probed(op, probes, seed)])


@suggesting
def frobenius(op: LinearOperator, probes: int = 10, *, seed: int = 0) -> Estimate:
    """An estimate of the Frobenius norm: the root of the mean of ``norm(A v)^2`` over vectors v of random signs.

    Args:
        op, probes, seed: as of :func:`trace`.

    Returns:
        The norm, and its standard error to first order.

    Raises:
        TypeError, ValueError: as of :func:`trace`.

    Example:
        >>> diagonal = torch.tensor([2.0, 3.0, 6.0])
        >>> frobenius(LinearOperator(lambda v: diagonal * v, 3), probes=2)
        Estimate(value=7.0, standard_error=0.0)
    """
    return root(mean([square for _, square in probed(op, probes, seed)]))


def probed(op: LinearOperator, probes: int, seed: int) -> list[tuple[float, float]]:
    """``v' A v`` and ``norm(A v)^2`` for each of the vectors v."""
    found = []
    for number in range(whole("probes", probes, 1)):
        v = random_vector(op, seed, number, signs=True)
        product = op(v)
        found.append((finite(vectors.dot(v, product)), finite(vectors.dot(product, product))))
    return found


def mean(samples: list[float]) -> Estimate:
    """The mean with its standard error."""
    values = torch.tensor(samples, dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return Estimate(values.mean().item(), error)


def root(square: Estimate) -> Estimate:
    """The root, with its standard error to first order."""
    value = math.sqrt(square.value)
    return Estimate(value, square.standard_error / (2 * value) if value else square.standard_error)
