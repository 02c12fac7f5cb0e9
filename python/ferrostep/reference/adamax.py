"""Adamax in plain torch (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference.terms import bias_correction, penalized


def adamax(
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
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Adamax for one parameter, as :class:`ferrostep.optim.Adamax`.

    eps is torch.optim.Adamax's: beside the gradient's size.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_inf)``.
        step: counted from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "maximize": False}
        >>> p, g, zeros = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> adamax(p, g, (zeros, zeros), 1, lr=0.1, **options)[0]
        tensor([0.9000, 1.1000])
    """
    m, u = state
    g = penalized(p, g, weight_decay, maximize)
    m = m * beta1 + g * (1 - beta1)
    u = torch.maximum(u * beta2, g.abs() + eps)
    return p - m * (lr / bias_correction(beta1, step)) / u, (m, u)
