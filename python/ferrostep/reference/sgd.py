"""Gradient descent with momentum in plain torch (Polyak 1964, Sutskever et al. 2013), as torch.optim.SGD."""

from __future__ import annotations

from torch import Tensor

from ferrostep.reference.terms import penalized


def sgd(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    ema_init: bool,
    maximize: bool,
    begins: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradient descent for one parameter, as :class:`ferrostep.optim.SGD`.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(momentum_buffer,)``, or nothing, and momentum plays no part.
        step: not used.
        lr, momentum, dampening, weight_decay, nesterov, ema_init, maximize: hyperparameters.
        begins: the momentum has no past: it becomes the gradient, unless ``ema_init``.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"weight_decay": 0.0, "nesterov": False, "ema_init": False, "maximize": False, "begins": True}
        >>> p, g, m = torch.ones(2), torch.tensor([0.5, -2.0]), torch.zeros(2)
        >>> sgd(p, g, (m,), 1, lr=0.1, momentum=0.9, dampening=0.5, **options)
        (tensor([0.9500, 1.2000]), (tensor([ 0.5000, -2.0000]),))
    """
    g = penalized(p, g, weight_decay, maximize)
    if not state:
        return p - g * lr, ()
    (m,) = state
    m = g if begins and not ema_init else m * momentum + g * (1 - dampening)
    return p - (g + m * momentum if nesterov else m) * lr, (m,)
