"""Is linear decay the best schedule, and is one refined from gradient norms better? A small GPT on text.

Trains the GPT of `python -m ferrostep compare` with AdamW and each schedule: constant, cosine down to a tenth, linear
decay, and the schedule that `refine_schedule` makes of the gradient norms of the run with linear decay. Each takes the
best of a few learning rates, found with the first seed, and then trains with all seeds. Prints the held-out losses and
their difference to linear decay's, seed by seed, with 95% intervals; draws schedules and losses.

    pip install ".[demo]" && python examples/schedules.py
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.report import interval
from ferrostep.demo.task import NextByte
from ferrostep.demo.text import Text
from ferrostep.optim import AdamW
from ferrostep.schedules import GradNormRecorder, LinearDecay, Schedule, ScheduleLR, refine_schedule

SHAPE = Shape(context=64, width=64, heads=4, layers=3)
WARM_UP = 0.05
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)


class Run(NamedTuple):
    """What is kept of one training."""

    held_out: float
    losses: list[float]
    norms: list[float]


class Constant(Schedule):
    """One learning rate, after the warm-up."""

    def __init__(self, total_steps: int, warmup_steps: int) -> None:
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        return min(1.0, (step + 1) / self.warmup_steps)


class Cosine(Constant):
    """Half a cosine down to a tenth, after the warm-up."""

    def __call__(self, step: int) -> float:
        """The factor of a step."""
        fall = max(0.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return super().__call__(step) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * fall)))


def train(task: NextByte, schedule: Schedule, lr: float, seed: int) -> Run:
    """Train a model of the seed on the batches of the seed."""
    torch.manual_seed(seed)
    model, batches = GPT(SHAPE), torch.Generator().manual_seed(seed)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    scheduler, recorder, losses = ScheduleLR(optimizer, schedule), GradNormRecorder(optimizer), []
    for _ in range(schedule.total_steps):
        loss = task.loss(model, task.batch(batches))
        optimizer.zero_grad()
        loss.backward()
        recorder.record()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return Run(task.held_out_loss(model), losses, recorder.norms)


def draw(path: Path, schedules: dict[str, Schedule], runs: dict[str, list[Run]]) -> None:
    """Draw the schedules, and the training losses of the first seed."""
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, schedule in schedules.items():
        schedule.plot(left)
        losses = np.convolve(runs[name][0].losses, np.ones(20) / 20, "valid")
        held_out = np.mean([run.held_out for run in runs[name]])
        right.plot(range(20, 20 + losses.size), losses, label=f"{name}: held-out {held_out:.3f}")
    right.set(xlabel="step", ylabel="training loss, mean of 20 steps", ylim=(None, losses[0]))
    right.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Tune, train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of a training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("schedules.png"), help="the figure (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = NextByte(Text.load(None, SHAPE.context), SHAPE.context)
    warm_up = max(1, round(WARM_UP * arguments.steps))
    schedules: dict[str, Schedule] = {
        "linear": LinearDecay(arguments.steps, warm_up),
        "cosine": Cosine(arguments.steps, warm_up),
        "constant": Constant(arguments.steps, warm_up),
    }
    best, runs = {}, {}
    with Progress() as progress:
        bar = progress.add_task("training", total=4 * (len(arguments.rates) + arguments.seeds - 1))
        for name in (*schedules, "refined"):
            if name == "refined":
                schedules[name] = refine_schedule(runs["linear"][0].norms)
            one = partial(train, task, schedules[name])
            tried = {}
            for lr in arguments.rates:
                tried[lr] = one(lr, 0)
                progress.advance(bar)
            best[name] = min(tried, key=lambda lr: tried[lr].held_out)
            runs[name] = [tried[best[name]]]
            for seed in range(1, arguments.seeds):
                runs[name].append(one(best[name], seed))
                progress.advance(bar)
    table = Table("schedule", "learning rate", "held-out loss", "less linear's")
    for name, own in runs.items():
        differences = [run.held_out - other.held_out for run, other in zip(own, runs["linear"], strict=True)]
        table.add_row(
            name, f"{best[name]:g}", interval([run.held_out for run in own], ".4f"), interval(differences, ".4f")
        )
    Console().print(table)
    draw(arguments.output, schedules, runs)


if __name__ == "__main__":
    main()
