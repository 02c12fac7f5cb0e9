from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ferrostep import _core


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would run the same code again."""
    once, again = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        (again if callspec is not None and has_no_code_of_its_own(callspec.params) else once).append(item)
    config.hook.pytest_deselected(items=again)
    items[:] = once


def has_no_code_of_its_own(arguments: dict[str, Any]) -> bool:
    """Whether a test forces an instruction set upon plain torch, or one beyond AVX-512, which differ in their products
    of matrices only, upon an optimizer without these."""
    isa = arguments.get("isa", "portable")
    without_products = getattr(arguments.get("entry"), "exact", False)
    return (isa in ("avx512bf16", "amxbf16") and without_products) or (
        isa != "portable" and arguments.get("backend") == "reference"
    )


@pytest.fixture(params=["exchange", "capsule"])
def boundary(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways over the boundary: torch's exchange API, and DLPack capsules as with torch before 2.10."""
    _core.use_exchange_api(request.param == "exchange")
    yield request.param
    _core.use_exchange_api(True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64_steps() -> Iterator[None]:
    """Step counts of the default dtype: torch's differentiable form works out its bias corrections in that."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
