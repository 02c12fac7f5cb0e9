"""What a comparison leaves behind: a table, a plot and a JSON file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from .training import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 0.975 quantiles for 2 to 10 values
REACH = 0.02  # a point of the smoothed curve is the mean over this share of the steps on either side


def table(runs: Sequence[Run]) -> Table:
    """One row for each run; fits in 80 columns."""
    title = "loss in nats per byte, times as medians, share with Sophia's, SAM's, STORM's passes"
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    result.add_column("optimizer", no_wrap=True)
    for heading in ("steps", "train\nloss", "held-out\nloss", "step\nms", "optimizer\nms", "share", "state\nMB"):
        result.add_column(heading, justify="right")
    for run in runs:
        result.add_row(
            run.name,
            str(len(run.steps)),
            f"{run.train_loss:.3f}",
            "stopped" if run.held_out_loss is None else f"{run.held_out_loss:.3f}",
            f"{run.step_ms:.1f}",
            f"{run.optimizer_ms:.3f}",
            f"{run.optimizer_share:.1%}",
            f"{run.state_bytes / 1e6:.2f}",
        )
    return result


def write_json(path: Path, settings: dict[str, Any], runs: Sequence[Run]) -> None:
    """Write the settings and every run: the figures of the table, and loss and milliseconds of each step."""
    content = settings | {
        "runs": [
            {
                "optimizer": run.name,
                "complete": run.held_out_loss is not None,
                "train_loss": finite(run.train_loss),
                "held_out_loss": finite(run.held_out_loss),
                "step_ms": run.step_ms,
                "optimizer_ms": run.optimizer_ms,
                "optimizer_share": run.optimizer_share,
                "state_bytes": run.state_bytes,
                "losses": [finite(step.loss) for step in run.steps],
                "optimizer_ms_per_step": [1e3 * step.optimizer_seconds for step in run.steps],
            }
            for run in runs
        ]
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: float | None) -> float | None:
    """JSON has no NaN or infinity: a diverged loss becomes null."""
    return value if value is not None and math.isfinite(value) else None


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and up to `reach` on either side; at the start as few after it as there are before.

    So a steep start is not flattened: the first value stays as it is.
    """
    around = [values[max(0, i - reach) : i + min(reach, i) + 1] for i in range(len(values))]
    return [math.fsum(part) / len(part) for part in around]


def write_plot(path: Path, runs: Sequence[Run], title: str) -> None:
    """Write the loss curves as a PNG: raw faint, smoothed strong, held-out loss a dot.

    ferrostep's curves are broad and the others dashed on top, for two forms of one rule lie upon each other.
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        losses = [step.loss for step in run.steps]
        number = range(1, len(losses) + 1)
        style: dict[str, Any] = (
            {"lw": 1.6, "ls": (0, (4, 2)), "zorder": 3} if peer(run.name) else {"lw": 3.2, "alpha": 0.8}
        )
        axes.plot(number, losses, color=colour, alpha=0.15, lw=0.8)
        label = f"{run.name} (stopped)"
        if run.held_out_loss is not None:
            label = f"{run.name}: held-out {run.held_out_loss:.3f}"
            axes.plot(
                len(losses),
                run.held_out_loss,
                "o",
                color=colour,
                ms=5 if peer(run.name) else 8,
                mec="white",
                zorder=4,
                clip_on=False,
            )
        axes.plot(number, smooth(losses, math.ceil(REACH * len(losses))), color=colour, label=label, **style)
    axes.set(
        xlabel="step",
        ylabel="loss, nats per byte",
        title=f"{title}\nlines: training loss, smoothed; dots: held-out loss",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def half_interval(values: Sequence[float]) -> float:
    """Half of the mean's 95% interval, by Student's t; NaN of a single value."""
    count = len(values)
    if count < 2:
        return math.nan
    t = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96 + 2.4 / (count - 1)
    return t * stdev(values) / math.sqrt(count)


def interval(values: Sequence[float], digits: str) -> str:
    """The mean, and if there are several values its 95% interval, each in a format of Python's."""
    mean = format(fmean(values), digits)
    return mean if len(values) == 1 else f"{mean} ± {half_interval(values):{digits}}"


def peer(name: str) -> bool:
    """Whether the optimizer is another package's: those names carry the package."""
    return "." in name or "-" in name
