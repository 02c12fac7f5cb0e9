"""A minimization as a layer: sparse codes of digits, with a dictionary learned through the lasso that finds them.

The layer takes an image to its code, the solution of a lasso in a dictionary; a linear classifier reads the code. The
dictionary and the lasso's level are trained with the classifier, by the derivative of the solution
(`ferrostep.implicit.fixed_point`), or through the recorded steps of the solver (unrolled), or not at all (fixed).
Prints test accuracies of all seeds with 95% intervals, the time of a training step and how many operations are recorded
for the backward pass; draws the losses and the dictionary.

    pip install ".[examples]" && python examples/optimization_layer.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ferrostep.demo.report import interval
from ferrostep.implicit import fixed_point, linear, optimality
from ferrostep.optim import AdamW

ATOMS, BATCH, TRAINING = 40, 50, 500
WAYS = ("implicit", "unrolled", "fixed dictionary")


class Run(NamedTuple):
    """What is kept of one training."""

    accuracy: float
    losses: list[float]
    seconds: float
    recorded: int
    atoms: Tensor


def distance(code: Tensor, images: Tensor, dictionary: Tensor) -> Tensor:
    """The smooth part of the lasso, of a batch."""
    return 0.5 * (code @ dictionary - images).square().sum()


def shrunk(x: Tensor, level: Tensor, eta: float) -> Tensor:
    """The proximal operator of ``eta * level * |x|_1`` for codes of at least 0."""
    return (x - eta * level).clamp(min=0.0)


def lasso(initial: Tensor, images: Tensor, dictionary: Tensor, level: Tensor, steps: int = 200) -> Tensor:
    """Accelerated proximal gradient steps (FISTA)."""
    gram, at = dictionary @ dictionary.mT, images @ dictionary.mT
    eta = 1 / gram.detach().diagonal().sum().item()  # at least its largest eigenvalue
    eta = max(eta, 0.9 / torch.linalg.matrix_norm(gram.detach(), 2).item())
    code = ahead = initial
    momentum = 1.0
    for _ in range(steps):
        before, code = code, shrunk(ahead - eta * (ahead @ gram - at), level, eta)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = code + (momentum - 1) / following * (code - before)
        momentum = following
    return code


class SparseCoder(nn.Module):
    """Codes by the lasso, and a linear classifier of them."""

    def __init__(self, images: Tensor, way: str) -> None:
        super().__init__()
        atoms = images[torch.randperm(len(images))[:ATOMS]] + 0.1 * torch.rand(ATOMS, images.shape[1])
        self.dictionary = nn.Parameter(atoms, requires_grad=way != "fixed dictionary")
        self.level = nn.Parameter(torch.tensor(-2.0), requires_grad=way != "fixed dictionary")
        self.head = nn.Linear(ATOMS, 10)
        condition = optimality.proximal_gradient(distance, shrunk, eta=0.5)
        layer = fixed_point(condition, solve=linear.gmres(rtol=1e-4), tol=1e-2)
        self.solve = lasso if way == "unrolled" else layer(lasso)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        atoms = self.dictionary / self.dictionary.norm(dim=1, keepdim=True)
        code = self.solve(images.new_zeros(len(images), ATOMS), images, atoms, softplus(self.level))
        logits: Tensor = self.head(code)
        return logits


def operations(loss: Tensor) -> int:
    """How many the graph of a loss has."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return len(seen)


def train(way: str, steps: int, seed: int) -> Run:
    """Train on 500 digits, test on the rest."""
    torch.manual_seed(seed)
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(classes)[order]
    x = x / x.norm(dim=1, keepdim=True)
    model = SparseCoder(x[:TRAINING], way)
    optimizer = AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    losses, seconds, recorded = [], [], 0

    for _ in range(steps):
        batch = torch.randint(TRAINING, (BATCH,))
        start = time.perf_counter()
        loss = cross_entropy(model(x[batch]), y[batch])
        recorded = operations(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = 100 * (model(x[TRAINING:]).argmax(1) == y[TRAINING:]).double().mean().item()
    return Run(accuracy, losses, median(seconds), recorded, model.dictionary.detach())


def draw(path: Path, runs: dict[str, list[Run]]) -> None:
    """Losses, and the atoms that the implicit layer has learned, of the first seed."""
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, own in runs.items():
        left.plot(own[0].losses, label=name, linewidth=1)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    left.legend(frameon=False)
    atoms = runs["implicit"][0].atoms
    tiles = atoms.view(4, 10, 8, 8).transpose(1, 2).reshape(32, 80)
    right.imshow(tiles, cmap="gray")
    right.set_axis_off()
    figure.savefig(path)


def main() -> None:
    """Train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of a training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("optimization_layer.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    steps, seeds = (2, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    with Progress() as progress:
        bar = progress.add_task("training", total=seeds * len(WAYS))
        for seed in range(seeds):
            for way in WAYS:
                runs[way].append(train(way, steps, seed))
                progress.advance(bar)
    table = Table("way", "test accuracy, %", "last training losses", "ms a step", "operations recorded")
    for name, own in runs.items():
        ends = [sum(run.losses[-20:]) / len(run.losses[-20:]) for run in own]
        step = f"{1e3 * median(run.seconds for run in own):.1f}"
        table.add_row(
            name, interval([run.accuracy for run in own], ".1f"), interval(ends, ".3f"), step, str(own[0].recorded)
        )
    Console().print(table)
    draw(arguments.output, runs)


if __name__ == "__main__":
    main()
