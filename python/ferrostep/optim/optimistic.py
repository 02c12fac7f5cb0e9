"""Optimistic mirror descent and optimistic Adam."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.optim import shards
from ferrostep.optim.arguments import (
    AtLeastZero,
    Betas,
    Epsilon,
    LearningRate,
    arguments_of,
    check_arguments,
    if_given,
    positive,
)
from ferrostep.optim.base import NewState, is_fake
from ferrostep.optim.gathered import Gathered
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.simplex import check_rows, on_simplex
from ferrostep.optim.sums import accumulated
from ferrostep.reference.sums import Sum

OPTIMISTIC_MD = ElementwiseRule("OptimisticMd", reference.optimistic_md)
ADAPTIVE = ElementwiseRule(
    "OptimisticMdAdaptive",
    reference.optimistic_md_adaptive,
    summed=reference.optimistic_md_change,
    early=("variation",),
)


class OptimisticMD(RuleOptimizer):
    r"""Optimistic mirror descent (Rakhlin and Sridharan 2013; arXiv 2302.04552, with the last gradient for the hint).

    .. code-block:: text

        u <- g + optimism * (g - prev_grad)
        euclidean:    p <- p * (1 - lr * weight_decay) - lr * u
        eg:           p <- p * exp(-lr * (sign(p) * u + weight_decay))        as EGD
        entropic:     p <- p * exp(-lr * u), each row divided by its sum
        prev_grad <- g

    With ``adaptive="variation"`` the rate falls as the gradients of a group, one vector together, change:

    .. code-block:: text

        rate' <- lr / sqrt(V + norm(g - prev_grad)^2)   V: those of all steps before, and initial_accumulator_value
        p <- p * (1 - lr * weight_decay) - rate * (g - optimism * prev_grad) - rate' * optimism * g
        rate <- rate'

    This is the paper's step for convex losses with ``first_hint="zero"``, the diameter D of the domain as ``lr`` and
    ``10 * D^2 * L^2 + 4 * G^2`` as ``initial_accumulator_value``, for L-smooth losses with gradients up to G. On real
    streams that is too careful: small values of the latter did better. A step in which V would be NaN or infinite is
    left out.

    With ``radius`` every parameter that has left the ball of this radius around 0 is brought back to its surface: one
    projection a step, as in Malitsky and Tam's forward-reflected-backward method (2020, arXiv 1808.04162). As long as
    none is far enough outside, that is the paper's, which has two.

    It is for games: on ``min max x * y``, where gradient descent diverges for every ``lr``, it converges for
    ``lr`` below 0.57 divided by the greatest singular value of the coupling (give the one that ascends
    ``maximize=True``). Where a gradient changes smoothly it helps, too; where it alternates or is noisy, the hint costs
    up to twice the regret: it is no better SGD.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-2. Without convergence at a curvature c unless
            ``lr * c < 2 / 3``.
        optimism: how much of the gradient's change is expected once more. Default 1; 0 is gradient descent.
        geometry: ``"euclidean"`` (default); ``"entropic"``: rows along ``simplex_dim`` that sum up to 1, such as mixed
            strategies or mixture weights; or ``"eg"``: positive or negative numbers, whose signs never change.
        first_hint: what goes before the first gradient: itself (``"gradient"``, default: the first step is that of
            gradient descent), or ``"zero"``, which makes it twice as long.
        simplex_dim: the dimension along which numbers sum up to 1, for ``"entropic"``. Default -1.
        radius: of the ball that each parameter stays in, by its norm; for ``"euclidean"``. Default None: everywhere.
        adaptive: None (default), or ``"variation"`` as above, for ``"euclidean"``.
        initial_accumulator_value: V before the first step, above 0. Default 1.
        weight_decay: decoupled, times ``lr``; not for ``"entropic"``, where it would have no effect. Default 0.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``prev_grad`` (4 bytes per element in float32); with ``adaptive`` no ``step``, and
    ``variation``, V as a float64 number, of the group's first parameter. A parameter without a gradient keeps its hint.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, ``radius`` or ``adaptive`` with another geometry, or
            with ``"entropic"`` a parameter whose rows are not on the simplex (positive, with sum 1 to within 1e-6); the
            error names it. A 0 stays one.
        RuntimeError, IndexError: with ``"entropic"``, complex or distributed parameters, or ones without the dimension.

    Example:
        >>> import torch
        >>> x, y = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> optimizer = OptimisticMD([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.1)
        >>> for _ in range(400):
        ...     optimizer.zero_grad()
        ...     (x * y).sum().backward()
        ...     loss = optimizer.step()
        >>> bool(x.abs() + y.abs() < 0.3)
        True
    """

    _numbers = ("variation",)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        *,
        optimism: AtLeastZero = 1.0,
        geometry: Literal["euclidean", "entropic", "eg"] = "euclidean",
        first_hint: Literal["gradient", "zero"] = "gradient",
        simplex_dim: int = -1,
        radius: Annotated[float | None, if_given(positive())] = None,
        adaptive: Literal["variation"] | None = None,
        initial_accumulator_value: Annotated[float, positive()] = 1.0,
        weight_decay: AtLeastZero = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Optimistic descent in the group's geometry, with its hyperparameters."""
        own = {
            **group,
            "hint_is_gradient": group["first_hint"] == "gradient",
            "multiplicative": group["geometry"] == "eg",
        }
        check_arguments({"radius": self._arguments["radius"]}, own)
        if own["radius"] is None:
            own["radius"] = math.inf
        if group["geometry"] == "euclidean" and group["adaptive"] is not None:
            return ADAPTIVE.of({**own, "accumulated": self._variation(group)})._replace(scope="group")
        rule = OPTIMISTIC_MD.of(own)
        return on_simplex(rule, group["simplex_dim"]) if group["geometry"] == "entropic" else rule

    def _variation(self, group: dict[str, Any]) -> float:
        found = self.state.get(group["params"][0], {}).get("variation") if group["params"] else None
        return float(group["initial_accumulator_value"] if found is None else found)

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["geometry"] == "entropic":
            if group["weight_decay"]:
                raise ValueError(f"weight_decay={group['weight_decay']} has no effect with geometry='entropic'")
            check_rows(type(self).__name__, group, group["simplex_dim"])
        if group["geometry"] != "euclidean":
            for name in ("radius", "adaptive"):
                if group[name] is not None:
                    chosen = f"{name}={group[name]!r}"
                    raise ValueError(f"{chosen} and geometry={group['geometry']!r} exclude each other")

    def _takes_matrices(self, group: dict[str, Any]) -> bool:
        return group["radius"] is not None

    def _is_for_plain_torch(self, group: dict[str, Any]) -> bool:
        # Of what is split over ranks, every one works out the whole.
        in_parts = group["radius"] is not None and shards.are_among(group["params"])
        return in_parts or super()._is_for_plain_torch(group)

    def _take_sums(self, sums: list[tuple[Gathered, list[Sum]]], new_state: NewState) -> bool:
        found = {gathered.number: total for gathered, (total, *_) in sums if not is_fake(gathered.params[0])}
        if not all(math.isfinite(float(total)) for total in found.values()):
            return False
        for number, total in found.items():
            group = self.param_groups[number]
            new_state.set(group["params"][0], "variation", accumulated(self._variation(group), total))
        return True


class OptimisticAdam(RuleOptimizer):
    r"""Optimistic Adam (Daskalakis et al. 2018, arXiv 1711.00141, Algorithm 1).

    .. code-block:: text

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        r <- m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p <- p * (1 - lr * weight_decay) - lr * (r + optimism * (r - prev_direction))
        prev_direction <- r

    The first step is Adam's. The defaults of ``betas`` are not Adam's: with a ``beta1`` of 0.9 it does not converge on
    ``min max x * y``, as Adam itself does not.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the moments, each in [0, 1). Default (0.5, 0.9).
        eps: added to the denominator. Default 1e-8.
        weight_decay: decoupled, times ``lr``. Default 0.
        optimism: how much of the direction's change is expected once more. Default 1; 0 is AdamW.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, ``prev_direction`` (12 bytes per element in float32; 10
    with ``state_dtype={"prev_direction": torch.bfloat16}``).

    Raises:
        ValueError, TypeError: an impossible or unknown argument.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> OptimisticAdam([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.5, 0.9),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        *,
        optimism: AtLeastZero = 1.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _rule = ElementwiseRule("OptimisticAdam", reference.optimistic_adam)
