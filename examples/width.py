"""Do a narrow model's learning rate and weight decay serve a wide one? A small GPT at widths 64, 128 and 256.

Tunes AdamW's learning rate and weight decay at width 64, then trains at each width with the groups that
`width_scaled_param_groups` makes by each rule, over the same learning rates: `sqrt` (Fan et al. 2025, arXiv
2510.15262), `linear` and `none`. Prints for each width the best learning rate and what the one tuned at width 64 loses
against it; the held-out loss at that one over several seeds; and by how much the matrices' largest singular values, and
so the gains of the layers, change from the narrowest to the widest model. Draws the losses against the learning rates.

The learning rate is constant after a warm-up: the rules are about the steady state, which a decay would leave.

    pip install ".[demo]" && python examples/width.py          # minutes on one core; --quick: seconds, for nothing
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.report import interval
from ferrostep.demo.task import NextByte
from ferrostep.demo.text import Text
from ferrostep.optim import AdamW, SingularValues, gain_invariance, top_singular_values, width_scaled_param_groups

WIDTHS = (64, 128, 256)
RULES = ("sqrt", "linear", "none")
RATES = (6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2)
DECAYS = (1.0, 3.0)
CONTEXT, HEAD, LAYERS = 32, 32, 2
WARM_UP = 0.05


class Wide(GPT):
    """The GPT as the maximal-update parametrization has it: embeddings as large, and logits as small, at any width."""

    def __init__(self, width: int, base_width: int) -> None:
        self.share = base_width / width
        super().__init__(Shape(CONTEXT, width, max(1, width // HEAD), LAYERS))
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=(3 * base_width) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the byte that follows each position."""
        return super().forward(tokens) * self.share


class Run(NamedTuple):
    """What is kept of one training."""

    held_out: float
    singular: SingularValues


