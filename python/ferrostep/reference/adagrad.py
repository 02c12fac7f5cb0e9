"""Adagrad in plain torch (Duchi, Hazan and Singer 2011, JMLR 12, the diagonal form)."""

from __future__ import annotations

from torch import Tensor

from ferrostep.reference.terms import penalized


def adagrad(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Adagrad for one parameter, as :class:`ferrostep.optim.Adagrad`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(sum,)``.
        step: counted from 1.
        lr, lr_decay, weight_decay, eps, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10, "maximize": False}
        >>> adagrad(torch.ones(2), torch.tensor([0.5, -2.0]), (torch.zeros(2),), 1, lr=0.1, **options)
        (tensor([0.9000, 1.1000]), (tensor([0.2500, 4.0000]),))
    """
    (total,) = state
    g = penalized(p, g, weight_decay, maximize)
    total = total + g * g
    return p - g * (lr / (1 + (step - 1) * lr_decay)) / (total.sqrt() + eps), (total,)
