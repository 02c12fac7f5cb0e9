"""Sophia and its Hessian estimates in plain torch (Liu et al. 2023, arXiv 2305.14342, Algorithms 1 to 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def sophia(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    weight_decay: float,
    scale: float,
    eps: float,
    add_eps: bool,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the new parameter and the state ``(exp_avg, hessian)``, of which the second stays; no use of ``step``."""
    m, h = state
    if maximize:
        g = -g
    m = m * beta1 + g * (1 - beta1)
    curvature = h * scale
    denominator = curvature + eps if add_eps else curvature.clamp(min=eps)
    return p * (1 - lr * weight_decay) - (m / denominator).clamp(-1, 1) * lr, (m, h)


def unclipped(m: Tensor, h: Tensor, scale: float) -> Tensor:
    """The number of elements with ``abs(m) < scale * h``, in float32 for 16-bit states."""
    work = torch.float64 if m.dtype == torch.float64 else torch.float32
    return (m.to(work).abs() < h.to(work) * scale).sum()


def hessian_square(h: Tensor, g: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool) -> Tensor:
    """The average ``h`` with the estimate ``(scale * g)^2``."""
    g = g * scale
    return _average(h, g * g, beta2, skip_nonfinite)


def hessian_product(
    h: Tensor, product: Tensor, probe: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool
) -> Tensor:
    """The average ``h`` with the estimate ``probe * product * scale``, where ``product`` is the Hessian's with it."""
    return _average(h, probe * product * scale, beta2, skip_nonfinite)


def hessian_estimate(h: Tensor, d: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool) -> Tensor:
    """The average ``h`` with the estimate ``scale * d``."""
    return _average(h, d * scale, beta2, skip_nonfinite)


def _average(h: Tensor, d: Tensor, beta2: float | Tensor, skip_nonfinite: bool) -> Tensor:
    new = h * beta2 + d * (1 - beta2)
    return torch.where(new.isfinite(), new, h) if skip_nonfinite else new
