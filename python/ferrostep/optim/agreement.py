"""All ranks take a step, or none: what one of them finds is told to all before any waits for another's data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GO, SKIP, FAILED = 0, 1, 2
TAG = 0x5E9
"""Of what ranks tell one another before a step, among other messages from one to another."""


class Plan(Protocol):
    """What a rank has found out about the step that is to come."""

    skips: bool
    """Whether the step is to be left out."""

    def work_of(self, group: ProcessGroup) -> list[str]:
        """What the ranks of a process group are to do together, described one by one."""


P = TypeVar("P", bound=Plan)


def agreed(groups: Iterable[ProcessGroup], find: Callable[[], P]) -> P:
    """What ``find`` returns, when all ranks of the groups have come here and none has failed.

    One rank that skips the step makes all skip it.

    Args:
        groups: process groups, in an order in which no ranks wait for one another in a circle.
        find: called before anything is told; what it raises is raised when the others know of it.

    Raises:
        RuntimeError: another rank has failed, or would do something else.
    """
    talks = [Talk(group) for group in groups]
    plan, error = None, None
    try:
        plan = find()
    except BaseException as raised:
        error = raised
    reason = None if error is None else f"{type(error).__name__}: {error}"
    for talk in talks:
        reason = _tell(talk, plan, reason) or reason
    if error is not None:
        raise error
    if plan is None or reason is not None:
        raise RuntimeError(reason)
    return plan


def device_of(group: ProcessGroup) -> str:
    """Where tensors are to be that the ranks of a group exchange."""
    return "cuda" if dist.get_backend(group) == "nccl" else "cpu"


class Talk:
    """What each rank of a group tells all others: two numbers, once.

    On the CPU those of the others have been asked for when they come. So each message takes one way, where a collective
    operation would first have to find out who is ready.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.ranks = dist.get_process_group_ranks(group)
        self._everyones = torch.empty(len(self.ranks), 2, dtype=torch.int64, device=device_of(group))
        self._coming = self._ask_all() if self._everyones.is_cpu else []

    def _ask_all(self) -> list[tuple[int, dist.Work | None]]:
        return [
            (rank, dist.irecv(row, rank, self.group, TAG))
            for rank, row in zip(self.ranks, self._everyones, strict=True)
            if rank != dist.get_rank()
        ]

    def tell(self, numbers: list[int]) -> list[list[int]]:
        """Tell the others; returns the numbers of all ranks."""
        own = torch.tensor(numbers, device=self._everyones.device)
        if not self._coming:
            dist.all_gather_into_tensor(self._everyones.view(-1), own, group=self.group)
            return self._everyones.tolist()
        going = [dist.isend(own, rank, self.group, TAG) for rank, _ in self._coming]
        for work in (*(work for _, work in self._coming), *going):
            assert work is not None  # this process is one of the group's
            work.wait()
        self._everyones[self.ranks.index(dist.get_rank())] = own
        return self._everyones.tolist()


def _tell(talk: Talk, plan: Plan | None, reason: str | None) -> str | None:
    """Tell the ranks of a group and hear from them; returns why the step cannot be taken, if that is another's news."""
    work = plan.work_of(talk.group) if plan else []
    digest = hashlib.blake2b(repr(work).encode(), digest_size=7).digest()
    state = FAILED if reason is not None else SKIP if plan and plan.skips else GO
    states, digests = zip(*talk.tell([state, int.from_bytes(digest, "little")]), strict=True)
    if plan is not None and SKIP in states:
        plan.skips = True
    if FAILED not in states and len(set(digests)) == 1:
        return None
    told: list[tuple[str | None, list[str]]] = [(None, [])] * len(states)
    dist.all_gather_object(told, (reason, work), group=talk.group)
    return None if reason is not None else _reason(talk.ranks, told)


def _reason(ranks: list[int], told: list[tuple[str | None, list[str]]]) -> str:
    """Why ranks that have told so cannot take a step together."""
    for rank, (reason, _) in zip(ranks, told, strict=True):
        if reason is not None:
            return reason if reason.startswith("rank ") else f"rank {rank} cannot take the step: {reason}"
    first = told[0][1]
    rank, work = next((rank, work) for rank, (_, work) in zip(ranks, told, strict=True) if work != first)
    here, there = next(pair for pair in zip_longest(first, work) if pair[0] != pair[1])
    return f"rank {rank} would step {there or 'nothing more'}, but rank {ranks[0]} {here or 'nothing more'}"
