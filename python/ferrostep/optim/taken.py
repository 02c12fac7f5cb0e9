"""What a step has taken in, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.optim import shards
from ferrostep.optim.base import is_fake
from ferrostep.optim.sums import Summand, by_scope, over_ranks
from ferrostep.reference.sums import Sum, clip_factor, norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ferrostep.optim.agreement import Talk
    from ferrostep.optim.gathered import Gathered
    from ferrostep.optim.ownership import Parts
    from ferrostep.optim.scratch import Scratch


class Taken:
    """The groups of a step: checked, and with Rust or for plain torch."""

    def __init__(self, known: _core.Known, scratch: Scratch, orders: Sequence[int] = ()) -> None:
        """``orders`` are those of the norms of all gradients that are asked for."""
        self.batch = _core.Batch(known)
        self._orders = [*orders]
        self._measured: dict[int, list[Sequence[Sum]]] = {}
        """By order, of each group: what was summed of its gradients before the step."""
        self._known, self._scratch = known, scratch
        self._added: list[Summand] = []
        self._elsewhere: list[Summand] = []
        self.skips = False
        """Whether the step is to be left out, as far as it is known before the step."""
        self.talks: Sequence[Talk] = ()
        self._parts: list[Parts] = []
        self._added_with: list[int] = []
        """Of each of the parts, the number of the group in the batch that it is stepped with."""
        self._together: list[tuple[ProcessGroup, str]] = []
        """What the ranks of a process group do together."""
        self._distributed: list[Tensor] = []
        self._plain: list[Gathered] = []
        """With Rust, and without DTensors."""

    @property
    def added(self) -> list[Gathered]:
        """The groups with Rust."""
        return [each.gathered for each in self._added]

    @property
    def elsewhere(self) -> list[Gathered]:
        """The groups for plain torch."""
        return [each.gathered for each in self._elsewhere]

    def add(self, gathered: Gathered, *, needs_matrices: bool) -> None:
        """Hand a group to Rust, which checks it."""
        if not shards.are_among(gathered.params):
            self._add(gathered, gathered.params)
            self._plain.append(gathered)
            return
        own = self._of_rank(gathered)
        self.skips = self.skips or own.is_skipped()
        apart = gathered.in_parts() if needs_matrices else []
        if not apart:
            self._add(own, gathered.params)
            return
        from ferrostep.optim.ownership import in_parts

        whole = [i for i in range(len(own.params)) if i not in apart]
        if whole:
            self._add(own.only(whole), [gathered.params[i] for i in whole])
        number = len(self._parts)
        parts, along_moves = in_parts(own.only(apart), gathered.only(apart), self._scratch, f"moves from {number}")
        self._added_with += [len(self._added)] * len(parts)
        self._add(along_moves, [gathered.params[i] for i in apart])
        self._parts += parts
        self._together += [
            (group, each.description)
            for each, i in zip(parts, apart, strict=True)
            for group in shards.process_groups([gathered.params[i]])
        ]

    def _add(self, gathered: Gathered, params: list[Tensor]) -> None:
        gathered.add_to(self.batch, measure=gathered.is_clipped or bool(self._orders))
        self._added.append(Summand(gathered, params))

    def add_elsewhere(self, gathered: Gathered, *, needs_matrices: bool) -> None:
        """Check a group for plain torch."""
        if shards.are_among(gathered.params):
            own = self._of_rank(gathered)
            apart = gathered.in_parts() if needs_matrices else []
            whole = [i for i in range(len(own.params)) if i not in apart]
            # Of what lies in parts, plain torch has the whole, which is not to be summed over ranks once more.
            groups = [
                Summand(own.only(whole), [gathered.params[i] for i in whole]),
                Summand(gathered.only(apart), []),
            ]
            for i in apart:
                description = f"{gathered.description(i)} on every rank"
                self._together += [(group, description) for group in shards.process_groups([gathered.params[i]])]
        else:
            groups = [Summand(gathered, gathered.params)]
        for each in groups:
            if each.gathered.params:
                each.gathered.check_for_reference()
                self.skips = self.skips or each.gathered.is_skipped()
                self._elsewhere.append(each)

    def _of_rank(self, gathered: Gathered) -> Gathered:
        self._distributed += shards.those_of(gathered.params)
        if gathered.group["skip_nonfinite"]:
            description = f"group {gathered.number} with skip_nonfinite=True"
            self._together += [(group, description) for group in shards.process_groups(gathered.params)]
        return gathered.of_rank()

    def look_at_all(self) -> None:
        """Find out before the step what Rust would find in it by itself, if other ranks are to hear of it."""
        if self._distributed:
            self.skips = self.skips or any(each.is_skipped() for each in self._plain)

    def work_of(self, group: ProcessGroup) -> list[str]:
        """What the ranks of a process group are to do together."""
        together = [description for of, description in self._together if of is group]
        summed = [
            f"parameter {position} in group {gathered.number} by {' and '.join(asked)}"
            for gathered, params in (*self._added, *self._elsewhere)
            if (asked := self._asked_of_ranks(gathered))
            for position, p in zip(gathered.positions, params, strict=False)
            if group in shards.process_groups([p])
        ]
        return together + summed

    def _asked_of_ranks(self, gathered: Gathered) -> list[str]:
        recorded = [f"its l{order} norm to be recorded" for order in self._orders]
        return ["its norm"] * gathered.is_clipped + recorded + ["its sum"] * bool(gathered.rule.summed)

    def clip(self, threads: int) -> Sum | None:
        """Let the gradients be scaled where a group says so; returns the norm of those of all such groups."""
        everyone = (*self._added, *self._elsewhere)
        if not any(gathered.is_clipped for gathered, _ in everyone):
            return None
        orders = sorted({2, *self._orders})
        self._measured = self._sums_of_powers(orders, self.batch.norms(orders, threads))
        found = norm(
            square
            for own, (gathered, params) in zip(self._measured[2], everyone, strict=True)
            if gathered.is_clipped
            for square in over_ranks(own, params)
        )
        factors = [
            clip_factor(found, gathered.group["max_grad_norm"]) if gathered.is_clipped else 1.0
            for gathered, _ in everyone
        ]
        native = [float(factor) for factor in factors[: len(self._added)]]
        self.batch.scale(native)
        self._parts = [
            parts._replace(factor=native[number]) for parts, number in zip(self._parts, self._added_with, strict=True)
        ]
        for i, factor in enumerate(factors[len(self._added) :]):
            self._tell_elsewhere(i, factor=factor)
        return found

    def _sums_of_powers(self, orders: Sequence[int], native: list[list[list[float]]]) -> dict[int, list[Sequence[Sum]]]:
        """By order, of each group: the sums over its gradients, from those that Rust has taken over numbers."""
        found: dict[int, list[Sequence[Sum]]] = {}
        for order in orders:
            found[order] = [[own[order - 1] for own in of_group] for of_group in native]
            for i, (gathered, _) in enumerate(self._added):
                if order == 1 and any(g.is_complex() for g in gathered.grads):  # whose sizes are no sums over numbers
                    found[order][i] = gathered.power_sums(order)
            found[order] += [
                each.power_sums(order) if each.is_clipped or self._orders else [] for each in self.elsewhere
            ]
        return found

    def power_sums(self) -> dict[int, dict[Tensor, float]] | None:
        """After the step: by order and by parameter, the sums over the gradients that it has used; None if fake."""
        everyone = (*self._added, *self._elsewhere)
        if any(is_fake(gathered.params[0]) for gathered, _ in everyone):
            return None
        if not self._measured:
            self._measured = self._sums_of_powers(self._orders, self.batch.measured_norms())
        found: dict[int, dict[Tensor, float]] = {}
        for order in self._orders:
            found[order] = {}
            for own, (gathered, params) in zip(self._measured[order], everyone, strict=True):
                of_each = zip(params or gathered.params, over_ranks(own, params), strict=True)
                found[order].update((p, float(x.detach() if isinstance(x, Tensor) else x)) for p, x in of_each)
        return found

    def know(self, threads: int) -> list[tuple[Gathered, list[Sum]]]:
        """Tell the rules that ask for sums; returns these, for each group one for every parameter."""
        if not any(gathered.rule.summed for gathered, _ in (*self._added, *self._elsewhere)):
            return []
        own_sums: list[Sequence[Sum]] = [*self.batch.sums(threads), *(each.sums() for each in self.elsewhere)]
        everyone = (*self._added, *self._elsewhere)
        sums = [over_ranks(own, params) if own else [] for own, (_, params) in zip(own_sums, everyone, strict=True)]
        known = by_scope(sums, everyone)
        self.batch.know([[float(x) for x in own] for own in known[: len(self._added)]])
        for i, own in enumerate(known[len(self._added) :]):
            if own:
                self._tell_elsewhere(i, totals=own)
        return [(gathered, own) for (gathered, _), own in zip(everyone, known, strict=True) if own]

    def _tell_elsewhere(self, i: int, **found: Any) -> None:
        """Let group ``i`` of those for plain torch know what was found out."""
        summand = self._elsewhere[i]
        self._elsewhere[i] = summand._replace(gathered=summand.gathered._replace(**found))

    def run(self, threads: int, then: Sequence[Callable[[], object]] = ()) -> None:
        """Take the step: all of it with what is then to be called or, on an error, nothing."""
        then = [*then, *(partial(talk.count, talk.steps + 1) for talk in self.talks)]
        if not self._parts and not self._elsewhere:
            self.batch.run(threads, then=then, orders=self._left_behind())
        else:
            self._run_with_others(threads, then)
        if self._distributed:
            # Those of inference mode have no version, at which older versions of torch take offence.
            torch.autograd.graph.increment_version([p for p in self._distributed if not p.is_inference()])

    def _run_with_others(self, threads: int, then: list[Callable[[], object]]) -> None:
        copies = []
        if self._parts:
            from ferrostep.optim.ownership import exchange

            copies += exchange(self._parts, self._known, self._scratch, threads)
        copies += [copy for gathered in self.elsewhere for copy in gathered.updates()]
        # What autograd records of a differentiable step; parameters of other groups are detached.
        with torch.set_grad_enabled(any(gathered.group["differentiable"] for gathered in self.elsewhere)):
            self.batch.run(threads, copies=copies, then=then, orders=self._left_behind())

    def _left_behind(self) -> list[int] | None:
        """The norms that the step is to take itself."""
        return self._orders if self._orders and not self._measured else None
