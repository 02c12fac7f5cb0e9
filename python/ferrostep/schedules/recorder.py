"""The norms of a run's gradients, step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch.optim import Optimizer

from ferrostep.errors import wrong_choice, wrong_kind
from ferrostep.gradients.lists import power_sum
from ferrostep.numpy.arrays import whole
from ferrostep.optim.base import InPlaceOptimizer
from ferrostep.optim.release import frees_gradients, innermost
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting

Norm: TypeAlias = Literal["l1", "l2"]
ORDERS: dict[str, int] = {"l1": 1, "l2": 2}


@suggesting
class GradNormRecorder:
    """Records the norm of all gradients of an optimizer, for :func:`refine_schedule`.

    With :meth:`attach` each step records by itself, and with ferrostep's optimizers within the pass that updates, for a
    few percent of its time. Or call :meth:`record` before each ``optimizer.step()``: after ``GradScaler.unscale_``,
    before clipping; it reads the gradients once more, all in one call. Both give the same numbers, summed in float64.

    Args:
        optimizer: any ``torch.optim.Optimizer``; parameters of any shape and dtype, a gradient of None counts as 0.
        norm: ``"l1"`` (default; for Adam and what is near the sign) or ``"l2"`` (for SGD).
        every: record only the first of each so many calls. Default 1.

    Attributes:
        norms: what has been recorded; NaN and infinity are kept.

    Raises:
        TypeError, ValueError: no optimizer, another norm, or ``every`` below 1.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> recorder = GradNormRecorder(torch.optim.SGD([p], lr=0.1), norm="l1")
        >>> p.grad = torch.tensor([3.0, -4.0])
        >>> recorder.record()
        7.0

        Or by itself, at each step:

        >>> from ferrostep.optim import AdamW
        >>> optimizer = AdamW([p])
        >>> with GradNormRecorder(optimizer).attach() as recorder:
        ...     optimizer.step()
        >>> recorder.norms
        [7.0]
    """

    def __init__(self, optimizer: Optimizer, norm: Norm = "l1", every: int = 1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise wrong_kind("optimizer", optimizer, "a torch.optim.Optimizer")
        if norm not in tuple(ORDERS):
            raise wrong_choice("norm", norm, *ORDERS)
        self.optimizer = optimizer
        self.norm = norm
        self.every = whole("every", every, 1)
        self.norms: list[float] = []
        self.order = ORDERS[norm]
        self._calls = 0
        self._end: Callable[[], None] | None = None

    @property
    def is_due(self) -> bool:
        """Whether the next call, or the next step, is recorded."""
        return self._calls % self.every == 0

    def attach(self) -> GradNormRecorder:
        """Record at every step from now on, until :meth:`detach`.

        Of ferrostep's optimizers, what a step has used: gradients before ``max_grad_norm`` clips them; those of a
        closure; with ``SAM`` those near the weights; all of them where ``optimizer.attach()`` frees each as it comes;
        of DTensors, the whole's norm, on every rank (all ranks are to record). Element-wise rules sum while a gradient
        is in the cache; Muon, AuON, FRUGAL, rows on the simplex, and Lion with ``kappa="topk"`` or ``"row"`` take one
        pass more. Of other optimizers, the gradients that are there after the step, which is one pass more, too. What
        no step has used is not recorded: where one was refused or skipped, or interrupted before it changed anything.
        Attached when ``optimizer.attach()`` has taken a part of a step, it begins with the next one.

        Returns:
            The recorder, also as a context manager that detaches.

        Raises:
            RuntimeError: it is attached already.
        """
        if self._end is not None:
            raise RuntimeError("attach() was called twice without detach()")
        optimizer = innermost(self.optimizer)
        if isinstance(optimizer, InPlaceOptimizer):
            self._end = optimizer._record(self)
        else:
            self._end = optimizer.register_step_post_hook(self._after_step).remove
        return self

    def detach(self) -> None:
        """Leave it to :meth:`record` again; nothing if :meth:`attach` was not called."""
        if self._end is not None:
            self._end()
            self._end = None

    def __enter__(self) -> GradNormRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _passed(self, power_sum: float | None) -> None:
        """Count a step, and record it where there is a sum: of the sizes of all elements, or of their squares."""
        self._calls += 1
        if power_sum is not None:
            self.norms.append(power_sum if self.order == 1 else math.sqrt(power_sum))

    def record(self) -> float | None:
        """Record the norm of the gradients that are there now.

        Returns:
            The norm; None in a call that ``every`` leaves out.

        Raises:
            RuntimeError: the optimizer is attached, and has used gradients already, or ``offload_gradients`` has taken
                them to the host; or the recorder is attached, and records by itself.
        """
        if self._end is not None:
            raise RuntimeError("record() would record twice what the attached recorder does at each step")
        if frees_gradients(self.optimizer):
            raise RuntimeError(
                "record() needs all gradients, and the optimizer takes them as they come (attach() or "
                "offload_gradients); attach() the recorder, too"
            )
        return self._record(self.optimizer)

    def _record(self, optimizer: Optimizer) -> float | None:
        is_due = self.is_due
        self._passed(self._power_sum(optimizer) if is_due else None)
        return self.norms[-1] if is_due else None

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        self._record(optimizer)

    @torch.no_grad()
    def _power_sum(self, optimizer: Optimizer) -> float:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sums = power_sum([g for g in grads if checks.is_plain(g)], self.order)
        for g in grads:
            if not checks.is_plain(g):
                sums += float(torch.linalg.vector_norm(g.to_dense(), self.order, dtype=_double(g))) ** self.order
        return sums

    def save(self, path: str | Path) -> None:
        """Write what has been recorded to a JSON file, for ``python -m ferrostep refine``.

        Args:
            path: of the file.

        Raises:
            OSError: it cannot be written.
        """
        run = {"norm": self.norm, "every": self.every, "steps": self._calls, "norms": self.norms}
        Path(path).write_text(json.dumps(run), encoding="utf-8")


def _double(x: torch.Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64
