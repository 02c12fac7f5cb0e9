"""Solvers of linear systems ``A x = b`` of which only products with A are known.

Each function here makes a :class:`Solver`, which :func:`ferrostep.implicit.root` takes, and which is called by itself
as ``x, info = solver(matvec, b)``. Vectors are tensors of any shape, or pytrees of them, of dtype float32 or float64;
inner products are taken in float64. What comes back has been checked: ``info.residual`` is computed from the solution
by one more product (but for :func:`neumann`), and a solver that cannot go on says why in ``info.reason``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ferrostep.errors import Problem, wrong_kind
from ferrostep.implicit import methods, vectors
from ferrostep.implicit.methods import Method, System
from ferrostep.implicit.vectors import Vector
from ferrostep.numpy.arrays import positive, real, whole
from ferrostep.suggestions import suggesting

__all__ = ["Info", "Solver", "bicgstab", "cg", "dense", "gmres", "neumann", "normal_cg"]

Product: TypeAlias = Callable[[Any], Any]
"""From a tree like b to one like it."""
Linear: TypeAlias = Callable[[Vector], Vector]
"""The same of lists."""


class Info(NamedTuple):
    """How a solver ended.

    Example:
        >>> Info(iterations=3, residual=1e-3, tolerance=1e-6, reason="maxiter = 3").converged
        False
    """

    iterations: int
    residual: float
    """The norm of ``b - A x``."""
    tolerance: float
    """What it was to be at most: the larger of ``rtol * norm(b)`` and ``atol``."""
    reason: str | None = None
    """Why the solver stopped before, if it did."""

    @property
    def converged(self) -> bool:
        """Whether the residual is as small as it was to be."""
        return self.residual <= self.tolerance


@dataclass
class Solver:
    """A solver of linear systems, as the functions of this module make it.

    Call it as ``x, info = solver(matvec, b)``: see :meth:`__call__` for shapes and dtypes. ``last`` is the
    :class:`Info` of the last call, also of one that a backward pass made.

    Args:
        name: what errors and warnings call it.
        method: the iteration, one of ``ferrostep.implicit.methods``.
        rtol, atol, maxiter, preconditioner, ridge, warm_start: as of :func:`cg`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> solver = cg(rtol=1e-4)
        >>> x, info = solver(lambda x: 2 * x, torch.tensor([2.0, 4.0]))
        >>> x, solver.last.iterations
        (tensor([1., 2.]), 1)
    """

    name: str
    method: Method
    rtol: float = 1e-6
    atol: float = 0.0
    maxiter: int | None = None
    preconditioner: Product | None = None
    ridge: float = 0.0
    warm_start: bool = False
    last: Info | None = field(default=None, init=False, compare=False)
    _solution: Vector = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments, in the words of all others."""
        if self.rtol != math.inf:  # of a truncated series
            self.rtol = real("rtol", self.rtol, 0.0)
        self.atol = real("atol", self.atol, 0.0)
        self.ridge = real("ridge", self.ridge, 0.0)
        if self.maxiter is not None:
            self.maxiter = whole("maxiter", self.maxiter, 0)
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise wrong_kind("preconditioner", self.preconditioner, "a function")

    def __call__(self, matvec: Product, b: Any, *, x0: Any = None, rmatvec: Product | None = None) -> tuple[Any, Info]:
        """Solve ``(A + ridge I) x = b``.

        Args:
            matvec: ``x -> A x``, linear, from a tree like ``b`` to one like it.
            b: a tensor or a pytree of tensors, float32 or float64, on one device.
            x0: where to begin, like ``b``. Default: with ``warm_start`` the last solution if it fits, else zeros.
            rmatvec: ``x -> A^T x``; only :func:`normal_cg` asks for it. Default: by autograd from ``matvec``.

        Returns:
            The solution, like ``b``, not recorded by autograd, and its :class:`Info`.

        Raises:
            TypeError, ValueError: a tree that is not as described; the name says which.
            RuntimeError: ``b`` requires gradients, which would be lost.
        """
        right, spec = vector_of("b", b)
        if torch.is_grad_enabled() and any(each.requires_grad for each in right):
            raise RuntimeError(
                "b requires gradients, which solvers do not record: differentiate through "
                "ferrostep.implicit.root(optimality.linear()), or give b.detach()"
            )
        with torch.no_grad():
            x = self._guess(x0, right, spec)
            transposed = rmatvec or _transpose(matvec, b)
            product, adjoint = (_on_lists("matvec(x)", each, right, spec) for each in (matvec, transposed))
            info = self._solve(product, adjoint, right, spec, x)
        return tree_unflatten(x, spec), info

    @torch.no_grad()
    def solve_lists(self, product: Linear, transposed: Linear, b: Sequence[Tensor]) -> tuple[Vector, Info]:
        """Solve as a call does, with products of lists that are known to be like b: no iteration looks at them.

        Args:
            product, transposed: ``x -> A x`` and ``x -> A^T x``, from a list of tensors like b to one like it.
            b: tensors of any shape, float32 or float64, on one device. A preconditioner gets tuples of such.

        Returns:
            The solution, a list like ``b``, and its :class:`Info`.

        Raises:
            TypeError, ValueError: ``b`` is not as described.
        """
        right, spec = vector_of("b", tuple(b))
        x = self._guess(None, right, spec)
        return x, self._solve(product, transposed, right, spec, x)

    def _solve(self, product: Linear, transposed: Linear, b: Vector, spec: TreeSpec, x: Vector) -> Info:
        precondition = self.preconditioner
        system = System(
            self._ridged(product),
            self._ridged(transposed),
            precondition and _on_lists("preconditioner(r)", precondition, b, spec),
            b,
            self._tolerance(b),
        )
        most = max(100, 10 * sum(each.numel() for each in b)) if self.maxiter is None else self.maxiter
        self.last = info = self._run(system, x, most)
        if self.warm_start and math.isfinite(info.residual):
            self._solution = vectors.copied(x)
        return info

    def _tolerance(self, b: Vector) -> float:
        """What the residual is to be at most; nothing is asked of a series that is cut."""
        return math.inf if self.rtol == math.inf else max(self.rtol * vectors.norm(b), self.atol)

    def _run(self, system: System, x: Vector, most: int) -> Info:
        if not math.isfinite(size := vectors.norm(system.b)):
            vectors.add_(x, math.nan, system.b)
            return Info(0, math.nan, system.tolerance, "b has NaN or infinity")
        if size == 0:
            for each in x:
                each.zero_()
            is_zero = not any(bool(each.any()) for each in system.b)
            return Info(0, 0.0, system.tolerance, None if is_zero else "b is too small, the square of its norm is 0")
        iterations, residual, reason = self.method(system, x, most)
        if math.isnan(residual):
            vectors.add_(x, math.nan, system.b)
        return Info(iterations, residual, system.tolerance, reason)

    def _guess(self, x0: Any, b: Vector, spec: TreeSpec) -> Vector:
        if x0 is not None:
            given, own = vector_of("x0", x0)
            if own != spec or not vectors.fits(given, b):
                raise Problem.SHAPE.of("x0", described(given), f"{described(b)}, as b")
            return vectors.copied(given)
        if self.warm_start and vectors.fits(self._solution, b):
            return vectors.copied(self._solution)
        return [torch.zeros_like(each, memory_format=torch.contiguous_format) for each in b]

    def _ridged(self, product: Linear) -> Linear:
        if self.ridge == 0:
            return product

        def with_ridge(x: Vector) -> Vector:
            result = vectors.copied(product(x))
            vectors.add_(result, self.ridge, x)
            return result

        return with_ridge


