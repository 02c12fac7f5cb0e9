"""AdaGrad-Norm."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim.arguments import AtLeastZero, Epsilon, LearningRate, arguments_of
from ferrostep.optim.base import NewState, is_fake
from ferrostep.optim.gathered import Gathered
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.sums import accumulated
from ferrostep.reference.sums import Sum


class AdaGradNorm(RuleOptimizer):
    r"""AdaGrad-Norm: one step size for all elements (Ward, Wu and Bottou 2019, arXiv 1806.01811, Algorithm 1).

    .. code-block:: text

        s <- s + norm(g)^2                              over all parameters, one number
        p <- p * (1 - lr * weight_decay) - lr * g / (sqrt(s) + eps)

    It converges for any ``lr``, and s grows as fast as the gradients are large and noisy. A step in which a norm is NaN
    or infinite is left out: s would be so for ever.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1.
        eps: added to the denominator. Default 1e-8.
        initial_accumulator_value: s before the first step. Default 0.
        weight_decay: decoupled, times ``lr``. Default 0.
        norm: ``"all"`` (default): one s, for all groups that say so; ``"group"``: one for each group.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: none but ``sum``, a float64 number, of the first parameter of the first group that says
    ``norm="all"``, and of each that says ``"group"``. In state dicts every parameter has it.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> AdaGradNorm([p], lr=0.5).step()
        >>> p.detach()
        tensor([0.7000, 1.6000])
    """

    _rule = ElementwiseRule("AdaGradNorm", reference.adagrad_norm, summed=reference.adagrad_norm_sum)
    _numbers = ("sum",)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        eps: Epsilon = 1e-8,
        initial_accumulator_value: AtLeastZero = 0.0,
        weight_decay: AtLeastZero = 0.0,
        *,
        norm: Literal["all", "group"] = "all",
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """AdaGrad-Norm with the group's hyperparameters, and what has been accumulated."""
        keeper = self._keeper(group)
        before = None if keeper is None else self.state.get(keeper, {}).get("sum")
        if before is None:
            before = group["initial_accumulator_value"]
        return self._rule.of({**group, "accumulated": float(before)})._replace(scope=group["norm"])

    def _saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """With ``sum`` for all: torch.distributed.checkpoint takes one of all or none."""
        state_dict = super()._saved(state_dict)
        states = state_dict["state"]
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            keeper = self._keeper(group)
            kept = {} if keeper is None else self.state.get(keeper, {})
            for key in saved["params"] if "sum" in kept else ():
                states[key] = {**states.get(key, {}), "sum": kept["sum"].clone()}
        return state_dict

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        adopted = super()._adopted(state_dict)
        keepers: dict[Any, Any] = {}
        for number, group in enumerate(adopted["param_groups"]):
            if group["params"]:
                keepers.setdefault("all" if group.get("norm", "all") == "all" else number, group["params"][0])
        for key, own in tuple(adopted["state"].items()):
            if key not in keepers.values() and "sum" in own:
                del adopted["state"][key]
                rest = {name: value for name, value in own.items() if name != "sum"}
                adopted["state"].update({key: rest} if rest else {})
        return adopted

    def _keeper(self, group: dict[str, Any]) -> Tensor | None:
        """The parameter that has the group's sum in its state."""
        params = (
            p
            for each in getattr(self, "param_groups", ())  # none, when defaults are checked
            if each["params"] is group["params"] or (each["norm"] == group["norm"] == "all")
            for p in each["params"]
        )
        return next(params, None)

    def _take_sums(self, sums: list[tuple[Gathered, list[Sum]]], new_state: NewState) -> bool:
        if is_fake(sums[0][0].params[0]):
            return True
        if not all(math.isfinite(float(total)) for _, (total, *_) in sums):
            return False
        for gathered, (total, *_) in sums:
            keeper = self._keeper(gathered.group)
            assert keeper is not None
            new_state.set(keeper, "sum", accumulated(gathered.rule.hyperparameters["accumulated"], total))
        return True
