"""What is measured of matrix products: ours, full and symmetric, beside torch's, the ceiling that others know of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ferrostep import _core

SIZES = (768, 2048)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TORCH, FULL, SYMMETRIC = "torch, a @ b", "ferrostep, a @ b", "ferrostep, a @ a.T"


class Product(NamedTuple):
    """A product and its useful operations: a symmetric result has half as many."""

    call: Callable[[], object]
    flop: int


def products(n: int, dtype: torch.dtype, threads: int) -> dict[str, Product]:
    """All implementations on matrices of n x n."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(dtype) for _ in range(2))
    ours, theirs = torch.empty(n, n), torch.empty(n, n, dtype=dtype)
    return {
        TORCH: Product(lambda: torch.mm(a, b, out=theirs), 2 * n**3),
        FULL: Product(lambda: _core.multiply(a, b, ours, threads=threads), 2 * n**3),
        SYMMETRIC: Product(lambda: _core.multiply(a, None, ours, threads=threads), n**3),
    }
