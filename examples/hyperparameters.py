"""Is one weight decay per feature, learned by its validation loss, better than one decay for all?

Logistic regression on scikit-learn's breast cancer data, to whose 30 features 60 of noise are added: 120 samples to
train on, 120 to validate, the rest to test. BO-REP learns the logarithm of every feature's decay by hypergradients,
with a cut Neumann series or the system solved exactly; the alternative takes the best of 21 decays by validation.
Prints test losses and accuracies of all seeds with 95% intervals, and draws where the decays go.

    pip install ".[examples]" && python examples/hyperparameters.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ferrostep.bilevel import BOREP
from ferrostep.demo.report import interval

REAL, NOISE = 30, 60
HIGHEST = 2.0
"""Of a logarithm of a decay: the feature is as good as gone, and gradient descent does not diverge yet."""
GRID = torch.linspace(-8.0, HIGHEST, 21, dtype=torch.float64)
WAYS: dict[str, dict[str, Any]] = {
    "BO-REP": {"neumann_steps": 30},
    "BO-REP, a quarter of the steps": {"neumann_steps": 30, "share": 0.25},
    "BO-REP, exact systems": {"solver": "cg"},
}


class Data(NamedTuple):
    """Features, with a column of ones, and labels."""

    x: Tensor
    y: Tensor

    def loss(self, w: Tensor) -> Tensor:
        """The mean logistic loss."""
        return binary_cross_entropy_with_logits(self.x @ w, self.y)

    def accuracy(self, w: Tensor) -> float:
        """In percent."""
        return 100 * ((self.x @ w > 0) == (self.y > 0.5)).double().mean().item()


class Run(NamedTuple):
    """What is kept of one way and seed."""

    loss: float
    accuracy: float
    decays: Tensor
    losses: list[float]


def load(seed: int) -> tuple[Data, Data, Data]:
    """Training, validation and test data, standardized by the training data."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = (torch.tensor(each, dtype=torch.float64) for each in load_breast_cancer(return_X_y=True))
    noise = torch.randn(len(features), NOISE, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(features), generator=generator)
    x, y = torch.cat([features, noise], 1)[order], labels[order]
    x = (x - x[:120].mean(0)) / x[:120].std(0)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return Data(x[:120], y[:120]), Data(x[120:240], y[120:240]), Data(x[240:], y[240:])


def penalized(data: Data, w: Tensor, log_decay: Tensor) -> Tensor:
    """The lower loss: the constant has no decay."""
    return data.loss(w) + 0.5 * (log_decay.clamp(max=HIGHEST).exp() * w[:-1].square()).sum()


def fit(data: Data, log_decay: Tensor) -> Tensor:
    """The weights of given decays."""
    w = torch.zeros(data.x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = penalized(data, w, log_decay)
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def by_grid(train: Data, validation: Data, test: Data) -> Run:
    """The best of one decay for all."""
    fits = [fit(train, log_decay.expand(REAL + NOISE)) for log_decay in GRID]
    best = min(range(len(GRID)), key=lambda i: validation.loss(fits[i]).item())
    return Run(test.loss(fits[best]).item(), test.accuracy(fits[best]), GRID[best].expand(REAL + NOISE), [])


def by_borep(train: Data, validation: Data, test: Data, steps: int, share: float = 1.0, **options: Any) -> Run:
    """Decays that follow the validation loss, for a share of the steps."""
    log_decay = torch.full((REAL + NOISE,), -3.0, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(train.x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = BOREP([log_decay], [w], lr=0.2, lower_lr=0.15, lower_steps=5, neumann_lr=0.15, **options)
    losses = []
    for _ in range(max(1, round(share * steps))):
        losses.append(optimizer.step(lambda: validation.loss(w), lambda: penalized(train, w, log_decay)).upper.item())
    found = fit(train, log_decay.detach())
    return Run(test.loss(found).item(), test.accuracy(found), log_decay.detach(), losses)


def draw(path: Path, runs: dict[str, list[Run]]) -> None:
    """The validation loss over the steps, and the decays at the end, of the first seed."""
    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, own in runs.items():
        if own[0].losses:
            left.plot(own[0].losses, label=name)
    left.set(xlabel="step", ylabel="validation loss")
    left.legend(frameon=False)
    decays = runs["BO-REP"][0].decays
    right.hist([decays[:REAL], decays[REAL:]], bins=20, density=True, label=["real features", "noise"])
    right.set(xlabel="log of the decay", ylabel="density")
    right.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of BO-REP (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("hyperparameters.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    steps, seeds = (4, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {name: [] for name in ("one decay, best of 21", *WAYS)}
    with Progress() as progress:
        bar = progress.add_task("training", total=seeds * len(runs))
        for seed in range(seeds):
            torch.manual_seed(seed)
            data = load(seed)
            for name, own in runs.items():
                own.append(by_borep(*data, steps, **WAYS[name]) if name in WAYS else by_grid(*data))
                progress.advance(bar)
    table = Table("way", "test loss", "accuracy, %", "log decay of noise less real")
    for name, own in runs.items():
        apart = [(run.decays[REAL:].mean() - run.decays[:REAL].mean()).item() for run in own]
        columns = ([run.loss for run in own], [run.accuracy for run in own], apart)
        table.add_row(name, *(interval(each, form) for each, form in zip(columns, (".3f", ".1f", ".2f"), strict=True)))
    Console().print(table)
    draw(arguments.output, runs)


if __name__ == "__main__":
    main()
