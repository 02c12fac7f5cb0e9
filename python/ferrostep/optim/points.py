"""What optimizers share whose parameters go to a second point and back, along their momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ferrostep import reference
from ferrostep.errors import Problem, wrong_kind
from ferrostep.optim.base import NewState, has_16_bits, is_fake, without_dynamo
from ferrostep.optim.gathered import COMPENSATIONS, Gathered, is_for_plain_torch
from ferrostep.optim.rules import MASTER_ROUNDINGS, ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.taken import Taken
from ferrostep.reference import Codes
from ferrostep.reference.sums import Sum

BLEND = ElementwiseRule("Blend", reference.blend)
POINT = ("eta", "of_param", "of_momentum")
"""What states keep besides the momentum."""
Factors: TypeAlias = tuple[float, float]
"""What multiplies the parameter and its momentum in a point."""


class TwoPointOptimizer(RuleOptimizer):
    """The common part of :class:`NIGT` and :class:`STORM`.

    A parameter's second point is ``of_param * p + of_momentum * momentum_buffer``, with numbers that its state keeps.
    """

    _numbers: tuple[str, ...] = POINT[1:]
    _start: tuple[float, ...] = (1.0, 0.0)
    """Its values before the first step."""
    _rounds = ""
    """What rounding to 16 bits would spoil."""

    _counted: Mapping[str, Any] = MappingProxyType({"steps": 0})
    """What groups keep besides the arguments, as it is before the first step."""

    def _numbers_after(self, rule: Rule, total: float) -> tuple[float, ...]:
        """The numbers that the state is to have after a step with a rule that knows a sum."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        for name, value in self._counted.items():
            group.setdefault(name, value)
        self._check_precision(group)
        if group["projection"] is not None:
            raise RuntimeError(f"{type(self).__name__} does not support projection: its second point would not follow")
        self.rule(group)

    def _needs_all_gradients(self, _group: dict[str, Any]) -> str | None:
        return "each of its steps is to move all parameters, which go to a second point together"

    def _group_defaults(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**self._counted, **super()._group_defaults(group)}

    def _check_precision(self, group: dict[str, Any]) -> None:
        for i, p in enumerate(group["params"]):
            if has_16_bits(p) and group["master_weights"] is None:
                expected = f"float32 or float64, or master_weights, as {self._rounds} is rounded by as much as a step"
                raise Problem.DTYPE.of(f"parameter {i}", p.dtype, expected)

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        adopted = super()._adopted(state_dict)
        for key, state in adopted["state"].items():
            missing = [name for name in self._numbers if name not in state]
            if "momentum_buffer" in state and missing:
                raise KeyError(f"state of parameter {key} has no {', '.join(missing)}: it is another rule's")
            foreign = [name for name in POINT if name in state and name not in self._numbers]
            if foreign:
                raise KeyError(f"state of parameter {key} has {', '.join(foreign)}: it is another rule's")
        return adopted

    def _saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Each number a tensor of its own, into which a checkpoint may be loaded."""
        state_dict = super()._saved(state_dict)
        for key, own in state_dict["state"].items():
            numbers = {name: own[name].clone() for name in self._numbers if name in own}
            state_dict["state"][key] = {**own, **numbers}
        return state_dict

    def _by_point(
        self, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        """The group with the numbers of its parameters' states, by parameters that have the same."""
        by_point: dict[tuple[float, ...], list[int]] = {}
        for i in positions:
            by_point.setdefault(self._point(group["params"][i]), []).append(i)
        for point, those in by_point.items():
            yield {**group, **dict(zip(self._numbers, point, strict=True))}, positions if len(by_point) == 1 else those

    def _point(self, p: Tensor) -> tuple[float, ...]:
        own = self.state.get(p, {})
        return tuple(float(own.get(name, start)) for name, start in zip(self._numbers, self._start, strict=True))

    def _has_begun(self, p: Tensor) -> bool:
        return self._numbers[0] in self.state.get(p, ())

    def _take_sums(self, sums: list[tuple[Gathered, list[Sum]]], new_state: NewState) -> bool:
        for gathered, totals in sums:
            if is_fake(gathered.params[0]):
                continue
            points: dict[float, tuple[Tensor, ...]] = {}  # one for all where they know one sum
            for position, total in zip(gathered.positions, map(float, totals), strict=True):
                if total not in points:
                    points[total] = self._as_kept(self._numbers_after(gathered.rule, total))
                self._keep_numbers(self.param_groups[gathered.number]["params"][position], points[total], new_state)
        return True

    @staticmethod
    def _as_kept(numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
        return torch.tensor(numbers, dtype=torch.float64).unbind()

    def _keep_numbers(self, p: Tensor, numbers: tuple[Tensor, ...], new_state: NewState) -> None:
        for name, value in zip(self._numbers, numbers, strict=True):
            new_state.set(p, name, value)

    def _is_to_run(self, taken: Taken, new_state: NewState) -> bool:
        runs = super()._is_to_run(taken, new_state)
        for group in self.param_groups if runs else ():
            new_state.write(group, "steps", group["steps"] + 1)
        return runs

    @without_dynamo
    def _move(
        self,
        factors: Callable[[dict[str, Any]], Factors | None],
        into: Mapping[Tensor, Tensor] | None = None,
        **of_groups: Any,
    ) -> None:
        """Move the parameters that have begun to another point.

        Args:
            factors: from a group with the numbers of a state, those of the point; None for what is to stay.
            into: by parameter, a copy that is to be moved instead.
            **of_groups: what groups are to say then.
        """
        new_state = NewState(self.state)
        taken = None
        try:
            try:
                taken = self._take_moves(factors, into)
            except ValueError:
                if not self._convert_states(new_state):
                    raise
                taken = self._take_moves(factors, into)
            for group in self.param_groups:
                for name, value in of_groups.items():
                    new_state.write(group, name, value)
            taken.run(torch.get_num_threads())
        finally:
            if taken is None or not taken.batch.finished:
                new_state.discard()

    def _take_moves(
        self, factors: Callable[[dict[str, Any]], Factors | None], into: Mapping[Tensor, Tensor] | None
    ) -> Taken:
        """Check what is to be moved."""
        taken = Taken(self._known, self._scratch)
        for number, group in enumerate(self.param_groups):
            begun = [i for i, p in enumerate(group["params"]) if self._has_begun(p)]
            for part, positions in self._by_point(group, begun):
                chosen = factors(part)
                if chosen is not None:
                    add = taken.add_elsewhere if is_elsewhere(part, positions) else taken.add
                    add(self._moved(number, part, positions, chosen, into), needs_matrices=False)
        return taken

    def _moved(
        self,
        number: int,
        group: dict[str, Any],
        positions: Sequence[int],
        factors: Factors,
        into: Mapping[Tensor, Tensor] | None,
    ) -> Gathered:
        params = [group["params"][i] for i in positions]
        states = [self.state[p] for p in params]
        rounding = "nearest" if into is not None else MASTER_ROUNDINGS.get(group["master_weights"], "nearest")
        name = COMPENSATIONS.get(rounding)
        return Gathered(
            number,
            {**group, "max_grad_norm": None, "skip_nonfinite": False, "differentiable": False},
            BLEND.of(dict(zip(("of_param", "of_grad"), factors, strict=True))),
            rounding,
            list(positions),
            params if into is None else [into[p] for p in params],
            [self._momentum(state) for state in states],
            {} if name is None else {name: [state.get(name) for state in states]},
        )

    def _momentum(self, state: Mapping[str, Any]) -> Tensor:
        momentum = self._rule.state_of("momentum_buffer", state)
        return momentum.decode() if isinstance(momentum, Codes) else momentum


def number(name: str, value: Any) -> float:
    """A group's number, which someone may have written since it was checked.

    Raises:
        TypeError, ValueError: it is none, or one beyond all floats.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise wrong_kind(name, value, "a number") from error
    except OverflowError as error:
        raise Problem.NUMBER.of(name, "int too large", "a number that a float can be") from error


def is_elsewhere(group: dict[str, Any], positions: Sequence[int]) -> bool:
    """Whether plain torch is to move the parameters."""
    return is_for_plain_torch(group) or not all(group["params"][i].is_cpu for i in positions)
