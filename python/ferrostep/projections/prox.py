"""Proximal operators of rows: ``argmin_p f(p) + |p - x|^2 / 2``, with exact derivatives.

As :mod:`ferrostep.projections` has it of projections: any shape, float dtype, and order of differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import Problem, wrong_kind
from ferrostep.maps import Parameter
from ferrostep.projections.parameters import number, refuse_where, vector
from ferrostep.reference import checks
from ferrostep.reference import projections as reference

__all__ = [
    "elastic_net",
    "group_lasso",
    "linf",
    "moreau",
    "nonnegative_lasso",
    "nonnegative_ridge",
    "ridge",
    "soft_threshold",
    "sorted_l1",
]


def soft_threshold(x: Tensor, lambd: Parameter = 1.0) -> Tensor:
    """Of ``f = lambd |x|_1``: ``sign(x) max(abs(x) - lambd, 0)``, as ``torch.nn.functional.softshrink``.

    The Jacobian is 1 where the result is not 0.

    Args:
        x: any shape with an element at least.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such that broadcasts with ``x``. Default:
            1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.soft_threshold(torch.tensor([0.75, -1.5, 0.25]), 0.5)
        tensor([ 0.2500, -1.0000,  0.0000])
    """
    return maps.apply("soft_threshold", x, [number("lambd", lambd, x, 0.0)])


def elastic_net(x: Tensor, lambd: Parameter = 1.0, gamma: Parameter = 1.0) -> Tensor:
    """Of ``f = lambd (|x|_1 + gamma |x|^2 / 2)``: the soft threshold over ``1 + lambd gamma``.

    Args:
        x: any shape with an element at least.
        lambd, gamma: finite numbers of at least 0, or tensors of such that broadcast with ``x``. Default: 1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.elastic_net(torch.tensor([0.75, -1.5, 0.25]), 0.5, 2.0)
        tensor([ 0.1250, -0.5000,  0.0000])
    """
    return maps.apply("elastic_net", x, [number("lambd", lambd, x, 0.0), number("gamma", gamma, x, 0.0)])


def ridge(x: Tensor, lambd: Parameter = 1.0) -> Tensor:
    """Of ``f = lambd |x|^2 / 2``: ``x / (1 + lambd)``.

    Args:
        x: any shape with an element at least.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such that broadcasts with ``x``. Default:
            1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.ridge(torch.tensor([0.75, -1.5]), 2.0)
        tensor([ 0.2500, -0.5000])
    """
    return maps.apply("ridge", x, [number("lambd", lambd, x, 0.0)])


def nonnegative_lasso(x: Tensor, lambd: Parameter = 1.0) -> Tensor:
    """Of ``f = lambd |x|_1`` where nothing is negative: ``max(x - lambd, 0)``.

    Args:
        x: any shape with an element at least.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such that broadcasts with ``x``. Default:
            1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.nonnegative_lasso(torch.tensor([0.75, -1.5]), 0.5)
        tensor([0.2500, 0.0000])
    """
    return maps.apply("nonnegative_lasso", x, [number("lambd", lambd, x, 0.0)])


def nonnegative_ridge(x: Tensor, lambd: Parameter = 1.0) -> Tensor:
    """Of ``f = lambd |x|^2 / 2`` where nothing is negative: ``max(x, 0) / (1 + lambd)``.

    Args:
        x: any shape with an element at least.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such that broadcasts with ``x``. Default:
            1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.nonnegative_ridge(torch.tensor([0.75, -1.5]), 2.0)
        tensor([0.2500, 0.0000])
    """
    return maps.apply("nonnegative_ridge", x, [number("lambd", lambd, x, 0.0)])


def group_lasso(x: Tensor, lambd: Parameter = 1.0, groups: Tensor | None = None, dim: int = -1) -> Tensor:
    """Of ``f = lambd |x|_2``, the Euclidean norm of each row or group: ``max(0, 1 - lambd / norm) x``.

    Where the norm is 0, so are the result and the Jacobian.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such: one, or one for each row. Default:
            1.
        groups: int64 of shape (n,), the number of each element's group, from 0 on. Groups go in plain torch. Default:
            None, a row is a group.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite, or ``groups`` of another dtype or shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.group_lasso(torch.tensor([[3.0, -4.0], [0.5, 0.0]]), 2.5)
        tensor([[ 1.5000, -2.0000],
                [ 0.0000,  0.0000]])
        >>> prox.group_lasso(torch.tensor([3.0, 2.0, -4.0]), 2.5, groups=torch.tensor([0, 1, 0]))
        tensor([ 1.5000,  0.0000, -2.0000])
    """
    factor = number("lambd", lambd, x, 0.0, dim=dim)
    if groups is None:
        return maps.apply("group_lasso", x, [factor], dim)
    dim = checks.rows("x", x, dim)
    _check_groups(groups, x.shape[dim])
    groups = groups.unique(return_inverse=True)[1]  # there is a sum for each, whatever its number
    factor = factor.movedim(dim, -1) if isinstance(factor, Tensor) and factor.ndim else factor
    return reference.group_lasso_of(x.movedim(dim, -1), factor, groups).movedim(-1, dim)


def _check_groups(groups: Tensor, size: int) -> None:
    checks.tensor("groups", groups)
    if groups.dtype != torch.int64:
        raise Problem.DTYPE.of("groups", groups.dtype, torch.int64)
    if list(groups.shape) != [size]:
        raise Problem.SHAPE.of("groups", list(groups.shape), f"[{size}]: the group of each element of a row of x")
    if groups.numel() and int(groups.min()) < 0:
        raise Problem.COUNT.of("groups", f"a number {int(groups.min())}", "numbers from 0 on")


def linf(x: Tensor, lambd: Parameter = 1.0, dim: int = -1) -> Tensor:
    """Of ``f = lambd max(abs(x))``: what the projection onto the l1 ball of radius ``lambd`` takes away.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lambd: the factor of f, a finite number of at least 0, or a tensor of such: one, or one for each row. Default:
            1.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``lambd`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.linf(torch.tensor([2.0, -0.5, 1.5]), 1.0)
        tensor([ 1.2500, -0.5000,  1.2500])
    """
    return maps.apply("linf", x, [number("lambd", lambd, x, 0.0, dim=dim)], dim)


def sorted_l1(x: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """Of SLOPE's ``f = sum_i w_i |x|_(i)`` (arXiv 1407.3824), weights and magnitudes from the largest on.

    Isotonic regression of the sorted magnitudes less the weights. The Jacobian takes means over its blocks, with signs.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        w: finite numbers of at least 0 of shape (n,) or that of ``x``, in any order.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``w`` is negative, not finite or of another shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.sorted_l1(torch.tensor([0.75, -1.5, 0.25]), torch.tensor([1.0, 0.5, 0.25]))
        tensor([ 0.2500, -0.5000,  0.0000])
    """
    weights = vector("w", w, x, dim)
    refuse_where("w", weights < 0, "a negative number")
    return maps.apply("sorted_l1", x, [weights], dim)


def moreau(prox: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The proximal operator of the convex conjugate of f, by that of f: ``x - prox(x)`` (Moreau 1965).

    Args:
        prox: a proximal operator or a projection, whose first argument is a tensor of any shape and dtype.

    Returns:
        A function with the arguments of ``prox``.

    Raises:
        TypeError: ``prox`` is not callable.

    Example:
        >>> import torch
        >>> from ferrostep.projections import prox
        >>> prox.moreau(prox.soft_threshold)(torch.tensor([0.75, -1.5, 0.25]), 0.5)
        tensor([ 0.5000, -0.5000,  0.2500])
    """
    if not callable(prox):
        raise wrong_kind("prox", prox, "a function")

    @wraps(prox)
    def conjugate(x: Tensor, *parameters: Any, **named: Any) -> Tensor:
        return x - prox(x, *parameters, **named)

    return conjugate
