"""Conditions that solutions of optimization problems satisfy, for :func:`ferrostep.implicit.root` and ``fixed_point``.

``stationary``, ``kkt``, ``linear`` and ``eq_qp`` are conditions F, zero at the solution; the others are maps T, whose
fixed point it is. Each is a :class:`Condition` of the solution and of the solver's arguments, tensors or pytrees of
them of any shape, float32 or float64, and suggests a solver for the systems of the derivatives.

Objectives are functions ``f(w, *args)`` with a value of shape (); where a map has an argument of its own, as the
projection's, it comes last: ``T(w, *args, own)``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ferrostep.errors import Problem, wrong_kind
from ferrostep.implicit import linear as solvers
from ferrostep.numpy.arrays import listed, positive
from ferrostep.suggestions import suggesting

__all__ = [
    "Condition",
    "block_proximal",
    "eq_qp",
    "kkt",
    "linear",
    "mirror_descent",
    "newton",
    "projected_gradient",
    "proximal_gradient",
    "stationary",
]

Function = Callable[..., Any]


@suggesting
class Condition:
    """A condition or a map, with what is known of its Jacobian in the solution.

    Args:
        function: of the solution and its arguments, tensors of any shape and of a float dtype, or pytrees.
        of: the user's functions that it is made of, whose captured tensors are looked at.
        symmetric: whether the Jacobian is symmetric. Default False.
        solver: makes the solver that suits it. Default: GMRES.

    Raises:
        TypeError: one of ``of`` is no function.

    Example:
        >>> Condition(lambda w, a: w - a, (), symmetric=True)(torch.tensor(3.0), torch.tensor(1.0))
        tensor(2.)
    """

    def __init__(
        self,
        function: Function,
        of: Sequence[Function],
        *,
        symmetric: bool = False,
        solver: Callable[[], solvers.Solver] = solvers.gmres,
    ) -> None:
        for each in of:
            if not callable(each):
                raise wrong_kind(f"an argument of {function.__name__}", each, "a function")
        functools.update_wrapper(self, function)
        self.function, self.of = function, tuple(of)
        self.symmetric, self.solver = symmetric, solver

    def __call__(self, w: Any, *args: Any, **keywords: Any) -> Any:
        """The value of the function."""
        return self.function(w, *args, **keywords)


def _signed_like(f: Function) -> Callable[[Function], Function]:
    """Give a function the signature of the one it is made of, so that keywords go by its names."""

    def decorate(function: Function) -> Function:
        with contextlib.suppress(TypeError, ValueError):  # what has none, or is no function
            function.__signature__ = inspect.signature(f)  # type: ignore[attr-defined]
        return function

    return decorate


def _gradient(f: Function, w: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Of a scalar function, in its first argument."""

    def checked(w: Any) -> Tensor:
        value = f(w, *args, **keywords)
        if not isinstance(value, Tensor):
            raise wrong_kind(f"what {getattr(f, '__name__', 'f')} returned", value, "a torch.Tensor of shape []")
        if value.numel() != 1:
            raise Problem.SHAPE.of(f"what {getattr(f, '__name__', 'f')} returned", list(value.shape), "[]")
        return value.reshape(())

    return torch.func.grad(checked)(w)


def _combined(function: Callable[..., Tensor], *trees: Any) -> Any:
    """A function of tensors, of the leaves of trees of one structure."""
    leaves = [tree_flatten(tree) for tree in trees]
    return tree_unflatten([function(*each) for each in zip(*(own for own, _ in leaves), strict=True)], leaves[0][1])


def _stepped(w: Any, gradient: Any, eta: float) -> Any:
    return _combined(lambda one, other: one - eta * other, w, gradient)


def _projected(projection: Function, x: Any, theta: Any) -> Any:
    return projection(x) if theta is None else projection(x, theta)


