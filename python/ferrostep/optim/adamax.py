"""Adamax."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Betas, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer


class Adamax(RuleOptimizer):
    r"""Adamax: Adam by the infinity norm (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 2), as ``torch.optim.Adamax``.

    .. code-block:: text

        g <- g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * g
        u <- max(beta2 * u, abs(g) + eps)
        p <- p - lr / (1 - beta1^t) * m / u

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 2e-3.
        betas: decay rates of the momentum and of the norm, each in [0, 1). Default (0.9, 0.999).
        eps: added to the gradient's size. Default 1e-8.
        weight_decay: an L2 penalty, not decoupled. Default 0.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_inf`` (8 bytes per element in float32). State dicts move both ways
    between this class and ``torch.optim.Adamax``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> Adamax([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("Adamax", reference.adamax)
