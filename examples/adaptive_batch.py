"""Does a batch that grows as its gradients ask for it beat fixed ones at equal samples? AdAdaGrad on text.

Trains a small network to predict the next byte of the standard library's sources from the eight before it, with
Adagrad and with AdaGradNorm, each sample once: with a small batch, a large one, and one that the norm test (Lau, Liu
and Kolar 2024, arXiv 2402.11215) lets grow from the small to the large. Each takes the best of a few learning rates,
found with the first seed, and then trains with all seeds. Prints held-out losses with 95% intervals and the number of
updates; draws losses and batch sizes.

    pip install ".[demo]" && python examples/adaptive_batch.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from ferrostep.batch_size import AdaptiveBatchSize, GradVarianceAccumulator, ResizableBatchSampler
from ferrostep.demo.report import interval
from ferrostep.demo.text import Text
from ferrostep.optim import Adagrad, AdaGradNorm

CONTEXT, MICRO_BATCH, HELD_OUT, LOOKS = 8, 16, 4096, 32
OPTIMIZERS = {
    "Adagrad": (Adagrad, (0.02, 0.04, 0.08, 0.16)),
    "AdaGradNorm": (AdaGradNorm, (4.0, 8.0, 16.0, 32.0)),
}


class Plan(NamedTuple):
    """The batch to begin with, the largest, and the bound of the norm test, which lets it grow."""

    smallest: int
    largest: int
    eta: float

    @property
    def name(self) -> str:
        """For the table."""
        return (
            f"{self.smallest}"
            if self.smallest == self.largest
            else f"{self.smallest} to {self.largest}, eta {self.eta:g}"
        )


class Run(NamedTuple):
    """What is kept of one training; the lists have a number for each look at the held-out loss."""

    samples: list[int]
    losses: list[float]
    sizes: list[int]
    updates: int
    noise_scale: float


class Data(NamedTuple):
    """Windows of bytes, int64 of shape ``[samples, CONTEXT + 1]``."""

    train: Tensor
    held_out: Tensor


def load(samples: int) -> Data:
    """Windows from places drawn at random."""
    text, generator = Text.load(None, CONTEXT), torch.Generator().manual_seed(0)

    def windows(tokens: Tensor, count: int) -> Tensor:
        starts = torch.randint(len(tokens) - CONTEXT, (count, 1), generator=generator)
        return tokens[starts + torch.arange(CONTEXT + 1)].long()

    return Data(windows(text.train, samples), windows(text.held_out, HELD_OUT))


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """In nats per byte."""
    return F.cross_entropy(model(windows[:, :-1]), windows[:, -1])


def train(data: Data, name: str, plan: Plan, lr: float, seed: int) -> Run:
    """Go through the samples once, in the seed's order, from the seed's weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(16 * CONTEXT, 128), nn.ReLU(), nn.Linear(128, 256)
    )
    optimizer = OPTIMIZERS[name][0](model.parameters(), lr=lr)
    batch = AdaptiveBatchSize(plan.smallest, plan.largest, eta=plan.eta, micro_batch=MICRO_BATCH)
    variance = GradVarianceAccumulator(model.parameters())
    sampler = ResizableBatchSampler(len(data.train), batch.size, seed=seed)
    seen, run = 0, Run([], [], [], 0, 0.0)
    for indices in sampler:
        optimizer.zero_grad()
        variance.reset()
        # What is measured takes several passes, and what is not goes in one.
        for part in torch.tensor(indices).split(MICRO_BATCH if batch.is_due else len(indices)):
            (loss_of(model, data.train[part]) * (len(part) / len(indices))).backward()
            if batch.is_due:
                variance.add(len(part))
        optimizer.step()
        sampler.resize(batch.update(variance.result() if batch.is_due else None))
        seen += len(indices)
        if seen >= len(data.train) * (len(run.losses) + 1) / LOOKS:
            with torch.no_grad():
                run.losses.append(loss_of(model, data.held_out).item())
            run.samples.append(seen)
            run.sizes.append(len(indices))
    return run._replace(updates=batch.steps, noise_scale=batch.noise_scale)


def draw(path: Path, runs: dict[tuple[str, Plan], list[Run]]) -> None:
    """Draw the held-out losses, means over seeds, and the batches of the first seed."""
    figure = Figure(figsize=(11, 3.6), dpi=130, layout="constrained")
    *losses, sizes = figure.subplots(1, len(OPTIMIZERS) + 1)
    for axes, name in zip(losses, OPTIMIZERS, strict=True):
        for (own, plan), seeds in runs.items():
            if own == name:
                axes.plot(np.divide(seeds[0].samples, 1000), np.mean([run.losses for run in seeds], 0), label=plan.name)
        axes.set(title=name, xlabel="thousand samples", ylabel="held-out loss, nats per byte", ylim=(None, 3.5))
        axes.legend(frameon=False)
    for (own, plan), seeds in runs.items():
        if plan.smallest < plan.largest:
            sizes.plot(np.divide(seeds[0].samples, 1000), seeds[0].sizes, label=f"{own}, eta {plan.eta:g}")
    sizes.set(title="batch", xlabel="thousand samples", ylabel="samples", yscale="log")
    sizes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Tune, train, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2**16, help="of a training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--eta", type=float, nargs="+", default=(0.5, 0.9), help="of the norm test (default: 0.5 0.9)")
    parser.add_argument("--largest", type=int, default=1024, help="the largest batch (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="an eighth of the samples, and one learning rate")
    parser.add_argument(
        "--output", type=Path, default=Path("adaptive_batch.png"), help="the figure (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments.samples // 8 if arguments.quick else arguments.samples)
    smallest, largest = 2 * MICRO_BATCH, arguments.largest
    plans = [Plan(size, size, 1.0) for size in (smallest, largest)]
    plans += [Plan(smallest, largest, eta) for eta in arguments.eta]
    chosen = {name: rates[2:3] if arguments.quick else rates for name, (_, rates) in OPTIMIZERS.items()}
    runs: dict[tuple[str, Plan], list[Run]] = {}
    table = Table("optimizer", "batch", "learning rate", "updates", "held-out loss", "noise scale")
    with Progress() as progress:
        total = len(plans) * sum(len(rates) + arguments.seeds - 1 for rates in chosen.values())
        bar = progress.add_task("training", total=total)
        for name, rates in chosen.items():
            for plan in plans:
                one = partial(train, data, name, plan)
                tried = {}
                for lr in rates:
                    tried[lr] = one(lr=lr, seed=0)
                    progress.advance(bar)
                best = min(tried, key=lambda lr: tried[lr].losses[-1])
                own = runs[name, plan] = [tried[best]]
                for seed in range(1, arguments.seeds):
                    own.append(one(lr=best, seed=seed))
                    progress.advance(bar)
                updates = np.mean([run.updates for run in own])
                scale = np.median([run.noise_scale for run in own])
                last = interval([run.losses[-1] for run in own], ".4f")
                table.add_row(
                    name, plan.name, f"{best:g}", f"{updates:.0f}", last, "" if np.isnan(scale) else f"{scale:.0f}"
                )
    Console().print(table)
    draw(arguments.output, runs)


if __name__ == "__main__":
    main()
