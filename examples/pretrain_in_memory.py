"""Pretraining under a limit of memory: a byte-level decoder of 25 million parameters on the standard library's source.

Each way to train gets a process of its own, whose data (RLIMIT_DATA) may grow by so many MiB once its libraries and
text are loaded. Prints whether that was enough, what memory_plan had said, the peak of the memory, and the loss; draws
the losses. Linux only.

    pip install ".[demo]" && python examples/pretrain_in_memory.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import pyplot
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.text import Text, windows
from ferrostep.optim import FRUGAL, AdamW, Lion, MemoryPlan, frugal_param_groups, memory_plan

SHAPE = Shape(context=64, width=512, heads=8, layers=8)
BATCH = 4
MIB = 2**20
NO_MEMORY = ("can't allocate memory", "not enough memory")  # in torch's error
ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.99), "weight_decay": 0.1}
LION: dict[str, Any] = {"lr": 5e-5, "betas": (0.95, 0.98), "weight_decay": 0.5}
PROJECTED: dict[str, Any] = ADAMW | {"update_gap": 50}
BADAM: dict[str, Any] = PROJECTED | {"selection": "block", "state_free": "none"}
GALORE: dict[str, Any] = PROJECTED | {"lr": 3e-3, "selection": "svd", "state_free": "none", "reset_state": False}


class Way(NamedTuple):
    """A way to train."""

    make: Callable[..., Any]
    arguments: dict[str, Any]
    attached: bool

    def planned(self, plan: MemoryPlan) -> int:
        """The plan's bytes."""
        return plan.attached_total if self.attached and plan.attached_total is not None else plan.total


def projected(params: Iterable[torch.nn.Parameter], **arguments: Any) -> FRUGAL:
    """FRUGAL for a model's hidden matrices, with all of AdamW's state for the rest."""
    return FRUGAL(frugal_param_groups(params), **arguments)


WAYS = {
    "AdamW, float32 states": Way(AdamW, ADAMW, False),
    "the same, attached": Way(AdamW, ADAMW, True),
    "AdamW, int8 states": Way(AdamW, ADAMW | {"state_dtype": "int8"}, False),
    "AdamW, int8 states, attached": Way(AdamW, ADAMW | {"state_dtype": "int8"}, True),
    "Lion, int8 states, attached": Way(Lion, LION | {"state_dtype": "int8"}, True),
    "FRUGAL, a fourth, attached": Way(projected, PROJECTED, True),
    "FRUGAL, signs, attached": Way(projected, PROJECTED | {"density": 0.0}, True),
    "BAdam, attached": Way(projected, BADAM, True),
    "GaLore, attached": Way(projected, GALORE | {"projected_lr_scale": 0.25}, True),
}


def status(name: str) -> int:
    """Bytes that Linux tells of this process."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


@contextmanager
def limited(more: int) -> Iterator[None]:
    """Let this process's data grow by so many bytes, if any are said; not beyond, where the process has to end."""
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    if more:
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + more, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def train(way: Way, shape: Shape, steps: int, seed: int, limit: int) -> dict[str, Any]:
    """Train in this process, which gets no more memory than the limit, in bytes; what came of it."""
    text = Text.load(None, shape.context)
    plan = way.planned(memory_plan(GPT(shape), way.make, **way.arguments))
    torch.ones(1, requires_grad=True).sum().backward()  # starts autograd's threads
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    torch.manual_seed(seed)
    losses: list[float] = []
    begin = time.perf_counter()
    try:
        with limited(limit):
            take_steps(way, shape, text, steps, seed, losses)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
    seconds = time.perf_counter() - begin
    return {"plan": plan, "peak": status("VmHWM") - loaded, "losses": losses, "seconds": seconds}


def take_steps(way: Way, shape: Shape, text: Text, steps: int, seed: int, losses: list[float]) -> None:
    """Make a model and train it; the losses as they come."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(shape)
    optimizer = way.make(model.parameters(), **way.arguments)
    if way.attached:
        optimizer.attach()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = way.arguments["lr"] * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss = model.loss(windows(text.train, BATCH, shape.context + 1, generator))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


def in_a_process(name: str, arguments: argparse.Namespace, limit: int) -> dict[str, Any]:
    """Train in a process of its own."""
    own = ["--way", name, "--steps", str(arguments.steps), "--seed", str(arguments.seed), "--limit", str(limit)]
    own += ["--width", str(arguments.width)]
    done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise SystemExit(f"{name}: its process ended with code {done.returncode}: {last[0]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def mean_of_last(losses: list[float]) -> float:
    """The mean over the last tenth."""
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The losses, smoothed."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for name, losses in curves.items():
        width = max(1, len(losses) // 30)
        means = torch.tensor(losses).unfold(0, width, 1).mean(1) if losses else torch.tensor([])
        axis.plot(range(width, width + len(means)), means, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats per byte")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train in each way, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, default=280, help="MiB; 0 for none (default: %(default)s)")
    parser.add_argument("--width", type=int, default=SHAPE.width, help="of the model (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("pretrain_in_memory.png"), help="(default: %(default)s)")
    parser.add_argument("--way", choices=WAYS, metavar="WAY", help="train this one in this process, and print JSON")
    arguments = parser.parse_args()
    shape = Shape(SHAPE.context, arguments.width, SHAPE.heads, SHAPE.layers)
    if arguments.way is not None:
        limit = arguments.limit * MIB
        print(json.dumps(train(WAYS[arguments.way], shape, arguments.steps, arguments.seed, limit)))
        return
    table = Table("", "plan, MiB", "peak, MiB", "fits", "steps", "last tenth's loss", "s")
    curves = {}
    for name in track(WAYS, "training"):
        found = in_a_process(name, arguments, arguments.limit)
        losses = curves[name] = found["losses"]
        fits = len(losses) == arguments.steps
        loss = f"{mean_of_last(losses):.3f}" if fits else ""
        sizes = (f"{found[key] / MIB:.0f}" for key in ("plan", "peak"))
        table.add_row(name, *sizes, "yes" if fits else "no", str(len(losses)), loss, f"{found['seconds']:.0f}")
    Console().print(f"{arguments.limit} MiB beside what is loaded before; plans without activations")
    Console().print(table)
    draw({name: losses for name, losses in curves.items() if losses}, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
