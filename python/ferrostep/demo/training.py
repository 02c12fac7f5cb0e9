"""Training one model with one optimizer, and what is measured meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ferrostep.optim import NIGT, SAM, STORM, SophiaG, SophiaH
from ferrostep.schedules import GradNormRecorder, Schedule

from . import optimizers
from .task import Task

WARM_UP = 0.1  # share of the budget in which the rate rises
REFRESH_EVERY = 10  # steps, of Sophia's estimate (Liu et al. 2023)
LAST_RATE = 0.1  # share of the highest rate at which the cosine ends


class Step(NamedTuple):
    """One training step: the loss before the update, and seconds in all and in the optimizer with what only it needs.

    That are Sophia's estimates, and the second gradient of `SAM`.
    """

    loss: float
    seconds: float
    optimizer_seconds: float


@dataclass
class Run:
    """What is known of one optimizer's training, also while it goes on."""

    name: str
    steps: list[Step] = field(default_factory=list)
    state_bytes: int = 0
    held_out_loss: float | None = None  # None until training is complete
    norms: list[float] = field(default_factory=list)  # of the gradients, where they are recorded

    @property
    def train_loss(self) -> float:
        """Mean over the last twentieth of the steps."""
        return fmean(step.loss for step in self.steps[-math.ceil(len(self.steps) / 20) :])

    @property
    def step_ms(self) -> float:
        """Median milliseconds of a step."""
        return 1e3 * median(step.seconds for step in self.steps)

    @property
    def optimizer_ms(self) -> float:
        """Median milliseconds of `optimizer.step()`, with STORM's second gradients.

        Sophia's estimates, every tenth step, are only in the share.
        """
        return 1e3 * median(step.optimizer_seconds for step in self.steps)

    @property
    def optimizer_share(self) -> float:
        """The optimizer's part of the time of all steps, 0 to 1."""
        return sum(step.optimizer_seconds for step in self.steps) / sum(step.seconds for step in self.steps)


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or of seconds."""

    steps: int | None = None
    seconds: float | None = None

    def used(self, steps: int, seconds: float) -> float:
        """Share used up, 1 or more at the end."""
        return steps / self.steps if self.steps is not None else seconds / (self.seconds or 1.0)


def rate(used: float) -> float:
    """Factor of the learning rate: a linear rise, then a cosine down to `LAST_RATE`."""
    if used < WARM_UP:
        return max(used / WARM_UP, 0.01)
    fall = min((used - WARM_UP) / (1 - WARM_UP), 1.0)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * fall))


def train(
    run: Run,
    model: nn.Module,
    task: Task,
    budget: Budget,
    seed: int,
    after_step: Callable[[float], None] = lambda used: None,
    *,
    rate_factor: float = 1.0,
    schedule: Schedule | None = None,
    norm: Literal["l1", "l2"] | None = None,
) -> None:
    """Train `model` in place and record it in `run`, step by step; an interrupted run keeps what it has.

    The batches depend on `seed` alone. `after_step` gets the share of the budget that is used. Learning rates are those
    of `optimizers.OPTIMIZERS` times `rate_factor`, and times the factors of `schedule`, whose steps are stretched over
    the budget; None is the cosine, `rate`. The gradients' norms are recorded where one is named.
    """
    torch.manual_seed(seed)  # for optimizers that draw numbers of their own
    batches = torch.Generator().manual_seed(seed)
    optimizer = optimizers.build(run.name, model)
    for group in optimizer.param_groups:
        group["lr"] *= rate_factor
    started = time.perf_counter()

    def used(steps: int) -> float:
        return budget.used(steps, time.perf_counter() - started)

    def factor(done: int) -> float:
        return rate(used(done + 1)) if schedule is None else schedule(round(used(done) * schedule.total_steps))

    scheduler = LambdaLR(stepping(optimizer), factor)
    recorder = None if norm is None else GradNormRecorder(stepping(optimizer), norm)
    while used(len(run.steps)) < 1:
        begin = time.perf_counter()
        batch = task.batch(batches)
        refresh = time.perf_counter()
        if len(run.steps) % REFRESH_EVERY == 0:
            refresh_hessian(optimizer, model, task, batch)
        find_transport(optimizer, model, task, batch)
        refreshed = time.perf_counter() - refresh
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recorder is not None:
            recorder.record()
            run.norms = recorder.norms
        before = time.perf_counter()
        take_step(optimizer, model, task, batch)
        after = time.perf_counter()
        scheduler.step()
        run.steps.append(Step(loss.item(), time.perf_counter() - begin, refreshed + after - before))
        run.state_bytes = state_bytes(optimizer)
        after_step(used(len(run.steps)))
    if isinstance(optimizer, NIGT):
        optimizer.eval()
    run.held_out_loss = task.held_out_loss(model)


def stepping(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer whose `step` is called: that which `SAM` is around."""
    return optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer


def refresh_hessian(optimizer: torch.optim.Optimizer, model: nn.Module, task: Task, batch: Tensor) -> None:
    """Give Sophia a new estimate of the curvature; nothing for all other optimizers."""
    if isinstance(optimizer, SophiaG):
        optimizer.zero_grad()  # of the training step before, which the sampled one must not be added to
        loss, labels = task.sampled_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.update_hessian(bs=labels)
    elif isinstance(optimizer, SophiaH):
        optimizer.estimate_hessian(lambda: task.loss(model, batch))
        optimizer.update_hessian()


def find_transport(optimizer: torch.optim.Optimizer, model: nn.Module, task: Task, batch: Tensor) -> None:
    """Give STORM the batch's gradient at the point before; nothing for all other optimizers."""
    if isinstance(optimizer, STORM):
        with optimizer.other_point():
            optimizer.transport(task.loss(model, batch))


def take_step(optimizer: torch.optim.Optimizer, model: nn.Module, task: Task, batch: Tensor) -> None:
    """Step with the gradients that there are, and for `SAM` those of the same batch nearby."""
    if isinstance(optimizer, SAM):
        optimizer.first_step(zero_grad=True)
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.second_step()
    else:
        optimizer.step()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that the optimizer keeps between steps."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
