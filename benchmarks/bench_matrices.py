"""pytest-benchmark over the table of Muon's work: every implementation's step."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import matrices


@pytest.mark.parametrize("implementation", matrices.OPTIMIZERS)
@pytest.mark.parametrize("name", [work.name for work in matrices.works(layers=1)])
def bench_muon(benchmark: BenchmarkFixture, name: str, implementation: str, works: dict[str, matrices.Work]) -> None:
    benchmark.group = f"Muon: {works[name].title}"
    benchmark.pedantic(works[name].make(implementation).step, rounds=5, warmup_rounds=2)
