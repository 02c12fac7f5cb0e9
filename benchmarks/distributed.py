"""What DTensors cost: AdamW on many of them beside plain tensors, and Muon on one rank and on two.

    python benchmarks/distributed.py [--layers 4] [--rounds 9]

Two processes (gloo on this machine, one thread each) take turns with one that has two threads.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.optim import AdamW, Muon
from markdown import table
from measure import interleave, ratio, seconds_per_call
from shapes import Shape, gpt2

TENSORS, ELEMENTS = 300, 40_000
Row = list[str]
Build = Callable[[list[Parameter]], Optimizer]


def fused(params: list[Parameter]) -> Optimizer:
    """torch's AdamW."""
    return torch.optim.AdamW(params, fused=True)


def stepping(build: Build, shapes: list[Shape], *, distributed: bool) -> Callable[[], object]:
    """The step of an optimizer over parameters of these shapes with gradients."""
    generator = torch.Generator().manual_seed(0)
    # One for all, as FSDP2's parameters have.
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if distributed else None

    def tensor(shape: Shape) -> Tensor:
        x = torch.randn(shape, generator=generator)
        return distribute_tensor(x, mesh, [Shard(0)]) if mesh else x

    params = [Parameter(tensor(shape)) for shape in shapes]
    for p in params:
        p.grad = tensor(tuple(p.shape))
    return build(params).step


def adamw_on_one_rank(rounds: int) -> list[Row]:
    """300 DTensors, and as many plain tensors."""
    torch.set_num_threads(2)
    shapes: list[Shape] = [(ELEMENTS // 100, 100)] * TENSORS
    plain, ours, theirs = "ferrostep, plain tensors", "ferrostep, DTensors", "torch fused, DTensors"
    steps = {
        plain: stepping(AdamW, shapes, distributed=False),
        ours: stepping(AdamW, shapes, distributed=True),
        theirs: stepping(fused, shapes, distributed=True),
        "torch fused, plain tensors": stepping(fused, shapes, distributed=False),
    }
    times = interleave(steps, rounds)
    return [
        [f"AdamW, 1 rank, 2 threads: {name}", f"{median(own) * 1e3:.2f}", f"{ratio(own, times[plain]):.2f}"]
        for name, own in times.items()
    ]


def together(call: Callable[[], object]) -> float:
    """Seconds of a call on all ranks at once: those of the slowest."""
    dist.barrier()
    seconds = torch.tensor(seconds_per_call(call, 1), dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def on_two_ranks(rounds: int, layers: int) -> list[Row]:
    """One thread each: AdamW on shards beside plain tensors of their size, Muon beside the same on one rank alone."""
    torch.set_num_threads(1)
    rows = []
    shapes: list[Shape] = [(2 * ELEMENTS // 100, 100)] * TENSORS
    local = stepping(AdamW, [(ELEMENTS // 100, 100)] * TENSORS, distributed=False)
    shards = stepping(AdamW, shapes, distributed=True)
    times = {"plain tensors": [], "DTensors": []}
    for _ in range(rounds + 2):
        times["plain tensors"].append(together(local))
        times["DTensors"].append(together(shards))
    for name, own in times.items():
        seconds, base = own[2:], times["plain tensors"][2:]
        rows.append(
            [f"AdamW, 2 ranks, 1 thread: {name}", f"{median(seconds) * 1e3:.2f}", f"{ratio(seconds, base):.2f}"]
        )
    hidden = [shape for shape in gpt2(layers)[2:] if len(shape) == 2]
    steps = {
        "1 rank": stepping(Muon, hidden, distributed=False) if dist.get_rank() == 0 else (lambda: None),
        "2 ranks": stepping(Muon, hidden, distributed=True),
        "2 ranks, half of them each, nothing exchanged": stepping(Muon, own_half(hidden), distributed=False),
        "2 ranks, nothing but two exchanges of as many bytes": exchanging(sum(map(math.prod, hidden))),
    }
    for step in steps.values():
        together(step)
    samples = [[together(step) for step in steps.values()] for _ in range(max(3, rounds // 3))]
    of_each = dict(zip(steps, zip(*samples, strict=True), strict=True))
    for name, seconds in of_each.items():
        relative = ratio(seconds, of_each["1 rank"])
        rows.append(
            [f"Muon, {len(hidden)} matrices, 1 thread: {name}", f"{median(seconds) * 1e3:.1f}", f"{relative:.2f}"]
        )
    return rows


def own_half(shapes: list[Shape]) -> list[Shape]:
    """The matrices that this rank would own, by about the time that they take."""
    work, owned = [0] * dist.get_world_size(), []
    for shape in sorted(shapes, key=lambda shape: -math.prod(shape) * min(shape)):
        owner = work.index(min(work))
        work[owner] += math.prod(shape) * min(shape)
        if owner == dist.get_rank():
            owned.append(shape)
    return owned


def exchanging(elements: int) -> Callable[[], object]:
    """What a rank sends and gets for directions and moves of so many elements, a half of which the other owns."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    sizes = [0 if other == rank else elements // ranks**2 for other in range(ranks)]
    out, into = torch.ones(sum(sizes)), torch.ones(sum(sizes))

    def exchange() -> None:
        for _ in range(2):
            dist.all_to_all_single(into, out, sizes, sizes)

    return exchange


@contextmanager
def ranks(rank: int, number: int, folder: str) -> Iterator[None]:
    """A process group of so many."""
    store = dist.FileStore(os.path.join(folder, f"store-{number}"), number)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
    try:
        yield
    finally:
        dist.destroy_process_group()


def of_rank(rank: int, folder: str, rounds: int, layers: int) -> None:
    """What one of two ranks does."""
    with ranks(rank, 2, folder):
        rows = on_two_ranks(rounds, layers)
    if rank == 0:
        Path(folder, "rows").write_text("\n".join("\t".join(row) for row in rows))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of GPT-2 (default 4)")
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(of_rank, (folder, arguments.rounds, arguments.layers), nprocs=2)
        rows = [line.split("\t") for line in Path(folder, "rows").read_text().splitlines()]
        with ranks(0, 1, folder):
            rows = adamw_on_one_rank(arguments.rounds) + rows
    print(table(["step", "ms", "x the first of its kind"], rows))


if __name__ == "__main__":
    main()
