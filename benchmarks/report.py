"""Measure everything and print the tables in Markdown; `--write` puts them into README.md beside this file."""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import batches
import cases
import ferrostep
import krylov
import maps
import markdown
import matrices
import offload
import products
import projections
import release
import shapes
import singular
import solutions
import threads
import training
from cases import CASES, Case, Model
from measure import Bystanders, Ceiling, interleave, ratio

QUIET = 0.05  # CPUs that other processes may use before the figures are in doubt


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    threads: int
    layers: int
    rounds: int
    machine: str
    large: bool

    def heading(self) -> str:
        """Where and how a section was measured."""
        facts = ferrostep.info()
        return (
            f"{self.machine}; instruction set {facts['instruction_set']}, {self.threads} thread(s); "
            f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}; "
            f"medians of {self.rounds} rounds; {datetime.date.today()}."
        )


def elementwise(model: Model, settings: Settings) -> str:
    """All optimizers on a model's shapes."""
    ceiling = Ceiling()
    rates: list[float] = []
    rows: list[list[str]] = []
    for dtype in dict.fromkeys(case.storage.param for case in CASES):
        params = model.parameters(dtype)
        # One rule after the other: the states of all would not fit into the memory.
        for rule in dict.fromkeys(case.rule for case in CASES if case.storage.param == dtype):
            chosen = [case for case in CASES if case.storage.param == dtype and case.rule == rule]
            samples = stepped_in_turns(chosen, params, ceiling, settings.rounds)
            rates += map(ceiling.rate, samples[ceiling])
            for case in chosen:
                own, least = samples[case], case.bytes_per_element * model.elements
                peer = next(other for other in chosen if other.is_peer_of(case))
                rows.append(
                    [
                        case.name,
                        case.storage.name,
                        milliseconds(median(own)),
                        f"{1e9 * median(own) / model.elements:.3f}",
                        str(case.bytes_per_element),
                        f"{least / ceiling.bytes * ratio(samples[ceiling], own):.0%}",
                        f"{ratio(samples[peer], own):.2f}",
                    ]
                )
    low, middle, high = (f"{1e-9 * rate:.1f}" for rate in (min(rates), median(rates), max(rates)))
    notes = (
        f"{model.elements:,} elements in {len(model.shapes)} tensors. "
        f"Ceiling {middle} GB/s, the median of all rounds ({low} to {high})."
    )
    headings = ["optimizer", "dtype", "ms/step", "ns/element", "B/element", "of ceiling", "x peer"]
    return f"{notes}\n\n{markdown.table(headings, rows)}"


def stepped_in_turns(
    chosen: Sequence[Case], params: Sequence[Tensor], ceiling: Ceiling, rounds: int
) -> dict[Case | Ceiling, list[float]]:
    """Seconds of a step of each case, whose state is gone afterwards, and of the ceiling."""
    contestants: dict[Case | Ceiling, Callable[[], object]] = {case: case.make(params).step for case in chosen}
    return interleave({ceiling: ceiling.run, **contestants}, rounds)


def matrix_products(settings: Settings) -> str:
    """The products that Newton-Schulz consists of."""
    rows = []
    for n in products.SIZES:
        for name, dtype in products.DTYPES.items():
            found = products.products(n, dtype, settings.threads)
            samples = interleave({which: product.call for which, product in found.items()}, settings.rounds)
            by_torch = samples[products.TORCH]
            full = samples[products.FULL]
            for which, own in samples.items():
                flop = found[which].flop
                shares = (
                    found[which].flop / found[other].flop * ratio(base, own)
                    for other, base in ((products.TORCH, by_torch), (products.FULL, full))
                )
                cells = [f"{1e-9 * flop / median(own):.0f}", *(f"{share:.2f}" for share in shares)]
                rows.append([f"{n} x {n}, {name}", which, *cells])
    return markdown.table(["matrices", "product", "GFLOP/s", "of torch's rate", "of our full rate"], rows)


def muon(settings: Settings) -> str:
    """Muon's step, and how accurate it is."""
    rows = []
    for work in matrices.works(settings.layers):
        samples = interleave({name: work.make(name).step for name in matrices.OPTIMIZERS}, settings.rounds)
        for name, own in samples.items():
            by_plain = ratio(samples[matrices.PLAIN], own)
            cells = [milliseconds(median(own)), f"{ratio(samples[matrices.PEER], own):.2f}", f"{by_plain:.2f}"]
            rows.append([work.title, name, *cells])
    speed = markdown.table(["matrices", "implementation", "ms/step", "x torch.optim.Muon", "x float32 in torch"], rows)
    accuracy = markdown.table(
        ["matrix", "input", "implementation", "relative error", "smallest singular value", "largest"],
        [
            [*names, f"{error:.1e}", f"{smallest:.2g}", f"{largest:.3f}"]
            for *names, error, smallest, largest in matrices.accuracies()
        ],
    )
    return f"{speed}\n\n{accuracy}"


