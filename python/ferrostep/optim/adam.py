"""Adam."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep.optim.adamw import adamw_rule
from ferrostep.optim.arguments import AdamsLearningRate, AtLeastZero, Betas, Epsilon, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import Rule, RuleOptimizer


class Adam(RuleOptimizer):
    r"""Adam (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1), as ``torch.optim.Adam``.

    .. code-block:: text

        g <- g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        p <- p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

    With ``amsgrad`` the greatest v so far takes the place of v in the last line. It is the rule of
    :class:`ferrostep.optim.AdamW` with other defaults: ``decoupled_weight_decay=True`` makes it AdamW.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: an L2 penalty. Default 0.
        amsgrad: use the greatest second moment so far (Reddi et al. 2018). Default False.
        maximize: ascend instead of descend. Default False.
        decoupled_weight_decay: decay the weights by themselves instead. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` (8 bytes per element in float32), and with ``amsgrad``
    ``max_exp_avg_sq``. State dicts move both ways between this class and ``torch.optim.Adam`` or ``AdamW``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> Adam([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: AdamsLearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Adam or AMSGrad with the group's hyperparameters."""
        return adamw_rule(group)
