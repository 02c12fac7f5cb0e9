"""Exponentiated gradient descent in plain torch (Kivinen and Warmuth 1997; Cornford et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from ferrostep.reference.terms import adams_direction, descended, moments


def egd(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    momentum: float,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    max_exponent: float,
    min_abs: float,
    multiplicative: bool,
    hypentropy: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Exponentiated gradient descent for one parameter, as :class:`ferrostep.optim.EGD`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``()``; with momentum ``(momentum_buffer,)``; with Adam's direction ``(exp_avg, exp_avg_sq)``.
        step: counted from 1, for Adam's bias corrections.
        lr, momentum, beta1, beta2, eps, weight_decay, maximize: hyperparameters.
        max_exponent: the greatest size of an exponent.
        min_abs: the size below which no step takes a parameter; at least the smallest normal number.
        multiplicative: EGD, or gradient descent along the same direction.
        hypentropy: EG+- with this beta; 0 for EGD.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"momentum": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "max_exponent": float("inf")}
        >>> options |= {"weight_decay": 0.0, "min_abs": 0.0, "multiplicative": True, "hypentropy": 0.0}
        >>> egd(torch.tensor([1.0, -1.0]), torch.ones(2), (), 1, lr=0.1, maximize=False, **options)[0]
        tensor([ 0.9048, -1.1052])
    """
    if maximize:
        g = -g
    direction = g
    if len(state) == 1:
        direction = state[0] * momentum + g
        state = (direction,)
    elif state:
        m, v = moments(state[0], state[1], g, beta1=beta1, beta2=beta2)
        direction = adams_direction(m, v, step, beta1=beta1, beta2=beta2, eps=eps)
        state = (m, v)
    p = descended(
        p,
        direction,
        lr=lr,
        weight_decay=weight_decay,
        multiplicative=multiplicative,
        max_exponent=max_exponent,
        min_abs=min_abs,
        hypentropy=hypentropy,
    )
    return p, state
