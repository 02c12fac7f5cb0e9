"""Optimistic descent in plain torch (arXiv 2302.04552, 1711.00141)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ferrostep.reference.sums import Sum, squared_norm
from ferrostep.reference.terms import adams_direction, descended, moments


def optimistic_md(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    optimism: float,
    weight_decay: float,
    hint_is_gradient: bool,
    multiplicative: bool,
    radius: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Optimistic descent for one parameter, as :class:`ferrostep.optim.OptimisticMD`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(prev_grad,)``.
        step: counted from 1.
        lr, optimism, weight_decay, maximize: hyperparameters.
        hint_is_gradient: take the first gradient for the one before it, too, and not 0.
        multiplicative: multiply by the exponential of the step, as :func:`ferrostep.reference.egd`.
        radius: of the ball around 0 that the parameter is brought back into; infinite for none.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"optimism": 1.0, "weight_decay": 0.0, "hint_is_gradient": False, "multiplicative": False}
        >>> options |= {"radius": 0.5, "maximize": False}
        >>> optimistic_md(torch.ones(1), torch.ones(1), (torch.zeros(1),), 1, lr=0.1, **options)
        (tensor([0.5000]), (tensor([1.]),))
    """
    is_foretold = optimism != 0 and not (step == 1 and hint_is_gradient)
    direction = g + (g - state[0]) * optimism if is_foretold else g
    if maximize:
        direction = -direction
    p = descended(p, direction, lr=lr, weight_decay=weight_decay, multiplicative=multiplicative)
    return _in_ball(p, radius), (g,)


def optimistic_md_adaptive(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum,
    *,
    lr: float | Tensor,
    optimism: float,
    weight_decay: float,
    hint_is_gradient: bool,
    accumulated: float,
    begins: bool,
    radius: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`optimistic_md` with the rate ``lr / sqrt(V)``, V the gradients' variation so far.

    In two sequences, of which the parameter is x: ``y <- y - rate * g`` and ``x <- y - rate' * optimism * g``, with the
    rates before and after this gradient's change counts.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(prev_grad,)``.
        step: not used.
        total: what :func:`optimistic_md_change` gives, over all that is one vector.
        lr, optimism, weight_decay, maximize: hyperparameters.
        hint_is_gradient: take the first gradient for the one before it, too, and not 0.
        accumulated: V before this gradient.
        begins: there was no gradient before.
        radius: as of :func:`optimistic_md`.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"optimism": 1.0, "weight_decay": 0.0, "hint_is_gradient": False, "accumulated": 1.0}
        >>> options |= {"begins": True, "radius": float("inf"), "maximize": False}
        >>> optimistic_md_adaptive(torch.ones(1), torch.ones(1), (torch.zeros(1),), 1, 3.0, lr=0.1, **options)[0]
        tensor([0.8500])
    """
    (before,) = state
    hint = g if begins and hint_is_gradient else before
    rate = lr / accumulated**0.5
    next_rate = lr / (accumulated + total) ** 0.5
    if isinstance(next_rate, Tensor):
        next_rate = next_rate.to(p)
    sign = -1 if maximize else 1
    y = p * (1 - lr * weight_decay) + hint * (sign * rate * optimism)
    y = y - g * (sign * rate)
    return _in_ball(y - g * (sign * next_rate * optimism), radius), (g,)


def optimistic_md_change(
    g: Tensor, state: tuple[Tensor, ...], *, hint_is_gradient: bool, begins: bool, **_hyperparameters: Any
) -> Tensor:
    """What :func:`optimistic_md_adaptive` is to know of each gradient: how far it is from the hint, squared.

    Args:
        g: the gradient.
        state: ``(prev_grad,)``.
        hint_is_gradient, begins: as of :func:`optimistic_md_adaptive`.
        **_hyperparameters: not used.

    Returns:
        A 0-dim tensor, float64.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> g, before = torch.tensor([3.0, 5.0]), torch.tensor([0.0, 1.0])
        >>> optimistic_md_change(g, (before,), hint_is_gradient=True, begins=False)
        tensor(25., dtype=torch.float64)
    """
    (before,) = state
    return squared_norm(g - (g if begins and hint_is_gradient else before))


def _in_ball(p: Tensor, radius: float) -> Tensor:
    """What is nearest to ``p`` in the ball of this radius around 0."""
    if radius == math.inf:
        return p
    factor = (radius / squared_norm(p).sqrt()).clamp(max=1)
    return p * factor.to(p)


def optimistic_adam(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    optimism: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Optimistic Adam for one parameter, as :class:`ferrostep.optim.OptimisticAdam`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_avg_sq, prev_direction)``.
        step: counted from 1.
        lr, beta1, beta2, eps, weight_decay, optimism, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.5, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "optimism": 1.0}
        >>> zeros = (torch.zeros(1),) * 3
        >>> optimistic_adam(torch.ones(1), torch.ones(1), zeros, 1, lr=0.1, maximize=False, **options)[0]
        tensor([0.9000])
    """
    m, v, before = state
    if maximize:
        g = -g
    m, v = moments(m, v, g, beta1=beta1, beta2=beta2)
    direction = adams_direction(m, v, step, beta1=beta1, beta2=beta2, eps=eps)
    ahead = direction if step == 1 or optimism == 0 else direction + (direction - before) * optimism
    return descended(p, ahead, lr=lr, weight_decay=weight_decay, multiplicative=False), (m, v, direction)
