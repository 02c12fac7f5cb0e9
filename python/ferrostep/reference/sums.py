"""What a step knows of all gradients, or of all elements of a tensor, before it changes any, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ferrostep.reference.checks import wide

Sum: TypeAlias = "float | Tensor"
"""A number, or a 0-dim tensor where autograd records it."""

ReferenceSum = Callable[..., Tensor]
"""What a rule sums: ``summed(g, state, **hyperparameters)`` returns the sum over a tensor, in float64."""


def sum_of(
    summed: ReferenceSum,
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor],
    hyperparameters: Mapping[str, Any],
    *,
    factor: Sum = 1.0,
) -> Tensor:
    """What a rule sums over a parameter; the arguments are those of :func:`ferrostep.reference.updates`.

    Args:
        summed: called in float64 for float64 and complex128 parameters, else in float32.
        param, grad: of one shape; complex ones are pairs of real numbers to ``summed``.
        states, hyperparameters: of the rule.
        factor: multiplies the gradient. Default 1.

    Returns:
        A 0-dim tensor, float64.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> p = torch.zeros(2)
        >>> sum_of(lambda g, _: (g**2).sum(), p, torch.tensor([3.0, 4.0]), [], {})
        tensor(25.)
    """
    if param.is_complex():
        grad = torch.view_as_real(grad)
        states = [torch.view_as_real(s) if s.is_complex() else s for s in states]
    work = torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32
    return summed(scaled(grad.to(work), factor), tuple(s.to(work) for s in states), **hyperparameters)


def scaled(g: Tensor, factor: Sum) -> Tensor:
    """A gradient times a factor of its dtype."""
    if isinstance(factor, Tensor):
        return g * factor.to(g)
    return g if factor == 1 else g * factor


def squared_norm(g: Tensor) -> Tensor:
    """The sum of squares of a tensor, real or complex, in float64."""
    return wide(torch.view_as_real(g) if g.is_complex() else g).square().sum()


def power_sum(g: Tensor, order: int) -> Tensor:
    """The sum of the sizes of a tensor's elements (order 1), or of their squares (2), in float64."""
    if order == 2:
        return squared_norm(g)
    return (g.to(torch.complex128) if g.is_complex() else wide(g)).abs().sum()


def total(sums: Iterable[Sum]) -> Sum:
    """The sum of sums, in their order."""
    result: Sum = 0.0
    for each in sums:
        result = result + each
    return result


def norm(squared_norms: Iterable[Sum]) -> Sum:
    """The norm of all tensors together, from the squared norms of each."""
    return total(squared_norms) ** 0.5


def clip_factor(norm: Sum, max_norm: float) -> Sum:
    """What gradients are multiplied by, as torch's ``clip_grad_norm_`` has it; NaN for a norm that is NaN."""
    factor = max_norm / (norm + 1e-6)
    if isinstance(factor, Tensor):
        return factor.clamp(max=1.0)
    return 1.0 if factor > 1 else factor
