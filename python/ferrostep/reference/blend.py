"""A linear combination of the parameter and what comes as its gradient, in plain torch."""

from __future__ import annotations

from torch import Tensor


def blend(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, *, of_param: float, of_grad: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``of_param * p + of_grad * g``.

    Args:
        p, g: of one shape and dtype.
        state: none.
        step: not used.
        of_param, of_grad: the factors.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> blend(torch.ones(2), torch.ones(2), (), 1, of_param=2.0, of_grad=-0.5)[0]
        tensor([1.5000, 1.5000])
    """
    return p * of_param + g * of_grad, state
