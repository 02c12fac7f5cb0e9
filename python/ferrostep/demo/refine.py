"""Turn the gradient norms of a finished run into the schedule of the next one."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ferrostep.schedules import RefinedSchedule, refine_schedule

from . import DemoError

MODES = {"l1": "adam", "l2": "sgd"}


def refine(path: Path, total_steps: int | None, smoothing: float, out: Path) -> RefinedSchedule:
    """Refine the run that `GradNormRecorder.save` wrote to `path`; write `schedule.json` and `schedule.png` to `out`.

    Raises `DemoError` for what the user can put right.
    """
    run = load(path)
    if not 0 <= smoothing < 1:
        raise DemoError(f"argument --smoothing: expected a number from 0 to below 1, got {smoothing}")
    try:
        steps = run["steps"] if total_steps is None else total_steps
        schedule = refine_schedule(run["norms"], steps, MODES[run["norm"]], smoothing)  # type: ignore[arg-type]
        figure = drawn(run["norms"], run["every"], run["norm"], schedule)
    except (KeyError, TypeError, ValueError) as error:
        raise DemoError(f"{str(path)!r} is no run that GradNormRecorder.save wrote: {error}") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "schedule.json").write_text(json.dumps(vars(schedule)), encoding="utf-8")
        figure.savefig(out / "schedule.png")
    except OSError as error:
        raise DemoError(f"cannot write to the folder {str(out)!r}: {error.strerror}") from error
    return schedule


def load(path: Path) -> dict[str, Any]:
    """The run, as it was written."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DemoError(f"cannot read the run {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise DemoError(f"cannot read the run {str(path)!r}: it is no JSON ({error})") from error
    if not isinstance(run, dict):
        raise DemoError(f"{str(path)!r} is no run that GradNormRecorder.save wrote: it holds a {type(run).__name__}")
    return run


def drawn(norms: list[float], every: int, norm: str, schedule: RefinedSchedule) -> Figure:
    """The norms, and the schedule below."""
    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1)
    upper.plot(range(0, every * len(norms), every), norms)
    upper.set(xlabel="step of the run", ylabel=f"{norm} norm of the gradient", yscale="log")
    schedule.plot(lower)
    return figure
