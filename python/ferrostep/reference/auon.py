"""AuON in plain torch (arXiv 2509.24320)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def auon(
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
    gamma: float,
    eps: float,
    rms_eps: float,
    variant: str,
    adjust_lr: str | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """AuON for one parameter, as :class:`ferrostep.optim.AuON`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(momentum_buffer,)``.
        step: not used.
        lr, weight_decay, momentum, nesterov, maximize, gamma, eps, rms_eps, variant, adjust_lr: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "maximize": False, "gamma": 1.0}
        >>> options |= {"eps": 0.0, "rms_eps": 0.0, "variant": "paper", "adjust_lr": None}
        >>> p, _ = auon(torch.zeros(2), torch.tensor([3.0, -4.0]), (torch.zeros(2),), 1, lr=1.0, **options)
        >>> p / p[0]
        tensor([ 1.0000, -1.3333])
    """
    del step
    if p.numel() == 0:
        return p, state
    if maximize:
        g = -g
    m = state[0] * momentum + g * (1 - momentum)
    u = m * momentum + g * (1 - momentum) if nesterov else m
    # Scaled by the largest element: squares of the smallest and greatest numbers leave the range.
    largest = u.abs().max()
    unit = torch.where(largest == 0, 1, largest)
    scaled = u / unit
    x = scaled / torch.where(largest != 0, torch.linalg.vector_norm(scaled) + eps / unit, 1)
    r = rms_of_cosh(x * gamma)
    applied = x if variant == "paper" else u
    factor = lr * adjusted(adjust_lr, p)
    return p * (1 - lr * weight_decay) - applied / (r + rms_eps).to(p.dtype) * factor, (m,)


def rms_of_cosh(z: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """The root mean square of ``cosh(z)``, from the sine: the sum of 1 and a mean that 1 would round away."""
    return (1 + z.double().sinh().square().mean(dim, keepdim=dim is not None)).sqrt()


def adjusted(adjust_lr: str | None, p: Tensor) -> float:
    """The factor of the learning rate for a tensor."""
    if adjust_lr == "match_rms_adamw":
        return 0.2 * math.sqrt(p.numel())
    if adjust_lr is None or p.ndim < 2:
        return 1.0
    return math.sqrt(max(1.0, p.shape[0] / math.prod(p.shape[1:])))
