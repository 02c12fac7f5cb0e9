"""Inner products and linear combinations of gradients, and the averages of target networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.reference import checks
from ferrostep.reference import gradients as reference

Gradient = Sequence[Tensor | None]


def gram(gradients: Sequence[Gradient]) -> Tensor:
    """The inner products of all pairs of T gradients, in one pass over them.

    Args:
        gradients: T gradients, see the module.

    Returns:
        A float64 tensor of shape (T, T).
    """
    lists = some(gradients)
    if elsewhere(named(lists)):
        return reference.gram(lists)
    return torch.tensor(_core.gram(lists, torch.get_num_threads()), dtype=torch.float64)


def combine(
    gradients: Sequence[Gradient], weights: Sequence[float] | Tensor, *, out: list[Tensor | None] | None = None
) -> list[Tensor | None]:
    """The sum of gradients, each times its weight, in one pass.

    Args:
        gradients: T gradients, see the module.
        weights: T numbers.
        out: where the sum goes; may be one of ``gradients``. Default: a new list.

    Returns:
        ``out``, with None where all gradients have it. 16-bit numbers are rounded once for six gradients, and again for
        every five more.
    """
    lists = some(gradients)
    out = [None] * len(lists[0]) if out is None else out
    if elsewhere({**named(lists), "out": out}):
        return reference.combine(lists, weights, out=out)
    to = list(out)
    fill(to, lists, torch.empty_like)
    row = [float(weight) for weight in weights]
    _core.combine(lists, [to], [row], torch.get_num_threads())
    out[:] = to
    written(out)
    return out


def ema_(target: Iterable[Tensor], source: Iterable[Tensor], tau: float) -> None:
    """Move a target network towards another: ``target <- (1 - tau) * target + tau * source``, in place, in one pass.

    Args:
        target, source: tensors of the same shapes and dtypes, such as ``module.parameters()``.
        tau: the share, from 0 to 1.
    """
    targets, sources = list(target), list(source)
    if elsewhere({"target": targets, "source": sources}):
        reference.ema_(targets, sources, tau)
        return
    _core.ema(targets, sources, tau, torch.get_num_threads())
    written(targets)


def some(gradients: Sequence[Gradient]) -> list[list[Tensor | None]]:
    """The gradients as lists; at least one."""
    lists = [list(gradient) for gradient in gradients]
    if not lists:
        raise ValueError("gradients is empty, expected one gradient at least")
    return lists


def named(lists: Sequence[Gradient]) -> dict[str, Gradient]:
    """By what errors call them."""
    return {f"gradients[{i}]": gradient for i, gradient in enumerate(lists)}


def elsewhere(lists: Mapping[str, Gradient]) -> bool:
    """Whether the gradients are on another device. Then they are checked here; the kernel tells of lists on several."""
    for each in lists.values():
        for x in each:
            if isinstance(x, Tensor):
                if not x.is_cpu:
                    checks.lists(lists.items())
                return not x.is_cpu
    return False


def fill(to: list[Tensor | None], lists: Sequence[Gradient], make: Callable[[Tensor], Tensor]) -> None:
    """Make tensors where the list has None and another has not."""
    for place, others in enumerate(zip(*lists, strict=False)):
        if place < len(to) and to[place] is None:
            like = next((x for x in others if x is not None), None)
            to[place] = None if like is None else make(like)


def written(tensors: Gradient) -> None:
    """Tell autograd that these were changed."""
    torch.autograd.graph.increment_version([x for x in tensors if x is not None])
