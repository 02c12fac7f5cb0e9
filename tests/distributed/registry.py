"""The cases that all ranks run, in one start of the processes for each number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Case = Callable[[Path], None]

ALL: dict[str, tuple[tuple[int, ...], Case]] = {}


def on(*ranks: int) -> Callable[[Case], Case]:
    """A case for these numbers of ranks."""

    def add(case: Case) -> Case:
        ALL[case.__name__] = (ranks, case)
        return case

    return add


def cases(ranks: int) -> dict[str, Case]:
    """The cases for a number of ranks, by name, in the order of the files."""
    from tests.distributed import checkpoints, errors, modules, steps

    assert all((steps, modules, checkpoints, errors))  # importing them has filled the table
    return {name: case for name, (numbers, case) in ALL.items() if ranks in numbers}
