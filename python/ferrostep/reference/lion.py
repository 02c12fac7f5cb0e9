"""Lion and Lion-K in plain torch (Chen et al. 2023, arXiv 2302.06675; Chen et al. 2024, arXiv 2310.05898)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ferrostep.reference import checks
from ferrostep.reference.sums import Sum


def lion(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    weight_decay: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Lion for one parameter, as :class:`ferrostep.optim.Lion` (arXiv 2302.06675, Algorithm 2).

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg,)``.
        step: not used.
        lr, beta1, beta2, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}
        >>> lion(torch.ones(2), torch.tensor([0.5, -2.0]), (torch.zeros(2),), 1, lr=0.1, **options)
        (tensor([0.9000, 1.1000]), (tensor([ 0.0050, -0.0200]),))
    """
    (m,) = state
    if maximize:
        g = -g
    u = (m * beta1 + g * (1 - beta1)).sign()
    return p * (1 - lr * weight_decay) - u * lr, (m * beta2 + g * (1 - beta2),)


def lion_k(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum | None = None,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    weight_decay: float,
    kappa: str | Callable[[Tensor], Tensor],
    kappa_param: float | None,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Lion-K for one parameter, as :class:`ferrostep.optim.Lion` with a ``kappa`` (arXiv 2310.05898, equation 4).

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg,)``.
        step: not used.
        total: what :func:`lion_k_sum` gives, for "l2" and "lp"; without it, it is worked out here.
        lr, beta1, beta2, weight_decay, maximize: hyperparameters.
        kappa: the name of one of :data:`KAPPAS`, or what gives a convex function's gradient at a tensor.
        kappa_param: the number that the former takes, if it takes one.

    Returns:
        The new parameter and the new state.

    Raises:
        KeyError: an unknown ``kappa``.
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.0, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}
        >>> p, g, m = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> lion_k(p, g, (m,), 1, lr=0.1, kappa="huber", kappa_param=1.0, **options)[0]
        tensor([0.9500, 1.1000])
    """
    (m,) = state
    if maximize:
        g = -g
    u = m * beta1 + g * (1 - beta1)
    gradient: Callable[..., Tensor] = kappa if callable(kappa) else KAPPAS[kappa]
    if total is not None:
        exponent = 2.0 if kappa_param is None else kappa_param
        u = _along(u, total ** (1 / exponent), exponent)
    else:
        u = gradient(u) if kappa_param is None else gradient(u, kappa_param)
    return p * (1 - lr * weight_decay) - u * lr, (m * beta2 + g * (1 - beta2),)


def lion_k_sum(
    g: Tensor,
    state: tuple[Tensor, ...],
    *,
    beta1: float | Tensor,
    kappa_param: float | None,
    maximize: bool,
    **others: Any,
) -> Tensor:
    """What :func:`lion_k` sums for "l2" and "lp": the p-th powers of what the direction follows from, in float64.

    Args:
        g: the gradient.
        state: ``(exp_avg,)``.
        beta1, maximize: as of :func:`lion_k`.
        kappa_param: p; None for 2.
        **others: hyperparameters that play no part.

    Returns:
        The sum, a 0-dim tensor.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> lion_k_sum(torch.tensor([3.0, -4.0]), (torch.zeros(2),), beta1=0.0, kappa_param=None, maximize=False)
        tensor(25., dtype=torch.float64)
    """
    (m,) = state
    u = m * beta1 + (-g if maximize else g) * (1 - beta1)
    return checks.wide(u).abs().pow(2.0 if kappa_param is None else kappa_param).sum()


def _deadzone(u: Tensor, threshold: float) -> Tensor:
    return u.sign() * (u.abs() > threshold)


def _huber(u: Tensor, bound: float) -> Tensor:
    return (u / bound).clamp(-1, 1)


def _lp(u: Tensor, p: float) -> Tensor:
    return _norms_gradient(u.reshape(1, -1), p).reshape(u.shape)


def _row(u: Tensor) -> Tensor:
    return _norms_gradient(u.flatten(1) if u.ndim > 1 else u.reshape(-1, 1), 2.0).reshape(u.shape)


def _norms_gradient(rows: Tensor, p: float) -> Tensor:
    """Of every row, the gradient of ``norm_p``: ``sign(u) * (abs(u) / norm_p(u))^(p - 1)``; 0 at 0."""
    if rows.numel() == 0:
        return rows
    size = rows.abs()
    largest = size.amax(1, keepdim=True)
    ratio = size / torch.where(largest == 0, 1, largest)
    return _along(rows.sign() * ratio, checks.wide(ratio).pow(p).sum(1, keepdim=True).pow(1 / p), p)


def _along(u: Tensor, norm: Sum, p: float) -> Tensor:
    """``sign(u) * (abs(u) / norm)^(p - 1)``; 0 for a norm of 0, and NaN for one that is not finite."""
    if not isinstance(norm, Tensor):
        norm = torch.tensor(norm, dtype=torch.float64)
    norm = torch.where(norm == 0, 1, torch.where(norm.isfinite(), norm, torch.nan))
    size = (checks.wide(u).abs() / norm).pow(p - 1).to(u.dtype)
    return torch.where(size.isnan(), size, u.sign() * size)


def _topk(u: Tensor, k: int) -> Tensor:
    """The signs of the k largest; of equal ones, of those that come first."""
    size = u.abs().flatten()
    if k >= size.numel():
        return u.sign()
    size = torch.where(size.isnan(), torch.inf, size)
    least = size.topk(k, sorted=False).values.min()
    equal = size == least
    taken = (size > least) | (equal & (equal.cumsum(0) <= k - (size > least).sum()))
    return u.sign() * taken.reshape(u.shape)


KAPPAS: dict[str, Callable[..., Tensor]] = {
    "sign": torch.sign,
    "lp": _lp,
    "deadzone": _deadzone,
    "topk": _topk,
    "huber": _huber,
    "l2": lambda u: _lp(u, 2.0),
    "row": _row,
    "identity": lambda u: u,
}
"""By name, the gradients of the convex functions, from a tensor and, where they take one, a number."""