def vector_of(name: str, tree: Any) -> tuple[Vector, TreeSpec]:
    """The leaves of a tree; refuse what is no tensor of float32 or float64, and what has no leaf."""
    leaves, spec = tree_flatten(tree)
    if not leaves:
        raise Problem.EMPTY.of(name, tree, "a tensor, or a pytree of tensors")
    for i, leaf in enumerate(leaves):
        place = name if len(leaves) == 1 else f"{name}, leaf {i},"
        if not isinstance(leaf, Tensor):
            raise wrong_kind(place, leaf, "a torch.Tensor")
        if leaf.dtype not in (torch.float32, torch.float64):
            raise Problem.DTYPE.of(place, leaf.dtype, "float32 or float64")
        if leaf.layout != torch.strided:
            raise Problem.LAYOUT.of(place, leaf.layout, torch.strided)
    return leaves, spec


def described(tensors: Any) -> str:
    """Shapes, and dtypes where they are not float32, as errors tell them."""
    each = [f"{list(x.shape)}{'' if x.dtype == torch.float32 else f' {x.dtype}'}" for x in tensors]
    return ", ".join(each) or "no tensors"


def _on_lists(name: str, function: Product, like: Vector, spec: TreeSpec) -> Linear:
    """A function of trees as one of lists of tensors; refuse results of another structure."""

    def on_lists(x: Vector) -> Vector:
        found, own = vector_of(name, function(tree_unflatten(x, spec)))
        if own != spec or not vectors.fits(found, like):
            raise Problem.SHAPE.of(name, described(found), f"{described(like)}, as b")
        return [each.detach() for each in found]

    return on_lists


def _transpose(matvec: Product, b: Any) -> Product:
    """``x -> A^T x``, by autograd, from the first call on."""
    made: list[Any] = []

    def transposed(x: Any) -> Any:
        if not made:
            leaves, spec = tree_flatten(b)
            zeros = tree_unflatten([torch.zeros_like(each) for each in leaves], spec)
            with torch.enable_grad():
                made.append(torch.func.vjp(matvec, zeros)[1])
        return made[0](x)[0]

    return transposed


