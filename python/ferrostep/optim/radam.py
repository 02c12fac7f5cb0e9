"""RAdam."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Betas, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer


class RAdam(RuleOptimizer):
    r"""RAdam: Adam with a rectified step (Liu et al. 2020, arXiv 1908.03265, Algorithm 2), as ``torch.optim.RAdam``.

    .. code-block:: text

        g <- g + weight_decay * p                   p <- p * (1 - lr * weight_decay) if decoupled
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2^t / (1 - beta2^t)
        r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        p <- p - lr / (1 - beta1^t) * m * r * sqrt(1 - beta2^t) / (sqrt(v) + eps)      if rho > 5
        p <- p - lr / (1 - beta1^t) * m                                                otherwise

    While rho is small, in the first steps, v is of too few gradients to divide by.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: an L2 penalty. Default 0.
        decoupled_weight_decay: decay the weights by themselves instead. Default False.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` (8 bytes per element in float32). State dicts move both
    ways between this class and ``torch.optim.RAdam``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> RAdam([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9500, 1.2000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("RAdam", reference.radam)
