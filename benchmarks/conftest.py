"""Options of `pytest benchmarks`, and what its benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest
import torch

import cases
import matrices
import shapes
from measure import Ceiling, seconds_per_call


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ferrostep")
    group.addoption("--threads", type=int, default=2, help="of torch and ferrostep (default: 2)")
    group.addoption("--layers", type=int, default=shapes.GPT2_LAYERS, help="of GPT-2 (default: 12)")


@pytest.fixture(scope="session", autouse=True)
def threads(pytestconfig: pytest.Config) -> Iterator[int]:
    """The number of threads, set for the session."""
    before = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.getoption("threads"))
    yield pytestconfig.getoption("threads")
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(pytestconfig: pytest.Config) -> dict[str, cases.Model]:
    """The models by name."""
    return {model.name: model for model in cases.models(pytestconfig.getoption("layers"))}


@pytest.fixture(scope="session")
def works(pytestconfig: pytest.Config) -> dict[str, matrices.Work]:
    """What Muon steps, by name."""
    return {work.name: work for work in matrices.works(pytestconfig.getoption("layers"))}


@pytest.fixture(scope="module")
def ceiling_rate() -> float:
    """Bytes per second that in-place work can reach, measured just before the module's benchmarks."""
    ceiling = Ceiling()
    ceiling.run()
    return ceiling.rate(median(seconds_per_call(ceiling.run, 1) for _ in range(15)))
