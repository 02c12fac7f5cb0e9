"""Exponentiated gradient descent."""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, Literal

import torch
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
    if_given,
    positive,
    within,
)
from ferrostep.optim.base import is_fake
from ferrostep.optim.options import Options
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.simplex import check_rows, on_simplex

PLAIN = ElementwiseRule("Egd", reference.egd)
MOMENTUM = ElementwiseRule("EgdMomentum", reference.egd, early=("step",))
ADAM = ElementwiseRule("EgdAdam", reference.egd)


class EGD(RuleOptimizer):
    r"""Exponentiated gradient descent (Kivinen and Warmuth 1997; Cornford et al. 2024, for weights of either sign).

    .. code-block:: text

        m <- momentum * m + g
        p <- p * exp(-lr * (sign(p) * m + weight_decay))

    A step multiplies, so no weight ever changes its sign (Dale's law), and one that is 0 stays 0. It is mirror descent
    with the map ``sum(abs(p) * log(abs(p)))``; to the first order it moves by ``lr * abs(p) * m``, and trained weights
    tend to be log-normal. Biases that begin at 0, and gains of normalizations, are for groups with ``update="gd"``.

    ``update="eg+-"`` frees the signs: the parameter is the difference of two positive weights, one multiplied by the
    exponential and one by its inverse (Kivinen and Warmuth's EG+-, without their normalization). Their product stays
    what it was, ``hypentropy_beta^2 / 4``, so they follow from the parameter and need no state: it is mirror descent
    with the hypentropy (Ghai, Hazan and Singer 2020, arXiv 1902.01903). With ``z = -lr * m``

    .. code-block:: text

        p <- exp(-lr * weight_decay) * (p * cosh(z) + sqrt(p^2 + hypentropy_beta^2) * sinh(z))

    Weights far above ``hypentropy_beta`` move as by EGD, those far below by ``hypentropy_beta * z``, as by gradient
    descent, also from 0.

    With ``simplex_dim`` the rows along this dimension are positive numbers that sum up to 1, such as mixture weights or
    attention over experts, and each step divides them by their sum: exponentiated gradient as it was first, Hedge.

    ``noise`` makes the weights' logarithms a random walk beside the descent, as of a geometric Brownian motion whose
    time is the sum of the learning rates. It is no sampler of ``exp(-loss)``.

    Small multiplications vanish in bfloat16 parameters, as they do in their sums: take ``rounding="kahan"`` or
    ``master_weights="split"`` for these.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16, float16 or
            complex, which are pairs of real numbers.
        lr: learning rate, a float or a 1-element tensor. Default 1e-2.
        momentum: the gradient is summed up with this decay, as by torch's SGD. Default 0: no state.
        weight_decay: every step multiplies by ``exp(-lr * weight_decay)`` besides, whatever the momentum. Default 0.
        update: ``"eg"`` (default), ``"eg+-"`` as above, or ``"gd"``: gradient descent along the same direction,
            ``p <- p * (1 - lr * weight_decay) - lr * m``.
        adam: take Adam's direction in place of m. Default False.
        betas, eps: of Adam's direction. Default (0.9, 0.999) and 1e-8. Torch's OneCycleLR and CyclicLR cycle ``betas``,
            not ``momentum``: without ``adam`` that is for nothing.
        hypentropy_beta: of ``"eg+-"``, the size from which on weights are multiplied, from 1e-18 to 1e18. Default 1e-2:
            below most weights of networks, and far enough from 0 that what is there can leave.
        max_exponent: the greatest size of an exponent, so that no step multiplies by more than its power of e; 1 is a
            good one. Default None: no limit, as in the authors' code.
        min_abs: a size below which no step of ``"eg"`` takes a weight. Default None: the smallest normal number of
            float32, for float64 parameters of float64: below it a weight would become 0 and stay it.
        simplex_dim: the dimension along which numbers sum up to 1. Default None. It excludes ``max_exponent``,
            ``min_abs``, ``noise`` and a weight decay, which would have no effect.
        noise: the volatility: with ``update="eg"`` every step multiplies by ``exp(noise * sqrt(lr) * z)`` besides, z a
            normal number that follows from ``seed``, the parameter's place, its step and the element, so that a resumed
            run is the same run, on any number of threads. Not under ``max_exponent``. Default 0.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: none; with ``momentum`` ``momentum_buffer`` (4 bytes per element in float32); with ``adam``
    ``step``, ``exp_avg``, ``exp_avg_sq`` (8 bytes); with ``noise`` ``step``.

    Warns:
        UserWarning: once, if a parameter has zeros that no multiplication changes.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, ``momentum`` with ``adam``, ``update="eg+-"`` with
            ``simplex_dim``, ``min_abs`` or ``noise``, or a parameter whose rows are not on the simplex (to within 1e-6)
            though they are to be; the error names it.
        RuntimeError, IndexError: with ``simplex_dim``, complex or distributed parameters, or ones without the
            dimension.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
        >>> p.grad = torch.tensor([1.0, 1.0, -2.0])
        >>> EGD([p], lr=0.1).step()
        >>> p.detach()
        tensor([ 0.9048, -1.1052,  0.6107])
        >>> q = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> q.grad = torch.tensor([1.0, 1.0])
        >>> EGD([q], lr=0.1, update="eg+-").step()
        >>> q.detach()
        tensor([ 0.9048, -0.0010])
    """

    _warned = False

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        momentum: Annotated[float, within(0.0, 1.0)] = 0.0,
        weight_decay: AtLeastZero = 0.0,
        *,
        update: Literal["eg", "eg+-", "gd"] = "eg",
        adam: bool = False,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        hypentropy_beta: Annotated[float, within(1e-18, 1e18)] = 1e-2,
        max_exponent: Annotated[float | None, if_given(positive())] = None,
        min_abs: Annotated[float | None, if_given(positive())] = None,
        simplex_dim: int | None = None,
        noise: AtLeastZero = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Raises and warns as the constructor."""
        super().add_param_group(param_group)
        if not self._warned:
            self._warn_of_zeros(len(self.param_groups) - 1)

    def rule(self, group: dict[str, Any]) -> Rule:
        """EGD along the group's direction, with its hyperparameters."""
        on_rows = group["simplex_dim"] is not None and group["update"] == "eg"
        kind = ADAM if group["adam"] else MOMENTUM if group["momentum"] else PLAIN
        rule = kind.of(
            {
                **group,
                "max_exponent": math.inf if group["max_exponent"] is None else group["max_exponent"],
                "min_abs": 0.0 if group["min_abs"] is None else group["min_abs"],
                "multiplicative": group["update"] != "gd" and not on_rows,
                "hypentropy": group["hypentropy_beta"] if group["update"] == "eg+-" else 0.0,
            }
        )
        if on_rows:
            return on_simplex(rule, group["simplex_dim"])
        if group["noise"] and group["update"] == "eg":
            return rule._replace(counts_steps=True, noise=group["noise"] * math.sqrt(group["lr"]))
        return rule

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["adam"] and group["momentum"]:
            raise ValueError(f"momentum={group['momentum']} and adam=True exclude each other: Adam has its betas")
        if group["update"] == "eg+-":
            for name, without in (("simplex_dim", None), ("min_abs", None), ("noise", 0.0)):
                if group[name] != without:
                    raise ValueError(f"{name}={group[name]} and update='eg+-' exclude each other")
        if group["simplex_dim"] is not None and group["update"] == "eg":
            for name in ("weight_decay", "min_abs", "max_exponent", "noise"):
                if group[name]:
                    raise ValueError(f"{name}={group[name]} and simplex_dim exclude each other")
            check_rows(type(self).__name__, group, group["simplex_dim"])

    def _warn_of_zeros(self, number: int) -> None:
        group = self.param_groups[number]
        for i, p in enumerate(group["params"] if group["update"] == "eg" else ()):
            own = shards.local(p)
            if own.is_meta or is_fake(own) or own.layout != torch.strided or own.dtype.itemsize < 2:
                continue  # a step refuses what is of no use
            zeros = own.numel() - int(own.count_nonzero())
            if zeros:
                self._warned = True
                warnings.warn(
                    f"EGD: parameter {i} in group {number} has {zeros} zeros, which no multiplication changes: give "
                    "what begins at 0 a group with update='gd'",
                    stacklevel=4,
                )
                return
