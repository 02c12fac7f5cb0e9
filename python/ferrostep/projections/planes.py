"""Euclidean projections of rows onto planes and their intersections."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import wrong_kind
from ferrostep.maps import Parameter
from ferrostep.projections.parameters import number, refuse_where, vector


def hyperplane(x: Tensor, a: Tensor, b: Parameter, dim: int = -1) -> Tensor:
    """The nearest rows with ``a.x = b``.

    ``x - a (a.x - b) / (a.a)``. The Jacobian takes away the part along ``a``.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        a: shape (n,), the same for all rows, or that of ``x``: finite numbers, not all 0.
        b: a finite number, or a tensor of such: one, or one for each row.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``a`` is 0 or not finite, or of another shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import hyperplane
        >>> hyperplane(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0]), 1.0)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return maps.apply("hyperplane", x, [_normal(a, x, dim), number("b", b, x, dim=dim)], dim)


def hyperplane_(x: Tensor, a: Tensor, b: Parameter, dim: int = -1) -> Tensor:
    """:func:`hyperplane` in place, not recorded by autograd.

    Args:
        x, a, b, dim: as of :func:`hyperplane`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`hyperplane`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import hyperplane_
        >>> hyperplane_(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 2.0]), 1.0)
        tensor([2.0000, 0.5000])
    """
    return maps.apply_("hyperplane", x, [_normal(a, x, dim), number("b", b, x, dim=dim)], dim)


def halfspace(x: Tensor, a: Tensor, b: Parameter, dim: int = -1) -> Tensor:
    """The nearest rows with ``a.x <= b``.

    The hyperplane's where ``a.x > b``, else ``x``; so is the Jacobian.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        a: shape (n,), the same for all rows, or that of ``x``: finite numbers, not all 0.
        b: a finite number, or a tensor of such: one, or one for each row.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``a`` is 0 or not finite, or of another shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import halfspace
        >>> halfspace(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0]), 1.0)
        tensor([[1., 0.],
                [0., 0.]])
    """
    return maps.apply("halfspace", x, [_normal(a, x, dim), number("b", b, x, dim=dim)], dim)


def halfspace_(x: Tensor, a: Tensor, b: Parameter, dim: int = -1) -> Tensor:
    """:func:`halfspace` in place, not recorded by autograd.

    Args:
        x, a, b, dim: as of :func:`halfspace`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`halfspace`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import halfspace_
        >>> halfspace_(torch.tensor([2.0, -1.0]), torch.tensor([0.0, 2.0]), 1.0)
        tensor([ 2., -1.])
    """
    return maps.apply_("halfspace", x, [_normal(a, x, dim), number("b", b, x, dim=dim)], dim)


def _normal(a: Tensor, x: Tensor, dim: int) -> Tensor:
    if not isinstance(a, Tensor):
        raise wrong_kind("a", a, "a torch.Tensor")
    normal = vector("a", a, x, dim)
    refuse_where("a", (normal == 0).all(dim if normal.ndim == x.ndim else 0), "only zeros for a row")
    return normal


def box_section(x: Tensor, lo: Parameter, hi: Parameter, w: Parameter, c: Parameter, dim: int = -1) -> Tensor:
    """The nearest rows from ``lo`` to ``hi`` with ``w.p = c``: ``clip(x - t w, lo, hi)``, each with its own ``t``.

    Among what is between the bounds, the Jacobian takes away the part along ``w``. A row with a number that is not
    finite becomes NaN.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        lo, hi, w: finite numbers, or tensors of them of shape (n,) or that of ``x``; ``lo`` nowhere above ``hi``.
        c: a finite number that is ``w.p`` for some such p, or a tensor of such: one, or one for each row.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: no row is there (``c`` is out of reach), ``lo`` is above ``hi``, or one is not finite.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import box_section
        >>> box_section(torch.tensor([0.5, 1.25, -0.25]), 0.0, 1.0, 1.0, 1.5)
        tensor([0.5000, 1.0000, 0.0000])
    """
    return maps.apply("box_section", x, _section(x, lo, hi, w, c, dim), dim)


def box_section_(x: Tensor, lo: Parameter, hi: Parameter, w: Parameter, c: Parameter, dim: int = -1) -> Tensor:
    """:func:`box_section` in place, not recorded by autograd.

    Args:
        x, lo, hi, w, c, dim: as of :func:`box_section`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`box_section`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import box_section_
        >>> box_section_(torch.tensor([0.5, 1.0, -0.25]), 0.0, 1.0, 1.0, 1.0)
        tensor([0.2500, 0.7500, 0.0000])
    """
    return maps.apply_("box_section", x, _section(x, lo, hi, w, c, dim), dim)


def _section(x: Tensor, lo: Parameter, hi: Parameter, w: Parameter, c: Parameter, dim: int) -> list[Parameter]:
    vectors = [vector(name, each, x, dim) for name, each in (("lo", lo), ("hi", hi), ("w", w))]
    total = number("c", c, x, dim=dim)
    if any(each.ndim != 1 for each in vectors) or isinstance(c, Tensor):
        low, high, weights = (each.movedim(dim, -1) if each.ndim == x.ndim else each for each in vectors)
        refuse_where("lo", low > high, "a number above hi")
        ends = weights * low, weights * high
        sums = [pick(*ends).sum(-1, keepdim=True) for pick in (torch.minimum, torch.maximum)]
        reach = total.movedim(dim, -1) if isinstance(total, Tensor) and total.ndim else total
        refuse_where("c", (sums[0] > reach) | (sums[1] < reach), "a number that w.p is for no p between lo and hi")
    return [*vectors, total]
