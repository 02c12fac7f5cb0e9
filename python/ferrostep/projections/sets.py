"""Euclidean projections of rows onto simplices, balls and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import Problem
from ferrostep.maps import Parameter
from ferrostep.projections.parameters import bound, number, refuse_where


def simplex(x: Tensor, s: Parameter = 1.0, dim: int = -1) -> Tensor:
    """The nearest rows of nonnegative numbers with the sum ``s``: ``max(x - tau, 0)``, each with its own ``tau``.

    With ``s=1`` this is sparsemax (arXiv 1602.02068). The Jacobian's product with ``v`` is, where the result is
    positive, ``v`` without its mean there; 0 elsewhere. That by ``s`` shares 1 among the same.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1. Infinite numbers share ``s`` among them; a NaN makes
            its row NaN.
        s: the sum, a finite number of at least 0, or a tensor of such: one, or one for each row. Default: 1.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``s`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import simplex
        >>> simplex(torch.tensor([[0.5, 1.25, -0.25, 0.75], [3.0, 3.0, 0.0, 1.0]]))
        tensor([[0.0000, 0.7500, 0.0000, 0.2500],
                [0.5000, 0.5000, 0.0000, 0.0000]])
    """
    return maps.apply("simplex", x, [number("s", s, x, 0.0, dim=dim)], dim)


def simplex_(x: Tensor, s: Parameter = 1.0, dim: int = -1) -> Tensor:
    """:func:`simplex` in place, not recorded by autograd.

    Args:
        x, s, dim: as of :func:`simplex`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`simplex`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import simplex_
        >>> weights = torch.nn.Parameter(torch.tensor([2.0, 1.5, -1.0]))
        >>> simplex_(weights, s=2.0)
        Parameter containing:
        tensor([1.2500, 0.7500, 0.0000], requires_grad=True)
    """
    return maps.apply_("simplex", x, [number("s", s, x, 0.0, dim=dim)], dim)


def l1_ball(x: Tensor, r: Parameter = 1.0, dim: int = -1) -> Tensor:
    """The nearest rows with at most ``r`` as the sum of magnitudes.

    Rows outside go to ``sign(x) max(abs(x) - tau, 0)`` (Duchi et al., ICML 2008). The Jacobian is the simplex', with
    the signs of the result.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1. Infinite numbers share ``r`` among them; a NaN makes
            its row NaN.
        r: the radius, a finite number of at least 0, or a tensor of such: one, or one for each row. Default: 1.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``r`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import l1_ball
        >>> l1_ball(torch.tensor([[0.75, -1.5, 0.0, 0.25], [0.5, 0.0, 0.0, -0.25]]), 1.5)
        tensor([[ 0.3750, -1.1250,  0.0000,  0.0000],
                [ 0.5000,  0.0000,  0.0000, -0.2500]])
    """
    return maps.apply("l1_ball", x, [number("r", r, x, 0.0, dim=dim)], dim)


def l1_ball_(x: Tensor, r: Parameter = 1.0, dim: int = -1) -> Tensor:
    """:func:`l1_ball` in place, not recorded by autograd.

    Args:
        x, r, dim: as of :func:`l1_ball`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`l1_ball`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import l1_ball_
        >>> l1_ball_(torch.tensor([2.0, -1.5]))
        tensor([ 0.7500, -0.2500])
    """
    return maps.apply_("l1_ball", x, [number("r", r, x, 0.0, dim=dim)], dim)


def l2_ball(x: Tensor, r: Parameter = 1.0, dim: int = -1) -> Tensor:
    """The nearest rows with a Euclidean norm of at most ``r``.

    Rows outside are scaled to the norm ``r``. The Jacobian's product with ``v`` is ``r / norm`` times the part of ``v``
    across ``x``.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1. Infinite numbers share ``r`` among them; a NaN makes
            its row NaN.
        r: the radius, a finite number of at least 0, or a tensor of such: one, or one for each row. Default: 1.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``r`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import l2_ball
        >>> l2_ball(torch.tensor([[3.0, -4.0], [0.5, 0.0]]))
        tensor([[ 0.6000, -0.8000],
                [ 0.5000,  0.0000]])
    """
    return maps.apply("l2_ball", x, [number("r", r, x, 0.0, dim=dim)], dim)


def l2_ball_(x: Tensor, r: Parameter = 1.0, dim: int = -1) -> Tensor:
    """:func:`l2_ball` in place, not recorded by autograd.

    Args:
        x, r, dim: as of :func:`l2_ball`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`l2_ball`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import l2_ball_
        >>> l2_ball_(torch.tensor([0.0, -8.0]), r=2.0)
        tensor([ 0., -2.])
    """
    return maps.apply_("l2_ball", x, [number("r", r, x, 0.0, dim=dim)], dim)


def linf_ball(x: Tensor, r: Parameter = 1.0) -> Tensor:
    """The nearest numbers from ``-r`` to ``r``, each by itself.

    The Jacobian is 1 between the bounds, 0 elsewhere.

    Args:
        x: any shape with an element at least.
        r: the radius, a finite number of at least 0, or a tensor of such that broadcasts with ``x``. Default: 1.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``r`` is negative or not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import linf_ball
        >>> linf_ball(torch.tensor([0.5, -3.0, 2.0]))
        tensor([ 0.5000, -1.0000,  1.0000])
    """
    return maps.apply("linf_ball", x, [number("r", r, x, 0.0)])


def linf_ball_(x: Tensor, r: Parameter = 1.0) -> Tensor:
    """:func:`linf_ball` in place, not recorded by autograd.

    Args:
        x, r: as of :func:`linf_ball`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`linf_ball`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import linf_ball_
        >>> linf_ball_(torch.tensor([0.5, -3.0, 2.0]), 2.0)
        tensor([ 0.5000, -2.0000,  2.0000])
    """
    return maps.apply_("linf_ball", x, [number("r", r, x, 0.0)])


def box(x: Tensor, lo: Parameter, hi: Parameter) -> Tensor:
    """The nearest numbers from ``lo`` to ``hi``, each by itself.

    The Jacobian is 1 between the bounds, 0 elsewhere; a bound moves with the numbers that are there.

    Args:
        x: any shape with an element at least.
        lo, hi: numbers, infinite ones too, or tensors of such that broadcast with ``x``; ``lo`` nowhere above ``hi``.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: a bound is NaN, or ``lo`` above ``hi``.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import box
        >>> box(torch.tensor([0.5, -3.0, 2.0]), -1.0, float("inf"))
        tensor([ 0.5000, -1.0000,  2.0000])
    """
    return maps.apply("box", x, _bounds(x, lo, hi))


def box_(x: Tensor, lo: Parameter, hi: Parameter) -> Tensor:
    """:func:`box` in place, not recorded by autograd.

    Args:
        x, lo, hi: as of :func:`box`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`box`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import box_
        >>> box_(torch.tensor([0.5, -3.0, 2.0]), 0.0, 1.0)
        tensor([0.5000, 0.0000, 1.0000])
    """
    return maps.apply_("box", x, _bounds(x, lo, hi))


def _bounds(x: Tensor, lo: Parameter, hi: Parameter) -> list[Parameter]:
    bounds = [bound("lo", lo, x), bound("hi", hi, x)]
    if any(isinstance(each, Tensor) for each in bounds):
        refuse_where("lo", torch.as_tensor(lo) > torch.as_tensor(hi), "a number above hi")
    elif lo > hi:
        raise Problem.NUMBER.of("hi", hi, f"lo, which is {lo}, at least")
    return bounds


def nonnegative(x: Tensor) -> Tensor:
    """``max(x, 0)`` of each number.

    The Jacobian is 1 where the result is positive, 0 elsewhere.

    Args:
        x: any shape with an element at least.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``x`` is no tensor, or of another dtype.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import nonnegative
        >>> nonnegative(torch.tensor([0.5, -3.0]))
        tensor([0.5000, 0.0000])
    """
    return maps.apply("nonnegative", x, [])


def nonnegative_(x: Tensor) -> Tensor:
    """:func:`nonnegative` in place, not recorded by autograd.

    Args:
        x: as of :func:`nonnegative`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`nonnegative`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import nonnegative_
        >>> nonnegative_(torch.tensor([0.5, -3.0]))
        tensor([0.5000, 0.0000])
    """
    return maps.apply_("nonnegative", x, [])
