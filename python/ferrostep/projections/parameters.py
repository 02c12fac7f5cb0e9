"""Checks of the parameters of projections, which are numbers or tensors."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import NAMED_FLOATS, Problem
from ferrostep.maps import Parameter
from ferrostep.numpy.arrays import real
from ferrostep.reference import checks


def number(name: str, value: Parameter, x: Tensor, low: float = -math.inf, *, dim: int | None = None) -> Parameter:
    """A finite number of at least ``low``, or a tensor of such that broadcasts with ``x``; of rows, one for each."""
    if not isinstance(value, Tensor):
        return real(name, value, low)
    _check_tensor(name, value, x)
    if dim is not None and value.ndim and not (value.ndim == x.ndim and value.shape[dim] == 1):
        expected = f"[], or {x.ndim} dimensions with 1 element along dim {dim}"
        raise Problem.SHAPE.of(name, list(value.shape), expected)
    refuse_where(name, ~value.isfinite(), "a number that is not finite")
    refuse_where(name, value < low, f"a number below {low:g}")
    return value


def bound(name: str, value: Parameter, x: Tensor) -> Parameter:
    """A number but NaN, or a tensor of such that broadcasts with ``x``."""
    if not isinstance(value, Tensor):
        return float(value) if isinstance(value, Real) and math.isinf(value) else real(name, value, -math.inf)
    _check_tensor(name, value, x)
    refuse_where(name, value.isnan(), "a NaN")
    return value


def vector(name: str, value: Parameter, x: Tensor, dim: int) -> Tensor:
    """A finite number for each element of the rows along ``dim``: those of a tensor, or one number for all."""
    size = x.shape[checks.rows("x", x, dim)]
    if not isinstance(value, Tensor):
        return x.new_full((size,), real(name, value, -math.inf), dtype=torch.float64)
    _check_tensor(name, value, x.movedim(dim, -1) if value.ndim == 1 else x)
    if value.ndim not in (1, x.ndim) or value.shape[dim if value.ndim == x.ndim else 0] != size:
        raise Problem.SHAPE.of(name, list(value.shape), f"[{size}]: one number for each element of a row of x")
    refuse_where(name, ~value.isfinite(), "a number that is not finite")
    return value


def refuse_where(name: str, wrong: Tensor, what: str) -> None:
    """Raise ValueError where any number of a tensor is wrong, if it may be looked at."""
    if maps.is_concrete(wrong) and bool(wrong.any()):
        raise Problem.COUNT.of(name, what, "none")


def _check_tensor(name: str, value: Tensor, x: Tensor) -> None:
    checks.tensor("x", x)
    if value.dtype not in checks.FLOATS:
        raise Problem.DTYPE.of(name, value.dtype, NAMED_FLOATS)
    if value.device != x.device:
        raise Problem.DEVICE.of(name, value.device, x.device)
    try:
        value.expand(x.shape)
    except RuntimeError:
        raise Problem.SHAPE.of(name, list(value.shape), f"one that broadcasts to {list(x.shape)}, as x has") from None
