"""Optimizers that hand each parameter group to one update rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.errors import Problem
from ferrostep.optim import shards
from ferrostep.optim.agreement import agreed, interrupts_held
from ferrostep.optim.base import (
    SCALARS,
    InPlaceOptimizer,
    NewState,
    arithmetic_dtype,
    is_fake,
    is_in_codes,
    scalar,
    scale_of,
    without_dynamo,
    zero_scale,
    zero_state,
)
from ferrostep.optim.checkpoints import as_kept, for_other_ranks, own_form
from ferrostep.optim.gathered import COMPENSATIONS, DOUBLE, Found, Gathered, check_place, is_for_plain_torch
from ferrostep.optim.options import check_max_grad_norm, is_coded
from ferrostep.optim.projected import check_projection, projected
from ferrostep.optim.sums import Scope
from ferrostep.optim.taken import Taken
from ferrostep.reference.codes import SCALE_ITSELF
from ferrostep.reference.sums import Sum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MASTER_ROUNDINGS = {"split": "split", "float32": "master"}
"""By ``master_weights``, how results are rounded then."""
OWN_STATES = {
    *SCALARS,
    "momentum_buffer",
    "second_momentum_buffer",
    *COMPENSATIONS.values(),
    *(name for states, *_ in _core.rules().values() for name in states),
}
"""The states that tell of steps of one of our rules."""
BEGINS = "begins"
"""The hyperparameter of rules that begin otherwise: whether this step has made the parameter's states."""
SINGLE = (torch.float32, torch.complex64)


