"""pytest-benchmark of the step inside a training loop: forward and backward run before each step, untimed."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cases import Case
from training import WORKLOADS, Workload, trainings


@pytest.mark.parametrize(
    ("workload", "case"),
    [
        pytest.param(workload, case, id=f"{workload.name}: {case.name}, {case.storage.name}")
        for workload in WORKLOADS
        for case in workload.cases()
    ],
)
def bench_step_in_training(benchmark: BenchmarkFixture, workload: Workload, case: Case) -> None:
    training = trainings(workload)[case]
    benchmark.group = f"in training: {workload.title}, {workload.storage.param}"
    benchmark.pedantic(training.optimizer.step, setup=training.backward, rounds=10 * workload.turn, warmup_rounds=5)
