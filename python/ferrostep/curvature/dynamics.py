"""Which curvature an optimizer's step can bear: the limits of linear stability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import check
from ferrostep.reference.preconditioners import denominator, relative


class Dynamics(NamedTuple):
    """An optimizer on a quadratic ``h x^2 / 2``."""

    name: str
    limit: float
    """It is stable up to this ``lr * h``."""
    momentum: float = 0.0
    precond: list[Tensor] | None = None
    """By what it divides, one tensor for each parameter; ``h`` is that of the matrix with it on both sides then."""

    @property
    def is_adaptive(self) -> bool:
        """Whether it divides by something that changes while it goes on, and not only learning rates differ."""
        return RULES[self.name].divisor is not None


def heavy_ball(momentum: float, nesterov: bool = False) -> float:
    """The limit of ``m <- b m + g, x <- x - lr m`` (or ``- lr (g + b m)``): where the 2 x 2 matrix has -1."""
    return (2 + 2 * momentum) / (1 + 2 * momentum if nesterov else 1)


def averaged(beta: float, nesterov: bool = False) -> float:
    """The limit where m is an average, ``m <- b m + (1 - b) g``: 38 for b = 0.9."""
    return heavy_ball(beta, nesterov) / (1 - beta)


def of_momentum(momentum: float) -> Dynamics:
    """Gradient descent with a heavy ball, or none.

    Raises:
        TypeError, ValueError: it is no number from 0 to below 1.
    """
    check("momentum", momentum, 0.0, 1.0)
    return Dynamics("SGD", heavy_ball(momentum), momentum)


def of_optimizer(optimizer: Optimizer, params: Sequence[Tensor]) -> Dynamics:
    """The optimizer's, with the states that it has now. Weight decay, which shifts ``lr * h`` by itself, is left out.

    Learning rates that differ between groups count relative to the first one.

    Raises:
        TypeError: no optimizer, or one whose limit is not known.
        ValueError: a parameter that is not the optimizer's or has no state yet, or groups with unequal momentum.
    """
    if not isinstance(optimizer, Optimizer):
        raise wrong_kind("optimizer", optimizer, "a torch.optim.Optimizer")
    names = [base.__name__ for base in type(optimizer).__mro__ if base.__name__ in RULES]
    if not names:
        raise wrong_kind("optimizer", optimizer, f"one with a known limit of stability: {', '.join(RULES)}")
    rule = RULES[names[0]]
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i, p in enumerate(params):
        if id(p) not in groups:
            raise ValueError(f"parameter {i} is not the optimizer's, expected one of its parameters")
    found = [rule.limit(groups[id(p)]) for p in params]
    if any(each != found[0] for each in found):
        raise ValueError(f"momentum differs between param groups ({found}), expected one: give the parameters of one")
    first, *others = (float(group["lr"]) for group in [optimizer.param_groups[0], *(groups[id(p)] for p in params)])
    if rule.divisor is None and all(lr == first for lr in others):
        return Dynamics(names[0], *found[0])
    if not min(first, *others) > 0.0:
        raise ValueError("the learning rate of a param group is 0, expected all above 0")
    divisors = [_divisor(rule, optimizer, groups[id(p)], i, p) for i, p in enumerate(params)]
    precond = [relative(divisor, lr / first) for divisor, lr in zip(divisors, others, strict=True)]
    return Dynamics(names[0], *found[0], precond)


class Rule(NamedTuple):
    """How an optimizer's class keeps what its limit depends on."""

    limit: Callable[[dict[str, Any]], tuple[float, float]]
    """Of a group: the limit and the momentum."""
    divisor: Callable[[dict[str, Any], dict[str, Any]], Tensor] | None = None
    """Of a state and a group: by what a step is divided."""
    shared: bool = False
    """Whether one parameter has the state of all."""


def _divisor(rule: Rule, optimizer: Optimizer, group: dict[str, Any], i: int, p: Tensor) -> Tensor:
    if rule.divisor is None:
        return torch.ones_like(p, requires_grad=False)
    state = optimizer.state.get(p, {})
    if rule.shared:
        keepers = [*group["params"], *optimizer.param_groups[0]["params"]]
        state = next((optimizer.state[each] for each in keepers if each in optimizer.state), {})
    for name, value in state.items():
        if isinstance(value, Tensor) and not value.is_floating_point() and value.shape == p.shape:
            raise Problem.DTYPE.of(f"the state {name!r} of parameter {i}", value.dtype, "a floating-point one")
    try:
        return rule.divisor(state, group).to(p).expand_as(p)
    except KeyError as error:
        raise ValueError(f"parameter {i} has no {error} in the optimizer's state: take a step first") from None


def _sgd(group: dict[str, Any]) -> tuple[float, float]:
    momentum = group["momentum"]
    # Dampening makes every gradient count less once there is momentum.
    damped = 1 - group["dampening"] if momentum else 1.0
    return heavy_ball(momentum, group["nesterov"]) / damped, momentum


def _average_of_squares(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    square = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return denominator(square, 1 - group["betas"][1] ** float(state["step"]), group["eps"])


RULES = {
    "SGD": Rule(_sgd),
    "AdamW": Rule(lambda group: (averaged(group["betas"][0]), group["betas"][0]), _average_of_squares),
    "Adam": Rule(lambda group: (averaged(group["betas"][0]), group["betas"][0]), _average_of_squares),
    "NAdam": Rule(lambda group: (averaged(group["betas"][0], True), group["betas"][0]), _average_of_squares),
    "RMSprop": Rule(
        lambda group: (heavy_ball(group["momentum"]), group["momentum"]),
        lambda state, group: denominator(
            state["square_avg"], 1.0, group["eps"], state["grad_avg"] if group["centered"] else None
        ),
    ),
    "Adagrad": Rule(lambda _: (2.0, 0.0), lambda state, group: denominator(state["sum"], 1.0, group["eps"])),
    "AdaGradNorm": Rule(lambda _: (2.0, 0.0), lambda state, group: denominator(state["sum"], 1.0, group["eps"]), True),
}
"""By the name of the class, torch's or ours."""
