"""Schedules as functions of the step, and the scheduler that any of them makes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from ferrostep.errors import wrong_kind
from ferrostep.figures import axes
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor
    from torch.optim import Optimizer


class Schedule(ABC):
    """A factor of the learning rate for each step, as a pure function of the step's number.

    ``torch.optim.lr_scheduler.LambdaLR`` takes one, too; so a product of two is
    ``LambdaLR(optimizer, lambda step: one(step) * other(step))``.

    Example:
        >>> from ferrostep.schedules import LinearDecay
        >>> isinstance(LinearDecay(4), Schedule)
        True
    """

    total_steps: int
    """How many steps the schedule is made for."""

    def __repr__(self) -> str:
        parts = (f"{name}={_shown(value)}" for name, value in _numbers(self).items())
        return f"{type(self).__name__}({', '.join(parts)})"

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The factor of step ``step``, from 0; beyond the last step that of the last."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the factors of all steps (needs matplotlib: the extra ``demo``).

        Args:
            ax: axes of matplotlib to draw on; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        ax = axes(ax)
        ax.plot(range(self.total_steps), [self(step) for step in range(self.total_steps)])
        ax.set(xlabel="step", ylabel="factor of the learning rate", ylim=(0, None))
        return ax


@suggesting
class ScheduleLR(LRScheduler):
    """The scheduler of a schedule: group by group, the initial learning rate times the step's factor.

    The learning rate follows from ``last_epoch`` and ``initial_lr`` alone, as with ``LambdaLR``: it is right after any
    resume, inside ``SequentialLR``, and also where something else has written ``lr`` meanwhile.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: the schedule.
        last_epoch: the step last taken; default -1, a fresh start.

    Raises:
        TypeError: no optimizer, or no schedule.
        KeyError: ``last_epoch`` of a resume, and groups without ``initial_lr``, as torch raises.

    Example:
        >>> import torch
        >>> from ferrostep.schedules import LinearDecay
        >>> optimizer = torch.optim.SGD([torch.ones(3)], lr=0.5)
        >>> scheduler = ScheduleLR(optimizer, LinearDecay(4))
        >>> optimizer.step()
        >>> scheduler.step()
        >>> scheduler.get_last_lr()
        [0.375]
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, last_epoch: int = -1) -> None:
        if not isinstance(schedule, Schedule):
            raise wrong_kind("schedule", schedule, "a Schedule")
        self.schedule = schedule
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the groups at ``last_epoch``."""
        factor = self.schedule(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state: the counter, and the schedule as plain numbers, which ``weights_only`` loads."""
        return {**super().state_dict(), "schedule": _numbers(self.schedule)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state: the counter and the schedule that it was saved with.

        Args:
            state_dict: what :meth:`state_dict` gave.

        Raises:
            KeyError: it is another scheduler's, and says nothing of a schedule; nothing has been changed then.
        """
        schedule = state_dict["schedule"]
        missing = [name for name in _numbers(self.schedule) if name not in schedule]
        if missing:
            raise KeyError(f"state_dict['schedule'] has no {', '.join(missing)}: it is another scheduler's")
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "schedule"})
        self.schedule = copy.copy(self.schedule)  # which other schedulers may have, too
        self.schedule.__dict__.update(schedule)


def _numbers(schedule: Schedule) -> dict[str, Any]:
    """What a schedule is made of, but for functions: those are the constructor's."""
    return {name: value for name, value in vars(schedule).items() if not callable(value)}


def _shown(value: Any) -> str:
    """The number, or of a list how many there are."""
    return f"[{len(value)} numbers]" if isinstance(value, list) else repr(value)
