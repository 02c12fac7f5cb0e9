"""A Newton method whose damping follows the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ferrostep.curvature.diagonal import hutchinson_diagonal
from ferrostep.curvature.operators import FlatParameters
from ferrostep.curvature.products import (
    GaussNewtonProduct,
    HessianProduct,
    Product,
    called,
    evaluated,
    filled,
    first_derivatives,
    gradients_aside,
)
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import real, whole
from ferrostep.optim import shards
from ferrostep.optim.arguments import check_positive
from ferrostep.reference import checks
from ferrostep.reference import grad_norm_smooth as rule
from ferrostep.suggestions import suggesting

Approximation: TypeAlias = Literal["ggn", "fisher", "diag", "exact"]
Solver: TypeAlias = Literal["cholesky", "cg"]
Closure: TypeAlias = Callable[[], Any]
Solve: TypeAlias = Callable[[float], "Tensor | None"]
"""From a damping the step; None where the curvature allows none."""

PROBES = 10
"""Products of an estimated diagonal."""
AT_ONCE = 64
"""Products that are made together: as many times the memory of one backward pass."""
MOST_EXACT = 4 * AT_ONCE
"""Of so many unknowns the diagonal is no estimate: as many products at once take about the time of those."""
MOST_IN_DOUBLE = 5000
"""Systems of so many unknowns are solved in float64, whatever the parameters' dtype."""


class Point(NamedTuple):
    """What a closure tells of where the parameters are."""

    returned: Any
    loss: Tensor
    gradient: Tensor
    norm: float

    @property
    def size(self) -> tuple[float, float]:
        """The loss, and the gradient's norm."""
        return self.loss.item(), self.norm


class Group(dict[str, Any]):
    """The parameter group, which says why it has no learning rate."""

    def __missing__(self, name: str) -> Any:
        if name == "lr":
            raise KeyError("GradNormSmooth has no 'lr' to schedule: the radius gamma follows the gradient by itself")
        raise KeyError(name)


