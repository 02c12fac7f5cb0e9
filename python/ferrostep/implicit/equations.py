"""Conditions of roots on lists of tensors, and how their roots are found: by a user's solver, or by a linear one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ferrostep.curvature.products import graph_of
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.implicit import linear, vectors
from ferrostep.implicit.captured import captured, names_of
from ferrostep.implicit.linear import described, vector_of

Check: TypeAlias = Literal["warn", "raise"] | None
Tensors: TypeAlias = Sequence[Tensor]
Product: TypeAlias = Callable[[Tensors], tuple[Tensor, ...]]


class ConvergenceWarning(UserWarning):
    """What a solver found is not what it was to find, and so the derivatives are not those of the solution.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", ConvergenceWarning)  # raise it
        >>> warnings.simplefilter("default", ConvergenceWarning)  # and once more show it
    """


def tell(check: Check, message: str) -> None:
    """Warn, raise RuntimeError, or say nothing."""
    if check == "raise":
        raise RuntimeError(message)
    if check == "warn":
        warnings.warn(message, ConvergenceWarning, stacklevel=2)


def tell_unsolved(check: Check, system: str, solver: linear.Solver, info: linear.Info) -> None:
    """Tell of a linear system that was not solved."""
    if info.converged and not info.reason:
        return
    after = "" if info.reason is None else f": {info.reason}"
    tell(
        check,
        f"{system} was not solved: {solver.name} ended after {info.iterations} iterations with a residual of "
        f"{info.residual:.3g}, expected at most {info.tolerance:.3g}{after}",
    )


def check_check(check: Any) -> None:
    """Raise for a ``check`` that is none."""
    if check not in ("warn", "raise", None):
        raise wrong_choice("check", check, "warn", "raise", None)


def solver_of(name: str, solver: Any, default: Callable[[], linear.Solver]) -> linear.Solver:
    """A solver that is given, or the default."""
    solver = default() if solver is None else solver
    if not isinstance(solver, linear.Solver):
        raise wrong_kind(name, solver, "a solver, such as ferrostep.implicit.linear.cg()")
    return solver


@dataclass(frozen=True)
class Rule:
    """What a decorator has been told."""

    condition: Callable[..., Any]
    solve: linear.Solver
    symmetric: bool
    has_aux: bool
    argnums: tuple[int, ...] | None
    check: Check
    tol: float
    batched: bool


class Equation:
    """A condition of a root on lists of tensors, and how the root is found.

    The tensors of a call are ``initial`` ones that have no part in the condition, then its arguments.
    """

    rule: Rule
    initial: int
    levels: int
    """How many batches are the first dimensions of all tensors."""

    @property
    def unknowns(self) -> int:
        """How many tensors the root is."""
        raise NotImplementedError

    def find(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """The root, and what else the solver returned."""
        raise NotImplementedError

    def _residual(self, w: Tensors, theta: Tensors) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def residual(self, w: Tensors, theta: Tensors) -> tuple[Tensor, ...]:
        """F, of each sample of the batches."""
        function: Any = self._residual
        for _ in range(self.levels):
            function = torch.vmap(function)
        result: tuple[Tensor, ...] = function(tuple(w), tuple(theta))
        return result

    def pull(self, w: Tensors, theta: Tensors) -> Product:
        """``u -> A^T u``, itself differentiable."""
        pulled: Any = torch.func.vjp(lambda *w: self.residual(w, theta), *w)[1]
        return lambda u: pulled(tuple(u))

    def push(self, w: Tensors, theta: Tensors) -> Product:
        """``d -> A d``, itself differentiable."""
        if self.rule.symmetric:
            return self.pull(w, theta)
        return pushed(lambda *w: self.residual(w, theta), w, w)

    def products(self, w: Tensors, theta: Tensors, wanted: Iterable[int] = ()) -> tuple[Product, Product, Product]:
        """``u -> A^T u``, ``d -> A d`` and ``u -> B^T u`` for some arguments, of plain tensors: not differentiable.

        For solvers, from one evaluation of F, and by torch.autograd, which takes less time than torch.func.
        """
        points = [each.detach().requires_grad_() for each in w]
        arguments = [each.detach() for each in theta]
        asked = [arguments[i].requires_grad_() for i in wanted]
        with torch.enable_grad():
            at = self.residual(points, arguments)
        pull = recorded(at, points)
        made: list[Product] = []

        def push(d: Tensors) -> tuple[Tensor, ...]:
            if not made:
                zeros = [torch.zeros_like(each, requires_grad=True) for each in at]
                made.append(recorded(recorded(at, points, create_graph=True)(zeros), zeros))
            return made[0](d)

        return pull, pull if self.rule.symmetric else push, recorded(at, asked)


def recorded(at: Tensors, points: Tensors, *, create_graph: bool = False) -> Product:
    """The product with the transpose of the Jacobian of what has been computed from some points."""
    with_graph = [each for each in at if each.requires_grad]

    def product(u: Tensors) -> tuple[Tensor, ...]:
        if not with_graph:
            return tuple(map(torch.zeros_like, points))
        vectors = [each for one, each in zip(at, u, strict=True) if one.requires_grad]
        return torch.autograd.grad(
            with_graph,
            points,
            vectors,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    return product


def pushed(function: Callable[..., Any], points: Tensors, like: Tensors) -> Product:
    """The product with a Jacobian, as the transpose of that with its transpose: no forward mode is asked of anyone."""

    def pulled(*u: Tensor) -> Any:
        return torch.func.vjp(function, *points)[1](u)

    product: Any = torch.func.vjp(pulled, *map(torch.zeros_like, like))[1]
    return lambda tangents: product(tuple(tangents))


@dataclass
class Found:
    """The structure of what a solver has returned: of the solution, and of the rest with the places of its tensors."""

    solution: TreeSpec | None = None
    aux: tuple[TreeSpec, list[Any], list[int]] | None = None


@dataclass
class Call(Equation):
    """One call of a solver: its trees, with the places of their tensors."""

    rule: Rule
    solver: Callable[..., Any]
    name: str
    spec: TreeSpec
    leaves: list[Any]
    """Of ``(initial, args, keywords)``, with None where a tensor goes."""
    places: list[int]
    initial: int
    records: bool
    keywords: frozenset[str]
    levels: int = 0
    found: Found = field(default_factory=Found)

    @property
    def unknowns(self) -> int:
        """How many tensors the solution is, which its solver has to say first."""
        return 0 if self.found.solution is None else self.found.solution.num_leaves

    def _trees(self, tensors: Tensors) -> Any:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.spec)

    def find(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the solver, and look at what it found."""
        plain = [each.detach() for each in tensors]
        initial, args, keywords = self._trees(plain)
        with torch.enable_grad():
            found = self.solver(initial, *args, **keywords)
        aux: tuple[Tensor, ...] = ()
        if self.rule.has_aux:
            if not isinstance(found, tuple) or len(found) != 2:
                raise wrong_kind(f"what {self.name} returned", found, "a pair (solution, aux), as of has_aux=True")
            found, aux = found[0], self._keep(found[1])
        w, self.found.solution = vector_of(f"the solution of {self.name}", found)
        w = vectors.copied(w)  # a solver may use its memory again, which no version counter tells of NumPy's
        self._look_at(w, plain)
        return (*w, *aux)

    def _keep(self, aux: Any) -> tuple[Tensor, ...]:
        leaves, spec = tree_flatten(aux)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.found.aux = spec, leaves, places
        return tuple(leaves[i].detach().clone() for i in places)

    def result(self, outputs: Tensors) -> Any:
        """What the decorated function returns."""
        assert self.found.solution is not None
        w = tree_unflatten(outputs[: self.unknowns], self.found.solution)
        if self.found.aux is None:
            return w
        spec, leaves, places = self.found.aux
        for place, tensor in zip(places, outputs[self.unknowns :], strict=True):
            leaves[place] = tensor
        return w, tree_unflatten(leaves, spec)

    def _residual(self, w: Tensors, theta: Tensors) -> tuple[Tensor, ...]:
        solution = self.found.solution
        assert solution is not None
        none = [None] * self.initial
        _, args, keywords = self._trees([*none, *theta])  # type: ignore[list-item]
        own = {name: value for name, value in keywords.items() if name in self.keywords}
        found, spec = tree_flatten(self.rule.condition(tree_unflatten(list(w), solution), *args, **own))
        right = spec == solution and all(isinstance(each, Tensor) for each in found)
        if not right or [each.shape for each in found] != [each.shape for each in w]:
            got = described(found) if all(isinstance(each, Tensor) for each in found) else "what is no tensor"
            expected = f"{described(w)}, in a structure like the solution's"
            raise Problem.SHAPE.of(f"what {name_of(self.rule.condition)} returned", got, expected)
        return tuple(found)

    def _look_at(self, w: list[Tensor], tensors: list[Tensor]) -> None:
        """Refuse a condition that captures what needs gradients; tell of a solution that is none."""
        theta = tensors[self.initial :]
        with torch.enable_grad():
            pair: Any = torch.func.vjp(lambda *w: self.residual(w, theta), *w)
        at, pull = pair
        if self.records and any(each.requires_grad for each in at):
            raise refusal(self.rule.condition, leaves_of(at))
        if self.rule.check is None:
            return
        residual = vectors.norm(vectors.copied(at))
        scale = vectors.norm(vectors.copied(pull(tuple(w))))
        given = self._trees(tensors)[0]
        leaves, spec = tree_flatten(given)
        if spec == self.found.solution and all(isinstance(each, Tensor) for each in leaves) and vectors.fits(leaves, w):
            scale = max(scale, vectors.norm(vectors.copied(self.residual(leaves, theta))))
        if not residual <= self.rule.tol * scale:
            name = name_of(self.rule.condition)
            tell(
                self.rule.check,
                f"{self.name} has not converged: the norm of {name} at what it returned is {residual:.3g}, expected at "
                f"most tol = {self.rule.tol:g} of its scale, {scale:.3g}; derivatives are wrong by as much or more",
            )


