"""Threads: the same bits for any number of them, after a fork, in other processes, and from several at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from ferrostep.optim import AdamW, shards
from tests.contract.rules.registry import Entry, every_class, every_entry
from tests.contract.training import assert_same_bits, bits, contents, normal, train

# A task of the engine is 32768 elements: these are several tasks, with rests, and small tensors between them.
SHAPES = ((100_003,), (7,), (300, 257), (32_768,), (65_536 + 1,))
MATRICES = ((997, 101), (7, 1), (300, 257), (256, 128), (3, 21_845))
TIMEOUT = 60


def large(dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Parameter]:
    return [Parameter(normal(shape, dtype, 0, i)) for i, shape in enumerate(shapes)]


def large_shapes(entry: Entry) -> tuple[tuple[int, ...], ...]:
    """Shapes of several tasks that the entry takes."""
    if entry.any_shape:
        return SHAPES
    if {"num_heads", "split_sizes"}.isdisjoint(entry.arguments):
        return MATRICES
    return tuple((*shape[:-1], 1_000 * shape[-1] + 1) for shape in entry.shapes)


@every_entry
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "kahan"), (torch.float64, "nearest")],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits(entry: Entry, dtype: torch.dtype, rounding: str) -> None:
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        params = large(dtype, large_shapes(entry))
        optimizer = entry.build(params, rounding=rounding)
        train(optimizer, params, 2)
        found.append(contents(optimizer))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@every_class
def test_skip_nonfinite_finds_the_last_element_on_several_threads(entry: Entry) -> None:
    torch.set_num_threads(4)
    params = large(shapes=SHAPES if entry.any_shape else MATRICES)
    optimizer = entry.build(params, skip_nonfinite=True)
    train(optimizer, params, 1)
    before = [bits(p) for p in params]
    params[-1].grad.view(-1)[-1] = float("nan")
    optimizer.step()
    assert [bits(p) for p in params] == before


@every_class
def test_steps_of_several_threads_at_once(entry: Entry) -> None:
    torch.set_num_threads(2)
    shapes = ((397, 101), (41, 3))

    def trained() -> list[bytes]:
        params = large(shapes=shapes)
        optimizer = entry.build(params)
        for _ in range(10):
            for i, p in enumerate(params):
                p.grad = gradients[i]
            optimizer.step()
        return [bits(p) for p in params]

    gradients = [normal(shape, torch.float32, 1, i) for i, shape in enumerate(shapes)]
    expected = trained()
    found: list[list[bytes]] = []
    workers = [threading.Thread(target=lambda: found.append(trained()), daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT)
    assert found == [expected] * 4


@pytest.fixture
def trained() -> tuple[AdamW, list[Parameter]]:
    """An optimizer in mid-training on two threads, with gradients for the next step."""
    torch.set_num_threads(2)
    params = large()
    optimizer = AdamW(params, lr=0.01)
    train(optimizer, params, 2)
    return optimizer, params


def digest(params: list[Parameter]) -> str:
    """Without torch's parallel regions, which do not survive a fork."""
    result = hashlib.sha256()
    for p in params:
        result.update(p.detach().numpy().tobytes())
    return result.hexdigest()


def in_forked_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a forked child; a child that hangs is killed, and fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], TIMEOUT)
        assert ready, "the child hangs"
        return os.read(reader, 10_000).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_steps_like_its_parent(trained: tuple[AdamW, list[Parameter]]) -> None:
    optimizer, params = trained

    def step() -> str:
        for _ in range(3):
            optimizer.step()
        return digest(params)

    before = digest(params)
    of_child = in_forked_child(step)
    assert digest(params) == before
    assert step() == of_child
    # The parent goes on as before, and a second child finds its way, too.
    assert in_forked_child(step) == step()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_grandchild_steps_too(trained: tuple[AdamW, list[Parameter]]) -> None:
    optimizer, params = trained

    def step() -> str:
        optimizer.step()
        return digest(params)

    def step_in_a_child_after_a_step() -> str:
        optimizer.step()
        return in_forked_child(step)

    found = in_forked_child(step_in_a_child_after_a_step)
    optimizer.step()
    assert step() == found


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_steps(trained: tuple[AdamW, list[Parameter]]) -> None:
    optimizer, params = trained
    others = large()
    other = AdamW(others)
    train(other, others, 1)
    stop = threading.Event()

    def keep_stepping() -> None:
        while not stop.is_set():
            other.step()

    thread = threading.Thread(target=keep_stepping, daemon=True)
    thread.start()

    def step() -> str:
        optimizer.step()
        return digest(params)

    try:
        found = {in_forked_child(step) for _ in range(10)}
    finally:
        stop.set()
        thread.join(TIMEOUT)
    assert found == {step()}


def work_in_process(connection: Any, threads: int) -> None:
    """In a process of multiprocessing: train from the beginning."""
    torch.set_num_threads(threads)
    params = large(shapes=((100_003,), (7,)))
    optimizer = AdamW(params, lr=0.01)
    train(optimizer, params, 2)
    connection.send(digest(params))
    connection.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_of_multiprocessing(method: str, trained: tuple[AdamW, list[Parameter]]) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    # torch itself hangs in a forked child that has more than one thread: see torch's notes on multiprocessing.
    threads = 1 if method == "fork" else 2
    process = context.Process(target=work_in_process, args=(sending, threads), daemon=True)
    process.start()
    try:
        assert receiving.poll(TIMEOUT), "the process hangs"
        found = receiving.recv()
    finally:
        process.kill()
        process.join()
    expected, sent = context.Pipe(duplex=False)
    work_in_process(sent, 2)
    assert expected.recv() == found


class Stepping(torch.utils.data.Dataset[float]):
    """A data set whose every item takes an optimizer step, as an environment that learns would."""

    def __init__(self) -> None:
        self.params = large(shapes=((70_000,),))
        self.optimizer = AdamW(self.params)
        train(self.optimizer, self.params, 1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        self.optimizer.step()
        return float(self.params[0].detach().numpy()[0])


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*worker processes.*:UserWarning")
def test_steps_in_the_workers_of_a_data_loader(trained: tuple[AdamW, list[Parameter]]) -> None:
    optimizer, _ = trained
    loader = torch.utils.data.DataLoader(
        Stepping(), batch_size=None, num_workers=2, timeout=TIMEOUT, multiprocessing_context="fork"
    )
    found = []
    for item in loader:
        optimizer.step()
        found.append(float(item))
    # Each worker has a copy of its own: every value comes once from each.
    assert len(found) == 6
    assert found[::2] == found[1::2]
    assert len(set(found)) == 3


def test_there_are_no_dtensors_while_another_thread_loads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is being loaded is listed before it has what it defines."""
    params = large(shapes=((7,),))
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", ModuleType("torch.distributed.tensor"))
    assert not shards.are_among(params) and not shards.is_distributed(params[0])
    assert shards.who_share([{"params": params}]) == []
