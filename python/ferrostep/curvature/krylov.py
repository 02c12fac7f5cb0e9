"""Lanczos iteration: a small tridiagonal matrix that has a large symmetric one's outermost eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ferrostep.choices import Reorthogonalization, Spectrum
from ferrostep.curvature import vectors
from ferrostep.curvature.operators import LinearOperator, finite, random_vector
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import check, whole
from ferrostep.suggestions import suggesting

ASYMMETRY = 0.05
"""What a symmetric matrix's product has along vectors that it should be orthogonal to, relative to the matrix, is
rounding: 1e-6 to 1e-3 for Hessians in float32. From here on it is refused."""
TOGETHER = 4
"""Vectors of which each waits for the others at most."""


class LanczosResult(NamedTuple):
    """What Lanczos iteration has found of a symmetric matrix A of P rows, of :func:`lanczos`. All float64, on the CPU.

    The quadrature ``sum_i weights[i] * f(values[i])`` is ``q1' f(A) q1``, exactly so for polynomials f of degrees up
    to ``2 * steps - 1``.

    Example:
        >>> found = lanczos(LinearOperator(lambda v: torch.tensor([1.0, 2.0, 3.0]) * v, 3), 3)
        >>> found.steps, [round(value, 4) for value in found.values.tolist()]
        (3, [1.0, 2.0, 3.0])
    """

    values: Tensor
    """Ritz values, of shape (steps,), rising: approximate eigenvalues."""
    error_bounds: Tensor
    """For each Ritz value, a distance within which a true eigenvalue lies, of shape (steps,)."""
    weights: Tensor
    """The squared first components of the tridiagonal matrix's eigenvectors, of shape (steps,): their sum is 1."""
    alphas: Tensor
    """The diagonal of the tridiagonal matrix, of shape (steps,)."""
    betas: Tensor
    """Its off-diagonal, of shape (steps,): the last one couples to the vector that was not taken in any more."""

    @property
    def steps(self) -> int:
        """Products made: fewer than asked for where the vectors came to span an invariant subspace."""
        return len(self.alphas)

    @property
    def T(self) -> Tensor:
        """The tridiagonal matrix, of shape (steps, steps)."""
        return _tridiagonal(self.alphas, self.betas)


class Eigenvalue(NamedTuple):
    """An approximate eigenvalue, of :func:`top_eigenvalues`.

    Example:
        >>> Eigenvalue(value=2.0, residual=1e-3, steps=5)
        Eigenvalue(value=2.0, residual=0.001, steps=5)
    """

    value: float
    """An eigenvalue of the tridiagonal matrix that Lanczos iteration has made."""
    residual: float
    """A true eigenvalue lies within this distance: the norm of ``A x - value * x`` for the approximate unit ``x``."""
    steps: int
    """Products that it took."""


@suggesting
def lanczos(
    op: LinearOperator | Callable[[Tensor], Tensor],
    k: int,
    *,
    reorth: Reorthogonalization = "full",
    seed: int = 0,
    q1: Tensor | None = None,
) -> LanczosResult:
    """Lanczos iteration (Golub and Van Loan, Matrix Computations, chapter 10), with inner products in float64.

    Args:
        op: the symmetric matrix: an operator on vectors of shape (P,), or, with ``q1``, any function of such a vector.
        k: at most so many products, at least 1. Fewer where the vectors come to span an invariant subspace, whose
            eigenvalues are exact then.
        reorth: ``"full"`` (default) makes every vector orthogonal to all before it, up to four at a time where rounding
            allows, twice where the first time has taken much of one, and keeps ``(k + 1) * P`` numbers; ``"none"``
            keeps 3 vectors, and copies of eigenvalues
            that have converged come up, with small weights, which harms neither the outermost ones nor the density.
        seed: of the first vector, where ``q1`` gives none; any machine and number of threads has the same. Default 0.
        q1: the first vector, of shape (P,), not zero, of dtype float32 or float64 (the operator's). Default None.

    Returns:
        The Ritz values with their bounds and weights, and the tridiagonal matrix.

    Raises:
        TypeError: an argument of another kind, or a function and no ``q1``.
        ValueError: ``k < 1``; a first vector of another shape or dtype, that is zero or not finite; a product of
            another shape, or one that is not finite; or, found out with ``reorth="full"``, a matrix that is not
            symmetric.

    Example:
        >>> found = lanczos(lambda v: torch.tensor([1.0, 2.0, 3.0]) * v, 3, q1=torch.ones(3))
        >>> round(found.alphas.sum().item(), 4)
        6.0
    """
    k = whole("k", k, 1)
    if reorth not in get_args(Reorthogonalization):
        raise wrong_choice("reorth", reorth, *get_args(Reorthogonalization))
    operator = _operator(op, q1)
    start = random_vector(operator, seed, 0, signs=False) if q1 is None else q1
    alphas: list[float] = []
    betas: list[float] = []
    for alpha, beta in iterate(operator, start, k, reorth):
        alphas.append(alpha)
        betas.append(beta)
    return solved(alphas, betas)


