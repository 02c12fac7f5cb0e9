"""The step inside a training loop, where torch's threads have just worked and the gradients are new."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cases import ADAMW, BF16, CASES, F32, OURS, Case, Storage
from ferrostep.demo.model import GPT, Shape


class Seconds(NamedTuple):
    """Of one training step: in `optimizer.step()`, and in all."""

    step: float
    loop: float


@dataclass(frozen=True)
class Workload:
    """A model to train and how: `build` gives it and its loss, for this dtype."""

    name: str
    title: str
    storage: Storage
    build: Callable[[torch.dtype], tuple[nn.Module, Callable[[nn.Module], Tensor]]]
    turn: int
    """Steps in a row before the other optimizer's turn."""

    def cases(self) -> list[Case]:
        """Our AdamW and torch's fused one, on these parameters."""
        return [
            case
            for case in CASES
            if case.rule == ADAMW
            and case.storage.param == self.storage.param
            and case.implementation in (OURS, ADAMW.peer)
        ]


def mlp(dtype: torch.dtype) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The three-layer MLP on batches of 64."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)]
    model = nn.Sequential(*layers).to(dtype)
    x, y = torch.randn(64, 256, dtype=dtype), torch.randn(64, 256, dtype=dtype)
    return model, lambda model: nn.functional.mse_loss(model(x), y)


def gpt(dtype: torch.dtype) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The demonstration's GPT of a million parameters, on batches of 8 x 128 bytes."""
    torch.manual_seed(0)
    shape = Shape()
    windows = torch.randint(256, (8, shape.context + 1))
    return GPT(shape).to(dtype), lambda model: model.loss(windows)


WORKLOADS = (
    Workload("mlp", "MLP, 3 x 256 x 256, batch 64", F32, mlp, turn=40),
    Workload("mlp-bf16", "MLP, 3 x 256 x 256, batch 64", BF16, mlp, turn=40),
    Workload("gpt", "GPT, 1.0 M parameters, batch 8 x 128", F32, gpt, turn=5),
)


class Training:
    """A model that `case`'s optimizer trains."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module], Tensor], case: Case) -> None:
        self.model, self.loss = model, loss
        self.optimizer = case.make(list(model.parameters()))

    def backward(self) -> None:
        """All of a training step that comes before the optimizer's."""
        self.optimizer.zero_grad()
        self.loss(self.model).backward()

    def step(self) -> Seconds:
        """One training step."""
        begin = time.perf_counter()
        self.backward()
        before = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        return Seconds(end - before, end - begin)


def trainings(workload: Workload) -> dict[Case, Training]:
    """The workload's optimizers, each with its own copy of the model."""
    model, loss = workload.build(workload.storage.param)
    return {case: Training(copy.deepcopy(model), loss, case) for case in workload.cases()}


class Samples(NamedTuple):
    """Of each round, the median seconds: in `optimizer.step()`, and in all of the training step."""

    step: list[float]
    loop: list[float]


def interleave(trainings: Mapping[Case, Training], rounds: int, turn: int) -> dict[Case, Samples]:
    """In every round each takes `turn` steps in a row, of which the first does not count."""
    samples = {case: Samples([], []) for case in trainings}
    for number in range(rounds + 1):
        for case in random.Random(number).sample(list(trainings), len(trainings)):
            seconds = [trainings[case].step() for _ in range(turn)]
            if number > 0:  # the first round warms up
                samples[case].step.append(median(each.step for each in seconds[1:]))
                samples[case].loop.append(median(each.loop for each in seconds[1:]))
    return samples
