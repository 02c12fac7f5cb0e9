"""Steps along a direction that is updated with them, on lists of tensors: conjugate gradients, normalized momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ferrostep.reference import checks

Vector = Sequence[Tensor]


@torch.no_grad()
def descend(r: Vector, q: Vector, alpha: float) -> float:
    """``r <- r - alpha q``, and the square of its norm."""
    for one, other in zip(r, q, strict=True):
        one.sub_(other * alpha)
    return _square(r)


@torch.no_grad()
def advance(x: Vector, p: Vector, z: Vector, alpha: float, beta: float) -> None:
    """``x <- x + alpha p``, then ``p <- z + beta p``."""
    for one, along, new in zip(x, p, z, strict=True):
        one.add_(along * alpha)
        along.copy_(new + along * beta)


@torch.no_grad()
def normalized_step(buffers: Vector, direction: Vector, params: Vector, momentum: float, lr: float) -> float:
    """``direction <- momentum m + (1 - momentum) direction``, and ``x <- x - lr direction / norm(direction)``.

    The norm, of all tensors; where it is 0 or not finite x stays. The buffers m are left to the caller: the new ones
    are in ``direction``.
    """
    for m, g in zip(buffers, direction, strict=True):
        g.copy_(m * momentum + g * (1.0 - momentum))
    norm = math.sqrt(_square(direction))
    if math.isfinite(norm) and norm > 0:
        descend(params, direction, lr / norm)
    return norm


def _square(x: Vector) -> float:
    return sum(float(checks.wide(each).square().sum()) for each in x)
