"""Does training go to the edge of stability? The curvature of a small GPT on text along its training.

Trains the GPT of `python -m ferrostep compare` on small batches with plain SGD and with AdamW. Every few steps it
measures, on other windows of the text than those of the step, the sharpness (the largest eigenvalue of the Hessian of
one larger batch; with AdamW of the preconditioned one) and the sharpness of batches as small as those of training
along their own gradients, both as parts of their thresholds. Of the last model it draws the density of the Hessian's
eigenvalues. Prints a table and writes a figure.

    pip install ".[demo]" && python examples/curvature.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer

from ferrostep.curvature import SpectralDensity, batch_sharpness, hvp_operator, spectral_density, stability_report
from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.task import NextByte
from ferrostep.demo.text import Text, windows
from ferrostep.optim import SGD, AdamW

SHAPE = Shape(context=32, width=48, heads=4, layers=2)
LARGE = 32
"""Windows of the batch that the sharpness is measured on."""
SMALL = 8
"""Batches of the size of training that the batch sharpness is measured on."""


class Point(NamedTuple):
    """What has been measured before a step."""

    step: int
    loss: float
    sharpness: float
    batch_sharpness: float | None


class Run(NamedTuple):
    """A training: its curvature along the way, and the last model's spectrum."""

    optimizer: Optimizer
    points: list[Point]
    density: SpectralDensity
    products: int


def measure(task: NextByte, model: GPT, optimizer: Optimizer, step: int, large: Tensor) -> tuple[Point, int]:
    """The curvature before a step, in parts of the thresholds, and the products that it took."""
    lr, params = optimizer.param_groups[0]["lr"], list(model.parameters())
    is_adam = isinstance(optimizer, AdamW)
    report = stability_report(lambda: task.loss(model, large), params, lr, optimizer=optimizer, probes=1)
    places = torch.Generator().manual_seed(10_000 + step)
    small = [task.batch(places) for _ in range(SMALL)]
    found = None if is_adam else batch_sharpness(lambda batch: task.loss(model, batch), params, small)
    with torch.no_grad():
        loss = task.loss(model, large).item()
    sharpness = report.rows["sharpness"].ratio
    part = None if found is None else found.ratio_of_means * lr / 2
    return Point(step, loss, sharpness, part), report.products + (0 if found is None else SMALL)


def train(task: NextByte, optimizer: Optimizer, model: GPT, arguments: argparse.Namespace, progress: Progress) -> Run:
    """Train, measure every few steps, and take the spectrum of the last model."""
    bar = progress.add_task(type(optimizer).__name__, total=arguments.steps)
    batches, large = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    data = windows(task.text.train, LARGE, task.context + 1, large)
    points, products = [], 0
    for step in range(arguments.steps):
        # Before its first step AdamW has no preconditioner.
        if step % arguments.every == 0 and (step or isinstance(optimizer, SGD)):
            point, cost = measure(task, model, optimizer, step, data)
            points.append(point)
            products += cost
        optimizer.zero_grad()
        task.loss(model, task.batch(batches)).backward()
        optimizer.step()
        progress.advance(bar)
    operator = hvp_operator(lambda: task.loss(model, data), model.parameters())
    density = spectral_density(operator, arguments.lanczos_steps, probes=2)
    return Run(optimizer, points, density, products + operator.products)


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Draw the curvature along the trainings, and the last spectra."""
    figure = Figure(figsize=(11, 3.4), dpi=130, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, run in runs.items():
        steps = [point.step for point in run.points]
        (line,) = left.plot(steps, [point.loss for point in run.points], label=name)
        middle.plot(
            steps, [point.sharpness for point in run.points], color=line.get_color(), label=f"{name}: sharpness"
        )
        if run.points[0].batch_sharpness is not None:
            parts = [point.batch_sharpness for point in run.points]
            middle.plot(steps, parts, color=line.get_color(), linestyle=":", label=f"{name}: batch sharpness")
        run.density.plot(right)
    left.set(xlabel="step", ylabel="loss, nats per byte")
    middle.axhline(1.0, color="black", linewidth=1)
    middle.set(xlabel="step", ylabel="part of the threshold", ylim=(-0.5, 3))
    right.set(title="eigenvalues of the last Hessian")
    for axes in (left, middle):
        axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Train with both optimizers, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of a training (default: %(default)s)")
    parser.add_argument("--every", type=int, default=20, help="steps between measurements (default: %(default)s)")
    parser.add_argument("--sgd-lr", type=float, default=0.5, help="SGD's learning rate (default: %(default)s)")
    parser.add_argument("--adam-lr", type=float, default=4e-3, help="AdamW's learning rate (default: %(default)s)")
    parser.add_argument("--lanczos-steps", type=int, default=60, help="of a spectrum (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("curvature.png"), help="the figure (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = NextByte(Text.load(None, SHAPE.context), SHAPE.context)
    runs = {}
    with Progress() as progress:
        for make, lr in ((SGD, arguments.sgd_lr), (AdamW, arguments.adam_lr)):
            torch.manual_seed(0)
            model = GPT(SHAPE)
            optimizer = make(model.parameters(), lr=lr)
            runs[f"{make.__name__}, lr {lr:g}"] = train(task, optimizer, model, arguments, progress)
    table = Table("optimizer", "step", "loss", "sharpness", "batch sharpness")
    for name, run in runs.items():
        for point in run.points[:: max(1, len(run.points) // 5)]:
            part = "" if point.batch_sharpness is None else f"{point.batch_sharpness:.2f}"
            table.add_row(name, str(point.step), f"{point.loss:.3f}", f"{point.sharpness:.2f}", part)
    Console().print(table)
    for name, run in runs.items():
        span = f"eigenvalues from {run.density.nodes.min():.3g} to {run.density.nodes.max():.3g}"
        print(f"{name}: {span}; {run.products} products with Hessians")
    draw(arguments.output, runs)


if __name__ == "__main__":
    main()
