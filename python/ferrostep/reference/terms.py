"""Terms that several rules share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bias_correction(beta: float | Tensor, step: float) -> float | Tensor:
    """``1 - beta**step``, what an average of rate ``beta``, of zeros at first, is to be divided by at a step."""
    return 1 - beta**step


def penalized(p: Tensor, g: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    """The gradient of what is to become less, with the weight decay as an L2 penalty."""
    if maximize:
        g = -g
    return g + p * weight_decay if weight_decay != 0 else g


def decayed(
    p: Tensor, g: Tensor, *, lr: float | Tensor, weight_decay: float, decoupled: bool, maximize: bool
) -> tuple[Tensor, Tensor]:
    """The parameter, decayed by itself if ``decoupled``, and the gradient, with an L2 penalty if not."""
    if decoupled:
        return p * (1 - lr * weight_decay), penalized(p, g, 0.0, maximize)
    return p, penalized(p, g, weight_decay, maximize)


def moments(m: Tensor, v: Tensor, g: Tensor, *, beta1: float | Tensor, beta2: float | Tensor) -> tuple[Tensor, Tensor]:
    """The averages of gradients and of their squares, with one more gradient."""
    return m * beta1 + g * (1 - beta1), v * beta2 + g * (1 - beta2) * g


def adams_direction(
    m: Tensor, v: Tensor, step: float, *, beta1: float | Tensor, beta2: float | Tensor, eps: float
) -> Tensor:
    """What Adam takes for the gradient, from both averages."""
    return (m / bias_correction(beta1, step)) / (v.sqrt() / bias_correction(beta2, step) ** 0.5 + eps)


def descended(
    p: Tensor,
    direction: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float,
    multiplicative: bool,
    max_exponent: float = math.inf,
    min_abs: float = 0.0,
    hypentropy: float = 0.0,
) -> Tensor:
    """The parameter after a step against ``direction``, with decay: subtracted, or as an exponent multiplied.

    With ``hypentropy``, beta, each of two weights is multiplied, one by the inverse exponential: the parameter is their
    difference, and their product was ``beta^2 / 4``.
    """
    if not multiplicative:
        return p * (1 - lr * weight_decay) - direction * lr
    if hypentropy != 0:
        up, down = (
            (-(sign * direction * lr + lr * weight_decay)).clamp(-max_exponent, max_exponent) for sign in (1, -1)
        )
        total = torch.hypot(p, torch.full_like(p, hypentropy))
        larger = p.abs() / 2 + total / 2
        smaller = hypentropy**2 / 4 / larger
        plus, minus = torch.where(p < 0, smaller, larger), torch.where(p < 0, larger, smaller)
        return _infinite_stays(p, up, p + (_increase(plus, up) - _increase(minus, down)))
    exponent = -(p.sign() * direction * lr + lr * weight_decay)
    return multiplied(p, exponent.clamp(-max_exponent, max_exponent), min_abs)


def _increase(weight: Tensor, exponent: Tensor) -> Tensor:
    """What multiplication by an exponential adds to a positive weight."""
    root = (exponent / 2).expm1()  # the whole may be infinite where the product is not
    return torch.where(weight == 0, 0.0, weight * root * (root + 2))


def _infinite_stays(p: Tensor, exponent: Tensor, new: Tensor) -> Tensor:
    """What is infinite, by any exponent that is a number; elsewhere the new weight."""
    return torch.where(p.isinf() & ~exponent.isnan(), p, new)


def multiplied(p: Tensor, exponent: Tensor, min_abs: float = 0.0) -> Tensor:
    """``p * exp(exponent)``, where 0 stays 0; nothing else falls below ``min_abs`` or the least normal number."""
    root = (exponent / 2).exp()  # the power itself may be infinite, or 0, where the product is not
    new = _infinite_stays(p, exponent, p * root * root)
    least = p.abs().clamp(max=max(min_abs, torch.finfo(p.dtype).smallest_normal))
    new = torch.where(new.abs() < least, least.copysign(p), new)
    return torch.where(p == 0, p, new)
