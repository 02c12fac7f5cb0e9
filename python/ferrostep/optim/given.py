"""Parameters as an optimizer is given them: a model, pairs with names, lists, groups; and their routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ferrostep.errors import Problem, wrong_kind
from ferrostep.optim.options import check_has_shape
from ferrostep.optim.roles import Named, layout_of, model_of, named_of, owners_of, reasons_by_name, reasons_by_shape
from ferrostep.optim.routing import Route, check_patterns, route_to


class GroupsOf(list[dict[str, Any]]):
    """Parameter groups of a model, whose modules tell what their parameters are."""

    def __init__(self, model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.model = model


class Given(NamedTuple):
    """A parameter group as it came, and what is known of its parameters."""

    group: dict[str, Any]
    """With tensors in a list, and their names where they came with names."""
    named: list[Named]
    """Empty for parameters without names."""
    model: nn.Module | None
    """The module whose parameters they are, where it is known."""


class Routed(NamedTuple):
    """Where the parameters of groups go."""

    routes: list[list[Route]]
    """For each group those of its parameters, in their order."""
    is_guess: bool
    """Whether Muon takes some because of nothing but their shape."""


def read_groups(params: Any, number: int = 0) -> list[Given]:
    """The parameter groups in what an optimizer may be given, of which the first has this number.

    A module, torch's own generator of its parameters that has not begun, or :class:`GroupsOf` say which module has
    which parameter.

    Raises:
        TypeError: something that is no parameter, or a set of them.
        ValueError: nothing, or only some of a group have names.
    """
    if isinstance(params, Tensor):
        raise wrong_kind("params", params, "a module, or parameters or parameter groups to go through")
    model = params if isinstance(params, nn.Module) else model_of(params)
    model = params.model if isinstance(params, GroupsOf) else model
    params = params.named_parameters() if isinstance(params, nn.Module) else params
    if not isinstance(params, Iterable):
        raise wrong_kind("params", params, "a module, or parameters or parameter groups to go through")
    listed = [{"params": params}] if isinstance(params, set) else list(params)
    if not listed:
        raise ValueError("optimizer got an empty parameter list")
    if not any(isinstance(each, dict) for each in listed):
        return [_read_group({"params": listed}, number, model)]
    return [_read_group(each, number + i, None if i else model) for i, each in enumerate(listed)]


def _read_group(group: Any, number: int, model: nn.Module | None = None) -> Given:
    if not isinstance(group, dict):
        raise wrong_kind(f"param group {number}", group, "a dict")
    if "params" not in group:
        raise KeyError(f"param group {number} has no 'params'")
    params = group["params"]
    if isinstance(params, set):
        raise wrong_kind(f"params of group {number}", params, "an ordered collection: the order decides")
    if isinstance(params, nn.Module):
        model, params = params, params.named_parameters()
    elif not isinstance(params, Iterable):
        raise wrong_kind(f"params of group {number}", params, "a module, or parameters to go through")
    model = model or model_of(params)
    listed = [params] if isinstance(params, Tensor) else list(params)
    pairs = [each for each in listed if isinstance(each, tuple) and len(each) == 2]
    tensors = [each[1] for each in pairs] if len(pairs) == len(listed) else listed
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            kind = torch.typename(p)
            raise TypeError(f"optimizer can only optimize Tensors, but param {i} of group {number} is {kind}")
        check_has_shape(f"param {i} of group {number}", p)
    names = [name for name, _ in pairs] or list(group.get("param_names", ()))
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise wrong_kind(f"name of param {i} of group {number}", name, "a str")
    if names and len(names) != len(tensors):
        raise Problem.COUNT.of(f"group {number}", f"{len(names)} names", f"one for each of {len(tensors)} params")
    made = {**group, "params": tensors, **({"param_names": names} if names else {})}
    named = map(Named, names, tensors[: len(names)]) if model is None else named_of(model)
    return Given(made, list(named), model)


def route_groups(
    given: Sequence[Given],
    defaults: Mapping[str, Any],
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    number: int = 0,
) -> Routed:
    """The routes of parameters in groups; the first group has this number, and ``defaults`` where it says nothing.

    Raises:
        ValueError, TypeError: a group's ``use_muon`` or ``ndim_policy`` is none, or Muon cannot take what it shall.
    """
    check_patterns(exclude=exclude, include=include)
    by_name = [each for group in given for each in group.named]
    reasons = reasons_by_name(by_name, [each.model for each in given if each.model is not None], exclude, include)
    known = {p: owned[0] for p, owned in owners_of(by_name).items()}
    unnamed = [p for each in given for p in each.group["params"] if p not in known]
    if unnamed and (exclude or include):
        raise ValueError("exclude and include are patterns of names, but parameters came without: give the model")
    reasons.update(zip(unnamed, reasons_by_shape(unnamed), strict=True))
    routed = Routed([], False)
    for i, (group, *_) in enumerate(given, number):
        use_muon, policy = _wishes(i, {**defaults, **group})
        named = [known.get(p) or Named(f"{i}.{j}", p) for j, p in enumerate(group["params"])]
        routes = [_route(i, j, each, reasons[each.p], use_muon, policy) for j, each in enumerate(named)]
        guessed = [route for each, route in zip(named, routes, strict=True) if each.p not in known and route.layout]
        routed = Routed([*routed.routes, routes], routed.is_guess or (use_muon is None and bool(guessed)))
    return routed


def _wishes(number: int, group: Mapping[str, Any]) -> tuple[bool | None, str | None]:
    """What a group says of its parameters, for itself."""
    use_muon, policy = group["use_muon"], group["ndim_policy"]
    if use_muon is not None and not isinstance(use_muon, bool):
        raise wrong_kind(f"use_muon of group {number}", use_muon, "a bool or None")
    if policy not in (None, "flatten", "batch"):
        raise Problem.NUMBER.of(f"ndim_policy of group {number}", repr(policy), "None, 'flatten' or 'batch'")
    return use_muon, policy


def _route(number: int, i: int, each: Named, reason: str, use_muon: bool | None, policy: str | None) -> Route:
    layout = layout_of(each, policy) if each.p.ndim > 1 else None
    if use_muon and layout is None:
        where = f"param {i} of group {number} ({each.name})"
        expected = "a matrix, as the group says use_muon=True" + " and no ndim_policy" * (each.p.ndim > 1)
        raise Problem.SHAPE.of(where, list(each.p.shape), expected)
    if use_muon is False:
        return route_to(each, None, "the group says use_muon=False")
    if use_muon or (layout and not reason):
        return route_to(each, layout, "")
    return route_to(each, None, reason or f"{each.p.ndim} dimensions, but no convolution")
