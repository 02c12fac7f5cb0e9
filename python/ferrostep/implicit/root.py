"""Derivatives of what a solver finds, by the condition that it satisfies (arXiv 2105.15183).

Where ``F(w, theta) = 0`` with ``A = dF/dw`` and ``B = dF/dtheta`` there, ``dw = -A^-1 B dtheta``. The backward pass
solves ``A^T u = -v`` and returns ``B^T u``, forward mode solves ``A d = -B t``. Both systems are conditions of a root
themselves, of functions linear in it, and are differentiated by the same rule: so every order is.

Within transforms torch peels off the levels before it runs what is here: solvers see plain tensors, one of a batch at
a time or all with the batch as their first dimension.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from ferrostep.errors import Problem, wrong_kind
from ferrostep.implicit import linear, vectors
from ferrostep.implicit.captured import captured
from ferrostep.implicit.equations import (
    Call,
    Check,
    ConvergenceWarning,
    Equation,
    Linear,
    Rule,
    Tensors,
    check_check,
    leaves_of,
    name_of,
    pushed,
    refusal,
    solution_of,
    solver_of,
)
from ferrostep.implicit.linear import described, vector_of
from ferrostep.numpy.arrays import real, whole
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting

__all__ = ["ConvergenceWarning", "fixed_point", "root", "root_jvp", "root_vjp"]

Fit = TypeVar("Fit", bound=Callable[..., Any])


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(equation: Equation, *tensors: Tensor) -> tuple[Tensor, ...]:
        return equation.find(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.equation, *tensors = inputs
        n, initial = ctx.equation.unknowns, ctx.equation.initial
        ctx.others = len(output) - n
        ctx.mark_non_differentiable(*output[n:])
        ctx.save_for_backward(*output[:n], *tensors[initial:])
        ctx.save_for_forward(*output[:n], *tensors[initial:])

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        equation = ctx.equation
        n, initial = equation.unknowns, equation.initial
        w, theta = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1 + initial :]) if needed]
        gradients: Tensors
        if torch.is_grad_enabled() or checks.is_transformed():
            # Cloned: torch.func.hessian brings expanded zeros, to which it cannot write.
            u = _Root.apply(Linear(equation, True), *(each.clone() for each in v[:n]), *w, *theta)
            gradients = pulled_to(equation, w, theta, wanted, u)
        else:
            pull, push, across = equation.products(w, theta, wanted)
            gradients = across(solution_of(equation.rule, pull, push, v[:n])) if wanted else ()
        found: list[Tensor | None] = [None] * (1 + initial + len(theta))
        for i, gradient in zip(wanted, gradients, strict=True):
            found[1 + initial + i] = gradient
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        equation = ctx.equation
        n, initial = equation.unknowns, equation.initial
        primals = [forward_ad.unpack_dual(each).primal for each in ctx.saved_tensors]  # type: ignore[no-untyped-call]
        w, theta = primals[:n], primals[n:]
        moved = {i: t for i, t in enumerate(tangents[initial:]) if t is not None}
        # torch switches forward mode off here, for the levels below, too, at which products are to have tangents.
        with forward_ad._set_fwd_grad_enabled(True):
            return (*pushed_from(equation, w, theta, moved), *[None] * ctx.others)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], equation: Any, *tensors: Tensor) -> Any:
        dims = in_dims[1:]
        if equation.rule.batched or info.batch_size == 0:
            all_with = [
                x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                for x, dim in zip(tensors, dims, strict=True)
            ]
            outputs: Any = _Root.apply(replace(equation, levels=equation.levels + 1), *all_with)
            return outputs, (0,) * len(outputs)
        each = [
            _Root.apply(
                equation,
                *(x if dim is None else x.select(dim, i) for x, dim in zip(tensors, dims, strict=True)),
            )
            for i in range(info.batch_size)
        ]
        outputs = tuple(torch.stack(one) for one in zip(*each, strict=True))
        return outputs, (0,) * len(outputs)


def pulled_to(equation: Equation, w: Tensors, theta: Tensors, wanted: list[int], u: Tensors) -> tuple[Tensor, ...]:
    """``B^T u`` for some of the arguments."""

    def of_wanted(*some: Tensor) -> tuple[Tensor, ...]:
        full = list(theta)
        for i, each in zip(wanted, some, strict=True):
            full[i] = each
        return equation.residual(w, full)

    if not wanted:
        return ()
    result: tuple[Tensor, ...] = torch.func.vjp(of_wanted, *(theta[i] for i in wanted))[1](tuple(u))
    return result


def pushed_from(equation: Equation, w: Tensors, theta: Tensors, moved: dict[int, Tensor]) -> tuple[Tensor, ...]:
    """``-A^-1 B t`` with tangents of some of the arguments."""

    def of_moved(*some: Tensor) -> tuple[Tensor, ...]:
        full = list(theta)
        for i, each in zip(moved, some, strict=True):
            full[i] = each
        return equation.residual(w, full)

    if not moved:
        return tuple(map(torch.zeros_like, w))
    right = pushed(of_moved, [theta[i] for i in moved], w)(list(moved.values()))
    result: tuple[Tensor, ...] = _Root.apply(Linear(equation, False), *right, *w, *theta)
    return result


def _call(rule: Rule, solver: Callable[..., Any], initial: Any, args: Any, keywords: Any) -> tuple[Call, list[Tensor]]:
    """A call with its tensors: all leaves that are some, so that transforms see them."""
    if checks.is_transformed():
        inner = [each for _, each in captured(rule.condition) if _is_of_transform(each)]
        if inner:
            raise refusal(rule.condition, inner)
    leaves, spec = tree_flatten((initial, args, keywords))
    first = len(tree_flatten(initial)[0])
    constant: set[int] = set(range(first))
    if rule.argnums is not None:
        for number in rule.argnums:
            if number > len(args):
                raise Problem.NUMBER.of("argnums", number, f"1 to {len(args)}, the arguments of this call")
        place = first
        for number, each in enumerate(args, 1):
            count = len(tree_flatten(each)[0])
            constant |= set() if number in rule.argnums else set(range(place, place + count))
            place += count
    known = inspect.signature(rule.condition).parameters.values()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known)
    names = frozenset(keywords if takes_all else [each.name for each in known if each.name in keywords])
    for name, value in keywords.items():
        if name not in names and any(isinstance(x, Tensor) and x.requires_grad for x in tree_flatten(value)[0]):
            raise ValueError(f"{name} requires gradients, but {name_of(rule.condition)} has no argument of that name")
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i].detach() if i in constant else leaves[i] for i in places]
    for tensor in tensors:
        if tensor.is_complex() and tensor.requires_grad:
            raise Problem.NOT_REAL.of(
                f"an argument of {name_of(solver)}", tensor.dtype, "a real one to differentiate in"
            )
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    guesses = sum(place < first for place in places)
    records = torch.is_grad_enabled()
    return Call(rule, solver, name_of(solver), spec, rest, places, guesses, records, names), tensors


def _is_of_transform(x: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    tangent = forward_ad.unpack_dual(x).tangent if forward_ad._current_level >= 0 else None  # type: ignore[no-untyped-call]
    return tangent is not None


def _rule(
    condition: Callable[..., Any],
    solve: linear.Solver | None,
    has_aux: bool,
    argnums: int | Sequence[int] | None,
    check: Check,
    tol: float,
    batched: bool,
) -> Rule:
    if not callable(condition):
        raise wrong_kind("F", condition, "a function")
    solve = solver_of("solve", solve, getattr(condition, "solver", None) or linear.gmres)
    check_check(check)
    numbers = None
    if argnums is not None:
        given = argnums if isinstance(argnums, Sequence) else (argnums,)
        numbers = tuple(whole("argnums", each, 1) for each in given)
    symmetric = bool(getattr(condition, "symmetric", False))
    return Rule(condition, solve, symmetric, has_aux, numbers, check, real("tol", tol, 0.0), batched)


@suggesting
def root(
    F: Callable[..., Any],
    *,
    solve: linear.Solver | None = None,
    has_aux: bool = False,
    argnums: int | Sequence[int] | None = None,
    check: Check = "warn",
    tol: float = 1e-3,
    batched: bool = False,
) -> Callable[[Fit], Fit]:
    """Make the solution that a solver finds differentiable, by the condition ``F(w, *args) = 0`` that it satisfies.

    The solver is a function ``(initial, *args, **keywords) -> w`` of any kind. It is run as it is, on tensors that
    require no gradients; its steps are not recorded, so memory does not grow with their number. The solution has
    derivatives in the arguments, in both modes and of every order, also under ``torch.func``.

    Args:
        F: the condition, of the solution and the solver's arguments; a tree like the solution's. Keywords go by F's
            names. Tensors that F captures and that require gradients are refused. See
            :mod:`ferrostep.implicit.optimality` for the conditions of optimization.
        solve: for the linear systems of the derivatives, see :mod:`ferrostep.implicit.linear`. Default: what F
            suggests (CG for ``stationary``), else ``gmres()``.
        has_aux: the solver returns ``(w, aux)``; ``aux`` is handed on, without derivatives. Default False.
        argnums: in which arguments to differentiate, as F counts them: 1 is the first after w. The others count as
            constants. Default: all.
        check: what to do where the solution or a linear system's has not converged: ``"warn"`` (default, a
            :class:`ConvergenceWarning`), ``"raise"`` (RuntimeError) or None.
        tol: the solution has converged where the norm of F is at most so much of ``A^T w``'s, or of F's at the initial
            guess if that is larger. Default 1e-3.
        batched: under vmap call the solver once, with the batch as the first dimension of all tensors, and solve the
            linear systems of a batch as one. Default False: once for each sample.

    Tensors of the solution have any shape, also (), and dtype float32 or float64; arguments may be of any kind. The
    initial guess has the derivative None (0), whether the solver uses it or not.

    Returns:
        A decorator.

    Raises:
        TypeError, ValueError: an impossible argument; from the decorated function, a solution of other dtypes, or F's
            value of another structure than the solution.
        RuntimeError: from the decorated function: F captures tensors that require gradients; with ``check="raise"``
            what has not converged, also in backward.

    Example:
        >>> from ferrostep.implicit import optimality
        >>> def loss(w, decay):
        ...     return ((w - 3.0) ** 2).sum() + decay * (w**2).sum()
        >>> @root(optimality.stationary(loss))
        ... def fit(initial, decay):
        ...     return torch.full_like(initial, 3.0) / (1.0 + decay)
        >>> decay = torch.tensor(0.5, requires_grad=True)
        >>> fit(torch.zeros(2), decay).sum().backward()
        >>> decay.grad
        tensor(-2.6667)
    """
    rule = _rule(F, solve, has_aux, argnums, check, tol, batched)

    def decorate(solver: Fit) -> Fit:
        if not callable(solver):
            raise wrong_kind("the solver", solver, "a function")

        @functools.wraps(solver)
        def solved(initial: Any, /, *args: Any, **keywords: Any) -> Any:
            call, tensors = _call(rule, solver, initial, args, keywords)
            return call.result(_Root.apply(call, *tensors))

        return solved  # type: ignore[return-value]

    return decorate


class Displacement:
    """``F(w, ...) = T(w, ...) - w``: zero at the fixed points of T."""

    def __init__(self, T: Callable[..., Any]) -> None:
        functools.update_wrapper(self, T, updated=())
        self.map = T
        self.symmetric = getattr(T, "symmetric", False)
        self.solver = getattr(T, "solver", None)

    def __call__(self, w: Any, *args: Any, **keywords: Any) -> Any:
        """The displacement, of the structure of the map's value."""
        at, spec = tree_flatten(self.map(w, *args, **keywords))
        leaves, own = tree_flatten(w)
        if own != spec or [each.shape for each in at] != [each.shape for each in leaves]:
            return tree_unflatten(at, spec)  # which is refused
        return tree_unflatten([one - other for one, other in zip(at, leaves, strict=True)], spec)