class Trainings:
    """Trains models, each once, and shows how far it is."""

    def __init__(self, steps: int, base_width: int, progress: Progress, total: int) -> None:
        self.task = NextByte(Text.load(None, CONTEXT), CONTEXT)
        self.steps = steps
        self.base_width = base_width
        self.progress = progress
        self.bar = progress.add_task("training", total=total)
        self.done: dict[tuple[int, str, float, float, int], Run] = {}

    def run(self, width: int, rule: str, lr: float, weight_decay: float, seed: int = 0) -> Run:
        """A model of the seed, trained on the batches of the seed; at the base width all rules are one."""
        key = (width, rule if width != self.base_width else "sqrt", lr, weight_decay, seed)
        if key not in self.done:
            self.done[key] = self._train(*key)
            self.progress.advance(self.bar)
        return self.done[key]

    def _train(self, width: int, rule: str, lr: float, weight_decay: float, seed: int) -> Run:
        torch.manual_seed(seed)
        model, batches = Wide(width, self.base_width), torch.Generator().manual_seed(seed)
        groups = width_scaled_param_groups(
            model,
            self.base_width,
            lr=lr,
            weight_decay=weight_decay,
            rule=rule,  # type: ignore[arg-type]
            width=width,
        )
        optimizer = AdamW(groups, betas=(0.9, 0.95))
        warm_up = max(1, round(WARM_UP * self.steps))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up))
        for _ in range(self.steps):
            loss = self.task.loss(model, self.task.batch(batches))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
        hidden = [(name, p) for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
        return Run(self.task.held_out_loss(model), top_singular_values(hidden, iters=60, param_groups=groups))


def draw(path: Path, losses: dict[str, dict[int, dict[float, float]]], tuned: float) -> None:
    """Draw the losses of each width against the learning rate, a panel for each rule."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    for axes, (rule, of_widths) in zip(figure.subplots(1, len(losses), sharey=True), losses.items(), strict=True):
        for width, of_rates in of_widths.items():
            axes.plot(list(of_rates), list(of_rates.values()), marker="o", label=f"width {width}")
        axes.axvline(tuned, color="0.8", zorder=0)
        axes.set(xscale="log", xlabel="learning rate at the narrowest", title=f"weight decay: {rule}")
        rates = list(next(iter(of_widths.values())))
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("held-out loss")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def spread(narrow: SingularValues, wide: SingularValues) -> tuple[float, float, int]:
    """The mean ratio of the largest singular values, the furthest from 1, and how many are beyond a tenth."""
    table = gain_invariance(narrow, wide)
    logs = [math.log(each.ratio) for each in table]
    return math.exp(sum(logs) / len(logs)), math.exp(max(logs, key=abs)), len(table.outside())


def report(trainings: Trainings, widths: list[int], tuned: tuple[float, float], rates: list[float], seeds: int) -> None:
    """Print the tables."""
    lr, decay = tuned
    base, wide = widths[0], widths[-1]
    curves = Table("rule", "width", "best lr", "its loss", f"loss at {lr:g}", title="one seed, over learning rates")
    for rule in RULES:
        for width in widths:
            found = {each: trainings.run(width, rule, each, decay).held_out for each in rates}
            best = min(found, key=lambda each: found[each])
            curves.add_row(rule, str(width), f"{best:g}", f"{found[best]:.3f}", f"{found[lr]:.3f}")
    gains = Table(
        "rule", f"held-out loss at {wide}", "less sqrt's", "mean gain", "furthest", "beyond 10%",
        title=f"{seeds} seeds at the tuned learning rate; gains: largest singular values, {wide} by {base}",
    )  # fmt: skip
    count = len(trainings.run(base, "sqrt", lr, decay).singular)
    for rule in RULES:
        runs = [trainings.run(wide, rule, lr, decay, seed) for seed in range(seeds)]
        others = [trainings.run(wide, "sqrt", lr, decay, seed) for seed in range(seeds)]
        narrow = [trainings.run(base, "sqrt", lr, decay, seed) for seed in range(seeds)]
        spreads = [spread(a.singular, b.singular) for a, b in zip(narrow, runs, strict=True)]
        mean, furthest, outside = zip(*spreads, strict=True)
        gains.add_row(
            rule,
            interval([run.held_out for run in runs], ".4f"),
            interval([run.held_out - other.held_out for run, other in zip(runs, others, strict=True)], ".4f"),
            interval(list(mean), ".3f"),
            f"{max(furthest, key=lambda x: abs(math.log(x))):.3f}",
            f"{sum(outside) / len(outside):.1f} of {count}",
        )
    Console().print(curves, gains)


def main() -> None:
    """Tune, train, print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of a training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="at the tuned learning rate (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="(default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="(default: %(default)s)")
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="only see that it runs: 3 steps, one decay, two rates")
    parser.add_argument("--output", type=Path, default=Path("width.png"), help="the figure (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds, arguments.widths = 3, 2, [32, 64]
        arguments.rates, arguments.decays = [5e-3, 1e-2], [1.0]
    torch.set_num_threads(1)
    widths, rates = sorted(arguments.widths), sorted(arguments.rates)
    tuning = len(rates) * len(arguments.decays)
    others = len(RULES) * (len(rates) * (len(widths) - 1) + arguments.seeds - 1) + arguments.seeds - 1
    with Progress() as progress:
        trainings = Trainings(arguments.steps, widths[0], progress, tuning + others)
        pairs = [(lr, decay) for lr in rates for decay in arguments.decays]
        lr, decay = min(pairs, key=lambda pair: trainings.run(widths[0], "sqrt", *pair).held_out)
        losses = {
            rule: {width: {x: trainings.run(width, rule, x, decay).held_out for x in rates} for width in widths}
            for rule in RULES
        }
        for seed in range(arguments.seeds):
            trainings.run(widths[0], "sqrt", lr, decay, seed)
            for rule in RULES:
                trainings.run(widths[-1], rule, lr, decay, seed)
    settles = 1 / (lr * decay)
    Console().print(
        f"tuned at width {widths[0]}: lr {lr:g}, weight decay {decay:g}, which settles in {settles:.0f} steps"
    )
    report(trainings, widths, (lr, decay), rates, arguments.seeds)
    draw(arguments.output, losses, lr)


if __name__ == "__main__":
    main()
