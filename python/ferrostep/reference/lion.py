"""Lion and Lion-K in plain torch (Chen et al. 2023, arXiv 2302.06675; Chen et al. 2024, arXiv 2310.05898)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ferrostep.reference import checks


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
    gradient = kappa if callable(kappa) else KAPPAS[kappa]
    u = gradient(u) if kappa_param is None else gradient(u, kappa_param)
    return p * (1 - lr * weight_decay) - u * lr, (m * beta2 + g * (1 - beta2),)


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
    norm = checks.wide(ratio).pow(p).sum(1, keepdim=True).pow(1 / p)
    shrunk = (checks.wide(ratio) / torch.where(largest == 0, 1, norm)).pow(p - 1).to(rows.dtype)
    return torch.where(shrunk.isnan(), shrunk, rows.sign() * shrunk)


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
