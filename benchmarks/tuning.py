"""Learning rates by one grid for all, then seeds; every run is kept in a file and done once."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

FACTOR = 3.0  # between neighbours of the grid, whose points are exponents of it
GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
FARTHEST = 6.0  # where a grid that is extended ends
TUNING_SEED, SEEDS = 0, (1, 2, 3)

Loss = Callable[[float, int], float]  # of the exponent and the seed; infinity where it diverged


@dataclass(frozen=True)
class Result:
    """What the seeds gave at the best rate of the grid."""

    lr: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.losses)


@dataclass
class Runs:
    """Those of one optimizer on one task: held-out losses by exponent and seed, None where training diverged."""

    task: str
    optimizer: str
    lr: float  # that of the exponent 0
    losses: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def loss(self, exponent: float, seed: int) -> float:
        """Raises KeyError where there was no such run."""
        loss = self.losses[f"{exponent:g}"][str(seed)]
        return math.inf if loss is None else loss

    def add(self, exponent: float, seed: int, loss: float) -> None:
        known = float(f"{loss:.5g}") if math.isfinite(loss) else None
        self.losses.setdefault(f"{exponent:g}", {})[str(seed)] = known

    def result(self) -> Result:
        """Raises KeyError where runs are missing."""
        best, losses = tune(self.loss)
        return Result(self.lr * FACTOR**best, losses)


def tune(loss: Loss) -> tuple[float, tuple[float, ...]]:
    """The best exponent, and the losses of the seeds there.

    The grid grows at the end where the best lies. Then the points half way to the best one's neighbours are tried.
    """

    def best() -> float:
        return min(tried, key=lambda exponent: (tried[exponent], exponent))

    tried = {exponent: loss(exponent, TUNING_SEED) for exponent in GRID}
    while best() in (min(tried), max(tried)) and abs(best()) < FARTHEST:
        beyond = best() + (1.0 if best() == max(tried) else -1.0)
        tried[beyond] = loss(beyond, TUNING_SEED)
    coarse = best()
    for exponent in (coarse - 0.5, coarse + 0.5):
        if abs(exponent) <= FARTHEST:
            tried[exponent] = loss(exponent, TUNING_SEED)
    return best(), tuple(loss(best(), seed) for seed in SEEDS)


class Record:
    """The file of all runs, one line for each task and optimizer, and of the times of steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        versions = {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]}
        self.versions: dict[str, str] = content.get("versions", versions)
        self.times: dict[str, Any] = content.get("times", {})
        self.runs = {(each["task"], each["optimizer"]): Runs(**each) for each in content.get("runs", ())}

    def of(self, task: str, optimizer: str, lr: float, *, fresh: bool = False) -> Runs:
        """The runs that there are; none if another rate was the grid's middle, or if they are to be `fresh`."""
        known = self.runs.get((task, optimizer))
        if known is None or known.lr != lr or fresh:
            known = self.runs[task, optimizer] = Runs(task, optimizer, lr)
        return known

    def save(self) -> None:
        """Write all of it; an interrupted writing leaves what was there."""
        rows = [json.dumps(vars(self.runs[key])) for key in sorted(self.runs)]
        head = f'"versions": {json.dumps(self.versions)},\n"times": {json.dumps(self.times)},\n"runs": [\n'
        part = self.path.with_suffix(".part")
        part.write_text("{\n" + head + ",\n".join(rows) + "\n]\n}\n", encoding="utf-8")
        part.replace(self.path)
