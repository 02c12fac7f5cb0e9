"""AuON: normalized momentum without products of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.errors import Problem
from ferrostep.optim import chains
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of, one_of, within
from ferrostep.optim.options import Options, check_real
from ferrostep.optim.rules import Rule, RuleOptimizer

LARGEST_GAMMA = 40.0
"""Up to here no cosine of a normalized tensor overflows."""


def check_gamma(_name: str, gamma: float | None, _group: Mapping[str, Any]) -> float | None:
    """Raise ValueError for a factor of the cosine that is out of range."""
    if gamma is not None and not 0.0 <= gamma <= LARGEST_GAMMA:
        raise Problem.NUMBER.of("gamma value", gamma, f"0 to {LARGEST_GAMMA:g}")
    return gamma


Momentum: TypeAlias = Annotated[float, within(0.0, 1.0)]
Gamma: TypeAlias = Annotated[float | None, check_gamma]
NormEps: TypeAlias = Annotated[float, within(0.0, math.inf, called="epsilon")]
RmsEps: TypeAlias = Annotated[float, within(0.0, math.inf)]
Variant: TypeAlias = Literal["paper", "package"]
Adjustment: TypeAlias = Literal["auto", "original", "match_rms_adamw"]
AdjustLr: TypeAlias = Annotated[
    Adjustment | None,
    one_of((None, *get_args(Adjustment)), "Adjust learning rate function {value} is not supported"),
]


class AuON(RuleOptimizer):
    r"""AuON (Maity 2025, arXiv 2509.24320): the momentum divided by its norm and by the RMS of its hyperbolic cosine.

    .. code-block:: text

        m <- momentum * m + (1 - momentum) * g
        u  = (1 - momentum) * g + momentum * m        (m itself without nesterov)
        X  = u / (norm(u) + eps)                      Frobenius norm of the whole tensor
        r  = sqrt(mean(cosh(gamma * X)^2))
        p <- p * (1 - lr * weight_decay)
        p <- p - lr * s(rows, columns) * X / (r + rms_eps)

    What to expect: with gamma 1, r is within 1.1 % of one from 64 elements up (0.02 % at 4096), whatever the gradient
    (3.5 % and 0.06 % with the package's 1.5), so AuON is gradient descent along normalized momentum; entries keep their
    ratios, and no singular value is touched. In the authors' own tables it stays behind AdamW and Muon (language model
    loss 0.43 against 0.07 and 0.04; 73.3 % on CIFAR against AdamW's 76.0 %).

    Published versions differ. ``variant="paper"`` is the above, the preprint's equations. ``variant="package"`` is the
    authors' package: u itself is divided by r and applied, so that the step grows with the gradient, gamma is 1.5 and
    s is 1.

    Args:
        params: parameters or parameter groups of any shape, of dtype float32, float64, bfloat16 or float16. Vectors are
            better left to AdamW: of a scalar only the sign counts.
        lr: learning rate, a float or a 1-element tensor. Default 0.02.
        momentum: decay rate of the momentum, in [0, 1). Default 0.95.
        nesterov: Default True.
        weight_decay: decoupled, times ``lr``. Default 0.
        gamma: factor within the cosine, 0 to 40. Default: 1, or 1.5 for the package.
        eps: added to the norm. Default 1e-7, which shrinks the steps of gradients whose norm is not far above it.
        rms_eps: added to r. Default 1e-8.
        variant: ``"paper"`` (default) or ``"package"``.
        adjust_lr_fn: s; ``"original"``: sqrt(max(1, rows / columns)), all dimensions but the first being columns;
            ``"match_rms_adamw"``: 0.2 sqrt(elements); None: 1. Default ``"auto"``: ``"original"``, or None for the
            package.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32). A zero gradient with momentum left still
    moves a parameter by a full step (by one that fades, for the package).

    Raises:
        ValueError, TypeError: an impossible or unknown argument.
        RuntimeError: complex parameters.
        NotImplementedError: a DTensor whose matrices no rank can own, as a rank has more than one block of them.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(8, 8))
        >>> p.grad = torch.ones(8, 8)
        >>> AuON([p], lr=0.8, rms_eps=0.0).step()
        >>> round(p[0, 0].item(), 2)  # lr / 8, nearly
        -0.1
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.02,
        momentum: Momentum = 0.95,
        nesterov: bool = True,
        weight_decay: AtLeastZero = 0.0,
        *,
        gamma: Gamma = None,
        eps: NormEps = 1e-7,
        rms_eps: RmsEps = 1e-8,
        variant: Variant = "paper",
        adjust_lr_fn: AdjustLr = "auto",
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _looks_at_matrices = True

    def _check_group(self, group: dict[str, Any]) -> None:
        check_real(group["params"], "AuON")

    def rule(self, group: dict[str, Any]) -> Rule:
        """AuON with the group's hyperparameters."""
        hyperparameters = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "momentum": group["momentum"],
            "nesterov": bool(group["nesterov"]),
            "maximize": bool(group["maximize"]),
            "gamma": gamma_of(group),
            "eps": group["eps"],
            "rms_eps": group["rms_eps"],
            "variant": group["variant"],
            "adjust_lr": adjust_lr_of(group),
        }
        return Rule(chains.auon, reference.auon, ("momentum_buffer",), hyperparameters, counts_steps=False)


def gamma_of(group: dict[str, Any]) -> float:
    """The group's gamma, or its variant's."""
    gamma: float | None = group["gamma"]
    if gamma is not None:
        return gamma
    return 1.5 if group["variant"] == "package" else 1.0


def adjust_lr_of(group: dict[str, Any]) -> str | None:
    """The group's adjustment of the learning rate, or its variant's."""
    adjust: str | None = group["adjust_lr_fn"]
    if adjust != "auto":
        return adjust
    return None if group["variant"] == "package" else "original"
