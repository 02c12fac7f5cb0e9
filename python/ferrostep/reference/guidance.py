"""The rules of guidance in plain torch, which autograd sees through: see :mod:`ferrostep.guidance` for the arguments.

Computed in float64 (float32 on devices without it) and rounded once to the predictions' dtype. Where a rule has no
slope, as at differences of zero or of the threshold's length, gradients are those of one side, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ferrostep.errors import Problem, wrong_choice
from ferrostep.reference.checks import wide

Dims = int | Sequence[int] | None


class Momentum(Protocol):
    """What carries the direction from step to step: :class:`ferrostep.guidance.MomentumBuffer`."""

    momentum: float
    running_average: Tensor | None


def cfg(cond: Tensor, uncond: Tensor, scale: float | Tensor, *, rescale: float = 0.0, dims: Dims = None) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598)."""
    c, u, scale = wide(cond), wide(uncond), _each(scale, cond)
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def apg(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = 0.0,
    momentum_buffer: Momentum | None = None,
    dims: Dims = None,
    base: str = "cond",
    rescale: float = 0.0,
) -> Tensor:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1)."""
    guided, direction = apg_with_direction(
        cond,
        uncond,
        scale,
        eta=eta,
        norm_threshold=norm_threshold,
        momentum_buffer=momentum_buffer,
        dims=dims,
        base=base,
        rescale=rescale,
    )
    if momentum_buffer is not None:
        keep(momentum_buffer, direction)
    return guided


def keep(momentum_buffer: Momentum, direction: Tensor) -> None:
    """Leave the direction in the buffer."""
    if momentum_buffer.running_average is None:
        momentum_buffer.running_average = direction
    elif momentum_buffer.running_average is not direction:
        momentum_buffer.running_average.copy_(direction)


def apg_with_direction(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    eta: float,
    norm_threshold: float | None,
    momentum_buffer: Momentum | None,
    dims: Dims,
    base: str,
    rescale: float,
) -> tuple[Tensor, Tensor]:
    """APG, and the direction that the buffer is to keep, which is only read."""
    if base not in ("cond", "uncond"):
        raise wrong_choice("base", base, "cond", "uncond")
    c, u, scale = wide(cond), wide(uncond), _each(scale, cond)
    d = c - u
    if momentum_buffer is not None:
        if momentum_buffer.running_average is not None:
            d = d + momentum_buffer.momentum * wide(momentum_buffer.running_average)
        d = wide(d.to(cond.dtype))  # as it is kept
    direction = d.detach().to(cond.dtype)
    if norm_threshold is not None and norm_threshold > 0:
        norm = _root(_sum(d * d, dims))
        longer = norm > norm_threshold
        d = d * torch.where(longer, norm_threshold / torch.where(longer, norm, 1.0), 1.0)
    update = d - (1 - eta) * _ratio(_sum(d * c, dims), _sum(c * c, dims)) * c
    guided = c + (scale - 1) * update if base == "cond" else u + scale * update
    return _rescaled(guided, c, rescale, dims).to(cond.dtype), direction


def cfg_zero_star(
    cond: Tensor, uncond: Tensor, scale: float | Tensor, *, rescale: float = 0.0, dims: Dims = None
) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886)."""
    c, u, scale = wide(cond), wide(uncond), _each(scale, cond)
    u = _sum(c * u, dims) / (_sum(u * u, dims) + 1e-8) * u
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def tangential(
    cond: Tensor, uncond: Tensor, scale: float | Tensor, *, rescale: float = 0.0, dims: Dims = None
) -> Tensor:
    """Tangential CFG (arXiv 2503.18137), by the eigenvectors of the 2 x 2 Gram matrix of c and u."""
    c, u, scale = wide(cond), wide(uncond), _each(scale, cond)
    cc, cu, uu = _sum(c * c, dims), _sum(c * u, dims), _sum(u * u, dims)
    angle = 0.5 * torch.atan2(2 * cu, torch.where((cu == 0) & (cc == uu), 1.0, cc - uu))  # 0 where none is larger
    u = angle.sin() * (angle.cos() * c + angle.sin() * u)
    return _rescaled(u + scale * (c - u), c, rescale, dims).to(cond.dtype)


