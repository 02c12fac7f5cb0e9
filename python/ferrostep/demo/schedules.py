"""The schedules of `compare`, and what the refined one is made of."""

from __future__ import annotations

from typing import Literal

from ferrostep.schedules import LinearDecay, RefinedSchedule, refine_schedule

from . import DemoError
from .training import WARM_UP, Budget, Run

STEPS = 10_000  # that a schedule has where the budget is one of seconds
OF_GRADIENTS = ("adagrad_norm", "gd", "sam_sgd", "sgd", "storm", "torch.sgd")  # whose steps are as long as gradients


def linear(budget: Budget) -> LinearDecay:
    """A linear rise as long as the cosine's, then a linear decay."""
    steps = budget.steps or STEPS
    return LinearDecay(steps, min(round(WARM_UP * steps), steps - 1))


def norm_of(optimizer: str) -> Literal["l1", "l2"]:
    """The norm by which the optimizer's schedule is refined."""
    return "l2" if optimizer in OF_GRADIENTS else "l1"


def refined(run: Run, budget: Budget) -> RefinedSchedule:
    """The schedule of the next run, from the norms of one.

    Raises `DemoError` where there are less than two, as of a single step.
    """
    mode: Literal["adam", "sgd"] = "sgd" if norm_of(run.name) == "l2" else "adam"
    try:
        return refine_schedule(run.norms, budget.steps or STEPS, mode=mode)
    except ValueError as error:
        raise DemoError(f"no schedule can be made of {run.name}'s run: {error}") from error
