"""A solver tells how far it has come, gives up with a reason, and can be interrupted at any time."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import numpy as np
import pytest

from ferrostep import _core
from tests.contract.solvers.registry import Entry, every_solver
from tests.contract.subprocesses import run_python

LONG = 1200
"""So many tasks are a problem for seconds."""


@every_solver
def test_the_last_report_says_how_it_ended(entry: Entry, caplog: pytest.LogCaptureFixture) -> None:
    points = np.random.default_rng(0).standard_normal((20, 30))
    gram = points @ points.T
    reports: list[_core.Report] = []
    entry.numpy(gram, callback=reports.append)
    (last,) = reports
    assert last.status == "converged" and last.gap <= 1e-15 and last.steps > 7
    assert repr(last) == f'Report(steps={last.steps}, gap={last.gap:.1e}, status="converged")'.replace("e-0", "e-")
    assert not caplog.records


@every_solver
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_who_gives_up_says_so_and_gives_what_is_known(
    entry: Entry, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    points = np.random.default_rng(0).standard_normal((20, 30))
    reports: list[_core.Report] = []
    with caplog.at_level(logging.WARNING):
        weights = entry.limited(points @ points.T, steps, callback=reports.append)
    (last,) = reports
    assert last.status == "out of steps" and last.steps == steps and last.gap > 1e-15
    assert (weights >= 0).all() and np.isfinite(weights).all()
    (record,) = caplog.records
    assert "gave up" in record.message and repr(last) in record.message


@every_solver
def test_progress_is_reported_while_it_runs(entry: Entry) -> None:
    gram = entry.long(LONG)
    reports: list[_core.Report] = []
    observed = entry.numpy(gram, callback=reports.append)
    steps = [report.steps for report in reports]
    assert len(steps) > 1 and steps == sorted(steps)
    assert {report.status for report in reports[:-1]} == {"running"} and reports[-1].status == "converged"
    assert np.array_equal(observed, entry.numpy(gram))


class Stop(Exception):
    """What a callback may raise."""


@every_solver
def test_what_the_callback_raises_ends_the_call(entry: Entry) -> None:
    calls = []

    def stop(report: _core.Report) -> None:
        calls.append(report)
        raise Stop

    gram = entry.long(LONG)
    before = gram.copy()
    with pytest.raises(Stop):
        entry.numpy(gram, callback=stop)
    assert [report.status for report in calls] == ["running"]
    assert np.array_equal(gram, before)


@every_solver
def test_an_interrupt_comes_before_the_next_report(entry: Entry) -> None:
    calls = []

    def interrupt(report: _core.Report) -> None:
        calls.append(report)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        entry.numpy(entry.long(LONG), callback=interrupt)
    assert [report.status for report in calls] == ["running"]


FROM_OUTSIDE = """
import os, signal, threading, time
import numpy as np
from ferrostep import _core

gram = np.load({file!r})
before, reports, sent = gram.copy(), [], []

def send():
    while len(reports) < 3:
        time.sleep(0.001)
    sent.extend([len(reports), time.monotonic()])
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=send, daemon=True).start()
try:
    _core.{name}(gram, callback=reports.append, **{arguments})
    print("ended")
except KeyboardInterrupt:
    # A report comes at most every 50 ms.
    print("interrupted", len(reports) - sent[0], np.array_equal(gram, before), time.monotonic() - sent[1])
"""


@every_solver
def test_an_interrupt_from_outside_comes_at_once(entry: Entry, tmp_path: Path) -> None:
    file = tmp_path / "gram.npy"
    np.save(file, entry.long(3000))
    code = FROM_OUTSIDE.format(name=entry.core.__name__, arguments=dict(entry.arguments), file=str(file))
    how, reports, unchanged, _ = run_python(code).split()
    assert how == "interrupted" and int(reports) <= 2 and unchanged == "True"
