"""Misspelt arguments of public functions and classes get an error that names the right one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

from ferrostep import batch_size, bilevel, curvature, nn, optim, schedules
from ferrostep.implicit import linear, optimality


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What users call: results are made by these."""
    for package in (batch_size, bilevel, curvature, linear, nn, optimality, schedules):
        for name in package.__all__:
            found = getattr(package, name)
            if not (isinstance(found, type) and (issubclass(found, tuple) or is_dataclass(found))):
                yield name, found
    yield "GradNormSmooth", optim.GradNormSmooth


@pytest.mark.smoke
def test_a_misspelt_argument_is_known() -> None:
    looked_at = 0
    for name, found in callables():
        parameters = list(inspect.signature(found).parameters)
        if len(parameters) > 1 and not inspect.isabstract(found):
            looked_at += 1
            right = parameters[-1]
            with pytest.raises(
                TypeError, match=rf"^{name}\(\) got an .* '{right}{right[-1]}'; did you mean '{right}'\?"
            ):
                found(**{right + right[-1]: 1})
    assert looked_at > 30
