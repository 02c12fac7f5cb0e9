"""torch tensors that cannot be updated, each with the error it deserves.

A case is tried on parameter 1 of group 1 (the victim), with good parameters before and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.testing._internal.two_tensor import TwoTensor

from ferrostep.optim.base import SCALARS

SHAPE = (4, 6)


class Trial:
    """Two groups of parameters with gradients, and the optimizer over them once it is asked for."""

    def __init__(
        self, build: Callable[..., Optimizer], dtype: torch.dtype, momentum: str = "exp_avg", **options: Any
    ) -> None:
        self.momentum = momentum
        generator = torch.Generator().manual_seed(1)
        self._build, self._options = build, options
        self._made: Optimizer | None = None
        self.params = [Parameter(torch.randn(SHAPE, generator=generator).to(dtype)) for _ in range(5)]
        for p in self.params:
            p.grad = torch.randn(SHAPE, generator=generator).to(dtype)
        self.keep: list[Any] = []

    @property
    def victim(self) -> Tensor:
        return self.params[3]

    @victim.setter
    def victim(self, p: Tensor) -> None:
        assert self._made is None
        self.params[3] = p

    @property
    def optimizer(self) -> Optimizer:
        if self._made is None:
            groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.03}]
            self._made = self._build(groups, **self._options)
        return self._made

    def state(self, name: str | None = None) -> dict[str, Any]:
        """The victim's state after a good step; with a state of this name, or the momentum."""
        if not self.optimizer.state:
            self.optimizer.step()
        state: dict[str, Any] = self.optimizer.state[self.victim]
        assert (name or self.momentum) in state
        return state


class Case(NamedTuple):
    """A bad input."""

    name: str
    error: type[Exception]
    message: str
    """A pattern that the message contains."""
    spoil: Callable[[Trial], object]
    also_reference: bool = False
    """Whether plain torch refuses it with the same message."""
    options: dict[str, Any] = {}  # noqa: RUF012
    complex: bool = False


def replaced(trial: Trial, p: Tensor, grad: Tensor | None = None) -> None:
    """Put another parameter in the victim's place."""
    p = p if isinstance(p, Parameter) else Parameter(p, requires_grad=False)
    trial.victim = p
    if grad is not None:
        p.grad = grad


def gradient_of(trial: Trial, grad: Tensor) -> None:
    """Set a gradient that the setter would refuse: by way of a parameter that it fits."""
    p = trial.victim
    data = p.data
    p.grad = None
    p.data = torch.empty(grad.shape, dtype=grad.dtype)
    p.grad = grad
    p.data = data


def negative(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64).conj().imag


def conjugate(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64).conj()


def fake(shape: tuple[int, ...]) -> Tensor:
    with FakeTensorMode():
        return torch.zeros(shape)


@torch.inference_mode()
def inferred(x: Tensor) -> Tensor:
    """A tensor that does not count its versions."""
    return Parameter(x.clone()) if isinstance(x, Parameter) else x.clone()


def complex_victim(trial: Trial) -> Parameter:
    p = Parameter(torch.randn(SHAPE, dtype=torch.complex64))
    p.grad = torch.randn(SHAPE, dtype=torch.complex64)
    trial.victim = p
    return p


def another_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


def set_state(trial: Trial, value: Callable[[Tensor], Any], name: str | None = None) -> None:
    name = name or trial.momentum
    state = trial.state(name)
    state[name] = value(state[name])


