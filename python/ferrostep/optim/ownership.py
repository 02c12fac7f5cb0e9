"""Matrices that lie in parts: each is transformed by the one rank that owns it for a step.

The ranks send the owner their parts of the direction, and get parts of the move; momentum and step stay with them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ferrostep import _core
from ferrostep.errors import Problem
from ferrostep.optim import shards
from ferrostep.optim.base import arithmetic_dtype
from ferrostep.optim.scratch import Kind, Scratch, room_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ferrostep.optim.gathered import Gathered
    from ferrostep.optim.rules import Rule

AHEAD = 1
"""So many rounds later comes the next stage of a round."""
ELEMENTS_OF_OWNER = 1 << 21
"""About so many elements are an owner's in a round."""


class Parts(NamedTuple):
    """A parameter of which every rank of a group has a part, with the rules and the tensors of this rank's."""

    group: ProcessGroup
    mesh_dim: int
    """The dimension of the mesh that the group is of."""
    dim: int
    """Along which the parameter is split."""
    shape: torch.Size
    heights: list[int]
    """Rows (along dimension 0) that are transformed together."""
    rule: Rule
    stages: tuple[_core.Stage, _core.MatrixRule, _core.Stage]
    param: Tensor
    grad: Tensor
    states: dict[str, Tensor]
    """Those of the rule."""
    move: Tensor
    """What the owner makes of the direction goes here."""
    row_shapes: dict[str, Sequence[int]]
    """The shapes of the states that go to the owner, too."""
    description: str
    factor: float = 1.0
    """Multiplies the gradient."""

    @property
    def row_states(self) -> tuple[str, ...]:
        """The names of the states that go to the owner, too."""
        return tuple(self.row_shapes)


def in_parts(gathered: Gathered, whole: Gathered, scratch: Scratch, name: str) -> tuple[list[Parts], Gathered]:
    """The parameters of ``whole``, a group of DTensors, by their shards, ``gathered``; and the step by their moves.

    ``name`` is that of the moves in ``scratch``.
    """
    rule = gathered.rule
    stages = rule.native().stages()
    moves = scratch.tensors(name, ((tuple(p.shape), arithmetic_dtype(p)) for p in gathered.params))
    parts = []
    for i, (p, position) in enumerate(zip(whole.params, gathered.positions, strict=True)):
        assert shards.is_distributed(p)
        ((mesh_dim, dim),) = shards.split_dims(p).items()
        heights = heights_of(rule.hyperparameters, p.shape)
        where = f"parameter {position} in group {gathered.number}"
        one = Parts(
            group=p.device_mesh.get_group(mesh_dim),
            mesh_dim=mesh_dim,
            dim=dim,
            shape=p.shape,
            heights=heights,
            rule=rule,
            stages=stages,
            param=gathered.params[i],
            grad=gathered.grads[i],
            states={name: gathered.columns[name][i] for name in rule.states},
            move=moves[i],
            row_shapes={name: rule.state_shape(name, p) for name in rule.states[1:]},
            description=f"{where} ({p.dtype}, shape {list(p.shape)}, split along {dim}, rows {heights})",
        )
        _check_shard(where, one)
        parts.append(one)
    last = rule._replace(kernel=lambda: stages[2], states=("momentum_buffer", "move"), hyperparameters={}, shapes={})
    return parts, gathered._replace(rule=last, columns={**gathered.columns, "move": moves})