@suggesting
def fixed_point(
    T: Callable[..., Any],
    *,
    solve: linear.Solver | None = None,
    has_aux: bool = False,
    argnums: int | Sequence[int] | None = None,
    check: Check = "warn",
    tol: float = 1e-3,
    batched: bool = False,
) -> Callable[[Fit], Fit]:
    """Make a fixed point ``w = T(w, *args)`` that a solver finds differentiable: :func:`root` of ``T(w, *args) - w``.

    Args:
        T: the map, from the solution and the solver's arguments to a tree like the solution's.
        solve, has_aux, argnums, check, tol, batched: as of :func:`root`, of the same shapes and dtypes.

    Returns:
        A decorator.

    Raises:
        TypeError, ValueError, RuntimeError: as of :func:`root`.

    Example:
        >>> @fixed_point(lambda w, a: (w + a / w) / 2)
        ... def square_root(initial, a):
        ...     return a.sqrt()
        >>> torch.func.grad(square_root, argnums=1)(None, torch.tensor(4.0))
        tensor(0.2500)
    """
    if not callable(T):
        raise wrong_kind("T", T, "a function")
    return root(Displacement(T), solve=solve, has_aux=has_aux, argnums=argnums, check=check, tol=tol, batched=batched)


def _known(F: Callable[..., Any], w: Any, args: Any, solve: linear.Solver | None, check: Check) -> Any:
    """A call whose solution is given, its solution's tensors and its arguments'."""
    rule = _rule(F, solve, False, None, check, 1e-3, False)
    leaves, spec = vector_of("w", w)
    if not isinstance(args, tuple):
        raise wrong_kind("args", args, "a tuple of the arguments of F after w")
    call, tensors = _call(rule, lambda *_: w, None, args, {})
    call.found.solution = spec
    if call.records:
        at = call.residual([each.detach() for each in leaves], [each.detach() for each in tensors])
        if any(each.requires_grad for each in at):
            raise refusal(F, leaves_of(at))
    return call, leaves, tensors


