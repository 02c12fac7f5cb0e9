"""diffGrad."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Betas, Epsilon, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer


class DiffGrad(RuleOptimizer):
    r"""diffGrad: Adam that slows down where the gradient stays the same (Dubey et al. 2019, arXiv 1909.11015, Alg. 1).

    .. code-block:: text

        g <- g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        x <- 1 / (1 + exp(-abs(previous - g)))                          from 1/2 up to 1; previous = 0 at first
        p <- p - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * x * m / (sqrt(v) + eps)
        previous <- g

    ``x`` depends on the size of gradients: where they change by 0.001 it is 0.50025, and the step that of Adam with
    half the rate. Only gradients that change by about 1 or more make the difference that the paper is about.

    As in the authors' code, ``eps`` is added before the second moment is corrected, hence counts for more in the first
    steps than in ``torch.optim.Adam``, and ``previous`` has the weight decay in it. Their first version kept
    ``p.grad`` itself instead of a copy: with ``zero_grad(set_to_none=False)`` the difference was 0 from then on.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: Default 0.
        decoupled_weight_decay: add the decay to the gradient (False, default) or decay the weights themselves, times
            ``lr``, as AdamW does (True).
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, ``previous_grad`` (12 bytes per element in float32; 10
    with ``state_dtype={"previous_grad": torch.bfloat16}``, which changes ``x`` by 0.0005 at most where gradients are
    below 1). State dicts of torch-optimizer load.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> DiffGrad([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9378, 1.0881])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("DiffGrad", reference.diffgrad)
