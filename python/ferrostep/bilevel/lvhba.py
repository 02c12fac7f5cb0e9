"""LV-HBA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ferrostep.bilevel.hypergradient import LOWER, UPPER
from ferrostep.bilevel.levels import (
    Closure,
    Losses,
    TwoLevelOptimizer,
    are_finite,
    both,
    exchanged,
    gradient,
    put,
    restored_on_error,
    value_of,
)
from ferrostep.curvature.products import filled, gradients_aside
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.gradients.lists import combine
from ferrostep.numpy.arrays import check, listed, positive, real, truth, whole
from ferrostep.optim.arguments import check_lr
from ferrostep.suggestions import suggesting

Projection: TypeAlias = Callable[[], object]


class Resolved(NamedTuple):
    """The lower problem solved at the present x."""

    lower: list[Tensor]
    """Its solution, one tensor for each lower parameter."""
    value: float
    """The lower loss there."""
    gap: float
    """The lower loss at the present y less that: what y lacks to a solution, if it is feasible."""
    violation: float
    """The largest constraint at the present y, or 0."""
    residual: float
    """The largest constraint at the solution, or 0."""


@suggesting
class LVHBA(TwoLevelOptimizer):
    r"""LV-HBA: bilevel optimization with coupled constraints by gradients alone (arXiv 2401.16164).

    ``min F(x, y)`` over x and over the y that minimize ``f(x, .)`` where ``g(x, y) <= 0``, by a proximal Lagrangian of
    the lower problem with the point theta and the multipliers lam:

    .. code-block:: text

        theta <- P_Y(theta - eta * (f_y + lam.g_y + (theta - y) / gamma1))              at (x, theta)
        lam   <- max(lam + eta * (g - (lam - z) / gamma2), 0)                           g at the old theta
        c     <- penalty[0] * (k + 1)^penalty[1]                                        in step k, from 0
        x     <- x - alpha * (F_x / c + f_x - f_x(x, theta) - lam.g_x(x, theta))
        y     <- y - alpha * (F_y / c + f_y - (y - theta) / gamma1)
        x, y  <- P_C(x, y);      z <- clip(z + beta * (lam - z) / gamma2, 0, multiplier_bound)

    The step of theta and lam is stable only if ``eta < (2 / gamma1) / (1 / gamma1^2 + |g_y|^2)`` (for gammas that are
    equal and f flat along g_y); ``order="gauss-seidel"`` lifts that to about ``2 / |g_y|``. Scale rows of g to norm 1.
    At finite c the upper loss trains y directly, so that y says little of x: look at :meth:`resolve`.

    Args:
        upper_params, lower_params: the parameters x and y, leaves of any shape, float32 or float64.
        lr: ``(alpha, beta, eta)``. Default (.01, .1, .01).
        gamma: the proximal terms' ``(gamma1, gamma2)``. Default (10, 10).
        penalty: c of the first step, and the power by which it grows, in [0, 1/2). Default (1, .3).
        multiplier_bound: the largest entry of z. Default 100.
        project: projects the parameters, all of them, onto ``{g <= 0}``, in place. Default: no projection.
        project_lower: projects the lower parameters onto Y, in place. Default: no projection.
        equality: the constraints are ``g = 0``: lam is free, z in ``[-multiplier_bound, multiplier_bound]``.
            Default False.
        order: ``"jacobi"`` (default), as the paper, or ``"gauss-seidel"``: lam's step with g at the new theta.

    State: ``theta`` of each lower parameter (4 bytes per element in float32); the first has ``multiplier`` and
    ``dual_center``, of the constraints' shape, and ``step``. Schedulers act on alpha, the upper group's ``lr``;
    the lower group has ``beta`` and ``eta``. A step with NaN or infinity in a gradient is left out.

    Raises:
        TypeError, ValueError: an impossible argument, named.

    Example:
        >>> x, y = (torch.tensor(v, requires_grad=True) for v in (3.0, -2.0))
        >>> def project():
        ...     excess = ((x + y - 1) / 2).clamp(min=0)
        ...     x.sub_(excess), y.sub_(excess)
        >>> optimizer = LVHBA([x], [y], lr=(0.05, 0.05, 0.1), gamma=(1.0, 1.0), project=project)
        >>> losses = optimizer.step(
        ...     lambda: (x - 1.5) ** 2 + (y + 1) ** 2, lambda: y**2 / 2 - x * y, lambda: x + y - 1
        ... )
        >>> losses.upper.item(), round(x.item(), 4)
        (3.25, 2.75)
    """

    mark = "penalty"
    own = ("project", "project_lower")

    def __init__(
        self,
        upper_params: Iterable[Tensor],
        lower_params: Iterable[Tensor],
        lr: tuple[float, float, float] = (0.01, 0.1, 0.01),
        gamma: tuple[float, float] = (10.0, 10.0),
        penalty: tuple[float, float] = (1.0, 0.3),
        multiplier_bound: float = 100.0,
        *,
        project: Projection | None = None,
        project_lower: Projection | None = None,
        equality: bool = False,
        order: Literal["jacobi", "gauss-seidel"] = "jacobi",
    ) -> None:
        upper, lower = both(upper_params, lower_params, ("upper_params", "lower_params"))
        alpha, beta, eta = _numbers("lr", lr, 3)
        if order not in ("jacobi", "gauss-seidel"):
            raise wrong_choice("order", order, "jacobi", "gauss-seidel")
        for name, function in (("project", project), ("project_lower", project_lower)):
            if function is not None and not callable(function):
                raise wrong_kind(name, function, "a function")
        strength, power = _numbers("penalty", penalty, 2)
        check("penalty[1]", power, 0.0, 0.5)
        gammas = tuple(_numbers("gamma", gamma, 2))
        for name, value in (("gamma[0]", gammas[0]), ("gamma[1]", gammas[1]), ("penalty[0]", strength)):
            positive(name, value)
        self.project, self.project_lower = project, project_lower
        super().__init__(
            [
                {"params": upper, "level": "upper", "lr": check_lr("lr", alpha, {}), "penalty": (strength, power)},
                {
                    "params": lower,
                    "level": "lower",
                    "lr": 0.0,
                    "beta": beta,
                    "eta": eta,
                    "gamma": gammas,
                    "multiplier_bound": real("multiplier_bound", multiplier_bound, 0.0),
                    "equality": truth("equality", equality),
                    "order": order,
                },
            ]
        )

    def step(self, upper_closure: Closure, lower_closure: Closure, constraints: Closure) -> Losses:  # type: ignore[override]
        """Take a step of all.

        Args:
            upper_closure, lower_closure: return the losses F and f, scalars; no ``backward``. The lower one is asked
                three times, at (x, theta), (x, theta) and (x, y), and is to be one function within a step.
            constraints: returns g, a tensor of any shape, of the dtype of the lower parameters; its entries are to be
                the same constraints in the same places in every step, as multipliers belong to them.

        Returns:
            Both losses, ``upper`` and ``lower``, before the step.

        Raises:
            TypeError, ValueError, RuntimeError: a closure that returns what it should not, or raises. All parameters
                and states are as they were then.
        """
        xs, ys, group = self.upper["params"], self.lower["params"], self.lower
        self._check_writable()
        with restored_on_error(*xs, *ys):
            theta, lam, z, k = self._states()
            with exchanged(ys, theta) as center:
                theta, lam, z = self._lower_step(lower_closure, constraints, center, theta, lam, z)
                lagrangian = self._lagrangian(lower_closure, self._g(constraints, lam), lam)
                of_x_at_theta = list(torch.autograd.grad(lagrangian, xs, allow_unused=True))
            value = value_of("upper_closure", upper_closure)
            above = gradient(UPPER, value, [*xs, *ys])
            loss = value_of("lower_closure", lower_closure)
            below = gradient(LOWER, loss, [*xs, *ys])
            strength, power = self.upper["penalty"]
            share, alpha, gamma = 1 / (strength * (k + 1) ** power), float(self.upper["lr"]), group["gamma"][0]
            n = len(xs)
            if not are_finite([*above, *below, *of_x_at_theta, *theta, lam]):
                return Losses(value.detach(), loss.detach())
            with torch.no_grad():
                steps = [1.0, -alpha * share, -alpha, alpha]
                combine([xs, above[:n], below[:n], of_x_at_theta], steps, out=xs)
                steps = [1 + alpha / gamma, -alpha * share, -alpha, -alpha / gamma]
                combine([ys, above[n:], below[n:], theta], steps, out=ys)
                if self.project is not None:
                    self.project()
        self._keep(theta, lam, z, k + 1)
        return Losses(value.detach(), loss.detach())

    def _states(self) -> tuple[list[Tensor], Tensor | None, Tensor | None, int]:
        ys = self.lower["params"]
        first = self.state.get(ys[0], {})
        if "step" not in first:
            return [y.detach().clone() for y in ys], None, None, 0
        theta = [self.state[y]["theta"].clone() for y in ys]
        return theta, first["multiplier"], first["dual_center"], int(first["step"])

    def _keep(self, theta: Sequence[Tensor], lam: Tensor, z: Tensor, step: int) -> None:
        ys = self.lower["params"]
        for y, each in zip(ys, theta, strict=True):
            self.state[y]["theta"] = each
        self.state[ys[0]].update(multiplier=lam, dual_center=z, step=torch.tensor(float(step)))

    def _g(self, constraints: Closure, lam: Tensor | None) -> Tensor:
        """The constraints' values with their graph."""
        if not callable(constraints):
            raise wrong_kind("constraints", constraints, "a function that returns g")
        with torch.enable_grad():
            g = constraints()
        y = self.lower["params"][0]
        if not isinstance(g, Tensor):
            raise wrong_kind("what constraints returned", g, "a torch.Tensor")
        if g.dtype != y.dtype:
            raise Problem.DTYPE.of("what constraints returned", g.dtype, f"{y.dtype}, as the lower parameters")
        if lam is not None and g.shape != lam.shape:
            expected = f"{list(lam.shape)}, as before: multipliers belong to constraints"
            raise Problem.SHAPE.of("what constraints returned", list(g.shape), expected)
        return g

    def _lagrangian(self, lower_closure: Closure, g: Tensor, lam: Tensor) -> Tensor:
        with torch.enable_grad():
            return value_of("lower_closure", lower_closure) + (lam * g).sum()

    def _lower_step(
        self,
        lower_closure: Closure,
        constraints: Closure,
        center: list[Tensor],
        theta: list[Tensor],
        lam: Tensor | None,
        z: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The new theta, lam and z; the lower parameters are theta, before and after."""
        ys, group = self.lower["params"], self.lower
        g = self._g(constraints, lam)
        lam = torch.zeros_like(g, requires_grad=False) if lam is None else lam
        z = torch.zeros_like(lam) if z is None else z
        of_y = gradient(LOWER, self._lagrangian(lower_closure, g, lam), ys)
        eta, (gamma1, gamma2), bound = group["eta"], group["gamma"], group["multiplier_bound"]
        new = combine([theta, center, of_y], [1 - eta / gamma1, eta / gamma1, -eta])
        put(ys, filled(list(new), ys))
        if self.project_lower is not None:
            with torch.no_grad():
                self.project_lower()
        if group["order"] == "gauss-seidel":
            g = self._g(constraints, lam)
        factors = [1 - eta / gamma2, eta / gamma2, eta]
        (lam,) = filled(list(combine([[lam], [z], [g.detach()]], factors)), [lam])
        lam = lam if group["equality"] else lam.clamp_(min=0.0)
        share = group["beta"] / gamma2
        (z,) = filled(list(combine([[z], [lam]], [1 - share, share])), [z])
        z.clamp_(min=-bound if group["equality"] else 0.0, max=bound)
        return [y.detach().clone() for y in ys], lam, z

    def resolve(
        self,
        lower_closure: Closure,
        constraints: Closure | None = None,
        *,
        rounds: int = 20,
        steps: int = 100,
        weight: float = 1.0,
    ) -> Resolved:
        """Solve the lower problem at the present x, by the augmented Lagrangian and L-BFGS; nothing is changed.

        Args:
            lower_closure, constraints: as of :meth:`step`. Without constraints, one minimization.
            rounds: of multipliers. Default 20.
            steps: the most steps of L-BFGS in each. Default 100.
            weight: of the squared constraints, above 0. Default 1.

        Returns:
            A :class:`Resolved`.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`step`.
            RuntimeError: there is a ``project_lower``, which L-BFGS does not know: say Y by constraints.
        """
        if self.project_lower is not None:
            raise RuntimeError("resolve does not know project_lower: say Y by constraints")
        weight = positive("weight", weight)
        ys, none = self.lower["params"], torch.zeros(0, dtype=self.lower["params"][0].dtype)
        present = value_of("lower_closure", lower_closure).item()
        here = none if constraints is None else self._g(constraints, None).detach()
        with gradients_aside(ys), exchanged(ys, ys):
            lam = torch.zeros_like(here)
            for _ in range(1 if constraints is None else whole("rounds", rounds, 1)):
                self._minimize(lower_closure, constraints, lam, weight, whole("steps", steps, 1))
                there = none if constraints is None else self._g(constraints, lam).detach()
                lam = self._multiplier(lam, there, weight)
            found, value = [y.detach().clone() for y in ys], value_of("lower_closure", lower_closure).item()
        return Resolved(found, value, present - value, self._excess(here), self._excess(there))

    def _multiplier(self, lam: Tensor, g: Tensor, weight: float) -> Tensor:
        (lam,) = filled(list(combine([[lam], [g]], [1.0, weight])), [lam])
        return lam if self.lower["equality"] else lam.clamp_(min=0.0)

    def _excess(self, g: Tensor) -> float:
        if g.numel() == 0:
            return 0.0
        return float(g.abs().max() if self.lower["equality"] else g.max().clamp(min=0.0))

    def _minimize(
        self, lower_closure: Closure, constraints: Closure | None, lam: Tensor, weight: float, steps: int
    ) -> None:
        ys = self.lower["params"]
        solver = torch.optim.LBFGS(ys, max_iter=steps, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def augmented() -> Tensor:
            loss = value_of("lower_closure", lower_closure)
            if constraints is not None:
                with torch.enable_grad():
                    shifted = lam + weight * self._g(constraints, lam)
                    if not self.lower["equality"]:
                        shifted = shifted.clamp(min=0.0)
                    loss = loss + shifted.square().sum() / (2 * weight)
            for y, each in zip(ys, filled(gradient(LOWER, loss, ys), ys), strict=True):
                y.grad = each
            return loss.detach()

        solver.step(augmented)  # type: ignore[no-untyped-call]


def _numbers(name: str, given: Any, count: int) -> list[float]:
    numbers = listed(name, given)
    if len(numbers) != count:
        raise Problem.COUNT.of(name, f"{len(numbers)} numbers", str(count))
    return [real(f"{name}[{i}]", each, 0.0) for i, each in enumerate(numbers)]
