"""Gradient-normalized smoothness in plain torch (Semenov, Jaggi and Doikov 2026, arXiv 2506.13710, Algorithm 1).

Its steps are solutions of systems of equations: there is no kernel beside this.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-8
"""What is added to the radius where it divides."""
ROUNDING = 1e-14
"""Losses that differ by less than this part say nothing; the gradient's norm does then."""


def damping(norm: float, gamma: float) -> float:
    """What is added to the curvature, so that the step is no longer than ``gamma``.

    Args:
        norm: of the gradient.
        gamma: the radius.

    Returns:
        ``norm / (gamma + 1e-8)``.

    Raises:
        TypeError: no numbers.

    Example:
        >>> round(damping(3.0, 2.0), 6)
        1.5
    """
    return norm / (gamma + FLOOR)


def is_accepted(before: tuple[float, float], after: tuple[float, float], lam: float) -> bool:
    """Whether a step has gained as much as the smoothness promises.

    Args:
        before, after: the loss, and the norm of its gradient.
        lam: the step's damping.

    Returns:
        Whether ``loss - new_loss >= new_norm**2 / (8 * lam)``; where the losses differ by rounding only, whether the
        norm has shrunk. A loss or gradient that is not finite is not accepted.

    Raises:
        TypeError: no numbers.

    Example:
        >>> is_accepted((1.0, 2.0), (0.5, 1.0), lam=1.0), is_accepted((1.0, 2.0), (0.9, 1.0), lam=1.0)
        (True, False)
    """
    (loss, norm), (new_loss, new_norm) = before, after
    if not (math.isfinite(new_loss) and math.isfinite(new_norm)):
        return False
    if abs(loss - new_loss) < ROUNDING * abs(loss):
        return new_norm < norm
    return loss - new_loss >= new_norm**2 / (8 * lam)


def next_radius(gamma: float, gamma_min: float, accepted: bool) -> float:
    """The radius of the next trial.

    Args:
        gamma: of this one.
        gamma_min: the least after a step.
        accepted: whether this one was a step.

    Returns:
        Twice as much after a step, else half as much.

    Raises:
        TypeError: no numbers.

    Example:
        >>> next_radius(1.0, 1e-9, True), next_radius(1.0, 1e-9, False)
        (2.0, 0.5)
    """
    return max(2 * gamma, gamma_min) if accepted else gamma / 2


def by_cholesky(matrix: Tensor, g: Tensor, lam: float) -> Tensor | None:
    """The step ``-(matrix + lam * I)^-1 g`` by a Cholesky factorization.

    Args:
        matrix: of shape (P, P), symmetric, of g's dtype.
        g: the gradient, of shape (P,), float32 or float64.
        lam: the damping.

    Returns:
        The step; None where the damped matrix is not positive definite.

    Raises:
        RuntimeError: shapes that do not fit, as torch.

    Example:
        >>> by_cholesky(torch.eye(2), torch.tensor([4.0, 8.0]), 3.0)
        tensor([-1., -2.])
    """
    damped = matrix.clone()
    damped.diagonal().add_(lam)
    factor, info = torch.linalg.cholesky_ex(damped)
    if info.item() != 0:
        return None
    return _finite(-torch.cholesky_solve(g.unsqueeze(1), factor).squeeze(1))


