"""FRUGAL: a rule with states for a part of each matrix, and one without for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import _core, reference
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import whole
from ferrostep.optim import selections, shards
from ferrostep.optim.adamw import ADAMW
from ferrostep.optim.arguments import (
    AdamsLearningRate,
    AtLeastZero,
    Betas,
    Epsilon,
    arguments_of,
    check_arguments,
    positive,
)
from ferrostep.optim.base import NewState, scale_of, state_dtype, zero_scale
from ferrostep.optim.gathered import Found, Gathered
from ferrostep.optim.lion import LION
from ferrostep.optim.options import Options, check_real
from ferrostep.optim.rules import ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.taken import Taken

INNER = {"adamw": ADAMW, "lion": LION, "sgdm": ElementwiseRule("AveragedDescent", reference.averaged_descent)}
"""The rules with states."""
STATE_FREE = {
    "sign": ElementwiseRule("SignDescent", reference.sign_descent),
    "sgd": ElementwiseRule("Descent", reference.descent),
    "none": ElementwiseRule("OnlyDecay", reference.only_decay),
}
"""Those without."""
CHOICES = ("indices", "basis")
"""The states that say what is selected."""
KINDS = {"columns": "columns", "rows": "rows", "randk": "entries"}
"""By the selection, what Rust calls it."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""The states of the inner rules."""
OWN = (*MOMENTS, *CHOICES, "refresh")
"""What a parameter loses that has no states any more."""
CHOSEN_BY = (
    "density",
    "update_gap",
    "selection",
    "state_free",
    "state_free_lr_scale",
    "projected_lr_scale",
    "reset_state",
    "inner",
    "block_order",
    "proj_side",
    "projectable",
)
"""The arguments that Rust does not see as they are: whoever has written one into a group hears of it here."""
COUNTERS = {"refreshes": 0, "steps_left": 0}
"""What a group knows of its refreshes: how many there were, and the steps until the next."""