class Rule(NamedTuple):
    """An update rule as a parameter group selects it.

    Example:
        >>> from ferrostep.optim import Lion
        >>> optimizer = Lion([torch.ones(3)])
        >>> optimizer.rule(optimizer.param_groups[0]).states
        ('exp_avg',)
    """

    kernel: str | Callable[..., Any]
    """The Rust rule: the name of an element-wise one, else what makes it from the hyperparameters by keyword."""
    reference: reference.ReferenceRule
    """The same in plain torch."""
    states: tuple[str, ...]
    """The state tensors in the rule's order."""
    hyperparameters: dict[str, Any]
    counts_steps: bool
    """Whether the rule depends on the number of the step: a ``step`` tensor is kept then."""
    shapes: Mapping[str, Callable[[Tensor], Sequence[int]]] = MappingProxyType({})
    """Of states that do not have the parameter's shape, the shape that goes with a parameter."""
    initial: Mapping[str, float] = MappingProxyType({})
    """What states are full of before the first step, where that is not 0."""
    summed: reference.ReferenceSum | None = None
    """For a rule that is to know a sum before the step: what it sums, in plain torch."""
    scope: Scope = "tensor"
    """What that sum is over."""
    signed: Mapping[str, bool] = MappingProxyType({})
    """The states that can be codes of 8 bits, and whether these are to stand for negative numbers, too."""
    whole_numbers: Mapping[str, torch.dtype] = MappingProxyType({})
    """States that are no numbers of the arithmetic, with their dtype."""
    noise: float = 0.0
    """Each parameter is multiplied, after the rule, by the exponential of a normal number times this."""
    product: str | None = None
    """A state that is one number, 1 before the first step, which every step multiplies by a factor."""
    factor: reference.ReferenceFactor | None = None
    """That factor, in plain torch."""
    early: tuple[str, ...] = ()
    """States that may be there before the others."""

    @property
    def needed(self) -> tuple[str, ...]:
        """The states that a parameter must have all of, once it has begun."""
        return self.states if self.product is None else (*self.states, self.product)

    def beginning(self) -> Rule:
        """The rule for the step that makes a parameter's states, where it is another one."""
        return self._replace(hyperparameters={**self.hyperparameters, BEGINS: True})

    def native(self) -> Any:
        """The Rust rule with its hyperparameters."""
        if isinstance(self.kernel, str):
            return _core.Rule(self.kernel, self.hyperparameters)
        return self.kernel(**self.hyperparameters)

    def state_shape(self, name: str, p: Tensor) -> Sequence[int]:
        """The shape of state ``name`` of ``p``.

        Args:
            name: one of ``states``.
            p: the parameter.

        Raises:
            IndexError: the parameter has not the dimensions that the rule takes.
        """
        return self.shapes[name](p) if name in self.shapes else p.shape

    def zero_state(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        """State ``name`` of ``p`` as it is before the first step; None for a compensation that is not needed.

        Args:
            name: one of ``needed``, or ``step`` or one of ``COMPENSATIONS``.
            p: the parameter, whose shape the state has, but for those in ``shapes``.
            group: the options of its group.

        Raises:
            KeyError: the group lacks an option.
        """
        if name == self.product:
            return scalar(1.0, p, group)
        if name in self.shapes:  # small, hence always in the type of the arithmetic
            shape, dtype = self.state_shape(name, p), arithmetic_dtype(p)
            if shards.is_distributed(p):
                return shards.zeros(shape, dtype, p)
            return torch.zeros(shape, dtype=dtype, device=p.device)
        state = zero_state(name, p, group)
        if state is not None and name in self.initial:
            value = self.initial[name]
            if is_in_codes(name, p, group):
                return state.fill_(SCALE_ITSELF)
            state.fill_(complex(value, value) if state.is_complex() else value)
        return state

    def first_scale(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        """The scales of what :meth:`zero_state` gives; None where that is no codes.

        Args:
            name, p, group: as of :meth:`zero_state`; a tensor of any shape has one for each block of its elements.

        Raises:
            KeyError: the group lacks an option.
        """
        scale = zero_scale(name, p, group)
        return scale.fill_(self.initial[name]) if scale is not None and name in self.initial else scale


class ElementwiseRule:
    """A rule that Rust declares by name, with its form in plain torch.

    ``counts_steps`` keeps a ``step`` tensor for a rule that does not depend on the number of the step; ``summed`` is
    what the rule is to know a sum of, ``factor`` what multiplies its product. ``early`` may be there before the other
    states: ``step``, where another rule of the class has none, and these may begin at any step.
    """

    def __init__(
        self,
        name: str,
        plain: reference.ReferenceRule,
        *,
        counts_steps: bool = False,
        summed: reference.ReferenceSum | None = None,
        factor: reference.ReferenceFactor | None = None,
        early: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.reference = plain
        self.summed = summed
        self.factor = factor
        self.early = early
        rules = _core.rules()
        if name not in rules:
            raise Problem.NUMBER.of(
                "name of a rule",
                repr(name),
                f"one that the extension module was built with: {', '.join(rules)}",
            )
        self.states, types, depends_on_step, never_negative, self.product = rules[name]
        self.signed = {state: state not in never_negative for state in self.states}
        self._begins = BEGINS in types
        self.counts_steps = counts_steps or depends_on_step

    def state_of(self, name: str, state: Mapping[str, Any]) -> Tensor | reference.Codes:
        """A parameter's state ``name``: numbers, or codes."""
        numbers, scale = state[name], state.get(scale_of(name))
        return numbers if scale is None else reference.Codes(numbers, scale, self.signed[name])

    def of(self, group: dict[str, Any]) -> Rule:
        """The rule with a group's hyperparameters: those of the same name, and ``beta1``, ... from ``betas``."""
        group = {**group, BEGINS: False} if self._begins else group
        hyperparameters = _core.hyperparameters(self.name, group)
        return Rule(
            self.name,
            self.reference,
            self.states,
            hyperparameters,
            self.counts_steps,
            summed=self.summed,
            signed=self.signed,
            product=self.product,
            factor=self.factor,
            early=self.early,
        )


def lacking(rule: Rule, state: Mapping[str, Any]) -> list[str]:
    """The names of states that are still to be made; old versions of torch keep None in their place."""
    return [name for name in rule.needed if state.get(name) is None]


class RuleOptimizer(InPlaceOptimizer):
    """An optimizer that hands each parameter group to one update rule.

    Subclasses say the rule in ``_rule``, or define :meth:`rule`.

    Args:
        params: parameters or parameter groups, of shapes and dtypes that the rule takes.
        defaults: the arguments of the constructor: hyperparameters of a group that says nothing.
        options: those of :class:`ferrostep.optim.options.Options` that differ from their defaults.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument, as torch raises.

    Example:
        >>> from ferrostep.optim import AdamW
        >>> optimizer = AdamW([torch.ones(3)], amsgrad=True)
        >>> isinstance(optimizer, RuleOptimizer), optimizer.rule(optimizer.param_groups[0]).counts_steps
        (True, True)
    """

    _rule: ElementwiseRule

    _looks_at_matrices = False
    """Whether a rule of the class looks at matrices as a whole."""

    last_grad_norm: Tensor | None = None
    """The norm that the last step with ``max_grad_norm`` found, 0-dim; NaN where it was left out before."""

    def rule(self, group: dict[str, Any]) -> Rule:
        """The update rule for a parameter group, with the group's present hyperparameters.

        Args:
            group: one of ``param_groups``.

        Raises:
            ValueError, TypeError: a hyperparameter that has become impossible.
        """
        return self._rule.of(group)

    def _rules(self, group: dict[str, Any]) -> Sequence[Rule]:
        """For subclasses with several rules in a group: all that may be meant."""
        return [self.rule(group)]

    def _parts(
        self, _number: int, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        """For the same: the group as each of its rules sees it, with the parameters, of those given, that it takes."""
        yield group, positions

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_projection(group)
        if shards.are_among(group["params"]):
            self._check_placements(group)
        if isinstance(group["state_dtype"], Mapping):
            names = [name for rule in self._rules(group) for name in rule.states if name not in rule.shapes]
            for name in group["state_dtype"]:
                if name not in names:
                    there_are = ", ".join(map(repr, names))
                    raise ValueError(f"Invalid state_dtype: {name!r} is not a state; expected names of {there_are}")
        self._check_codes(group)

    def _check_codes(self, group: dict[str, Any]) -> None:
        for rule in self._rules(group):
            for name in rule.states:
                if name not in rule.signed and name not in rule.shapes and is_coded(name, group):
                    others = {each: "int8" for rule in self._rules(group) for each in sorted(rule.signed)}
                    expected = f"a mapping such as {others}" if others else "an element-wise rule"
                    raise ValueError(f"Invalid state_dtype: {name} cannot be 'int8'; expected {expected}")

    def _check_placements(self, group: dict[str, Any]) -> None:
        number = next(number for number, own in enumerate(self.param_groups) if own is group)
        for part, positions in self._parts(number, group, range(len(group["params"]))):
            rule = self.rule(part) if self._takes_matrices(part) else None
            for i in positions:
                p = group["params"][i]
                if shards.is_distributed(p):
                    shards.check_placements(f"parameter {i} in group {number}", p, part, rule)

    # Only here, so that a closure is compiled as any function. What Dynamo traced of this it would compile anew for
    # every other number and kind of tensors.
    @without_dynamo
    def _update(self) -> None:
        groups = shards.who_share(self.param_groups)
        with interrupts_held(groups):
            self._update_with(groups)

    def _update_with(self, groups: list[ProcessGroup]) -> None:
        """Update all groups, with the ranks of process groups."""
        new_state = NewState(self.state)
        projections = projected(self.param_groups, self.state)
        taken = None
        try:
            taken = agreed(groups, lambda: self._take(new_state))
            if self._is_to_run(taken, new_state):
                taken.run(torch.get_num_threads(), projections)
        finally:
            if taken is None or not taken.batch.finished:
                new_state.discard()
            else:
                self._recorders.add(taken.power_sums)
                self._after_update(taken.batch, taken.elsewhere)
                self._is_in_round = True
                if self._release is None:
                    self._end_step()

    def _is_to_run(self, taken: Taken, new_state: NewState) -> bool:
        """Whether the step is to be taken, now that what is to be known of all gradients is."""
        if taken.skips:
            if any(group["max_grad_norm"] is not None for group in self.param_groups):
                self.last_grad_norm = torch.tensor(math.nan)
            return False
        threads = torch.get_num_threads()
        norm = taken.clip(threads)
        if norm is not None:
            self.last_grad_norm = torch.as_tensor(norm, dtype=torch.get_default_dtype()).detach()
        sums = taken.know(threads)
        return not sums or self._take_sums(sums, new_state)

    def _take_sums(self, _sums: list[tuple[Gathered, list[Sum]]], _new_state: NewState) -> bool:
        """For subclasses: called with what the rules know, of each parameter; whether the step is to be taken.

        What follows of the sums for the state is to be set in the new state.
        """
        return True

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        """For subclasses: called when all groups have been updated."""

    def _is_for_plain_torch(self, group: dict[str, Any]) -> bool:
        """Whether the parameters of a group on the CPU, too, are for plain torch."""
        return is_for_plain_torch(group)

    def _takes_matrices(self, group: dict[str, Any]) -> bool:
        """Whether the rule of a group looks at matrices as a whole."""
        return self._looks_at_matrices

    def _needs_all_gradients(self, group: dict[str, Any]) -> str | None:
        if any(rule.summed is not None and rule.scope != "tensor" for rule in self._rules(group)):
            return "its rule is to know a sum over the gradients of several parameters"
        return None

    def _bytes_besides(self) -> int:
        """The bytes that a step may take beside parameters, gradients, states and what its kernels work in."""
        return 0

    def _take(self, new_state: NewState) -> Taken:
        try:
            return self._gather_all(new_state)
        except Exception as error:
            if isinstance(error, ValueError) and self._convert_states(new_state):
                return self._gather_all(new_state)
            for group in self.param_groups:  # of an argument that has become impossible, its own check tells more
                self._check({**group, "params": []})
            raise

    def _gather_all(self, new_state: NewState) -> Taken:
        """Hand all groups to Rust, which checks them; what is for plain torch, checked, too."""
        taken = Taken(self._known, self._scratch, self._recorders.orders)
        is_ours = False
        for number, group in enumerate(self.param_groups):
            check_max_grad_norm(group["max_grad_norm"])
            on_cpu, others = _core.with_gradient(group["params"], self._is_for_plain_torch(group))
            if on_cpu[0]:
                for gathered in self._gather(number, group, Found(*on_cpu), new_state):
                    taken.add(gathered, needs_matrices=self._takes_matrices(gathered.group))
                is_ours = True
            if others[0]:
                check_place(number, group, Found(*others))
                for gathered in self._gather(number, group, Found(*others), new_state):
                    taken.add_elsewhere(gathered, needs_matrices=self._takes_matrices(gathered.group))
        if is_ours and any(is_fake(gathered.params[0]) for gathered in taken.elsewhere):
            raise RuntimeError("some parameters are fake tensors and others are real ones, expected one kind")
        taken.look_at_all()
        return taken

    def _gather(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> Iterator[Gathered]:
        for part, positions in self._parts(number, group, found.positions):
            yield from self._gather_part(number, part, found.at(positions), new_state)

    def _gather_part(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> list[Gathered]:
        rule = self.rule(group)
        names = rule.needed
        masters = group["master_weights"]
        rounding = group["rounding"] if masters is None else MASTER_ROUNDINGS[masters]
        if rule.counts_steps or rounding == "stochastic":
            names = (*names, "step")
        if rounding in COMPENSATIONS:
            names = (*names, COMPENSATIONS[rounding])
        scales = tuple(scale_of(name) for name in rule.signed if is_coded(name, group))
        columns = _core.columns(self.state, found.params, names, scales)
        if columns is not None:
            return [Gathered(number, group, rule, rounding, *found, columns)]
        began = [not lacking(rule, self.state.get(p, {})) for p in found.params]
        self._complete(number, group, found, rule, names, new_state)
        columns = {name: [self.state[p].get(name) for p in found.params] for name in (*names, *scales)}
        gathered = Gathered(number, group, rule, rounding, *found, columns)
        if BEGINS not in rule.hyperparameters:
            return [gathered]
        new = gathered.only([i for i, before in enumerate(began) if not before])
        others = gathered.only([i for i, before in enumerate(began) if before])
        return [part for part in (new._replace(rule=rule.beginning()), others) if part.params]

    def _complete(
        self,
        number: int,
        group: dict[str, Any],
        found: Found,
        rule: Rule,
        names: tuple[str, ...],
        new_state: NewState,
    ) -> None:
        """Make the state tensors that are missing."""
        for position, p in zip(found.positions, found.params, strict=True):
            if p.layout != torch.strided:
                raise Problem.LAYOUT.of(f"param of parameter {position} in group {number}", p.layout, torch.strided)
            self._check_state(number, position, rule, self._own(rule, self.state.get(p, {})))
            for name in names:
                if self.state.get(p, {}).get(name) is None:
                    new_state.set(p, name, rule.zero_state(name, p, group))
                    if name in rule.signed:
                        new_state.set(p, scale_of(name), rule.first_scale(name, p, group))

    @staticmethod
    def _own(rule: Rule, state: Mapping[str, Any]) -> dict[str, Any]:
        """What is of our rules: a wrapper may keep something of its own there before the first step."""
        return {name: value for name, value in state.items() if name in OWN_STATES or name in rule.states}

    def _check_state(self, number: int, position: int, rule: Rule, state: Mapping[str, Any]) -> None:
        """Raise KeyError for a state that has begun, but without all that the rule needs."""
        missing = lacking(rule, state)
        if missing and not set(state) <= {*missing, *rule.early, *COMPENSATIONS.values()}:
            raise KeyError(
                f"state of parameter {position} in group {number} has {', '.join(map(str, state))}, but no "
                f"{', '.join(missing)}: it is another rule's, or of before an option was chosen"
            )

    def _saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for number, (saved, group) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=True)):
            coded = [i for i, p in enumerate(group["params"]) if shards.is_distributed(p) and self._has_codes(p)]
            for part, positions in self._parts(number, group, coded) if coded else ():
                rule = self.rule(part)
                for key in (saved["params"][position] for position in positions):
                    state_dict["state"][key] = for_other_ranks(state_dict["state"][key], rule)
        return state_dict

    def _has_codes(self, p: Tensor) -> bool:
        state = self.state.get(p, {})
        return any(scale_of(name) in state for name in state)

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        states = dict(state_dict["state"])
        for number, saved in enumerate(state_dict["param_groups"]):
            keys = saved["params"]
            group = self.param_groups[number] if number < len(self.param_groups) else {"params": []}
            params = group["params"]
            names = {"param_names": group["param_names"]} if "param_names" in group else {}
            loaded = {**self._group_defaults(saved), **names, **saved, "params": params}
            for part, positions in self._parts(number, loaded, range(len(keys))):
                rule = self.rule(part)
                for position in positions:
                    state = own_form(states.get(keys[position], {}), rule)
                    self._check_state(number, position, rule, state)
                    if state and position < len(params):
                        states[keys[position]] = as_kept(state, rule, params[position], part)
        return {**state_dict, "state": states}

    def _convert_states(self, new_state: NewState) -> bool:
        """Convert the states of parameters that have become float64 or float32, as loading does; whether any had."""
        converted = False
        for group in self.param_groups:
            for p in group["params"]:
                for name, value in tuple(self.state.get(p, {}).items()):
                    other = DOUBLE if p.dtype in SINGLE else SINGLE if p.dtype in DOUBLE else ()
                    if name not in (*SCALARS, *self._numbers) and isinstance(value, Tensor) and value.dtype in other:
                        new_state.set(p, name, self._loaded(name, value, p, group))
                        converted = True
        return converted
