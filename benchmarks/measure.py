"""How it is measured: contestants take turns in one process, and the memory's own rate is one of them."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

SHORTEST_SAMPLE = 0.02  # seconds: quicker calls are repeated until a sample takes about this long
WARM_UP = 3  # calls: the first makes the state, the second may still meet cold memory


class Ceiling:
    """What the memory gives to in-place work: `x.mul_(c)` over 64 Mi floats moves 8 bytes for each."""

    def __init__(self) -> None:
        self.x = torch.ones(2**26)

    def run(self) -> None:
        """Go over the memory once."""
        self.x.mul_(1.0)

    @property
    def bytes(self) -> int:
        """That `run` moves."""
        return 2 * self.x.nbytes

    def rate(self, seconds: float) -> float:
        """Bytes per second when `run` takes `seconds`."""
        return self.bytes / seconds


def interleave(contestants: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of a call of each contestant in each round; every round has an order of its own."""
    samples: dict[Key, list[float]] = {key: [] for key in contestants}
    repeats = {key: repeats_for(call) for key, call in contestants.items()}
    keys = list(contestants)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for key in random.Random(number).sample(keys, len(keys)):
                samples[key].append(seconds_per_call(contestants[key], repeats[key]))
    finally:
        if enabled:
            gc.enable()
    return samples


def repeats_for(call: Callable[[], object]) -> int:
    """Calls that make a sample, after warming up."""
    for _ in range(WARM_UP - 1):
        call()
    return max(1, round(SHORTEST_SAMPLE / seconds_per_call(call, 1)))


def seconds_per_call(call: Callable[[], object], repeats: int) -> float:
    """Mean over `repeats` calls in a row."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def ratio(dividend: Sequence[float], divisor: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows all of a round down, such as the machine's neighbours, cancels."""
    return median(a / b for a, b in zip(dividend, divisor, strict=True))


class Bystanders:
    """How busy other processes keep the machine; where there is no /proc (not on Linux) it looks idle."""

    def __init__(self) -> None:
        self.begin, self.others = time.perf_counter(), self.seconds()

    @staticmethod
    def seconds() -> float:
        """CPU time of all processes but this one, since the machine started."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return 0.0
        user, nice, system = map(int, stat.read_text().split(maxsplit=4)[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()

    def share(self) -> float:
        """CPUs that others kept busy since this object was made: 0 when alone."""
        return (self.seconds() - self.others) / (time.perf_counter() - self.begin)
