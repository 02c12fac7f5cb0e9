"""HybridAuON: one step of Newton-Schulz before AuON's cosine."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.choices import Precision
from ferrostep.coefficients import Coefficients, schedule_of
from ferrostep.optim import chains
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of
from ferrostep.optim.auon import AdjustLr, Gamma, Momentum, NormEps, RmsEps, Variant, adjust_lr_of, gamma_of
from ferrostep.optim.muon import KELLER, check_matrices
from ferrostep.optim.options import Options
from ferrostep.optim.rules import Rule, RuleOptimizer


class HybridAuON(RuleOptimizer):
    r"""Hybrid-AuON (Maity 2025, arXiv 2509.24320): Newton-Schulz, then a division by the RMS of the hyperbolic cosine.

    .. code-block:: text

        m <- momentum * m + (1 - momentum) * g
        u  = (1 - momentum) * g + momentum * m        (m itself without nesterov)
        O  = newton_schulz(u / max(norm(u), eps))     one step; five for the package
        r  = sqrt(mean(cosh(gamma * Z)^2))            Z = O; the package: O / (norm(O) + eps), gamma 1.5
        p <- p * (1 - lr * weight_decay)
        p <- p - lr * s(rows, columns) * O / (r + rms_eps)

    One step takes a fifth of Muon's operations and brings singular values only part of the way: 1 to 0.70, 0.6 to 1.19,
    0.01 to 0.034. As of :class:`AuON`, r is nearly 1 in all but tiny matrices. ``variant="package"`` is Muon without
    its s, divided by about 1. In the authors' own table of language model losses Hybrid-AuON has 0.0422, Muon 0.0375,
    AdamW 0.0686 and AuON 0.4305.

    What is not as published: the preprint's equation lacks the root that its others have, which is taken here; u is
    divided by max(norm, eps) as in Muon, where they divide by norm + eps; matrices of a batch (``flatten=False``) have
    norms of their own, where the package takes one of the whole tensor; the package's ``wd_mul`` and its form for
    vectors do not exist here.

    Args:
        params: parameters of shape (rows, columns) or more dimensions, or parameter groups, of dtype float32, float64,
            bfloat16 or float16.
        lr, momentum, nesterov, weight_decay, gamma, eps, rms_eps, variant, maximize: as of :class:`AuON`.
        adjust_lr_fn: as of :class:`AuON`, but ``"match_rms_adamw"`` is Muon's 0.2 sqrt(max(rows, columns)).
        ns_steps: steps of Newton-Schulz. Default: 1, or 5 for the package; named sets of coefficients need their own.
        ns_coefficients, ns_precision: as of :class:`Muon`.
        flatten: see parameters of more than 2 dimensions as a matrix of the first against all others (True, default) or
            as matrices in the last two, each with a norm and an r of its own.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32).

    Raises:
        ValueError, TypeError: an impossible or unknown argument, or a parameter of fewer than 2 dimensions.
        RuntimeError: complex parameters.
        NotImplementedError: a DTensor whose matrices no rank can own, as a rank has more than one block of them.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(4, 8))
        >>> p.grad = torch.ones(4, 8)
        >>> HybridAuON([p], lr=0.1).step()
        >>> bool((p < 0).all())
        True
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
        ns_steps: int | None = None,
        ns_coefficients: Coefficients = KELLER,
        ns_precision: Precision = "auto",
        flatten: bool = True,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _looks_at_matrices = True

    def _check_group(self, group: dict[str, Any]) -> None:
        self.rule(group).native()
        check_matrices({"params": group["params"], **layout_of(group)}, "HybridAuON")

    def rule(self, group: dict[str, Any]) -> Rule:
        """HybridAuON with the group's hyperparameters."""
        is_package = group["variant"] == "package"
        steps = group["ns_steps"]
        if steps is None:
            steps = 5 if is_package else 1
        hyperparameters = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "momentum": group["momentum"],
            "nesterov": bool(group["nesterov"]),
            "maximize": bool(group["maximize"]),
            "schedule": schedule_of(group["ns_coefficients"], steps),
            "eps": group["eps"],
            "algorithm": "auto",
            "precision": group["ns_precision"],
            "restarts": [2],
            "adjust_lr": adjust_lr_of(group) or "none",
            "beta2": None,
            "cautious_weight_decay": False,
            "skip_zero_grad": False,
            "cosh": (gamma_of(group), group["rms_eps"], is_package),
            **layout_of(group),
        }
        return Rule(chains.muon, reference.muon, ("momentum_buffer",), hyperparameters, counts_steps=False)


def layout_of(group: dict[str, Any]) -> dict[str, Any]:
    """How parameters are seen as matrices, in Muon's terms."""
    return {"ndim_policy": "flatten" if group["flatten"] else "batch", "num_heads": None, "split_sizes": None}
