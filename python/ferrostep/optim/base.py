"""What all optimizers share: the step with its hooks, state and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

from ferrostep import _core
from ferrostep.optim.options import Options, checked_options

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

_core.adopt_openmp()

SIXTEEN_BIT = (torch.bfloat16, torch.float16)


class InPlaceOptimizer(Optimizer):
    """An optimizer on Rust kernels: the step with its hooks, options, state and checkpoints.

    Subclasses define :meth:`_update`.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], options: Options) -> None:
        super().__init__(params, {**defaults, **checked_options(type(self).__name__, defaults, options)})
        self._known = _core.Known()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss, which is then the result.

        Raises:
            TypeError, ValueError, RuntimeError: a tensor that cannot be updated (sparse, wrong shape or dtype,
                overlapping another, ...), named by group and index. Nothing has been changed then.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        ):
            return _observed_step(self) if closure is None else _observed_step(self, closure)
        return self._step(closure)

    # torch would wrap `step` in its hooks and its profiler entry, at the price of a small model's whole step; that
    # wrapper is used only when there is someone to notice.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        new_state = NewState(self.state)
        try:
            updated = self._update(new_state)
        except BaseException:
            new_state.discard()
            raise
        if not updated:
            new_state.discard()
        return loss

    def _update(self, new_state: NewState) -> bool:
        """Update all groups, or none: what can fail comes before the first change. False if the step was skipped."""
        raise NotImplementedError

    def _group_defaults(self, group: dict[str, Any]) -> dict[str, Any]:
        """For subclasses with several kinds of groups: what a group of this kind has where it says nothing."""
        return self.defaults

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled or loaded state; what a torch checkpoint lacks is filled in."""
        super().__setstate__(state)
        self._known = _core.Known()
        for group in self.param_groups:
            for name, default in self._group_defaults(group).items():
                group.setdefault(name, default)
            for p in group["params"]:
                step = self.state[p].get("step") if p in self.state else None
                if step is not None and not isinstance(step, Tensor):
                    self.state[p]["step"] = torch.tensor(float(step), dtype=torch.get_default_dtype())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's class of the same rule.

        State tensors are copied, into the parameter's memory layout and the dtype that ``state_dtype`` selects: a
        float32 state stays float32 where torch would round it to the parameter's dtype.
        """
        final: dict[str, Any] = {}

        def remember(_optimizer: Optimizer, loaded: dict[str, Any]) -> None:
            final.update(loaded)

        handle = self.register_load_state_dict_pre_hook(remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for saved, group in zip(final["param_groups"], self.param_groups, strict=True):
            for key, p in zip(saved["params"], group["params"], strict=True):
                for name, value in final["state"].get(key, {}).items():
                    if isinstance(value, Tensor):
                        self.state[p][name] = loaded_state(name, value, p, group)


def _step_of(optimizer: InPlaceOptimizer, closure: Callable[[], float] | None = None) -> float | None:
    return optimizer._step(closure)


_observed_step = Optimizer.profile_hook_step(_step_of)


class NewState:
    """The state tensors that a step has made, to be taken back if the step fails."""

    def __init__(self, state: dict[Tensor, dict[str, Any]]) -> None:
        self.state = state
        self.made: list[tuple[Tensor, str]] = []

    def record(self, p: Tensor, name: str) -> None:
        """Note that ``state[p][name]`` is new."""
        self.made.append((p, name))

    def discard(self) -> None:
        """Remove what is new."""
        for p, name in self.made:
            del self.state[p][name]
            if not self.state[p]:
                del self.state[p]


def has_16_bits(p: Tensor) -> bool:
    """Whether the parameter is less precise than the arithmetic."""
    return p.dtype in SIXTEEN_BIT


def state_dtype(p: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The dtype of the moments: complex parameters and float64 keep theirs."""
    if p.is_complex() or p.dtype == torch.float64:
        return p.dtype
    if group["state_dtype"] is not None:
        chosen: torch.dtype = group["state_dtype"]
        return chosen
    return torch.float32 if has_16_bits(p) else p.dtype


def arithmetic_dtype(p: Tensor) -> torch.dtype:
    """The dtype that the parameter is updated in."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def zero_state(name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    """A state tensor as it is before the first step; None for a compensation that the parameter does not need."""
    if name == "step":
        # torch's dtype for it, and like torch's on the CPU, unless its flags for other devices ask otherwise.
        device = p.device if group["capturable"] or group["fused"] else "cpu"
        double = torch.get_default_dtype() == torch.float64
        return torch.zeros((), dtype=torch.float64 if double else torch.float32, device=device)
    if name == "kahan_comp":
        return torch.zeros_like(p, memory_format=torch.preserve_format) if has_16_bits(p) else None
    return torch.zeros_like(p, dtype=state_dtype(p, group), memory_format=torch.preserve_format)


def loaded_state(name: str, value: Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a loaded state tensor as this optimizer keeps it."""
    if name == "step":
        return value.detach().clone().to(device=p.device if group["capturable"] or group["fused"] else "cpu")
    if name == "second_momentum_buffer":  # small, hence always in the type of the arithmetic
        return value.detach().to(p.device, arithmetic_dtype(p), copy=True)
    dtype = p.dtype if name == "kahan_comp" else state_dtype(p, group)
    if value.shape != p.shape:
        return value.detach().clone()  # the step will name it in its error
    return torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value.detach())
