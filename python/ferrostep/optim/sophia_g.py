"""Sophia with the Gauss-Newton-Bartlett estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep.optim.arguments import (
    AtLeastZero,
    Betas,
    LearningRate,
    arguments_of,
    check_positive,
    if_given,
    positive,
)
from ferrostep.optim.options import Options
from ferrostep.optim.rules import Rule
from ferrostep.optim.sophia import SQUARE, Sophia

AUTHORS_BS = 5120
"""What the authors' SophiaG takes where no batch size is given."""


class SophiaG(Sophia):
    r"""Sophia-G (Liu et al. 2023, arXiv 2305.14342, Algorithms 2 and 3), as the authors' ``SophiaG``.

    .. code-block:: text

        step:              m <- beta1 * m + (1 - beta1) * g
                           p <- p * (1 - lr * weight_decay) - lr * clip(m / (rho * bs * h + eps), -1, 1)
        update_hessian:    h <- beta2 * h + (1 - beta2) * g^2       g: gradient of the mean loss at sampled labels

    ``h`` averages squares of a gradient that is the **mean** over ``bs`` sampled labels, so ``bs * h`` is the
    curvature. ``bs`` is the number of labels behind that gradient: sequences times their length for a language model,
    without ignored positions, over all micro-batches and ranks. Get it from
    :func:`ferrostep.curvature.sampled_cross_entropy` and give it to ``update_hessian``.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16 or float16.
        lr: learning rate and the most that an element moves, a float or a 1-element tensor. Default 1e-4.
        betas: decay rates of the momentum and of the Hessian estimate, each in [0, 1). Default (0.965, 0.99).
        rho: scale of the curvature; the larger, the fewer elements are clipped. Default 0.04.
        weight_decay: decoupled, times ``lr``. Default 0.1.
        bs: number of sampled labels, if it is always the same. Default None: that of the first ``update_hessian``.
        eps: added to the denominator, greater than 0. Default 1e-15.
        maximize: ascend instead of descend. Default False.
        skip_nonfinite_hessian: keep an element of ``h`` as it is where the estimate would make it NaN or infinite.
            Default True.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``hessian`` (8 bytes per element in float32). State dicts of the
    authors' SophiaG load. A bfloat16 ``hessian`` (``state_dtype``) stalls: its spacing is wider than the increments.

    Warns:
        UserWarning: once, if a step finds no ``bs``; it takes the authors' 5120 then, which is wrong for almost every
            training run.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.
        RuntimeError: complex parameters.

    Example:
        >>> import torch
        >>> from ferrostep.curvature import sampled_cross_entropy
        >>> model, x, y = torch.nn.Linear(4, 3), torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
        >>> optimizer = SophiaG(model.parameters(), lr=3e-4, rho=0.05)
        >>> for step in range(20):
        ...     if step % 10 == 0:
        ...         loss, labels = sampled_cross_entropy(model(x), y)
        ...         loss.backward()
        ...         optimizer.update_hessian(bs=labels)
        ...         optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     loss = optimizer.step()
        ...     optimizer.zero_grad()
        >>> optimizer.param_groups[0]["bs"]
        8
    """

    _warned = False
    _bs_of_step: float | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: Betas = (0.965, 0.99),
        rho: AtLeastZero = 0.04,
        weight_decay: AtLeastZero = 1e-1,
        *,
        bs: Annotated[float | None, if_given(positive())] = None,
        eps: Annotated[float, positive(called="epsilon")] = 1e-15,
        maximize: bool = False,
        skip_nonfinite_hessian: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def _needs_all_gradients(self, _group: dict[str, Any]) -> str | None:
        return "update_hessian takes the gradients of a backward pass by itself"

    def rule(self, group: dict[str, Any]) -> Rule:
        """Sophia with the group's hyperparameters and the batch size in force."""
        bs = group["bs"] if self._bs_of_step is None else self._bs_of_step
        if bs is None:
            bs = AUTHORS_BS
        return super().rule({**group, "scale": group["rho"] * bs, "add_eps": True})

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, bs: float | None = None
    ) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss, which is then the result.
            bs: number of sampled labels, for this step in place of the group's.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`RuleOptimizer.step`; nothing has been changed.
        """
        if bs is not None:
            check_positive("bs value", bs)
        self._bs_of_step = bs
        try:
            loss = super().step(closure)
        finally:
            self._bs_of_step = None
        # Not before the step, whose closure may refresh the estimate.
        if bs is None and not self._warned and any(group["bs"] is None for group in self.param_groups):
            self._warned = True
            warnings.warn(
                f"SophiaG: no bs given, taking {AUTHORS_BS}. Give update_hessian(bs=...) the number of sampled labels "
                "(for a language model: tokens, not sequences) that the mean loss was taken over.",
                stacklevel=2,
            )
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # the base's step runs the hooks

    def update_hessian(self, bs: float | None = None, grad_scale: float | None = None) -> None:
        """Take the square of every ``p.grad`` into ``hessian``; ``p.grad`` is only read.

        Call it after ``backward`` of the mean loss at **sampled** labels, unclipped, and ``zero_grad`` after it. It
        may come before the first step.

        Args:
            bs: number of labels of that loss. The first one becomes the groups' ``bs``; where a later one differs, its
                squares are weighted so that ``bs * hessian`` remains the average of curvatures. With 0, as from a
                batch that is masked as a whole, nothing changes.
            grad_scale: what the mean loss was multiplied by (``GradScaler.get_scale()``), if the gradients still are.

        Raises:
            TypeError, ValueError, RuntimeError: a gradient that cannot be used, or an impossible argument. Nothing
                has been changed then.
        """
        if bs == 0:
            return
        for name, value in (("bs value", bs), ("grad_scale value", grad_scale)):
            if value is not None:
                check_positive(name, value)

        def scale(group: dict[str, Any]) -> float:
            weight = 1.0 if bs is None or group["bs"] is None else bs / group["bs"]
            return math.sqrt(weight) / (grad_scale or 1.0)

        inputs = {p: (p.grad,) for group in self.param_groups for p in group["params"] if p.grad is not None}
        self._refresh(SQUARE, inputs, scale)
        if bs is not None:
            for group in self.param_groups:
                if group["bs"] is None:
                    group["bs"] = bs
