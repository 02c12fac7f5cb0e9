from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ferrostep import _core


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