def magnitude_aware(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    alpha: float = 8.0,
    rescale: float = 0.0,
    dims: Dims = None,
) -> Tensor:
    """Magnitude-aware guidance (arXiv 2508.03442)."""
    c, u, scale = wide(cond), wide(uncond), _each(scale, cond)
    d, size = c - u, _root(_sum(u * u, dims))
    ratio = _root(_sum(d * d, dims)) / torch.where(size == 0, 1.0, size)
    damping = torch.where((size == 0) & (alpha != 0), 0.0, torch.exp(-alpha * ratio))
    return _rescaled(c + (scale - 1) * damping * d, c, rescale, dims).to(cond.dtype)


def perp_neg(
    cond: Tensor,
    uncond: Tensor,
    negatives: Sequence[Tensor],
    scale: float | Tensor,
    weights: Sequence[float],
    *,
    dims: Dims = None,
) -> Tensor:
    """Perp-Neg (arXiv 2304.04968)."""
    u, scale = wide(uncond), _each(scale, cond)
    d = wide(cond) - u
    update = d
    for negative, weight in zip(negatives, weights, strict=True):
        update = update - weight * _parts(wide(negative) - u, d, dims)[1]
    return (u + scale * update).to(cond.dtype)


def project(vector: Tensor, onto: Tensor, *, dims: Dims = None) -> tuple[Tensor, Tensor]:
    """The components of a tensor along another and orthogonal to it."""
    parallel, orthogonal = _parts(wide(vector), wide(onto), dims)
    return parallel.to(vector.dtype), orthogonal.to(vector.dtype)


def _each(scale: float | Tensor, cond: Tensor) -> float | Tensor:
    """A scale for each sample in a form that broadcasts."""
    if not hasattr(scale, "shape"):
        return scale
    scale = wide(torch.as_tensor(scale, device=cond.device))
    return scale.reshape(-1, *[1] * (cond.ndim - 1)) if scale.numel() > 1 else scale.reshape(())


def _parts(v: Tensor, onto: Tensor, dims: Dims) -> tuple[Tensor, Tensor]:
    parallel = _ratio(_sum(v * onto, dims), _sum(onto * onto, dims)) * onto
    return parallel, v - parallel


def _ratio(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Nothing lies along zero."""
    return torch.where(divisor == 0, 0.0, dividend / torch.where(divisor == 0, 1.0, divisor))


def _rescaled(guided: Tensor, c: Tensor, rescale: float | Tensor, dims: Dims) -> Tensor:
    if not 0 <= rescale <= 1:
        raise Problem.NUMBER.of("rescale", rescale, "a number from 0 to 1")
    if rescale == 0:
        return guided
    cond, own = _deviation(c, dims), _deviation(guided, dims)
    factor = torch.where(own == 0, 1.0, cond / torch.where(own == 0, 1.0, own))
    return guided * (rescale * factor + (1 - rescale))


def _deviation(x: Tensor, dims: Dims) -> Tensor:
    """Times the root of the number of elements; 0 where it cannot be told from rounding."""
    variance = _sum((x - _mean(x, dims)) ** 2, dims)
    return _root(torch.where(variance <= 1e-12 * _sum(x * x, dims), 0.0, variance))


def _root(x: Tensor) -> Tensor:
    """At 0 with the slope 0."""
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())


def _mean(x: Tensor, dims: Dims) -> Tensor:
    return _over(torch.mean, x, dims)


def _sum(x: Tensor, dims: Dims) -> Tensor:
    return _over(torch.sum, x, dims)


def _over(reduce: Callable[..., Tensor], x: Tensor, dims: Dims) -> Tensor:
    """Over all dimensions but the first, or over `dims`."""
    over = list(range(1, x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return reduce(x, dim=over, keepdim=True) if over else x
