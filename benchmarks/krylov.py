"""What is measured of Lanczos iteration: ours beside plain torch, on a diagonal matrix, whose product costs next to
nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.curvature import LinearOperator, lanczos
from projections import Contest

SIZES = (1_000_000, 5_000_000)
"""25 million elements would take 5 GB for each contestant."""
STEPS = 50


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


def iterations() -> list[Contest]:
    """Of vectors of several sizes, in float32."""
    return [of(size) for size in SIZES]


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
