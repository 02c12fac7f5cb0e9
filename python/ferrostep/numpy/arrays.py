"""What the functions for NumPy arrays have in common."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def threads(most: int | None) -> int:
    """At most so many threads; by default as many as there are CPUs."""
    return most or os.cpu_count() or 1
