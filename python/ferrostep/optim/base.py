"""What all optimizers share: the step with its hooks, state and checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind
from ferrostep.optim import shards
from ferrostep.optim.arguments import Argument, check_arguments
from ferrostep.optim.options import Options, check_options, chosen_dtype, full_options, is_coded
from ferrostep.optim.recorders import Recorder, Recorders
from ferrostep.optim.release import Release, refusal
from ferrostep.optim.roles import is_embedding
from ferrostep.optim.scratch import Scratch
from ferrostep.reference.codes import blocks_of
from ferrostep.suggestions import mistaken_entry

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

_core.adopt_openmp()

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
SCALARS = ("step", *sorted({product for *_, product in _core.rules().values() if product is not None}))
"""States that are one number, in torch's default dtype: a step counts it up, or multiplies it."""

# As torch does with what it cannot trace, without loading Dynamo when it is defined.
without_dynamo = torch._disable_dynamo  # type: ignore[attr-defined]


class InPlaceOptimizer(Optimizer):
    """An optimizer on Rust kernels: the step with its hooks, options, state and checkpoints.

    Subclasses define :meth:`_update`; they say their arguments in ``_arguments`` and hand them on as ``locals()``, or
    check those that they hand on in :meth:`_check_group`.
    """

    _arguments: Mapping[str, Argument] = MappingProxyType({})
    """What the constructor's signature declares; see :func:`ferrostep.optim.arguments.arguments_of`."""

    _numbers: tuple[str, ...] = ()
    """States that are one float64 number, whatever the parameter."""

    _release: Release | None = None

    _is_in_round = False
    """Whether a part of a step has been taken, within the backward pass, and the rest has not."""

    _came: frozenset[Tensor] = frozenset()
    """After :meth:`detach` in the midst of a step: the parameters that have had a gradient in it."""

    _recorders = Recorders()  # of nobody: an optimizer that is recorded has its own

    def __init__(self, params: ParamsT, defaults: dict[str, Any], options: Options) -> None:
        if self._arguments:
            defaults = {name: defaults[name] for name in self._arguments}
        defaults = {**defaults, **full_options(type(self).__name__, defaults, options)}
        self._check_defaults(defaults)
        if isinstance(params, nn.Module):
            raise wrong_kind("params", params, "parameters or parameter groups, such as model.parameters()")
        super().__init__(params, defaults)
        self._forget()

    def _forget(self) -> None:
        """Keep nothing of earlier steps but their state."""
        self._known = _core.Known()
        self._scratch = Scratch()

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The defaults of the arguments."""
        return {name: argument.default for name, argument in cls._arguments.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Raises:
            ValueError, TypeError, RuntimeError: an impossible argument, an entry that is a misspelt one, or a
                parameter that the class does not take; the group is not added then.
        """
        if isinstance(param_group, dict):
            self._check_names(param_group)
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
            if self._release is not None:
                self._release.add(len(self.param_groups) - 1, self.param_groups[-1])
        except BaseException as error:
            self.param_groups.pop()
            if isinstance(error, (TypeError, ValueError, RuntimeError)):
                error.args = (f"param group {len(self.param_groups)}: {error}",)
            raise

    def _check_names(self, group: dict[str, Any]) -> None:
        """Raise TypeError for a misspelt argument, which would be kept and have no effect; others' entries stay."""
        known = ["params", *self._group_defaults(group)]
        for name in group:
            near = None if name in known else mistaken_entry(name, known)
            if near is not None:
                where = f"param group {len(self.param_groups)}"
                raise TypeError(f"{where} got an unexpected argument {name!r}; did you mean {near!r}?")

    def _check(self, group: dict[str, Any]) -> None:
        check_options(group)
        check_arguments(self._arguments, group)
        self._check_group(group)

    def _check_defaults(self, defaults: dict[str, Any]) -> None:
        """Check what a group has that says nothing."""
        group = {"params": [], **defaults}
        self._check(group)
        defaults.update((name, group[name]) for name in defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for what each argument by itself does not show, and for parameters that the class cannot take."""

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
        if self._release is None:
            self._update()
        else:
            self._release.end()
        return loss

    def attach(self) -> Release:
        """Step parameters within the backward pass, each as soon as its gradient is there, which is freed then.

        A hook of each parameter does it. Small gradients wait until they are 8 MiB together, so that there are never
        more than these and the largest one. :meth:`step`, to be called after each backward pass as usual, steps with
        those that still wait; hooks of the optimizer run then, once. The numbers are those of whole steps, bit for bit.

        The step is no longer all or nothing: where an error comes up, which ``backward`` raises, parameters have been
        stepped or not, each as a whole. Gradients that were not used are still there; :meth:`zero_grad` drops them, and
        the next backward pass begins anew. What looks at ``grad`` after the backward pass, clipping too, finds what
        still waits alone. ``detach`` ends it all, and so does the end of ``with optimizer.attach():``.

        Returns:
            A context manager, which detaches.

        Raises:
            RuntimeError: it is attached already, or a step needs all gradients at once: ``max_grad_norm``,
                ``skip_nonfinite``, ``differentiable``, DTensors, several processes, or the class. Later, within
                ``backward``: a parameter's second gradient before :meth:`step`, as where gradients of several passes
                are added up; by ``GradScaler.step``: it.

        Example:
            >>> from ferrostep.optim import AdamW
            >>> model = torch.nn.Linear(3, 2)
            >>> optimizer = AdamW(model.parameters())
            >>> with optimizer.attach():
            ...     model(torch.ones(3)).sum().backward()
            ...     optimizer.step()
            >>> model.weight.grad is None, optimizer.state[model.weight]["step"].item()
            (True, 1.0)
        """
        if self._release is not None:
            raise RuntimeError("attach() was called twice without detach()")
        self._release = Release(self)
        return self._release

    def detach(self) -> None:
        """Leave gradients to :meth:`step` again; nothing if :meth:`attach` was not called.

        Those that wait are for the next :meth:`step`, which ends the one that has begun, as :meth:`attach` goes on
        with it.
        """
        if self._release is not None:
            self._release.remove()
            self._came = frozenset(self._release.came if self._is_in_round else ())
            self._release = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients.

        Args:
            set_to_none: drop gradients (True, default) or fill those that parameters have with zeros.

        Raises:
            RuntimeError: a gradient that cannot be written, as torch.
        """
        super().zero_grad(set_to_none)
        self._begin_anew()

    def _needs_all_gradients(self, _group: dict[str, Any]) -> str | None:
        """Why the parameters of a group cannot be stepped one after the other, if they cannot."""
        return None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What GradScaler asks for before it lets an optimizer step."""
        if self._release is not None:
            raise refusal("GradScaler", "gradients have been used, as they were scaled, before it could unscale them")
        return False

    def _record(self, recorder: Recorder) -> Callable[[], None]:
        """Tell the recorder of the norms of every step from now on; returns what ends it."""
        if "_recorders" not in vars(self):
            self._recorders = Recorders()
        self._recorders.join(recorder, self._is_in_round)
        return partial(self._recorders.leave, recorder)

    def _end_step(self) -> None:
        """What follows when all parameters have been stepped, whose gradients may have come one after the other."""
        self._is_in_round, self._came = False, frozenset()
        self._recorders.tell(p for group in self.param_groups for p in group["params"])

    def _forget_round(self) -> None:
        """Let the next update begin a step, whatever was taken of the one before."""
        self._is_in_round, self._came = False, frozenset()
        self._recorders.forget()

    def _begin_anew(self) -> None:
        """The same, and for gradients that come within the backward pass, too."""
        if self._release is None:
            self._forget_round()
        else:
            self._release.forget()

    def _update(self) -> None:
        """Update all groups, or none: what can fail comes before the first change."""
        raise NotImplementedError

    def _group_defaults(self, group: dict[str, Any]) -> dict[str, Any]:
        """For subclasses with several kinds of groups: what a group of this kind has where it says nothing."""
        return self.defaults

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled or loaded state, or a part of one; what a torch checkpoint lacks is filled in."""
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for name, default in self._group_defaults(group).items():
                group.setdefault(name, default)
            for p in group["params"]:
                own = self.state.get(p, {})
                for name in SCALARS:
                    if own.get(name) is not None and not isinstance(own[name], Tensor):
                        own[name] = torch.tensor(float(own[name]), dtype=torch.get_default_dtype())

    def state_dict(self) -> dict[str, Any]:
        """The state as torch has it: plain tensors and numbers, DTensors where the parameters are such.

        States of DTensors that are codes of 8 bits stand there as float32 numbers, in shards as the parameter, so that
        any number of ranks loads them. Where an optimizer with ``state_dtype="int8"`` does, they become codes again;
        in the same shards the very ones that they were. Numbers that one sum makes of several parameters (AdaGradNorm,
        NIGT, STORM) are a tensor of its own for each, into which a checkpoint may be loaded.
        """
        # Torch's own, of a copy without hooks: those of others come last, as they may return what they like.
        bare = object.__new__(type(self))
        no_hooks: dict[str, Any] = {"_optimizer_state_dict_pre_hooks": {}, "_optimizer_state_dict_post_hooks": {}}
        bare.__dict__.update(self.__dict__, **no_hooks)
        return between_hooks(self, lambda: self._saved(super(InPlaceOptimizer, bare).state_dict()))

    def _saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """For subclasses: torch's state dict as this class saves it."""
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's class of the same rule.

        State tensors are copied, into the parameter's memory layout and the dtype that ``state_dtype`` selects: a
        float32 state stays float32 where torch would round it to the parameter's dtype, and becomes codes or comes
        from them where that is ``"int8"``. States of the 8-bit optimizers of bitsandbytes and torchao load, too.

        Raises:
            ValueError: groups of other numbers of parameters, or a state that is another rule's of the same name.
            KeyError: a parameter's state lacks what the rule needs, as the state of another optimizer does. Whatever
                is raised, nothing has been changed then.
        """
        final: dict[str, Any] = {}
        before = {"state": self.state, "param_groups": self.param_groups}

        def remember(_optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            final.update(self._adopted(loaded))
            return final

        handle = self.register_load_state_dict_pre_hook(remember)
        try:
            super().load_state_dict(state_dict)
            with torch.inference_mode(False):  # whatever the mode, later steps write the states
                self._load(final)
            self._begin_anew()
        except BaseException:
            self.__dict__.update(before)
            raise
        finally:
            handle.remove()

    def _load(self, final: dict[str, Any]) -> None:
        """Copy the states of a state dict."""
        for saved, group in zip(final["param_groups"], self.param_groups, strict=True):
            for key, p in zip(saved["params"], group["params"], strict=True):
                for name, value in final["state"].get(key, {}).items():
                    if isinstance(value, Tensor):
                        self.state[p][name] = self._loaded(name, value, p, group)

    def _loaded(self, name: str, value: Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
        if name in self._numbers:
            if value.numel() != 1:
                raise Problem.SHAPE.of(f"{name} of a state", list(value.shape), "one number: it is another rule's")
            return value.detach().to("cpu", torch.float64, copy=True)
        return loaded_state(name, value, p, group)

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The loaded state dict as this class has it; KeyError for a state that is not this rule's."""
        return state_dict


def _step_of(optimizer: InPlaceOptimizer, closure: Callable[[], float] | None = None) -> float | None:
    return optimizer._step(closure)


_observed_step = Optimizer.profile_hook_step(_step_of)


def between_hooks(optimizer: Optimizer, save: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``save`` returns, or what an optimizer's hooks make of it, as in torch's ``state_dict``."""
    for before in optimizer._optimizer_state_dict_pre_hooks.values():
        before(optimizer)
    state_dict = save()
    for after in optimizer._optimizer_state_dict_post_hooks.values():
        returned = after(optimizer, state_dict)
        state_dict = state_dict if returned is None else returned
    return state_dict


class NewState:
    """The state tensors and the numbers of groups that a step has made, to be taken back if the step fails."""

    def __init__(self, state: dict[Tensor, dict[str, Any]]) -> None:
        self.state = state
        self.before: list[tuple[Tensor, str, Tensor | None]] = []
        self.of_groups: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, p: Tensor, name: str, new: Tensor | None) -> None:
        """Make ``new`` the parameter's state of this name; nothing without one."""
        if new is None:
            return
        if isinstance(new, Tensor) and new.is_inference():  # later steps are to write it outside inference mode, too
            with torch.inference_mode(False):
                new = new.clone()
        self.before.append((p, name, self.state.get(p, {}).get(name)))
        self.state[p][name] = new

    def write(self, group: dict[str, Any], name: str, new: Any) -> None:
        """Make ``new`` the group's value of this name."""
        self.of_groups.append((group, name, group[name]))
        group[name] = new

    def remove(self, p: Tensor, name: str) -> None:
        """Take the parameter's state of this name away, if there is one."""
        before = self.state.get(p, {}).pop(name, None)
        if before is not None:
            self.before.append((p, name, before))

    def discard(self) -> None:
        """Take back what was set, written and removed."""
        for group, name, value in reversed(self.of_groups):
            group[name] = value
        for p, name, before in reversed(self.before):
            if before is not None:
                self.state[p][name] = before
                continue
            self.state[p].pop(name, None)
            if not self.state[p]:
                del self.state[p]


def has_16_bits(p: Tensor) -> bool:
    """Whether the parameter is less precise than the arithmetic."""
    return p.dtype in SIXTEEN_BIT


def is_fake(p: Tensor) -> bool:
    """Whether the tensor has a shape but no memory, as under ``FakeTensorMode``."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(p, module.FakeTensor)


def state_dtype(name: str, p: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The dtype of a moment that is no codes: complex parameters and float64 keep theirs."""
    if p.is_complex() or p.dtype == torch.float64:
        return p.dtype
    chosen: torch.dtype | None = chosen_dtype(name, group)
    if chosen is not None and not is_coded(name, group):
        return chosen
    return torch.float32 if has_16_bits(p) else p.dtype


def is_in_codes(name: str, p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a new state of this name is codes: not where there is little to save, or much depends on each number."""
    if not is_coded(name, group) or p.ndim < 2 or p.numel() < group["min_quant_numel"]:
        return False
    named = zip(group.get("param_names", ()), group["params"], strict=False)
    return not any(q is p and is_embedding(name_of_p, p) for name_of_p, q in named)


def scale_of(name: str) -> str:
    """What the scales of a state are called."""
    return f"{name}_scale"


def zero_scale(name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    """The scales of a state of zeros, of a DTensor those of this rank's shard; None where it is no codes."""
    if not is_in_codes(name, p, group):
        return None
    own = shards.local(p)
    return torch.zeros(blocks_of(own.numel()), dtype=torch.float32, device=p.device)


def arithmetic_dtype(p: Tensor) -> torch.dtype:
    """The dtype that the parameter is updated in."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def dtype_of(name: str, p: Tensor, group: dict[str, Any], *, is_codes: bool = False) -> torch.dtype:
    """The dtype of a state with the parameter's shape."""
    if name == "kahan_comp":
        return p.dtype
    if name == "master_param":
        return arithmetic_dtype(p)
    if name == "master_low":
        return torch.int16
    return torch.uint8 if is_codes else state_dtype(name, p, group)


def scalar(value: float, p: Tensor, group: dict[str, Any]) -> Tensor:
    """One of :data:`SCALARS` as it is before the first step."""
    double = torch.get_default_dtype() == torch.float64
    return torch.full((), value, dtype=torch.float64 if double else torch.float32, device=device_of_scalars(p, group))


def device_of_scalars(p: Tensor, group: dict[str, Any]) -> torch.device:
    """As torch has it: the CPU, unless its flags for other devices ask otherwise."""
    return p.device if group["capturable"] or group["fused"] else torch.device("cpu")


def zero_state(name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    """A state tensor as it is before the first step; None for what a parameter of its dtype does not need."""
    if name == "step":
        return scalar(0.0, p, group)
    if name in ("kahan_comp", "master_low", "master_param") and not has_16_bits(p):
        return None
    if name == "master_param":
        return p.detach().to(arithmetic_dtype(p), copy=True, memory_format=torch.preserve_format)
    dtype = dtype_of(name, p, group, is_codes=is_in_codes(name, p, group))
    return torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def loaded_state(name: str, value: Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a loaded state tensor as this optimizer keeps it."""
    if value.is_meta or value.layout != torch.strided:
        return value.detach().clone()  # the step will name it in its error
    if name in SCALARS:
        # torch rounds all of them but the step to the parameter's dtype when it loads them.
        dtype = torch.float32 if name != "step" and value.dtype in SIXTEEN_BIT else value.dtype
        return value.detach().to(device_of_scalars(p, group), dtype, copy=True)
    if name == "second_momentum_buffer":  # small, hence always in the type of the arithmetic
        return value.detach().to(p.device, arithmetic_dtype(p), copy=True)
    if value.shape != p.shape or shards.is_distributed(value) != shards.is_distributed(p):
        return value.detach().clone()  # as above
    dtype = dtype_of(name, p, group, is_codes=value.dtype == torch.uint8)
    return torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value.detach())