def overlapping_params(trial: Trial) -> None:
    """The victim lies half in the memory of a parameter of the other group."""
    base = torch.randn(3, *SHAPE, dtype=trial.victim.dtype).view(-1)
    size = trial.victim.numel()
    for i, start in ((0, 0), (3, size // 2)):
        p = Parameter(base[start : start + size].view(SHAPE))
        p.grad = trial.params[i].grad
        trial.params[i] = p


def overlapping_with_gaps(trial: Trial) -> None:
    """Two parameters with gaps, one element of which is the same."""
    base = torch.randn(200, dtype=trial.victim.dtype)
    for i, view in ((0, base.as_strided(SHAPE, (12, 2), 0)), (3, base.as_strided(SHAPE, (13, 2), 7))):
        grad = trial.params[i].grad
        trial.params[i] = Parameter(view)
        trial.params[i].grad = grad


def _aliased(trial: Trial, state: Tensor) -> Tensor:
    """A state tensor that begins in the parameter's memory."""
    storage = trial.victim.untyped_storage()
    if state.numel() * state.element_size() <= storage.size():
        return torch.empty(0, dtype=state.dtype).set_(storage, 0, SHAPE)
    # The state needs more room than the parameter has: put both into a larger storage.
    base = torch.zeros(SHAPE, dtype=state.dtype)
    trial.victim.data = base.view(trial.victim.dtype).view(-1)[: trial.victim.numel()].view(SHAPE)
    return base


def _gradient_in_state(trial: Trial) -> None:
    """The gradient of a parameter of the other group lies in the victim's state."""
    state = trial.state()[trial.momentum]
    p = trial.params[0]
    p.grad = torch.empty(0, dtype=p.dtype).set_(state.untyped_storage(), 0, SHAPE)


def of_group_1(argument: str, what: str) -> str:
    return f"^{argument} of parameter 1 in group 1 {what}"


FLOATS = "expected float32, float64, bfloat16 or float16"

CASES: tuple[Case, ...] = (
    # Gradients.
    Case(
        "sparse gradient",
        RuntimeError,
        of_group_1("grad", r"has layout torch.sparse_coo; sparse tensors are not supported"),
        lambda t: setattr(t.victim, "grad", t.victim.grad.to_sparse()),
        also_reference=True,
    ),
    Case(
        "gradient of another shape",
        ValueError,
        of_group_1("grad", r"has shape \[6, 4\], expected \[4, 6\]"),
        lambda t: gradient_of(t, torch.ones(6, 4, dtype=t.victim.dtype)),
        also_reference=True,
    ),
    Case(
        "gradient that would broadcast",
        ValueError,
        of_group_1("grad", r"has shape \[6\], expected \[4, 6\]"),
        lambda t: gradient_of(t, torch.ones(6, dtype=t.victim.dtype)),
        also_reference=True,
    ),
    Case(
        "gradient without elements",
        ValueError,
        of_group_1("grad", r"has shape \[0, 6\], expected \[4, 6\]"),
        lambda t: gradient_of(t, torch.ones(0, 6, dtype=t.victim.dtype)),
        also_reference=True,
    ),
    Case(
        "gradient of a dtype with another arithmetic",
        ValueError,
        of_group_1("grad", "has dtype"),
        lambda t: gradient_of(t, torch.ones(SHAPE, dtype=torch.float64)),
        also_reference=True,
    ),
    Case(
        "negative-bit gradient",
        ValueError,
        of_group_1("grad", "has the negative bit set"),
        lambda t: replaced(t, torch.randn(SHAPE), negative(SHAPE)),
    ),
    Case(
        "conjugate gradient",
        ValueError,
        of_group_1("grad", "has the conjugate bit set"),
        lambda t: setattr(complex_victim(t), "grad", conjugate(SHAPE)),
        complex=True,
    ),
    Case(
        "fake gradient",
        RuntimeError,
        of_group_1("grad", "is a FakeTensor without memory"),
        lambda t: replaced(t, torch.randn(SHAPE), fake(SHAPE)),
    ),
    Case(
        "gradient in a wrapper",
        RuntimeError,
        of_group_1("grad", "is a TwoTensor without memory"),
        lambda t: replaced(t, torch.randn(SHAPE), TwoTensor(torch.randn(SHAPE), torch.randn(SHAPE))),
    ),
    Case(
        "gradient that is its own parameter",
        ValueError,
        "^grad of parameter 1 in group 1 shares memory with param of parameter 1 in group 1",
        lambda t: setattr(t.victim, "grad", t.victim.detach()),
    ),
    Case(
        "gradient in another parameter's memory",
        ValueError,
        "^grad of parameter 1 in group 1 shares memory with param of parameter 0 in group 0",
        lambda t: setattr(t.victim, "grad", t.params[0].detach()),
    ),
    # Parameters.
    Case(
        "sparse parameter",
        RuntimeError,
        of_group_1("param", "has layout torch.sparse_coo; sparse tensors are not supported"),
        lambda t: replaced(t, torch.ones(SHAPE).to_sparse(), torch.ones(SHAPE).to_sparse()),
    ),
    Case(
        "sparse row parameter",
        RuntimeError,
        of_group_1("param", "has layout torch.sparse_csr; sparse tensors are not supported"),
        lambda t: replaced(t, torch.ones(SHAPE).to_sparse_csr(), torch.ones(SHAPE).to_sparse_csr()),
    ),
    Case(
        "integer parameter",
        ValueError,
        of_group_1("param", f"has dtype torch.int32, {FLOATS}"),
        lambda t: replaced(t, torch.ones(SHAPE, dtype=torch.int32), torch.ones(SHAPE, dtype=torch.int32)),
    ),
    Case(
        "boolean parameter",
        ValueError,
        of_group_1("param", f"has dtype torch.bool, {FLOATS}"),
        lambda t: replaced(t, torch.ones(SHAPE, dtype=torch.bool), torch.ones(SHAPE, dtype=torch.bool)),
    ),
    Case(
        "8-bit parameter",
        ValueError,
        of_group_1("param", f"has dtype torch.float8_e4m3fn, {FLOATS}"),
        lambda t: replaced(t, torch.ones(SHAPE).to(torch.float8_e4m3fn), torch.ones(SHAPE).to(torch.float8_e4m3fn)),
    ),
    Case(
        "half-complex parameter",
        ValueError,
        of_group_1("param", f"has dtype torch.complex32, {FLOATS}"),
        lambda t: replaced(t, torch.ones(SHAPE, dtype=torch.complex32), torch.ones(SHAPE, dtype=torch.complex32)),
        complex=True,
    ),
    Case(
        "expanded parameter",
        ValueError,
        of_group_1("param", "has elements that share memory"),
        lambda t: replaced(t, torch.randn(1, 6).expand(SHAPE), torch.randn(SHAPE)),
    ),
    Case(
        "parameter whose rows overlap",
        ValueError,
        of_group_1("param", "has elements that share memory"),
        lambda t: replaced(t, torch.randn(30).as_strided(SHAPE, (5, 1)), torch.randn(SHAPE)),
    ),
    Case(
        "negative-bit parameter",
        ValueError,
        of_group_1("param", "has the negative bit set"),
        lambda t: replaced(t, negative(SHAPE), torch.randn(SHAPE)),
    ),
    Case(
        "parameter that gets the negative bit after a good step",
        ValueError,
        of_group_1("param", "has the negative bit set"),
        lambda t: (t.state(), setattr(t.victim, "data", torch._neg_view(t.victim.data))),
    ),
    Case(
        "parameter that gets another shape after a good step",
        ValueError,
        of_group_1("grad", r"has shape \[4, 6\], expected \[24\]"),
        lambda t: (t.state(), setattr(t.victim, "data", t.victim.data.view(24))),
    ),
    Case(
        "parameter of inference mode",
        RuntimeError,
        of_group_1("param", "is an inference tensor: Inplace update to inference tensor outside InferenceMode"),
        lambda t: replaced(t, inferred(Parameter(torch.randn(SHAPE))), torch.randn(SHAPE)),
        also_reference=True,
    ),
    Case(
        "state of inference mode",
        RuntimeError,
        of_group_1("exp_avg", "is an inference tensor: Inplace update to inference tensor outside InferenceMode"),
        lambda t: set_state(t, inferred),
        also_reference=True,
    ),
    Case(
        "conjugate parameter",
        ValueError,
        of_group_1("param", "has the conjugate bit set"),
        lambda t: replaced(t, conjugate(SHAPE), torch.randn(SHAPE, dtype=torch.complex64)),
        complex=True,
    ),
    Case(
        "fake parameter",
        RuntimeError,
        of_group_1("param", "is a FakeTensor without memory"),
        lambda t: replaced(t, fake(SHAPE), fake(SHAPE)),
    ),
    Case(
        "parameter in a wrapper",
        RuntimeError,
        of_group_1("param", "is a TwoTensor without memory"),
        lambda t: replaced(t, TwoTensor(torch.randn(SHAPE), torch.randn(SHAPE)), torch.randn(SHAPE)),
    ),
    Case(
        "parameter on another device",
        RuntimeError,
        "param of parameter 1 in group 1 is on device meta, expected the CPU",
        lambda t: replaced(t, torch.zeros(SHAPE, device="meta"), torch.zeros(SHAPE, device="meta")),
        options={"backend": "rust"},
    ),
    Case(
        "parameter twice in a group",
        ValueError,
        r"^(\w+) of parameter . in group 1 shares memory with \1 of parameter . in group 1",
        lambda t: t.params.__setitem__(4, t.victim),
    ),
    Case(
        "parameter half in another's memory",
        ValueError,
        "^param of parameter 0 in group 0 shares memory with param of parameter 1 in group 1",
        overlapping_params,
    ),
    Case(
        "parameters with gaps and one element in common",
        ValueError,
        "^param of parameter 0 in group 0 shares memory with param of parameter 1 in group 1",
        overlapping_with_gaps,
    ),
    # State.
    Case(
        "state of another shape",
        ValueError,
        of_group_1("exp_avg", r"has shape \[4, 5\], expected \[4, 6\]"),
        lambda t: set_state(t, lambda m: m[:, :5].clone()),
        also_reference=True,
    ),
    Case(
        "state of a dtype without a kernel",
        ValueError,
        of_group_1("param", "cannot be updated: no kernel for .* parameters with .* state"),
        lambda t: [set_state(t, lambda m: m.half(), name) for name in t.state() if name not in SCALARS],
    ),
    Case(
        "state with the negative bit",
        ValueError,
        of_group_1("exp_avg", "has the negative bit set"),
        lambda t: set_state(t, torch._neg_view),
    ),
    Case(
        "integer state",
        ValueError,
        of_group_1("exp_avg", f"has dtype torch.int64, {FLOATS}"),
        lambda t: set_state(t, lambda m: m.long()),
    ),
    Case(
        "sparse state",
        RuntimeError,
        of_group_1("exp_avg", "has layout torch.sparse_coo"),
        lambda t: set_state(t, lambda m: m.to_sparse()),
    ),
    Case(
        "state on another device",
        RuntimeError,
        of_group_1("exp_avg", "is on device meta, expected the CPU"),
        lambda t: set_state(t, lambda m: m.to("meta")),
    ),
    Case(
        "expanded state",
        ValueError,
        of_group_1("exp_avg", "has elements that share memory"),
        lambda t: set_state(t, lambda m: m[:1].expand(SHAPE)),
    ),
    Case(
        "state that is no tensor",
        TypeError,
        of_group_1("exp_avg", "is a list, expected a torch.Tensor"),
        lambda t: set_state(t, lambda m: m.tolist()),
    ),
    Case(
        "state in the parameter's memory",
        ValueError,
        "(param|exp_avg) of parameter 1 in group 1 shares memory with (param|exp_avg) of parameter 1 in group 1",
        lambda t: set_state(t, lambda m: t.victim.detach().view(m.dtype) if False else _aliased(t, m)),
    ),
    Case(
        "state of another parameter",
        ValueError,
        "exp_avg of parameter . in group 1 shares memory with exp_avg of parameter . in group 1",
        lambda t: set_state(t, lambda m: t.optimizer.state[t.params[4]][t.momentum]),
    ),
    Case(
        "state in a gradient's memory",
        ValueError,
        "grad of parameter 0 in group 0 shares memory with exp_avg of parameter 1 in group 1",
        _gradient_in_state,
    ),
)

STEP_CASES: tuple[Case, ...] = (
    # For rules that count steps.
    Case(
        "negative step",
        ValueError,
        of_group_1("step", "is -3.0, expected a whole number"),
        lambda t: t.state("step")["step"].fill_(-3),
    ),
    Case(
        "broken step",
        ValueError,
        of_group_1("step", "is 2.5, expected a whole number"),
        lambda t: t.state("step")["step"].fill_(2.5),
    ),
    Case(
        "step that is not a number",
        ValueError,
        of_group_1("step", "is NaN, expected a whole number"),
        lambda t: t.state("step")["step"].fill_(float("nan")),
    ),
    Case(
        "infinite step",
        ValueError,
        of_group_1("step", "is inf, expected a whole number"),
        lambda t: t.state("step")["step"].fill_(float("inf")),
    ),
    Case(
        "integer step",
        ValueError,
        of_group_1("step", f"has dtype torch.int64, {FLOATS}"),
        lambda t: set_state(t, lambda s: s.long(), "step"),
    ),
    Case(
        "step with too many elements",
        ValueError,
        of_group_1("step", "has dtype float32 and 2 elements, expected one float32 or float64 number"),
        lambda t: set_state(t, lambda s: s.repeat(2), "step"),
    ),
    Case(
        "step shared by two parameters",
        ValueError,
        "step of parameter . in group 1 shares memory with step of parameter . in group 1",
        lambda t: set_state(t, lambda s: t.optimizer.state[t.params[4]]["step"], "step"),
    ),
    Case(
        "a state of a dtype that no kernel takes beside the others",
        ValueError,
        of_group_1("param", "cannot be updated: no kernel for float32 parameters with float32, float16 state"),
        lambda t: set_state(t, lambda v: v.to(torch.float16), "exp_avg_sq"),
    ),
)
