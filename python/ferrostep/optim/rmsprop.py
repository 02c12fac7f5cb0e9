"""RMSprop."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options, is_coded
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer

RULES = {
    (centered, with_momentum): ElementwiseRule(
        "RMSprop" + "Centered" * centered + "Momentum" * with_momentum, reference.rmsprop, counts_steps=True
    )
    for centered in (False, True)
    for with_momentum in (False, True)
}
"""By whether it is centered, and whether it has momentum. torch counts steps, which no rule depends on."""


class RMSprop(RuleOptimizer):
    r"""RMSprop (Tieleman and Hinton 2012, lecture 6e), as ``torch.optim.RMSprop``.

    .. code-block:: text

        g <- g + weight_decay * p
        v <- alpha * v + (1 - alpha) * g^2
        a <- alpha * a + (1 - alpha) * g                    if centered, v - a^2 takes the place of v below
        m <- momentum * m + g / (sqrt(v) + eps)
        p <- p - lr * m

    The centered form is that of Graves 2013 (arXiv 1308.0850, equation 40), with eps outside of the root. Where
    rounding makes ``v - a^2`` negative it is 0 here; torch gets NaN.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-2.
        alpha: decay rate of the averages. Default 0.99.
        eps: added to the denominator. Default 1e-8.
        weight_decay: an L2 penalty, not decoupled. Default 0.
        momentum: what is kept of m. Default 0.
        centered: divide by the deviation from the mean gradient. Default False. Of the averages in 8 bits, ``v - a^2``
            would be the rounding: ``state_dtype`` may say ``"int8"`` of ``momentum_buffer`` alone then.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``square_avg`` (4 bytes per element in float32), with momentum ``momentum_buffer``
    and if centered ``grad_avg`` (4 more for each). State dicts move both ways between this class and
    ``torch.optim.RMSprop``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> RMSprop([p], lr=0.1, alpha=0.75).step()
        >>> p.detach()
        tensor([0.8000, 1.2000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        alpha: AtLeastZero = 0.99,
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        momentum: AtLeastZero = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("square_avg", "grad_avg") if group["centered"] else ():
            if is_coded(name, group):
                expected = "momentum_buffer alone with centered=True, which divides by a difference of the averages"
                raise ValueError(f"Invalid state_dtype: {name} cannot be 'int8'; expected {expected}")

    def rule(self, group: dict[str, Any]) -> Rule:
        """RMSprop with the group's hyperparameters, with momentum or without, centered or not."""
        return RULES[bool(group["centered"]), bool(group["momentum"])].of(group)