@suggesting
def stationary(f: Function) -> Condition:
    """``grad_w f(w, *args) = 0``: a minimum without constraints. The Jacobian is the Hessian, for which CG is taken.

    Args:
        f: the objective.

    Returns:
        A condition F.

    Raises:
        TypeError, ValueError: ``f`` is no function, or what it returns, when it is called, no scalar.

    Example:
        >>> stationary(lambda w, a: (w - a).square().sum())(torch.tensor([3.0]), torch.tensor(1.0))
        tensor([4.])
    """

    @_signed_like(f)
    def stationary(w: Any, *args: Any, **keywords: Any) -> Any:
        return _gradient(f, w, args, keywords)

    return Condition(stationary, (f,), symmetric=True, solver=solvers.cg)


@suggesting
def kkt(f: Function, eq: Function | None = None, ineq: Function | None = None) -> Condition:
    """The conditions of Karush, Kuhn and Tucker for ``min f(w)`` where ``eq(w) = 0`` and ``ineq(w) <= 0``.

    The solution is ``(w, nu, lam)`` with both, ``(w, nu)`` or ``(w, lam)`` with one: multipliers are trees like the
    values of ``eq`` and ``ineq``, and lam is at least 0. ``F = (grad f + Jeq^T nu + Jin^T lam, eq, lam * ineq)``. The
    Jacobian is singular where a multiplier and its constraint are both 0.

    Args:
        f: the objective ``f(w, theta_f)``.
        eq, ineq: ``eq(w, theta_eq)`` and ``ineq(w, theta_in)``. Default: there are none.

    Returns:
        A condition ``F(solution, theta_f, theta_eq, theta_in)``, with an argument, which may be a tree, for each
        function that there is.

    Raises:
        TypeError: an argument is no function.

    Example:
        >>> F = kkt(lambda w, c: (w - c).square().sum() / 2, eq=lambda w, d: w.sum() - d)
        >>> F((torch.tensor([0.0, 1.0]), torch.tensor(1.0)), torch.tensor([1.0, 2.0]), torch.tensor(1.0))
        (tensor([0., 0.]), tensor(0.))
    """
    constraints = [each for each in (eq, ineq) if each is not None]

    def kkt(solution: tuple[Any, ...], *thetas: Any) -> tuple[Any, ...]:
        w, *multipliers = solution
        total = _gradient(f, w, thetas[:1], {})
        values = []
        for function, multiplier, theta in zip(constraints, multipliers, thetas[1:], strict=True):
            at: Any = torch.func.vjp(lambda w, own=theta, g=function: g(w, own), w)
            value, pull = at
            total = _combined(torch.add, total, pull(multiplier)[0])
            values.append(_combined(torch.mul, multiplier, value) if function is ineq else value)
        return (total, *values)

    return Condition(kkt, (f, *constraints))


@suggesting
def projected_gradient(f: Function, projection: Function, eta: float = 1.0) -> Condition:
    """``w = projection(w - eta * grad f(w, *args), theta)``: a minimum over a convex set.

    The derivative does not depend on ``eta``.

    Args:
        f: the objective ``f(w, *args)``.
        projection: ``projection(x, theta)``, such as :func:`ferrostep.projections.simplex`.
        eta: any step above 0. Default 1.

    Returns:
        A map ``T(w, *args, theta)``; with ``theta`` None, ``projection(x)`` is called.

    Raises:
        TypeError, ValueError: an argument is no function, or ``eta`` no number above 0.

    Example:
        >>> from ferrostep.projections import simplex
        >>> T = projected_gradient(lambda w, c: (w - c).square().sum() / 2, simplex)
        >>> T(torch.tensor([0.75, 0.25]), torch.tensor([1.0, 0.5]), None)
        tensor([0.7500, 0.2500])
    """
    eta = positive("eta", eta)

    def projected_gradient(w: Any, *args: Any) -> Any:
        *own, theta = args
        return _projected(projection, _stepped(w, _gradient(f, w, tuple(own), {}), eta), theta)

    return Condition(projected_gradient, (f, projection))