@suggesting
def root_vjp(
    F: Callable[..., Any],
    w: Any,
    args: tuple[Any, ...],
    v: Any,
    *,
    solve: linear.Solver | None = None,
    check: Check = "warn",
) -> tuple[Any, ...]:
    """The product of a cotangent with the Jacobian of a root in its arguments, without a decorator.

    Args:
        F: the condition, as of :func:`root`.
        w: the root, a tensor or a pytree of tensors of any shape, float32 or float64.
        args: the arguments of F after w.
        v: the cotangent, like ``w``.
        solve, check: as of :func:`root`; that w is a root is not checked.

    Returns:
        One for each of ``args``, like it; None for what is no tensor of floats.

    Raises:
        TypeError, ValueError, RuntimeError: as of :func:`root`.

    Example:
        >>> root_vjp(lambda w, a: w * w - a, torch.tensor(3.0), (torch.tensor(9.0),), torch.tensor(1.0))
        (tensor(0.1667),)
    """
    call, leaves, theta = _known(F, w, args, solve, check)
    cotangent, spec = vector_of("v", v)
    if spec != call.found.solution or not vectors.fits(cotangent, leaves):
        raise Problem.SHAPE.of("v", described(cotangent), f"{described(leaves)}, as w")
    wanted = [i for i, each in enumerate(theta) if each.is_floating_point()]
    u = _Root.apply(Linear(call, True), *cotangent, *leaves, *theta)
    found: list[Any] = [None] * len(theta)
    for i, gradient in zip(wanted, pulled_to(call, leaves, theta, wanted, u), strict=True):
        found[i] = gradient
    _, products, _ = call._trees(found)
    return tuple(_only_tensors(each) for each in products)