@suggesting
def top_eigenvalues(
    op: LinearOperator,
    n: int = 1,
    which: Spectrum = "LA",
    tol: float = 1e-3,
    *,
    max_steps: int = 100,
    seed: int = 0,
) -> list[Eigenvalue]:
    """The outermost eigenvalues of a symmetric matrix, by Lanczos iteration from a random vector.

    Args:
        op: the matrix, as an operator on vectors of shape (P,) and of its dtype.
        n: how many, from 1 to P. Default 1.
        which: ``"LA"``, the largest (default), ``"SA"``, the smallest, or ``"LM"``, those of the largest magnitude.
        tol: end when every residual is at most this part of its eigenvalue's magnitude. Default 1e-3.
        max_steps: end after so many products in any case; as many vectors are kept. Default 100.
        seed: of the first vector. Default 0.

    Returns:
        The eigenvalues, the outermost first, with their residuals, by which to see whether they have converged. Of
        equal eigenvalues the iteration finds one, so that there may be fewer than ``n``.

    Raises:
        TypeError, ValueError: an impossible argument, a product that is not finite, or a matrix that is not symmetric.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> from ferrostep.curvature import hvp_operator
        >>> (top,) = top_eigenvalues(hvp_operator(lambda: (w**3).sum(), [w]))
        >>> round(top.value, 4)
        12.0
    """
    operator = _operator(op, None)
    n = whole("n", n, 1, operator.size + 1)
    max_steps = whole("max_steps", max_steps, 1)
    check("tol", tol, 0.0)
    if which not in get_args(Spectrum):
        raise wrong_choice("which", which, *get_args(Spectrum))
    alphas: list[float] = []
    betas: list[float] = []
    found: list[Eigenvalue] = []
    for alpha, beta in iterate(operator, random_vector(operator, seed, 0, signs=False), max_steps, "full"):
        alphas.append(alpha)
        betas.append(beta)
        found = outermost(solved(alphas, betas), n, which)
        if len(found) == n and all(each.residual <= tol * abs(each.value) for each in found):
            break
    return found


def outermost(found: LanczosResult, n: int, which: Spectrum) -> list[Eigenvalue]:
    """The outermost of the Ritz values, the first first."""
    pairs = list(zip(found.values.tolist(), found.error_bounds.tolist(), strict=True))
    key = {"LA": lambda pair: -pair[0], "SA": lambda pair: pair[0], "LM": lambda pair: -abs(pair[0])}[which]
    return [Eigenvalue(value, bound, found.steps) for value, bound in sorted(pairs, key=key)[:n]]


