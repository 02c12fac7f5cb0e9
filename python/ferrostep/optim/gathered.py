"""The tensors of a parameter group, as a step has found them: handed to Rust, or checked and updated in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.choices import Backend
from ferrostep.errors import Problem, wrong_choice
from ferrostep.optim import shards
from ferrostep.optim.base import SCALARS, SIXTEEN_BIT, dtype_of, has_16_bits, is_fake, scale_of
from ferrostep.reference import Codes, checks
from ferrostep.reference.sums import Sum, power_sum

if TYPE_CHECKING:
    from ferrostep.optim.rules import Rule

COMPENSATIONS = {"kahan": "kahan_comp", "split": "master_low", "master": "master_param"}
"""The states that make up for rounding."""
BACKENDS = get_args(Backend)
SINGLE_REAL = (torch.float32, *SIXTEEN_BIT)
"""What is computed with in float32: a gradient of one of these goes with a parameter of another."""
DOUBLE = (torch.float64, torch.complex128)


class Gathered(NamedTuple):
    """The parameters of a group that have gradients, with these and their state."""

    number: int
    group: dict[str, Any]
    rule: Rule
    rounding: str
    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    columns: dict[str, list[Tensor]]
    factor: Sum = 1.0
    """Multiplies the gradients."""
    totals: list[Sum] | None = None
    """Of each parameter, the sum that its rule is to know."""

    @property
    def compensation(self) -> list[Tensor] | None:
        """What makes up for the rounding of each parameter, if anything does."""
        return self.columns.get(COMPENSATIONS.get(self.rounding, ""))

    @property
    def is_clipped(self) -> bool:
        """Whether the norm of the gradients is asked for."""
        return self.group["max_grad_norm"] is not None

    @property
    def scales(self) -> dict[str, list[Tensor]]:
        """By the name of a state, the scales of those that are codes."""
        columns = self.columns
        return {name: columns[scale_of(name)] for name in self.rule.states if scale_of(name) in columns}

    def state(self, name: str, i: int) -> Tensor | Codes:
        """State ``name`` of the parameter at place ``i``: numbers, or codes."""
        state, scales = self.columns[name][i], self.scales.get(name)
        return state if scales is None or scales[i] is None else Codes(state, scales[i], self.rule.signed[name])

    def numbers(self, name: str) -> list[Tensor]:
        """State ``name`` of all parameters, decoded."""
        states = [self.state(name, i) for i in range(len(self.params))]
        return [state.decode() if isinstance(state, Codes) else state for state in states]

    def add_to(self, batch: _core.Batch, *, measure: bool) -> None:
        """Hand the tensors to the Rust engine, which checks them; with or without the norms of the gradients."""
        batch.add(
            self.rule.native(),
            self.params,
            self.grads,
            {name: self.columns[name] for name in self.rule.states},
            steps=self.columns.get("step"),
            product=None if self.rule.product is None else (self.rule.product, self.columns[self.rule.product]),
            rounding=self.rounding,
            seed=self.group["seed"],
            compensation=self.compensation,
            scales=self.scales,
            group=self.number,
            positions=self.positions if len(self.params) < len(self.group["params"]) else None,
            skip_nonfinite=self.group["skip_nonfinite"],
            measure=measure,
            noise=self.rule.noise,
        )

    def check_for_reference(self) -> None:
        """Raise for what plain torch cannot update, or would by broadcasting."""
        for i, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            checks.readable(self._place("param", i), p, pairs=True)
            checks.readable(self._place("grad", i), grad, pairs=p.is_complex())
            dtype = None if {p.dtype, grad.dtype} <= {*SINGLE_REAL} else p.dtype
            checks.like(self._place("grad", i), grad, p, shape=p.shape, dtype=dtype)
            if self.group["differentiable"] and p.is_leaf and p.requires_grad:
                # In torch's words.
                place = self._place("param", i)
                raise RuntimeError(
                    f"{place}: a leaf Variable that requires grad is being used in an in-place operation."
                )
            for name in self.rule.states:
                self._check_state(name, i)
            if self.compensation is not None and has_16_bits(p):
                self._check_compensation(i)
            if "step" in self.columns:
                checks.counter(self._place("step", i), self.columns["step"][i])
            if self.rule.product is not None:
                checks.product(self._place(self.rule.product, i), self.columns[self.rule.product][i])
            for name, column in (("param", self.params), *self.columns.items()):
                checks.writable(self._place(name, i), column[i])

    def _check_state(self, name: str, i: int) -> None:
        p, state, place = self.params[i], self.state(name, i), self._place(name, i)
        if isinstance(state, Codes):
            checks.codes(place, state, p, scale=self._place(scale_of(name), i))
            return
        if name in self.rule.whole_numbers:
            checks.tensor(place, state)
            dtype = self.rule.whole_numbers[name]
            checks.like(place, state, p, shape=self.rule.state_shape(name, p), dtype=dtype)
            return
        checks.readable(place, state, pairs=p.is_complex())
        checks.like(place, state, p, shape=self.rule.state_shape(name, p), dtype=p.dtype if p.is_complex() else None)
        if (state.dtype in DOUBLE) != (p.dtype in DOUBLE):
            raise ValueError(f"{place} has dtype {state.dtype}, but the parameter has {p.dtype}")

    def _check_compensation(self, i: int) -> None:
        name, p = COMPENSATIONS[self.rounding], self.params[i]
        if self.rounding == "split" and p.dtype != torch.bfloat16:
            where = self._place("param", i)
            raise ValueError(f"{where} has dtype {p.dtype}, but master_weights='split' takes torch.bfloat16")
        compensation, place = self.columns[name][i], self._place(name, i)
        checks.tensor(place, compensation)
        checks.like(place, compensation, p, shape=p.shape, dtype=dtype_of(name, p, self.group))

    def _place(self, name: str, i: int) -> str:
        return f"{name} of parameter {self.positions[i]} in group {self.number}"

    def only(self, which: list[int]) -> Gathered:
        """Some of the parameters, by their places here."""

        def of(column: list[Any]) -> list[Any]:
            return [column[i] for i in which]

        columns = {name: of(column) for name, column in self.columns.items()}
        return self._replace(
            positions=of(self.positions),
            params=of(self.params),
            grads=of(self.grads),
            columns=columns,
            totals=of(self.totals) if self.totals is not None else None,
        )

    def of_rank(self) -> Gathered:
        """The rank's shards in place of DTensors."""

        def own(name: str, column: list[Any]) -> list[Any]:
            return shards.of_rank(partial(self._place, name), column, self.params)

        of_rank = {*SCALARS, *map(scale_of, self.rule.signed)}  # each rank has its own already
        columns = {name: x if name in of_rank else own(name, x) for name, x in self.columns.items()}
        params = own("param", self.params)
        return self._replace(params=params, grads=own("grad", self.grads), columns=columns)

    def in_parts(self) -> list[int]:
        """The places of the parameters of which no rank has whole matrices.

        Raises:
            NotImplementedError: one whose placements or options have become such that no rank can own its matrices.
        """
        for position, p in zip(self.positions, self.params, strict=True):
            if shards.is_distributed(p):
                place = f"parameter {position} in group {self.number}"
                shards.check_placements(place, p, self.group, self.rule)
        return [i for i, p in enumerate(self.params) if shards.is_in_parts(p, self.rule.hyperparameters)]

    def description(self, i: int) -> str:
        """The parameter with its state as other ranks must have it, too, to work on it together."""
        p = self.params[i]
        placed = f", placements {p.placements}" if shards.is_distributed(p) else ""
        states = "".join(f", {name} {self.columns[name][i].dtype}" for name in self.rule.states)
        return (
            f"parameter {self.positions[i]} in group {self.number} ({p.dtype}, shape {list(p.shape)}{placed}{states})"
        )

    def is_skipped(self) -> bool:
        """Whether a gradient holds a NaN or infinity where the group says to skip such a step."""
        if not self.group["skip_nonfinite"] or is_fake(self.grads[0]):
            return False
        return not all(shards.local(g).isfinite().all() for g in self.grads)

    def power_sums(self, order: int) -> list[Sum]:
        """Of the sizes of each gradient's elements (order 1), or of their squares (2), in plain torch."""
        return [self._number(power_sum(g, order)) for g in shards.whole(self.grads)]

    def sums(self) -> list[Sum]:
        """What the rule sums over each parameter, in plain torch."""
        if self.rule.summed is None:
            return []
        states = (shards.whole(self.numbers(name)) for name in self.rule.states)
        of_each = zip(self.params, shards.whole(self.grads), *states, strict=True)
        with torch.set_grad_enabled(self.group["differentiable"]):
            return [
                self._number(reference.sum_of(self.rule.summed, p, g, s, self.rule.hyperparameters, factor=self.factor))
                for p, g, *s in of_each
            ]

    def _number(self, x: Tensor) -> Sum:
        is_recorded = self.group["differentiable"] and x.requires_grad
        return x if is_recorded or is_fake(x) else x.item()

    def updates(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors that plain torch updates, each with its new values."""
        with torch.set_grad_enabled(self.group["differentiable"]):
            return [update for i in range(len(self.params)) for update in self._updates_of(i)]

    def _updates_of(self, i: int) -> list[tuple[Tensor, Tensor]]:
        if shards.is_distributed(self.params[i]):
            return self._updates_of_parts(i)
        is_rounded = has_16_bits(self.params[i])
        step, scalars = self._scalars(i)
        updates = reference.updates(
            self.rule.reference,
            # Detached, it may be written while autograd records what is written to others.
            self.params[i] if self.group["differentiable"] else self.params[i].detach(),
            self.grads[i],
            [self.state(name, i) for name in self.rule.states],
            step,
            self.rule.hyperparameters,
            rounding=self.rounding if is_rounded else "nearest",
            compensation=self.compensation[i] if is_rounded and self.compensation is not None else None,
            seed=self.group["seed"],
            number=self.positions[i] | self.number << 32,
            total=None if self.totals is None else self.totals[i],
            product=None if self.rule.product is None else self._number(scalars[self.rule.product]),
            factor=self.factor,
            noise=self.rule.noise,
        )
        return [*updates, *((self.columns[name][i], new) for name, new in scalars.items())]

    def _scalars(self, i: int) -> tuple[float, dict[str, Tensor]]:
        """The number of this step, and what it makes of those of ``SCALARS`` that the parameter has, in their order."""
        step, scalars = 0.0, {}
        if "step" in self.columns:
            scalars["step"] = counter = self.columns["step"][i] + 1
            step = 1.0 if is_fake(counter) else counter.item()
        if self.rule.product is not None and self.rule.factor is not None:
            factor = self.rule.factor(step, **self.rule.hyperparameters)
            scalars[self.rule.product] = self.columns[self.rule.product][i] * factor
        return step, scalars

    def _updates_of_parts(self, i: int) -> list[tuple[Tensor, Tensor]]:
        """Every rank works out the whole, and keeps its shards."""
        one = self.only([i])
        whole = one._replace(
            params=shards.whole(one.params),
            grads=shards.whole(one.grads),
            columns={name: shards.whole(column) for name, column in one.columns.items()},
        )
        of_step = (COMPENSATIONS.get(self.rounding, ""), *SCALARS)
        before = [one.columns[name] for name in self.rule.states]
        after = [one.columns[name] for name in of_step if name in one.columns]
        changed = [x for (x,) in (*before, one.params, *after) if x is not None]
        return [shards.own_part(x, new) for x, (_, new) in zip(changed, whole.updates(), strict=True)]


class Found(NamedTuple):
    """The parameters of a group that have a gradient."""

    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]

    def at(self, positions: Sequence[int]) -> Found:
        """Those at some of the positions."""
        if positions is self.positions:
            return self
        chosen = set(positions)
        at = [i for i, position in enumerate(self.positions) if position in chosen]
        return Found([self.positions[i] for i in at], [self.params[i] for i in at], [self.grads[i] for i in at])


def is_for_plain_torch(group: dict[str, Any]) -> bool:
    """Whether the group's parameters on the CPU, too, are for plain torch; ValueError for no backend."""
    params, backend = group["params"], group["backend"]
    if backend not in BACKENDS:
        raise wrong_choice("backend value", backend, *BACKENDS)
    return bool(backend == "reference" or group["differentiable"] or (params and is_fake(params[0])))


def check_place(number: int, group: dict[str, Any], found: Found) -> None:
    """Raise RuntimeError for parameters where neither Rust nor plain torch can update them."""
    for position, p in zip(found.positions, found.params, strict=True):
        where = f"param of parameter {position} in group {number}"
        if group["backend"] == "rust":
            if group["differentiable"]:
                raise RuntimeError("differentiable=True runs in plain torch and excludes backend='rust'")
            raise Problem.DEVICE.of(where, p.device, "the CPU (backend='rust')")
        if p.is_meta:
            # In torch's words, for whoever looks for them.
            fused = "`fused=True` requires all the params to be floating point Tensors of supported devices: "
            raise RuntimeError(
                f"{fused if group['fused'] else ''}{where} is on device meta, which has no memory; materialize it first"
            )
