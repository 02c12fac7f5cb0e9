"""Projections of rows onto sets in plain torch, and the products of their Jacobians, which are symmetric.

They are computed in float64 (float32 on devices that lack it) and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference import checks


def simplex(x: Tensor, s: float = 1.0, dim: int = -1) -> Tensor:
    """``max(x - tau, 0)`` with the sum ``s``, by sorting (Held, Wolfe and Crowder 1974).

    Infinite numbers share the sum among them; a NaN makes its row NaN.
    """
    wide = checks.wide(x)
    top = wide.amax(dim, keepdim=True)
    finite = wide - top
    below = torch.where(top.isinf(), torch.where(wide == top, 0.0, -torch.inf), finite)
    below = below.clamp(min=-s - 1)  # what falls out anyway; its sums might be infinite
    sizes = [-1 if each == dim % x.ndim else 1 for each in range(x.ndim)]
    counts = torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=wide.dtype).view(sizes)
    ordered = below.sort(dim, descending=True).values
    taus = (ordered.cumsum(dim) - s) / counts
    support = (ordered > taus).sum(dim, keepdim=True)
    tau = taus.gather(dim, (support - 1).clamp(min=0))
    return (below - tau).clamp(min=0.0).to(x.dtype)


def simplex_vjp(y: Tensor, v: Tensor, s: float = 1.0, dim: int = -1) -> Tensor:
    """The product of ``v`` with the Jacobian at the image ``y``: on its support, ``v`` without its mean there."""
    inside = y > 0
    wide = torch.where(inside, checks.wide(v), 0.0)
    mean = wide.sum(dim, keepdim=True) / inside.sum(dim, keepdim=True)
    return torch.where(y.isnan(), torch.nan, torch.where(inside, wide - mean, 0.0)).to(y.dtype)
