"""The ascent of sharpness-aware minimization in plain torch (arXiv 2010.01412 and 2102.11600)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ferrostep.reference.sums import Sum, squared_norm


def ascent(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, total: Sum, *, rho: float, adaptive: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The point at distance ``rho`` of the weights in the direction of the gradient, as :class:`ferrostep.optim.SAM`.

    Args:
        p, g: the parameter, whose values do not count, and the gradient at the weights, of one shape and dtype.
        state: ``(old_p,)``, the weights.
        step: not used.
        total: the sum over all parameters of the squares of the gradient, times the weight with ``adaptive``.
        rho: the distance.
        adaptive: whether directions scale with the weights (ASAM).

    Returns:
        The point, and the state as it was.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> w, g = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> ascent(w, g, (w,), 1, 25.0, rho=0.5, adaptive=False)[0]
        tensor([1.3000, 2.4000])
    """
    (w,) = state
    scale = rho / (total**0.5 + 1e-12)
    if isinstance(scale, Tensor):
        scale = scale.to(w)
    return w + (w * w * g if adaptive else g) * scale, state


def ascent_sum(g: Tensor, state: tuple[Tensor, ...], *, adaptive: bool, **_hyperparameters: Any) -> Tensor:
    """What :func:`ascent` is to know of each tensor.

    Args:
        g, state, adaptive: as of :func:`ascent`.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> ascent_sum(torch.tensor([3.0, 4.0]), (torch.tensor([1.0, 2.0]),), adaptive=True)
        tensor(73., dtype=torch.float64)
    """
    (w,) = state
    return squared_norm(w * g if adaptive else g)
