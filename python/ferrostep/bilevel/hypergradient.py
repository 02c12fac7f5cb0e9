"""The gradient of the upper loss through the solution of the lower problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ferrostep.bilevel.levels import Closure, Gradient, both, gradient, value_of
from ferrostep.curvature.products import double_backward, filled
from ferrostep.gradients.lists import combine
from ferrostep.implicit import linear
from ferrostep.implicit.equations import Check, check_check, solver_of, tell_unsolved
from ferrostep.numpy.arrays import listed
from ferrostep.suggestions import suggesting

UPPER, LOWER = "what upper_closure returned", "what lower_closure returned"


class Hypergradient(NamedTuple):
    """The gradient in the upper parameters, and how it was found.

    Example:
        >>> x, y = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
        >>> found = hypergradient(lambda: y.square().sum(), lambda: (y - x).square().sum(), [x], [y])
        >>> found.gradients, found.upper_loss, found.z
        ([tensor([2.])], tensor(1.), [tensor([1.])])
    """

    gradients: list[Tensor]
    """One for each upper parameter, of its shape and dtype."""
    upper_loss: Tensor
    lower_loss: Tensor
    z: list[Tensor]
    """The solution of ``G_yy z = f_y``, one for each lower parameter: a start for the next."""
    info: linear.Info
    """How the linear solver ended."""


class LowerGradient:
    """The lower loss's gradient in y with its graph, and the products with its derivatives."""

    def __init__(self, closure: Closure, upper: Sequence[Tensor], lower: Sequence[Tensor]) -> None:
        self.upper, self.lower = upper, lower
        with double_backward():
            loss = value_of("lower_closure", closure)
            self.values = gradient(LOWER, loss, lower, create_graph=True)
        self.loss = loss.detach()

    def _product(self, z: Sequence[Tensor], params: Sequence[Tensor]) -> Gradient:
        pairs = [(g, each) for g, each in zip(self.values, z, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [None] * len(params)
        outputs, vectors = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, params, vectors, retain_graph=True, allow_unused=True))

    def times(self, z: Sequence[Tensor]) -> list[Tensor]:
        """``G_yy z``."""
        return filled(self._product(z, self.lower), self.lower)

    def across(self, z: Sequence[Tensor]) -> Gradient:
        """``G_xy z``."""
        return self._product(z, self.upper)


def upper_gradient(
    closure: Closure, upper: Sequence[Tensor], lower: Sequence[Tensor]
) -> tuple[Tensor, Gradient, list[Tensor]]:
    """The upper loss f, f_x, and f_y."""
    loss = value_of("upper_closure", closure)
    found = gradient(UPPER, loss, [*lower, *upper])
    return loss.detach(), found[len(lower) :], filled(found[: len(lower)], lower)


@suggesting
def hypergradient(
    upper_closure: Closure,
    lower_closure: Closure,
    upper: Iterable[Tensor],
    lower: Iterable[Tensor],
    *,
    solver: linear.Solver | None = None,
    z0: Sequence[Tensor] | None = None,
    fresh: bool = False,
    check: Check = "warn",
) -> Hypergradient:
    """The gradient in x of ``f(x, y*(x))``: ``f_x - G_xy G_yy^-1 f_y``, where y is near the minimum of ``g(x, .)``.

    With any optimizer of the upper parameters: put the gradients into ``p.grad`` and step.

    Args:
        upper_closure: returns the upper loss f, a scalar, on a batch; no ``backward``.
        lower_closure: returns the lower loss g, strongly convex in y near its minimum.
        upper, lower: the parameters x and y, leaves of any shape, float32 or float64.
        solver: for ``G_yy z = f_y``. Default: ``linear.cg()``.
        z0: where it begins, like ``lower``, such as the last ``z``. Default: the solver's own.
        fresh: call ``lower_closure`` anew for each product, as a Neumann series over batches wants, and once more for
            the cross derivative; else all are of one call (default).
        check: what to do where the solver does not converge: ``"warn"`` (default), ``"raise"`` or None.

    Returns:
        A :class:`Hypergradient`. ``p.grad`` is neither read nor written.

    Raises:
        TypeError, ValueError: parameters that are none, or in both levels, or closures that return no scalar.
        RuntimeError: a loss without a graph, or one that reaches no parameter; with ``check="raise"``, no convergence.

    Example:
        >>> x, y = torch.tensor([3.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
        >>> lower = lambda: ((y - x) ** 2).sum()
        >>> upper = lambda: (y**2).sum()
        >>> hypergradient(upper, lower, [x], [y]).gradients
        [tensor([6.])]
    """
    uppers, lowers = both(upper, lower, ("upper", "lower"))
    solve = solver_of("solver", solver, linear.cg)
    check_check(check)
    start = None if z0 is None else listed("z0", z0)
    loss, of_x, of_y = upper_gradient(upper_closure, uppers, lowers)
    at = LowerGradient(lower_closure, uppers, lowers)

    def product(z: list[Tensor]) -> list[Tensor]:
        now = LowerGradient(lower_closure, uppers, lowers) if fresh else at
        return now.times(z)

    z, info = solve(product, of_y, x0=start)
    tell_unsolved(check, "the system of the hypergradient", solve, info)
    return Hypergradient(subtracted(of_x, at.across(z), uppers), loss, at.loss, z, info)


def subtracted(of_x: Gradient, across: Gradient, upper: Sequence[Tensor]) -> list[Tensor]:
    """``f_x - G_xy z``, with None for zeros."""
    return filled(list(combine([of_x, across], [1.0, -1.0])), upper)
