"""Lion in plain torch (Chen et al. 2023, arXiv 2302.06675, Algorithm 2)."""

from __future__ import annotations

from torch import Tensor


def lion(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    weight_decay: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Lion for one parameter, as :class:`ferrostep.optim.Lion`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg,)``.
        step: not used.
        lr, beta1, beta2, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}
        >>> lion(torch.ones(2), torch.tensor([0.5, -2.0]), (torch.zeros(2),), 1, lr=0.1, **options)
        (tensor([0.9000, 1.1000]), (tensor([ 0.0050, -0.0200]),))
    """
    (m,) = state
    if maximize:
        g = -g
    u = (m * beta1 + g * (1 - beta1)).sign()
    return p * (1 - lr * weight_decay) - u * lr, (m * beta2 + g * (1 - beta2),)
