"""Who is told the norms of the gradients that a step has used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Protocol

from torch import Tensor

from ferrostep.reference.sums import total

PowerSums = Mapping[int, Mapping[Tensor, float]]
"""By the order of a norm and by parameter: the sum of the sizes of a gradient's elements (1), or of the squares (2)."""


class Recorder(Protocol):
    """What is told of every step that is taken."""

    order: int
    """1 for the l1 norm, 2 for the l2 norm."""

    @property
    def is_due(self) -> bool:
        """Whether it wants the norm of the next step."""

    def _passed(self, power_sum: float | None) -> None:
        """A step has been taken: the sum of the powers of all its gradients' elements, None where it is not due."""


class Recorders:
    """The recorders of an optimizer, and what the parts of a step have left for them."""

    def __init__(self) -> None:
        self.all: list[Recorder] = []
        self._next: list[Recorder] = []
        """Those that are to be told from the next step on."""
        self._found: dict[int, dict[Tensor, float]] | None = None

    @property
    def orders(self) -> list[int]:
        """The norms that are wanted of the next step."""
        return sorted({each.order for each in self.all if each.is_due}) if self.all else []

    def join(self, recorder: Recorder, is_in_round: bool) -> None:
        """Tell a recorder of every step, without that of which a part has been taken already."""
        (self._next if is_in_round else self.all).append(recorder)

    def leave(self, recorder: Recorder) -> None:
        """Tell it no more."""
        (self.all if recorder in self.all else self._next).remove(recorder)

    def add(self, find: Callable[[], PowerSums | None]) -> None:
        """Take in what a part of a step has left, if there is anyone to be told: nothing for norms that are not due.

        ``find`` tells it, or None, where there are no numbers.
        """
        found = find() if self.all else None
        if found is not None:
            self._found = self._found or {}
            for order, sums in found.items():
                self._found.setdefault(order, {}).update(sums)

    def tell(self, params: Iterable[Tensor]) -> None:
        """The step has ended: tell of it, if any part of it was taken; all, whatever one of them raises."""
        found = self._found
        if found is None:
            self.forget()
            return
        with ExitStack() as telling:
            params = list(params)
            sums = {order: float(total(own[p] for p in params if p in own)) for order, own in found.items()}
            for each in reversed(self.all):
                telling.callback(each._passed, sums.get(each.order) if each.is_due else None)
            self.forget()

    def forget(self) -> None:
        """Forget what has been left."""
        self._found = None
        self.all += self._next
        self._next = []
