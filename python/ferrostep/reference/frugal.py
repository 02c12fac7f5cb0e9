"""FRUGAL in plain torch (Zmushko et al. 2024, arXiv 2411.07837, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep.reference.terms import adams_direction, moments


def sign_descent(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, *, lr: float, weight_decay: float, maximize: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A step along the gradient's sign for one parameter, with decoupled decay.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state, step: nothing, and not used.
        lr, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> sign_descent(torch.ones(2), torch.tensor([3.0, -2.0]), (), 1, lr=0.5, weight_decay=0.0, maximize=False)[0]
        tensor([0.5000, 1.5000])
    """
    return p * (1 - lr * weight_decay) - (-g if maximize else g).sign() * lr, state


def descent(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, *, lr: float, weight_decay: float, maximize: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A step along the gradient for one parameter, with decoupled decay.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state, step: nothing, and not used.
        lr, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> descent(torch.ones(2), torch.tensor([1.0, -2.0]), (), 1, lr=0.5, weight_decay=0.0, maximize=False)[0]
        tensor([0.5000, 2.0000])
    """
    return p * (1 - lr * weight_decay) - (-g if maximize else g) * lr, state


def only_decay(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, *, lr: float, weight_decay: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """No step but decoupled decay, for one parameter.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype; the gradient plays no part.
        state, step: nothing, and not used.
        lr, weight_decay: hyperparameters.

    Returns:
        The new parameter and the state.

    Raises:
        RuntimeError: never.

    Example:
        >>> only_decay(torch.ones(2), torch.ones(2), (), 1, lr=0.5, weight_decay=0.5)[0]
        tensor([0.7500, 0.7500])
    """
    return p * (1 - lr * weight_decay), state


def averaged_descent(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float,
    beta1: float,
    weight_decay: float,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A step along an average of gradients for one parameter, with decoupled decay.

    Args:
        p, g: the parameter and its gradient, of one shape and dtype.
        state: ``(exp_avg,)``.
        step: not used.
        lr, beta1, weight_decay, maximize: hyperparameters.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> options = {"beta1": 0.5, "weight_decay": 0.0, "maximize": False}
        >>> averaged_descent(torch.ones(2), torch.tensor([1.0, -2.0]), (torch.zeros(2),), 1, lr=0.5, **options)[0]
        tensor([0.7500, 1.5000])
    """
    (m,) = state
    m = m * beta1 + (-g if maximize else g) * (1 - beta1)
    return p * (1 - lr * weight_decay) - m * lr, (m,)


def frugal(
    p: Tensor,
    g: Tensor,
    state: tuple[Tensor, ...],
    step: float,
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    inner: str,
    state_free: str,
    state_free_lr_scale: float,
    projected_lr_scale: float,
    selection: str,
    proj_side: str,
    maximize: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """FRUGAL for one parameter of which some elements have states, as :class:`ferrostep.optim.FRUGAL`.

    Args:
        p, g: the parameter and its gradient, of one shape of 2 or more dimensions, and of one dtype.
        state: those of the inner rule, of the selected elements, and which these are: int32 numbers of rows or
            columns; for ``"randk"`` a bit of uint8 numbers for each element, the lowest first; for ``"svd"`` and
            ``"random"`` orthonormal rows, of as many elements as g has columns, or columns if that is the side.
        step: counted from 1 since the selection.
        lr, beta1, beta2, eps, weight_decay, maximize: hyperparameters.
        inner, state_free, state_free_lr_scale, projected_lr_scale, selection, proj_side: as the class.

    Returns:
        The new parameter and the new state.

    Raises:
        RuntimeError, IndexError: shapes or numbers that do not go together, as torch.

    Example:
        >>> p, g, zeros = torch.zeros(1, 2), torch.tensor([[0.1, -3.0]]), torch.zeros(1, 1)
        >>> options = {"beta1": 0.9, "beta2": 0.99, "eps": 0.0, "weight_decay": 0.0, "inner": "adamw"}
        >>> scales = {"state_free": "sign", "state_free_lr_scale": 0.5, "projected_lr_scale": 1.0}
        >>> state = zeros, zeros, torch.tensor([1], dtype=torch.int32)
        >>> options |= {"selection": "columns", "proj_side": "std", "maximize": False}
        >>> frugal(p, g, state, 1, lr=0.5, **options, **scales)[0]
        tensor([[-0.2500,  0.5000]])
    """
    *averages, chosen = state
    g = (-g if maximize else g).flatten(1)
    decayed = (p * (1 - lr * weight_decay)).reshape(g.shape)
    rate, own_rate = lr * projected_lr_scale, lr * projected_lr_scale * state_free_lr_scale
    if selection in ("svd", "random"):
        is_right = is_of_rows(g.shape[0], g.shape[1], proj_side)
        low = down(g, chosen, is_right)
        direction, new = inner_direction(inner, low, averages, step, beta1=beta1, beta2=beta2, eps=eps)
        others = decayed - free_direction(state_free, residual(g, up(low, chosen, is_right))) * own_rate
        return (others - up(direction, chosen, is_right) * rate).reshape(p.shape), (*new, chosen)
    dim, places, shape = int(selection == "columns"), chosen, list(g.shape)
    if selection == "randk":
        places, shape = set_bits(chosen, g.numel()), [-1]
    selected = g.reshape(shape).index_select(dim, places)
    direction, new = inner_direction(inner, selected, averages, step, beta1=beta1, beta2=beta2, eps=eps)
    stepped = decayed.reshape(shape).index_select(dim, places) - direction * rate
    others = (decayed - free_direction(state_free, g) * own_rate).reshape(shape)
    return others.index_copy(dim, places.long(), stepped).reshape(p.shape), (*new, chosen)


def free_direction(state_free: str, g: Tensor) -> Tensor:
    """What the rule without states subtracts at a learning rate of 1."""
    if state_free == "none":
        return torch.zeros_like(g)
    return g.sign() if state_free == "sign" else g


def inner_direction(
    inner: str,
    g: Tensor,
    averages: list[Tensor],
    step: float,
    *,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What the inner rule subtracts at a learning rate of 1, and its new states."""
    if inner == "adamw":
        m, v = moments(averages[0], averages[1], g, beta1=beta1, beta2=beta2)
        return adams_direction(m, v, step, beta1=beta1, beta2=beta2, eps=eps), (m, v)
    average = averages[0] * beta1 + g * (1 - beta1)
    if inner == "sgdm":
        return average, (average,)
    return average.sign(), (averages[0] * beta2 + g * (1 - beta2),)


def set_bits(numbers: Tensor, count: int) -> Tensor:
    """The places of the bits that are set in uint8 numbers, among the first ``count``."""
    bits = numbers[:, None] >> torch.arange(8, dtype=torch.uint8, device=numbers.device) & 1
    return bits.reshape(-1)[:count].nonzero().reshape(-1)


def is_of_rows(rows: int, columns: int, side: str) -> bool:
    """Whether a basis is one of rows, on the right of a matrix, or of columns, on its left.

    ``"std"`` takes the smaller side, ``"reverse_std"`` the other one.
    """
    return {"std": rows >= columns, "reverse_std": rows < columns}.get(side, side == "right")


def down(g: Tensor, basis: Tensor, is_right: bool) -> Tensor:
    """A matrix in the coordinates of a basis of its rows, or of its columns."""
    return g @ basis.mT if is_right else basis.mT @ g


def up(low: Tensor, basis: Tensor, is_right: bool) -> Tensor:
    """The inverse of :func:`down`."""
    return low @ basis if is_right else basis @ low


def residual(g: Tensor, part: Tensor) -> Tensor:
    """What a basis does not hold of a matrix; what is within the roundings of the products is 0."""
    rest = g - part
    least = g.abs().amax() * (4 * torch.finfo(g.dtype).eps * max(g.shape) ** 0.5) if g.numel() else 0.0
    return torch.where(rest.abs() <= least, 0.0, rest)


def top_directions(g: Tensor, rank: int, generator: torch.Generator, is_right: bool) -> Tensor:
    """An orthonormal basis of nearly the ``rank`` first singular directions of a matrix, as :func:`down` takes it.

    A randomized range finder with subspace iterations (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, Algorithm
    4.4), on the Gram matrix of the side, in the place of a singular value decomposition.
    """
    gram = g.mT @ g if is_right else g @ g.mT
    sketch: Tensor = random_directions(len(gram), min(rank + rank // 4 + 8, len(gram)), generator).to(g)
    for _ in range(ITERATIONS):
        sketch = torch.linalg.qr(gram @ (gram @ sketch)).Q
    directions: Tensor = sketch @ torch.linalg.eigh(sketch.mT @ gram @ sketch).eigenvectors.flip(1)[:, :rank]
    return directions.mT.contiguous() if is_right else directions.contiguous()


def random_directions(of: int, rank: int, generator: torch.Generator) -> Tensor:
    """So many orthonormal columns at random, in float64."""
    directions: Tensor = torch.linalg.qr(torch.randn(of, rank, dtype=torch.float64, generator=generator)).Q
    return directions


ITERATIONS = 3
"""Of the subspace, twice along the Gram matrix each: with a fourth of the directions more than are asked for, that
holds 99 % of what the exact one does even of white noise, where there is least to find."""
