"""What all element-wise optimizers share: options, state, checkpoints, and the step itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

from ferrostep import _core, reference

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    StateDict = dict[str, Any]

_core.adopt_openmp()


class Options(TypedDict, total=False):
    """The options that every optimizer takes as keywords.

    rounding: how a result is rounded to a bfloat16 or float16 parameter: ``"nearest"`` (default), ``"stochastic"``
        (up or down at random, right in expectation, from ``seed``), or ``"kahan"`` (what rounding lost is kept in a
        ``kahan_comp`` buffer of the parameter's dtype and added back). No effect on float32 and float64.
    state_dtype: dtype of the state. Default: float32 for bfloat16 and float16 parameters, else the parameter's.
        float32, bfloat16 and (for float16 parameters) float16 are possible; float64 parameters keep float64.
    seed: of stochastic rounding, from 0 to 2**64 - 1; default 0.
    backend: ``"auto"`` (default: Rust for parameters on the CPU, plain torch elsewhere), ``"rust"`` (an error
        elsewhere), or ``"reference"`` (plain torch everywhere).
    skip_nonfinite: leave everything as it is in a step whose gradients hold a NaN or infinity; default False. Costs
        one more reading of the gradients.
    foreach, fused, capturable: accepted for torch's sake and without effect: there is one implementation.
    differentiable: let autograd record the step; runs in plain torch.
    """

    rounding: str
    state_dtype: torch.dtype | None
    seed: int
    backend: str
    skip_nonfinite: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


DEFAULT_OPTIONS: Options = {
    "rounding": "nearest",
    "state_dtype": None,
    "seed": 0,
    "backend": "auto",
    "skip_nonfinite": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}

ROUNDINGS = ("nearest", "stochastic", "kahan")
BACKENDS = ("auto", "rust", "reference")
STATE_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


class Rule(NamedTuple):
    """An update rule as a parameter group selects it."""

    kernel: Callable[..., Any]
    """The Rust rule, made from the hyperparameters by keyword."""
    reference: reference.ReferenceRule
    """The same in plain torch."""
    states: tuple[str, ...]
    """The state tensors in the rule's order."""
    hyperparameters: dict[str, Any]
    counts_steps: bool
    """Whether the rule depends on the number of the step: a ``step`` tensor is kept then."""


class ElementwiseOptimizer(Optimizer):
    """An optimizer whose update of an element depends on that element alone. Subclasses define :meth:`rule`."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any], options: Options) -> None:
        super().__init__(params, {**defaults, **checked_options(type(self).__name__, options)})

    def rule(self, group: dict[str, Any]) -> Rule:
        """The update rule for a parameter group, with the group's present hyperparameters."""
        raise NotImplementedError

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
            self._update(new_state)
        except BaseException:
            new_state.discard()
            raise
        return loss

    def _update(self, new_state: NewState) -> None:
        """Update all groups, or none: what can fail comes before the first change."""
        batch = _core.Batch()
        native: list[Tensor] = []
        elsewhere: list[Gathered] = []
        for number, group in enumerate(self.param_groups):
            on_cpu, others = _with_gradient(group)
            if on_cpu:
                gathered = self._gather(number, group, on_cpu, new_state)
                gathered.add_to(batch)
                native += gathered.params
            if others:
                gathered = self._gather(number, group, others, new_state)
                gathered.check_for_reference()
                elsewhere.append(gathered)
        skip = self.defaults["skip_nonfinite"]
        if skip and not all(g.isfinite().all() for gathered in elsewhere for g in gathered.grads):
            return
        if not batch.run(torch.get_num_threads(), skip_nonfinite=skip):
            return
        if native:
            torch.autograd.graph.increment_version(native)
        for gathered in elsewhere:
            gathered.run_reference()
        self._after_update(batch, elsewhere)

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        """For subclasses: called when all groups have been updated."""

    def _gather(
        self, number: int, group: dict[str, Any], found: list[tuple[int, Tensor, Tensor]], new_state: NewState
    ) -> Gathered:
        rule = self.rule(group)
        positions, params, grads = map(list, zip(*found, strict=True))
        states = [self.state[p] for p in params]
        names = rule.states
        if rule.counts_steps or group["rounding"] == "stochastic":
            names = (*names, "step")
        if group["rounding"] == "kahan":
            names = (*names, "kahan_comp")
        try:
            columns = {name: [state[name] for state in states] for name in names}
        except KeyError:
            for p, state in zip(params, states, strict=True):
                for name in names:
                    if name not in state:
                        state[name] = _zero_state(name, p, group)
                        new_state.record(p, name)
            columns = {name: [state[name] for state in states] for name in names}
        return Gathered(number, group, rule, positions, params, grads, columns)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled or loaded state; what a torch checkpoint lacks is filled in."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
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
                        self.state[p][name] = _loaded_state(name, value, p, group)


def _step_of(optimizer: ElementwiseOptimizer, closure: Callable[[], float] | None = None) -> float | None:
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


class Gathered(NamedTuple):
    """The parameters of a group that have gradients, with these and their state."""

    number: int
    group: dict[str, Any]
    rule: Rule
    positions: list[int]
    params: list[Tensor]
    grads: list[Tensor]
    columns: dict[str, list[Tensor]]

    def add_to(self, batch: _core.Batch) -> None:
        """Hand the tensors to the Rust engine, which checks them."""
        batch.add(
            self.rule.kernel(**self.rule.hyperparameters),
            self.params,
            self.grads,
            {name: self.columns[name] for name in self.rule.states},
            steps=self.columns.get("step"),
            rounding=self.group["rounding"],
            seed=self.group["seed"],
            compensation=self.columns.get("kahan_comp"),
            group=self.number,
            positions=self.positions,
        )

    def check_for_reference(self) -> None:
        """Raise for what plain torch cannot update, or would by broadcasting."""
        if self.group["backend"] == "rust":
            where = f"param of parameter {self.positions[0]} in group {self.number}"
            if self.group["differentiable"]:
                raise RuntimeError("differentiable=True runs in plain torch and excludes backend='rust'")
            raise RuntimeError(f"{where} is on device {self.params[0].device}, expected the CPU (backend='rust')")
        for position, p, grad in zip(self.positions, self.params, self.grads, strict=True):
            where = f"grad of parameter {position} in group {self.number}"
            if grad.layout != torch.strided:
                raise RuntimeError(f"{where} has layout {grad.layout}; sparse tensors are not supported")
            if grad.shape != p.shape:
                raise ValueError(f"{where} has shape {list(grad.shape)}, expected {list(p.shape)}")
            if not (p.is_floating_point() or p.is_complex()) or grad.dtype != p.dtype:
                raise ValueError(f"{where} has dtype {grad.dtype} for a parameter of {p.dtype}")

    def run_reference(self) -> None:
        """Update in plain torch."""
        with torch.set_grad_enabled(self.group["differentiable"]):
            for i, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
                step = 0.0
                if "step" in self.columns:
                    self.columns["step"][i] += 1
                    step = self.columns["step"][i].item()
                reference.apply(
                    self.rule.reference,
                    p,
                    grad,
                    [self.columns[name][i] for name in self.rule.states],
                    step,
                    self.rule.hyperparameters,
                    rounding=self.group["rounding"] if _has_16_bits(p) else "nearest",
                    compensation=self.columns["kahan_comp"][i] if "kahan_comp" in self.columns else None,
                    seed=self.group["seed"],
                    number=self.positions[i] | self.number << 32,
                )


def checked_options(owner: str, options: Options) -> Options:
    """The options with their defaults; TypeError for an unknown one, ValueError for an impossible value."""
    for name in options:
        if name not in DEFAULT_OPTIONS:
            near = difflib.get_close_matches(name, DEFAULT_OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(DEFAULT_OPTIONS)}"
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}{hint}")
    full: Options = {**DEFAULT_OPTIONS, **options}
    for name, value, allowed in (
        ("rounding", full["rounding"], ROUNDINGS),
        ("backend", full["backend"], BACKENDS),
        ("state_dtype", full["state_dtype"], STATE_DTYPES),
    ):
        if value not in allowed:
            raise ValueError(f"Invalid {name} value: {value!r}; expected one of {', '.join(map(repr, allowed))}")
    if not 0 <= full["seed"] < 2**64:
        raise ValueError(f"Invalid seed value: {full['seed']}; expected 0 to 2**64 - 1")
    if full["fused"] and full["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if full["fused"] and full["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    return full


def check_range(name: str, value: float | Tensor, low: float, high: float | None = None) -> None:
    """Raise torch's ValueError unless ``low <= value`` (and ``value < high``)."""
    if not (low <= value and (high is None or value < high)):
        raise ValueError(f"Invalid {name}: {value}")


def check_lr(lr: float | Tensor, options: Options) -> None:
    """Raise torch's errors for a learning rate."""
    if isinstance(lr, Tensor):
        if options.get("foreach") and not options.get("capturable"):
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    check_range("learning rate", lr, 0.0)


def checked_betas(
    betas: tuple[float | Tensor, float | Tensor], options: Options
) -> tuple[float | Tensor, float | Tensor]:
    """The betas, one-element tensors squeezed; torch's errors for impossible ones."""
    check_range("beta parameter at index 0", betas[0], 0.0, 1.0)
    check_range("beta parameter at index 1", betas[1], 0.0, 1.0)
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            if options.get("foreach") and not options.get("capturable"):
                raise ValueError(f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True")
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element")
    first, second = (b.squeeze() if isinstance(b, Tensor) else b for b in betas)
    return first, second


Found = list[tuple[int, Tensor, Tensor]]


def _with_gradient(group: dict[str, Any]) -> tuple[Found, Found]:
    """The parameters that have a gradient, as (position, parameter, gradient): those for Rust, and the others."""
    on_cpu: Found = []
    others: Found = []
    plain = group["backend"] == "reference" or group["differentiable"]
    for position, p in enumerate(group["params"]):
        grad = p.grad
        if grad is not None:
            (on_cpu if p.is_cpu and not plain else others).append((position, p, grad))
    return on_cpu, others


def _has_16_bits(p: Tensor) -> bool:
    return p.dtype in SIXTEEN_BIT


def _state_dtype(p: Tensor, group: dict[str, Any]) -> torch.dtype:
    """The dtype of the moments: complex parameters and float64 keep theirs."""
    if p.is_complex() or p.dtype == torch.float64:
        return p.dtype
    if group["state_dtype"] is not None:
        chosen: torch.dtype = group["state_dtype"]
        return chosen
    return torch.float32 if _has_16_bits(p) else p.dtype


def _zero_state(name: str, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    if name == "step":
        # torch's dtype for it, and like torch's on the CPU, unless its flags for other devices ask otherwise.
        device = p.device if group["capturable"] or group["fused"] else "cpu"
        double = torch.get_default_dtype() == torch.float64
        return torch.zeros((), dtype=torch.float64 if double else torch.float32, device=device)
    if name == "kahan_comp":
        return torch.zeros_like(p, memory_format=torch.preserve_format) if _has_16_bits(p) else None
    return torch.zeros_like(p, dtype=_state_dtype(p, group), memory_format=torch.preserve_format)


def _loaded_state(name: str, value: Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a loaded state tensor as this optimizer keeps it."""
    if name == "step":
        return value.detach().clone().to(device=p.device if group["capturable"] or group["fused"] else "cpu")
    dtype = p.dtype if name == "kahan_comp" else _state_dtype(p, group)
    if value.shape != p.shape:
        return value.detach().clone()  # the step will name it in its error
    return torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value.detach())
