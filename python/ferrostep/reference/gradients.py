"""Projections and combinations of gradients in plain torch: see :mod:`ferrostep.gradients` for the arguments.

Computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]


@torch.no_grad()
def gram(gradients: Sequence[Gradient]) -> Tensor:
    """The inner products of all pairs of gradients."""
    rows = [torch.stack([_dot(one, other) for other in gradients]) for one in gradients]
    return torch.stack(rows).cpu()


@torch.no_grad()
def combine(
    gradients: Sequence[Gradient], weights: Sequence[float] | Tensor, *, out: list[Tensor | None]
) -> list[Tensor | None]:
    """The sum of gradients, each times its weight."""
    for place, tensors in enumerate(zip(*gradients, strict=True)):
        given = [float(w) * x.double() for w, x in zip(weights, tensors, strict=True) if x is not None]
        like = next((x for x in tensors if x is not None), None)
        _write(out, place, torch.stack(given).sum(0) if given else None, like)
    return out


@torch.no_grad()
def transform_(gradients: list[list[Tensor | None]], matrix: Tensor) -> None:
    """Replace every gradient by a combination of all, a row of the matrix."""
    results = [combine(gradients, row, out=[None] * len(gradients[0])) for row in matrix]
    for gradient, result in zip(gradients, results, strict=True):
        for place, x in enumerate(result):
            _write(gradient, place, x, x)


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
    kappas = _kappas(forward, backward, eps, per_tensor)
    for place, (f, b, kappa) in enumerate(zip(forward, backward, kappas, strict=True)):
        _write(backward, place, _plus((scale, b), (-scale * kappa, f)), b if f is None else f)
    return kappas if per_tensor else (kappas or [0.0])[0]


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
) -> list[float]:
    """``out <- extra + forward + eta * (backward - kappa * forward)``; returns kappa for each place."""
    kappas = _kappas(forward, backward, eps, per_tensor)
    for place, (e, f, b, kappa) in enumerate(zip(extra, forward, backward, kappas, strict=True)):
        like = next((x for x in (e, f, b) if x is not None), None)
        _write(out, place, _plus((1.0, e), (1.0 - eta * kappa, f), (eta, b)), like)
    return kappas


@torch.no_grad()
def ema_(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> None:
    """Move a target network towards another."""
    if not 0 <= tau <= 1:
        raise ValueError(f"Invalid tau: {tau}; expected 0 <= tau <= 1")
    for t, s in zip(target, source, strict=True):
        t.copy_(t.double() + tau * (s.double() - t.double()))


def _kappas(forward: Gradient, backward: Gradient, eps: float, per_tensor: bool) -> list[float]:
    if per_tensor:
        return [_kappa([f], [b], eps) for f, b in zip(forward, backward, strict=True)]
    return [_kappa(forward, backward, eps)] * len(forward)


def _kappa(forward: Gradient, backward: Gradient, eps: float) -> float:
    return float(_dot(forward, backward) / _dot(forward, forward).clamp(min=eps))


def _dot(one: Gradient, other: Gradient) -> Tensor:
    dots = [(a.double() * b.double()).sum() for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return torch.stack(dots).sum() if dots else torch.zeros((), dtype=torch.float64)


def _plus(*terms: tuple[float, Tensor | None]) -> Tensor | None:
    products = [factor * x.double() for factor, x in terms if x is not None]
    return torch.stack(products).sum(0) if products else None


def _write(to: list[Tensor | None], place: int, value: Tensor | None, like: Tensor | None) -> None:
    """In place, or as a new tensor where there is none."""
    there = to[place]
    if there is not None and value is not None:
        there.copy_(value)
    elif value is not None and like is not None:
        to[place] = value.to(like.dtype)
