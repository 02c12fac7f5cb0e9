"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ferrostep import _core, reference
from ferrostep.optim.options import Options, check_lr, check_range, checked_betas
from ferrostep.optim.rules import Rule, RuleOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack


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
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": bool(maximize),
        }
        super().__init__(params, defaults, options)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Lion with the group's hyperparameters."""
        beta1, beta2 = group["betas"]
        hyperparameters = {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        return Rule(_core.Lion, reference.lion, ("exp_avg",), hyperparameters, counts_steps=False)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_lr(group)
        check_range("weight_decay value", group["weight_decay"], 0.0)
        group["betas"] = checked_betas(group)
