"""BO-REP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ferrostep import _core
from ferrostep.bilevel.hypergradient import LOWER, LowerGradient, hypergradient, subtracted, upper_gradient
from ferrostep.bilevel.levels import (
    Closure,
    Losses,
    TwoLevelOptimizer,
    are_finite,
    both,
    gradient,
    restored_on_error,
    value_of,
)
from ferrostep.curvature.products import filled, gradients_aside
from ferrostep.errors import wrong_choice, wrong_kind
from ferrostep.gradients.lists import combine
from ferrostep.implicit import linear, vectors
from ferrostep.numpy.arrays import check, positive, real, whole
from ferrostep.optim.arguments import check_lr
from ferrostep.reference import directions
from ferrostep.suggestions import suggesting

SYSTEMS = ("neumann", "cg", "running")


@suggesting
class BOREP(TwoLevelOptimizer):
    r"""BO-REP: normalized momentum along the hypergradient, and rare refreshes of the lower level (arXiv 2401.09587).

    .. code-block:: text

        y <- the lower problem refined at the first x                                   in the first step
        y <- lower_steps steps of gradient descent on g(x, .)                           in every period-th after it
        z <- neumann_lr * sum_{q < neumann_steps} (I - neumann_lr G_yy)^q f_y           G_yy of fresh batches
        m <- momentum * m + (1 - momentum) * (f_x - G_xy z)
        x <- x - lr * m / norm(m)                                                       the norm over all of x

    For an upper loss f whose smoothness grows with its gradient, and a lower loss g that is strongly convex in y. Every
    step moves x by ``lr``, so a schedule that decays is not optional. What held of the paper's claims where it was
    measured, and what did not: docs/bilevel.md.

    Args:
        upper_params, lower_params: the parameters x and y, leaves of any shape, float32 or float64.
        lr: the length of a step of x. Default 1e-2.
        momentum: in [0, 1). Default 0.9.
        lower_optimizer: an optimizer of ``lower_params`` that takes the lower steps. Default: gradient descent.
        lower_lr: of gradient descent. Default 0.1.
        period: steps from one refresh of y to the next. Default 2.
        lower_steps: lower steps of a refresh. Default 3.
        refine_steps: lower steps before the first step. Default 100.
        neumann_steps, neumann_lr: of the series; the latter, less than 2 over the largest eigenvalue of G_yy, also of
            ``"running"``. Default 20 and 0.1.
        radius: project lower steps onto a ball of this radius around the y that they began at, and take their mean, as
            the paper does; the refinement in epochs of twice the steps, half the step and the radius over sqrt(2) each.
            Default None: neither.
        solver: ``"neumann"`` (default); ``"cg"``, conjugate gradients on one lower batch; ``"running"``, one step
            ``z <- z - neumann_lr * (G_yy z - f_y)`` for each of x, as the authors' code, at a fraction of the cost.

    State: ``momentum_buffer`` of each upper parameter, and ``z`` of each lower one but for ``"neumann"``, 4 bytes per
    element in float32. The upper group counts ``steps``. Schedulers act on the upper ``lr``; the lower group has
    ``lower_lr``. Where f's or g's gradient has NaN or infinity, that step is left out, and m and z stay.

    Raises:
        TypeError, ValueError: an impossible argument, named.

    Example:
        >>> x, y = (torch.tensor([v], requires_grad=True) for v in (3.0, 0.0))
        >>> optimizer = BOREP([x], [y], lr=0.5, lower_lr=0.5, neumann_lr=0.5)
        >>> losses = optimizer.step(lambda: (y**2).sum(), lambda: ((y - x) ** 2).sum())
        >>> losses.upper.item(), x.item()
        (9.0, 2.5)
    """

    mark = "momentum"
    own = ("_lower_optimizer",)

    def __init__(
        self,
        upper_params: Iterable[Tensor],
        lower_params: Iterable[Tensor],
        lr: float = 1e-2,
        momentum: float = 0.9,
        *,
        lower_optimizer: Optimizer | None = None,
        lower_lr: float = 0.1,
        period: int = 2,
        lower_steps: int = 3,
        refine_steps: int = 100,
        neumann_steps: int = 20,
        neumann_lr: float = 0.1,
        radius: float | None = None,
        solver: Literal["neumann", "cg", "running"] = "neumann",
    ) -> None:
        upper, lower = both(upper_params, lower_params, ("upper_params", "lower_params"))
        check("momentum", momentum, 0.0, 1.0)
        if solver not in SYSTEMS:
            raise wrong_choice("solver", solver, *SYSTEMS)
        if lower_optimizer is not None:
            _check_is_of(lower_optimizer, lower)
        self._lower_optimizer = lower_optimizer
        super().__init__(
            [
                {
                    "params": upper,
                    "level": "upper",
                    "lr": check_lr("lr", lr, {}),
                    "momentum": momentum,
                    "period": whole("period", period, 1),
                    "solver": solver,
                    "neumann_steps": whole("neumann_steps", neumann_steps, 1),
                    "neumann_lr": positive("neumann_lr", neumann_lr),
                    "steps": 0,
                },
                {
                    "params": lower,
                    "level": "lower",
                    "lr": 0.0,
                    "lower_lr": real("lower_lr", lower_lr, 0.0),
                    "lower_steps": whole("lower_steps", lower_steps, 0),
                    "refine_steps": whole("refine_steps", refine_steps, 0),
                    "radius": None if radius is None else real("radius", radius, 0.0),
                },
            ]
        )

    def step(self, upper_closure: Closure, lower_closure: Closure) -> Losses:  # type: ignore[override]
        """Take a step of x, with a refresh of y where one is due.

        Args:
            upper_closure, lower_closure: return the losses f and g, scalars, each on a fresh batch; no ``backward``.

        Returns:
            Both losses, ``upper`` and ``lower``, after the refresh and before x moved.

        Raises:
            TypeError, ValueError, RuntimeError: a closure that returns no scalar with a graph, or one that does not
                reach the parameters. All parameters and states are as they were then, but for ``lower_optimizer``'s.
        """
        upper, lower = self.upper, self.lower
        self._check_writable()
        steps = upper["steps"] + 1
        with restored_on_error(*lower["params"], unless=lambda: upper["steps"] == steps):
            if upper["steps"] == 0:
                self._refine(lower_closure)
            elif upper["steps"] % upper["period"] == 0:
                self._refresh(lower_closure, lower["lower_steps"], lower["lower_lr"], lower["radius"])
            losses, direction, z = self._hypergradient(upper_closure, lower_closure)
            self._check_states()
            self._move(direction, partial(self._keep, direction, z, steps))
        return losses

    def _refine(self, closure: Closure) -> None:
        group = self.lower
        if group["radius"] is None:
            self._refresh(closure, group["refine_steps"], group["lower_lr"], None)
            return
        first = group["lower_steps"], group["lower_lr"], group["radius"]
        for steps, lr, radius in epochs(group["refine_steps"], *first):
            self._refresh(closure, steps, lr, radius)

    def _refresh(self, closure: Closure, steps: int, lr: float, radius: float | None) -> None:
        """Steps of the lower level; with a radius from here, in the ball, and to their mean."""
        params = self.lower["params"]
        center = [p.detach().clone() for p in params]
        mean = [torch.zeros_like(p) for p in params]
        for _ in range(steps):
            loss = value_of("lower_closure", closure)
            self._lower_step(filled(gradient(LOWER, loss, params), params), lr)
            if radius is not None:
                with torch.no_grad():
                    self._into_ball(center, radius)
                    combine([mean, params], [1.0, 1.0 / steps], out=mean)
        if radius is not None and steps:
            with torch.no_grad():
                for p, each in zip(params, mean, strict=True):
                    p.copy_(each)

    def _lower_step(self, gradients: list[Tensor], lr: float) -> None:
        if not are_finite(gradients):
            return
        params = self.lower["params"]
        if self._lower_optimizer is None:
            with torch.no_grad():
                combine([params, gradients], [1.0, -lr], out=params)
            return
        with gradients_aside(params):
            for p, each in zip(params, gradients, strict=True):
                p.grad = each
            self._lower_optimizer.step()

    def _into_ball(self, center: list[Tensor], radius: float) -> None:
        params = self.lower["params"]
        away = vectors.difference(params, center)
        distance = vectors.norm(away)
        if distance > radius:
            combine([center, away], [1.0, radius / distance], out=params)

    def _hypergradient(
        self, upper_closure: Closure, lower_closure: Closure
    ) -> tuple[Losses, list[Tensor], list[Tensor] | None]:
        """The losses, the hypergradient, and the z to keep if one is."""
        group, xs, ys = self.upper, self.upper["params"], self.lower["params"]
        if group["solver"] == "running":
            return self._running(upper_closure, lower_closure)
        is_series = group["solver"] == "neumann"
        series = linear.neumann(steps=group["neumann_steps"], lr=group["neumann_lr"])
        found = hypergradient(
            upper_closure,
            lower_closure,
            xs,
            ys,
            solver=series if is_series else linear.cg(),
            z0=None if is_series else self._z(),
            fresh=is_series,
        )
        return Losses(found.upper_loss, found.lower_loss), found.gradients, None if is_series else found.z

    def _z(self) -> list[Tensor]:
        """What the last step has left, or zeros."""
        return self._kept("z", self.lower["params"])

    def _kept(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """A state of each parameter, or zeros where there is none yet."""
        states = [self.state.get(p, {}).get(name) for p in params]
        return [torch.zeros_like(p) if s is None else s for p, s in zip(params, states, strict=True)]

    def _running(self, upper_closure: Closure, lower_closure: Closure) -> tuple[Losses, list[Tensor], list[Tensor]]:
        """One step of z, with both of its terms at the present y."""
        xs, ys = self.upper["params"], self.lower["params"]
        loss, of_x, of_y = upper_gradient(upper_closure, xs, ys)
        at = LowerGradient(lower_closure, xs, ys)
        z, lr = self._z(), self.upper["neumann_lr"]
        z = filled(list(combine([z, at.times(z), of_y], [1.0, -lr, lr])), ys)
        return Losses(loss, at.loss), subtracted(of_x, at.across(z), xs), z

    def _check_states(self) -> None:
        for i, p in enumerate(self.upper["params"]):
            buffer = self.state.get(p, {}).get("momentum_buffer")
            if buffer is not None and (not isinstance(buffer, Tensor) or buffer.shape != p.shape):
                raise wrong_kind(f"momentum_buffer of upper_params[{i}]", buffer, f"a tensor of shape {list(p.shape)}")

    @torch.no_grad()
    def _move(self, direction: list[Tensor], keep: Callable[[float], None]) -> None:
        """Momentum and step; the new momentum takes the place of the direction, which is to be kept then."""
        params, momentum, lr = self.upper["params"], self.upper["momentum"], float(self.upper["lr"])
        buffers = self._kept("momentum_buffer", params)
        if all(p.is_cpu for p in params):
            threads = torch.get_num_threads()
            call = partial(_core.normalized_step, buffers, direction, params, momentum, lr, threads)
        else:
            call = partial(directions.normalized_step, buffers, direction, params, momentum, lr)
        _core.complete(call, keep)

    def _keep(self, direction: list[Tensor], z: list[Tensor] | None, steps: int, norm: float) -> None:
        """Keep what the step leaves, which moved along a direction of this norm; may be done twice."""
        self.upper["steps"] = steps
        if z is not None and are_finite(z):
            for p, each in zip(self.lower["params"], z, strict=True):
                self.state[p]["z"] = each
        if math.isfinite(norm):
            for p, each in zip(self.upper["params"], direction, strict=True):
                self.state[p]["momentum_buffer"] = each


def epochs(total: int, first: int, lr: float, radius: float) -> Iterator[tuple[int, float, float]]:
    """The refinement's epochs: steps, rate and radius, until there are as many steps as there may be."""
    steps = max(first, 1)
    while total > 0:
        yield min(steps, total), lr, radius
        total -= steps
        steps, lr, radius = 2 * steps, lr / 2, radius / math.sqrt(2)


def _check_is_of(optimizer: Any, params: Sequence[Tensor]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise wrong_kind("lower_optimizer", optimizer, "a torch.optim.Optimizer")
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if own != {id(p) for p in params}:
        raise ValueError("lower_optimizer has other parameters than lower_params, expected the same")
