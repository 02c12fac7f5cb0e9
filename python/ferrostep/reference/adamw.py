"""AdamW, Adam and AMSGrad in plain torch (arXiv 1711.05101 Algorithm 2, 1412.6980, Reddi et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Return the new parameter and the new state ``(exp_avg, exp_avg_sq[, max_exp_avg_sq])``.

    The third state makes it AMSGrad. Bias corrections and the place of eps are torch.optim.AdamW's; ``step`` counts
    from 1.
    """
    m, v, *maximum = state
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    elif weight_decay != 0:
        g = g + p * weight_decay
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * (1 - beta2) * g
    state = (m, v, torch.maximum(maximum[0], v)) if maximum else (m, v)
    denominator = state[-1].sqrt() / (1 - beta2**step) ** 0.5 + eps
    return p - (m * (lr / (1 - beta1**step))) / denominator, state
