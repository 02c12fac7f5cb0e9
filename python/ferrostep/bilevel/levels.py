"""What the optimizers of two levels have in common: their groups, closures, and points to come back to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ferrostep.curvature.products import first_derivatives, listed_parameters
from ferrostep.errors import Problem, wrong_kind
from ferrostep.gradients.lists import gram
from ferrostep.reference import checks

Closure: TypeAlias = Callable[[], Tensor]
Gradient: TypeAlias = list[Tensor | None]


class Losses(NamedTuple):
    """The losses of a step, before it changed the upper parameters."""

    upper: Tensor
    lower: Tensor


def parameters(name: str, given: Iterable[Tensor]) -> list[Tensor]:
    """The parameters of a level; refuse what cannot be one."""
    try:
        params = listed_parameters(given)
    except (TypeError, ValueError) as error:
        error.args = (str(error).replace("params", name, 1),)
        raise
    for i, p in enumerate(params):
        if p.dtype not in (torch.float32, torch.float64):
            raise Problem.DTYPE.of(f"{name}[{i}]", p.dtype, "float32 or float64")
        if not p.requires_grad or not p.is_leaf:
            raise ValueError(f"{name}[{i}] is no leaf that requires gradients, expected a parameter")
        if any(stride == 0 < size - 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
            what = "elements that share memory (an expanded view?), expected one place for each"  # as in Rust
            raise ValueError(f"{name}[{i}] has {what}")
    return params


def both(upper: Iterable[Tensor], lower: Iterable[Tensor], names: tuple[str, str]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of both levels; refuse one that is in both."""
    uppers, lowers = parameters(names[0], upper), parameters(names[1], lower)
    for i, p in enumerate(uppers):
        for j, other in enumerate(lowers):
            if p is other:
                raise ValueError(f"{names[0]}[{i}] is {names[1]}[{j}], expected each parameter in one level")
    return uppers, lowers


def value_of(name: str, closure: Closure) -> Tensor:
    """What a closure returns, a scalar with its graph; errors name it."""
    if not callable(closure):
        raise wrong_kind(name, closure, "a function that returns the loss")
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, Tensor):
        raise wrong_kind(f"what {name} returned", loss, "a torch.Tensor with one element")
    if loss.numel() != 1:
        raise Problem.SHAPE.of(f"what {name} returned", list(loss.shape), "one element")
    if not loss.requires_grad:
        raise RuntimeError(
            f"what {name} returned has no graph: compute it with gradients enabled, and do not detach it"
        )
    return loss


def gradient(name: str, loss: Tensor, params: Sequence[Tensor], **options: Any) -> Gradient:
    """Of a loss, with None where it has none; errors name it."""
    try:
        return first_derivatives(loss, params, **options)
    except RuntimeError as error:
        error.args = (str(error).replace("the loss", name, 1),)
        raise


def are_finite(tensors: Sequence[Tensor | None]) -> bool:
    """Whether no number of a list is NaN or infinite, nor its norm."""
    return math.isfinite(float(gram([tensors])[0, 0]))


class TwoLevelOptimizer(Optimizer):
    """An optimizer with a group of the upper level and one of the lower."""

    mark: str
    """What only this class has in the upper group, by which its state dicts are known."""
    own: tuple[str, ...] = ()
    """What a copy is to have besides groups and state: the user's optimizer or functions."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the two groups of the constructor; RuntimeError for any other."""
        if len(getattr(self, "param_groups", [])) == 2:
            raise RuntimeError(f"{type(self).__name__} has one group for each level, and takes no other")
        super().add_param_group(param_group)

    @property
    def upper(self) -> dict[str, Any]:
        """The group of the upper level."""
        return self.param_groups[0]

    @property
    def lower(self) -> dict[str, Any]:
        """The group of the lower level, whose ``lr`` is 0 and does not count, so that schedulers leave it alone."""
        return self.param_groups[1]

    def _check_writable(self) -> None:
        """Raise for parameters that a step could not write."""
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                checks.writable(f"{group['level']}_params[{i}]", p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class.

        Raises:
            ValueError: it has other groups, or groups of another class. Nothing has been changed then.
        """
        levels = [group.get("level") for group in state_dict["param_groups"]]
        if levels != ["upper", "lower"]:
            raise Problem.NUMBER.of("level of the groups", levels, ["upper", "lower"])
        if self.mark not in state_dict["param_groups"][0]:
            expected = f"a state dict of {type(self).__name__}"
            raise ValueError(f"the upper group of the state dict has no {self.mark!r}, expected {expected}")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep."""
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.own}}


@contextmanager
def restored_on_error(*tensors: Tensor, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Give tensors their numbers back if anything is raised; an interrupt may come up when all is done."""
    before = [each.detach().clone() for each in tensors]
    try:
        yield
    except BaseException:
        if not unless():
            put(tensors, before)
        raise


@contextmanager
def exchanged(params: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let parameters have the numbers of others, and then their own, which are given, again, every bit of them."""
    before = [p.detach().clone() for p in params]
    try:
        put(params, others)
        yield before
    finally:
        put(params, before)


@torch.no_grad()
def put(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Copy numbers to parameters."""
    for p, other in zip(params, others, strict=True):
        p.copy_(other)
