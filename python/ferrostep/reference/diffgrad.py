"""diffGrad in plain torch (Dubey et al. 2019, arXiv 1909.11015, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def diffgrad(
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
    decoupled_weight_decay: bool,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """diffGrad for one parameter, as :class:`ferrostep.optim.DiffGrad`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_avg_sq, previous_grad)``.
        step: counted from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: hyperparameters.
        decoupled_weight_decay: decay the weights themselves rather than add the decay to the gradient.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": False}
        >>> p, g, zeros = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> diffgrad(p, g, (zeros, zeros, zeros), 1, lr=0.1, maximize=False, **options)[0]
        tensor([0.9378, 1.0881])
    """
    m, v, previous = state
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    elif weight_decay != 0:
        g = g + p * weight_decay
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * (1 - beta2) * g
    friction = torch.sigmoid((previous - g).abs())
    step_size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return p - friction * m * step_size / (v.sqrt() + eps), (m, v, g)
