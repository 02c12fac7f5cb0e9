"""Optimizer kernels in Rust behind ``torch.optim.Optimizer`` classes, and for NumPy arrays.

``ferrostep.optim`` holds the optimizers and ``ferrostep.orthogonalize`` their matrix kernel (they need torch),
``ferrostep.numpy`` the same for arrays (does not), ``ferrostep.reference`` the rules in plain torch. They are imported
when they are first asked for, so that ``import ferrostep`` works without torch, and at once.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ferrostep import _core

if TYPE_CHECKING:
    from ferrostep import (  # noqa: F401
        batch_size,
        bilevel,
        curvature,
        gradients,
        guidance,
        implicit,
        nn,
        numpy,
        offload,
        optim,
        projections,
        reference,
        rl,
        schedules,
    )
    from ferrostep.orthogonal import orthogonalize

__all__ = ["__version__", "info", "orthogonalize"]

# Named above for editors, too.
PACKAGES = (
    "batch_size",
    "bilevel",
    "curvature",
    "gradients",
    "guidance",
    "implicit",
    "nn",
    "numpy",
    "offload",
    "optim",
    "projections",
    "reference",
    "rl",
    "schedules",
)

__version__: str = _core.__version__


def info() -> dict[str, str | int | list[str] | None]:
    """What this installation runs on: the versions, the instruction set in use and those the CPU has, the threads.

    Returns:
        ``ferrostep``, ``torch`` (None without it) and ``numpy``: versions. ``instruction_set`` is in use, of those that
        are ``supported``; ``FERROSTEP_ISA`` at import time forces a lower one. ``threads`` is what a torch optimizer's
        step would use now (``torch.get_num_threads()``), ``numpy_threads`` what the functions for NumPy arrays use by
        default: as many as there are CPUs that the process may use, by affinity and quota, of the machine's ``cpus``.

    Example:
        >>> sorted(info())
        ['cpus', 'ferrostep', 'instruction_set', 'numpy', 'numpy_threads', 'supported', 'threads', 'torch']
    """
    from importlib import metadata, util  # takes longer than all else that is imported here

    with_torch = util.find_spec("torch") is not None
    threads = numpy_threads = _core.available_cpus()
    if with_torch:
        import torch

        threads = torch.get_num_threads()
    return {
        "ferrostep": __version__,
        "torch": metadata.version("torch") if with_torch else None,
        "numpy": metadata.version("numpy"),
        "instruction_set": _core.isa(),
        "supported": _core.supported_isas(),
        "threads": threads,
        "numpy_threads": numpy_threads,
        "cpus": os.cpu_count(),
    }


def __getattr__(name: str) -> Any:
    if name == "orthogonalize":
        from ferrostep.orthogonal import orthogonalize

        return orthogonalize
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *PACKAGES]
