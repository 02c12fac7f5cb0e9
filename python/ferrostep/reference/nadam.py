"""NAdam in plain torch (Dozat 2016, Algorithm 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ferrostep.reference.sums import Sum
from ferrostep.reference.terms import bias_correction, decayed, moments


def nadam(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    mu_product: Sum,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """NAdam for one parameter, as :class:`ferrostep.optim.NAdam`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_avg_sq)``.
        step: counted from 1.
        mu_product: the product of :func:`nadam_factor` of all steps up to this one.
        lr, beta1, beta2, eps, weight_decay, momentum_decay, maximize: hyperparameters.
        decoupled_weight_decay: decay the weights themselves, or add an L2 penalty.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 4e-3}
        >>> p, g, zeros = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> product = nadam_factor(1, **options)
        >>> flags = {"decoupled_weight_decay": False, "maximize": False}
        >>> nadam(p, g, (zeros, zeros), 1, product, lr=0.1, **options, **flags)[0]
        tensor([0.8944, 1.1056])
    """
    m, v = state
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)
    m, v = moments(m, v, g, beta1=beta1, beta2=beta2)
    mu, next_mu = (nadam_factor(t, beta1=beta1, momentum_decay=momentum_decay) for t in (step, step + 1))
    mean = m * (next_mu / (1 - mu_product * next_mu)) + g * ((1 - mu) / (1 - mu_product))
    return p - lr * mean / ((v / bias_correction(beta2, step)).sqrt() + eps), (m, v)


def nadam_factor(step: float, *, beta1: float | Tensor, momentum_decay: float, **_hyperparameters: Any) -> Sum:
    """The momentum of :func:`nadam` at a step, which multiplies its product.

    Args:
        step: counted from 1.
        beta1, momentum_decay: as of :func:`nadam`: numbers, or tensors of shape () and a real dtype.
        **_hyperparameters: not used.

    Returns:
        A number from 0 to 1.

    Raises:
        TypeError: what is no number.

    Example:
        >>> round(nadam_factor(1000, beta1=0.9, momentum_decay=4e-3), 4)
        0.5178
    """
    to_come: float = 0.96 ** (step * momentum_decay)
    return beta1 * (1 - 0.5 * to_come)
