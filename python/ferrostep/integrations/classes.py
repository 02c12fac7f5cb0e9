"""The optimizers that a framework can make from a name and numbers."""

from __future__ import annotations

import difflib
import inspect

from torch.optim import Optimizer

from ferrostep import optim


def by_name() -> dict[str, type[Optimizer]]:
    """The classes of :mod:`ferrostep.optim` that take parameters of any groups, ``lr`` and ``weight_decay``."""
    found = {name: getattr(optim, name) for name in optim.__all__}
    return {
        name: each
        for name, each in found.items()
        if inspect.isclass(each)
        and issubclass(each, Optimizer)
        and inspect.signature(each).parameters.keys() >= {"params", "lr", "weight_decay"}
    }


def class_of(name: str) -> type[Optimizer]:
    """The class of this name; ValueError with the nearest known one for a name that is none."""
    known = by_name()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"ferrostep.optim has no optimizer {name!r} to make by name; {hint}")
    return known[name]
