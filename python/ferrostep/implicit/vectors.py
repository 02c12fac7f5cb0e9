"""The arithmetic of the linear solvers, on vectors that are lists of tensors: all that they do but products with A.

Kernels compute it for the CPU, with sums in float64, plain torch elsewhere. A solver runs on plain tensors whatever
transform there is around it (see :mod:`ferrostep.implicit.root`), so nothing of this is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.gradients.lists import combine, gram
from ferrostep.reference import checks, directions

Vector: TypeAlias = list[Tensor]


def products(x: Vector, *others: Vector) -> list[float]:
    """The inner products of a vector with itself and with others."""
    lists: list[list[Tensor | None]] = [[*each] for each in (x, *others)]
    if all(each.is_cpu for each in x):
        return _core.gram(lists, torch.get_num_threads())[0]
    row: list[float] = gram(lists)[0].tolist()
    return row


def dot(x: Vector, y: Vector) -> float:
    """The inner product."""
    return products(x)[0] if x is y else products(x, y)[1]


def norm(x: Vector) -> float:
    """The Euclidean norm."""
    return math.sqrt(products(x)[0])


def add_(x: Vector, a: float, p: Vector) -> None:
    """``x <- x + a p``."""
    combine([x, p], [1.0, a], out=x)


def turn_(p: Vector, b: float, r: Vector) -> None:
    """``p <- r + b p``."""
    combine([r, p], [1.0, b], out=p)


def descend_(r: Vector, a: float, q: Vector) -> float:
    """``r <- r - a q``, and the square of its norm, on the CPU in one pass."""
    if all(each.is_cpu for each in r):
        return _core.descend(r, q, a, torch.get_num_threads())
    return directions.descend(r, q, a)


def advance_(x: Vector, a: float, p: Vector, b: float, z: Vector) -> None:
    """``x <- x + a p`` and ``p <- z + b p``, on the CPU in one pass."""
    if all(each.is_cpu for each in x):
        _core.advance(x, p, z, a, b, torch.get_num_threads())
    else:
        directions.advance(x, p, z, a, b)


def difference(b: Vector, ax: Vector) -> Vector:
    """``b - ax``, new."""
    return [each for each in combine([b, ax], [1.0, -1.0]) if each is not None]


def copied(x: Sequence[Tensor]) -> Vector:
    """New tensors of the same numbers, each element with its own memory."""
    return [each.detach().clone(memory_format=torch.contiguous_format) for each in x]


def flat(x: Vector) -> Tensor:
    """One vector in float64, where the device has it."""
    return torch.cat([checks.wide(each).reshape(-1) for each in x])


def unflat(x: Tensor, like: Vector) -> Vector:
    """The list that a flat vector is."""
    parts = torch.split(x, [each.numel() for each in like])
    return [part.view(each.shape).to(each.dtype) for part, each in zip(parts, like, strict=True)]


def fits(x: Sequence[Tensor], like: Vector) -> bool:
    """Whether all shapes, dtypes and devices are the same."""
    return len(x) == len(like) and all(
        (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        for one, other in zip(x, like, strict=True)
    )
