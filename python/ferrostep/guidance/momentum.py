"""The state of guidance with momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MomentumBuffer:
    """Carries the guidance's direction over the steps of one denoising: ``m <- (cond - uncond) + momentum * m``.

    Args:
        momentum: the share of the last direction; the APG paper's are negative, -0.75 and -0.5.

    Attributes:
        running_average: m, of the predictions' shape, dtype and device; None before the first step.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.running_average: Tensor | None = None

    def reset(self) -> None:
        """Forget the direction: before another denoising begins."""
        self.running_average = None

    def of(self, prediction: Tensor) -> Tensor:
        """The direction for predictions like this one: new zeros, not kept, before the first step.

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
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The momentum and the direction, which is not copied."""
        return {"momentum": self.momentum, "running_average": self.running_average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; the direction is copied."""
        kept = state_dict["running_average"]
        self.momentum = state_dict["momentum"]
        self.running_average = None if kept is None else kept.clone()

    def __repr__(self) -> str:
        kept = "None" if self.running_average is None else f"{list(self.running_average.shape)}"
        return f"MomentumBuffer(momentum={self.momentum}, running_average={kept})"
