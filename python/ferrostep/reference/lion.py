"""Lion in plain torch (Chen et al. 2023, arXiv 2302.06675, Algorithm 2)."""

from __future__ import annotations

from torch import Tensor


def lion(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    weight_decay: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the new parameter and the new state ``(exp_avg,)``; ``step`` plays no part."""
    (m,) = state
    if maximize:
        g = -g
    u = (m * beta1 + g * (1 - beta1)).sign()
    return p * (1 - lr * weight_decay) - u * lr, (m * beta2 + g * (1 - beta2),)
