"""Optimistic descent in plain torch (arXiv 2302.04552, 1711.00141)."""

from __future__ import annotations

from torch import Tensor

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

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"optimism": 1.0, "weight_decay": 0.0, "hint_is_gradient": False, "multiplicative": False}
        >>> optimistic_md(torch.ones(1), torch.ones(1), (torch.zeros(1),), 1, lr=0.1, maximize=False, **options)
        (tensor([0.8000]), (tensor([1.]),))
    """
    is_foretold = optimism != 0 and not (step == 1 and hint_is_gradient)
    direction = g + (g - state[0]) * optimism if is_foretold else g
    if maximize:
        direction = -direction
    return descended(p, direction, lr=lr, weight_decay=weight_decay, multiplicative=multiplicative), (g,)


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
