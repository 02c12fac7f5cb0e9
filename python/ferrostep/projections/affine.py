"""The Euclidean projection of rows onto the solutions of linear equations, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import Problem
from ferrostep.reference import checks

ILL_CONDITIONED = 1e-6
"""The least ratio of pivots with which ``A A^T`` is solved by its Cholesky factor."""


class Affine:
    """The projection onto the rows with ``A x = b``: ``x - A^T (A A^T)^-1 (A x - b)``, with the factor for many uses.

    ``A A^T`` is factored once, in float64, by Cholesky; where ``A`` has not full row rank, or nearly not, its
    pseudo-inverse serves, which leads to the rows of least ``|A x - b|``. Call it as a function of ``x``. Derivatives
    of all orders reach ``x``, ``A`` and ``b``, those of ``A`` as long as its rank stays.

    Args:
        A: shape (m, n), of a float dtype.
        b: shape (m,), of a float dtype.

    Raises:
        TypeError, ValueError, RuntimeError: no dense tensors of these shapes on one device, or ``A`` or ``b`` not
            finite.

    Example:
        >>> import torch
        >>> from ferrostep.projections import Affine
        >>> project = Affine(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]), torch.tensor([1.0, 0.0]))
        >>> project(torch.tensor([1.0, 2.0, 0.0]))
        tensor([ 0.8333,  0.8333, -0.6667])
    """

    def __init__(self, A: Tensor, b: Tensor) -> None:
        checks.readable("A", A)
        checks.readable("b", b)
        if A.ndim != 2:
            raise Problem.SHAPE.of("A", list(A.shape), "2 dimensions")
        checks.like("b", b, A, shape=A.shape[:1])
        self._matrix, self._right = checks.wide(A), checks.wide(b)
        for name, x in (("A", A), ("b", b)):
            if maps.is_concrete(x) and not bool(x.isfinite().all()):
                raise Problem.COUNT.of(name, "a number that is not finite", "none")
        # The rows are scaled to norm 1, which is constant to autograd: where all is solvable, it changes nothing else.
        norms = self._matrix.detach().norm(dim=1, keepdim=True)
        scaled = self._matrix / torch.where(norms > 0, norms, 1.0)
        factor, info = torch.linalg.cholesky_ex(scaled @ scaled.mT)
        pivots = factor.diagonal().detach()
        is_solvable = maps.is_concrete(factor) and bool((info == 0) & (pivots.amin() > ILL_CONDITIONED * pivots.amax()))
        self._factor = factor if is_solvable else None
        if is_solvable:
            self._matrix, self._right = scaled, self._right / norms.squeeze(1)
        else:
            self._inverse: Tensor = torch.linalg.pinv(self._matrix)

    def __call__(self, x: Tensor, dim: int = -1) -> Tensor:
        """The nearest solutions.

        Args:
            x: shape (..., n, ...), n along ``dim``, of any float dtype.
            dim: the dimension of the rows. Default: the last.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            TypeError, ValueError, IndexError, RuntimeError: ``x`` is no dense tensor with rows of n numbers.
        """
        dim = checks.rows("x", x, dim)
        if x.shape[dim] != self._matrix.shape[1]:
            expected = f"{self._matrix.shape[1]} elements along dim {dim}, as A has columns"
            raise Problem.SHAPE.of("x", list(x.shape), expected)
        rows = checks.wide(x).movedim(dim, -1)
        excess = (rows @ self._matrix.mT - self._right).unsqueeze(-1)
        image: Tensor = rows - self._least(excess).squeeze(-1)
        return image.movedim(-1, dim).to(x.dtype)

    def _least(self, right: Tensor) -> Tensor:
        """The shortest solutions for right-hand sides."""
        if self._factor is None:
            return self._inverse @ right
        return self._matrix.mT @ torch.cholesky_solve(right, self._factor)


def affine(x: Tensor, A: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    """The nearest rows with ``A x = b``, as :class:`Affine`, which keeps its factor for the next call.

    Args:
        x: shape (..., n, ...), n along ``dim``, of any float dtype.
        A: shape (m, n), of a float dtype.
        b: shape (m,), of a float dtype.
        dim: the dimension of the rows. Default: the last.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :class:`Affine` and its call.

    Example:
        >>> import torch
        >>> from ferrostep.projections import affine
        >>> affine(torch.tensor([[2.0, 1.5], [0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([1.0]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    return Affine(A, b)(x, dim)
