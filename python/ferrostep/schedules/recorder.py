"""The norms of a run's gradients, step by step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch.optim import Optimizer

from ferrostep.errors import wrong_choice, wrong_kind
from ferrostep.gradients.lists import norms
from ferrostep.numpy.arrays import whole
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting

Norm: TypeAlias = Literal["l1", "l2"]
ORDERS: dict[str, int] = {"l1": 1, "l2": 2}


@suggesting
class GradNormRecorder:
    """Records the norm of all gradients of an optimizer, for :func:`refine_schedule`.

    Call :meth:`record` before each ``optimizer.step()``: after ``GradScaler.unscale_``, before clipping. It reads the
    gradients once more, all in one call, and sums in float64.

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
        self._calls = 0

    @torch.no_grad()
    def record(self) -> float | None:
        """Record the norm of the gradients that are there now.

        Returns:
            The norm; None in a call that ``every`` leaves out.

        Raises:
            RuntimeError: the optimizer is attached, and has used gradients already.
        """
        if getattr(self.optimizer, "_release", None) is not None:
            raise RuntimeError("record() needs all gradients, and the attached optimizer frees them as they come")
        is_left_out = self._calls % self.every != 0
        self._calls += 1
        if is_left_out:
            return None
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        order = ORDERS[self.norm]
        sums = norms([g for g in grads if checks.is_plain(g)])[order - 1]
        for g in grads:
            if not checks.is_plain(g):
                sums += float(torch.linalg.vector_norm(g.to_dense(), order, dtype=_double(g))) ** order
        self.norms.append(sums if order == 1 else math.sqrt(sums))
        return self.norms[-1]

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
