"""From how many elements a second thread pays: the step on one thread and on two, over the size of the model.

The engine has a threshold of its own (`ELEMENTS_PER_THREAD`), below which both columns show one thread; to look below
it, build with a lower one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cases import OURS, Case

WIDTH = 64  # the model is a stack of layers of this width: tensors of 4096 elements
BATCH = 512
LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
PAUSE = 0.02  # seconds after which torch's workers sleep

Before = Callable[[nn.Module], None]


def nothing(_model: nn.Module) -> None:
    """Step again at once: the workers have just stepped and wait for more."""


def backward(model: nn.Module) -> None:
    """A training step's other half: the workers have just worked for torch."""
    model.zero_grad()
    model(torch.ones(BATCH, WIDTH)).square().mean().backward()


def pause(_model: nn.Module) -> None:
    """Wait until the workers sleep, as after loading data."""
    time.sleep(PAUSE)


SITUATIONS: dict[str, Before] = {"back to back": nothing, "in a training loop": backward, "after a pause": pause}


def measure(case: Case, layers: int, before: Before, samples: int) -> tuple[float, float]:
    """Median seconds of a step on one thread and on two, in turns."""
    if case.implementation != OURS:
        raise ValueError(f"expected an optimizer of {OURS}, got {case.name}")
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    backward(model)
    params: list[Tensor] = list(model.parameters())
    optimizer = case.make(params)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    turn = 5  # steps in a row; the first of them does not count
    for number in range(samples // turn + 1):
        for threads, times in seconds.items():
            # Only the step's own number: torch's stays, and with it its team of threads.
            with patch.object(torch, "get_num_threads", lambda threads=threads: threads):
                for i in range(turn):
                    before(model)
                    begin = time.perf_counter()
                    optimizer.step()
                    if number and i:
                        times.append(time.perf_counter() - begin)
    return median(seconds[1]), median(seconds[2])
