"""Projections and combinations of gradients in plain torch: see :mod:`ferrostep.gradients` for the arguments.

Computed in float64 (float32 on devices without it) and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ferrostep.errors import Problem
from ferrostep.reference import checks

Gradient = Sequence[Tensor | None]


@torch.no_grad()
def gram(gradients: Sequence[Gradient]) -> Tensor:
    """The inner products of all pairs of gradients."""
    device = next((x.device for gradient in gradients for x in gradient if x is not None), None)
    rows = [torch.stack([_dot(one, other).to(device) for other in gradients]) for one in gradients]
    return torch.stack(rows).cpu().double()


@torch.no_grad()
def norms(gradient: Gradient) -> tuple[float, float]:
    """The l1 norm, and the square of the l2 norm."""
    sizes = sum(float(checks.wide(_real(x)).abs().sum()) for x in gradient if x is not None)
    return sizes, float(_dot(gradient, gradient))


@torch.no_grad()
def follow(gradient: Gradient, before: Gradient) -> tuple[float, float]:
    """The squares of the norms of a gradient and of its difference from another, which becomes a copy of it."""
    pairs = [(x, there) for x, there in zip(gradient, before, strict=True) if x is not None and there is not None]
    moved = [checks.wide(_real(x)) - checks.wide(_real(there)) for x, there in pairs]
    squares = float(_dot(gradient, gradient)), float(_dot(moved, moved))
    for x, there in pairs:
        there.copy_(x)
    return squares


@torch.no_grad()
def combine(
    gradients: Sequence[Gradient], weights: Sequence[float] | Tensor, *, out: list[Tensor | None]
) -> list[Tensor | None]:
    """The sum of gradients, each times its weight."""
    if len(weights) != len(gradients):
        raise Problem.COUNT.of("weights", f"{len(weights)} numbers", f"{len(gradients)}: one for each of gradients")
    row = [float(weight) for weight in weights]
    for place, tensors in enumerate(zip(*gradients, strict=True)):
        _write(out, place, _sum(*zip(row, tensors, strict=True)), *tensors)
    return out


def transformed(gradients: Sequence[Gradient], rows: Sequence[Sequence[float]]) -> list[list[Tensor | None]]:
    """Combinations of the gradients, one for each row of weights."""
    return [combine(gradients, row, out=[None] * len(gradients[0])) for row in rows]


@torch.no_grad()
def orthogonal_(
    backward: list[Tensor | None],
    forward: Gradient,
    *,
    scale: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
) -> float | list[float]:
    """Take out of a gradient what lies along another."""
    kappas = projected(backward, forward, list(backward), scale, eps, per_tensor)
    return kappas if per_tensor else (kappas or [0.0])[0]


@torch.no_grad()
def projected(
    out: list[Tensor | None], forward: Gradient, backward: Gradient, scale: float, eps: float, per_tensor: bool
) -> list[float]:
    """``out <- scale * (backward - kappa * forward)``; returns kappa for each place."""
    checks.finite(scale=scale)
    kappas = _kappas(forward, backward, eps, per_tensor)
    for place, (f, b, kappa) in enumerate(zip(forward, backward, kappas, strict=True)):
        _write(out, place, _sum((scale, b), (-scale * kappa, f)), f, b)
    return kappas


def orthogonal_combine_(
    out: list[Tensor | None],
    forward: Gradient,
    backward: Gradient,
    *,
    eta: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
) -> float | list[float]:
    """Add both gradients, the backward one projected."""
    kappas = combined(out, list(out), forward, backward, eta, eps, per_tensor)
    assert kappas is not None
    return kappas if per_tensor else (kappas or [0.0])[0]


@torch.no_grad()
def combined(
    out: list[Tensor | None],
    extra: Gradient,
    forward: Gradient,
    backward: Gradient,
    eta: float,
    eps: float,
    per_tensor: bool,
    skip_nonfinite: bool = False,
) -> list[float] | None:
    """``out <- extra + forward + eta * (backward - kappa * forward)``; returns kappa for each place.

    None with ``skip_nonfinite`` where the result is not finite.
    """
    checks.finite(eta=eta)
    kappas = _kappas(forward, backward, eps, per_tensor)
    for place, (e, f, b, kappa) in enumerate(zip(extra, forward, backward, kappas, strict=True)):
        _write(out, place, _sum((1.0, e), (1.0 - eta * kappa, f), (eta, b)), e, f, b)
    is_finite = not skip_nonfinite or all(bool(x.isfinite().all()) for x in out if x is not None)
    return kappas if is_finite else None


@torch.no_grad()
def moved(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> list[Tensor]:
    """A target network, moved towards another."""
    checks.share(tau=tau)
    return [_between(t, s, tau) for t, s in zip(target, source, strict=True)]


@torch.no_grad()
def ema_(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> None:
    """Move a target network towards another."""
    for t, value in zip(target, moved(target, source, tau), strict=True):
        t.copy_(value)


def _kappas(forward: Gradient, backward: Gradient, eps: float, per_tensor: bool) -> list[float]:
    checks.at_least_zero(eps=eps)
    if per_tensor:
        return [_kappa([f], [b], eps) for f, b in zip(forward, backward, strict=True)]
    return [_kappa(forward, backward, eps)] * len(forward)


def _kappa(forward: Gradient, backward: Gradient, eps: float) -> float:
    divisor = max(float(_dot(forward, forward)), eps)  # in this order NaN stays
    return float(_dot(forward, backward)) / (divisor or 1.0)


def _dot(one: Gradient, other: Gradient) -> Tensor:
    """None is zeros, which a NaN or infinity makes NaN."""
    pairs = [[checks.wide(_real(x)) for x in both if x is not None] for both in zip(one, other, strict=True)]
    dots = [(x * (y[0] if y else 0.0)).sum() for x, *y in filter(None, pairs)]
    return torch.stack(dots).sum() if dots else torch.zeros(())


def _sum(*terms: tuple[float, Tensor | None]) -> Tensor | None:
    """Of tensors times factors. None is zeros, which a factor of NaN makes NaN."""
    products = [factor * checks.wide(_real(x)) for factor, x in terms if x is not None]
    zeros = sum(0.0 * factor for factor, x in terms if x is None)
    return torch.stack(products).sum(0) + zeros if products else None


def _between(t: Tensor, s: Tensor, tau: float) -> Tensor:
    value = torch.lerp(checks.wide(_real(t)), checks.wide(_real(s)), tau).to(_real(t).dtype)
    return torch.view_as_complex(value) if t.is_complex() else value


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _write(to: list[Tensor | None], place: int, value: Tensor | None, *like: Tensor | None) -> None:
    """In place, or as a new tensor like another where there is none."""
    there = to[place]
    if value is None:
        if there is not None:
            there.zero_()
        return
    if there is None:
        to[place] = there = torch.empty_like(next(x for x in like if x is not None), requires_grad=False)
    _real(there).copy_(value)
