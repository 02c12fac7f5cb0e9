"""Optimizer kernels in Rust behind ``torch.optim.Optimizer`` classes, and for NumPy arrays.

``ferrostep.optim`` holds the optimizers and ``ferrostep.orthogonalize`` their matrix kernel (they need torch),
``ferrostep.numpy`` the same for arrays (does not), ``ferrostep.reference`` the rules in plain torch.
"""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ferrostep import _core

if TYPE_CHECKING:
    from ferrostep.orthogonal import orthogonalize

__all__ = ["__version__", "info", "orthogonalize"]

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
    with_torch = importlib.util.find_spec("torch") is not None
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
    # Without torch, `import ferrostep` is to work.
    if name == "orthogonalize":
        from ferrostep.orthogonal import orthogonalize

        return orthogonalize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
