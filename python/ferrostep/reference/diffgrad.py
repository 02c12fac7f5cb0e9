"""diffGrad in plain torch (Dubey et al. 2019, arXiv 1909.11015, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference.terms import bias_correction, decayed, moments


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
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)
    m, v = moments(m, v, g, beta1=beta1, beta2=beta2)
    friction = torch.sigmoid((previous - g).abs())
    step_size = lr * bias_correction(beta2, step) ** 0.5 / bias_correction(beta1, step)
    return p - friction * m * step_size / (v.sqrt() + eps), (m, v, g)
