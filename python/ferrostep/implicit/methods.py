"""The iterations of the linear solvers, on lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

from ferrostep.implicit import vectors
from ferrostep.implicit.vectors import Vector

PROGRESS = 0.99
"""The share of the residual that a new start from the solution may leave; if it leaves more, it was the last."""


class System(NamedTuple):
    """What a method is to solve."""

    product: Callable[[Vector], Vector]
    transposed: Callable[[Vector], Vector]
    precondition: Callable[[Vector], Vector] | None
    b: Vector
    tolerance: float

    def rest(self, x: Vector) -> Vector:
        """``b - A x``."""
        return vectors.difference(self.b, self.product(x))

    def preconditioned(self, r: Vector) -> Vector:
        """An approximation of ``A^-1 r``; the vector itself without one."""
        return r if self.precondition is None else self.precondition(r)


Outcome: TypeAlias = tuple[int, float, str | None]
"""Of a solver that has changed its guess to the solution: iterations, residual, and why it stopped if it had to."""
Method: TypeAlias = Callable[[System, Vector, int], Outcome]
"""Of a system, the guess, and the most iterations."""


def restarted(method: Callable[[System, Vector, Vector, int], tuple[int, str | None]]) -> Method:
    """Begin anew from the solution, with the residual that it has, until that is as small as it was to be.

    So a recurrence that has drifted from the residual, or one that is cut for its memory, does not have the last word.
    """

    def solve(system: System, x: Vector, most: int) -> Outcome:
        started = any(bool(each.any()) for each in x)
        r = system.rest(x) if started else vectors.copied(system.b)
        residual, iterations, reason = vectors.norm(r), 0, None
        while not residual <= system.tolerance and reason is None and iterations < most:
            count, reason = method(system, x, r, most - iterations)
            before, iterations = residual, iterations + count
            r = system.rest(x)
            residual = vectors.norm(r)
            if iterations < most and reason is None and not residual <= max(PROGRESS * before, system.tolerance):
                reason = "it came no nearer"
        return iterations, residual, None if residual <= system.tolerance else reason or f"maxiter = {most}"

    return solve


def cg(system: System, x: Vector, r: Vector, most: int) -> tuple[int, str | None]:
    """Conjugate gradients from x, of the residual r, which is overwritten: how many, and why they ended before."""
    z = system.preconditioned(r)
    p, rz, largest = vectors.copied(z), vectors.dot(r, z), 0.0
    precision = max(torch.finfo(each.dtype).eps for each in x)
    for iteration in range(most):
        if not rz > 0:
            return iteration, None if rz == 0 else f"the preconditioner is not positive definite: r.Mr = {rz:.3g}"
        q = system.product(p)
        pp, curvature = vectors.products(p, q)
        if not curvature > precision * largest * pp:
            return iteration, f"the matrix is not positive definite: p.Ap / p.p = {curvature / pp:.3g}"
        largest = max(largest, curvature / pp)
        alpha = rz / curvature
        rr = vectors.descend_(r, alpha, q)
        if math.sqrt(rr) <= system.tolerance:
            vectors.add_(x, alpha, p)
            return iteration + 1, None
        z = system.preconditioned(r)
        before, rz = rz, rr if z is r else vectors.dot(r, z)
        vectors.advance_(x, alpha, p, rz / before, z)
    return most, None


def bicgstab(system: System, x: Vector, r: Vector, most: int) -> tuple[int, str | None]:
    """BiCGSTAB, as :func:`cg`."""
    shadow, p = vectors.copied(r), vectors.copied(r)
    rho = vectors.dot(shadow, r)
    for iteration in range(most):
        along = system.preconditioned(p)
        v = vectors.copied(system.product(along))  # is still needed after the next product, which may use its memory
        across = vectors.dot(shadow, v)
        if across == 0 or rho == 0:
            return iteration, f"it broke down: r0.Ap = {across:.3g}, r0.r = {rho:.3g}"
        alpha = rho / across
        vectors.add_(x, alpha, along)
        if math.sqrt(vectors.descend_(r, alpha, v)) <= system.tolerance:
            return iteration + 1, None
        along = system.preconditioned(r)
        t = system.product(along)
        if (size := vectors.dot(t, t)) == 0:
            return iteration, "it broke down: A r = 0, the matrix is singular"
        omega = vectors.dot(t, r) / size
        vectors.add_(x, omega, along)
        if math.sqrt(vectors.descend_(r, omega, t)) <= system.tolerance:
            return iteration + 1, None
        if omega == 0:
            return iteration + 1, "it broke down: r.Ar = 0"
        before, rho = rho, vectors.dot(shadow, r)
        vectors.add_(p, -omega, v)
        vectors.turn_(p, rho / before * (alpha / omega), r)
    return most, None


def gmres(system: System, x: Vector, r: Vector, most: int, *, restart: int) -> tuple[int, str | None]:
    """One cycle; Gram-Schmidt done twice, which is as good as can be."""
    first = vectors.flat(r)
    size, restart = first.norm(), min(restart, most, first.numel())
    basis = first.new_zeros(restart + 1, first.numel())
    hessenberg = first.new_zeros(restart + 1, restart)
    basis[0] = first / size
    right = first.new_zeros(restart + 1)
    right[0] = size
    for k in range(restart):
        w = vectors.flat(system.product(system.preconditioned(vectors.unflat(basis[k], system.b))))
        scale = w.norm()
        for _ in range(2):
            part = basis[: k + 1] @ w
            w -= part @ basis[: k + 1]
            hessenberg[: k + 1, k] += part
        hessenberg[k + 1, k] = w.norm()
        if not scale.isfinite():
            return k, "the matrix has NaN or infinity"
        corner, known = hessenberg[: k + 2, : k + 1], right[: k + 2]
        weights = torch.linalg.lstsq(corner, known[:, None]).solution[:, 0]
        is_closed = hessenberg[k + 1, k] <= 1e-14 * scale
        if is_closed or (known - corner @ weights).norm() <= system.tolerance:
            break
        basis[k + 1] = w / hessenberg[k + 1, k]
    step = vectors.unflat(weights @ basis[: k + 1], system.b)
    vectors.add_(x, 1.0, system.preconditioned(step))
    return k + 1, None


def normal_cg(system: System, x: Vector, r: Vector, most: int) -> tuple[int, str | None]:
    """CG for A^T A; its own residual is to be smaller than A's by as much as a rough scale of A^T is larger than 1."""
    below = system.transposed(r)
    scale = vectors.norm(below) / vectors.norm(r)
    normal = system._replace(
        product=lambda p: system.transposed(system.product(p)), tolerance=system.tolerance * scale / 10
    )
    iterations, reason = cg(normal, x, vectors.copied(below), most)
    return iterations, None if reason is None else "A^T r = 0, the matrix is singular"


