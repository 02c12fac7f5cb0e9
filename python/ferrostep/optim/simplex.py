"""Parameters of which the rows sum up to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.optim import shards
from ferrostep.optim.base import has_16_bits, is_fake
from ferrostep.optim.options import check_real
from ferrostep.optim.rules import Rule
from ferrostep.reference import checks

TOLERANCE = 1e-6
"""How far the sum of a row may be from 1; for 16-bit parameters, which are rounded, it is their spacing at 1."""


def on_simplex(rule: Rule, dim: int) -> Rule:
    """The rule, which subtracts, with its moves as exponents, for rows along ``dim`` that sum up to 1."""

    def native(*, simplex_dim: int, **hyperparameters: Any) -> _core.SimplexRule:
        return _core.SimplexRule(rule._replace(hyperparameters=hyperparameters).native(), simplex_dim)

    return rule._replace(
        kernel=native,
        reference=reference.on_simplex(rule.reference),
        hyperparameters={**rule.hyperparameters, "simplex_dim": dim},
        signed={},  # there are no kernels for codes
    )


def check_rows(owner: str, group: dict[str, Any], dim: int) -> None:
    """Raise for parameters of a group that have no rows along ``dim``, or rows that are not of the simplex."""
    check_real(group["params"], f"{owner} on the simplex")
    for i, p in enumerate(group["params"]):
        name = f"parameter {i}"
        if shards.is_distributed(p):
            raise RuntimeError(f"{name} is a DTensor, which {owner} on the simplex does not support")
        checks.rows(name, p, dim)
        if not p.is_meta and not is_fake(p):
            _check_sums(name, p.detach(), dim)


def _check_sums(name: str, p: Tensor, dim: int) -> None:
    if not (p >= 0).all():
        raise ValueError(f"{name} has numbers that are negative or NaN, expected rows on the simplex")
    sums = p.double().sum(dim)
    off = (sums - 1).abs()
    if off.numel() and off.max() > (torch.finfo(p.dtype).eps if has_16_bits(p) else TOLERANCE):
        worst = sums.flatten()[off.argmax()].item()
        raise ValueError(f"{name} has a row along dim {dim} with sum {worst}, expected 1 to within {TOLERANCE}")