@dataclass
class Linear(Equation):
    """``A^T u + c = 0``, or ``A u + c = 0``, at the root of another equation, whose tensors come after c."""

    parent: Any
    transposed: bool
    levels: int = 0
    initial: int = 0
    rule: Rule = field(init=False)

    def __post_init__(self) -> None:
        """Take over what is the parent's."""
        self.rule = self.parent.rule

    @property
    def unknowns(self) -> int:
        """As many as the parent's."""
        count: int = self.parent.unknowns
        return count

    def _parts(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        n = self.unknowns
        return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]

    def _residual(self, u: Tensors, theta: Tensors) -> tuple[Tensor, ...]:
        c, w, rest = self._parts(theta)
        product = (self.parent.pull if self.transposed else self.parent.push)(w, rest)
        return tuple(one + other for one, other in zip(product(u), c, strict=True))

    def find(self, tensors: Tensors) -> tuple[Tensor, ...]:
        """Solve the system."""
        c, w, theta = self._parts([each.detach() for each in tensors])
        parent = replace(self.parent, levels=self.parent.levels + self.levels)
        pull, push, _ = parent.products(w, theta)
        return solution_of(self.rule, *((pull, push) if self.transposed else (push, pull)), c)


def solution_of(rule: Rule, product: Product, transposed: Product, c: Tensors) -> tuple[Tensor, ...]:
    """The solution of ``A u + c = 0``; tell of a system that was not solved."""
    right = [-each for each in c]
    u, info = rule.solve.solve_lists(lambda x: list(product(x)), lambda x: list(transposed(x)), right)
    tell_unsolved(rule.check, "the linear system of the derivatives", rule.solve, info)
    return tuple(u)


def name_of(function: Any) -> str:
    """What errors call a function."""
    return getattr(function, "__name__", None) or type(function).__name__


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that the graphs of others end in."""
    return [node.variable for node in graph_of(*tensors) if hasattr(node, "variable")]


def refusal(condition: Callable[..., Any], tensors: list[Tensor]) -> RuntimeError:
    """The error for a condition that captures some tensors, or what was computed from them."""
    named = [each for _, each in captured(condition) if each.requires_grad]
    return RuntimeError(
        f"{name_of(condition)} captures tensors that would get no gradient: {names_of(condition, named or tensors)}; "
        "give them as arguments: what a module holds as dict(model.named_parameters()), for "
        "torch.func.functional_call, or what is to stay constant as x.detach()"
    )