def in_training(settings: Settings) -> str:
    """AdamW's step within training loops."""
    rows = []
    for workload in training.WORKLOADS:
        samples = training.interleave(training.trainings(workload), settings.rounds, workload.turn)
        peer = next(samples[case] for case in samples if case.implementation == case.rule.peer)
        for case, own in samples.items():
            step, loop = median(own.step), median(own.loop)
            rows.append(
                [
                    workload.title,
                    case.name,
                    case.storage.name,
                    f"{1e6 * step:.0f}",
                    milliseconds(loop),
                    f"{step / loop:.1%}",
                    f"{ratio(peer.step, own.step):.2f}",
                    f"{ratio(peer.loop, own.loop):.2f}",
                ]
            )
    headings = ["model", "optimizer", "dtype", "step, us", "loop, ms", "share", "step x peer", "loop x peer"]
    return markdown.table(headings, rows)


def thresholds(settings: Settings) -> str:
    """One thread and two, by the number of elements."""
    rows = []
    chosen = [case for case in CASES if case.implementation == cases.OURS and case.storage == cases.F32]
    for case in chosen:
        for layers in threads.LAYERS:
            cells = [case.rule.name, f"{layers * threads.WIDTH**2:,}"]
            for before in threads.SITUATIONS.values():
                one, two = threads.measure(case, layers, before, 10 * settings.rounds)
                cells.append(f"{1e6 * one:.1f} / {1e6 * two:.1f}")
            rows.append(cells)
    return markdown.table(["optimizer", "elements", *threads.SITUATIONS], rows)


def contests(found: Sequence[projections.Contest], settings: Settings) -> str:
    """Calls beside their peers."""
    rows = []
    for contest in found:
        samples = interleave(contest.contestants, settings.rounds)
        peer = next(iter(samples.values()))
        for name, own in samples.items():
            rows.append([contest.title, name, f"{1e6 * median(own):.1f}", f"{ratio(peer, own):.2f}"])
    return markdown.table(["work", "implementation", "us", "x the first"], rows)


def guidance(settings: Settings) -> str:
    """Guidance of predictions of several shapes and dtypes."""
    both = [(shape, dtype) for shape in projections.LATENTS for dtype in (torch.float32, torch.bfloat16)]
    return contests([contest for each in both for contest in projections.guided(*each)], settings)


def gradients(settings: Settings) -> str:
    """Gradient projection, and the share of the ceiling of the large one."""
    table = contests([*projections.projected(), projections.multi_task_step(), projections.value_step()], settings)
    ceiling, elements = Ceiling(), 60 * 417_000
    large = projections.on("", 60 * [(417_000,)])[0].contestants["ferrostep"]
    a, b = torch.randn(elements), torch.randn(elements)
    samples = interleave({"ceiling": ceiling.run, "dot": lambda: torch.dot(a, b), "large": large}, settings.rounds)
    share = {
        name: bytes_ * elements / ceiling.bytes * ratio(samples["ceiling"], samples[name])
        for name, bytes_ in (("dot", 8), ("large", 20))
    }
    return (
        f"{table}\n\nProjection of 25 million elements: {share['large']:.0%} of the in-place ceiling at 20 bytes for "
        f"each; reading alone (torch.dot) reaches {share['dot']:.0%} of it."
    )


def rows(settings: Settings) -> str:
    """Functions of rows, forwards and backwards."""
    return contests(maps.projections(), settings)


def iterations(settings: Settings) -> str:
    """Lanczos iteration, and the share that the largest one has of the rate at which a sum reads."""
    table = contests(krylov.iterations(large=settings.large), settings)
    size = krylov.LARGE if settings.large else krylov.SIZES[-1]
    x, own = torch.ones(krylov.SUMMED), krylov.of(size).contestants["ferrostep"]
    samples = interleave({"sum": lambda: x.sum(), "own": own}, settings.rounds)
    share = krylov.passes() * size / krylov.SUMMED * ratio(samples["sum"], samples["own"])
    rate = 4e-9 * krylov.SUMMED / median(samples["sum"])
    return (
        f"{table}\n\nOurs, {size:,}: {krylov.passes()} vectors read or written, at {share:.0%} of the rate at which "
        f"torch.sum reads ({rate:.1f} GB/s)."
    )


def solved(settings: Settings) -> str:
    """Derivatives of solutions."""
    return contests(solutions.contests(), settings)


