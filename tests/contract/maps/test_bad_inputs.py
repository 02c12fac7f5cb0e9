"""What a map refuses, with which error, and that nothing has changed then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.bad_inputs.map_cases import (
    EXPANDED,
    NUMBER_CASES,
    NUMPY_CASES,
    PARAMETER_CASES,
    SHAPE,
    SIZE_CASES,
    TORCH_CASES,
    Case,
    Refused,
)
from tests.contract.snapshot import memory

from .registry import ENTRIES, Entry, every, sample

one_with_rows = every(ENTRIES[0])


def every_case(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def refuse(function: Callable[..., Any], case: Case, good: dict[str, Any]) -> None:
    """Call with the bad arguments; all memory that is passed in stays as it is."""
    arguments = {**good, **case.spoil()}

    def bits() -> list[object]:
        values = (value for value in arguments.values() if not isinstance(value, (float, int, str)))
        return [
            memory(v) if isinstance(v, torch.Tensor) else v.tobytes() if hasattr(v, "tobytes") else v for v in values
        ]

    before = bits()
    with pytest.raises(case.error, match=case.message):
        function(**arguments)
    assert bits() == before


@one_with_rows
@every_case(*NUMBER_CASES, *SIZE_CASES, *TORCH_CASES)
def test_torch(entry: Entry, case: Case, boundary: str) -> None:
    for function in (entry.function, entry.in_place):
        assert function is not None
        refuse(function, case, {"x": sample(SHAPE), **entry.arguments})


@one_with_rows
def test_torch_in_place(entry: Entry) -> None:
    assert entry.in_place is not None
    refuse(entry.in_place, EXPANDED, dict(entry.arguments))


@one_with_rows
@every_case(*NUMBER_CASES, *SIZE_CASES)
def test_other_devices(entry: Entry, case: Case) -> None:
    for function in (entry.function, entry.in_place):
        assert function is not None
        refuse(function, case, {"x": torch.empty(SHAPE, device="meta"), **entry.arguments})


@one_with_rows
@every_case(*NUMBER_CASES, *SIZE_CASES, *NUMPY_CASES)
def test_numpy(entry: Entry, case: Case) -> None:
    refuse(entry.numpy, case, {"x": np.ones(SHAPE), **entry.arguments})


@pytest.mark.parametrize("case", PARAMETER_CASES, ids=lambda case: f"{case.map}-{','.join(case.arguments)}")
def test_parameters(case: Refused) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == case.map)
    given = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.arguments.items()}
    x = sample(SHAPE)
    before = memory(x)
    for function in filter(None, (entry.function, entry.in_place)):
        with pytest.raises(case.error, match=case.message):
            function(x, **given)
    with pytest.raises(case.error, match=case.message):
        entry.numpy(x.numpy(), **case.arguments)
    assert memory(x) == before
