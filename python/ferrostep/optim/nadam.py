"""NAdam."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Betas, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer


class NAdam(RuleOptimizer):
    r"""NAdam: Adam with Nesterov's momentum (Dozat 2016, ICLR workshop, Algorithm 2), as ``torch.optim.NAdam``.

    .. code-block:: text

        g <- g + weight_decay * p                   p <- p * (1 - lr * weight_decay) if decoupled
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)
        product <- product * mu_t
        mean = mu_{t+1} / (1 - product * mu_{t+1}) * m + (1 - mu_t) / (1 - product) * g
        p <- p - lr * mean / (sqrt(v / (1 - beta2^t)) + eps)

    The momentum mu grows from half of beta1 to beta1.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 2e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: an L2 penalty. Default 0.
        momentum_decay: how fast mu grows. Default 4e-3.
        decoupled_weight_decay: decay the weights by themselves instead. Default False.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``mu_product`` (the product, one number of torch's default dtype), ``exp_avg``,
    ``exp_avg_sq`` (8 bytes per element in float32). State dicts move both ways between this class and
    ``torch.optim.NAdam``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> NAdam([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.8944, 1.1056])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        momentum_decay: AtLeastZero = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("NAdam", reference.nadam, factor=reference.nadam_factor)
