"""Train the same small GPT with several optimizers and report how they did."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ferrostep.schedules import Schedule

from . import DemoError, optimizers, report
from .model import GPT, Shape
from .schedules import linear, norm_of, refined
from .task import BATCH, NextByte
from .text import Text
from .training import Budget, Run, train

LOG_SECONDS = 10.0  # between lines of progress where the output is not a terminal


def compare(
    names: Sequence[str],
    text: Path | None,
    budget: Budget,
    seed: int,
    out: Path,
    console: Console,
    schedule: str = "cosine",
) -> bool:
    """Train with each named optimizer in turn, print the table, and write `compare.json` and `compare.png` to `out`.

    Every optimizer starts from the same weights and sees the same batches; with the schedule "refined" it does so
    twice, first with "linear", of whose gradients the schedule is made, and only the second run counts.
    KeyboardInterrupt ends the training, and what there is by then is reported. Returns whether all was completed.
    Raises `DemoError` for what the user can put right.
    """
    shape = Shape()
    loaded = Text.load(text, shape.context)
    task = NextByte(loaded, shape.context)
    torch.manual_seed(seed)
    start = GPT(shape)
    for name in names:
        optimizers.build(name, start)  # a missing package is known before the first minute, not after the last
    prepare(out)

    parameters = sum(parameter.numel() for parameter in start.parameters())
    title = f"{parameters / 1e6:.2f} M parameter GPT on {loaded.source}"
    console.print(f"{title}, {torch.get_num_threads()} threads, seed {seed}", soft_wrap=True)
    runs: list[Run] = []
    completed = True
    try:
        with Display(console, bars_of(names, schedule)) as display:
            for name in names:
                own: Schedule | None = linear(budget) if schedule == "linear" else None
                if schedule == "refined":
                    first = Run(name)
                    follow = display.follow(first, recording(name))
                    own, norm = linear(budget), norm_of(name)
                    train(first, copy.deepcopy(start), task, budget, seed, follow, schedule=own, norm=norm)
                    own = refined(first, budget)
                runs.append(Run(name))
                follow = display.follow(runs[-1], name)
                train(runs[-1], copy.deepcopy(start), task, budget, seed, follow, schedule=own)
    except KeyboardInterrupt:
        completed = False
        console.print("Stopped. So far:")
    runs = [run for run in runs if run.steps]
    if not runs:
        return completed

    console.print(report.table(runs))
    settings: dict[str, Any] = {
        "text": loaded.source,
        "train_bytes": len(loaded.train),
        "held_out_bytes": len(loaded.held_out),
        "parameters": parameters,
        "batch": BATCH,
        "schedule": schedule,
        "context": shape.context,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report.write_json(out / "compare.json", settings, runs)
    report.write_plot(out / "compare.png", runs, title)
    console.print(f"Wrote {out / 'compare.png'} and {out / 'compare.json'}", soft_wrap=True)
    return completed


def recording(name: str) -> str:
    """What the run is called that an optimizer's schedule is made of."""
    return f"{name}, linear"


def bars_of(names: Sequence[str], schedule: str) -> list[str]:
    """The runs, in their order."""
    return [bar for name in names for bar in ((recording(name), name) if schedule == "refined" else (name,))]


def prepare(out: Path) -> None:
    """Make the folder for the results, before any time is spent on them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot make the folder {str(out)!r}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise DemoError(f"cannot write to the folder {str(out)!r}")


class Display(Progress):
    """Progress of the runs: live bars on a terminal, a line now and then elsewhere; with the time that remains."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        columns = (
            TextColumn(f"{{task.description:<{max(map(len, [*names, 'in all']))}}}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.bars = {name: self.add_task(name, total=1.0, start=False, status="") for name in names}
        self.whole = self.add_task("in all", total=float(len(names)), status="", visible=len(names) > 1)

    def follow(self, run: Run, name: str) -> Callable[[float], None]:
        """A function to call after each step with the share of the budget that is used."""
        bar = self.bars[name]
        before = list(self.bars).index(name)
        self.start_task(bar)
        printed = -float("inf")

        def after_step(used: float) -> None:
            nonlocal printed
            recent = run.steps[-20:]
            seconds = sum(step.seconds for step in recent)
            share = sum(step.optimizer_seconds for step in recent) / seconds
            loss = sum(step.loss for step in recent) / len(recent)
            status = f"loss {loss:.3f}  {1e3 * seconds / len(recent):.0f} ms/step  optimizer {share:.1%}"
            self.update(bar, completed=min(used, 1.0), status=status)
            self.update(self.whole, completed=before + min(used, 1.0))
            now = time.perf_counter()
            if self.disable and (now - printed > LOG_SECONDS or used >= 1):
                printed = now
                left = TimeRemainingColumn(compact=True).render(self.tasks[self.whole])
                self.console.print(f"{name}: step {len(run.steps)}  {status}  {left} left")

        return after_step
