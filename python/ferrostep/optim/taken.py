"""What a step has taken in, before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.optim import shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ferrostep.optim.gathered import Gathered
    from ferrostep.optim.ownership import Parts
    from ferrostep.optim.scratch import Scratch


class Taken:
    """The groups of a step: checked, and with Rust or for plain torch."""

    def __init__(self, known: _core.Known, scratch: Scratch) -> None:
        self.batch = _core.Batch(known)
        self._scratch = scratch
        self.elsewhere: list[Gathered] = []
        self.skips = False
        """Whether the step is to be left out, as far as it is known before the step."""
        self._parts: list[Parts] = []
        self._together: list[tuple[ProcessGroup, str]] = []
        """What the ranks of a process group do together."""
        self._distributed: list[Tensor] = []
        self._plain: list[Gathered] = []
        """With Rust, and without DTensors."""

    def add(self, gathered: Gathered, *, needs_matrices: bool) -> None:
        """Hand a group to Rust, which checks it."""
        if not any(map(shards.is_distributed, gathered.params)):
            gathered.add_to(self.batch)
            self._plain.append(gathered)
            return
        own = self._of_rank(gathered)
        self.skips = self.skips or own.is_skipped()
        apart = gathered.in_parts() if needs_matrices else []
        if not apart:
            own.add_to(self.batch)
            return
        from ferrostep.optim.ownership import in_parts

        whole = [i for i in range(len(own.params)) if i not in apart]
        if whole:
            own.only(whole).add_to(self.batch)
        number = len(self._parts)
        parts, along_moves = in_parts(own.only(apart), gathered.only(apart), self._scratch, f"moves from {number}")
        along_moves.add_to(self.batch)
        self._parts += parts
        self._together += [(each.group, each.description) for each in parts]

    def add_elsewhere(self, gathered: Gathered, *, needs_matrices: bool) -> None:
        """Check a group for plain torch."""
        if any(map(shards.is_distributed, gathered.params)):
            own = self._of_rank(gathered)
            apart = gathered.in_parts() if needs_matrices else []
            whole = [i for i in range(len(own.params)) if i not in apart]
            groups = [each for each in (own.only(whole), gathered.only(apart)) if each.params]
            for i in apart:
                description = f"{gathered.description(i)} on every rank"
                self._together += [(group, description) for group in shards.process_groups([gathered.params[i]])]
        else:
            groups = [gathered]
        for each in groups:
            each.check_for_reference()
            self.skips = self.skips or each.is_skipped()
            self.elsewhere.append(each)

    def _of_rank(self, gathered: Gathered) -> Gathered:
        self._distributed += [p for p in gathered.params if shards.is_distributed(p)]
        return gathered.of_rank()

    def look_at_all(self) -> None:
        """Find out before the step what Rust would find in it by itself, if other ranks are to hear of it."""
        if self._distributed:
            self.skips = self.skips or any(each.is_skipped() for each in self._plain)

    def work_of(self, group: ProcessGroup) -> list[str]:
        """What the ranks of a process group are to do together."""
        return [description for of, description in self._together if of is group]

    def run(self, threads: int) -> None:
        """Take the step: all of it or, on an error, nothing."""
        if not self._parts and not self.elsewhere:
            self.batch.run(threads)
        else:
            self._run_with_others(threads)
        if self._distributed:
            torch.autograd.graph.increment_version(self._distributed)

    def _run_with_others(self, threads: int) -> None:
        copies = []
        if self._parts:
            from ferrostep.optim.ownership import exchange

            copies += exchange(self._parts, self._scratch, threads)
        copies += [copy for gathered in self.elsewhere for copy in gathered.updates()]
        # What autograd records of a differentiable step; parameters of other groups are detached.
        with torch.set_grad_enabled(any(gathered.group["differentiable"] for gathered in self.elsewhere)):
            self.batch.run(threads, copies=copies)
