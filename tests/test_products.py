"""The matrix products behind Newton-Schulz, against torch's in float64."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ferrostep import _core

SHAPES = ((1, 1, 1), (5, 7, 3), (96, 64, 97), (200, 130, 193), (3, 0, 4))


def gaussian(rows: int, cols: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "sums", "allowed"),
    [
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 1e-6),
    ],
)
def test_products_of_any_shape(isa: str, dtype: torch.dtype, sums: torch.dtype, allowed: float) -> None:
    for m, k, n in SHAPES:
        a, b = gaussian(m, k, dtype, 1), gaussian(k, n, dtype, 2)
        for left, right in ((a, b), (a.T.contiguous().T, b.T.contiguous().T)):
            out = torch.full((m, n), float("nan"), dtype=sums)
            _core.multiply(left, right, out, threads=2)
            exact = a.double() @ b.double()
            assert (out - exact).abs().max() <= allowed * max(1, k), (m, k, n)
        square = torch.full((m, m), float("nan"), dtype=sums)
        _core.multiply(a, None, square, threads=2)
        assert torch.equal(square, square.T)
        assert (square - a.double() @ a.double().T).abs().max() <= allowed * max(1, k)


@pytest.mark.parametrize(
    ("a", "b", "out", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3), "b has shape [2, 3], expected [3, 3]"),
        (torch.ones(2, 3), torch.ones(3, 4), torch.ones(4, 2), "out has shape [4, 2], expected contiguous [2, 4]"),
        (torch.ones(2, 3), None, torch.ones(2, 3), "out has shape [2, 3], expected contiguous [2, 2]"),
        (torch.ones(2, 3), torch.ones(3, 4).double(), torch.ones(2, 4), "b has dtype float64, expected float32"),
        (torch.ones(2, 3).half(), None, torch.ones(2, 2), "a has dtype float16, expected float64, float32 or bfloat16"),
        (torch.ones(2, 3).bfloat16(), None, torch.ones(2, 2).bfloat16(), "out has dtype bfloat16, expected float32"),
        (torch.ones(4, 6)[::2, ::2], None, torch.ones(2, 2), "a has shape [2, 3], expected a contiguous matrix"),
    ],
)
def test_bad_input(a: Tensor, b: Tensor | None, out: Tensor, message: str) -> None:
    before = out.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        _core.multiply(a, b, out, threads=1)
    assert torch.equal(out, before)


def test_overlaps_are_refused() -> None:
    a = torch.ones(3, 3)
    with pytest.raises(ValueError, match="a shares memory with out"):
        _core.multiply(a, None, a, threads=1)