@suggesting
def proximal_gradient(f: Function, prox: Function, eta: float = 1.0) -> Condition:
    """``w = prox(w - eta * grad f(w, *args), theta, eta)``: a minimum of ``f + g``, the lasso's and the like.

    Args:
        f: the smooth part ``f(w, *args)``.
        prox: ``prox(x, theta, eta)``, the proximal operator of ``eta * g(., theta)``.
        eta: any step above 0, of which the derivative does not depend. Default 1.

    Returns:
        A map ``T(w, *args, theta)``.

    Raises:
        TypeError, ValueError: an argument is no function, or ``eta`` no number above 0.

    Example:
        >>> def soft(x, level, eta):
        ...     return x.sign() * (x.abs() - eta * level).clamp(min=0.0)
        >>> T = proximal_gradient(lambda w, c: (w - c).square().sum() / 2, soft)
        >>> T(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 0.5]), torch.tensor(1.0))
        tensor([2., 0.])
    """
    eta = positive("eta", eta)

    def proximal_gradient(w: Any, *args: Any) -> Any:
        *own, theta = args
        return prox(_stepped(w, _gradient(f, w, tuple(own), {}), eta), theta, eta)

    return Condition(proximal_gradient, (f, prox))


@suggesting
def mirror_descent(f: Function, projection: Function, mirror: Function, eta: float = 1.0) -> Condition:
    """``w = projection(mirror(w) - eta * grad f(w, *args), theta)``: a minimum over a set, with another geometry.

    Args:
        f: the objective ``f(w, *args)``.
        projection: ``projection(x, theta)``, back from the dual space; on the simplex with the entropy it is
            ``softmax(x)``.
        mirror: the gradient of the mirror's function; of the entropy ``log``.
        eta: any step above 0. Default 1.

    Returns:
        A map ``T(w, *args, theta)``; with ``theta`` None, ``projection(x)`` is called.

    Raises:
        TypeError, ValueError: an argument is no function, or ``eta`` no number above 0.

    Example:
        >>> T = mirror_descent(lambda w, c: w @ (c + w.log()), lambda x: x.softmax(-1), torch.log)
        >>> T(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), None)
        tensor([0.5000, 0.5000])
    """
    eta = positive("eta", eta)

    def mirror_descent(w: Any, *args: Any) -> Any:
        *own, theta = args
        moved = _stepped(tree_map(mirror, w), _gradient(f, w, tuple(own), {}), eta)
        return _projected(projection, moved, theta)

    return Condition(mirror_descent, (f, projection, mirror))


@suggesting
def block_proximal(f: Function, proxes: Sequence[Function], etas: Sequence[float] | None = None) -> Condition:
    """A proximal step of each block of ``w``, all from one gradient: the minimum that descent by blocks ends at.

    Args:
        f: the smooth part ``f(w, *args)`` of a tuple or list w of blocks.
        proxes: for each block ``prox(x, theta, eta)``.
        etas: for each a step above 0. Default: 1.

    Returns:
        A map ``T(w, *args, thetas)``, with a theta for each block.

    Raises:
        TypeError, ValueError: an argument is no function, or there is another number of blocks, thetas or steps.

    Example:
        >>> def soft(x, level, eta):
        ...     return x.sign() * (x.abs() - eta * level).clamp(min=0.0)
        >>> T = block_proximal(lambda w, c: ((w[0] - c) ** 2 + (w[1] + c) ** 2) / 2, [soft, lambda x, *_: x])
        >>> T((torch.tensor(2.0), torch.tensor(-3.0)), torch.tensor(3.0), (torch.tensor(1.0), None))
        (tensor(2.), tensor(-3.))
    """
    proxes = listed("proxes", proxes)
    steps = [positive(f"etas[{i}]", eta) for i, eta in enumerate([1.0] * len(proxes) if etas is None else etas)]
    if len(steps) != len(proxes):
        raise Problem.COUNT.of("etas", f"{len(steps)} numbers", f"{len(proxes)}: one for each of proxes")

    def block_proximal(w: Any, *args: Any) -> Any:
        *own, thetas = args
        for name, given in (("w", w), ("thetas", thetas)):
            if not isinstance(given, (tuple, list)) or len(given) != len(proxes):
                got = f"{len(given)} blocks" if isinstance(given, (tuple, list)) else f"type {type(given).__name__}"
                raise Problem.COUNT.of(name, got, f"{len(proxes)}, as proxes has")
        gradient = _gradient(f, w, tuple(own), {})
        each = zip(proxes, w, gradient, thetas, steps, strict=True)
        return type(w)(prox(_stepped(block, g, eta), theta, eta) for prox, block, g, theta, eta in each)

    return Condition(block_proximal, (f, *proxes))


