"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer

PLAIN = ElementwiseRule("Sgd", reference.sgd)
WITH_MOMENTUM = ElementwiseRule("SgdMomentum", reference.sgd, early=("step",))


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent with momentum (Sutskever et al. 2013), as ``torch.optim.SGD``.

    .. code-block:: text

        g <- g + weight_decay * p
        m <- momentum * m + (1 - dampening) * g         g itself in a parameter's first step
        p <- p - lr * m                                 with nesterov p - lr * (g + momentum * m)

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        momentum: what is kept of m; 0 for plain descent. Default 0.
        dampening: see above. Default 0.
        weight_decay: an L2 penalty, not decoupled. Default 0.
        nesterov: look ahead along the momentum; takes a momentum and no dampening. Default False.
        maximize: ascend instead of descend. Default False.
        ema_init: begin with ``m = (1 - dampening) * g``, the average from zeros on. With ``dampening=momentum`` it is
            the momentum of Byzantine-robust training (Karimireddy et al. 2021, arXiv 2012.10333, Algorithm 2).
            Default False, as torch.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32), without momentum nothing; no step count,
    except with ``rounding="stochastic"``. State dicts move both ways between this class and ``torch.optim.SGD``.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> optimizer = SGD([p], lr=0.1, momentum=0.9)
        >>> optimizer.step()
        >>> optimizer.step()
        >>> p.detach()
        tensor([0.8550, 1.5800])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: AtLeastZero = 0.0,
        dampening: float = 0.0,
        weight_decay: AtLeastZero = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        ema_init: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Descent with the group's hyperparameters, with momentum or without."""
        return (WITH_MOMENTUM if group["momentum"] else PLAIN).of(group)

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
