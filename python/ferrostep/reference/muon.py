"""Muon and NorMuon in plain torch (Jordan et al. 2024; arXiv 2510.05491; arXiv 2510.12402 for cautious decay)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ferrostep.reference.auon import rms_of_cosh
from ferrostep.reference.newton_schulz import Triple, newton_schulz


class Schedule(Protocol):
    """What has the coefficients of every Newton-Schulz step."""

    def triples(self) -> Sequence[Triple]:
        """The coefficients ``(a, b, c)``."""


def muon(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    maximize: bool,
    schedule: Schedule,
    eps: float,
    algorithm: str,
    precision: str,
    restarts: Sequence[int],
    adjust_lr: str,
    beta2: float | None,
    cautious_weight_decay: bool,
    skip_zero_grad: bool,
    ndim_policy: str,
    num_heads: int | None,
    split_sizes: Sequence[int] | None,
    cosh: tuple[float, float, bool] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Muon, NorMuon or HybridAuON for one parameter, as :class:`ferrostep.optim.Muon`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(momentum_buffer,)``; with ``beta2`` also ``second_momentum_buffer``, one number per row.
        step: not used.
        lr, weight_decay, momentum, nesterov, maximize, eps, cautious_weight_decay, skip_zero_grad: hyperparameters.
        schedule: has the coefficients of Newton-Schulz.
        precision: of Newton-Schulz.
        algorithm, restarts: forms of the same polynomial, which make no difference here.
        adjust_lr: ``"original"``, ``"match_rms_adamw"``, ``"spectral_unclamped"`` or ``"none"``.
        beta2: makes it NorMuon; None is Muon.
        ndim_policy, num_heads, split_sizes: how the parameter is seen as matrices, see :func:`matrices`.
        cosh: makes it HybridAuON (arXiv 2509.24320): gamma, what is added to the root mean square of the cosine, and
            whether the cosine is of the normalized matrix. Default None.

    Returns:
        The new parameter and the new state.

    Raises:
        ValueError: a shape that is not as ``ndim_policy``, ``num_heads`` or ``split_sizes`` say.

    Example:
        >>> from ferrostep.optim import Muon
        >>> optimizer = Muon([torch.zeros(2, 3)], lr=1.0, ns_coefficients="classic", ns_steps=15)
        >>> hyperparameters = optimizer.rule(optimizer.param_groups[0]).hyperparameters
        >>> p, _ = muon(torch.zeros(2, 3), 5 * torch.eye(2, 3), (torch.zeros(2, 3),), 1, **hyperparameters)
        >>> p.round(decimals=3)
        tensor([[-1.,  0.,  0.],
                [ 0., -1.,  0.]])
    """
    del step, algorithm, restarts
    if maximize:
        g = -g
    m = state[0] * momentum + g * (1 - momentum)
    u = m * momentum + g * (1 - momentum) if nesterov else m

    def stacks(x: Tensor) -> list[Tensor]:
        return matrices(x, ndim_policy, num_heads, split_sizes)

    moments = iter(row_moments(state[1], stacks(p))) if beta2 is not None else None
    new_p, new_m, new_v = [], [], []
    for w, gradient, old_m, own_m, direction in zip(*map(stacks, (p, g, state[0], m, u)), strict=True):
        o = newton_schulz(direction, schedule.triples(), eps=eps, precision=precision)
        factor = lr * adjusted(adjust_lr, *w.shape[-2:])
        active = (gradient != 0).any((-2, -1), keepdim=True) | (not skip_zero_grad)
        if moments is not None and beta2 is not None:
            old_v = next(moments)
            o, v = normalized_rows(o, old_v, beta2)
            new_v.append(torch.where(active, v, old_v).flatten())
        if cosh is not None:
            gamma, rms_eps, of_normalized = cosh
            norm = torch.linalg.matrix_norm(o, keepdim=True)
            z = o / torch.where(norm > 0, norm + eps, 1) if of_normalized else o
            o = o / (rms_of_cosh(gamma * z, (-2, -1)) + rms_eps).to(o.dtype)
        decayed = w * (1 - lr * weight_decay)
        if cautious_weight_decay:
            decayed = torch.where(o.sign() * w.sign() < 0, w, decayed)
        new_p.append(torch.where(active, decayed - o * factor, w).flatten())
        new_m.append(torch.where(active, own_m, old_m).flatten())
    new = (torch.cat(new_p).view(p.shape), torch.cat(new_m).view(p.shape))
    return new[0], (new[1], *([torch.cat(new_v).view(state[1].shape)] if new_v else []))


