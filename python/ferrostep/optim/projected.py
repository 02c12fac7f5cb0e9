"""Parameters that are put back onto a set after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ferrostep import projections
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.optim import shards
from ferrostep.optim.base import is_fake
from ferrostep.reference import checks

Projection = str | Sequence[Any] | Callable[[Tensor], Any]


class Named(NamedTuple):
    """A projection that has a name here."""

    function: Callable[..., Tensor]
    """In place, with numbers as its arguments."""
    has_rows: bool
    """Whether it projects rows along the last dimension, rather than numbers by themselves."""
    numbers: Sequence[str] = ()
    """What its arguments are called."""
    has_defaults: bool = True


NAMED: Mapping[str, Named] = MappingProxyType(
    {
        "box": Named(projections.box_, False, ("lo", "hi"), has_defaults=False),
        "l1_ball": Named(projections.l1_ball_, True, ("r",)),
        "l2_ball": Named(projections.l2_ball_, True, ("r",)),
        "linf_ball": Named(projections.linf_ball_, False, ("r",)),
        "nonnegative": Named(projections.nonnegative_, False),
        "simplex": Named(projections.simplex_, True, ("s",)),
    }
)


NOT_IN_PLACE = MappingProxyType(
    {getattr(projections, name[:-1]): name for name in projections.__all__ if name.endswith("_")}
)
"""Functions that return what they project and leave the parameter, with the name of their form in place."""

RESTS = ("kahan_comp", "master_low")
"""States with what rounding has taken of a parameter, to which it is added back."""


def check_projection(group: Mapping[str, Any]) -> None:
    """Raise for a ``projection`` of a parameter group that is none, or not one for its parameters."""
    projection = group["projection"]
    if projection is None:
        return
    if group["differentiable"]:
        raise RuntimeError("projection does not support `differentiable`")
    if callable(projection):
        function = projection.func if isinstance(projection, partial) else projection
        for leaves, in_place in NOT_IN_PLACE.items():
            if function is leaves:
                raise ValueError(f"projection is {in_place[:-1]}, which leaves the parameter; expected {in_place}")
        if shards.are_among(group["params"]):
            raise RuntimeError(f"projection is a function, which DTensors exclude; expected one of {', '.join(NAMED)}")
        return
    named, arguments = _parse(projection)
    named.function(torch.empty(0, 1), *arguments)
    for i, p in enumerate(group["params"]):
        if p.numel():
            _check_parameter(f"parameter {i}", p, named)


def _check_parameter(name: str, p: Tensor, named: Named) -> None:
    checks.readable(name, p)
    if not named.has_rows:
        return
    checks.rows(name, p, -1)
    if shards.is_distributed(p) and any(place.is_shard(p.ndim - 1) for place in p.placements):
        raise RuntimeError(f"{name} is a DTensor whose rows are split ({p.placements}), which projection cannot gather")


def _parse(projection: Any) -> tuple[Named, Sequence[Any]]:
    """The projection that a name stands for, or a tuple of a name and numbers."""
    if isinstance(projection, str):
        name, arguments = projection, []
    elif isinstance(projection, Sequence) and projection and isinstance(projection[0], str):
        name, *arguments = projection
    else:
        raise wrong_kind("projection", projection, "a name, a tuple of a name and numbers, or a function")
    if name not in NAMED:
        raise wrong_choice("projection", name, *NAMED)
    named = NAMED[name]
    if len(arguments) > len(named.numbers) or (len(arguments) < len(named.numbers) and not named.has_defaults):
        most = "at most " if named.has_defaults else ""
        expected = f"{most}{len(named.numbers)} ({', '.join(named.numbers)})" if named.numbers else "none"
        raise Problem.COUNT.of(f"projection {name!r}", f"{len(arguments)} numbers", expected)
    for number in arguments:
        if not isinstance(number, (int, float)):
            raise wrong_kind("projection's argument", number, "a number")
    return named, arguments


def projected(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> list[Callable[[], None]]:
    """What is to be done after a step, for parameters with a gradient; raises for what has become impossible.

    Each may be called again where an interrupt has ended it.
    """
    todo: list[Callable[[], None]] = []
    for group in groups:
        if group["projection"] is None:
            continue
        check_projection(group)
        function = _function(group["projection"])
        for p in group["params"]:
            if p.grad is not None and shards.local(p).numel() and not p.is_meta and not is_fake(p):
                todo.append(partial(_project, function, p, state, []))
    return todo


def _function(projection: Projection) -> Callable[[Tensor], Any]:
    if callable(projection):
        return projection
    named, arguments = _parse(projection)

    def in_place(p: Tensor) -> None:
        named.function(shards.local(p), *arguments)

    return in_place


@torch.no_grad()
def _project(
    function: Callable[[Tensor], Any], p: Tensor, state: Mapping[Tensor, dict[str, Any]], kept: list[Tensor]
) -> None:
    """Project a parameter. Where that moves it from what was ``kept``, what rounding has taken of its number goes."""
    own = state.get(p, {})
    rests = [shards.local(own[name]) for name in RESTS if own.get(name) is not None]
    if rests and not kept:
        kept.append(shards.local(p).clone())
    version = checks.version(p)
    result = function(p)
    if isinstance(result, Tensor) and result is not p and result.shape == p.shape and checks.version(p) == version:
        raise RuntimeError("projection returned a new tensor, expected a function that changes the parameter in place")
    for rest in rests:
        rest.masked_fill_(shards.local(p).ne(kept[0]), 0)
