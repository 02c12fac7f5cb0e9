"""Linear decay, with a warm-up."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch.optim import Optimizer

from ferrostep.errors import Problem, wrong_choice
from ferrostep.numpy.arrays import check, whole
from ferrostep.schedules.schedule import Schedule, ScheduleLR
from ferrostep.suggestions import suggesting

Final: TypeAlias = Literal["1/T", "zero"]


@suggesting
class LinearDecay(Schedule):
    """A linear decay after a linear warm-up (Defazio et al. 2023, arXiv 2310.07831: the best for the last iterate).

    Step t of T, from 0, with W steps of warm-up, has the factor ``(t + 1) / W`` before W, and from there on
    ``(1 - (t - W) / (T - W)) ** power``.

    Args:
        total_steps: T, with those of the warm-up.
        warmup_steps: W. Default 0.
        power: exponent of the decay. Default 1.
        final: ``"1/T"`` (default): the last step's factor is ``1 / (T - W) ** power``, as with torch's
            ``LinearLR(1, 0, T)``; ``"zero"``: it is 0, as often written, and the step is for nothing.

    Raises:
        TypeError, ValueError: steps that are no whole numbers, less than one, or all warm-up.

    Example:
        >>> [LinearDecay(4)(step) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.25]
    """

    def __init__(self, total_steps: int, warmup_steps: int = 0, power: float = 1.0, final: Final = "1/T") -> None:
        self.total_steps = whole("total_steps", total_steps, 1)
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        if self.warmup_steps >= self.total_steps:
            raise Problem.NUMBER.of("warmup_steps", warmup_steps, f"less than total_steps={total_steps}")
        check("power", power, 0.0)
        if final not in ("1/T", "zero"):
            raise wrong_choice("final", final, "1/T", "zero")
        self.power = float(power)
        self.final = final

    def __call__(self, step: int) -> float:
        """The factor of step ``step``."""
        step = min(step, self.total_steps - 1)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        steps = self.total_steps - self.warmup_steps
        last = steps - 1 if self.final == "zero" and steps > 1 else steps
        fraction: float = (1 - (step - self.warmup_steps) / last) ** self.power
        return fraction


@suggesting
class LinearDecayLR(ScheduleLR):
    """The scheduler of :class:`LinearDecay`: warm-up and decay in one, which resumes at any step.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        total_steps, warmup_steps, power, final: as of :class:`LinearDecay`.
        last_epoch: the step last taken; default -1, a fresh start.

    Raises:
        TypeError, ValueError: as of :class:`LinearDecay`.
        KeyError: as of :class:`ScheduleLR`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.ones(3)], lr=0.5)
        >>> scheduler = LinearDecayLR(optimizer, total_steps=6, warmup_steps=2)
        >>> rates = []
        >>> for _ in range(6):
        ...     rates += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.25, 0.5, 0.5, 0.375, 0.25, 0.125]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        power: float = 1.0,
        final: Final = "1/T",
        last_epoch: int = -1,
    ) -> None:
        super().__init__(optimizer, LinearDecay(total_steps, warmup_steps, power, final), last_epoch)
