"""Does LV-HBA find the penalties of a support vector machine, 40% of whose training labels are flipped?

Lower level: a support vector machine on scikit-learn's breast cancer data, with a penalty exp(C_i) for the slack of
each of 200 training samples, under its constraints; upper level: the logistic loss on 100 clean validation samples.
LV-HBA moves the penalties, the machine and its slacks at once, by gradients alone. Its own machine is also trained by
the upper loss directly, so it says little of the penalties: the table has both the accuracy of the iterate and that
of the machine solved anew with the penalties found, and a run whose penalties are frozen. Draws the penalties of
right and of flipped labels.

    pip install ".[examples]" && python examples/robust_svm.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import softplus

from ferrostep.bilevel import LVHBA
from ferrostep.demo.report import interval

TRAINING, VALIDATION, FLIPPED = 200, 100, 0.4
SCALE = math.sqrt(50.0)
"""Penalties are C = SCALE * x, so that their step is 1 where that of all else is 0.02."""
LOWEST, HIGHEST = -10, 2


class Task(NamedTuple):
    """Samples with a column of ones, and labels of -1 and 1."""

    a: Tensor
    labels: Tensor
    true: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Run(NamedTuple):
    """What is kept of one way and seed."""

    iterate: float | None
    resolved: float
    auc: float | None
    penalties: Tensor | None


def load(seed: int) -> Task:
    """Standardized samples, labels flipped once and for all."""
    generator = torch.Generator().manual_seed(seed)
    features, classes = (torch.tensor(each, dtype=torch.float64) for each in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(features), generator=generator)
    a, y = features[order], 2 * classes[order] - 1
    a = (a - a[:TRAINING].mean(0)) / a[:TRAINING].std(0)
    a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
    labels = y[:TRAINING].clone()
    labels[torch.randperm(TRAINING, generator=generator)[: int(FLIPPED * TRAINING)]] *= -1
    middle = TRAINING + VALIDATION
    return Task(a[:TRAINING], labels, y[:TRAINING], (a[TRAINING:middle], y[TRAINING:middle]), (a[middle:], y[middle:]))


def accuracy(u: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    return 100 * (data[1] * (data[0] @ u) > 0).double().mean().item()


def machine(a: Tensor, y: Tensor, penalties: Tensor) -> Tensor:
    """The support vector machine: its slacks are max(0, 1 - y a.u), and are put in."""
    u = torch.zeros(a.shape[1], dtype=a.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([u], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        slack = (1 - y * (a @ u)).clamp(min=0.0)
        loss = 0.5 * u[:-1].square().sum() + 0.5 * (penalties.exp() * slack.square()).sum()
        loss.backward()
        return loss

    solver.step(closure)
    return u.detach()


def onto_constraints(signed: Tensor, u: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest point with ``slack >= 1 - signed @ u``, by a semismooth Newton method in u."""
    start, identity = u, torch.eye(len(u), dtype=u.dtype)
    for _ in range(30):
        rest = (1 - signed @ u - slack).clamp(min=0.0)
        gradient = u - start - signed.mT @ rest
        if gradient.norm() <= 1e-10:
            break
        active = signed[rest > 0]
        u = u - torch.linalg.solve(identity + active.mT @ active, gradient)
    return u, torch.maximum(slack, 1 - signed @ u)


