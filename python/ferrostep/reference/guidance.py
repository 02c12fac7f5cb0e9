"""The rules of guidance in plain torch, which autograd sees through: see :mod:`ferrostep.guidance` for the arguments.

Computed in float64 and rounded once to the predictions' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Dims = int | Sequence[int] | None


class Momentum(Protocol):
    """What carries the direction from step to step: :class:`ferrostep.guidance.MomentumBuffer`."""

    momentum: float
    running_average: Tensor | None


def cfg(cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598)."""
    c, u = cond.double(), uncond.double()
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def apg(
    cond: Tensor,
    uncond: Tensor,
    scale: float,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = 0.0,
    momentum_buffer: Momentum | None = None,
    dims: Dims = None,
    base: str = "cond",
    rescale: float = 0.0,
) -> Tensor:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1)."""
    if base not in ("cond", "uncond"):
        raise ValueError(f"Invalid base: {base!r}; expected 'cond' or 'uncond'")
    c, u = cond.double(), uncond.double()
    d = c - u
    if momentum_buffer is not None:
        if momentum_buffer.running_average is not None:
            d = d + momentum_buffer.momentum * momentum_buffer.running_average.double()
        average = d.to(cond.dtype)
        d = average.double()  # as it is kept
        if momentum_buffer.running_average is None:
            momentum_buffer.running_average = average.detach()
        else:
            momentum_buffer.running_average.copy_(average.detach())
    if norm_threshold is not None and norm_threshold > 0:
        norm = _sum(d * d, dims).sqrt()
        d = d * torch.where(norm > norm_threshold, norm_threshold / norm, 1.0)
    update = d - (1 - eta) * _ratio(_sum(d * c, dims), _sum(c * c, dims)) * c
    guided = c + (scale - 1) * update if base == "cond" else u + scale * update
    return _rescaled(guided, c, rescale, dims).to(cond.dtype)


def cfg_zero_star(cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886)."""
    c, u = cond.double(), uncond.double()
    u = _sum(c * u, dims) / (_sum(u * u, dims) + 1e-8) * u
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def tangential(cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None) -> Tensor:
    """Tangential CFG (arXiv 2503.18137), by the eigenvectors of the 2 x 2 Gram matrix of c and u."""
    c, u = cond.double(), uncond.double()
    cc, cu, uu = _sum(c * c, dims), _sum(c * u, dims), _sum(u * u, dims)
    angle = 0.5 * torch.atan2(2 * cu, cc - uu)
    u = angle.sin() * (angle.cos() * c + angle.sin() * u)
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def perp_neg(
    cond: Tensor,
    uncond: Tensor,
    negatives: Sequence[Tensor],
    scale: float,
    weights: Sequence[float],
    *,
    dims: Dims = None,
) -> Tensor:
    """Perp-Neg (arXiv 2304.04968)."""
    u = uncond.double()
    d = cond.double() - u
    update = d
    for negative, weight in zip(negatives, weights, strict=True):
        update = update - weight * _parts(negative.double() - u, d, dims)[1]
    return (u + scale * update).to(cond.dtype)


def project(vector: Tensor, onto: Tensor, *, dims: Dims = None) -> tuple[Tensor, Tensor]:
    """The components of a tensor along another and orthogonal to it."""
    parallel, orthogonal = _parts(vector.double(), onto.double(), dims)
    return parallel.to(vector.dtype), orthogonal.to(vector.dtype)


def _parts(v: Tensor, onto: Tensor, dims: Dims) -> tuple[Tensor, Tensor]:
    parallel = _ratio(_sum(v * onto, dims), _sum(onto * onto, dims)) * onto
    return parallel, v - parallel


def _ratio(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Nothing lies along zero."""
    return torch.where(divisor == 0, 0.0, dividend / torch.where(divisor == 0, 1.0, divisor))


def _rescaled(guided: Tensor, c: Tensor, rescale: float, dims: Dims) -> Tensor:
    if not 0 <= rescale <= 1:
        raise ValueError(f"Invalid rescale: {rescale}; expected a number from 0 to 1")
    if rescale == 0:
        return guided
    deviations: list[Tensor] = [_sum((x - _mean(x, dims)) ** 2, dims).sqrt() for x in (c, guided)]
    factor = torch.where(deviations[1] == 0, 1.0, deviations[0] / deviations[1])
    return guided * (rescale * factor + (1 - rescale))


def _mean(x: Tensor, dims: Dims) -> Tensor:
    return _over(torch.mean, x, dims)


def _sum(x: Tensor, dims: Dims) -> Tensor:
    return _over(torch.sum, x, dims)


def _over(reduce: Callable[..., Tensor], x: Tensor, dims: Dims) -> Tensor:
    """Over all dimensions but the first, or over `dims`."""
    over = list(range(1, x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return reduce(x, dim=over, keepdim=True) if over else x