@suggesting
def cg(
    *,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: Product | None = None,
    ridge: float = 0.0,
    warm_start: bool = False,
) -> Solver:
    """Conjugate gradients, for symmetric positive definite A.

    It stops where it meets negative curvature, and says so; a direction of curvature 0 is one, too.

    Args:
        rtol, atol: the residual is to be at most the larger of ``rtol * norm(b)`` and ``atol``. Default 1e-6 and 0.
        maxiter: the most iterations, a product each. Default: ten times the unknowns, and at least 100.
        preconditioner: ``r -> M r`` near ``A^-1 r``, symmetric positive definite. Default: none.
        ridge: added to the diagonal of A. Default 0.
        warm_start: begin where the last call ended, if that fits. Default False.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> x, info = cg()(lambda x: A @ x, torch.tensor([5.0, 5.0]))
        >>> info.iterations, info.converged, torch.allclose(x, torch.tensor([2.0, 1.0]))
        (2, True, True)
    """
    return Solver("cg", methods.restarted(methods.cg), rtol, atol, maxiter, preconditioner, ridge, warm_start)


@suggesting
def bicgstab(
    *,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: Product | None = None,
    ridge: float = 0.0,
    warm_start: bool = False,
) -> Solver:
    """BiCGSTAB (van der Vorst 1992), for any A: two products an iteration, and few vectors.

    Args:
        rtol, atol, maxiter, ridge, warm_start: as of :func:`cg`.
        preconditioner: ``r -> M r`` near ``A^-1 r``, linear. Default: none.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])
        >>> x, info = bicgstab()(lambda x: A @ x, torch.tensor([5.0, 1.0]))
        >>> info.converged, torch.allclose(x, torch.tensor([2.0, 1.0]))
        (True, True)
    """
    return Solver(
        "bicgstab", methods.restarted(methods.bicgstab), rtol, atol, maxiter, preconditioner, ridge, warm_start
    )


@suggesting
def gmres(
    *,
    restart: int = 20,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: Product | None = None,
    ridge: float = 0.0,
    warm_start: bool = False,
) -> Solver:
    """GMRES (Saad and Schultz 1986) with restarts, for any A: the least residual for as many products.

    Args:
        restart: iterations between restarts; as many vectors are kept, in float64. Default 20.
        rtol, atol, maxiter, ridge, warm_start: as of :func:`cg`.
        preconditioner: ``r -> M r`` near ``A^-1 r``, linear. Default: none.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> gmres()(lambda x: A @ x, torch.tensor([1.0, -2.0]))[0]
        tensor([2., 1.])
    """
    method = partial(methods.gmres, restart=whole("restart", restart, 1))
    return Solver("gmres", methods.restarted(method), rtol, atol, maxiter, preconditioner, ridge, warm_start)


@suggesting
def normal_cg(*, rtol: float = 1e-6, atol: float = 0.0, maxiter: int | None = None, warm_start: bool = False) -> Solver:
    """CG for ``A^T A x = A^T b``, whose condition number is the square of A's: a last resort.

    Args:
        rtol, atol: of ``A x = b``, as of :func:`cg`.
        maxiter, warm_start: as of :func:`cg`; an iteration takes a product with A and one with its transpose.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])
        >>> x, info = normal_cg()(lambda x: A @ x, torch.tensor([5.0, 1.0]))
        >>> info.converged, torch.allclose(x, torch.tensor([2.0, 1.0]))
        (True, True)
    """
    return Solver("normal_cg", methods.restarted(methods.normal_cg), rtol, atol, maxiter, None, 0.0, warm_start)


@suggesting
def neumann(*, steps: int = 20, lr: float = 0.1, ridge: float = 0.0, warm_start: bool = False) -> Solver:
    """The Neumann series, cut: ``lr * sum_{q < steps} (I - lr A)^q b``.

    In an eigendirection of eigenvalue a, ``1 - (1 - lr a)^steps`` of the solution: a filter that damps flat directions,
    much as a ridge does. So no tolerance is asked of it; only a series that diverges is told. ``info.residual`` is that
    before the last term, for which no product is needed.

    Args:
        steps: terms, which cost a product less than they are. Default 20.
        lr: less than 2 over the largest eigenvalue. Default 0.1.
        ridge: added to the diagonal of A. Default 0.
        warm_start: begin where the last call ended, if that fits, for one more product. Default False.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> x, info = neumann(steps=3, lr=0.5)(lambda x: x, torch.tensor([1.0]))
        >>> x, info.residual
        (tensor([0.8750]), 0.25)
    """
    method = partial(methods.neumann, steps=whole("steps", steps, 1), lr=positive("lr", lr))
    return Solver("neumann", method, math.inf, ridge=ridge, warm_start=warm_start)


@suggesting
def dense(*, rtol: float = 1e-6, atol: float = 0.0, ridge: float = 0.0) -> Solver:
    """The matrix by its columns, one product each, and its factorization in float64: for some hundred unknowns.

    Where A is singular, the solution of least norm, if there is one.

    Args:
        rtol, atol, ridge: as of :func:`cg`.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError, ValueError: an impossible argument.

    Example:
        >>> A = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> dense()(lambda x: A @ x, torch.tensor([1.0, 1.0]))[0]
        tensor([0.5000, 0.5000])
        >>> dense()(lambda x: A @ x, torch.tensor([1.0, 0.0]))[1].reason
        'the matrix is singular'
    """
    return Solver("dense", methods.dense, rtol, atol, ridge=ridge)
