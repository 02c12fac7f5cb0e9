"""The maps that the contract is tested over. A new one joins by one entry; a test holds them to the public names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import ferrostep.numpy
from ferrostep import projections
from ferrostep.reference import projections as reference

Row = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """A map with its arguments."""

    name: str
    function: Callable[..., Tensor]
    in_place: Callable[..., Tensor]
    numpy: Callable[..., npt.NDArray[Any]]
    reference: Callable[..., Tensor]
    product: Callable[..., Tensor]
    """In plain torch, from the image, the vector, and the arguments."""
    oracle: Callable[..., Row]
    """The image of one row of float64, found in another way than any of the above, by the row and the arguments."""
    arguments: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def __call__(self, x: Tensor, dim: int = -1) -> Tensor:
        """The map with its arguments."""
        return self.function(x, **self.arguments, dim=dim)


def by_bisection(row: Row, s: float) -> Row:
    """The projection onto the simplex: the threshold is where the sum falls below ``s``."""
    row = row - row.max()
    low, high = -s, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > s else (low, middle)
    return np.maximum(row - low, 0)


SIMPLEX: Any = {
    "function": projections.simplex,
    "in_place": projections.simplex_,
    "numpy": ferrostep.numpy.projections.simplex,
    "reference": reference.simplex,
    "product": reference.simplex_vjp,
    "oracle": by_bisection,
}

ENTRIES = (
    Entry("simplex", **SIMPLEX, arguments={"s": 1.0}),
    Entry("simplex-small", **SIMPLEX, arguments={"s": 1e-3}),
    Entry("simplex-wide", **SIMPLEX, arguments={"s": 60.0}),
)

every_map = pytest.mark.parametrize("entry", ENTRIES, ids=str)
one_of_each = pytest.mark.parametrize("entry", {entry.function: entry for entry in ENTRIES}.values(), ids=str)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sample(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, of which some rows have ties, a shift, or another scale."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if len(shape) > 1 and shape[0] > 3:
        x[1] = x[1].round()
        x[2] += 50.0
        x[3] *= 20.0
    return x.to(dtype)