def check_density(name: str, value: float, _group: Mapping[str, Any]) -> float:
    """The value; ValueError unless it lies from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise Problem.NUMBER.of(name, value, "a number from 0 to 1")
    return value


def check_gap(name: str, value: int, _group: Mapping[str, Any]) -> int:
    """The value; ValueError unless it is at least 1."""
    return whole(name, value, 1)


Density: TypeAlias = Annotated[float, check_density]
Gap: TypeAlias = Annotated[int, check_gap]


class FRUGAL(RuleOptimizer):
    r"""FRUGAL (Zmushko et al. 2024, arXiv 2411.07837, Algorithm 1): full-rank steps with a fraction of the state.

    .. code-block:: text

        every update_gap steps:  choose S anew;  m, v, t <- 0 with reset_state
        p <- p * (1 - lr * weight_decay)
        on S:       AdamW's step with m, v and t, without decay, times projected_lr_scale
        elsewhere:  p <- p - lr * projected_lr_scale * state_free_lr_scale * sign(g)

    S is a share ``density`` of each matrix (``selection``), and m and v are kept for S alone. In the first step after a
    switch AdamW moves by ``lr`` as well, hence one ``lr`` for both.

    Parameters of fewer than 2 dimensions, and the groups that say ``projectable=False`` (embeddings, output layers,
    norms: :func:`frugal_param_groups` makes them), are updated by the inner rule with all of their state: with AdamW as
    ``torch.optim.AdamW``.

    What S is follows from ``seed``, the number of refreshes and the parameter's place among the groups alone: the same
    on all ranks, and torch's random numbers are not touched. A parameter that has no gradient in a step is left alone;
    if it was one of a switch, it switches at its next gradient. Steps are counted by group.

    Other methods are settings of this one: GaLore (arXiv 2403.03507) is ``selection="svd", state_free="none",
    reset_state=False, projected_lr_scale=0.25``, BAdam (arXiv 2404.02827) ``selection="block", state_free="none"``, and
    ``density=0`` is signSGD.

    Args:
        params: parameters or parameter groups, of dtype float32, float64, bfloat16 or float16; complex ones where they
            are not projectable. Those of more than 2 dimensions are matrices of the first against all others.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates of the inner rule, each in [0, 1). Default (0.9, 0.999); Lion's are (0.9, 0.99).
        eps: AdamW's, added to the denominator. Default 1e-8.
        weight_decay: decoupled, times ``lr`` without the scales. Default 0.
        density: the share of elements with state, from 0 to 1; with ``selection="block"`` the share of tensors. At
            least one column, row, ... is selected, unless it is 0. Default 0.25.
        update_gap: steps from one choice of S to the next. Default 200.
        selection: ``"columns"`` (default), ``"rows"`` (the fastest), ``"randk"`` (single elements), or ``"block"``
            (whole tensors take turns); ``"svd"``, the coordinates along the first singular directions of the gradient
            of the switch, and ``"random"``, along orthonormal directions at random, which run in plain torch.
        state_free: the step elsewhere: ``"sign"`` (default), ``"sgd"`` (the gradient for its sign) or ``"none"``.
        state_free_lr_scale: see above. Default 1; 0 is ``"none"``.
        projected_lr_scale: of the learning rate for projectable parameters. Default 1.
        reset_state: forget m, v and t at a switch; ``"block"`` always does. Default True. Without, moments of one
            column go on with the gradients of another.
        inner: ``"adamw"`` (default), ``"lion"``, or ``"sgdm"``, which steps along ``m <- beta1 * m + (1 - beta1) * g``.
        block_order: in which ``"block"`` takes turns: ``"random"`` (default), ``"ascending"``, ``"descending"``, or
            ``"mirror"`` (first, last, second, ...).
        proj_side: on which side of a matrix the basis of ``"svd"`` and ``"random"`` is: ``"right"``, of rows,
            ``"left"``, of columns, ``"std"`` (default), on the right where a matrix is at least as high as wide, or
            ``"reverse_std"``, on the other one, with smaller states and a larger basis. Its size is always a share of
            the smaller side.
        projectable: whether a group's parameters of 2 or more dimensions are projected; groups may say
            ``is_proj_params`` for it. Default True.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`. ``state_dtype="int8"`` is for the states of whole
            tensors: those of selected elements stay numbers, and those of "block" become codes.

    State per parameter: ``step``, ``exp_avg`` and, with AdamW, ``exp_avg_sq``, of the selected elements: 8 bytes in
    float32 for each of these, for ``density`` of the elements, in matrices of (rows, selected), (selected, columns) or
    (selected,); ``indices``, which these are: int32 numbers, with ``"randk"`` a bit for each element; or ``basis``,
    with ``"svd"`` and ``"random"``: (selected, columns), or (rows, selected) on the left, 4 bytes for
    each number; ``refresh``, the number of the choice. A group counts its ``refreshes`` and ``steps_left``. State dicts
    of ``torch.optim.AdamW`` load for what is not projectable.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.
        RuntimeError: complex parameters that are projectable.
        NotImplementedError: a DTensor of which a part is to be selected; take ``selection="block"``.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2, 4))
        >>> p.grad = torch.tensor([[1.0, -2.0, 0.5, 0.0], [3.0, 0.1, -0.2, 4.0]])
        >>> optimizer = FRUGAL([p], lr=0.1)
        >>> optimizer.step()
        >>> p.detach()
        tensor([[-0.1000,  0.1000, -0.1000,  0.0000],
                [-0.1000, -0.1000,  0.1000, -0.1000]])
        >>> optimizer.state[p]["exp_avg"].shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: AdamsLearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.0,
        *,
        density: Density = 0.25,
        update_gap: Gap = 200,
        selection: Literal["columns", "rows", "randk", "svd", "random", "block"] = "columns",
        state_free: Literal["sign", "sgd", "none"] = "sign",
        state_free_lr_scale: AtLeastZero = 1.0,
        projected_lr_scale: Annotated[float, positive()] = 1.0,
        reset_state: bool = True,
        inner: Literal["adamw", "lion", "sgdm"] = "adamw",
        block_order: Literal["random", "ascending", "descending", "mirror"] = "random",
        proj_side: Literal["std", "reverse_std", "left", "right"] = "std",
        projectable: bool = True,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _chosen_by = MappingProxyType({name: each for name, each in _arguments.items() if name in CHOSEN_BY})

    _counters: dict[int, dict[str, int]]
    """What groups count when this update is done."""
    _counted: set[int]
    """The groups that have counted this step."""
    _dropped: list[tuple[Tensor, str]]
    """The states that fall away when this update is done."""

    def refresh(self) -> None:
        """Let every group choose anew in its next step.

        Raises:
            RuntimeError: never.

        Example:
            >>> p = torch.nn.Parameter(torch.zeros(2, 4))
            >>> optimizer = FRUGAL([p])
            >>> optimizer.refresh()
            >>> optimizer.param_groups[0]["steps_left"]
            0
        """
        for group in self.param_groups:
            group["steps_left"] = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Raises as the constructor."""
        if isinstance(param_group, dict):
            param_group = {**COUNTERS, **param_group}
            if "is_proj_params" in param_group:
                param_group.setdefault("projectable", param_group.pop("is_proj_params"))
        super().add_param_group(param_group)

    def _group_defaults(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**self.defaults, **COUNTERS}

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["selection"] in selections.SUBSPACES and group["backend"] == "rust":
            raise RuntimeError(f"selection={group['selection']!r} runs in plain torch and excludes backend='rust'")
        if group["projectable"]:
            projected = [p for p in group["params"] if p.ndim > 1]
            check_real(projected, "FRUGAL, of what is projectable,")
            is_split = 0 < group["density"] < 1 and group["selection"] != "block"
            if is_split and shards.are_among(projected):
                raise NotImplementedError(
                    f"selection={group['selection']!r} needs the whole matrix, of which a DTensor has a part; take "
                    "selection='block', or projectable=False in a group"
                )

    def _is_for_plain_torch(self, group: dict[str, Any]) -> bool:
        is_in_subspace = group["projectable"] and group["selection"] in selections.SUBSPACES
        return is_in_subspace or super()._is_for_plain_torch(group)

    def rule(self, group: dict[str, Any]) -> Rule:
        """The rule for parameters of a group of which a part is selected, or for those that it is told the kind of."""
        kind = group.get("kind") or ("selected" if group["selection"] != "block" else "active")
        if not group["projectable"] or kind == "whole":
            return inner_rule(group)
        if kind == "selected":
            return selected_rule(group)
        return active_rule(group) if kind == "active" else state_free_rule(group)

    def _rules(self, group: dict[str, Any]) -> Sequence[Rule]:
        return [self.rule({**group, "kind": kind}) for kind in ("whole", "selected", "active")]

    def _parts(
        self, number: int, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        if not group["projectable"]:
            yield {**group, "kind": "whole"}, positions
            return
        kinds = self._kinds(number, group)
        # Random numbers follow from the seed and the step, which begins anew with each refresh.
        seed = (group["seed"] + group["refreshes"] * 0xD1B5_4A32_D192_ED03) % 2**64
        for kind in dict.fromkeys(kinds[i] for i in positions):
            part = {**group, "kind": kind, "seed": group["seed"] if kind == "whole" else seed}
            yield part, [i for i in positions if kinds[i] == kind]

    def _kinds(self, number: int, group: dict[str, Any]) -> list[str]:
        """What each parameter of a projectable group is: ``"whole"``, ``"active"``, ``"selected"`` or ``"free"``."""
        params = self.param_groups[number]["params"]
        projected = [i for i, p in enumerate(params) if p.ndim > 1]
        kinds = ["whole"] * len(params)
        if group["selection"] == "block":
            active = selections.active_tensors(len(projected), group)
            for place, i in enumerate(projected):
                kinds[i] = "active" if place in active else "free"
            return kinds
        for i in projected:
            of = selections.extent(params[i], group["selection"])
            selected = selections.count(of, group["density"])
            kinds[i] = "free" if group["density"] == 0 else "active" if selected == of else "selected"
        return kinds

    def _gather_all(self, new_state: NewState) -> Taken:
        self._counters, self._dropped = {}, []
        if not self._is_in_round:
            self._counted = set()
        return super()._gather_all(new_state)

    def _gather(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> Iterator[Gathered]:
        check_arguments(self._chosen_by, dict(group))
        if number not in self._counted:
            left = group["steps_left"] - 1
            counters = {"steps_left": left} if left >= 0 else {"steps_left": group["update_gap"] - 1}
            counters["refreshes"] = group["refreshes"] + (left < 0)
            self._counters[number] = counters
            group = {**group, **counters}
        return super()._gather(number, group, found, new_state)

    def _gather_part(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> list[Gathered]:
        kind = group["kind"]
        for position, p, grad in zip(*found, strict=True):
            state = self.state.get(p, {})
            self._dropped += [(p, name) for name in not_of(group) if name in state]
            if kind in ("selected", "active") and not is_current(state, p, group):
                if grad.layout != torch.strided:  # of which nothing can be chosen
                    name = f"grad of parameter {position} in group {number}"
                    raise Problem.LAYOUT.of(name, grad.layout, torch.strided)
                self._renew(p, grad, group, position | number << 32, new_state)
        return super()._gather_part(number, group, found, new_state)

    def _renew(self, p: Tensor, grad: Tensor, group: dict[str, Any], number: int, new_state: NewState) -> None:
        """Select anew for a parameter, with states as they are before the first step."""
        rule, state = self.rule(group), self.state.get(p, {})
        is_kept = not group["reset_state"] and group["selection"] != "block"
        for name in (*rule.states, "step"):
            if name in CHOICES:
                new_state.set(p, name, selections.choose(p, grad, group, number))
            elif name == "step":
                if rule.counts_steps and not (is_kept and name in state):
                    new_state.set(p, name, rule.zero_state(name, p, group))
            elif not (is_kept and name in state and list(state[name].shape) == list(rule.state_shape(name, p))):
                new_state.set(p, name, zeros_of(rule, name, p, group))
                if name in rule.signed:
                    new_state.set(p, scale_of(name), zero_scale(name, p, group))
        new_state.set(p, "refresh", group["refreshes"])

    def _bytes_besides(self) -> int:
        # At a switch new states lie beside the old ones until the step ends.
        found = 0
        for group in self.param_groups:
            if group["selection"] == "block" and group["projectable"]:
                found += self._bytes_of_turns(group)
                continue
            is_kept = not group["reset_state"]
            names = CHOICES if is_kept else (*CHOICES, *(each for name in MOMENTS for each in (name, scale_of(name))))
            for state in (self.state.get(p, {}) for p in group["params"]):
                if "refresh" in state:
                    found += sum(state[name].nbytes for name in names if name in state)
        return found

    def _bytes_of_turns(self, group: dict[str, Any]) -> int:
        """The most bytes of the states of tensors that take turns in a switch, the first ones' apart."""
        projected = [p for p in group["params"] if p.ndim > 1]
        rule = active_rule(group)
        sizes = [sum(new.nbytes for name in rule.states for new in new_states(rule, name, p, group)) for p in projected]
        chosen = selections.count(len(projected), group["density"])
        if group["block_order"] == "random":  # the largest may come twice
            most = 2 * sum(sorted(sizes, reverse=True)[:chosen])
        else:
            turns = [{**group, "refreshes": number} for number in range(1, len(sizes) + 2)]
            active = [sum(sizes[i] for i in selections.active_tensors(len(sizes), turn)) for turn in turns]
            most = max(map(sum, pairwise(active)), default=0)
        return most - sum(size for p, size in zip(projected, sizes, strict=True) if "refresh" in self.state.get(p, {}))

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        for number, counters in self._counters.items():
            self.param_groups[number].update(counters)
        self._counted.update(self._counters)
        for p, name in self._dropped:
            self.state[p].pop(name, None)
            self.state[p].pop(scale_of(name), None)
        self._dropped = []

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        sizes = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            return state_dict  # torch refuses it
        both = zip(state_dict["param_groups"], self.param_groups, strict=True)  # torch's AdamW does not project
        groups = [{"projectable": own["projectable"], **saved} for saved, own in both]
        return super()._adopted({**state_dict, "param_groups": groups})

    def _loaded(self, name: str, value: Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
        if name in CHOICES:
            return value.detach().to(p.device, copy=True)
        if name in OWN and value.shape != p.shape and value.layout == torch.strided and not value.is_meta:
            return value.detach().to(p.device, plain_state_dtype(name, p, group), copy=True)
        return super()._loaded(name, value, p, group)


def is_current(state: Mapping[str, Any], p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether a parameter's selection is that of the group's last refresh and density."""
    if state.get("refresh") != group["refreshes"]:
        return False
    if group["kind"] != "selected":
        return not any(name in state for name in CHOICES)
    selection, own = group["selection"], (group["density"], group["proj_side"])
    chosen = state.get(choice_name(group))
    if not isinstance(chosen, Tensor) or chosen.shape != selections.choice_shape(p, selection, *own):
        return False
    shape = getattr(state.get("exp_avg"), "shape", None)
    if shape == selections.state_shape(p, selection, *own):
        return True
    others = [selections.state_shape(p, each, *own) for each in KINDS]  # as many rows as columns, in a square matrix
    return shape not in others


def not_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The states that a parameter of this kind no longer has."""
    if group["kind"] == "selected":
        return tuple(name for name in CHOICES if name != choice_name(group))
    return {"free": OWN, "active": CHOICES}.get(group["kind"], ())


def choice_name(group: Mapping[str, Any]) -> str:
    """The state that says what is selected."""
    return "basis" if group["selection"] in selections.SUBSPACES else "indices"


def zeros_of(rule: Rule, name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    """A state as it is before the first step."""
    if name not in rule.shapes:
        return rule.zero_state(name, p, group)
    return torch.zeros(rule.state_shape(name, p), dtype=plain_state_dtype(name, p, group), device=p.device)


def new_states(rule: Rule, name: str, p: Tensor, group: dict[str, Any]) -> Iterator[Tensor]:
    """A state of a whole tensor as it is before the first step, with its scale where it is codes."""
    own = (rule.zero_state(name, p, group), zero_scale(name, p, group) if name in rule.signed else None)
    yield from (new for new in own if new is not None)


def plain_state_dtype(name: str, p: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The dtype of a state of selected elements, which is never codes."""
    chosen = state_dtype(name, p, group)
    return torch.float32 if chosen == torch.uint8 else chosen


def scaled(group: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A group with another learning rate but the same decay."""
    return {**group, "lr": group["lr"] * scale, "weight_decay": group["weight_decay"] / scale}


def inner_rule(group: Mapping[str, Any]) -> Rule:
    """The rule with states, for all of a parameter."""
    return INNER[group["inner"]].of({**group, "decoupled_weight_decay": True})


def active_rule(group: Mapping[str, Any]) -> Rule:
    """The inner rule for a whole parameter."""
    return inner_rule(scaled(group, group["projected_lr_scale"]))


def state_free_rule(group: Mapping[str, Any]) -> Rule:
    """The rule without states for a whole parameter."""
    scale = group["projected_lr_scale"] * group["state_free_lr_scale"]
    if scale == 0 or group["state_free"] == "none":
        return STATE_FREE["none"].of(dict(group))
    return STATE_FREE[group["state_free"]].of(scaled(group, scale))


def selected_rule(group: Mapping[str, Any]) -> Rule:
    """Both rules, for a parameter of which some elements are selected."""
    beta1, beta2 = group["betas"]
    names = ("lr", "eps", "weight_decay", "inner", "state_free", "state_free_lr_scale", "projected_lr_scale")
    hyperparameters = {name: group[name] for name in (*names, "selection", "proj_side", "maximize")}
    states = INNER[group["inner"]].states
    own = {"selection": group["selection"], "density": group["density"], "side": group["proj_side"]}
    of, chosen = partial(selections.state_shape, **own), partial(selections.choice_shape, **own)
    return Rule(
        native_rule,
        reference.frugal,
        (*states, choice_name(group)),
        {"beta1": beta1, "beta2": beta2, **hyperparameters},
        counts_steps=INNER[group["inner"]].counts_steps,
        shapes={**dict.fromkeys(states, of), choice_name(group): chosen},
        whole_numbers={"indices": selections.DTYPES.get(group["selection"], torch.int32)},
    )


def native_rule(*, beta1: float, beta2: float, **group: Any) -> _core.SelectedRule:
    """The Rust rule."""
    group = {**group, "betas": (beta1, beta2)}
    inner, rest = active_rule(group).native(), state_free_rule(group)
    is_idle = rest.kernel == "OnlyDecay" and group["weight_decay"] == 0
    return _core.SelectedRule(inner, None if is_idle else rest.native(), KINDS[group["selection"]])
