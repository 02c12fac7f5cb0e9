"""The three tasks of the table of training results: some 0.3 to 1.3 s of one core for each run, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ferrostep.curvature import sampled_cross_entropy, sampled_squared_error
from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.task import NextByte, Task
from ferrostep.demo.text import Text

BATCH = 32
SMALL = Shape(context=64, width=48, heads=4, layers=2)


class Pairs(NamedTuple):
    """Inputs and what they are to give."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Supervised:
    """Rows to train on and rows held out; class indices, or numbers of the shape of the model's outputs."""

    train: Pairs
    held_out: Pairs

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Supervised:
        """Three quarters of the rows to train on, drawn once for all runs."""
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        first, last = order[: len(x) * 3 // 4], order[len(x) * 3 // 4 :]
        return cls(Pairs(x[first], y[first]), Pairs(x[last], y[last]))

    @property
    def of_classes(self) -> bool:
        return not self.train.y.is_floating_point()

    def batch(self, generator: torch.Generator) -> Pairs:
        chosen = torch.randint(len(self.train.x), (BATCH,), generator=generator)
        return Pairs(self.train.x[chosen], self.train.y[chosen])

    def loss(self, model: Any, batch: Pairs) -> Tensor:
        """Cross-entropy in nats, or the mean squared error."""
        loss = functional.cross_entropy if self.of_classes else functional.mse_loss
        return loss(model(batch.x), batch.y)

    def sampled_loss(self, model: Any, batch: Pairs) -> tuple[Tensor, int]:
        sampled = sampled_cross_entropy if self.of_classes else sampled_squared_error
        return sampled(model(batch.x))

    @torch.no_grad()
    def held_out_loss(self, model: Any) -> float:
        return self.loss(model, self.held_out).item()


class Residual(nn.Module):
    """Two convolutions beside a shortcut, with group normalization: nothing is kept of batches."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        within = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.shortcut(x) + self.norm2(self.conv2(within)))


class ResNet(nn.Module):
    """Of images `[batch, 1, 8, 8]`: two blocks of 16 channels and one of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class MLP(nn.Module):
    """Of 10 numbers: two hidden layers of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def digits() -> Supervised:
    """scikit-learn's 1797 images."""
    from sklearn import datasets  # here, as the tables are made without it

    images, labels = datasets.load_digits(return_X_y=True)
    return Supervised.of(torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels))


def friedman() -> Supervised:
    """Friedman's first regression problem (1991): 5 of 10 numbers matter. Noise is 0.01 of the target's variance.

    The tables of measurements that scikit-learn ships have 178 to 569 rows: what an MLP loses on their held-out rows
    depends on how little it has learned by heart, and the lowest rate looks best. Here rows are not short.
    """
    from sklearn import datasets

    x, y = map(torch.from_numpy, datasets.make_friedman1(8000, noise=0.5, random_state=0))
    return Supervised.of((2 * x - 1).float(), ((y - y.mean()) / y.std()).float().unsqueeze(1))


@dataclass(frozen=True)
class Workload:
    """A task with its model and its number of steps."""

    title: str
    loss: str
    data: Callable[[], Task]
    model: Callable[[], nn.Module]
    steps: int


WORKLOADS = {
    "gpt": Workload(
        "character GPT of `compare`, smaller: 2 layers of 48, 71,000 parameters",
        "nats per byte",
        lambda: NextByte(Text.load(None, SMALL.context), SMALL.context),
        lambda: GPT(SMALL),
        150,
    ),
    "digits": Workload("ResNet on scikit-learn's digits", "nats", digits, ResNet, 200),
    "friedman": Workload("MLP on Friedman's regression", "of the target's variance", friedman, MLP, 500),
}
