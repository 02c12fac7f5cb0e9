"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ferrostep import _core

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amxbf16")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set, forced; those that the machine lacks skip."""
    if request.param not in _core.supported_isas():
        pytest.skip(f"this CPU does not have {request.param}")
    before = _core.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)