@suggesting
def newton(G: Function, eta: float = 1.0) -> Condition:
    """``w = w - eta * [dG/dw]^-1 G(w, *args)``: Newton's step, with the whole Jacobian, for some hundred unknowns.

    At a root its own Jacobian is ``(1 - eta) I``, so that an iteration solves the systems of the derivatives.

    Args:
        G: the condition, zero at the solution, of its structure.
        eta: the step, above 0. Default 1.

    Returns:
        A map ``T(w, *args)``.

    Raises:
        TypeError, ValueError: ``G`` is no function, or ``eta`` no number above 0.

    Example:
        >>> newton(lambda w, a: w * w - a)(torch.tensor(2.0), torch.tensor(5.0))
        tensor(2.2500)
    """
    eta = positive("eta", eta)

    @_signed_like(G)
    def newton(w: Any, *args: Any, **keywords: Any) -> Any:
        leaves, spec = tree_flatten(w)
        sizes = [each.numel() for each in leaves]

        def back(flat: Tensor) -> list[Tensor]:
            return [part.view(each.shape) for part, each in zip(torch.split(flat, sizes), leaves, strict=True)]

        def at(flat: Tensor) -> Tensor:
            found = tree_flatten(G(tree_unflatten(back(flat), spec), *args, **keywords))[0]
            return torch.cat([each.reshape(-1) for each in found])

        flat = torch.cat([each.reshape(-1) for each in leaves])
        step = torch.linalg.solve(torch.func.jacrev(at)(flat), at(flat))
        return tree_unflatten(back(flat - eta * step), spec)

    return Condition(newton, (G,))


def linear(solver: Callable[[], solvers.Solver] = solvers.gmres) -> Condition:
    """``A w = b``, a condition ``F(w, A, b)`` of a matrix (n, n) and a vector (n,).

    Args:
        solver: the function that makes the solver. Default: :func:`ferrostep.implicit.linear.gmres`.

    Returns:
        A condition F.

    Raises:
        TypeError: ``solver`` is no function.

    Example:
        >>> linear()(torch.tensor([1.0, 2.0]), torch.eye(2), torch.tensor([1.0, 1.0]))
        tensor([0., 1.])
    """
    if not callable(solver):
        raise wrong_kind("solver", solver, "a function such as ferrostep.implicit.linear.gmres")

    def linear(w: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return A @ w - b

    return Condition(linear, (), solver=solver)


def eq_qp() -> Condition:
    """A quadratic program with equalities: ``min w'Qw/2 + c'w`` where ``E w = d``, by its KKT system.

    The solution is ``(w, nu)``, of shapes (n,) and (m,); ``F = (Q w + c + E'nu, E w - d)``. Its Jacobian is symmetric
    and indefinite, for which :func:`ferrostep.implicit.linear.dense` is taken.

    Returns:
        A condition ``F(solution, Q, c, E, d)``, with Q symmetric (n, n), E (m, n).

    Example:
        >>> Q, c = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([1.0, -1.0])
        >>> solution = torch.tensor([-0.75, 1.75]), torch.tensor([-0.375])
        >>> eq_qp()(solution, Q, c, torch.ones(1, 2), torch.ones(1))
        (tensor([0., 0.]), tensor([0.]))
    """

    def eq_qp(solution: tuple[Tensor, Tensor], Q: Tensor, c: Tensor, E: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        w, nu = solution
        return Q @ w + c + E.mT @ nu, E @ w - d

    return Condition(eq_qp, (), solver=solvers.dense)
