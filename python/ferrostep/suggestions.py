"""What a misspelt name, or one of another library, was probably meant to be."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

ALIASES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "wd": ("weight_decay",),
    "mom": ("momentum",),
    "epsilon": ("eps",),
    "project": ("projection",),
    **{name: ("betas",) for name in ("b1", "b2", "beta1", "beta2", "beta_1", "beta_2")},
    "adam": ("adamw", "decoupled_weight_decay"),
}
"""What other libraries call arguments, in Keras's, optax's and fastai's words among others."""


def meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` was probably meant to be, if there is one.

    Args:
        name: as it was given.
        known: the names that there are.
        cutoff: how alike two names must be, from 0 to 1 (difflib's ratio).

    Example:
        >>> meant("wd", ["lr", "weight_decay"]), meant("weigth_decay", ["lr", "weight_decay"]), meant("x", ["lr"])
        ('weight_decay', 'weight_decay', None)
    """
    known = list(known)
    aliases = [each for each in ALIASES.get(name.lower(), ()) if each in known]
    near = aliases or difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return near[0] if near else None


def unexpected(owner: str, name: str, known: Iterable[str], otherwise: str | None = None) -> TypeError:
    """The error for a keyword that ``owner``, a class or function, does not have.

    ``otherwise`` is said where none is near, in place of what there is.
    """
    known = list(known)
    near = meant(name, known)
    hint = f"did you mean {near!r}?" if near else otherwise or f"there are {', '.join(known)}"
    return TypeError(f"{owner}() got an unexpected keyword argument {name!r}; {hint}")


def suggesting(called: T) -> T:
    """The function, or the class with its constructor, with such errors in place of Python's."""
    function: Callable[..., Any] = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
    known = list(inspect.signature(called).parameters)

    @functools.wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in known:
                owner = type(args[0]) if isinstance(called, type) else called
                raise unexpected(owner.__name__, name, known)
        return function(*args, **keywords)

    if not isinstance(called, type):
        return checked  # type: ignore[return-value]
    called.__init__ = checked  # type: ignore[misc]
    return called


def mistaken_entry(name: object, known: Iterable[str]) -> str | None:
    """The argument that a parameter group's unknown entry was meant to be; None for an entry of the caller's own.

    As torch does, groups keep what frameworks and users put there (``name``, ``initial_lr``, ``lr_scale``). Only what
    nobody means by itself counts as a mistake: another library's name of an argument, or a name with a letter or two
    wrong; not a name with a whole word more or less (``max_weight_decay``).
    """
    near = meant(name, known, cutoff=0.85) if isinstance(name, str) else None
    if near is None:
        return None
    ours, theirs = set(near.split("_")), set(str(name).split("_"))
    return None if ours <= theirs or theirs <= ours else near
