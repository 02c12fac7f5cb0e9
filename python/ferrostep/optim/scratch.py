"""Memory that an optimizer keeps from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

Kind = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""
ALIGNMENT = 64
"""Bytes at which tensors start in memory for several."""


class Scratch:
    """Pieces of memory by name: new ones cost more time than what is done in them."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def room(self, name: str, size: int) -> Tensor:
        """So many bytes, with whatever is in them; good until the next call with this name."""
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size:
            with torch.inference_mode(False):  # whatever the mode, later steps write it, too
                memory = self._memory[name] = torch.empty(size, dtype=torch.uint8)
        return memory[:size]

    def tensors(self, name: str, kinds: Iterable[Kind]) -> list[Tensor]:
        """Tensors of these shapes and dtypes, one after the other."""
        kinds = list(kinds)
        sizes = [room_of(kind) for kind in kinds]
        parts = torch.split(self.room(name, sum(sizes)), sizes) if sizes else ()
        return [view(part, kind) for part, kind in zip(parts, kinds, strict=True)]


def room_of(kind: Kind) -> int:
    """The bytes that a tensor takes in memory for several."""
    shape, dtype = kind
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def view(memory: Tensor, kind: Kind) -> Tensor:
    """A tensor that starts where the memory does."""
    shape, dtype = kind
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
