"""What SophiaG and SophiaH share: the step's count, and the averages of Hessian estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.optim import shards
from ferrostep.optim.base import NewState, arithmetic_dtype, scale_of, without_dynamo, zero_scale, zero_state
from ferrostep.optim.gathered import Found, Gathered, check_place
from ferrostep.optim.rules import ElementwiseRule, RuleOptimizer
from ferrostep.reference import Codes, checks
from ferrostep.reference.engine import stored


class Estimator(NamedTuple):
    """What the estimates are made of, in Rust and in plain torch."""

    kernel: str
    reference: Callable[..., Tensor]


SQUARE = Estimator("HessianSquare", reference.hessian_square)
"""Of a gradient."""
PRODUCT = Estimator("HessianProduct", reference.hessian_product)
"""Of the Hessian's product with a probe, and the probe."""
ESTIMATE = Estimator("HessianEstimate", reference.hessian_estimate)
"""Of an estimate."""


class Refreshed(NamedTuple):
    """A parameter with its average and what the new estimate is made of."""

    position: int
    param: Tensor
    hessian: Tensor | Codes
    inputs: tuple[Tensor, ...]


class Sophia(RuleOptimizer):
    """The common part of :class:`SophiaG` and :class:`SophiaH`."""

    _counted: tuple[tuple[int | Tensor, int], ...] = ()

    _rule = ElementwiseRule("Sophia", reference.sophia, counts_steps=True, early=("hessian",))

    def _check_group(self, group: dict[str, Any]) -> None:
        if any(p.is_complex() for p in group["params"]):  # their curvature is no number per element
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")

    def unclipped_fraction(self) -> float:
        """The share of elements that the last step did not clip: those with ``abs(m)`` below the scaled Hessian.

        From 0.1 to 0.5 is a good range; below it, the step is nearly Lion's: raise ``rho`` or ``gamma``. NaN before
        the first step. Parameters without a gradient do not count.
        """
        total = sum(elements for _, elements in self._counted)
        return sum(int(count) for count, _ in self._counted) / total if total else math.nan

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        counted = [*(self._counted if self._is_in_round else ()), batch.counted()]
        for gathered in elsewhere:
            with torch.no_grad():
                moments = zip(gathered.numbers("exp_avg"), gathered.numbers("hessian"), strict=True)
                scale = gathered.rule.hyperparameters["scale"]
                counted += [(reference.unclipped(m, h, scale), m.numel()) for m, h in moments]
        self._counted = tuple(counted)

    @without_dynamo
    def _refresh(
        self,
        estimator: Estimator,
        inputs: Mapping[Tensor, tuple[Tensor, ...]],
        scale: Callable[[dict[str, Any]], float],
    ) -> None:
        """Take new estimates into the averages of the parameters in ``inputs``, or into none if one cannot be."""
        new_state = NewState(self.state)
        batch = _core.Batch()
        copies: list[tuple[Tensor, Tensor]] = []
        try:
            for number, group in enumerate(self.param_groups):
                hyperparameters = {
                    "beta2": group["betas"][1],
                    "scale": scale(group),
                    "skip_nonfinite": group["skip_nonfinite_hessian"],
                }
                found = self._find(number, group, inputs, new_state)
                native = [one for one in found if one.param.is_cpu and group["backend"] != "reference"]
                if native:
                    _add_to(batch, estimator, hyperparameters, number, native)
                others = [one for one in found if not (one.param.is_cpu and group["backend"] != "reference")]
                _check_for_reference(number, group, others)
                for _, _, h, own in others:
                    before = h.decode() if isinstance(h, Codes) else h
                    work = arithmetic_dtype(before)
                    with torch.no_grad():
                        new = estimator.reference(before.to(work), *(x.to(work) for x in own), **hyperparameters)
                    copies += stored(h, new)
            batch.run(torch.get_num_threads(), copies=copies)
        finally:
            if not batch.finished:
                new_state.discard()

    def _find(
        self, number: int, group: dict[str, Any], inputs: Mapping[Tensor, tuple[Tensor, ...]], new_state: NewState
    ) -> list[Refreshed]:
        found = []
        for position, p in enumerate(group["params"]):
            if p in inputs:
                if "hessian" not in self.state.get(p, ()):
                    new_state.set(p, "hessian", zero_state("hessian", p, group))
                    new_state.set(p, scale_of("hessian"), zero_scale("hessian", p, group))
                hessian = self._rule.state_of("hessian", self.state[p])
                found.append(_of_rank(number, position, p, hessian, inputs[p]))
        return found


def _of_rank(number: int, position: int, p: Tensor, hessian: Tensor | Codes, inputs: tuple[Tensor, ...]) -> Refreshed:
    """The tensors, or the rank's shards of DTensors."""
    if not shards.is_distributed(p):
        return Refreshed(position, p, hessian, inputs)

    def shard(name: str, x: Any) -> Tensor:
        return shards.shard(lambda: f"{name} of parameter {position} in group {number}", x, p)

    own = tuple(shard("gradient or estimate", x) for x in inputs)
    if isinstance(hessian, Codes):
        hessian = hessian._replace(codes=shard("hessian", hessian.codes))
    else:
        hessian = shard("hessian", hessian)
    return Refreshed(position, shards.local(p), hessian, own)


def _add_to(
    batch: _core.Batch, estimator: Estimator, hyperparameters: dict[str, Any], number: int, found: list[Refreshed]
) -> None:
    """Hand the tensors to the Rust engine, which checks them."""
    positions, params, hessians, inputs = map(list, zip(*found, strict=True))
    first, *rest = map(list, zip(*inputs, strict=True))
    codes = [h if isinstance(h, Codes) else None for h in hessians]
    states = {"hessian": [h if own is None else own.codes for h, own in zip(hessians, codes, strict=True)]}
    scales = {"hessian": [None if own is None else own.scale for own in codes]}
    if estimator is ESTIMATE:  # which may be more precise than the parameter
        first = [d.to(arithmetic_dtype(p)) for d, p in zip(first, params, strict=True)]
    for probes in rest:
        dtypes = [
            h.dtype if own is None else arithmetic_dtype(p) for p, h, own in zip(params, hessians, codes, strict=True)
        ]
        states["probe"] = [u.to(dtype) for u, dtype in zip(probes, dtypes, strict=True)]
    rule = _core.Rule(estimator.kernel, hyperparameters)
    batch.add(rule, params, first, states, scales=scales, group=number, positions=positions)


def _check_for_reference(number: int, group: dict[str, Any], found: list[Refreshed]) -> None:
    """Raise for what plain torch cannot average, or would by broadcasting."""
    check_place(number, group, Found([one.position for one in found], [one.param for one in found], []))
    for position, p, hessian, inputs in found:
        place = f"of parameter {position} in group {number}"
        if isinstance(hessian, Codes):
            checks.codes(f"hessian {place}", hessian, p, scale=f"{scale_of('hessian')} {place}")
        own = () if isinstance(hessian, Codes) else (("hessian", hessian),)
        for name, x in (*own, *(("gradient or estimate", x) for x in inputs)):
            checks.readable(f"{name} {place}", x)
            checks.like(f"{name} {place}", x, p, shape=p.shape)
