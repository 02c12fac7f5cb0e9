"""What is trained: batches and losses, and the demonstration's own task."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor

from ferrostep.curvature import sampled_cross_entropy

from .text import Text, windows

BATCH = 8
HELD_OUT_BATCHES = 32


class Task(Protocol):
    """Data and their losses, for any model that takes them."""

    def batch(self, generator: torch.Generator) -> Any:
        """Data of one training step, drawn from `generator`."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        """The mean loss."""

    def sampled_loss(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The mean loss at labels that the model itself draws, and their number: for `SophiaG`'s estimate."""

    def held_out_loss(self, model: Any) -> float:
        """The mean loss on data that no batch has; the same for every call."""


@dataclass(frozen=True)
class NextByte:
    """The bytes that follow those of a text, for a `GPT` of this context."""

    text: Text
    context: int

    def batch(self, generator: torch.Generator) -> Tensor:
        """`[BATCH, context + 1]` int64."""
        return windows(self.text.train, BATCH, self.context + 1, generator)

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        """In nats per byte."""
        return model.loss(batch)  # type: ignore[no-any-return]

    def sampled_loss(self, model: Any, batch: Tensor) -> tuple[Tensor, int]:
        """At bytes that the model draws."""
        return sampled_cross_entropy(model(batch[:, :-1]))

    @torch.no_grad()
    def held_out_loss(self, model: Any) -> float:
        """Mean loss over windows of the held-out tenth."""
        places = torch.Generator().manual_seed(0)
        batches = (windows(self.text.held_out, BATCH, self.context + 1, places) for _ in range(HELD_OUT_BATCHES))
        return fmean(self.loss(model, batch).item() for batch in batches)
