"""Optimizers that hand each parameter group to one update rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.optim.base import InPlaceOptimizer, NewState, arithmetic_dtype, has_16_bits, zero_state


class Rule(NamedTuple):
    """An update rule as a parameter group selects it."""

    kernel: Callable[..., Any]
    """The Rust rule, made from the hyperparameters by keyword."""
    reference: reference.ReferenceRule
    """The same in plain torch."""
    states: tuple[str, ...]
    """The state tensors in the rule's order."""
    hyperparameters: dict[str, Any]
    counts_steps: bool
    """Whether the rule depends on the number of the step: a ``step`` tensor is kept then."""
    shapes: Mapping[str, Callable[[Tensor], Sequence[int]]] = MappingProxyType({})
    """Of states that do not have the parameter's shape, the shape that goes with a parameter."""

    def state_shape(self, name: str, p: Tensor) -> Sequence[int]:
        """The shape of state ``name`` of ``p``."""
        return self.shapes[name](p) if name in self.shapes else p.shape

    def zero_state(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        """State ``name`` of ``p`` as it is before the first step; None for a compensation that is not needed."""
        if name in self.shapes:  # small, hence always in the type of the arithmetic
            return torch.zeros(self.state_shape(name, p), dtype=arithmetic_dtype(p), device=p.device)
        return zero_state(name, p, group)


class RuleOptimizer(InPlaceOptimizer):
    """An optimizer that hands each parameter group to one update rule. Subclasses define :meth:`rule`."""

    def rule(self, group: dict[str, Any]) -> Rule:
        """The update rule for a parameter group, with the group's present hyperparameters."""
        raise NotImplementedError

    def _update(self, new_state: NewState) -> bool:
        batch = _core.Batch(self._known)
        native: list[Tensor] = []
        elsewhere: list[Gathered] = []
        for number, group in enumerate(self.param_groups):
            on_cpu, others = with_gradient(group)
            if on_cpu.params:
                gathered = self._gather(number, group, on_cpu, new_state)
                gathered.add_to(batch)
                native += on_cpu.params
            if others.params:
                gathered = self._gather(number, group, others, new_state)
                gathered.check_for_reference()
                elsewhere.append(gathered)
        skip = self.defaults["skip_nonfinite"]
        if skip and not all(g.isfinite().all() for gathered in elsewhere for g in gathered.grads):
            return False
        if not batch.run(torch.get_num_threads(), skip_nonfinite=skip):
            return False
        if native:
            torch.autograd.graph.increment_version(native)
        for gathered in elsewhere:
            gathered.run_reference()
        self._after_update(batch, elsewhere)
        return True

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        """For subclasses: called when all groups have been updated."""

    def _gather(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> Gathered:
        rule = self.rule(group)
        names = rule.states
        if rule.counts_steps or group["rounding"] == "stochastic":
            names = (*names, "step")
        if group["rounding"] == "kahan":
            names = (*names, "kahan_comp")
        state_of = self.state
        try:
            states = [state_of.get(p) for p in found.params]
            columns = {name: [state[name] for state in states] for name in names}  # type: ignore[index]
        except (KeyError, TypeError):  # a parameter without state, or a state without all that is needed now
            columns = self._complete(number, group, found, rule, names, new_state)
        return Gathered(number, group, rule, *found, columns)

    def _complete(
        self,
        number: int,
        group: dict[str, Any],
        found: Found,
        rule: Rule,
        names: tuple[str, ...],
        new_state: NewState,
    ) -> dict[str, list[Tensor]]:
        """Make the state tensors that are missing, and return all."""
        for position, p in zip(found.positions, found.params, strict=True):
            if p.layout != torch.strided:
                where = f"param of parameter {position} in group {number}"
                raise RuntimeError(f"{where} has layout {p.layout}; sparse tensors are not supported")
            for name in names:
                if name not in self.state.get(p, ()):
                    new = rule.zero_state(name, p, group)
                    if new is not None:
                        self.state[p][name] = new
                        new_state.record(p, name)
        return {name: [self.state[p].get(name) for p in found.params] for name in names}


class Gathered(NamedTuple):
    """The parameters of a group that have gradients, with these and their state."""

    number: int
    group: dict[str, Any]
    rule: Rule
    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    columns: dict[str, list[Tensor]]

    def add_to(self, batch: _core.Batch) -> None:
        """Hand the tensors to the Rust engine, which checks them."""
        batch.add(
            self.rule.kernel(**self.rule.hyperparameters),
            self.params,
            self.grads,
            {name: self.columns[name] for name in self.rule.states},
            steps=self.columns.get("step"),
            rounding=self.group["rounding"],
            seed=self.group["seed"],
            compensation=self.columns.get("kahan_comp"),
            group=self.number,
            positions=self.positions if len(self.params) < len(self.group["params"]) else None,
        )

    def check_for_reference(self) -> None:
        """Raise for what plain torch cannot update, or would by broadcasting."""
        if self.group["backend"] == "rust":
            if self.group["differentiable"]:
                raise RuntimeError("differentiable=True runs in plain torch and excludes backend='rust'")
            raise RuntimeError(
                f"{self._place('param', 0)} is on device {self.params[0].device}, expected the CPU (backend='rust')"
            )
        for i, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            if not (p.is_floating_point() or p.is_complex()):
                raise ValueError(f"{self._place('param', i)} has dtype {p.dtype}, expected a floating-point one")
            self._check_twin("grad", i, grad, p.shape)
            if grad.dtype != p.dtype:
                raise ValueError(f"{self._place('grad', i)} has dtype {grad.dtype}, expected {p.dtype}")
            for name, column in self.columns.items():
                if name == "step":
                    if column[i].numel() != 1 or column[i] < 0 or column[i] % 1 != 0:
                        raise ValueError(f"{self._place(name, i)} is {column[i]}, expected one whole number")
                elif column[i] is not None:
                    self._check_twin(name, i, column[i], self.rule.state_shape(name, p))

    def _check_twin(self, name: str, i: int, tensor: Tensor, shape: Sequence[int]) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self._place(name, i)} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided:
            where = self._place(name, i)
            raise RuntimeError(f"{where} has layout {tensor.layout}; sparse tensors are not supported")
        if tensor.shape != tuple(shape):
            raise ValueError(f"{self._place(name, i)} has shape {list(tensor.shape)}, expected {list(shape)}")

    def _place(self, name: str, i: int) -> str:
        return f"{name} of parameter {self.positions[i]} in group {self.number}"

    def run_reference(self) -> None:
        """Update in plain torch."""
        with torch.set_grad_enabled(self.group["differentiable"]):
            for i, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
                step = 0.0
                if "step" in self.columns:
                    self.columns["step"][i] += 1
                    step = self.columns["step"][i].item()
                reference.apply(
                    self.rule.reference,
                    p,
                    grad,
                    [self.columns[name][i] for name in self.rule.states],
                    step,
                    self.rule.hyperparameters,
                    rounding=self.group["rounding"] if has_16_bits(p) else "nearest",
                    compensation=self.columns["kahan_comp"][i] if "kahan_comp" in self.columns else None,
                    seed=self.group["seed"],
                    number=self.positions[i] | self.number << 32,
                )


class Found(NamedTuple):
    """The parameters of a group that have a gradient."""

    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]


def with_gradient(group: dict[str, Any]) -> tuple[Found, Found]:
    """The parameters that have a gradient: those for Rust, and those for plain torch."""
    on_cpu = Found([], [], [])
    others = Found([], [], [])
    plain = group["backend"] == "reference" or group["differentiable"]
    for position, p in enumerate(group["params"]):
        grad = p.grad
        if grad is not None:
            positions, params, grads = others if plain or not p.is_cpu else on_cpu
            positions.append(position)
            params.append(p)
            grads.append(grad)
    return on_cpu, others
