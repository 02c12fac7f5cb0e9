"""What is measured of Lanczos iteration: ours beside plain torch, on a diagonal matrix, whose product costs next to
nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.curvature import LinearOperator, lanczos
from projections import Contest

SIZES = (1_000_000, 5_000_000)
LARGE = 25_000_000
"""5 GB for the vectors of a contestant, and a minute for a round of all."""
SUMMED = 250_000_000
"""Elements of a sum that reads memory, beyond any cache."""
STEPS = 50
TOGETHER = 4
"""Vectors that ours makes orthogonal at once, on this matrix."""


def in_torch(diagonal: Tensor, start: Tensor, steps: int) -> tuple[list[float], list[float]]:
    """With full reorthogonalization, twice, as it is written in torch."""
    basis = start.new_empty(steps + 1, len(start))
    basis[0] = before = start / start.norm()
    alphas, betas = [], []
    for j in range(steps):
        w = diagonal * basis[j]
        w -= (betas[-1] if betas else 0.0) * before
        alphas.append(torch.dot(w, basis[j]).item())
        w -= alphas[-1] * basis[j]
        for _ in range(2):
            w -= basis[: j + 1].T @ (basis[: j + 1] @ w)
        betas.append(w.norm().item())
        basis[j + 1] = w / betas[-1]
        before = basis[j]
    return alphas, betas


def iterations(*, large: bool) -> list[Contest]:
    """Of vectors of several sizes, in float32."""
    return [of(size) for size in (*SIZES, *([LARGE] if large else []))]


def passes() -> int:
    """How many vectors ours reads or writes, the least: what share of the memory's rate that is can be told.

    In each step the product takes 3, the recurrence ``product - beta * before`` with its inner product 4, taking q from
    that with the norm 3, dividing by it 2; vectors that are made orthogonal are read twice and written, all before them
    read twice.
    """
    firsts = range(1, STEPS + 1, TOGETHER)
    return STEPS * (3 + 4 + 3 + 2) + sum(2 * first for first in firsts) + 3 * STEPS


def of(size: int) -> Contest:
    """Of vectors of one size."""
    diagonal, start = torch.linspace(0, 1, size), torch.ones(size)
    operator = LinearOperator(lambda v: diagonal * v, size)
    return Contest(
        f"Lanczos, {STEPS} steps of {size:,}",
        {
            "torch": lambda: in_torch(diagonal, start, STEPS),
            "ferrostep": lambda: lanczos(operator, STEPS, q1=start),
            "ferrostep, reorth='none'": lambda: lanczos(operator, STEPS, q1=start, reorth="none"),
        },
    )
