"""The largest singular value of a matrix in plain torch, by Lanczos iteration (Golub and Van Loan, chapter 10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_singular_value(
    matrix: Tensor, vector: Tensor, *, steps: int, tolerance: float
) -> tuple[float, float, float, int]:
    """The largest singular value, as :func:`ferrostep.optim.top_singular_values` finds it.

    Args:
        matrix: of a shape of two or more dimensions, the first one by all others, of any floating-point dtype.
        vector: as many elements as there are columns, of dtype float64 or float32: the first vector, not zero. It
            becomes the right singular vector.
        steps: products with the matrix and its transpose, at most.
        tolerance: end when the residual is at most this part of the value.

    Returns:
        The value, the residual ``norm(A' u - value * v)``, the sum of the squares of the matrix's elements, and the
        number of products.

    Raises:
        RuntimeError: a vector of another length, as torch.

    Example:
        >>> v = torch.tensor([1.0, 0.0])
        >>> value, residual, square, products = top_singular_value(
        ...     torch.tensor([[3.0, 0.0], [4.0, 5.0]]), v, steps=8, tolerance=1e-3
        ... )
        >>> round(value, 4), products
        (6.7082, 2)
    """
    a = matrix.flatten(1).to(vector.dtype)
    norm = a.double().norm().item()
    if not 0.0 < norm < math.inf:
        return norm, 0.0, norm**2, 0
    basis = [vector / vector.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        w = a.T @ (a @ basis[-1] / norm)  # divided: squares could be too large, or too small
        alphas.append(_dot(basis[-1], w))
        for q in basis * 2:  # the second time removes what rounding left of the first
            w = w - _dot(q, w) * q
        beta = _dot(w, w) ** 0.5
        beside = torch.tensor(betas, dtype=torch.float64)
        t = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(beside, 1) + torch.diag(beside, -1)
        squares, weights = torch.linalg.eigh(t)
        square, x = max(squares[-1].item(), 0.0), weights[:, -1]
        value = (square * norm) ** 0.5
        residual = norm * beta * abs(x[-1].item()) / value if value > 0 else 0.0
        rounding = 10 * torch.finfo(w.dtype).eps * square * len(w) ** 0.5
        if residual <= tolerance * value or beta <= rounding or len(alphas) == min(steps, len(w)):
            break
        betas.append(beta)
        basis.append(w / beta)
    vector.copy_(sum(c * q for c, q in zip(x.tolist(), basis, strict=True)))
    return value, residual, norm**2, len(alphas)


def mixed_start(before: Tensor, drawn: Tensor) -> Tensor:
    """A first vector for Lanczos iteration that knows an earlier singular vector, and does not trust it alone.

    From a vector that is singular, but no longer of the largest value, the iteration would end at once. From this one,
    a Ritz vector that follows the old one keeps of a larger one's part at least what the start had, about
    ``1 / sqrt(len(drawn))``: the residual, which the end depends on, has that part of the squares' difference.

    Args:
        before: the earlier vector, of shape (columns,), not zero.
        drawn: a vector at random, of its shape, dtype and device.

    Returns:
        The sum of both, each divided by its norm, the second turned where it points away from the first.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> mixed_start(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([1.6000, 0.8000])
    """
    sign = 1.0 if torch.dot(before, drawn) >= 0 else -1.0  # so that they do not cancel
    mixed: Tensor = before / before.norm() + drawn * (sign / drawn.norm())
    return mixed


def _dot(x: Tensor, y: Tensor) -> float:
    return torch.dot(x.double(), y.double()).item()
