"""What adaptive optimizers divide their steps by, in plain torch, of their states."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference import checks


@torch.no_grad()
def denominator(square: Tensor, correction: float, eps: float, mean: Tensor | None = None) -> Tensor:
    """``sqrt(square / correction - mean^2) + eps``: of averaged or summed squares of gradients."""
    variance = checks.wide(square) / correction
    if mean is not None:
        variance = (variance - checks.wide(mean).square()).clamp(min=0.0)
    return variance.sqrt() + eps


@torch.no_grad()
def relative(divisor: Tensor, rate: float) -> Tensor:
    """The divisor where the learning rate is ``rate`` times another, relative to that."""
    return divisor / rate
