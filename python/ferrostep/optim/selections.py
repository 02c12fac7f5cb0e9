"""Which elements of a matrix, or which of several tensors, are selected, and the shapes of their states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.optim.base import arithmetic_dtype
from ferrostep.reference.frugal import is_of_rows, random_directions, top_directions

DTYPES = {"columns": torch.int32, "rows": torch.int32, "randk": torch.uint8}
"""By the selection, the numbers that say what is selected: those of columns or rows, or a bit for each element."""
SUBSPACES = ("svd", "random")
"""Selections that are no elements but a basis."""


def extent(p: Tensor, selection: str) -> int:
    """How many there are to choose from in a parameter of 2 or more dimensions: all but the first are one."""
    rows, columns = p.shape[0], math.prod(p.shape[1:])
    if selection in SUBSPACES:
        return min(rows, columns)
    return {"rows": rows, "columns": columns}.get(selection, rows * columns)


def count(of: int, density: float) -> int:
    """How many of so many are selected: at least one, unless the density is 0."""
    return min(of, max(1, round(of * density))) if density > 0 else 0


def state_shape(p: Tensor, selection: str, density: float, side: str) -> tuple[int, ...]:
    """The shape of the states of what is selected of a parameter."""
    selected = count(extent(p, selection), density)
    if selection == "randk":
        return (selected,)
    rows, columns = extent(p, "rows"), extent(p, "columns")
    is_short = selection == "rows" or (selection in SUBSPACES and not is_of_rows(rows, columns, side))
    return (selected, columns) if is_short else (rows, selected)


def choice_shape(p: Tensor, selection: str, density: float, side: str) -> tuple[int, ...]:
    """The shape of what says what is selected."""
    of = extent(p, selection)
    selected = count(of, density)
    if selection in SUBSPACES:
        rows, columns = extent(p, "rows"), extent(p, "columns")
        return (selected, columns) if is_of_rows(rows, columns, side) else (rows, selected)
    return (-(-of // 8),) if selection == "randk" else (selected,)


def choose(p: Tensor, grad: Tensor, group: Mapping[str, Any], number: int) -> Tensor:
    """What is selected of a parameter, from the group's seed, the parameter's number and, for "svd", its gradient."""
    selection, of = group["selection"], extent(p, group["selection"])
    selected = count(of, group["density"])
    if selection in SUBSPACES:
        return choose_basis(p, grad, group, number, selected)
    chosen = _core.sample(of, selected, group["seed"], number, selection == "randk")
    if not chosen:
        return torch.empty(0, dtype=DTYPES[selection], device=p.device)
    return torch.frombuffer(bytearray(chosen), dtype=DTYPES[selection]).to(p.device)


@torch.no_grad()
def choose_basis(p: Tensor, grad: Tensor, group: Mapping[str, Any], number: int, rank: int) -> Tensor:
    """The first singular directions of the gradient, or directions at random."""
    generator = torch.Generator().manual_seed((group["seed"] + number * 0x9E37_79B9_7F4A_7C15) % 2**63)
    matrix = grad.to(arithmetic_dtype(p)).reshape(extent(p, "rows"), extent(p, "columns"))
    is_right = is_of_rows(matrix.shape[0], matrix.shape[1], group["proj_side"])
    if group["selection"] == "svd" and rank:
        return top_directions(matrix.nan_to_num(posinf=0.0, neginf=0.0), rank, generator, is_right)
    directions = random_directions(matrix.shape[int(is_right)], rank, generator).to(matrix)
    return directions.mT.contiguous() if is_right else directions


def active_tensors(of: int, group: Mapping[str, Any]) -> set[int]:
    """Which of so many tensors a ``block`` selection takes, by its order, seed and number of refreshes."""
    chosen, refreshes = count(of, group["density"]), group["refreshes"]
    if group["block_order"] == "random":
        numbers = _core.sample(of, chosen, group["seed"], refreshes, False)
        return set(torch.frombuffer(bytearray(numbers), dtype=torch.int32).tolist()) if numbers else set()
    order = block_order(of, group["block_order"])
    first = (refreshes - 1) * chosen
    return {order[i % of] for i in range(first, first + chosen)}


def block_order(of: int, name: str) -> Sequence[int]:
    """The order in which tensors take turns."""
    ascending = list(range(of))
    if name == "mirror":
        pairs = zip(ascending[: (of + 1) // 2], reversed(ascending), strict=False)
        return list(dict.fromkeys(i for pair in pairs for i in pair))
    return ascending if name == "ascending" else ascending[::-1]
