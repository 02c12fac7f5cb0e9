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
from ferrostep.optim.layouts import Block, Extent, Layout
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
    """A parameter of which several ranks have a block each, with the rules and the tensors of this rank's."""

    layout: Layout
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


def in_parts(gathered: Gathered, whole: Gathered, scratch: Scratch, name: str) -> tuple[list[Parts], Gathered]:
    """The parameters of ``whole``, a group of DTensors, by their shards, ``gathered``; and the step by their moves.

    ``name`` is that of the moves in ``scratch``.
    """
    rule = gathered.rule
    stages = rule.native().stages()
    moves = scratch.tensors(name, ((tuple(p.shape), arithmetic_dtype(p)) for p in gathered.params))
    parts = []
    layouts: dict[Any, Layout] = {}
    for i, (p, position) in enumerate(zip(whole.params, gathered.positions, strict=True)):
        assert shards.is_distributed(p)
        key = (p.device_mesh, p.placements)
        if key not in layouts:
            layouts[key] = Layout(*key)
        heights = heights_of(rule.hyperparameters, p.shape)
        where = f"parameter {position} in group {gathered.number}"
        one = Parts(
            layout=layouts[key],
            shape=p.shape,
            heights=heights,
            rule=rule,
            stages=stages,
            param=gathered.params[i],
            grad=gathered.grads[i],
            states={name: gathered.columns[name][i] for name in rule.states},
            move=moves[i],
            row_shapes={name: rule.state_shape(name, p) for name in rule.states[1:]},
            description=f"{whole.description(i)} by rows {heights}",
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


def _check_shard(where: str, parts: Parts) -> None:
    """Raise for a shard of another size than DTensor's own splitting gives, and for row states of another shape."""
    layout = parts.layout
    for name, x in (("param", parts.param), *parts.states.items()):
        block = layout.blocks(parts.row_shapes.get(name, parts.shape))[layout.rank]
        expected = [extent.size for extent in block]
        if list(x.shape) != expected:
            raise Problem.SHAPE.of(f"shard of {name} of {where} on rank {dist.get_rank()}", list(x.shape), expected)


class Piece(NamedTuple):
    """Rows of a parameter that one rank transforms."""

    parts: Parts
    rows: Extent
    owner: int = -1

    def block(self, rank: int, shape: Sequence[int]) -> Block:
        """What ``rank`` has of these rows of a tensor of ``shape`` that is split like the parameter."""
        own, *others = self.parts.layout.blocks(shape)[rank]
        return (self.rows.common(own), *others)

    def holders(self) -> list[int]:
        """The ranks that have some of these rows."""
        shape = self.parts.shape
        blocks = (self.block(rank, shape) for rank in range(len(self.parts.layout.ranks)))
        return [rank for rank, block in enumerate(blocks) if all(extent.size for extent in block)]

    def of_shard(self, x: Tensor, rank: int) -> Tensor:
        """These rows of a shard of ``rank``'s."""
        own = self.parts.layout.blocks(self.parts.shape)[rank][0]
        return x.narrow(0, *own.common(self.rows))

    def of_rank(self, whole: Iterable[Tensor], rank: int) -> list[Tensor]:
        """What ``rank`` has of these rows of the direction or the move, and of the row states."""
        found = []
        for x, shape in zip(whole, (self.parts.shape, *self.parts.row_shapes.values()), strict=True):
            for dim, extent in enumerate(self.block(rank, shape)):
                x = x.narrow(dim, *extent)
            found.append(x)
        return found

    def kinds(self, rank: int, ahead: bool) -> list[Kind]:
        """What ``rank`` sends the owner of these rows, or gets back: the direction or the move, and the row states."""
        part = self.parts
        memory = part.states["momentum_buffer"] if ahead else part.move
        of_all = [(part.shape, memory), *((shape, part.states[name]) for name, shape in part.row_shapes.items())]
        return [(tuple(extent.size for extent in self.block(rank, shape)), x.dtype) for shape, x in of_all]

    def whole(self, shape: Sequence[int], dtype: torch.dtype) -> Kind:
        """These rows of a tensor of ``shape``, of all ranks."""
        return (self.rows.size, *shape[1:]), dtype

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
    held = [(piece, piece.holders()) for piece in pieces]
    for piece, holders in sorted(held, key=lambda each: (len(each[1]) > 1, -each[0].cost())):
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
    groups = [one.layout.group() for one in parts]
    for group in shards.in_order(groups):
        ranks = dist.get_world_size(group)
        pieces = pieces_of((one for one, its in zip(parts, groups, strict=True) if its is group), ranks)
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
        self.of_others = [[piece for piece in pieces if piece.owner == rank] for rank in range(self.ranks)]
        self.own, self.of_others[self.rank] = self.of_others[self.rank], []
        self.threads = threads
        self.slot = slot
        self._copies: list[tuple[Tensor, Tensor]] = []

    def gather(self) -> None:
        """Send the owners what this rank has of the directions."""
        out, into = self._parcels_of_others(ahead=True), self._parcels_of_own(ahead=True)
        self._direct(self._by_piece(out))
        self._send(out, into)

    def transform(self) -> None:
        """Make the moves of one's own pieces as soon as they are there, and send the others their parts."""
        moves = self._moves(self._wholes(self._receive()))
        out, into = self._parcels_of_own(ahead=False), self._parcels_of_others(ahead=False)
        for (piece, of_others), whole in zip(self._by_rank(out), moves, strict=True):
            for rank, tensors in of_others:
                torch._foreach_copy_(tensors, piece.of_rank(whole, rank))
            self._take(piece, piece.of_rank(whole, self.rank))
        self._send(out, into)

    def finish(self) -> list[tuple[Tensor, Tensor]]:
        """Take the moves; returns the row states that are to be written, each with what."""
        for piece, tensors in self._by_piece(self._receive()):
            self._take(piece, tensors)
        return self._copies

    def _direct(self, pieces: Iterable[tuple[Piece, Sequence[Tensor]]]) -> None:
        """Work out what this rank has of directions, and copy what it has of row states."""
        batch, factors = _core.Batch(self.slot.known), []
        for piece, (direction, *row_states) in pieces:
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

    def _wholes(self, came: Parcels) -> list[list[Tensor]]:
        """The direction of each of one's own pieces, and its row states."""
        kinds = (piece.whole(piece.parts.shape, piece.parts.states["momentum_buffer"].dtype) for piece in self.own)
        wholes, own = [], []
        directions = self.slot.scratch.tensors("direction", kinds)
        for (piece, of_others), direction in zip(self._by_rank(came), directions, strict=True):
            part = piece.parts
            row_kinds = [piece.whole(shape, part.states[name].dtype) for name, shape in part.row_shapes.items()]
            whole = [direction, *(torch.empty(shape, dtype=dtype) for shape, dtype in row_kinds)]
            for rank, tensors in of_others:
                torch._foreach_copy_(piece.of_rank(whole, rank), tensors)
            own.append((piece, piece.of_rank(whole, self.rank)))
            wholes.append(whole)
        self._direct(own)
        return wholes

    def _moves(self, wholes: list[list[Tensor]]) -> list[list[Tensor]]:
        """The move of each of one's own pieces, and its new row states."""
        batch, moves = _core.Batch(self.slot.known), []
        by_rule: dict[_core.MatrixRule, list[tuple[Tensor, ...]]] = {}
        kinds = (piece.whole(piece.parts.shape, piece.parts.move.dtype) for piece in self.own)
        fresh = self.slot.scratch.tensors("move", kinds)
        for piece, (direction, *row_states), move in zip(self.own, wholes, fresh, strict=True):
            by_rule.setdefault(piece.parts.stages[1], []).append((move, direction, direction, *row_states))
            moves.append([move, *row_states])
        for rule, tensors in by_rule.items():
            params, grads, *states = map(list, zip(*tensors, strict=True))
            batch.add(rule, params, grads, dict(zip(rule.states, states, strict=True)))
        batch.run(self.threads)
        return moves

    def _take(self, piece: Piece, tensors: Sequence[Tensor]) -> None:
        """Keep what this rank has of a move, and of row states, which are written with the step."""
        part = piece.parts
        move, *row_states = tensors
        piece.of_shard(part.move, self.rank).copy_(move)
        for name, state in zip(part.row_shapes, row_states, strict=True):
            self._copies.append((piece.of_shard(part.states[name], self.rank), state.clone()))

    def _parcels_of_others(self, *, ahead: bool) -> Parcels:
        """Room for what this rank has of each other owner's pieces."""
        kinds = [[kind for piece in own for kind in piece.kinds(self.rank, ahead)] for own in self.of_others]
        return self.slot.parcels(f"others' {'directions' if ahead else 'moves'}", kinds)

    def _parcels_of_own(self, *, ahead: bool) -> Parcels:
        """Room for what each other rank has of this rank's pieces."""
        kinds = [
            [kind for piece in self.own for kind in piece.kinds(rank, ahead)] if rank != self.rank else []
            for rank in range(self.ranks)
        ]
        return self.slot.parcels(f"own {'directions' if ahead else 'moves'}", kinds)

    def _by_piece(self, parcels: Parcels) -> Iterator[tuple[Piece, list[Tensor]]]:
        """The tensors of each piece, in parcels of others' pieces."""
        for pieces, tensors in zip(self.of_others, parcels.tensors, strict=True):
            rest = iter(tensors)
            for piece in pieces:
                yield piece, [next(rest) for _ in piece.parts.rule.states]

    def _by_rank(self, parcels: Parcels) -> Iterator[tuple[Piece, list[tuple[int, list[Tensor]]]]]:
        """The tensors of each of this rank's pieces, with each other rank, in parcels of its own pieces."""
        rests = [(rank, iter(tensors)) for rank, tensors in enumerate(parcels.tensors) if rank != self.rank]
        for piece in self.own:
            yield piece, [(rank, [next(rest) for _ in piece.parts.rule.states]) for rank, rest in rests]

    def _send(self, out: Parcels, into: Parcels) -> None:
        work = dist.all_to_all_single(into.memory, out.memory, into.splits, out.splits, group=self.group, async_op=True)
        self._under_way = work, out, into

    def _receive(self) -> Parcels:
        work, _out, into = self._under_way
        assert work is not None  # it is asynchronous
        work.wait()
        del self._under_way
        return into
