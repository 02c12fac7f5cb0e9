"""Lion, and Lion-K as its generalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import _core, choices, reference
from ferrostep.kappas import KERNELS, OF_ELEMENTS, check_kappa, check_kappa_param, has_kernel
from ferrostep.optim import shards
from ferrostep.optim.arguments import AtLeastZero, Betas, LearningRate, arguments_of
from ferrostep.optim.options import Options, check_real, is_coded
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer

LION = ElementwiseRule("Lion", reference.lion)
OF_WHOLE = ("row", "topk")
"""What looks at whole tensors, and not by way of sums; there are no kernels of it for a state in codes."""

Kappa: TypeAlias = Annotated[choices.Kappa | Callable[[Tensor], Tensor], check_kappa]
KappaParam: TypeAlias = Annotated[float | None, check_kappa_param]


class Lion(RuleOptimizer):
    r"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2).

    .. code-block:: text

        u <- sign(beta1 * m + (1 - beta1) * g)          sign(0) = 0
        p <- p * (1 - lr * weight_decay) - lr * u
        m <- beta2 * m + (1 - beta2) * g

    Every element moves by ``lr`` or not at all, so a good ``lr`` is 3 to 10 times below AdamW's and a good
    ``weight_decay`` as much above.

    With ``kappa`` it is Lion-K (Chen et al. 2024, arXiv 2310.05898): the gradient of another convex function takes the
    place of the sign, and the weight decay makes a constraint or a penalty of it. What is minimized with
    ``weight_decay=1`` (with another, ``weight_decay * p`` takes the place of p there, and f is multiplied by it):

    .. code-block:: text

        kappa       e, q or k    in the place of sign(u)                     f(p) is minimized
        "sign"                   sign(u)                                     with max(abs(p)) <= 1
        "lp"        q > 1        sign(u) * (abs(u) / norm_q(u))^(q - 1)      with norm_r(p) <= 1, 1/q + 1/r = 1
        "l2"                     u / norm(u), which is "lp" with q = 2       with norm(p) <= 1
        "row"                    row / norm(row), of every row of u          with norm(row) <= 1, of every row of p
        "deadzone"  e >= 0       sign(u) where abs(u) > e, else 0            plus e * sum(abs(p)), max(abs(p)) <= 1
        "topk"      k >= 1       sign(u) at the k largest abs(u), else 0     with sum(abs(p)) <= k, max(abs(p)) <= 1
        "huber"     e > 0        clip(u / e, -1, 1)                          plus e / 2 * sum(p^2), max(abs(p)) <= 1
        "identity"               u                                           plus sum(p^2) / 2

    Norms and the k largest are those of each tensor by itself; a row is all dimensions but the first, and what is 0
    altogether stays 0. Of equally large elements, "topk" takes the first. ``e`` is compared with gradients, hence
    depends on the scale of the loss.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex.
        lr: learning rate, a float or a 1-element tensor. Default 1e-4.
        betas: of the update's interpolation and of the momentum. Default (0.9, 0.99).
        weight_decay: decoupled, times ``lr``. Default 0.
        kappa: what takes the place of the sign: one of the names above, or a callable that takes the tensor ``u`` (of
            the parameter's shape, in float32 or float64; complex numbers as pairs in a last dimension) and returns one
            of the same shape. Default "sign". A callable, "lp" with q > 8, and "topk" and "row" with a state in 8 bits
            run in plain torch.
        kappa_param: the number e, q or k of the table, where it has one. Default None.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``exp_avg`` (4 bytes per element in float32); no step count, except with
    ``rounding="stochastic"``. State dicts of lion-pytorch load.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.
        RuntimeError: complex parameters where ``kappa`` takes more than elements.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([0.5, -2.0])
        >>> Lion([p], lr=0.1).step()
        >>> p.detach()
        tensor([0.9000, 1.1000])
        >>> Lion([p], lr=0.1, kappa="huber", kappa_param=0.2).step()
        >>> p.detach()
        tensor([0.8750, 1.2000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: AtLeastZero = 0.0,
        *,
        kappa: Kappa = "sign",
        kappa_param: KappaParam = None,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Lion or Lion-K with the group's hyperparameters."""
        lion = LION.of(group)
        if group["kappa"] == "sign" and group["kappa_param"] is None:
            return lion
        own = {
            "kappa": check_kappa("kappa", group["kappa"], group),
            "kappa_param": check_kappa_param("kappa_param", group["kappa_param"], group),
        }
        return lion._replace(
            kernel=_native,
            reference=reference.lion_k,
            hyperparameters={**lion.hyperparameters, **own},
            summed=reference.lion_k_sum if group["kappa"] in ("l2", "lp") and self._has_kernel(group) else None,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        kappa = group["kappa"]
        if not callable(kappa) and kappa not in OF_ELEMENTS:
            check_real(group["params"], f"kappa={kappa!r}")
        if group["backend"] == "rust" and not self._has_kernel(group):
            chosen = "a callable kappa" if callable(kappa) else f"kappa={kappa!r}"
            number = f" with kappa_param={group['kappa_param']}" if kappa == "lp" else ""
            codes = " with state_dtype='int8'" if kappa in OF_WHOLE else ""
            raise RuntimeError(f"{chosen}{number}{codes} runs in plain torch and excludes backend='rust'")

    def _has_kernel(self, group: dict[str, Any]) -> bool:
        if group["kappa"] in OF_WHOLE and is_coded("exp_avg", group):
            return False
        return has_kernel(group["kappa"], group["kappa_param"])

    def _takes_matrices(self, group: dict[str, Any]) -> bool:
        return group["kappa"] in OF_WHOLE or not self._has_kernel(group)

    def _is_for_plain_torch(self, group: dict[str, Any]) -> bool:
        # Of what is split over ranks, every one works out the whole.
        in_parts = group["kappa"] in OF_WHOLE and shards.are_among(group["params"])
        return in_parts or not self._has_kernel(group) or super()._is_for_plain_torch(group)


def _native(*, kappa: str, kappa_param: float | None, **hyperparameters: Any) -> _core.Rule:
    """The Rust rule."""
    if kappa_param is not None:
        hyperparameters["kappa_param"] = kappa_param
    return _core.Rule(KERNELS[kappa], hyperparameters)
