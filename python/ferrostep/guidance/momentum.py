"""The state of guidance with momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ferrostep.reference import checks


class MomentumBuffer:
    """Carries the guidance's direction over the steps of one denoising: ``m <- (cond - uncond) + momentum * m``.

    Args:
        momentum: the share of the last direction; the APG paper's are negative, -0.75 and -0.5. (It is checked when
            :func:`ferrostep.guidance.apg` uses it.)

    Attributes:
        momentum: as given.
        running_average: m, of the predictions' shape, dtype and device; None before the first step.

    Example:
        >>> from ferrostep.guidance import apg
        >>> buffer = MomentumBuffer(-0.5)
        >>> for cond in torch.tensor([[[1.0, 2.0]], [[2.0, 2.0]]]):
        ...     guided = apg(cond, torch.ones(1, 2), 3.0, momentum_buffer=buffer)
        >>> buffer.running_average
        tensor([[1.0000, 0.5000]])
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.running_average: Tensor | None = None

    def reset(self) -> None:
        """Forget the direction: before another denoising begins."""
        self.running_average = None

    def of(self, prediction: Tensor) -> Tensor:
        """The direction for predictions like this one: new zeros, not kept, before the first step.

        Args:
            prediction: of any shape, dtype and device.

        Raises:
            ValueError: the buffer is of another shape, dtype or device.
        """
        kept = self.running_average
        if kept is None:
            return torch.zeros_like(prediction, requires_grad=False)
        for name in ("shape", "dtype", "device"):
            was, came = getattr(kept, name), getattr(prediction, name)
            if was != came:
                raise ValueError(
                    f"momentum_buffer has {name} {was}, but cond has {came}: call momentum_buffer.reset() before "
                    "another denoising"
                )
        return kept if checks.is_writable(kept) else kept.clone()

    def state_dict(self) -> dict[str, Any]:
        """The momentum and the direction, which is not copied."""
        return {"momentum": self.momentum, "running_average": self.running_average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; the direction is copied.

        Args:
            state_dict: with ``momentum`` and ``running_average``.

        Raises:
            KeyError: one of both is missing.
        """
        kept = state_dict["running_average"]
        self.momentum = state_dict["momentum"]
        self.running_average = None if kept is None else kept.clone()

    def __repr__(self) -> str:
        kept = "None" if self.running_average is None else f"{list(self.running_average.shape)}"
        return f"MomentumBuffer(momentum={self.momentum}, running_average={kept})"
