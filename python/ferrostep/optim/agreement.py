"""All ranks take a step, or none: what one of them finds is told to all before any waits for another's data.

Ctrl-C waits for the end of the step. Whatever else keeps one rank from a step that the others take is an error on all
of them in the next.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import repeat, zip_longest
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist

from ferrostep import _core

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GO, SKIP, FAILED = 0, 1, 2
TAG = 0x5E9
"""Of what ranks tell one another before a step, among other messages from one to another."""


class Plan(Protocol):
    """What a rank has found out about the step that is to come."""

    skips: bool
    """Whether the step is to be left out."""
    talks: Sequence[Talk]
    """Those that are to count the step."""

    def work_of(self, group: ProcessGroup) -> list[str]:
        """What the ranks of a process group are to do together, described one by one."""


P = TypeVar("P", bound=Plan)


def agreed(groups: Collection[ProcessGroup], find: Callable[[], P]) -> P:
    """What ``find`` returns, when all ranks of the groups have come here and none has failed.

    One rank that skips the step makes all skip it.

    Args:
        groups: process groups, in an order in which no ranks wait for one another in a circle.
        find: called before anything is told; what it raises is raised when the others know of it.

    Raises:
        RuntimeError: another rank has failed, would do something else, or has taken another number of steps.
    """
    if not groups:
        return find()
    talks = [talk_of(group) for group in groups]
    for talk in talks:
        talk.listen()
    plan, error = None, None
    try:
        plan = find()
    except BaseException as raised:
        error = raised
    failing = _tell_all(talks, plan)
    reason = None if error is None else f"{type(error).__name__}: {error}"
    for talk in failing:
        reason = _ask(talk, plan, reason) or reason
    if error is not None:
        raise error
    if plan is None or failing:
        raise RuntimeError(reason)
    plan.talks = talks
    return plan


def interrupts_held(groups: Collection[ProcessGroup]) -> AbstractContextManager[None]:
    """Let Ctrl-C come up at the end of the block: other ranks, if there are any, wait for what this one has begun."""
    return _held() if groups else nullcontext()


@contextmanager
def _held() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = _core.InterruptHandler.current()  # Python's, or another that was installed without Python
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        _core.complete(partial(signal.signal, signal.SIGINT, before), lambda _: handler.install())
        if came:
            signal.raise_signal(signal.SIGINT)


def device_of(group: ProcessGroup) -> str:
    """Where tensors are to be that the ranks of a group exchange."""
    return "cuda" if dist.get_backend(group) == "nccl" else "cpu"


class Talk:
    """What each rank of a group tells all others: three numbers, once for each step.

    On the CPU those of the others have been asked for when they come. So each message takes one way, where a collective
    operation would first have to find out who is ready. Every message is sent and received once, also where an
    exception comes between: they are asked for and sent in single calls, and the next step goes on with what has begun.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = ref(group)  # which goes with its destruction
        self.ranks = dist.get_process_group_ranks(group)
        self.steps = 0
        """How many this rank has taken with the others."""
        own = self.ranks.index(dist.get_rank())
        self._everyones = torch.zeros(len(self.ranks), 3, dtype=torch.int64, device=device_of(group))
        self._own = self._everyones[own]
        self._others = [i for i in range(len(self.ranks)) if i != own]
        self._coming: list[dist.Work] = []
        self._going: list[dist.Work] = []
        self._has_told = False

    @property
    def group(self) -> ProcessGroup:
        """The process group."""
        group = self._group()
        assert group is not None  # the caller has it
        return group

    def listen(self) -> None:
        """Ask for what the others are to tell, unless that was done for a step which has not come to its end."""
        if self._has_told:
            self._coming.clear()
            self._going.clear()
            self._has_told = False
        if not self._coming and self._is_direct():
            rows = [[self._everyones[i]] for i in self._others]
            self._coming.extend(map(self.group.recv, rows, self._others, repeat(TAG)))

    def _is_direct(self) -> bool:
        """Whether messages go from one rank to another."""
        return self._everyones.is_cpu

    def tell(self, numbers: list[int]) -> list[list[int]]:
        """Tell the others, if that has not been begun; returns the numbers of all ranks."""
        if not self._coming:
            own = torch.tensor(numbers, device=self._everyones.device)
            dist.all_gather_into_tensor(self._everyones.view(-1), own, group=self.group)
        else:
            if not self._going:
                self._own.copy_(torch.tensor(numbers))
                self._going.extend(map(self.group.send, repeat([self._own]), self._others, repeat(TAG)))
            for work in (*self._coming, *self._going):
                if not work.is_completed():
                    work.wait()
        self._has_told = True
        return self._everyones.tolist()

    def count(self, steps: int) -> None:
        """Remember how many steps there have been."""
        self.steps = steps


_talks: WeakKeyDictionary[ProcessGroup, Talk] = WeakKeyDictionary()


def talk_of(group: ProcessGroup) -> Talk:
    """The one talk of a process group: what is on its way is for whoever steps next."""
    talk = _talks.get(group)
    if talk is None:
        talk = _talks[group] = Talk(group)
    return talk


def _tell_all(talks: Iterable[Talk], plan: Plan | None) -> list[Talk]:
    """Tell the ranks of all groups and hear from them; returns those whose ranks do not take the step together."""
    failing: list[Talk] = []
    for talk in talks:
        state = FAILED if plan is None or failing else SKIP if plan.skips else GO
        digest = hashlib.blake2b(repr(_work(talk, plan)).encode(), digest_size=7).digest()
        rows = talk.tell([state, talk.steps, int.from_bytes(digest, "little")])
        states = [state for state, *_ in rows]
        if plan is not None and SKIP in states:
            plan.skips = True
        if FAILED in states or any(row[1:] != rows[0][1:] for row in rows):
            failing.append(talk)
    return failing


def _work(talk: Talk, plan: Plan | None) -> list[str]:
    return plan.work_of(talk.group) if plan else []


def _ask(talk: Talk, plan: Plan | None, reason: str | None) -> str | None:
    """Why the ranks of a group do not take the step together, if that is another's news; they begin anew then."""
    told: list[tuple[str | None, int, list[str]]] = [(None, 0, [])] * len(talk.ranks)
    dist.all_gather_object(told, (reason, talk.steps, _work(talk, plan)), group=talk.group)
    talk.steps = max(steps for _, steps, _ in told)
    return None if reason is not None else _reason(talk.ranks, told)


def _reason(ranks: list[int], told: list[tuple[str | None, int, list[str]]]) -> str:
    """Why ranks that have told so cannot take a step together."""
    for rank, (reason, *_) in zip(ranks, told, strict=True):
        if reason is not None:
            return reason if reason.startswith("rank ") else f"rank {rank} cannot take the step: {reason}"
    _, steps, first = told[0]
    for rank, (_, others, _) in zip(ranks, told, strict=True):
        if others != steps:
            return (
                f"rank {rank} has taken {others} steps with the others, but rank {ranks[0]} {steps}: an error or an "
                "interrupt has kept one of them from a step, so load a checkpoint on all"
            )
    rank, work = next((rank, work) for rank, (*_, work) in zip(ranks, told, strict=True) if work != first)
    here, there = next(pair for pair in zip_longest(first, work) if pair[0] != pair[1])
    return f"rank {rank} would step {there or 'nothing more'}, but rank {ranks[0]} {here or 'nothing more'}"