def iterate(op: LinearOperator, start: Tensor, k: int, reorth: Reorthogonalization) -> Iterator[tuple[float, float]]:
    """The diagonal and off-diagonal of each step, until the vectors span an invariant subspace."""
    norm = vectors.dot(start, start) ** 0.5
    if not 0.0 < norm < float("inf"):
        raise ValueError(f"the norm of the first vector is {norm}, expected one above 0 and finite")
    k = min(k, op.size)
    rows = op.empty(k + 1 if reorth == "full" else 3, op.size)
    basis = Basis(rows) if reorth == "full" else None
    before = q = rows[0].copy_(start.detach())
    vectors.scale(q, 1 / norm)
    beta, size = 0.0, 0.0
    least = 10 * torch.finfo(op.dtype).eps * op.size**0.5
    for j in range(1, k + 1):
        w = rows[j % len(rows)]  # the next vector, in place
        alpha = finite(vectors.recur(op(q), before, beta, q, w))
        beta = finite(vectors.subtract(w, q, alpha))
        size = max(size, abs(alpha), beta)
        if basis is not None:
            beta = basis.take(j, beta, size, is_last=j == k)
        yield alpha, beta
        if beta <= least * size:
            return
        vectors.scale(w, 1 / beta)
        before, q = q, w


class Basis:
    """The vectors of an iteration, each of which is made orthogonal to all before it.

    By the recurrence it nearly is so already. What rounding has left grows by up to about ``2 * size / beta`` in a
    step, and T does not suffer while it stays below ``sqrt(eps)`` (Simon 1984, Linear Algebra and its Applications 61,
    101). So vectors wait for one another as long as that is sure, and the memory of all before them is read but once.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.first = 1
        """The first of the vectors that wait."""
        self.growth = 1.0
        self.limit = 0.03 * torch.finfo(rows.dtype).eps ** -0.5
        self.norms: list[float] = []
        """Of the vectors that wait, before they were divided by them."""

    def take(self, j: int, norm: float, size: float, *, is_last: bool) -> float:
        """Make vector j, of this norm, orthogonal to those before it, or let it wait; returns its norm then.

        ``size`` is that of the matrix.
        """
        self.growth *= 2 * size / norm if norm else math.inf
        self.norms.append(norm)
        if self.growth < self.limit and len(self.norms) < TOGETHER and not is_last:
            return norm
        block = self.rows[self.first : j + 1]
        coefficients, norms = vectors.orthogonalize(self.rows[: self.first], block)
        for row, scale in zip(coefficients, [*self.norms[:-1], 1.0], strict=True):
            _check_symmetric(max(map(abs, row)) * scale, size)
        if norms[-1] < 0.7 * norm:
            # What is left has the rounding of what was taken from it (Daniel, Gragg, Kaufman and Stewart 1976).
            _, (norms[-1],) = vectors.orthogonalize(self.rows[:j], block[-1:])
        self.first, self.growth, self.norms = j + 1, 1.0, []
        return finite(norms[-1])


def _check_symmetric(along: float, size: float) -> None:
    if along > ASYMMETRY * size:
        raise ValueError(
            f"the matrix is not symmetric: a product has {along:.3g} along a vector that it should be orthogonal to, "
            f"of a matrix of size {size:.3g}; all products have to see one batch and one dropout, see check_symmetry"
        )


def solved(alphas: list[float], betas: list[float]) -> LanczosResult:
    """The eigenvalues of the tridiagonal matrix, and what they tell of the large one."""
    diagonal, off = (torch.tensor(x, dtype=torch.float64) for x in (alphas, betas))
    values, columns = torch.linalg.eigh(_tridiagonal(diagonal, off))
    return LanczosResult(values, off[-1] * columns[-1].abs(), columns[0].square(), diagonal, off)


def _tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    return torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)


def _operator(op: LinearOperator | Callable[[Tensor], Tensor], q1: Tensor | None) -> LinearOperator:
    """The matrix as an operator, of which ``q1`` is a vector."""
    if not isinstance(op, LinearOperator):
        if not callable(op) or q1 is None:
            raise wrong_kind("op", op, "a LinearOperator" + (", or q1 beside a function" if callable(op) else ""))
        if not isinstance(q1, Tensor):
            raise wrong_kind("q1", q1, "a torch.Tensor")
        if q1.ndim != 1:
            raise Problem.SHAPE.of("q1", list(q1.shape), "one dimension")
        op = LinearOperator(op, len(q1), dtype=q1.dtype, device=q1.device)
    if q1 is not None:
        op.check("q1", q1)
    return op
