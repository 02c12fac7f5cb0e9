"""Train with every optimizer on three small tasks, at learning rates tuned alike, and print the table.

    pip install ".[bench,demo]" scikit-learn
    python benchmarks/training_results.py                    # the runs that docs/optimizers.json lacks
    python benchmarks/training_results.py --times --machine "2 cores of a Zen 4 server CPU"  # of all, or --optimizers
    python benchmarks/training_results.py --write            # also the table and the figure in docs/

All runs are of one thread. What is there already is not run again, unless the grid's middle, which is the rate in
ferrostep/demo/optimizers.py, has changed since, or `--fresh` asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import math
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.optim import Optimizer

import markdown
from ferrostep.demo import optimizers, report
from ferrostep.demo.chain import Chain
from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.task import Task
from ferrostep.demo.training import Budget, Run, state_bytes, train
from ferrostep.optim import SAM, STORM, SophiaG
from measure import Bystanders, interleave, ratio
from tasks import SMALL, WORKLOADS, Workload
from tuning import FACTOR, Record, Result, Runs, tune

DOCS = Path(__file__).parents[1] / "docs"
NAMES = [name for name in optimizers.OPTIMIZERS if not report.peer(name)]
LEFT_OUT = {
    "GradNormSmooth": "it is for all data at once, and for few parameters",
    "Muon": "its rule is that of the hidden matrices of MuonWithAuxAdamW",
}
"""Classes without a row of their own, and why."""
SPARING = (
    "adamw",
    "adamw_int8",
    "frugal_whole",
    "frugal",
    "frugal_tenth",
    "frugal_signs",
    "galore",
    "badam",
    "sign_sgd",
)
"""Those of the table in docs/memory.md."""
TIMED = Shape(width=256, layers=4)  # 3.2 million parameters
PEER = "torch.adamw"
ROUNDS = 15


def train_once(runs: Runs, workload: Workload, data: Task, exponent: float, seed: int) -> float:
    """The held-out loss after training, infinity if it is none."""
    torch.manual_seed(seed)
    run = Run(runs.optimizer)
    train(run, workload.model(), data, Budget(steps=workload.steps), seed, rate_factor=FACTOR**exponent)
    loss = run.held_out_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


@functools.cache
def data_of(task: str) -> Task:
    """The task's data, loaded once."""
    return WORKLOADS[task].data()


def tuned(runs: Runs) -> Runs:
    """The same with the runs that were missing."""
    workload, data = WORKLOADS[runs.task], data_of(runs.task)

    def loss(exponent: float, seed: int) -> float:
        with contextlib.suppress(KeyError):  # of a run that is missing
            return runs.loss(exponent, seed)
        runs.add(exponent, seed, train_once(runs, workload, data, exponent, seed))
        return runs.loss(exponent, seed)

    tune(loss)
    return runs


def all_tuned(each: Sequence[Runs], jobs: int) -> Iterator[Runs]:
    """Those that are done, one after the other, by as many processes."""
    if jobs == 1:
        yield from map(tuned, each)
    else:
        with get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
            yield from pool.imap(tuned, each)


def complete(record: Record, chosen: Sequence[tuple[str, str]], fresh: bool, jobs: int, console: Console) -> None:
    """Do the runs that are missing of these tasks and optimizers, and save after each of the latter."""
    each = []
    for task, name in chosen:
        lr = optimizers.build(name, WORKLOADS[task].model()).param_groups[0]["lr"]
        each.append(record.of(task, name, lr, fresh=fresh))
    done = all_tuned(each, jobs)
    for runs in track(done, "Training", len(each), console=console, disable=not console.is_terminal):
        record.runs[runs.task, runs.optimizer] = runs
        record.save()
        result = runs.result()
        console.print(f"{runs.task} {runs.optimizer}: {shown(result)} at lr={result.lr:.2g}", soft_wrap=True)


def built(name: str, model: nn.Module) -> Optimizer:
    """The optimizer after a step along gradients of normal numbers, by rates that leave the parameters as they are."""
    optimizer = optimizers.build(name, model)
    for group in optimizer.param_groups:
        group["lr"] *= 1e-6
    for p in model.parameters():
        p.grad = 1e-2 * torch.randn_like(p)
    if isinstance(optimizer, SophiaG):
        optimizer.update_hessian(bs=1)
    step_alone(optimizer)
    return optimizer


def step_alone(optimizer: Optimizer) -> None:
    """A step without what `SAM` and `STORM` ask of the model."""
    if isinstance(optimizer, SAM):
        optimizer.first_step()
        optimizer.second_step()
        return
    if isinstance(optimizer, STORM):
        with optimizer.other_point(), torch.enable_grad():
            params = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.transport(sum((p * p.grad).sum() for p in params))
    optimizer.step()


def classes(optimizer: Optimizer) -> set[str]:
    """The names of all that take part in it."""
    parts: Sequence[Optimizer] = (optimizer.base_optimizer,) if isinstance(optimizer, SAM) else ()
    own = optimizer.optimizers if isinstance(optimizer, Chain) else (optimizer, *parts)
    return {type(each).__name__ for each in own}


def bytes_per_element(name: str) -> str:
    """State of the small GPT, for each element of its parameters."""
    model = GPT(SMALL)
    return f"{state_bytes(built(name, model)) / sum(p.numel() for p in model.parameters()):.1f}"


