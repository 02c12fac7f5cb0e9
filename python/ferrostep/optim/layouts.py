"""How DTensors lie on ranks: who shares one, and which block of it each has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement


class Extent(NamedTuple):
    """From which index of a dimension on there are how many."""

    start: int
    size: int

    def common(self, other: Extent) -> Extent:
        """What both have, counted from the start of this one."""
        start = max(self.start, other.start)
        size = min(self.start + self.size, other.start + other.size) - start
        return Extent(start - self.start, size) if size > 0 else Extent(0, 0)


Block = tuple[Extent, ...]
"""A part of a tensor, by its dimensions."""

_GROUPS: WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], ProcessGroup]] = WeakKeyDictionary()
"""Those over several dimensions of a mesh, as long as there is that along the first of them."""


class Layout:
    """The ranks that tensors of some placements are split over, and the block of a tensor that each has."""

    def __init__(self, mesh: DeviceMesh, placements: Sequence[Placement]) -> None:
        self._mesh, self._placements = mesh, placements
        self._mesh_dims = mesh_dims(mesh, placements)
        own = mesh.get_coordinate()
        assert own is not None  # who steps a parameter has a part of it
        at = {}
        for place in product(*(range(mesh.size(i)) for i in self._mesh_dims)):
            there = dict(zip(self._mesh_dims, place, strict=True))
            rank = mesh.mesh[tuple(there.get(i, here) for i, here in enumerate(own))]
            at[int(rank)] = place
        self.ranks = tuple(sorted(at))
        """Of all processes, as a process group has them in order."""
        self._places = [at[rank] for rank in self.ranks]
        self._blocks: dict[tuple[int, ...], list[Block]] = {}

    @property
    def rank(self) -> int:
        """The place of this process among the ranks."""
        return self.ranks.index(dist.get_rank())

    def group(self) -> ProcessGroup:
        """The process group of the ranks; all of them are to ask for it at the same time."""
        first = self._mesh.get_group(self._mesh_dims[0])
        if len(self._mesh_dims) == 1:
            return first
        groups = _GROUPS.setdefault(first, {})
        if self.ranks not in groups:
            backend = dist.get_backend(first)
            made = dist.new_group(list(self.ranks), backend=backend, use_local_synchronization=True)
            assert not isinstance(made, int)  # this process is one of the ranks
            groups[self.ranks] = made
        return groups[self.ranks]

    def blocks(self, shape: Sequence[int]) -> list[Block]:
        """What each rank has of a tensor of this shape."""
        shape = tuple(shape)
        if shape not in self._blocks:
            self._blocks[shape] = [self._block(shape, place) for place in self._places]
        return self._blocks[shape]

    def _block(self, shape: tuple[int, ...], place: tuple[int, ...]) -> Block:
        extents = [Extent(0, size) for size in shape]
        at = dict(zip(self._mesh_dims, place, strict=True))
        for mesh_dim in self._in_order():
            dim = self._placements[mesh_dim].dim  # type: ignore[attr-defined]
            start, size = extents[dim]
            own = extent(size, self._mesh.size(mesh_dim), at[mesh_dim])
            extents[dim] = Extent(start + own.start, own.size)
        return tuple(extents)

    def _in_order(self) -> Iterator[int]:
        """The dimensions of the mesh in the order in which they split a tensor: those of strided shards last."""
        yield from (i for i in self._mesh_dims if not is_strided(self._placements[i]))
        yield from (i for i in reversed(self._mesh_dims) if is_strided(self._placements[i]))


def extent(size: int, ranks: int, rank: int) -> Extent:
    """What a rank has of a dimension, as DTensor splits it."""
    chunk = -(-size // ranks)
    start = min(rank * chunk, size)
    return Extent(start, min(chunk, size - start))


def mesh_dims(mesh: DeviceMesh, placements: Sequence[Placement]) -> list[int]:
    """The dimensions of a mesh along which ranks differ in what they have of a tensor."""
    return [i for i, placement in enumerate(placements) if mesh.size(i) > 1 and not placement.is_replicate()]


def is_strided(placement: Placement) -> bool:
    """Whether it splits what later dimensions of the mesh have split already, as FSDP2 does with tensor parallelism."""
    return getattr(placement, "split_factor", 1) > 1


def is_in_blocks(p: DTensor) -> bool:
    """Whether each rank has a block of the parameter, of which all ranks know where it is."""
    from torch.distributed.tensor import Shard

    mesh, placements = p.device_mesh, p.placements
    for i in mesh_dims(mesh, placements):
        placement = placements[i]
        if is_strided(placement):
            later = [j for j in mesh_dims(mesh, placements) if j > i]
            sizes = [mesh.size(j) for j in later if placements[j].dim == placement.dim]  # type: ignore[attr-defined]
            if placement.split_factor != prod(sizes):  # type: ignore[attr-defined]
                return False
        elif type(placement) is not Shard:
            return False
    return True
