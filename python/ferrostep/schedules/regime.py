"""The schedule of a small batch's recipe, for a large batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from ferrostep.errors import wrong_choice, wrong_kind
from ferrostep.numpy.arrays import whole
from ferrostep.schedules.batch import scale_lr_for_batch
from ferrostep.schedules.schedule import Schedule
from ferrostep.suggestions import suggesting

LrRule: TypeAlias = Literal["sqrt", "linear", "none"]


@suggesting
class RegimeAdaptation(Schedule):
    r"""A schedule of epochs, adapted to a larger batch (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741, section 5).

    With ``r = batch / base_batch``, each epoch of the recipe becomes ``ceil(r)`` epochs, so that as many updates are
    made at each learning rate as with the small batch, and the learning rate is scaled by ``sqrt(r)``:

    .. code-block:: text

        factor(epoch) = sqrt(r) * scheduler_fn(floor(epoch / ceil(r)))

    A schedule that counts updates stays as it is: only its rate is scaled, see :func:`scale_lr_for_batch`.

    Args:
        scheduler_fn: the factor of the base learning rate for each epoch of the recipe, from 0: a function of its
            number, or a :class:`Schedule`. The state of a scheduler does not have it, as that of ``LambdaLR`` has none.
        base_batch: samples of a batch in the recipe.
        batch: samples of a batch now.
        lr_rule: ``"sqrt"`` (default; the paper's), ``"linear"`` or ``"none"``.
        epochs: of the recipe; default: those of a :class:`Schedule`, else 1. Only :meth:`plot` looks at them.

    Attributes:
        stretch: how many epochs are made of one.
        lr_factor: what all factors are multiplied by.

    Raises:
        TypeError, ValueError: no function, no whole numbers of at least 1, or an unknown rule.

    Example:
        >>> recipe = lambda epoch: 0.1 ** sum(epoch >= boundary for boundary in (81, 122))
        >>> adapted = RegimeAdaptation(recipe, base_batch=128, batch=2048)
        >>> [round(0.1 * adapted(epoch), 6) for epoch in (0, 1295, 1296, 1952)]
        [0.4, 0.4, 0.04, 0.004]
    """

    def __init__(
        self,
        scheduler_fn: Callable[[int], float],
        base_batch: int,
        batch: int,
        lr_rule: LrRule = "sqrt",
        *,
        epochs: int | None = None,
    ) -> None:
        if not callable(scheduler_fn):
            raise wrong_kind("scheduler_fn", scheduler_fn, "a function of the epoch")
        base, new = whole("base_batch", base_batch, 1), whole("batch", batch, 1)
        if lr_rule not in ("sqrt", "linear", "none"):
            raise wrong_choice("lr_rule", lr_rule, "sqrt", "linear", "none")
        if epochs is None:
            epochs = scheduler_fn.total_steps if isinstance(scheduler_fn, Schedule) else 1
        self.scheduler_fn = scheduler_fn
        self.stretch = math.ceil(new / base)
        self.lr_factor = 1.0 if lr_rule == "none" else scale_lr_for_batch(1.0, base, new, lr_rule)
        self.total_steps = whole("epochs", epochs, 1) * self.stretch

    def __call__(self, step: int) -> float:
        """The factor of epoch ``step``."""
        return self.lr_factor * self.scheduler_fn(step // self.stretch)
