"""AdamW, and Adam as its variant."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AdamsLearningRate, AtLeastZero, Betas, Epsilon, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer

ADAMW = ElementwiseRule("AdamW", reference.adamw)
AMSGRAD = ElementwiseRule("AmsGrad", reference.adamw)


class AdamW(RuleOptimizer):
    r"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2), as ``torch.optim.AdamW``.

    .. code-block:: text

        p <- p * (1 - lr * weight_decay)
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        p <- p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

    With ``amsgrad`` the greatest v so far takes the place of v in the last line. With
    ``decoupled_weight_decay=False`` it is Adam (arXiv 1412.6980): ``weight_decay * p`` is added to g and the first
    line falls away.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: Default 1e-2.
        amsgrad: use the greatest second moment so far (Reddi et al. 2018). Default False.
        maximize: ascend instead of descend. Default False.
        decoupled_weight_decay: AdamW (True, default) or Adam with an L2 penalty (False).
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` (8 bytes per element in float32), and with ``amsgrad``
    ``max_exp_avg_sq``. State dicts move both ways between this class and ``torch.optim.AdamW`` or ``Adam``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> AdamW([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.8990, 1.0990])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: AdamsLearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """AdamW or AMSGrad with the group's hyperparameters."""
        return adamw_rule(group)


def adamw_rule(group: dict[str, Any]) -> Rule:
    """AdamW or AMSGrad with the hyperparameters of a parameter group."""
    return (AMSGRAD if group["amsgrad"] else ADAMW).of(group)
