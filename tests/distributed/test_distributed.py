"""Optimizers over several processes (gloo): DTensors, FSDP2, tensor parallelism, DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed import processes, registry

if not dist.is_available():
    pytest.skip("torch has no torch.distributed here", allow_module_level=True)

# Four first: what they save, two load.
CASES = [(ranks, name) for ranks in (4, 2) for name in registry.cases(ranks)]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, str]]]:
    """What failed on each of so many ranks, which run all cases in one start."""
    folder: Path = tmp_path_factory.mktemp("ranks")

    @cache
    def of(ranks: int) -> list[dict[str, str]]:
        return processes.run(ranks, folder)

    return of


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_on_all_ranks(failures: Callable[[int], list[dict[str, str]]], ranks: int, name: str) -> None:
    failed = {rank: report[name] for rank, report in enumerate(failures(ranks)) if name in report}
    assert not failed, "\n".join(f"rank {rank}: {trace}" for rank, trace in failed.items())
