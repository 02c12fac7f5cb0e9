"""Can wrong labels be found by their effect on a small clean set? Hyper-cleaning of scikit-learn's digits by BO-REP.

600 training digits, 40% of whose labels are replaced by another class, once; 200 clean ones to validate on, the rest to
test. Each training sample has a weight, the sigmoid of an upper parameter, that follows the validation loss of a linear
classifier trained with the weights. Beside BO-REP with the paper's parts and without them: training on the corrupted
labels, on the validation set alone, on both, and on the true labels. Prints test accuracies of all seeds with 95%
intervals, how well the weights tell wrong labels from right ones, and the cost; draws the weights.

    pip install ".[examples]" && python examples/hyper_cleaning.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from ferrostep.bilevel import BOREP, hypergradient
from ferrostep.demo.report import interval
from ferrostep.implicit import linear

TRAINING, VALIDATION, CORRUPTED, DECAY = 600, 200, 0.4, 1e-3
DEFAULTS: dict[str, Any] = {"lr": 0.5, "lower_lr": 1.0, "lower_steps": 5, "refine_steps": 200, "neumann_lr": 1.0}
WAYS: dict[str, dict[str, Any]] = {
    "BO-REP": {},
    "BO-REP without refinement": {"refine_steps": 0},
    "BO-REP, 3 terms": {"neumann_steps": 3},
    "BO-REP, running z": {"solver": "running"},
    "not normalized": {"sgd": 2000.0},
}


class Task(NamedTuple):
    """The data of a seed."""

    x: Tensor
    labels: Tensor
    """Of the training samples, some of them wrong."""
    true: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Run(NamedTuple):
    """What is kept of one way and seed."""

    accuracy: float
    auc: float | None
    weights: Tensor | None
    passes: int


def load(seed: int) -> Task:
    """The digits, the labels corrupted once and for all."""
    generator = torch.Generator().manual_seed(seed)
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=generator)
    x, y = torch.tensor(images, dtype=torch.float64)[order] / 16, torch.tensor(classes)[order]
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    labels = y[:TRAINING].clone()
    wrong = torch.randperm(TRAINING, generator=generator)[: int(CORRUPTED * TRAINING)]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    middle = TRAINING + VALIDATION
    return Task(x[:TRAINING], labels, y[:TRAINING], (x[TRAINING:middle], y[TRAINING:middle]), (x[middle:], y[middle:]))


def accuracy(w: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    return 100 * ((data[0] @ w).argmax(1) == data[1]).double().mean().item()


def fit(x: Tensor, y: Tensor) -> Tensor:
    """A linear classifier."""
    w = torch.zeros(x.shape[1], 10, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(x @ w, y) + DECAY * w.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def cleaned(task: Task, steps: int, sgd: float | None = None, **options: Any) -> Run:
    """By weights that follow the validation loss."""
    doubts = torch.zeros(TRAINING, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(task.x.shape[1], 10, dtype=torch.float64, requires_grad=True)
    passes = 0

    def lower() -> Tensor:
        nonlocal passes
        passes += 1
        each = cross_entropy(task.x @ w, task.labels, reduction="none")
        return (doubts.sigmoid() * each).mean() + DECAY * w.square().sum()

    def upper() -> Tensor:
        return cross_entropy(task.validation[0] @ w, task.validation[1])

    optimizer = BOREP([doubts], [w], **{**DEFAULTS, **options})
    if sgd is None:
        for _ in range(steps):
            optimizer.step(upper, lower)
    else:  # a plain step along the hypergradient, with the same refreshes
        plain, descent = torch.optim.SGD([doubts], lr=sgd, momentum=0.9, dampening=0.9), torch.optim.SGD([w], lr=1.0)
        for step in range(steps):
            for _ in range(200 if step == 0 else 5 * (step % 2 == 0)):
                descent.zero_grad()
                lower().backward(inputs=[w])
                descent.step()
            solver = linear.neumann(steps=20, lr=1.0)
            (doubts.grad,) = hypergradient(upper, lower, [doubts], [w], solver=solver).gradients
            plain.step()
    right = (task.labels == task.true).numpy()
    weights = doubts.detach().sigmoid()
    return Run(accuracy(w.detach(), task.test), roc_auc_score(right, weights.numpy()), weights, passes)


def others(task: Task) -> dict[str, Callable[[], Tensor]]:
    """Training without weights."""
    x, y = task.validation
    return {
        "corrupted labels": lambda: fit(task.x, task.labels),
        "validation set alone": lambda: fit(x, y),
        "both": lambda: fit(torch.cat([task.x, x]), torch.cat([task.labels, y])),
        "true labels": lambda: fit(task.x, task.true),
    }


def draw(path: Path, run: Run, task: Task) -> None:
    """The weights of right and wrong labels."""
    figure = Figure(figsize=(5, 3.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    right = task.labels == task.true
    assert run.weights is not None
    axes.hist([run.weights[right], run.weights[~right]], bins=30, label=["right labels", "wrong labels"])
    axes.set(xlabel="weight of a training sample", ylabel="samples")
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the weights (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("hyper_cleaning.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    steps, seeds = (2, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {}
    with Progress() as progress:
        bar = progress.add_task("training", total=seeds * (len(WAYS) + 4))
        for seed in range(seeds):
            task = load(seed)
            for name, train in others(task).items():
                runs.setdefault(name, []).append(Run(accuracy(train(), task.test), None, None, 0))
                progress.advance(bar)
            for name, options in WAYS.items():
                runs.setdefault(name, []).append(cleaned(task, steps, **options))
                progress.advance(bar)
    table = Table("way", "test accuracy, %", "AUC of wrong labels", "lower losses")
    for name, own in runs.items():
        aucs = [run.auc for run in own if run.auc is not None]
        cost = str(own[0].passes) if aucs else ""
        table.add_row(name, interval([run.accuracy for run in own], ".1f"), interval(aucs, ".3f") if aucs else "", cost)
    Console().print(table)
    draw(arguments.output, runs["BO-REP"][0], load(0))


if __name__ == "__main__":
    main()
