"""STORM in plain torch (Cutkosky and Orabona 2019, arXiv 1905.10018; (N-)HARPG, arXiv 2302.01734)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ferrostep.reference.nigt import scale_of
from ferrostep.reference.sums import Sum, squared_norm


def storm(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eta: float,
    difference: bool,
    maximize: bool,
    begins: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """STORM with steps of length ``lr`` for one parameter, as :class:`ferrostep.optim.STORM`.

    Args:
        p, g: parameter and gradient of one shape and dtype.
        state: ``(momentum_buffer, transport)``; the latter is the gradient at the point before with ``difference``,
            else the product of the Hessian with the way from there.
        step: not used.
        total: the sum over the tensor, or over all, of the squares of the new momentum.
        lr, weight_decay, maximize: hyperparameters.
        eta: the gradient's share in the momentum.
        difference: see ``state``.
        begins: whether the momentum has no past.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> p, g, state = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), (torch.zeros(2), torch.zeros(2))
        >>> options = {"eta": 0.5, "difference": True, "maximize": False, "begins": True}
        >>> storm(p, g, state, 1, 25.0, lr=0.5, weight_decay=0.0, **options)[0]
        tensor([0.7000, 1.6000])
    """
    d = _momentum(g, state, eta, difference, maximize, begins)
    return _moved(p, d, scale_of(total, lr), lr * weight_decay), (d, state[1])


def storm_plain(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eta: float,
    difference: bool,
    maximize: bool,
    begins: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """STORM with steps of ``lr`` times the momentum.

    Args:
        p, g, state, step, lr, weight_decay, eta, difference, maximize, begins: as of :func:`storm`, of one shape and
            dtype.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> p, g, state = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), (torch.zeros(2), torch.zeros(2))
        >>> options = {"eta": 0.5, "difference": True, "maximize": False, "begins": True}
        >>> storm_plain(p, g, state, 1, lr=0.1, weight_decay=0.0, **options)[0]
        tensor([0.7000, 1.6000])
    """
    d = _momentum(g, state, eta, difference, maximize, begins)
    return _moved(p, d, lr, lr * weight_decay), (d, state[1])


def storm_adaptive(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    total: Sum,
    *,
    lr: float | Tensor,
    weight_decay: float,
    eta: float,
    difference: bool,
    maximize: bool,
    accumulated: float,
    begins: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """STORM with the paper's steps: of the momentum times ``lr / cbrt(accumulated + total)``.

    Args:
        p, g, state, step, lr, weight_decay, eta, difference, maximize, begins: as of :func:`storm`, of one shape and
            dtype.
        total: the sum over all parameters of the squares of the gradient.
        accumulated: that of the steps before, and what it began with.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> p, g, state = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), (torch.zeros(2), torch.zeros(2))
        >>> options = {"eta": 0.5, "difference": True, "maximize": False, "accumulated": 2.0, "begins": True}
        >>> storm_adaptive(p, g, state, 1, 25.0, lr=0.3, weight_decay=0.0, **options)[0]
        tensor([0.7000, 1.6000])
    """
    d = _momentum(g, state, eta, difference, maximize, begins)
    rate = rate_of(total, lr, accumulated)
    return _moved(p, d, rate, rate * weight_decay), (d, state[1])


def storm_sum(
    g: Tensor,
    state: tuple[Tensor, ...],
    *,
    eta: float,
    difference: bool,
    maximize: bool,
    begins: bool,
    **_hyperparameters: Any,
) -> Tensor:
    """What :func:`storm` is to know of each tensor: the squared norm of the new momentum.

    Args:
        g, state, eta, difference, maximize, begins: as of :func:`storm`.
        **_hyperparameters: not used.

    Returns:
        A 0-dim tensor, float64.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> import torch
        >>> options = {"eta": 0.5, "difference": True, "maximize": False, "begins": True}
        >>> storm_sum(torch.tensor([3.0, 4.0]), (torch.zeros(2), torch.zeros(2)), **options)
        tensor(25., dtype=torch.float64)
    """
    return squared_norm(_momentum(g, state, eta, difference, maximize, begins))


def storm_adaptive_sum(g: Tensor, state: tuple[Tensor, ...], **_hyperparameters: Any) -> Tensor:
    """What :func:`storm_adaptive` is to know of each tensor: the squared norm of the gradient.

    Args:
        g: the gradient, of any shape.
        state: not used.
        **_hyperparameters: not used.

    Returns:
        A 0-dim tensor, float64.

    Raises:
        RuntimeError: nothing.

    Example:
        >>> import torch
        >>> storm_adaptive_sum(torch.tensor([3.0, 4.0]), ())
        tensor(25., dtype=torch.float64)
    """
    return squared_norm(g)


def _momentum(
    g: Tensor, state: tuple[Tensor, ...], eta: float, difference: bool, maximize: bool, begins: bool
) -> Tensor:
    d, transport = state
    if maximize:
        g, transport = -g, -transport
    if begins:
        return g
    # The momentum at the point before, carried to this one, and the new gradient's share.
    return (d - transport) * (1 - eta) + g if difference else (d + transport) * (1 - eta) + g * eta


def _moved(p: Tensor, d: Tensor, scale: Sum, decay: float | Tensor) -> Tensor:
    factors = (x.to(p) if isinstance(x, Tensor) else x for x in (scale, decay))
    scale, decay = factors
    return p * (1 - decay) - scale * d


def rate_of(total: Sum, lr: float | Tensor, accumulated: float) -> Sum:
    """What multiplies the momentum in the paper's step."""
    return lr / (accumulated + total) ** (1 / 3)


def point_before(scale: float, decay: float) -> tuple[float, float]:
    """What multiplies the parameter and the momentum in the point before a step of ``-scale * d - decay * x``."""
    return 1 / (1 - decay), scale / (1 - decay)


def point_between(of_param: float, of_momentum: float, q: float) -> tuple[float, float]:
    """The same in the point that is ``q`` of the way from there to the parameter."""
    return q + (1 - q) * of_param, (1 - q) * of_momentum


def way(of_param: float, of_momentum: float) -> tuple[float, float]:
    """The same in that way."""
    return 1 - of_param, -of_momentum


def shares(schedule: str | None, momentum: float, t: int) -> tuple[float, float]:
    """What multiplies the learning rate in step t, from 0, and the gradient's share in it."""
    share = 2 / (t + 2)
    factors = {"n-harpg": share, "harpg": share**0.5}
    return (factors[schedule], share) if schedule in factors else (1.0, 1 - momentum)


def adaptive_share(lr: float, c: float, accumulated: float) -> float:
    """With the paper's schedule, the gradient's share that follows from the sum up to the step before."""
    return min(1.0, c * float(rate_of(0.0, lr, accumulated)) ** 2)
