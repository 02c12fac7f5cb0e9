"""Euclidean projections of rows onto what is in order, and what comes from it."""

from __future__ import annotations

from torch import Tensor

from ferrostep import maps
from ferrostep.errors import wrong_kind
from ferrostep.projections.parameters import refuse_where, vector


def isotonic(x: Tensor, weight: Tensor | None = None, increasing: bool = True, dim: int = -1) -> Tensor:
    """The nearest rows that do not fall (or rise), by least squares with weights.

    Means over blocks, by pooling adjacent violators (Best and Chakravarti 1990). The Jacobian takes means over the
    blocks, too, and is not symmetric with weights.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1; a NaN makes its row NaN.
        weight: positive numbers of shape (n,) or that of ``x``. Default: all 1.
        increasing: whether rows are not to fall, or not to rise. Default: True.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``weight`` is not positive, or of another shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import isotonic
        >>> isotonic(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    weights = None if weight is None else vector("weight", weight, x, dim)
    if weights is not None:
        refuse_where("weight", weights <= 0, "a number that is not positive")
    if not isinstance(increasing, bool):
        raise wrong_kind("increasing", increasing, "a bool")
    return maps.apply("isotonic", x, [weights, increasing], dim)


def permutahedron(x: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """The nearest rows among the averages of permutations of ``w``: soft ranks and soft sorting (arXiv 2002.08871).

    ``permutahedron(x / eps, w)`` with w from n to 1 are soft ranks of ``-x``: 1 for the largest goes with w negated.
    The Jacobian takes away the means over blocks of the sorted row.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1.
        w: finite numbers of shape (n,) or that of ``x``, in any order.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        ValueError: ``w`` is not finite or of another shape.
        TypeError, IndexError, RuntimeError: see :mod:`ferrostep.projections`.

    Example:
        >>> import torch
        >>> from ferrostep.projections import permutahedron
        >>> permutahedron(torch.tensor([0.75, -1.5, 0.25]), torch.tensor([3.0, 2.0, 1.0]))
        tensor([2.7500, 1.0000, 2.2500])
    """
    return maps.apply("permutahedron", x, [vector("w", w, x, dim)], dim)


def permutahedron_(x: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """:func:`permutahedron` in place, not recorded by autograd.

    Args:
        x, w, dim: as of :func:`permutahedron`, of its shapes and dtypes; ``x`` has a place for each element.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`permutahedron`; ``x`` is as it was.

    Example:
        >>> import torch
        >>> from ferrostep.projections import permutahedron_
        >>> permutahedron_(torch.tensor([10.0, -10.0]), torch.tensor([1.0, 2.0]))
        tensor([2., 1.])
    """
    return maps.apply_("permutahedron", x, [vector("w", w, x, dim)], dim)