def by_lvhba(task: Task, steps: int, seed: int, strength: float = 1.0, frozen: bool = False) -> Run:
    """Penalties that follow the validation loss."""
    generator = torch.Generator().manual_seed(seed)
    signed, samples = task.labels[:, None] * task.a, len(task.a)
    rows = (1 + signed.square().sum(1)).sqrt()  # the norms of the constraints in u and slack
    start = torch.rand(samples, generator=generator, dtype=torch.float64) - 6
    x = (start / SCALE).requires_grad_()
    u = torch.zeros(task.a.shape[1], dtype=torch.float64, requires_grad=True)
    slack = torch.ones(samples, dtype=torch.float64, requires_grad=True)

    def upper() -> Tensor:
        a, y = task.validation
        return softplus(-y * (a @ u)).mean()

    def lower() -> Tensor:
        return 0.5 * u[:-1].square().sum() + 0.5 * ((SCALE * x).exp() * slack.square()).sum()

    def project() -> None:
        if frozen:
            x.copy_(start / SCALE)
        x.clamp_(LOWEST / SCALE, HIGHEST / SCALE)
        for p, each in zip((u, slack), onto_constraints(signed, u, slack), strict=True):
            p.copy_(each)

    optimizer = LVHBA(
        [x],
        [u, slack],
        lr=(0.02, 0.5, 0.02),
        gamma=(1.0, 1.0),
        penalty=(strength, 0.3),
        multiplier_bound=1000.0,
        project=project,
        order="gauss-seidel",
    )
    for _ in range(steps):
        optimizer.step(upper, lower, lambda: (1 - slack - signed @ u) / rows)
    penalties = (SCALE * x).detach()
    again = machine(task.a, task.labels, penalties)
    right = (task.labels == task.true).numpy()
    auc = None if frozen else roc_auc_score(right, penalties.numpy())
    return Run(accuracy(u.detach(), task.test), accuracy(again, task.test), auc, penalties)


def by_grid(task: Task, *_: int) -> Run:
    """One penalty for all, the best of 13 on the validation set."""
    machines = [machine(task.a, task.labels, torch.tensor(float(c))) for c in range(LOWEST, HIGHEST + 1)]
    return Run(None, accuracy(max(machines, key=lambda u: accuracy(u, task.validation)), task.test), None, None)


def of_validation(task: Task, *_: int) -> Run:
    """A machine of the validation set."""
    return Run(None, accuracy(machine(*task.validation, torch.tensor(-2.0)), task.test), None, None)


def of_true_labels(task: Task, *_: int) -> Run:
    """A machine that nothing has been flipped for."""
    return Run(None, accuracy(machine(task.a, task.true, torch.tensor(-2.0)), task.test), None, None)


WAYS: dict[str, Callable[[Task, int, int], Run]] = {
    "LV-HBA": by_lvhba,
    "LV-HBA, c = 10": partial(by_lvhba, strength=10.0),
    "LV-HBA, penalties frozen": partial(by_lvhba, frozen=True),
    "one penalty, best of 13": by_grid,
    "validation set alone": of_validation,
    "true labels": of_true_labels,
}


def draw(path: Path, run: Run, task: Task) -> None:
    """The penalties of right and of flipped labels."""
    figure = Figure(figsize=(5, 3.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    right = task.labels == task.true
    assert run.penalties is not None
    axes.hist([run.penalties[right], run.penalties[~right]], bins=25, label=["right labels", "flipped labels"])
    axes.set(xlabel="C, the logarithm of a sample's penalty", ylabel="samples")
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="of LV-HBA (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("robust_svm.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    steps, seeds = (3, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {}
    with Progress() as progress:
        bar = progress.add_task("training", total=len(WAYS) * seeds)
        for seed in range(seeds):
            task = load(seed)
            for name, way in WAYS.items():
                runs.setdefault(name, []).append(way(task, steps, seed))
                progress.advance(bar)
    table = Table("way", "accuracy of the iterate, %", "of the machine solved anew, %", "AUC of flipped labels")
    for name, own in runs.items():
        columns = ([run.iterate for run in own], [run.resolved for run in own], [run.auc for run in own])
        cells = [
            "" if None in each else interval([value for value in each if value is not None], form)
            for each, form in zip(columns, (".1f", ".1f", ".3f"), strict=True)
        ]
        table.add_row(name, *cells)
    Console().print(table)
    draw(arguments.output, runs["LV-HBA"][0], load(0))


if __name__ == "__main__":
    main()
