"""Which parameters of a model FRUGAL projects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ferrostep.optim.roles import EMBEDDINGS, NORMS, Named
from ferrostep.optim.routing import Route, RoutedGroups, check_patterns, owners_and_reasons
from ferrostep.suggestions import suggesting

ALL_LINEAR = ("all-linear", "all_linear")
"""What transformers' ``optim_target_modules`` calls all linear layers."""


class FrugalParamGroups(RoutedGroups):
    """Parameter groups for :class:`ferrostep.optim.FRUGAL`; printed, a table of who goes where.

    Args:
        groups: the parameter groups.
        routes: for each parameter its name, shape, kind, and why.

    Raises:
        TypeError: one of both is nothing to go through.

    Example:
        >>> print(frugal_param_groups(nn.Linear(4, 2)))
        parameter  shape  optimizer   because
        weight     2x4    projected   hidden matrix
        bias       2      state-full  bias, position or token
    """


@suggesting
def frugal_param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    target: str | Sequence[str] | None = None,
    always_state_free: Sequence[str] = (),
) -> FrugalParamGroups:
    """Route a model's parameters: hidden matrices are projected; embeddings, output layers and norms keep all state.

    Args:
        model: a module, or ``(name, parameter)`` pairs as from ``named_parameters(remove_duplicate=False)``.
        target: the layers whose matrices are projected, as transformers' ``optim_target_modules``: names that are part
            of a module's name or regular expressions for all of it; one string is a regular expression, or
            ``"all-linear"``. Embeddings and norms are none. Default None: the hidden matrices, as
            :func:`muon_param_groups` finds them.
        always_state_free: the same for layers whose matrices never have state: a group with ``density=0``.

    The parameters may have any shape and dtype; tied ones come once, under their first name, and complex ones keep all
    state.

    Returns:
        Up to three groups, each with its parameters' names; ``print`` shows the routing, ``routes`` holds it.
        Parameters that do not require a gradient are left out.

    Raises:
        ValueError: no parameters, a ``target`` or an entry of ``always_state_free`` that matches no matrix, or an
            impossible regular expression.
        TypeError: ``always_state_free`` is a string.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 10))
        >>> print(frugal_param_groups(model, target=["1"]))
        parameter  shape  optimizer   because
        0.weight   10x4   state-full  embedding
        1.weight   4x4    projected   target '1'
        1.bias     4      state-full  bias, position or token
        2.weight   4      state-full  norm
        2.bias     4      state-full  norm
        3.weight   10x4   state-full  last layer
        3.bias     10     state-full  bias, position or token
    """
    check_patterns(always_state_free=always_state_free, **({} if isinstance(target, str) else {"target": target or ()}))
    owners, reasons = owners_and_reasons(model)
    free, wanted = Targets("always_state_free", always_state_free), Targets("target", target)
    params: dict[str, list[tuple[str, Tensor]]] = {"projected": [], "state-free": [], "state-full": []}
    routes = []
    for p, owned in owners.items():
        if p.requires_grad:
            kind, reason = kind_of(owned, reasons[p], free, wanted)
            params[kind].append((owned[0].name, p))
            routes.append(Route(owned[0].name, tuple(p.shape), kind, reason))
    if not routes:
        raise ValueError("frugal_param_groups got no parameters that require a gradient")
    free.check_all_found()
    wanted.check_all_found()
    made: list[dict[str, Any]] = [
        {"params": params["projected"], "projectable": True},
        {"params": params["state-free"], "projectable": True, "density": 0.0},
        {"params": params["state-full"], "projectable": False},
    ]
    return FrugalParamGroups((group for group in made if group["params"]), routes)


class Targets:
    """Names of layers, as transformers reads ``optim_target_modules``."""

    def __init__(self, argument: str, patterns: str | Sequence[str] | None) -> None:
        self.argument = argument
        self.is_given = patterns is not None
        self.is_one = isinstance(patterns, str)
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns or ())
        self.found: set[str] = set()
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"Invalid {argument}: {pattern!r} is no regular expression ({error})") from error

    def of(self, owned: Sequence[Named]) -> str:
        """The first pattern that a layer's name, any of those it has, matches; empty if none."""
        layers = [".".join(each.parts[:-1]) for each in owned]
        for pattern in self.patterns:
            for layer, each in zip(layers, owned, strict=True):
                is_part = not self.is_one and pattern in layer
                is_linear = self.is_one and pattern in ALL_LINEAR and isinstance(each.module, nn.Linear)
                if is_part or is_linear or re.fullmatch(pattern, layer):
                    self.found.add(pattern)
                    return pattern
        return ""

    def check_all_found(self) -> None:
        """Raise ValueError for a pattern that no matrix's layer matches."""
        for pattern in self.patterns:
            if pattern not in self.found:
                raise ValueError(f"Invalid {self.argument}: {pattern!r} matches no layer with a matrix")


def kind_of(owned: Sequence[Named], reason: str, free: Targets, wanted: Targets) -> tuple[str, str]:
    """What a parameter, with all its names, is to FRUGAL, and why."""
    if owned[0].p.ndim < 2 or owned[0].p.is_complex() or any(map(is_no_factor, owned)):
        return "state-full", reason or "no matrix"
    pattern = free.of(owned)
    if pattern:
        wanted.of(owned)
        return "state-free", f"always_state_free {pattern!r}"
    if not wanted.is_given:
        return ("state-full", reason) if reason else ("projected", "hidden matrix")
    pattern = wanted.of(owned)
    return ("projected", f"target {pattern!r}") if pattern else ("state-full", reason or "no target")


def is_no_factor(each: Named) -> bool:
    """Whether a parameter belongs to an embedding or a norm."""
    return isinstance(each.module, EMBEDDINGS) or NORMS.search(type(each.module).__name__) is not None
