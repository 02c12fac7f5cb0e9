"""Steps within the backward pass: each gradient is used as soon as it is there, and freed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ferrostep.optim import shards

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from ferrostep.optim.base import InPlaceOptimizer

BYTES_AT_ONCE = 8 << 20
"""Gradients wait for others until they are so many bytes together: below, a call takes longer than what it does."""


class Release:
    """What :meth:`RuleOptimizer.attach` gives: steps parameters as their gradients arrive.

    From the first gradient to :meth:`end` is a round, in which each parameter is stepped once.
    """

    def __init__(self, optimizer: InPlaceOptimizer) -> None:
        for number, group in enumerate(optimizer.param_groups):
            check_group(optimizer, number, group)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise refusal("several processes", "the mean of their gradients comes after the hooks")
        self._optimizer = weakref.ref(optimizer)
        self._handles: list[RemovableHandle] = []
        self._bytes = 0
        self.came: set[Tensor] = set(optimizer._came)
        """The parameters that have had a gradient in this round."""
        for group in optimizer.param_groups:
            self._watch(group)

    def __enter__(self) -> InPlaceOptimizer:
        return self._owner

    def __exit__(self, *_: object) -> None:
        self._owner.detach()

    @property
    def _owner(self) -> InPlaceOptimizer:
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    def add(self, number: int, group: dict[str, Any]) -> None:
        """Take in a group that has come."""
        check_group(self._owner, number, group)
        self._watch(group)

    def _watch(self, group: dict[str, Any]) -> None:
        release = weakref.ref(self)

        def arrive(p: Tensor) -> None:
            own = release()
            if own is not None and own._optimizer() is not None:
                own._arrive(p)

        for p in group["params"]:
            if p.requires_grad:
                self._handles.append(p.register_post_accumulate_grad_hook(arrive))

    def remove(self) -> None:
        """Leave gradients alone from now on."""
        for handle in self._handles:
            handle.remove()

    def _arrive(self, p: Tensor) -> None:
        """Take a parameter's gradient, and step with all that wait if these are enough."""
        if p in self.came:
            p.grad = None  # which has another one's share, too, where the first has not been used
            raise RuntimeError(
                f"{place_of(self._owner, p)} gets a second gradient before step(): attach() uses gradients as they "
                "come, so those of several backward passes cannot be added up; call step() after each, or detach()"
            )
        if not self.came:
            self._owner._forget_round()  # if an error has left one
            for number, group in enumerate(self._owner.param_groups):  # which anyone may have written
                check_group(self._owner, number, group)
        self.came.add(p)
        grad = p.grad
        assert grad is not None
        self._bytes += grad.numel() * grad.itemsize
        if self._bytes >= BYTES_AT_ONCE:
            try:
                self._step()
            except BaseException:
                self._clear()
                raise

    def _step(self) -> None:
        """Step with all gradients that there are; those that were used are freed, whatever comes up."""
        optimizer = self._owner
        before = [(p, p._version) for group in optimizer.param_groups for p in group["params"]]
        try:
            optimizer._update()
        finally:
            for p, version in before:
                if p._version != version:
                    p.grad = None
                    self.came.add(p)
        self._bytes = 0

    def end(self) -> None:
        """End the round: step with the gradients that still wait."""
        try:
            self._step()
            self._owner._end_step()
        finally:
            self._clear()

    def forget(self) -> None:
        """End the round without a step."""
        self._owner._forget_round()
        self._clear()

    def _clear(self) -> None:
        """Wait for gradients anew; until the first one comes, a step still ends a round that an error has broken."""
        self.came.clear()
        self._bytes = 0


def inner_of(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer that another one holds and lets take its steps, as SAM and HostOptimizer do."""
    inner = getattr(optimizer, "base_optimizer", None) or getattr(optimizer, "_inner", None)
    return inner if isinstance(inner, Optimizer) else None


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that takes the steps."""
    inner = inner_of(optimizer)
    return optimizer if inner is None else innermost(inner)


def frees_gradients(optimizer: Optimizer) -> bool:
    """Whether gradients are taken from their parameters as they come."""
    inner, is_attached = inner_of(optimizer), getattr(optimizer, "_release", None) is not None
    is_freeing = is_attached or getattr(optimizer, "_is_offloading", False)
    return is_freeing or (inner is not None and frees_gradients(inner))


def refusal(what: str, why: str) -> Exception:
    """The error for what :meth:`RuleOptimizer.attach` cannot do."""
    return RuntimeError(f"attach() does not support {what}: {why}")


def check_group(optimizer: InPlaceOptimizer, number: int, group: dict[str, Any]) -> None:
    """Raise RuntimeError for a group whose step depends on more than a parameter and its gradient."""
    for what, why in reasons(optimizer, group):
        raise refusal(f"{what} (group {number})", why)


def reasons(optimizer: InPlaceOptimizer, group: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a group has that needs all gradients at once, and why."""
    of_class = optimizer._needs_all_gradients(group)
    if of_class is not None:
        yield type(optimizer).__name__, of_class
    if group["max_grad_norm"] is not None:
        yield "max_grad_norm", "the norm of all gradients is known when the last one is, and the first are freed then"
    if group["skip_nonfinite"]:
        yield "skip_nonfinite", "whether a gradient holds a NaN is known when the last one is"
    if group["differentiable"]:
        yield "differentiable", "autograd cannot record a step within the backward pass"
    if shards.are_among(group["params"]):
        yield "DTensors", "their gradients come when the ranks have summed them up"


def place_of(optimizer: InPlaceOptimizer, p: Tensor) -> str:
    """What a parameter is called in errors."""
    for number, group in enumerate(optimizer.param_groups):
        for i, own in enumerate(group["params"]):
            if own is p:
                return f"parameter {i} in group {number}"
    return "a parameter that the optimizer no longer has"
