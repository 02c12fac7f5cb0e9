"""Do gradient surgery's methods keep what their papers say? Three regressions that share a narrow trunk.

The tasks' losses are in different units and their gradients in conflict. Every method trains the same network with
`gradients.backward`, on all the data at once, once as it is and once with the first loss in a unit a hundred times as
small. Prints, with 95% intervals over the seeds: the part of steps in which a loss would rise to first order, in both
units; how far the update's projections on the gradients' directions are apart, at their median; the least cosine of an
update with the one that the other unit would have given; and the geometric mean of the tasks' losses in the end, as
parts of the targets' variances, in both units.

    pip install ".[demo]" && python examples/surgery.py
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ferrostep import gradients
from ferrostep.demo.report import interval
from ferrostep.gradients.accumulation import METHODS, Method
from ferrostep.optim import AdamW

UNITS = torch.tensor([1.0, 30.0, 0.1])
CHANGED = torch.tensor([100.0, 1.0, 1.0])
RISE = 1e-6
"""The least part of the norms' product by which a loss counts as rising: rounding in float32 is below."""


class Run(NamedTuple):
    """What is measured of one training."""

    rising: float
    unequal: float
    turned: float
    losses: Tensor


class Network(nn.Module):
    """A trunk with three outputs for three tasks, each with a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in UNITS)
        self.x = torch.randn(200, 4)
        first, second = (self.x @ torch.randn(4)).sin(), (self.x @ torch.randn(4)).cos()
        self.y = torch.stack([first, second - first, self.x[:, 0] * self.x[:, 1] - first])

    def losses(self) -> list[Tensor]:
        """The mean squared errors, as parts of the targets' variances."""
        hidden = self.trunk(self.x)
        return [(head(hidden)[:, 0] - y).square().mean() / y.var() for head, y in zip(self.heads, self.y, strict=True)]


def train(method: Method, seed: int, steps: int, units: Tensor) -> Run:
    """Train, and look at every step on the way."""
    model, generator = Network(seed), torch.Generator()
    shared = list(model.trunk.parameters())
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    options = {"generator": generator} if method == "pcgrad" else {}
    rising, unequal, turned = [], [], []
    for step in range(steps):
        losses = [loss * unit for loss, unit in zip(model.losses(), units, strict=True)]
        products = gradients.gram([torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses])
        optimizer.zero_grad()
        generator.manual_seed(step)
        weights = gradients.backward(losses, model.parameters(), method, **options)
        optimizer.step()
        norms = products.diag().sqrt()
        cosines = products @ weights / norms / (weights @ products @ weights).sqrt()
        rising.append(bool((cosines < -RISE).any()))
        unequal.append(float((cosines.max() - cosines.min()) / cosines.abs().max()))
        generator.manual_seed(step)
        turned.append(cosine(products, weights, method, options))
    return Run(np.mean(rising), np.median(unequal), min(turned), torch.stack(model.losses()).detach())


def cosine(products: Tensor, weights: Tensor, method: Method, options: dict[str, torch.Generator]) -> float:
    """Between the update and that of the changed unit, whose loss is then divided by it again."""
    surgery = METHODS[method]
    other = surgery.weights(products * torch.outer(CHANGED, CHANGED), **options)
    other = CHANGED * (surgery.merge(other) if surgery.merge else other)
    lengths = (weights @ products @ weights) * (other @ products @ other)
    return float(weights @ products @ other / lengths.sqrt())


def main() -> None:
    """Train with every method, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="updates (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("method", "rises", "other unit", "apart", "cosine", "losses", "other unit")
    for method in track([method for method in METHODS if method != "sum"], "learning"):
        runs = [train(method, seed, arguments.steps, UNITS) for seed in range(arguments.seeds)]
        changed = [train(method, seed, arguments.steps, UNITS * CHANGED) for seed in range(arguments.seeds)]
        ends = [[float(run.losses.log().mean().exp()) for run in each] for each in (runs, changed)]
        table.add_row(
            method,
            *(interval([100 * run.rising for run in each], ".0f") + " %" for each in (runs, changed)),
            interval([run.unequal for run in runs], ".2f"),
            interval([run.turned for run in runs], ".3f"),
            *(interval(end, ".3f") for end in ends),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