def by_conjugate_gradients(
    product: Callable[[Tensor], Tensor], g: Tensor, lam: float, tolerance: float
) -> Tensor | None:
    """The same by conjugate gradients, from products with the matrix.

    Args:
        product: the matrix times a vector of shape (P,).
        g: the gradient, of shape (P,), float32 or float64.
        lam: the damping.
        tolerance: end where the residual is at most this part of the gradient; or after 2 P products, which rounding
            makes necessary where the matrix is far from the identity.

    Returns:
        The step; None where a direction of negative curvature comes up.

    Raises:
        RuntimeError: shapes that do not fit, as torch.

    Example:
        >>> by_conjugate_gradients(lambda v: v, torch.tensor([3.0, 6.0]), 2.0, 1e-2)
        tensor([-1., -2.])
    """
    d, r = torch.zeros_like(g), -g
    direction, square = r, torch.dot(r, r).item()
    end = tolerance**2 * square
    for _ in range(2 * len(g)):
        if square <= end:
            break
        along = product(direction) + lam * direction
        curvature = torch.dot(direction, along).item()
        if not curvature > 0:  # or NaN
            return None
        d = d + square / curvature * direction
        r = r - square / curvature * along
        square, before = torch.dot(r, r).item(), square
        direction = r + square / before * direction
    return _finite(d)


def by_rank_one(g0: Tensor, c: float, g: Tensor, lam: float) -> Tensor | None:
    """The same for the matrix ``c * g0 g0'``, by Sherman and Morrison's formula.

    Args:
        g0, g: of shape (P,), float32 or float64: the factor, and the gradient.
        c: what multiplies it.
        lam: the damping.

    Returns:
        The step.

    Raises:
        RuntimeError: shapes that do not fit, as torch.

    Example:
        >>> g = torch.tensor([3.0, 4.0])
        >>> by_rank_one(g, 0.5, g, 2.0)
        tensor([-0.2069, -0.2759])
    """
    share = c * torch.dot(g0, g) / (lam * (lam + c * torch.dot(g0, g0)))
    return _finite(share * g0 - g / lam)


def by_diagonal(h: Tensor, g: Tensor, lam: float) -> Tensor | None:
    """The same for a diagonal matrix, of which negative elements count as 0.

    Args:
        h: the diagonal, of shape (P,) and g's dtype.
        g: the gradient, of shape (P,), float32 or float64.
        lam: the damping.

    Returns:
        The step.

    Raises:
        RuntimeError: shapes that do not fit, as torch.

    Example:
        >>> by_diagonal(torch.tensor([1.0, -5.0]), torch.tensor([3.0, 4.0]), 2.0)
        tensor([-1., -2.])
    """
    return _finite(-g / (h.clamp(min=0) + lam))


def of_products(product: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """The matrix itself, from P products; its symmetric part.

    Args:
        product: the matrix times a vector of shape (P,).
        g: any vector of shape (P,), dtype and device of the matrix.

    Returns:
        A tensor of shape (P, P).

    Raises:
        RuntimeError: shapes that do not fit, as torch.

    Example:
        >>> of_products(lambda v: 3 * v, torch.ones(2))
        tensor([[3., 0.],
                [0., 3.]])
    """
    units = torch.eye(len(g), dtype=g.dtype, device=g.device)
    return symmetric_part(torch.stack([product(unit).clone() for unit in units]))  # the next may use its memory


def symmetric_part(matrix: Tensor) -> Tensor:
    """Of a matrix that is symmetric but for rounding.

    Args:
        matrix: of shape (P, P), float32 or float64.

    Returns:
        ``(matrix + matrix') / 2``.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> symmetric_part(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
        tensor([[1., 3.],
                [3., 3.]])
    """
    return (matrix + matrix.T) / 2


def norm_of(g: Tensor) -> float:
    """The l2 norm, in float64.

    Args:
        g: of any shape, float32 or float64.

    Returns:
        The norm.

    Raises:
        RuntimeError: no floating-point numbers, as torch.

    Example:
        >>> norm_of(torch.tensor([3.0, 4.0]))
        5.0
    """
    return float(torch.linalg.vector_norm(g, dtype=torch.float64))


def moved(p: Tensor, step: Tensor) -> Tensor:
    """The point after a step.

    Args:
        p, step: of one shape and dtype.

    Returns:
        ``p + step``.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> moved(torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """
    return p + step


def _finite(step: Tensor) -> Tensor | None:
    return step if bool(step.isfinite().all()) else None
