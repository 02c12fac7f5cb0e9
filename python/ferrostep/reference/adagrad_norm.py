"""AdaGrad-Norm in plain torch (Ward, Wu and Bottou 2019, arXiv 1806.01811)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ferrostep.reference.sums import Sum, squared_norm


def adagrad_norm(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum,
    *,
    lr: float | Tensor,
    eps: float,
    weight_decay: float,
    accumulated: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """AdaGrad-Norm for one parameter, as :class:`ferrostep.optim.AdaGradNorm`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: none.
        step: not used.
        total: the squared norm of the gradients of this step, a number or a 0-dim tensor.
        lr, eps, weight_decay, maximize: hyperparameters.
        accumulated: the squared norms of earlier steps.

    Returns:
        The new parameter and no state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"lr": 0.5, "eps": 0.0, "weight_decay": 0.0, "accumulated": 0.0, "maximize": False}
        >>> adagrad_norm(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]), (), 1, 25.0, **options)[0]
        tensor([0.7000, 2.0000])
    """
    step_size = lr / ((accumulated + total) ** 0.5 + eps)
    if maximize:
        step_size = -step_size
    if isinstance(step_size, Tensor):
        step_size = step_size.to(p)
    return p * (1 - lr * weight_decay) - g * step_size, state


def adagrad_norm_sum(g: Tensor, state: tuple[Tensor, ...], **_hyperparameters: Any) -> Tensor:
    """What :func:`adagrad_norm` is to know of each gradient: its squared norm.

    Args:
        g: the gradient.
        state: none.

    Raises:
        RuntimeError: no tensor of numbers, as torch.

    Example:
        >>> import torch
        >>> adagrad_norm_sum(torch.tensor([3.0, 4.0]), ())
        tensor(25., dtype=torch.float64)
    """
    return squared_norm(g)
