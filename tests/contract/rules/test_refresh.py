"""Sophia's refreshes of the Hessian estimate: the reference's numbers, on every instruction set to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import _core
from ferrostep.optim import SophiaG, SophiaH
from tests.contract.rules.test_layouts import LAYOUTS
from tests.contract.training import assert_close, assert_same_bits, contents, normal, parameters, set_gradients

SHAPES = ((5, 3), (), (0, 4), (2, 3, 4, 5), (70_001,))
"""The last has several blocks."""
DTYPES = (
    (torch.float64, None, 1e-12),
    (torch.float32, None, 1e-6),
    (torch.float32, torch.bfloat16, 2**-7),  # either way at a rounding of the average
    (torch.bfloat16, None, 1e-6),
    (torch.float16, None, 1e-6),
    (torch.float16, torch.float16, 2**-10),
)


Refresh = tuple[Callable[..., Any], Callable[[Any, list[Parameter], int], None]]
"""How to make an optimizer, and how to refresh it."""


def square(optimizer: SophiaG, params: list[Parameter], step: int) -> None:
    set_gradients(params, step)
    params[0].grad[-1, -1] = float("inf")
    optimizer.update_hessian(bs=8 + step, grad_scale=2.0)


def product(optimizer: SophiaH, params: list[Parameter], step: int) -> None:
    optimizer.generator = torch.Generator().manual_seed(step)
    optimizer.estimate_hessian(lambda: sum(0.5 * (p**3).sum() + p.sum() ** 2 / 8 for p in params[:-1]))
    optimizer.update_hessian()


def estimate(optimizer: SophiaH, params: list[Parameter], step: int) -> None:
    estimates: list[Tensor | None] = [normal(p.shape, torch.float64, 5, step, i) for i, p in enumerate(params)]
    estimates[0][-1, -1] = float("nan")
    estimates[1] = None
    optimizer.update_hessian(estimates)


REFRESHES: dict[str, Refresh] = {
    "square": (SophiaG, square),
    "product": (SophiaH, product),
    "estimate": (partial(SophiaH, maximize=True), estimate),
}
every_refresh = pytest.mark.parametrize("kind", REFRESHES)


@every_refresh
@pytest.mark.parametrize(("dtype", "state_dtype", "relative"), DTYPES, ids=str)
def test_equals_the_reference(
    kind: str, dtype: torch.dtype, state_dtype: torch.dtype | None, relative: float, isa: str
) -> None:
    make, refresh = REFRESHES[kind]

    def found(**options: Any) -> dict[str, Tensor]:
        params = parameters(SHAPES, dtype)
        optimizer = make(params, state_dtype=state_dtype, **options)
        for step in range(3):
            refresh(optimizer, params, step)
        return contents(optimizer)

    torch.set_num_threads(2)
    actual = found()
    assert_close(actual, found(backend="reference"), relative)
    hessian = actual["0.0.hessian"]
    assert hessian.isfinite().all() and hessian.count_nonzero() >= 14
    assert all(name.endswith(("param", "hessian")) for name in actual)
    torch.set_num_threads(1)
    _core.use_isa("portable")
    assert_same_bits(actual, found())


@every_refresh
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_state", LAYOUTS)
def test_any_layout(kind: str, layout: str, of_state: str) -> None:
    make, refresh = REFRESHES[kind]
    found = []
    for backend in ("rust", "reference"):
        params = [Parameter(LAYOUTS[layout](normal((4, 3, 5, 6), torch.float32, 3, i))) for i in range(3)]
        optimizer = make(params, backend=backend)
        for step in range(2):
            refresh(optimizer, params, step)
            if backend == "rust":
                for state in optimizer.state.values():
                    state["hessian"] = LAYOUTS[of_state](state["hessian"])
        found.append(contents(optimizer))
    assert_close(*found, 1e-6)
