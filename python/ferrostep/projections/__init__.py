"""Euclidean projections of rows onto sets, with exact derivatives of any order.

A row is what lies along one dimension of a tensor of any shape, dtype (float32, float64, bfloat16, float16) and layout.
Rows are computed in float64 for float64, else in float32 with sums in float64, each by itself: no row, and no number
of threads, changes another's bits. Tensors on other devices are computed in plain torch
(:mod:`ferrostep.reference.projections`).

The functions go with autograd in both modes, double backward, ``torch.func`` and ``torch.compile``, and compute in
the dtype of their input under autocast, too. On a kink, the Jacobian is that of the side that the image shows. The
forms with an underscore work in place and are not recorded, as under ``torch.no_grad()``: after a step of SGD they make
projected gradient descent.

Whatever cannot be computed raises TypeError, ValueError, IndexError or RuntimeError that names the argument, with
nothing changed.
"""

from __future__ import annotations

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)

# isort: split

from torch import Tensor

from ferrostep import maps
from ferrostep.numpy.arrays import real

__all__ = ["simplex", "simplex_"]


def simplex(x: Tensor, s: float = 1.0, dim: int = -1) -> Tensor:
    """The nearest rows of nonnegative numbers with the sum ``s``: ``max(x - tau, 0)``, each with its own ``tau``.

    With ``s=1`` this is sparsemax (arXiv 1602.02068). The Jacobian's product with ``v`` is, where the result is
    positive, ``v`` without its mean there; 0 elsewhere.

    Args:
        x: shape (..., n, ...), n along ``dim`` and at least 1. Infinite numbers share ``s`` among them; a NaN makes
            its row NaN.
        s: the sum, a finite number of at least 0. Default: 1. For a tensor, one that needs a gradient or one for each
            row, use ``s * simplex(x / s)``.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape, dtype and layout of ``x``.

    Raises:
        TypeError: ``x`` is no tensor, or ``s`` or ``dim`` no number.
        ValueError: ``s`` is negative or not finite, or ``x`` has another dtype, no dimension, or rows of no element.
        IndexError: ``x`` has no dimension ``dim``.
        RuntimeError: ``x`` is sparse, or has no memory of its own.

    Example:
        >>> import torch
        >>> from ferrostep.projections import simplex
        >>> simplex(torch.tensor([[0.5, 1.25, -0.25, 0.75], [3.0, 3.0, 0.0, 1.0]]))
        tensor([[0.0000, 0.7500, 0.0000, 0.2500],
                [0.5000, 0.5000, 0.0000, 0.0000]])
    """
    return maps.apply("simplex", x, [real("s", s, 0.0)], dim)


def simplex_(x: Tensor, s: float = 1.0, dim: int = -1) -> Tensor:
    """:func:`simplex` in place, not recorded by autograd.

    Args:
        x, s, dim: as of :func:`simplex`, of its shapes and dtypes; no two elements of ``x`` may share memory.

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
    return maps.apply_("simplex", x, [real("s", s, 0.0)], dim)
