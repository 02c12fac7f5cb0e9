"""Steps of rows that sum up to 1, in plain torch: the entropic map of mirror descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ferrostep.reference.engine import ReferenceRule


def on_simplex(rule: ReferenceRule) -> ReferenceRule:
    """The rule for parameters of which the rows along ``simplex_dim``, one more hyperparameter, sum up to 1.

    Each number is multiplied by the exponential of what the rule, which subtracts, makes of a zero, and the row divided
    by its sum. A 0 stays 0, and nothing else becomes one.

    Args:
        rule: of the elements, without weight decay; shapes and dtypes are its own.

    Returns:
        The rule of the rows.

    Raises:
        IndexError: as the rule that is returned, for a ``simplex_dim`` that the parameter has not.

    Example:
        >>> def descent(p, g, state, step, *, lr):
        ...     return p - lr * g, state
        >>> half, g = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
        >>> on_simplex(descent)(half, g, (), 1, lr=1.0, simplex_dim=0)[0]
        tensor([0.2689, 0.7311])
    """

    def of_rows(
        p: Tensor, g: Tensor, state: tuple[Tensor, ...], step: float, *, simplex_dim: int, **hyperparameters: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        move, state = rule(torch.zeros_like(p), g, state, step, **hyperparameters)
        if p.numel() == 0:
            return p, state
        top = move.masked_fill(p == 0, -torch.inf).amax(simplex_dim, keepdim=True)
        new = p * (move - top).exp()
        new = torch.where(p == 0, p, new.clamp(min=torch.finfo(p.dtype).smallest_normal))
        return new / new.sum(simplex_dim, keepdim=True), state

    return of_rows
