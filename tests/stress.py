"""Random steps, valid and invalid, in one process: ``python -m tests.stress --calls 1000000``.

A valid step must give the bits of a twin that has contiguous tensors, one thread and the portable instruction set; an
invalid one must be refused and change nothing. Ends with an error at the first that does not, and names its number:
``--seed`` and ``--first`` repeat it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import _core
from tests.bad_inputs import numpy_cases, torch_cases
from tests.contract.rules.registry import ENTRIES, Entry
from tests.contract.rules.test_numpy import TWINS, arrays_for, call, data
from tests.contract.snapshot import Snapshot
from tests.contract.training import bits, contents

ELEMENTWISE = [entry for entry in ENTRIES if entry.elementwise]
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
MAX_AGE = 30


def random_view(rng: random.Random, values: Tensor) -> Tensor:
    """The values in a random layout: an order of dimensions, gaps, an offset."""
    order = rng.sample(range(values.dim()), values.dim())
    strides, width = [0] * values.dim(), 1
    for dim in reversed(order):
        step = rng.choice((1, 1, 1, 2, 3))
        strides[dim] = width * step
        width *= max(1, values.shape[dim] * step)
    base = torch.zeros(width + 3, dtype=values.dtype)
    return base.as_strided(values.shape, strides, rng.randrange(3)).copy_(values)


def random_shape(rng: random.Random) -> tuple[int, ...]:
    if rng.random() < 0.02:
        return (rng.choice((32_767, 32_768, 32_769, 70_001)),)
    return tuple(rng.choice((0, 1, 2, 3, 5, 8, 17)) for _ in range(rng.randrange(4)))


class Pair:
    """An optimizer over tensors of any layout, and its twin over contiguous ones."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.age = 0
        entry: Entry = rng.choice(ELEMENTWISE)
        dtypes = DTYPES if entry.complex else DTYPES[:-1]
        values = [torch.randn(random_shape(rng), dtype=rng.choice(dtypes)) for _ in range(rng.randrange(1, 6))]
        self.params = [Parameter(random_view(rng, v)) for v in values]
        self.twins = [Parameter(v.clone()) for v in values]
        options: dict[str, Any] = {
            "rounding": rng.choice(("nearest", "kahan")),
            "skip_nonfinite": rng.random() < 0.3,
            "state_dtype": rng.choice((None, None, torch.bfloat16)),
        }
        cut = rng.randrange(len(values) + 1)
        self.optimizer, self.twin = (
            entry.build([{"params": group} for group in (params[:cut], params[cut:]) if group], **options)
            for params in (self.params, self.twins)
        )

    def step(self) -> None:
        rng = self.rng
        self.age += 1
        for p, twin in zip(self.params, self.twins, strict=True):
            if rng.random() < 0.1:
                p.grad = twin.grad = None
            elif p.grad is None or rng.random() < 0.5:
                grad = torch.randn(p.shape, dtype=p.dtype)
                if rng.random() < 0.02 and grad.numel():
                    grad.view(-1)[rng.randrange(grad.numel())] = rng.choice((float("nan"), float("inf")))
                p.grad, twin.grad = random_view(rng, grad), grad
        if rng.random() < 0.1:
            self.optimizer.param_groups[0]["lr"] = self.twin.param_groups[0]["lr"] = rng.random() * 0.01
        if rng.random() < 0.05:
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        gradients = [None if p.grad is None else bits(p.grad) for p in self.params]
        torch.set_num_threads(rng.randrange(1, 4))
        _core.use_isa(rng.choice(_core.supported_isas()))
        _core.use_exchange_api(rng.random() < 0.8)
        self.optimizer.step()
        torch.set_num_threads(1)
        _core.use_isa("portable")
        self.twin.step()
        assert gradients == [None if p.grad is None else bits(p.grad) for p in self.params], "a gradient has changed"
        actual, expected = contents(self.optimizer), contents(self.twin)
        assert actual.keys() == expected.keys()
        for name in actual:
            a, b = (t.nan_to_num(nan=12345.0) for t in (actual[name], expected[name]))
            assert bits(a) == bits(b), f"{name} differs from its twin"


def valid_step(rng: random.Random, pairs: list[Pair]) -> str:
    index = rng.randrange(len(pairs))
    if pairs[index].age > MAX_AGE or rng.random() < 0.05:
        pairs[index] = Pair(rng)
    pairs[index].step()
    return "valid"


def invalid_step(rng: random.Random) -> str:
    """One of the bad inputs for torch."""
    entry = rng.choice(ELEMENTWISE)
    cases = torch_cases.CASES + (torch_cases.STEP_CASES if entry.name.startswith("adam") else ())
    case = rng.choice([case for case in cases if entry.complex or not case.complex])
    torch.set_num_threads(rng.randrange(1, 4))
    _core.use_isa(rng.choice(_core.supported_isas()))
    _core.use_exchange_api(rng.random() < 0.8)
    trial = torch_cases.Trial(entry.build, rng.choice((torch.float32, torch.bfloat16)), **case.options)
    case.spoil(trial)
    before = Snapshot(trial.optimizer, others=trial.params)
    try:
        trial.optimizer.step()
    except case.error:
        before.assert_unchanged()
        return "refused"
    raise AssertionError(f"{case.name!r} was not refused by {entry.name}")


def invalid_numpy_call(rng: random.Random) -> str:
    """One of the bad inputs for NumPy."""
    twin, case = rng.choice(list(TWINS.values())), rng.choice(numpy_cases.CASES)
    arrays = arrays_for(twin, numpy_cases.SHAPE, torch.float32)
    case.spoil(arrays)
    before = {name: data(a) if hasattr(a, "dtype") else a for name, a in arrays.items()}
    try:
        call(twin, arrays, 1)
    except case.error:
        assert {name: data(a) if hasattr(a, "dtype") else a for name, a in arrays.items()} == before, case.name
        return "refused (NumPy)"
    raise AssertionError(f"{case.name!r} was not refused")


def run(calls: int, seed: int, first: int = 0) -> Counter[str]:
    """Make the calls; return how many of each kind there were."""
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    pairs: list[Pair] = []
    for number in range(first, first + calls):
        rng = random.Random(seed * 1_000_003 + number)
        torch.manual_seed(number)
        if number % 1000 == 0 or not pairs:
            pairs = [Pair(rng) for _ in range(10)]
        try:
            kind = rng.random()
            for pair in pairs:
                pair.rng = rng
            if kind < 0.5:
                counts[valid_step(rng, pairs)] += 1
            elif kind < 0.85:
                counts[invalid_step(rng)] += 1
            else:
                counts[invalid_numpy_call(rng)] += 1
        except BaseException:
            print(f"call {number} (repeat with --seed {seed} --first {number - number % 1000})", file=sys.stderr)
            raise
        if number % 10_000 == 9_999:
            print(f"{number + 1} calls, {time.monotonic() - begin:.0f} s: {dict(counts)}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call, a multiple of 1000")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(dict(run(arguments.calls, arguments.seed, arguments.first)))


if __name__ == "__main__":
    main()
