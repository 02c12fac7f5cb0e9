"""Inner products and linear combinations of gradients, and the averages of target networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.errors import wrong_kind
from ferrostep.numpy.arrays import listed, nested, numbers
from ferrostep.reference import checks
from ferrostep.reference import gradients as reference

_core.adopt_openmp()

Gradient = Sequence[Tensor | None]


def gram(gradients: Sequence[Gradient]) -> Tensor:
    """The inner products of all pairs of T gradients, in one pass over them.

    Args:
        gradients: T gradients, lists of tensors of the same shapes and dtypes, see the module.

    Returns:
        A float64 tensor of shape (T, T).

    Raises:
        TypeError, ValueError, RuntimeError: lists that do not go together, or a tensor that cannot be read.

    Example:
        >>> gram([[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]])
        tensor([[5., 3.],
                [3., 9.]], dtype=torch.float64)
    """
    lists = nested("gradients", gradients)
    if elsewhere(named(lists)):
        return reference.gram(lists)
    return torch.tensor(_core.gram(lists, torch.get_num_threads()), dtype=torch.float64)


def combine(
    gradients: Sequence[Gradient], weights: Sequence[float] | Tensor, *, out: Sequence[Tensor | None] | None = None
) -> Sequence[Tensor | None]:
    """The sum of gradients, each times its weight, in one pass.

    Args:
        gradients: T gradients, lists of tensors of the same shapes and dtypes, see the module.
        weights: T numbers.
        out: where the sum goes, in place; may be one of ``gradients``. Default: a new list.

    Returns:
        ``out``, with None where all gradients have it. 16-bit numbers are rounded once for six gradients, and again for
        every five more.

    Raises:
        TypeError, ValueError, RuntimeError: lists that do not go together, a tensor that cannot be read or written, or
            another number of weights. Nothing has been changed then.

    Example:
        >>> combine([[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]], [1.0, 0.5])
        [tensor([2.5000, 2.0000])]
    """
    lists = nested("gradients", gradients)
    row = numbers("weights", weights, ("gradients", lists))
    given = [None] * len(lists[0]) if out is None else out
    to = written("out", given, lists, torch.empty_like)
    call, values = combination(lists, row, to)
    _core.complete(call, lambda _: settle(given, values))
    return given


def combination(
    lists: list[list[Tensor | None]], row: list[float], to: list[Tensor | None]
) -> tuple[Callable[[], Any], Sequence[Tensor | None]]:
    """What computes the sum of gradients, and the list that has it then: ``to``, elsewhere a new one."""
    if elsewhere({**named(lists), "out": to}, written=["out"]):
        values: list[Tensor | None] = [None] * len(to)
        return partial(reference.combine, lists, row, out=values), values
    return partial(_core.combine, lists, [to], [row], torch.get_num_threads()), to


def ema_(target: Iterable[Tensor], source: Iterable[Tensor], tau: float) -> None:
    """Move a target network towards another: ``target <- (1 - tau) * target + tau * source``, in place, in one pass.

    Args:
        target, source: tensors of the same shapes and dtypes, such as ``module.parameters()``.
        tau: the share, from 0 to 1.

    Raises:
        TypeError, ValueError, RuntimeError: tensors that do not go together or cannot be read or written, or another
            ``tau``. Nothing has been changed then.

    Example:
        >>> target = [torch.zeros(2)]
        >>> ema_(target, [torch.ones(2)], tau=0.25)
        >>> target
        [tensor([0.2500, 0.2500])]
    """
    targets, sources = listed("target", target), listed("source", source)
    for i, (one, other) in enumerate(zip(targets, sources, strict=False)):
        if one is None or other is None:
            raise TypeError(f"one of target[{i}] and source[{i}] is None, expected two tensors")
    if elsewhere({"target": targets, "source": sources}, written=["target"]):
        _core.complete(partial(reference.moved, targets, sources, tau), lambda values: settle(targets, values))
    else:
        _core.ema(targets, sources, tau, torch.get_num_threads())


def power_sum(gradient: Gradient, order: int) -> float:
    """The sum of the sizes of all elements (order 1), or that of their squares (order 2), in one pass."""
    if elsewhere({"gradients": gradient}):
        return reference.norms(gradient)[order - 1]
    return _core.norms(list(gradient), [order], torch.get_num_threads())[order - 1]


def follow(gradient: Gradient, before: Gradient) -> tuple[float, float]:
    """The squares of the norms of a gradient and of its difference from another, which becomes a copy of it."""
    if elsewhere({"gradients": gradient, "before": before}, written=["before"]):
        return reference.follow(gradient, before)
    square, moved = _core.follow(list(gradient), list(before), torch.get_num_threads())
    return square, moved


def named(lists: Sequence[Gradient]) -> dict[str, Gradient]:
    """By what errors call them."""
    return {f"gradients[{i}]": gradient for i, gradient in enumerate(lists)}


def elsewhere(lists: Mapping[str, Gradient], *, written: Iterable[str] = ()) -> bool:
    """Whether the gradients are on another device. Then they are checked here; the kernel tells of lists on several."""
    first = next((x for each in lists.values() for x in each if isinstance(x, Tensor)), None)
    if first is None or first.is_cpu:
        return False
    checks.lists(lists.items())
    for name in written:
        for place, x in enumerate(lists[name]):
            checks.writable(f"{name}[{place}]", x)
    return True


def written(name: str, given: Any, others: Sequence[Gradient], make: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """A list that is changed in place, with new tensors where it has None and another list has not.

    Raises:
        TypeError: it is none, or has no place for a new tensor, as a tuple.
    """
    to = listed(name, given)
    if not hasattr(given, "__getitem__"):
        raise wrong_kind(name, given, "a list")
    for place in [place for place, there in enumerate(to) if there is None]:
        first = next((x[place] for x in others if place < len(x) and isinstance(x[place], Tensor)), None)
        if first is not None:
            if not hasattr(given, "__setitem__"):
                raise TypeError(
                    f"{name}[{place}] is None, which a {type(given).__name__} cannot exchange for a new tensor: "
                    "expected a tensor there, or a list"
                )
            to[place] = make(first).detach()
    return to


def settle(given: Any, values: Gradient) -> None:
    """Leave new values in a list: put in, or copied to the tensors that are there.

    May be done twice, as :func:`ferrostep._core.complete` does after an interrupt.
    """
    new = [place for place, (there, value) in enumerate(zip(given, values, strict=True)) if there is not value]
    if new:
        with torch.no_grad():
            for place in new:
                value = values[place]
                if given[place] is None:
                    given[place] = value
                else:
                    given[place].copy_(torch.zeros(()) if value is None else value)