def measure_times(record: Record, names: Sequence[str], machine: str, threads: int, console: Console) -> None:
    """Time one step of each, beside torch's AdamW, and save the ratios, beside those of others on this machine."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT(TIMED)
    contestants = {name: built(name, model) for name in (*names, PEER)}
    bystanders = Bystanders()
    samples = interleave({name: lambda each=each: step_alone(each) for name, each in contestants.items()}, ROUNDS)
    if bystanders.share() > 0.05:
        console.print(f"Other processes kept {bystanders.share():.2f} CPUs busy: the times are in doubt")
    elements = sum(p.numel() for p in model.parameters())
    place = f"{machine}; {threads} thread(s); {elements / 1e6:.1f} million parameters; "
    known = record.times["ratios"] if record.times.get("where", "").startswith(place) else {}
    ratios = known | {name: float(f"{ratio(samples[name], samples[PEER]):.3g}") for name in names}
    where = f"{place}{datetime.date.today()}"
    record.times = {"where": where, "peer_ms": round(1e3 * median(samples[PEER]), 3), "ratios": ratios}
    record.save()


def shown(result: Result) -> str:
    """Mean and range."""
    if not math.isfinite(result.mean):
        return "diverged"
    places = 3 if result.mean >= 0.1 else 4
    mean, low, high = (f"{loss:.{places}f}" for loss in (result.mean, min(result.losses), max(result.losses)))
    return f"{mean} ({low} to {high})"


def finished(record: Record) -> dict[str, dict[str, Result]]:
    """Those of each optimizer whose runs are complete, by task."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(KeyError):  # of a run that is missing
            found[name] = {task: record.runs[task, name].result() for task in WORKLOADS}
    return found


def table(record: Record) -> str:
    """A row for each optimizer, by the sum of their ranks."""
    found = finished(record)
    order = {task: sorted(found, key=lambda name: found[name][task].mean) for task in WORKLOADS}
    rows = []
    for name in sorted(found, key=lambda name: sum(order[task].index(name) for task in WORKLOADS)):
        own = found[name]
        rates = ", ".join(f"{own[task].lr:.2g}" for task in WORKLOADS)
        time = record.times.get("ratios", {}).get(name)
        cells = [shown(own[task]) for task in WORKLOADS]
        rows.append([f"`{name}`", *cells, rates, bytes_per_element(name), "-" if time is None else f"{time:.2f}"])
    return markdown.table(["optimizer", *WORKLOADS, "rates", "B/element", "time"], rows)


def sparing(record: Record) -> str:
    """Losses on the GPT of those that keep less state, beside AdamW's."""
    found = {name: record.runs["gpt", name].result() for name in SPARING}
    rows = []
    for name, own in found.items():
        differences = [loss - other for loss, other in zip(own.losses, found["adamw"].losses, strict=True)]
        beside = f"{min(differences):+.3f} to {max(differences):+.3f}" if name != "adamw" else ""
        rows.append([f"`{name}`", bytes_per_element(name), f"{own.lr:.2g}", shown(own), beside])
    return markdown.table(["optimizer", "B/element", "rate", "loss, nats per byte", "less AdamW's, by seeds"], rows)


def section(record: Record) -> str:
    """The table, what it lacks, and where the times are from."""
    done = finished(record)
    missing = ", ".join(f"`{name}`" for name in NAMES if name not in done)
    parts = [table(record)]
    if missing:
        parts.append(f"Not run yet: {missing}.")
    if record.times:
        parts.append(f"Times: {record.times['where']}. torch's AdamW takes {record.times['peer_ms']} ms.")
    return "\n\n".join(parts)


def draw(record: Record, path: Path) -> None:
    """A panel for each task, a row for each optimizer, and the seeds' losses as dots; a line at AdamW's mean."""
    from matplotlib.figure import Figure

    found = finished(record)
    figure = Figure(figsize=(9, 0.24 * len(found) + 1.2), dpi=120, layout="constrained")
    order = sorted(found, key=lambda name: found[name]["gpt"].mean, reverse=True)
    for axes, (task, workload) in zip(figure.subplots(1, len(WORKLOADS), sharey=True), WORKLOADS.items(), strict=True):
        for row, name in enumerate(order):
            losses = found[name][task].losses
            axes.plot(losses, [row] * len(losses), "o", ms=4, color=report.COLOURS[0], alpha=0.6)
        axes.axvline(found["adamw"][task].mean, color=report.COLOURS[1], lw=1)
        axes.set(xlabel=f"held-out loss, {workload.loss}", title=task)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(order)), order)
    figure.savefig(path)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--optimizers", default=",".join(NAMES), metavar="A,B,...", help="of `compare` (default: all)")
    result.add_argument("--tasks", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all")
    result.add_argument("--jobs", type=int, default=1, help="processes that train at once (default: 1)")
    result.add_argument("--fresh", action="store_true", help="run these again, whatever the record has")
    result.add_argument("--times", action="store_true", help="measure the steps' times instead")
    result.add_argument("--machine", default="a machine without a name", help="for the times")
    result.add_argument("--threads", type=int, default=2, help="for the times (default: 2)")
    result.add_argument("--record", type=Path, default=DOCS / "optimizers.json", help="default: %(default)s")
    result.add_argument("--write", action="store_true", help="the table and the figure into docs/")
    return result


def main() -> None:
    arguments = parser().parse_args()
    console = Console(highlight=False)
    record = Record(arguments.record)
    names = optimizers.parse(arguments.optimizers)
    if arguments.times:
        measure_times(record, names, arguments.machine, arguments.threads, console)
    else:
        torch.set_num_threads(1)
        chosen = [(task, name) for name in names for task in arguments.tasks]
        complete(record, chosen, arguments.fresh, arguments.jobs, console)
    if arguments.write:
        markdown.replace_sections(DOCS / "optimizers.md", {"results": section(record)})
        markdown.replace_sections(DOCS / "memory.md", {"losses": sparing(record)})
        draw(record, DOCS / "optimizers.png")


if __name__ == "__main__":
    main()
