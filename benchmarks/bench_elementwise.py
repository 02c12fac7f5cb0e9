"""pytest-benchmark over the table of cases: every optimizer's step on every model's shapes."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import cases
from cases import CASES, Case, Model


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.storage.name}")
@pytest.mark.parametrize("name", [model.name for model in cases.models()])
def bench_step(
    benchmark: BenchmarkFixture, name: str, case: Case, models: dict[str, Model], ceiling_rate: float
) -> None:
    model = models[name]
    step = case.make(model.parameters(case.storage.param)).step
    benchmark.group = f"{model.title}: {case.rule.name}"
    rounds, repeats = (10, 1) if model.elements > 1e6 else (50, 50)
    benchmark.pedantic(step, rounds=rounds, iterations=repeats, warmup_rounds=2)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["ns_per_element"] = 1e9 * seconds / model.elements
        benchmark.extra_info["bytes_per_element"] = case.bytes_per_element
        benchmark.extra_info["of_ceiling"] = case.bytes_per_element * model.elements / seconds / ceiling_rate
