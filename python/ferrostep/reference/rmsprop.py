"""RMSprop in plain torch (Tieleman and Hinton 2012, lecture 6e; centered: arXiv 1308.0850, equation 40)."""

from __future__ import annotations

from torch import Tensor

from ferrostep.reference.terms import penalized


def rmsprop(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """RMSprop for one parameter, as :class:`ferrostep.optim.RMSprop`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``square_avg``, with a momentum ``momentum_buffer``, and if centered ``grad_avg``.
        step: not used.
        lr, alpha, eps, weight_decay, momentum, centered, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False, "maximize": False}
        >>> rmsprop(torch.ones(2), torch.tensor([0.5, -2.0]), (torch.zeros(2),), 1, lr=0.1, alpha=0.75, **options)
        (tensor([0.8000, 1.2000]), (tensor([0.0625, 1.0000]),))
    """
    square, *others = state
    g = penalized(p, g, weight_decay, maximize)
    square = square * alpha + g * (1 - alpha) * g
    variance, mean = square, []
    if centered:
        mean = [others[-1] * alpha + g * (1 - alpha)]
        variance = (square - mean[0] * mean[0]).clamp_min(0.0)
    scaled = g / (variance.sqrt() + eps)
    if momentum == 0:
        return p - scaled * lr, (square, *mean)
    m = others[0] * momentum + scaled
    return p - m * lr, (square, m, *mean)
