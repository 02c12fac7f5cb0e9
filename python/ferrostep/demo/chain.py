"""Two optimizers as one, for rules that are for a part of the model only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Chain(Optimizer):
    """Steps several optimizers, one after the other; a scheduler sees the groups of all."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        # The very dicts that the optimizers read, so that a scheduler's edits reach them.
        self.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """Of all."""
        return defaultdict(dict, {p: state for each in self.optimizers for p, state in each.state.items()})

    @state.setter
    def state(self, _: defaultdict[Tensor, Any]) -> None:
        """Ignored: `Optimizer.__init__` sets an empty one, but the optimizers have their own."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step each; no closure."""
        assert closure is None
        for optimizer in self.optimizers:
            optimizer.step()
