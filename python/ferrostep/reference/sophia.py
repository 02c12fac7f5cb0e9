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
    """Sophia for one parameter (arXiv 2305.14342, Algorithm 3), as both classes of :mod:`ferrostep.optim`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg, hessian)``, of which the second stays.
        step: not used.
        lr, beta1, weight_decay, maximize: hyperparameters.
        scale: factor of the Hessian estimate.
        eps: added to the denominator with ``add_eps``, else the least denominator.
        add_eps: SophiaG's form, not SophiaH's.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"beta1": 0.5, "weight_decay": 0.0, "scale": 1.0, "eps": 1e-12}
        >>> state = (torch.zeros(2), torch.tensor([2.0, 0.0]))
        >>> sophia(torch.ones(2), torch.ones(2), state, 1, lr=0.1, add_eps=False, maximize=False, **options)[0]
        tensor([0.9750, 0.9000])
    """
    m, h = state
    if maximize:
        g = -g
    m = m * beta1 + g * (1 - beta1)
    curvature = h * scale
    denominator = curvature + eps if add_eps else curvature.clamp(min=eps)
    return p * (1 - lr * weight_decay) - (m / denominator).clamp(-1, 1) * lr, (m, h)


def unclipped(m: Tensor, h: Tensor, scale: float) -> Tensor:
    """How many elements Sophia does not clip: those with ``abs(m) < scale * h``, in float32 for 16-bit states.

    Args:
        m, h: the momentum and the Hessian estimate, of one shape.
        scale: factor of the latter.

    Returns:
        Their number, of shape ().

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> unclipped(torch.ones(3), torch.tensor([0.0, 1.0, 2.0]), scale=1.0)
        tensor(1)
    """
    work = torch.float64 if m.dtype == torch.float64 else torch.float32
    return (m.to(work).abs() < h.to(work) * scale).sum()


def hessian_square(h: Tensor, g: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool) -> Tensor:
    """The average ``h`` with the estimate ``(scale * g)^2`` (arXiv 2305.14342, Algorithm 2).

    Args:
        h, g: the average and a gradient, of one shape and dtype.
        beta2: decay rate of the average.
        scale: factor of the gradient.
        skip_nonfinite: keep elements that would become NaN or infinite.

    Returns:
        The new average.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> hessian_square(torch.zeros(1), torch.tensor([2.0]), beta2=0.75, scale=1.0, skip_nonfinite=True)
        tensor([1.])
    """
    g = g * scale
    return _average(h, g * g, beta2, skip_nonfinite)


def hessian_product(
    h: Tensor, product: Tensor, probe: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool
) -> Tensor:
    """The average ``h`` with the estimate ``probe * product * scale`` (arXiv 2305.14342, Algorithm 1).

    Args:
        h: the average.
        product: the Hessian's product with the probe, of the same shape and dtype.
        probe: a random vector, likewise.
        beta2, scale, skip_nonfinite: as of :func:`hessian_square`; ``scale`` is the estimate's.

    Returns:
        The new average.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> product, probe = torch.tensor([-4.0]), torch.tensor([-1.0])
        >>> hessian_product(torch.zeros(1), product, probe, beta2=0.75, scale=1.0, skip_nonfinite=True)
        tensor([1.])
    """
    return _average(h, probe * product * scale, beta2, skip_nonfinite)


def hessian_estimate(h: Tensor, d: Tensor, *, beta2: float | Tensor, scale: float, skip_nonfinite: bool) -> Tensor:
    """The average ``h`` with the estimate ``scale * d``.

    Args:
        h, d: the average and an estimate, of one shape and dtype.
        beta2, scale, skip_nonfinite: as of :func:`hessian_square`; ``scale`` is the estimate's.

    Returns:
        The new average.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> hessian_estimate(torch.zeros(1), torch.tensor([4.0]), beta2=0.75, scale=1.0, skip_nonfinite=True)
        tensor([1.])
    """
    return _average(h, d * scale, beta2, skip_nonfinite)


def _average(h: Tensor, d: Tensor, beta2: float | Tensor, skip_nonfinite: bool) -> Tensor:
    new = h * beta2 + d * (1 - beta2)
    return torch.where(new.isfinite(), new, h) if skip_nonfinite else new
