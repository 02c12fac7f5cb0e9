"""RAdam in plain torch (Liu et al. 2020, arXiv 1908.03265, Algorithm 2)."""

from __future__ import annotations

from torch import Tensor

from ferrostep.reference.terms import bias_correction, decayed, moments


def radam(
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
    """RAdam for one parameter, as :class:`ferrostep.optim.RAdam`.

    eps and the threshold of 5 are torch.optim.RAdam's.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_avg_sq)``.
        step: counted from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: hyperparameters.
        decoupled_weight_decay: decay the weights themselves, or add an L2 penalty.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": False}
        >>> p, g, zeros = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> radam(p, g, (zeros, zeros), 1, lr=0.1, maximize=False, **options)[0]
        tensor([0.9500, 1.2000])
    """
    m, v = state
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)
    m, v = moments(m, v, g, beta1=beta1, beta2=beta2)
    mean = m / bias_correction(beta1, step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / bias_correction(beta2, step)
    if rho <= 5:
        return p - lr * mean, (m, v)
    r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    adaptive = bias_correction(beta2, step) ** 0.5 / (v.sqrt() + eps)
    return p - lr * r * adaptive * mean, (m, v)