@suggesting
class GradNormSmooth(Optimizer):
    r"""A damped Newton method by gradient-normalized smoothness (arXiv 2506.13710, Algorithm 1).

    .. code-block:: text

        lam = norm(g) / (gamma + 1e-8);    d = -(H + lam * I)^-1 g
        if f(x) - f(x + d) >= norm(g(x + d))^2 / (8 * lam):   x <- x + d;  gamma <- max(2 * gamma, gamma_min)
        else:                                                 gamma <- gamma / 2, once more

    No step is longer than ``gamma``, the radius in which the gradient is about linear, which the method finds by
    itself: there is no learning rate, and schedulers of one raise KeyError. It is for deterministic problems of few
    parameters, all data at once: logistic and softmax regression, small networks. Random batches or dropout make its
    comparison of losses void.

    :meth:`step` takes a closure, as ``torch.optim.LBFGS`` does, that evaluates the loss and returns it; unlike there,
    it does not call ``backward``, and ``zero_grad`` is not needed:

    .. code-block:: python

        optimizer = GradNormSmooth(model.parameters(), hessian="exact")
        for _ in range(20):
            loss = optimizer.step(lambda: loss_fn(model(x), y))

    =============  ===========================================================================  =====================
    ``hessian``    H                                                                            what a step costs
    =============  ===========================================================================  =====================
    ``"ggn"``      Gauss-Newton matrix; the closure returns ``(loss, outputs)``, the loss       P products, 64 at a
                   computed from the outputs alone                                              time, or CG's
    ``"exact"``    the Hessian, which may be indefinite: more damping makes up for it           the same
    ``"fisher"``   ``g g'``, of rank one                                                        nothing
    ``"diag"``     the diagonal, clipped at 0 (experimental): of up to 256 unknowns exactly,    P products, 64 at a
                   of more by Hutchinson's estimate                                             time; 10
    a function     called once a step without arguments: a positive semi-definite tensor of     its own
                   shape (P, P), or a function of vectors of shape (P,)
    =============  ===========================================================================  =====================

    A factorization that fails, a direction of negative curvature and a loss that is not finite count as rejections.
    Where ``max_search`` trials are rejected, the parameters are as they were, bit for bit, and :attr:`stalled` is True.

    Args:
        params: parameters, of any shape, of dtype float32 or float64, on one device; one parameter group.
        gamma: the first radius. Default 1.
        gamma_min: the least radius after a step. Default 1e-9.
        max_search: trials of a step, at least 1. Default 40.
        hessian: see above. Default ``"ggn"``.
        solver: ``"cholesky"`` (default), for which H is made as a matrix of P x P numbers, or ``"cg"``, conjugate
            gradients on products. ``"fisher"`` and ``"diag"`` need none.
        cg_tol: the part of the gradient that conjugate gradients leave. Default 1e-2.

    State, of the first parameter (numbers, some 100 bytes in all): ``gamma``; ``n_evals``, how often the closure was
    called; ``prev_loss``, the loss where the parameters are; ``stalled``. Systems of up to 5000 unknowns are solved in
    float64.

    Raises:
        ValueError, TypeError: an impossible argument, several groups, 16-bit or complex parameters.
        NotImplementedError: DTensors.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = GradNormSmooth([x], hessian="exact")
        >>> for _ in range(4):
        ...     loss = optimizer.step(lambda: (x[0] ** 2 + 10 * x[1] ** 2) / 2)
        >>> x.detach().round(decimals=4), optimizer.state[x]["gamma"]
        (tensor([0.0029, 0.0000]), 16.0)
    """

    def __init__(
        self,
        params: ParamsT,
        gamma: float = 1.0,
        *,
        gamma_min: float = 1e-9,
        max_search: int = 40,
        hessian: Approximation | Callable[[], Any] = "ggn",
        solver: Solver = "cholesky",
        cg_tol: float = 1e-2,
    ) -> None:
        if not callable(hessian) and hessian not in get_args(Approximation):
            raise wrong_choice("hessian", hessian, *get_args(Approximation))
        if solver not in get_args(Solver):
            raise wrong_choice("solver", solver, *get_args(Solver))
        self.hessian = hessian
        self.solver = solver
        defaults = {"gamma": gamma, "gamma_min": gamma_min, "max_search": max_search, "cg_tol": cg_tol}
        _check_numbers(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the one parameter group.

        Args:
            param_group: with ``params``, and arguments of the constructor.

        Raises:
            ValueError, TypeError: there is one already, or as the constructor.
        """
        if self.param_groups:
            raise ValueError("GradNormSmooth takes one parameter group: its radius is that of all parameters together")
        super().add_param_group(param_group)
        try:
            self.param_groups[:] = [group] = [Group(self.param_groups[0])]
            _check_numbers(group)
            for i, p in enumerate(group["params"]):
                if shards.is_distributed(p):
                    raise NotImplementedError(f"parameter {i} is a DTensor, which GradNormSmooth does not take")
            FlatParameters(group["params"])
        except BaseException:
            self.param_groups.clear()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles have; torch's own would leave out what is not in the groups."""
        return {**super().__getstate__(), "hessian": self.hessian, "solver": self.solver}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What copies, pickles and ``load_state_dict`` set, whose groups are plain dicts."""
        super().__setstate__(state)
        self.param_groups[:] = map(Group, self.param_groups)

    @property
    def stalled(self) -> bool:
        """Whether the last step has found nothing better within ``max_search`` trials."""
        return bool(self._numbers["stalled"])

    @property
    def _numbers(self) -> dict[str, Any]:
        """The state."""
        (group,) = self.param_groups
        first = {"gamma": float(group["gamma"]), "n_evals": 0, "prev_loss": math.nan, "stalled": False}
        return {**first, **self.state.get(group["params"][0], {})}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take a step.

        Args:
            closure: evaluates the model and returns the loss, of shape (), with ``hessian="ggn"`` ``(loss, outputs)``.
                It is called once where the parameters are, and once for each trial.

        Returns:
            The loss before the step, detached.

        Raises:
            TypeError: there is no closure, or what it returns is no loss.
            ValueError: the loss or its gradient is not finite, or what ``hessian`` gives does not fit.
            RuntimeError: the closure has called ``backward``, or the loss cannot be differentiated as often.
            Exception: whatever is raised, the parameters and the state are as they were before.
        """
        if closure is None:
            raise TypeError("GradNormSmooth.step needs a closure, which returns the loss and does not call backward")
        (group,) = self.param_groups
        _check_numbers(group)
        flat, numbers = FlatParameters(group["params"]), self._numbers
        for i, p in enumerate(flat.params):
            checks.writable(f"parameter {i}", p)
        with gradients_aside(flat.params):
            here = evaluate(closure, flat, retain_graph=True)
            if not all(map(math.isfinite, here.size)):
                raise ValueError(
                    f"the loss is {here.size[0]} and its gradient's norm {here.norm}, expected finite ones"
                )
            numbers |= {"n_evals": numbers["n_evals"] + 1, "prev_loss": here.size[0], "stalled": False}
            if here.norm > 0:
                numbers["stalled"] = not self._search(closure, flat, here, numbers)
        self.state[flat.params[0]].update(numbers)
        return here.loss.detach()

    def _search(self, closure: Closure, flat: FlatParameters, here: Point, numbers: dict[str, Any]) -> bool:
        """Whether a trial was accepted, which then is where the parameters are; else they are where they were."""
        (group,) = self.param_groups
        solve = self._system(here, flat)
        for _ in range(group["max_search"]):
            lam = rule.damping(here.norm, numbers["gamma"])
            step, there = solve(lam), None
            if step is not None:
                numbers["n_evals"] += 1
                there = tried(step, closure, flat, partial(rule.is_accepted, here.size, lam=lam))
            numbers["gamma"] = rule.next_radius(numbers["gamma"], group["gamma_min"], there is not None)
            if there is not None:
                numbers["prev_loss"] = there.size[0]
                return True
        numbers["gamma"] = max(numbers["gamma"], group["gamma_min"])
        return False

    def _system(self, here: Point, flat: FlatParameters) -> Solve:
        """What gives the steps from here."""
        (group,) = self.param_groups
        dtype = torch.float64 if flat.size <= MOST_IN_DOUBLE else flat.dtype
        g = here.gradient.to(dtype)
        if self.hessian == "fisher":
            return partial(rule.by_rank_one, g, 1.0, g)
        if self.hessian == "diag" and flat.size <= MOST_EXACT:
            matrix = matrix_of(HessianProduct(here.loss, flat.params), flat).to(dtype)
            return partial(rule.by_diagonal, matrix.diagonal(), g)
        if self.hessian == "diag":
            generator = torch.Generator(flat.device).manual_seed(self._numbers["n_evals"])
            found = hutchinson_diagonal(
                here.loss, flat.params, num_samples=PROBES, generator=generator, all_reduce=False
            )
            return partial(rule.by_diagonal, flat.joined(found).to(dtype), g)
        if self.hessian == "ggn":
            return self._solver(GaussNewtonProduct(here.returned, flat.params), flat, g)
        if self.hessian == "exact":
            return self._solver(HessianProduct(here.loss, flat.params), flat, g)
        curvature = self._given(flat, dtype)
        if self.solver == "cg":
            product = partial(torch.mv, curvature) if isinstance(curvature, Tensor) else curvature
            return partial(rule.by_conjugate_gradients, product, g, tolerance=group["cg_tol"])
        matrix = curvature if isinstance(curvature, Tensor) else rule.of_products(curvature, g)
        return partial(rule.by_cholesky, matrix, g)

    def _solver(self, of_lists: Product, flat: FlatParameters, g: Tensor) -> Solve:
        """The steps with a matrix that autograd multiplies with."""
        (group,) = self.param_groups
        if self.solver == "cg":
            product = flat.multiplied_by(of_lists)
            return partial(rule.by_conjugate_gradients, lambda v: product(v).to(g.dtype), g, tolerance=group["cg_tol"])
        return partial(rule.by_cholesky, rule.symmetric_part(matrix_of(of_lists, flat).to(g.dtype)), g)

    def _given(self, flat: FlatParameters, dtype: torch.dtype) -> Tensor | Callable[[Tensor], Tensor]:
        """What the user's function gives: the matrix, or the function of vectors that multiplies with it."""
        assert callable(self.hessian)
        with torch.enable_grad():
            given = self.hessian()
        if callable(given):
            return partial(multiplied, given, dtype)
        if not isinstance(given, Tensor):
            raise wrong_kind("what hessian() gives", given, "a torch.Tensor, or a function of a vector")
        if given.shape != (flat.size, flat.size):
            raise Problem.SHAPE.of("what hessian() gives", list(given.shape), [flat.size, flat.size])
        return given.detach().to(dtype)


def matrix_of(product: Product, flat: FlatParameters) -> Tensor:
    """The matrix, of shape (P, P) and the parameters' dtype, from products of many vectors at once.

    One by one where a function in the graph does not take several, and where that is not the reason raises what is.
    """
    units = torch.eye(flat.size, dtype=flat.dtype, device=flat.device)
    try:
        rows = [flat.joined(product(flat.pieces(some), is_batched=True)) for some in torch.split(units, AT_ONCE)]
    except RuntimeError:
        rows = [flat.joined(product(flat.pieces(unit)))[None] for unit in units]
    return torch.cat(rows)


def multiplied(multiply: Callable[[Tensor], Any], dtype: torch.dtype, vector: Tensor) -> Tensor:
    """The product by a function of the user's, who may differentiate in it, and write to what it gets."""
    with torch.enable_grad():
        product = multiply(vector.clone())
    if not isinstance(product, Tensor):
        raise wrong_kind("a product by what hessian() gives", product, "a torch.Tensor")
    if product.shape != vector.shape:
        raise Problem.SHAPE.of("a product by what hessian() gives", list(product.shape), list(vector.shape))
    return product.detach().to(dtype)


def evaluate(closure: Closure, flat: FlatParameters, *, retain_graph: bool = False) -> Point:
    """The loss where the parameters are, and its gradient."""
    returned = called(closure)
    if any(p.grad is not None for p in flat.params):
        raise RuntimeError("the closure has called backward, expected only the loss")
    loss = evaluated(returned[0] if isinstance(returned, tuple) and returned else returned)
    found = first_derivatives(loss, flat.params, retain_graph=retain_graph)
    gradient = flat.joined(filled(found, flat.params))
    return Point(returned, loss, gradient, rule.norm_of(gradient))


def tried(
    step: Tensor, closure: Closure, flat: FlatParameters, accepts: Callable[[tuple[float, float]], bool]
) -> Point | None:
    """The point after a step, where the parameters then are; None, with the parameters as they were, if not accepted.

    They are written where autograd does not see it: products of conjugate gradients go through the graph of the
    point before, which is right again as soon as they are back.
    """
    kept = [p.detach().clone(memory_format=torch.preserve_format) for p in flat.params]
    accepted = False
    try:
        for p, x, piece in zip(flat.params, kept, flat.pieces(step), strict=True):
            p.data.copy_(rule.moved(x, piece))
        there = evaluate(closure, flat)
        accepted = accepts(there.size)
    finally:
        for p, x in zip(flat.params, kept, strict=True):
            if accepted:
                torch.autograd.graph.increment_version(p)
            else:
                p.data.copy_(x)
    return there if accepted else None


def _check_numbers(group: dict[str, Any]) -> None:
    """Raise TypeError or ValueError for impossible numbers of the group."""
    for name in ("gamma", "gamma_min", "cg_tol"):
        check_positive(name, real(name, group[name], 0.0))
    if not group["cg_tol"] < 1:
        raise Problem.NUMBER.of("cg_tol", group["cg_tol"], "less than 1")
    whole("max_search", group["max_search"], 1)
