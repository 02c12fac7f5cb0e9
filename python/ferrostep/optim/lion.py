"""Lion."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Betas, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer


class Lion(RuleOptimizer):
    r"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2).

    .. code-block:: text

        u <- sign(beta1 * m + (1 - beta1) * g)          sign(0) = 0
        p <- p * (1 - lr * weight_decay) - lr * u
        m <- beta2 * m + (1 - beta2) * g

    Every element moves by ``lr`` or not at all, so a good ``lr`` is 3 to 10 times below AdamW's and a good
    ``weight_decay`` as much above.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-4.
        betas: of the update's interpolation and of the momentum. Default (0.9, 0.99).
        weight_decay: decoupled, times ``lr``. Default 0.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``exp_avg`` (4 bytes per element in float32); no step count, except with
    ``rounding="stochastic"``. State dicts of lion-pytorch load.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> Lion([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: AtLeastZero = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("Lion", reference.lion)
