"""Adagrad."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer


class Adagrad(RuleOptimizer):
    r"""Adagrad (Duchi, Hazan and Singer 2011, JMLR 12, the diagonal form), as ``torch.optim.Adagrad``.

    .. code-block:: text

        g <- g + weight_decay * p
        s <- s + g^2
        p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-2.
        lr_decay: by how much the divisor of ``lr`` grows with each step. Default 0.
        weight_decay: an L2 penalty, not decoupled. Default 0.
        initial_accumulator_value: what s is before the first step. Default 0.
        eps: added to the denominator. Default 1e-10.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`. A bfloat16 ``sum`` (``state_dtype``) stalls: its
            spacing is wider than the increments.

    State per parameter: ``step``, ``sum`` (4 bytes per element in float32), made by the first step and not, as torch's,
    by the constructor. State dicts move both ways between this class and ``torch.optim.Adagrad``.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> Adagrad([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        lr_decay: AtLeastZero = 0.0,
        weight_decay: AtLeastZero = 0.0,
        initial_accumulator_value: AtLeastZero = 0.0,
        eps: Epsilon = 1e-10,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("Adagrad", reference.adagrad)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Adagrad with the group's hyperparameters and beginning of the sum."""
        return super().rule(group)._replace(initial={"sum": group["initial_accumulator_value"]})
