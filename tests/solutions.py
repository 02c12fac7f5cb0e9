"""What the tests of derivatives of solutions share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ferrostep.implicit import ConvergenceWarning


@pytest.fixture(autouse=True)
def nothing_is_told_by_itself() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        yield


def f64(*values: Any) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def near(found: Any, *expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), f64(*expected), rtol=0, atol=tolerance)
