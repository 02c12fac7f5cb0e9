"""The processes that run the cases: `python -m tests.distributed.processes RANK RANKS FOLDER` is one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

TIMEOUT = 300.0
"""Seconds that the processes get together; they take about a twentieth of it, but for a machine that does much else."""


def run(ranks: int, folder: Path) -> list[dict[str, str]]:
    """Run all cases on so many ranks; returns what failed on each, by case. No process is left behind."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.distributed.processes"]
    logs = [folder / f"{rank}-of-{ranks}.log" for rank in range(ranks)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                arguments = [*command, str(rank), str(ranks), str(folder)]
                processes.append(subprocess.Popen(arguments, stdout=output, stderr=output, env=environment))
        end = time.monotonic() + TIMEOUT
        for process in processes:
            process.wait(max(0.1, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    reports = [folder / f"{rank}-of-{ranks}.json" for rank in range(ranks)]
    for report, log in zip(reports, logs, strict=True):
        assert report.exists(), log.read_text()
    return [json.loads(report.read_text()) for report in reports]


def main(rank: int, ranks: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from tests.distributed import registry

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / f"store-of-{ranks}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=30))
    failures = {}
    for name, case in registry.cases(ranks).items():
        torch.manual_seed(0)
        try:
            case(folder)
        except BaseException:
            failures[name] = traceback.format_exc()
        # A case that fails on one rank fails on all, rather than all those that follow.
        told: list[object] = [None] * ranks
        dist.all_gather_object(told, name in failures)
    (folder / f"{rank}-of-{ranks}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
