"""NIGT in plain torch (Cutkosky and Mehta 2020, arXiv 2002.03305; N-PG-IGT, arXiv 2302.01734)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ferrostep.reference.sums import Sum, squared_norm


def nigt(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eta: float,
    next_eta: float,
    of_param: float,
    of_momentum: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """NIGT for one parameter, as :class:`ferrostep.optim.NIGT`.

    Args:
        p, g: the transported point z and the gradient there, of one shape and dtype.
        state: ``(momentum_buffer,)``.
        step: not used.
        total: the sum over the tensor, or over all, of the squares of the new momentum.
        lr, weight_decay, maximize: hyperparameters.
        eta: the gradient's share in the momentum, with which z was made.
        next_eta: that of the next step.
        of_param, of_momentum: what multiplies z and the momentum in x.

    Returns:
        The new z and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"eta": 1.0, "next_eta": 0.5, "of_param": 1.0, "of_momentum": 0.0, "maximize": False}
        >>> z, g = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> nigt(z, g, (torch.zeros(2),), 1, 25.0, lr=0.5, weight_decay=0.0, **options)
        (tensor([0.4000, 1.2000]), (tensor([3., 4.]),))
    """
    (d,) = state
    x = p * of_param + d * of_momentum
    d = _momentum(g, d, eta, maximize)
    scale = scale_of(total, lr)
    if isinstance(scale, Tensor):
        scale = scale.to(p)
    displacement = -scale * d - lr * weight_decay * x
    # x + displacement is the new x, and z is (1 - next_eta) / next_eta of the displacement further.
    return x + displacement / next_eta, (d,)


def nigt_sum(g: Tensor, state: tuple[Tensor, ...], *, eta: float, maximize: bool, **_hyperparameters: Any) -> Tensor:
    """What :func:`nigt` is to know of each tensor: the squared norm of the new momentum.

    Args:
        g: the gradient.
        state: ``(momentum_buffer,)``.
        eta, maximize: as of :func:`nigt`.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> nigt_sum(torch.tensor([3.0, 4.0]), (torch.zeros(2),), eta=1.0, maximize=False)
        tensor(25., dtype=torch.float64)
    """
    (d,) = state
    return squared_norm(_momentum(g, d, eta, maximize))


def _momentum(g: Tensor, d: Tensor, eta: float, maximize: bool) -> Tensor:
    return d * (1 - eta) + (-g if maximize else g) * eta


def scale_of(total: Sum, lr: float | Tensor) -> Sum:
    """What makes the momentum's norm ``lr``; 0 for a momentum of zeros."""
    return lr / total**0.5 if total != 0 else 0.0


def point_of(scale: float, lr: float, weight_decay: float, eta: float) -> tuple[float, float]:
    """What multiplies z and the momentum in the point x, after a step that ``eta`` was the next one's share of.

    With x = x' - q x' - s d and z = x + (1 - eta) / eta (x - x'), where x' is the point before: solved for x.
    """
    decay = lr * weight_decay
    return (1 - decay) / (1 - decay / eta), scale * (1 - eta) / (eta - decay)


def scheduled(t: int) -> tuple[float, float]:
    """Of N-PG-IGT, the gradient's share in step t, from 0, and what multiplies the learning rate."""
    share = 2 / (t + 2)
    return share**0.8, share


def shares(schedule: str | None, momentum: float, t: int) -> tuple[float, float]:
    """What multiplies the learning rate in step t, from 0, and the gradient's share in the next step."""
    if schedule is None:
        return 1.0, 1 - momentum
    return scheduled(t)[1], scheduled(t + 1)[0]


def inverse(of_param: float, of_momentum: float) -> tuple[float, float]:
    """What multiplies x and the momentum in z, from what multiplies z and the momentum in x."""
    return 1 / of_param, -of_momentum / of_param