def neumann(system: System, x: Vector, most: int, *, steps: int, lr: float) -> Outcome:
    """The series, whose last residual is not computed."""
    started = any(bool(each.any()) for each in x)
    r = system.rest(x) if started else vectors.copied(system.b)
    first = residual = vectors.norm(r)
    for term in range(min(steps, most)):
        if term:
            vectors.add_(r, -lr, system.product(r))
        vectors.add_(x, lr, r)
    residual = vectors.norm(r)
    diverges = not residual <= first
    return steps, residual, f"lr = {lr:g} is too large, and the series diverges" if diverges else None


def dense(system: System, x: Vector, _most: int) -> Outcome:
    """The matrix and its factorization; where it is singular, its pseudo-inverse."""
    columns, size = [], sum(each.numel() for each in x)
    unit = vectors.flat(x).zero_()
    for i in range(size):
        unit[i] = 1.0
        columns.append(vectors.flat(system.product(vectors.unflat(unit, x))))
        unit[i] = 0.0
    matrix, right = torch.stack(columns, 1), vectors.flat(system.b)
    if not matrix.isfinite().all():
        vectors.add_(x, math.nan, x)
        return size, math.nan, "the matrix has NaN or infinity"
    found, failed = torch.linalg.solve_ex(matrix, right)
    residual, singular = (matrix @ found - right).norm(), bool(failed)
    if singular or not residual <= system.tolerance:
        singular = True
        found = torch.linalg.pinv(matrix) @ right
    for each, value in zip(x, vectors.unflat(found, x), strict=True):
        each.copy_(value)
    residual = float((matrix @ found - right).norm())
    return size, residual, "the matrix is singular" if singular and not residual <= system.tolerance else None