def heights_of(hyperparameters: dict[str, Any], shape: torch.Size) -> list[int]:
    """How many rows, along dimension 0, each part of the parameter has that is transformed by itself."""
    heads, heights = hyperparameters.get("num_heads"), hyperparameters.get("split_sizes")
    if heads is not None:
        return [shape[0] // heads] * heads
    if heights is not None:
        return list(heights)
    if len(shape) > 2 and hyperparameters.get("ndim_policy") == "batch":
        return [1] * shape[0]
    return [shape[0]]


class Extent(NamedTuple):
    """From which index of a dimension on a rank has how many."""

    start: int
    size: int


def extent(size: int, ranks: int, rank: int) -> Extent:
    """What a rank has of a dimension, as DTensor splits it."""
    chunk = -(-size // ranks)
    start = min(rank * chunk, size)
    return Extent(start, min(chunk, size - start))


def _check_shard(where: str, parts: Parts) -> None:
    """Raise for a shard of another size than DTensor's own splitting gives, and for row states of another shape."""
    ranks, rank = dist.get_world_size(parts.group), dist.get_rank(parts.group)
    for name, x in (("param", parts.param), *parts.states.items()):
        expected = [*parts.row_shapes.get(name, parts.shape)]
        expected[parts.dim] = extent(expected[parts.dim], ranks, rank).size
        if list(x.shape) != expected:
            raise Problem.SHAPE.of(f"shard of {name} of {where} on rank {dist.get_rank()}", list(x.shape), expected)


class Piece(NamedTuple):
    """Rows of a parameter that one rank transforms."""

    parts: Parts
    rows: Extent
    owner: int = -1

    def held(self, rank: int, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what ``rank`` has of these rows of a tensor of ``shape`` that is split like the parameter."""
        own = extent(shape[self.dim], dist.get_world_size(self.parts.group), rank)
        if self.dim == 0:
            return (self._within(own).size, *shape[1:])
        return (self.rows.size, *shape[1 : self.dim], own.size, *shape[self.dim + 1 :])

    def holders(self) -> range:
        """The ranks that have some of these rows."""
        size = self.parts.shape[self.dim]
        chunk = -(-size // dist.get_world_size(self.parts.group))
        first, end = (self.rows.start, self.rows.start + self.rows.size) if self.dim == 0 else (0, size)
        return range(first // chunk, -(-end // chunk))

    def of_shard(self, x: Tensor, rank: int) -> Tensor:
        """These rows of a shard of ``rank``'s."""
        if self.dim != 0:
            return x.narrow(0, *self.rows)
        own = extent(self.parts.shape[0], dist.get_world_size(self.parts.group), rank)
        within = self._within(own)
        return x.narrow(0, within.start - own.start, within.size)

    def _within(self, own: Extent) -> Extent:
        start = min(max(self.rows.start, own.start), own.start + own.size)
        stop = max(min(self.rows.start + self.rows.size, own.start + own.size), start)
        return Extent(start, stop - start)

    @property
    def dim(self) -> int:
        """The dimension that is split."""
        return self.parts.dim

    def kinds(self, rank: int, ahead: bool) -> list[Kind]:
        """What ``rank`` sends the owner of these rows, or gets back: the direction or the move, and the row states."""
        part = self.parts
        _, dtype = self.whole(ahead)
        rows = [(self.held(rank, shape), part.states[name].dtype) for name, shape in part.row_shapes.items()]
        return [(self.held(rank, part.shape), dtype), *rows]

    def whole(self, ahead: bool) -> Kind:
        """The direction or the move of these rows, of all ranks."""
        memory = self.parts.states["momentum_buffer"] if ahead else self.parts.move
        return (self.rows.size, *self.parts.shape[1:]), memory.dtype

    def cost(self) -> int:
        """About in proportion to the time that the transforms take."""
        matrix = self.parts.shape
        if len(matrix) > 2 and self.parts.rule.hyperparameters.get("ndim_policy") == "batch":
            rows, columns = matrix[-2:]
        else:
            rows, columns = self.rows.size, math.prod(matrix[1:])
        return self.rows.size * math.prod(matrix[1:]) * min(rows, columns)


def pieces_of(parts: Iterable[Parts], ranks: int) -> list[Piece]:
    """The pieces of all parameters, each with its owner: of those left, the dearest goes to whom has least to do.

    A piece that one rank has as a whole stays with that.
    """
    pieces = [
        Piece(one, Extent(end - height, height))
        for one in parts
        for height, end in zip(one.heights, accumulate(one.heights), strict=True)
        if height * math.prod(one.shape[1:]) > 0
    ]
    work, owned = [0] * ranks, []
    for piece in sorted(pieces, key=lambda piece: (len(piece.holders()) > 1, -piece.cost())):
        holders = piece.holders()
        owner = holders[0] if len(holders) == 1 else work.index(min(work))
        work[owner] += piece.cost()
        owned.append(piece._replace(owner=owner))
    return owned


def rounds_of(pieces: Iterable[Piece], ranks: int) -> list[list[Piece]]:
    """Pieces that go together: every owner's next ones, up to a number of elements."""
    waiting: list[deque[Piece]] = [deque() for _ in range(ranks)]
    for piece in pieces:
        waiting[piece.owner].append(piece)
    rounds = []
    while any(waiting):
        together = []
        for own in waiting:
            elements = 0
            while own and elements < ELEMENTS_OF_OWNER:
                piece = own.popleft()
                elements += piece.rows.size * math.prod(piece.parts.shape[1:])
                together.append(piece)
        rounds.append(together)
    return rounds


def exchange(parts: Sequence[Parts], known: _core.Known, scratch: Scratch, threads: int) -> list[tuple[Tensor, Tensor]]:
    """Fill the moves of all parameters; returns the row states that are to be written with the step, and with what."""
    copies = []
    for group in shards.in_order({one.group: one.mesh_dim for one in parts}):
        ranks = dist.get_world_size(group)
        pieces = pieces_of((one for one in parts if one.group is group), ranks)
        together = enumerate(rounds_of(pieces, ranks))
        rounds = [Round(group, own, threads, Slot(known, scratch, number % (AHEAD + 1))) for number, own in together]
        # The same order on all ranks, with some rounds between the stages of one: what is sent then is on its way.
        for number in range(len(rounds) + 2 * AHEAD):
            if number < len(rounds):
                rounds[number].gather()
            if 0 <= number - AHEAD < len(rounds):
                rounds[number - AHEAD].transform()
            if number >= 2 * AHEAD:
                copies += rounds[number - 2 * AHEAD].finish()
    return copies


class Parcels:
    """Room for the tensors that go to each rank, or come from it, in one piece of memory."""

    def __init__(self, scratch: Scratch, name: str, kinds: Sequence[Sequence[Kind]]) -> None:
        self.splits = [sum(map(room_of, of_rank)) for of_rank in kinds]
        self.memory = scratch.room(name, sum(self.splits))
        rest = iter(scratch.tensors(name, (kind for of_rank in kinds for kind in of_rank)))
        self.tensors = [[next(rest) for _ in of_rank] for of_rank in kinds]
        """By rank."""


class Slot(NamedTuple):
    """Memory of a round, which that of another number may use at the same time."""

    known: _core.Known
    scratch: Scratch
    number: int

    def parcels(self, name: str, kinds: Sequence[Sequence[Kind]]) -> Parcels:
        """Room that this slot keeps under a name."""
        return Parcels(self.scratch, f"{name} {self.number}", kinds)


class Round:
    """Pieces that are gathered together, transformed by their owners, and scattered back."""

    def __init__(self, group: ProcessGroup, pieces: list[Piece], threads: int, slot: Slot) -> None:
        self.group = group
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.by_owner = [[piece for piece in pieces if piece.owner == rank] for rank in range(self.ranks)]
        self.own = self.by_owner[self.rank]
        self.threads = threads
        self.slot = slot

    def gather(self) -> None:
        """Send the owners what this rank has of the directions."""
        out, into = self._parcels_of_others(ahead=True), self._parcels_of_own(ahead=True)
        batch, factors = _core.Batch(self.slot.known), []
        for piece, (direction, *row_states) in self._by_piece(out):
            part = piece.parts
            param, grad, momentum, *states = (
                piece.of_shard(x, self.rank) for x in (part.param, part.grad, *part.states.values())
            )
            batch.add(part.stages[0], [param], [grad], {"direction": [direction], "momentum_buffer": [momentum]})
            factors.append(part.factor)
            for to, state in zip(row_states, states, strict=True):
                to.copy_(state)
        batch.scale(factors)
        batch.run(self.threads)
        self._send(out, into)

    def transform(self) -> None:
        """Make the moves of one's own pieces as soon as they are there, and send the others their parts."""
        came = self._receive()
        moves = self._moves(came)
        out, into = self._parcels_of_own(ahead=False), self._parcels_of_others(ahead=False)
        rests = [iter(tensors) for tensors in out.tensors]
        for piece, tensors in zip(self.own, moves, strict=True):
            for x in tensors:
                parts = [next(rest) for rest in rests]
                sizes = [part.shape[piece.dim] for part in parts]
                torch._foreach_copy_(parts, list(torch.split(x, sizes, piece.dim)))
        self._send(out, into)

    def finish(self) -> list[tuple[Tensor, Tensor]]:
        """Take the moves; returns the row states that are to be written, each with what."""
        copies = []
        for piece, (move, *row_states) in self._by_piece(self._receive()):
            piece.of_shard(piece.parts.move, self.rank).copy_(move)
            for name, state in zip(piece.parts.row_states, row_states, strict=True):
                copies.append((piece.of_shard(piece.parts.states[name], self.rank), state.clone()))
        return copies

    def _moves(self, came: Parcels) -> list[tuple[Tensor, ...]]:
        """The move of each of one's own pieces, and its new row states."""
        rests = [iter(tensors) for tensors in came.tensors]
        batch, moves = _core.Batch(self.slot.known), []
        by_rule: dict[_core.MatrixRule, list[tuple[Tensor, ...]]] = {}
        directions = self.slot.scratch.tensors("direction", (piece.whole(ahead=True) for piece in self.own))
        fresh = self.slot.scratch.tensors("move", (piece.whole(ahead=False) for piece in self.own))
        for piece, direction, move in zip(self.own, directions, fresh, strict=True):
            torch.cat([next(rest) for rest in rests], piece.dim, out=direction)
            row_states = [torch.cat([next(rest) for rest in rests], piece.dim) for _ in piece.parts.row_states]
            by_rule.setdefault(piece.parts.stages[1], []).append((move, direction, direction, *row_states))
            moves.append((move, *row_states))
        for rule, tensors in by_rule.items():
            params, grads, *states = map(list, zip(*tensors, strict=True))
            batch.add(rule, params, grads, dict(zip(rule.states, states, strict=True)))
        batch.run(self.threads)
        return moves

    def _parcels_of_others(self, *, ahead: bool) -> Parcels:
        """Room for what this rank has of each owner's pieces."""
        kinds = [[kind for piece in own for kind in piece.kinds(self.rank, ahead)] for own in self.by_owner]
        return self.slot.parcels(f"others' {'directions' if ahead else 'moves'}", kinds)

    def _parcels_of_own(self, *, ahead: bool) -> Parcels:
        """Room for what each rank has of this rank's pieces."""
        kinds = [[kind for piece in self.own for kind in piece.kinds(rank, ahead)] for rank in range(self.ranks)]
        return self.slot.parcels(f"own {'directions' if ahead else 'moves'}", kinds)

    def _by_piece(self, parcels: Parcels) -> Iterator[tuple[Piece, list[Tensor]]]:
        """The tensors of each piece, in parcels of others' pieces."""
        for pieces, tensors in zip(self.by_owner, parcels.tensors, strict=True):
            rest = iter(tensors)
            for piece in pieces:
                yield piece, [next(rest) for _ in piece.parts.rule.states]

    def _send(self, out: Parcels, into: Parcels) -> None:
        work = dist.all_to_all_single(into.memory, out.memory, into.splits, out.splits, group=self.group, async_op=True)
        self._under_way = work, out, into

    def _receive(self) -> Parcels:
        work, _out, into = self._under_way
        assert work is not None  # it is asynchronous
        work.wait()
        del self._under_way
        return into