def masters(settings: Settings) -> str:
    """Steps with masters in float32, and the memory of one process that takes them."""
    ceiling, rows = Ceiling(), []
    for contest in offload.contests():
        samples = interleave({"": ceiling.run, **contest.contestants}, settings.rounds)
        rates = f"{1e-9 * ceiling.rate(median(samples[''])):.1f}"
        for name in contest.contestants:
            own = samples[name]
            share = offload.BYTES * offload.ELEMENTS / ceiling.bytes * ratio(samples[""], own)
            times = f"{ratio(samples[offload.PEER], own):.2f}"
            rows.append([contest.title, rates, name, milliseconds(median(own)), f"{share:.0%}", times])
    headings = ["work", "ceiling, GB/s", "implementation", "ms/step", "of ceiling", "x the first"]
    return f"{markdown.table(headings, rows)}\n\nPeak of the memory: {offload.memory():.3f} of the plan."


def released(settings: Settings) -> str:
    """Steps within the backward pass, beside one after it: what is there besides the pass alone."""
    rows = []
    for contest in release.contests(settings.layers):
        samples = interleave(contest.contestants, settings.rounds)
        alone, whole, attached = (samples[name] for name in (release.ALONE, release.WHOLE, release.ATTACHED))
        steps = [[a - b for a, b in zip(own, alone, strict=True)] for own in (whole, attached)]
        own = [milliseconds(median(each)) for each in (alone, *steps)]
        rows.append([contest.title, *own, f"{ratio(steps[1], steps[0]):.2f}", f"{ratio(attached, whole):.2f}"])
    headings = ["work", "pass, ms", "one step, ms", "attached, ms", "x one step", "x, with the pass"]
    return markdown.table(headings, rows)


def milliseconds(seconds: float) -> str:
    """With three significant digits at least."""
    return f"{1e3 * seconds:.3f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def sections(settings: Settings) -> dict[str, tuple[str, Callable[[], str]]]:
    """Everything there is to measure, by name: its title and how. New benchmarks join here."""
    result: dict[str, tuple[str, Callable[[], str]]] = {
        model.name: (model.title, lambda model=model: elementwise(model, settings))
        for model in cases.models(settings.layers)
    }
    result["products"] = ("Matrix products", lambda: matrix_products(settings))
    result["muon"] = ("Muon", lambda: muon(settings))
    result["singular"] = ("Largest singular values", lambda: contests(list(singular.contests()), settings))
    result["guidance"] = ("Guidance", lambda: guidance(settings))
    result["gradients"] = ("Gradient projection", lambda: gradients(settings))
    result["maps"] = ("Projections of rows", lambda: rows(settings))
    result["krylov"] = ("Lanczos iteration", lambda: iterations(settings))
    result["solutions"] = ("Derivatives of solutions", lambda: solved(settings))
    result["offload"] = ("Masters in float32", lambda: masters(settings))
    result["batches"] = (
        "Norms of gradients, and ghost batch normalization",
        lambda: contests([*batches.norms(settings.layers), *batches.ghosts()], settings),
    )
    result["release"] = ("Steps within the backward pass", lambda: released(settings))
    result["training"] = ("The step inside a training loop", lambda: in_training(settings))
    result["threads"] = ("One thread and two, us per step", lambda: thresholds(settings))
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("sections", nargs="*", help="which to measure: gpt2, resnet18, ... (default: all)")
    result.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    result.add_argument("--layers", type=int, default=shapes.GPT2_LAYERS, help="of GPT-2 (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    result.add_argument("--quick", action="store_true", help="3 rounds and one layer: to see that it runs")
    result.add_argument("--large", action="store_true", help="Lanczos iteration on 25 million elements, too (5 GB)")
    result.add_argument("--machine", default="this machine", help="what the tables call it, in general terms")
    result.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    return result


def main() -> None:
    """Measure and print."""
    arguments = parser().parse_args()
    layers, rounds = (1, 3) if arguments.quick else (arguments.layers, arguments.rounds)
    settings = Settings(arguments.threads, layers, rounds, arguments.machine, arguments.large)
    torch.set_num_threads(settings.threads)
    available = sections(settings)
    unknown = set(arguments.sections) - set(available)
    if unknown:
        parser().error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(available)}")
    quiet = {}
    for name in arguments.sections or available:
        title, measured = available[name]
        bystanders = Bystanders()
        text = f"**{title}.** {settings.heading()}\n\n{measured()}"
        busy = bystanders.share()
        print(text, end="\n\n", flush=True)
        if busy <= QUIET:
            quiet[name] = text
        else:
            print(f"warning: other processes kept {busy:.2f} CPUs busy during {name!r}", file=sys.stderr)
    if arguments.write:
        markdown.replace_sections(Path(__file__).with_name("README.md"), quiet)


if __name__ == "__main__":
    main()
