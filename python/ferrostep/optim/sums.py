"""What a step knows before it changes anything: the norm of all gradients, and the sums that rules ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ferrostep.optim import shards
from ferrostep.optim.agreement import device_of
from ferrostep.reference.sums import Sum, total

if TYPE_CHECKING:
    from ferrostep.optim.gathered import Gathered

Scope: TypeAlias = Literal["tensor", "group", "all"]
"""What a sum is over: a tensor, all that a rule of a group takes, or all of all groups."""


class Summand(NamedTuple):
    """Parameters of a group, as a step has taken them in."""

    gathered: Gathered
    """With the shards of DTensors."""
    params: list[Tensor]
    """As the optimizer has them. What is no DTensor is summed by this rank as a whole."""


def over_ranks(sums: Sequence[Sum], params: Sequence[Tensor]) -> list[Sum]:
    """The sums over whole tensors from those over this rank's shards, in an order that is the same on all ranks."""
    if not shards.are_among(params):
        return list(sums)
    whole = list(sums)
    for group in shards.process_groups(params):
        those = [i for i, p in enumerate(params) if group in shards.process_groups([p])]
        own = torch.tensor([float(whole[i]) for i in those], dtype=torch.float64, device=device_of(group))
        everyones = own.new_empty(dist.get_world_size(group) * len(those))
        dist.all_gather_into_tensor(everyones, own, group=group)
        for i, value in zip(those, everyones.view(-1, len(those)).sum(0).tolist(), strict=True):
            whole[i] = value
    return whole


def accumulated(before: Sum, found: Sum) -> Tensor:
    """A sum over steps with one more, as a parameter's state keeps it: a float64 number."""
    return torch.as_tensor(total((before, found)), dtype=torch.float64).detach().cpu()


def by_scope(sums: Sequence[list[Sum]], summands: Sequence[Summand]) -> list[list[Sum]]:
    """For each parameter the sum that its rule is to know."""

    def those_in(scope: Scope, number: int | None = None) -> Sum:
        own = [
            values
            for values, (gathered, _) in zip(sums, summands, strict=True)
            if gathered.rule.summed and gathered.rule.scope == scope and number in (None, gathered.number)
        ]
        return total(value for values in own for value in values)

    known: dict[tuple[Scope, int | None], Sum] = {}
    result = []
    for values, (gathered, _) in zip(sums, summands, strict=True):
        if gathered.rule.scope == "tensor" or not gathered.rule.summed:
            result.append(values)
            continue
        key = (gathered.rule.scope, gathered.number if gathered.rule.scope == "group" else None)
        if key not in known:
            known[key] = those_in(*key)
        result.append([known[key]] * len(values))
    return result
