"""The command line: `python -m ferrostep compare`, `refine`, `plan`, `info` and `--version`."""

import argparse
import importlib.util
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from . import __version__, plans
from .demo import DemoError, optimizers

DEFAULT_STEPS = 400
LARGEST_SEED = 2**63 - 1  # what torch's generators take


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole_number(least: int) -> Callable[[str], int]:
    """An argument type: an integer of at least `least`."""

    def convert(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
        if not least <= number <= LARGEST_SEED:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return number

    return convert


def duration(text: str) -> float:
    """An argument type: seconds, more than 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return number


def parser() -> Parser:
    """The arguments of all commands."""
    result = Parser(prog="python -m ferrostep", description="Optimizers with Rust kernels for torch and NumPy.")
    result.add_argument("--version", action="version", version=f"ferrostep {__version__}")
    commands = result.add_subparsers(dest="command", metavar="{compare,refine,plan,info}", required=True)
    compare = commands.add_parser(
        "compare",
        help="train a small GPT with several optimizers and compare them",
        description="Train the same small GPT on text with each optimizer, from the same weights and on the same "
        "batches; print a table; write compare.png and compare.json. Ctrl-C or SIGTERM ends the training "
        "and reports what there is so far.",
    )
    compare.add_argument(
        "--optimizers",
        default=",".join(optimizers.DEFAULT),
        metavar="A,B,...",
        help=f"any of {', '.join(optimizers.OPTIMIZERS)} (default: %(default)s)",
    )
    compare.add_argument(
        "--text", type=Path, metavar="FILE", help="text to train on (default: the standard library's source)"
    )
    length = compare.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=whole_number(1), help=f"training steps of each optimizer (default: {DEFAULT_STEPS})"
    )
    length.add_argument("--seconds", type=duration, help="seconds of training of each optimizer, instead of steps")
    compare.add_argument(
        "--schedule",
        choices=("linear", "cosine", "refined"),
        default="cosine",
        help="of the learning rate, after a warm-up; refined trains twice, and makes it of the gradient norms of a "
        "first run with linear (default: %(default)s)",
    )
    compare.add_argument(
        "--seed", type=whole_number(0), default=0, help="of weights and batches (default: %(default)s)"
    )
    add_out(compare, "ferrostep-compare")
    add_refine(commands.add_parser("refine", help="make the next run's schedule of a run's gradient norms"))
    add_plan(commands.add_parser("plan", help="print the memory that training a model takes with several optimizers"))
    commands.add_parser("info", help="print versions, instruction sets and threads")
    return result


def add_plan(command: argparse.ArgumentParser) -> None:
    """The arguments of `plan`."""
    command.description = (
        "Print, for each optimizer, the GiB (MiB where all is below one) that weights, gradients, state and scratch "
        "memory take, activations aside, and in total between attach() and detach(). Nothing of it is allocated."
    )
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="NAME", help=f"one of {', '.join(plans.MODELS)}")
    model.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the config.json of a model of transformers, which has to be installed but for {', '.join(plans.KNOWN)}",
    )
    command.add_argument(
        "--optimizer",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help="a class of ferrostep.optim, or as torch.NAME one of torch.optim, and its options, such as "
        "adamw:betas=(0.9,0.95),state_dtype=int8; may be given several times "
        f"(default: {' '.join(plans.DEFAULT)})",
    )
    command.add_argument(
        "--dtype", choices=plans.DTYPES, default="float32", help="of weights and gradients (default: %(default)s)"
    )


def add_refine(command: argparse.ArgumentParser) -> None:
    """The arguments of `refine`."""
    command.description = (
        "Turn the gradient norms of a finished run, as ferrostep.schedules.GradNormRecorder.save wrote them, into the "
        "schedule of the next run (arXiv 2310.07831); write schedule.json and schedule.png."
    )
    command.add_argument("run", type=Path, metavar="RUN.json", help="the recorded run")
    command.add_argument("--steps", type=whole_number(1), help="of the next run (default: those of the recorded one)")
    command.add_argument(
        "--smoothing", type=float, default=0.1, help="share of the run that is smoothed over (default: %(default)s)"
    )
    add_out(command, "ferrostep-refine")


def add_out(command: argparse.ArgumentParser, default: str) -> None:
    """The argument of commands that write files."""
    help_ = "folder to write to (default: %(default)s)"
    command.add_argument("--out", type=Path, default=Path(default), metavar="DIR", help=help_)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compare as the arguments say; the exit code."""
    need("torch", "rich", "matplotlib")
    names = optimizers.parse(arguments.optimizers)

    from rich.console import Console

    from .demo.compare import compare
    from .demo.training import Budget

    steps = DEFAULT_STEPS if arguments.steps is None and arguments.seconds is None else arguments.steps
    budget = Budget(steps, arguments.seconds)
    with terminated_as_interrupted():
        completed = compare(
            names,
            arguments.text,
            budget,
            arguments.seed,
            arguments.out,
            Console(highlight=False),
            arguments.schedule,
        )
    return 0 if completed else 130


def run_refine(arguments: argparse.Namespace) -> int:
    """Refine as the arguments say; the exit code."""
    need("torch", "matplotlib")

    from .demo.refine import refine

    schedule = refine(arguments.run, arguments.steps, arguments.smoothing, arguments.out)
    peak = max(range(schedule.total_steps), key=schedule)
    print(f"{schedule.total_steps} steps, highest at step {peak}; {schedule.dropped} norms were not finite", end="")
    print(f", {schedule.floored} next to zero" if schedule.floored else "")
    print(f"Wrote {arguments.out / 'schedule.json'} and {arguments.out / 'schedule.png'}")
    return 0


def need(*packages: str, extra: str = "demo") -> None:
    """Raise `DemoError`, with the extra that brings them, for packages that are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f'{", ".join(missing)} not installed: pip install "ferrostep[{extra}]"')


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM, with which batch systems announce the end, for Ctrl-C; sent again, it changes nothing."""

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_plan(arguments: argparse.Namespace) -> int:
    """Print plans as the arguments say; the exit code."""
    need("torch", extra="torch")
    import torch

    name, model = plans.model_of(arguments.model, arguments.config)
    dtype = getattr(torch, arguments.dtype)
    chosen = dict.fromkeys(arguments.optimizer or plans.DEFAULT)
    found = {optimizer: plans.plan_of(optimizer, model, dtype) for optimizer in chosen}
    elements = next(iter(found.values())).elements
    unit = plans.unit_of(found)
    print(f"{name}: {elements:,} parameters of {arguments.dtype}; {unit} without activations\n")
    print(plans.table(found, unit))
    return 0


def run_info(_arguments: argparse.Namespace) -> int:
    """Print `ferrostep.info()`, aligned; the exit code."""
    import ferrostep

    facts = ferrostep.info()
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else "not installed" if value is None else value
        print(f"{name:<{width}}  {shown}")
    return 0


COMMANDS = {"compare": run_compare, "refine": run_refine, "plan": run_plan, "info": run_info}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except DemoError as error:
        print(f"python -m ferrostep {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