def _only_tensors(tree: Any) -> Any:
    leaves, spec = tree_flatten(tree)
    return tree_unflatten([each if isinstance(each, Tensor) else None for each in leaves], spec)


@suggesting
def root_jvp(
    F: Callable[..., Any],
    w: Any,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    solve: linear.Solver | None = None,
    check: Check = "warn",
) -> Any:
    """The product of the Jacobian of a root in its arguments with tangents of these, without a decorator.

    Args:
        F, w, args, solve, check: as of :func:`root_vjp`, of the same shapes and dtypes.
        tangents: one for each of ``args``, like it; None, also within one, for what stays.

    Returns:
        The tangent of the root, like ``w``.

    Raises:
        TypeError, ValueError, RuntimeError: as of :func:`root`.

    Example:
        >>> root_jvp(lambda w, a: w * w - a, torch.tensor(3.0), (torch.tensor(9.0),), (torch.tensor(6.0),))
        tensor(1.)
    """
    call, leaves, theta = _known(F, w, args, solve, check)
    if not isinstance(tangents, tuple) or len(tangents) != len(args):
        got = f"{len(tangents)} entries" if isinstance(tangents, tuple) else f"type {type(tangents).__name__}"
        raise Problem.COUNT.of("tangents", got, f"a tuple of {len(args)}, one for each of args")
    moved: dict[int, Tensor] = {}
    place = 0
    for number, (arg, tangent) in enumerate(zip(args, tangents, strict=True)):
        own, spec = tree_flatten(arg)
        given, theirs = ([None] * len(own), spec) if tangent is None else tree_flatten(tangent)
        if theirs != spec:
            raise Problem.SHAPE.of(f"tangents[{number}]", str(theirs), f"{spec}, as args[{number}]")
        for value, t in zip(own, given, strict=True):
            if not isinstance(value, Tensor):
                continue
            if t is not None:
                if not isinstance(t, Tensor) or t.shape != value.shape:
                    raise Problem.SHAPE.of(f"tangents[{number}]", described([t]), f"{described([value])}, as args")
                moved[place] = t
            place += 1
    return tree_unflatten(list(pushed_from(call, leaves, theta, moved)), call.found.solution)
