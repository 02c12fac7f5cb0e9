"""AdamW, Adam and AMSGrad in plain torch (arXiv 1711.05101 Algorithm 2, 1412.6980, Reddi et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference.terms import bias_correction, decayed, moments


def adamw(
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
    """AdamW, Adam or AMSGrad for one parameter, as :class:`ferrostep.optim.AdamW`.

    Bias corrections and the place of eps are torch.optim.AdamW's.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, exp_avg_sq)``; a third, ``max_exp_avg_sq``, makes it AMSGrad.
        step: counted from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: hyperparameters.
        decoupled_weight_decay: AdamW, or Adam with an L2 penalty.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": True}
        >>> p, g, zeros = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> adamw(p, g, (zeros, zeros), 1, lr=0.1, maximize=False, **options)[0]
        tensor([0.9000, 1.1000])
    """
    m, v, *maximum = state
    p, g = decayed(p, g, lr=lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)
    m, v = moments(m, v, g, beta1=beta1, beta2=beta2)
    state = (m, v, torch.maximum(maximum[0], v)) if maximum else (m, v)
    denominator = state[-1].sqrt() / bias_correction(beta2, step) ** 0.5 + eps
    return p - (m * (lr / bias_correction(beta1, step))) / denominator, state
