"""The table of training results in docs/optimizers.md: who is in it, and that it is what the record of runs gives."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.optim import Optimizer

from ferrostep import optim
from ferrostep.demo.model import GPT

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "optimizers.md"
MEMORY = ROOT / "docs" / "memory.md"


@pytest.fixture(scope="module")
def results() -> Iterator[ModuleType]:
    """The program, whose modules have names that others have, too (`markdown`)."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("training_results")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def record(results: ModuleType) -> object:
    return results.Record(ROOT / "docs" / "optimizers.json")


def page() -> tuple[str, list[list[str]]]:
    """The text, and the cells of the table of results."""
    before, _, rest = PAGE.read_text().partition("<!-- begin results -->")
    rows, _, after = rest.partition("<!-- end results -->")
    lines = [line for line in rows.splitlines() if line.startswith("|")]
    return before + after, [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_every_class_has_a_row_or_a_reason(results: ModuleType, record: object) -> None:
    complete = results.finished(record)
    shown = set.union(*(results.classes(results.built(name, GPT(results.SMALL))) for name in complete))
    public = {name for name in optim.__all__ if is_optimizer(getattr(optim, name))}
    assert public - {"RuleOptimizer"} == shown | set(results.LEFT_OUT)
    assert shown.isdisjoint(results.LEFT_OUT)
    text, _ = page()
    with_pages = {name for name in public if issubclass(getattr(optim, name), optim.RuleOptimizer)} - {"RuleOptimizer"}
    assert [name for name in with_pages if f"[{name}](../python/ferrostep/optim/" not in text] == []


def is_optimizer(each: object) -> bool:
    return isinstance(each, type) and issubclass(each, Optimizer)


def test_the_page_has_the_table_of_the_record(results: ModuleType, record: object) -> None:
    """Bytes of state are those of real states."""
    text = PAGE.read_text()
    assert f"<!-- begin results -->\n\n{results.section(record)}\n\n<!-- end results -->" in text
    assert f"<!-- begin losses -->\n\n{results.sparing(record)}\n\n<!-- end losses -->" in MEMORY.read_text()
    assert "](optimizers.png)" in text and (ROOT / "docs" / "optimizers.png").read_bytes().startswith(b"\x89PNG")


def test_every_row_is_explained(results: ModuleType) -> None:
    """What a name of `compare` stands for is said below the table, unless it is the class's own."""
    text, _ = page()
    classes = {name.lower() for name in optim.__all__}
    assert [name for name in results.NAMES if name.replace("_", "") not in classes and f"`{name}`" not in text] == []


@pytest.mark.smoke
def test_a_grid_grows_where_the_best_lies_at_its_end(results: ModuleType) -> None:
    calls = []

    def loss(exponent: float, seed: int) -> float:
        calls.append((exponent, seed))
        return abs(exponent + 3.4) + seed / 10 if exponent < 1 else math.inf

    best, losses = results.tune(loss)
    assert best == -3.5
    assert losses == pytest.approx([0.2, 0.3, 0.4])
    grid = [(float(exponent), 0) for exponent in (-2, -1, 0, 1, 2, -3, -4)]
    assert calls == [*grid, (-3.5, 0), (-2.5, 0), (-3.5, 1), (-3.5, 2), (-3.5, 3)]


def test_a_grid_ends_where_everything_diverges(results: ModuleType) -> None:
    assert results.tune(lambda exponent, seed: math.inf)[0] == -6


def test_runs_are_kept(results: ModuleType, tmp_path: Path) -> None:
    record = results.Record(tmp_path / "runs.json")
    runs = record.of("gpt", "adamw", 3e-3)
    runs.add(0.5, 1, 2.3456789)
    runs.add(1.0, 1, math.nan)
    record.save()
    again = results.Record(tmp_path / "runs.json")
    assert again.of("gpt", "adamw", 3e-3).loss(0.5, 1) == 2.3457
    assert again.of("gpt", "adamw", 3e-3).loss(1.0, 1) == math.inf
    with pytest.raises(KeyError):
        again.of("gpt", "adamw", 3e-3).loss(1.0, 2)
    assert again.of("gpt", "adamw", 1e-3).losses == {}  # the grid has another middle


def test_runs_are_done_once(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    workload = results.Workload("t", "l", lambda: None, lambda: GPT(results.SMALL), 1)
    monkeypatch.setattr(results, "WORKLOADS", {"t": workload})
    monkeypatch.setattr(results, "train_once", lambda *what: done.append(what[3:]) or abs(what[3]))
    console = results.Console(file=(tmp_path / "log").open("w"))
    for fresh in (False, False, True):
        results.complete(results.Record(tmp_path / "runs.json"), [("t", "adamw")], fresh, 1, console)
    assert len(done) == 2 * 10 and done[:10] == done[10:]


def test_times_of_some_stand_beside_those_of_the_same_machine(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "TIMED", results.SMALL)
    monkeypatch.setattr(results, "interleave", lambda each, rounds: {name: [0.002] for name in each})
    record, console = results.Record(tmp_path / "runs.json"), results.Console(file=(tmp_path / "log").open("w"))
    for machine, names, known in [
        ("one", ["sgd", "lion"], {"sgd", "lion"}),
        ("one", ["adamw"], {"sgd", "lion", "adamw"}),
        ("another", ["adamw"], {"adamw"}),
    ]:
        results.measure_times(record, names, machine, torch.get_num_threads(), console)
        assert set(record.times["ratios"]) == known


@pytest.mark.frameworks
@pytest.mark.parametrize("task", ["gpt", "digits", "friedman"])
def test_the_tasks_train(results: ModuleType, task: str) -> None:
    pytest.importorskip("sklearn")
    workload = results.WORKLOADS[task]
    data = workload.data()
    torch.manual_seed(0)
    before = data.held_out_loss(workload.model())
    few = results.Workload(workload.title, workload.loss, workload.data, workload.model, steps=20)
    for name in ("sophia_g", "sam_sgd", "muon"):
        assert results.train_once(results.Runs(task, name, 1.0), few, data, -1.0, 0) < before


def test_the_table_reads_as_numbers() -> None:
    _, (heading, _, *rows) = page()
    assert len(heading) == 7 and all(len(row) == 7 for row in rows)
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)|diverged", cell) for row in rows for cell in row[1:4])