def matrices(
    x: Tensor,
    ndim_policy: str,
    num_heads: int | None = None,
    split_sizes: Sequence[int] | None = None,
    owner: str = "Muon",
) -> list[Tensor]:
    """The matrices of a parameter, in stacks of equal ones.

    Args:
        x: the parameter, of 2 or more dimensions and any dtype.
        ndim_policy: what more than 2 dimensions are: ``"error"``, ``"flatten"`` or ``"batch"``.
        num_heads: see a matrix as so many, one above the other. Default None.
        split_sizes: see a matrix as ones of these heights, one above the other. Default None.
        owner: the class that an error speaks of.

    Returns:
        Stacks of shape (count, rows, columns).

    Raises:
        ValueError: the shape does not fit.

    Example:
        >>> [stack.shape for stack in matrices(torch.zeros(6, 4), "error", num_heads=3)]
        [torch.Size([3, 2, 4])]
    """
    if num_heads is not None or split_sizes is not None:
        if x.ndim != 2:
            raise ValueError(f"num_heads and split_sizes take 2D parameters, got a parameter with size: {x.size()}")
        if num_heads is not None:
            if x.shape[0] % num_heads:
                raise ValueError(f"the rows of a parameter with size {x.size()} are not {num_heads} equal heads")
            return [x.reshape(num_heads, x.shape[0] // num_heads, x.shape[1])]
        assert split_sizes is not None
        if sum(split_sizes) != x.shape[0]:
            raise ValueError(f"split_sizes {list(split_sizes)} do not sum to the rows of size {x.size()}")
        return [part[None] for part in torch.split(x, list(split_sizes))]
    if x.ndim == 2:
        return [x[None]]
    if x.ndim < 2 or ndim_policy == "error":
        wanted = "2D parameters" if ndim_policy == "error" else "parameters of 2 or more dimensions"
        raise ValueError(f"{owner} only supports {wanted} whereas we found a parameter with size: {x.size()}")
    if ndim_policy == "flatten":
        return [x.reshape(1, x.shape[0], math.prod(x.shape[1:]))]
    return [x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])]


def adjusted(adjust_lr: str, rows: int, cols: int) -> float:
    """The factor of the learning rate for a matrix."""
    if rows == 0 or cols == 0 or adjust_lr == "none":
        return 1.0
    if adjust_lr == "match_rms_adamw":
        return float(0.2 * max(rows, cols) ** 0.5)
    ratio = rows / cols
    return float(max(1.0, ratio) ** 0.5 if adjust_lr == "original" else ratio**0.5)


def row_moments(v: Tensor, stacks: Sequence[Tensor]) -> list[Tensor]:
    """The second moments of every stack's rows, of shape (count, rows, 1)."""
    parts = torch.split(v.flatten(), [stack.shape[0] * stack.shape[1] for stack in stacks])
    return [part.view(*stack.shape[:2], 1) for part, stack in zip(parts, stacks, strict=True)]


def normalized_rows(o: Tensor, v: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """NorMuon: rows divided by their running root mean square, and the matrix's norm restored; with the new ``v``."""
    if o.numel() == 0:
        return o, v
    v = v * beta2 + o.square().mean(-1, keepdim=True) * (1 - beta2)
    scaled = o / (v.sqrt() + 1e-10)
    norm = torch.linalg.matrix_norm(o, keepdim=True)
    return scaled * (norm / (torch.linalg.matrix_norm(scaled, keepdim=True) + 1e-10)), v
