"""The vector work of Lanczos iteration in plain torch: see :mod:`ferrostep.curvature.vectors` for what it is to do.

Computed in float64 (float32 on devices without it) and rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ferrostep.reference import checks
from ferrostep.reference.engine import key_of, random_bits


@torch.no_grad()
def fill(out: Tensor, *, signs: bool, seed: int, number: int) -> None:
    """Random signs, or numbers between -1 and 1: of the signed integers that 32 random bits are."""
    bits = random_bits(out.numel(), key_of(seed, number)).to(out.device)
    integers = torch.where(bits < 2**31, bits, bits - 2**32)
    out.copy_(torch.where(integers < 0, -1.0, 1.0) if signs else integers.float() * 2.0**-31)


@torch.no_grad()
def recur(product: Tensor, before: Tensor, beta: float, q: Tensor, out: Tensor) -> float:
    """``out <- product - beta * before``; returns ``<out, q>``."""
    out.copy_(checks.wide(product) - beta * checks.wide(before))
    return dot(out, q)


@torch.no_grad()
def subtract(w: Tensor, q: Tensor, alpha: float) -> float:
    """``w <- w - alpha * q``; returns the norm."""
    w.copy_(checks.wide(w) - alpha * checks.wide(q))
    return math.sqrt(dot(w, w))


@torch.no_grad()
def orthogonalize(basis: Tensor, block: Tensor) -> tuple[list[list[float]], list[float]]:
    """``w <- w - Q c`` with ``c = Q' w`` for each row w of a block, and the rows of ``basis`` as the columns of Q.

    Then the same with the rows of the block before it.
    """
    coefficients = []
    for i, w in enumerate(block):
        coefficients.append(_project(w, basis))
        _project(w, block[:i])
    return coefficients, [math.sqrt(dot(w, w)) for w in block]


def _project(w: Tensor, basis: Tensor) -> list[float]:
    """Take the rows from ``w`` times their inner products with it, which are returned."""
    coefficients = [dot(q, w) for q in basis]
    rest = checks.wide(w)
    for c, q in zip(coefficients, basis, strict=True):
        rest = rest - c * checks.wide(q)
    w.copy_(rest)
    return coefficients


@torch.no_grad()
def scale(w: Tensor, factor: float) -> None:
    """``w <- factor * w``."""
    w.copy_(checks.wide(w) * factor)


@torch.no_grad()
def dot(x: Tensor, y: Tensor) -> float:
    """The inner product."""
    return float((checks.wide(x) * checks.wide(y)).sum())
