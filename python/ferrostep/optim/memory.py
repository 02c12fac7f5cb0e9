"""What a model and its optimizer take of memory, before any of it is allocated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import whole
from ferrostep.optim.base import NewState, arithmetic_dtype
from ferrostep.optim.gathered import Gathered
from ferrostep.optim.options import check_has_shape
from ferrostep.optim.release import BYTES_AT_ONCE, inner_of
from ferrostep.optim.rules import RuleOptimizer
from ferrostep.optim.sam import SAM

Kind: TypeAlias = Literal["parameters", "gradients", "state", "scratch"]
KINDS: tuple[Kind, ...] = ("parameters", "gradients", "state", "scratch")
BESIDE = "beside"
"""Scratch memory as large as all that is stepped at once."""
MIB = 2**20
A_MODEL = "a module, shapes, parameters or parameter groups"


class MemoryPart(NamedTuple):
    """A part of a :class:`MemoryPlan`.

    Example:
        >>> from ferrostep.optim import SGD, memory_plan
        >>> memory_plan([(1024, 1024)], SGD).parts[0]
        MemoryPart(kind='parameters', name='', dtype='float32', bytes=4194304)
    """

    kind: Kind
    name: str
    """Of a state, its key; of scratch memory that is larger the more is stepped at once, ``"beside"``; else empty."""
    dtype: str
    """That of the tensors, such as ``"float32"``; of scratch memory, empty."""
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What :func:`memory_plan` gives; printed, a table.

    Attributes:
        optimizer: its name.
        elements: how many the parameters have together.
        parts: the bytes of parameters, gradients, states by their keys, and scratch memory, each by dtype.
        attached_gradients: the most bytes of gradients between :meth:`RuleOptimizer.attach` and ``detach``; None for
            what cannot be attached.

    Raises:
        AttributeError: someone sets one of these.

    Example:
        >>> from ferrostep.optim import Lion, memory_plan
        >>> plan = memory_plan([(1024, 1024)], Lion)
        >>> plan.state, plan.total // 2**20
        ({'exp_avg': 4194304}, 12)
    """

    optimizer: str
    elements: int
    parts: tuple[MemoryPart, ...]
    attached_gradients: int | None

    def _sum(self, kind: Kind) -> int:
        return sum(part.bytes for part in self.parts if part.kind == kind)

    @property
    def parameters(self) -> int:
        """Bytes of the parameters."""
        return self._sum("parameters")

    @property
    def gradients(self) -> int:
        """Bytes of all gradients together."""
        return self._sum("gradients")

    @property
    def state(self) -> dict[str, int]:
        """Bytes of the state, by its keys."""
        bytes_of: dict[str, int] = {}
        for part in self.parts:
            if part.kind == "state":
                bytes_of[part.name] = bytes_of.get(part.name, 0) + part.bytes
        return bytes_of

    @property
    def scratch(self) -> int:
        """Bytes that a step takes besides, such as those of states that :class:`FRUGAL` makes anew."""
        return self._sum("scratch")

    @property
    def total(self) -> int:
        """Bytes of all of it: the most that there is within a step."""
        return sum(part.bytes for part in self.parts)

    @property
    def attached_total(self) -> int | None:
        """:attr:`total` between ``attach`` and ``detach``; None for what cannot be attached."""
        if self.attached_gradients is None:
            return None
        # What lies beside gradients is of those that are stepped at once.
        both = self.gradients + sum(part.bytes for part in self.parts if part.name == BESIDE)
        return self.total - both + both * self.attached_gradients // max(1, self.gradients)

    def __str__(self) -> str:
        rows = [(f"{part.kind} {part.name}".strip(), part.dtype, mib(part.bytes)) for part in self.parts]
        rows = [(self.optimizer, "", "MiB"), *rows, ("total", "", mib(self.total))]
        if self.attached_total is not None:
            rows.append(("total with attach()", "", mib(self.attached_total)))
        first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
        return "\n".join(f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]:>{third}}" for row in rows)


def mib(size: int) -> str:
    """Bytes in units of 2**20, as tables show them."""
    return f"{size / MIB:,.1f}"


def memory_plan(
    model_or_shapes: nn.Module | Mapping[str, Sequence[int]] | Iterable[Any],
    optimizer_class: Callable[..., Optimizer],
    /,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> MemoryPlan:
    """The memory that training takes with an optimizer, activations aside, before any of it is allocated.

    The optimizer is made, and takes its parameters in, on tensors without memory: what it says of itself is the plan.

    Args:
        model_or_shapes: a module (on any device, ``meta`` as well); names with shapes; or shapes, parameters, pairs of
            names and parameters, or parameter groups of any of these.
        optimizer_class: what makes the optimizer of parameters and ``options``: a class of this package, one of others,
            or a function, such as ``lambda params: SAM(AdamW(params))``.
        dtype: of the parameters and gradients, as if the model was cast to it. Default: what they have; for shapes
            torch's default dtype.
        **options: the arguments of the optimizer.

    Returns:
        The plan, for steps on the CPU by this package's kernels with the present number of threads. Scratch memory of
        other people's classes is not in it, nor what is a few numbers for a parameter, such as NIGT's, nor buffers of
        modules. Of :class:`ferrostep.optim.SAM` the copy of the weights is.

    Raises:
        TypeError: what is no model and no shapes, or a class that makes no optimizer.
        ValueError, TypeError, RuntimeError: what the class raises for these parameters and options.

    Example:
        >>> from ferrostep.optim import AdamW, memory_plan
        >>> model = torch.nn.Linear(1024, 4096, bias=False, device="meta")
        >>> print(memory_plan(model, AdamW, dtype=torch.bfloat16))
        AdamW                           MiB
        parameters           bfloat16   8.0
        gradients            bfloat16   8.0
        state exp_avg        float32   16.0
        state exp_avg_sq     float32   16.0
        state step           float32    0.0
        total                          48.0
        total with attach()            48.0
    """
    # Only here, as it takes time to be imported with older versions of torch.
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not callable(optimizer_class):
        raise wrong_kind("optimizer_class", optimizer_class, "a class of optimizers, or a function that makes one")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise wrong_kind("dtype", dtype, "a torch.dtype, or None")
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        raise Problem.VALUE.of("dtype", dtype, "one of floats, as parameters have")
    twins = Twins(dtype)
    # What the classes warn of when they are made is for who makes one to train; fake tensors' addresses nobody uses.
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = optimizer_class(twins.of(model_or_shapes), **options)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer_class made a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
        for p in twins.params:
            p.grad = torch.empty_like(p) if p.requires_grad else None
        scratch = scratch_of(optimizer)
        parts = [
            *parts_of("parameters", (("", p) for p in twins.params)),
            *parts_of("gradients", (("", p.grad) for p in twins.params if p.grad is not None)),
            *parts_of("state", states_of(optimizer)),
            *(MemoryPart("scratch", name, "", size) for name, size in scratch.items() if size),
        ]
        attached = attached_gradients(optimizer, [p.grad.nbytes for p in twins.params if p.grad is not None])
    return MemoryPlan(name_of(optimizer), sum(p.numel() for p in twins.params), tuple(parts), attached)


class Twins:
    """Parameters without memory in the place of what there is, or might be."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._known: dict[int, tuple[Any, nn.Parameter]] = {}
        """By the identity of what they stand for, which has to live as long."""

    @property
    def params(self) -> list[nn.Parameter]:
        """All of them, each once."""
        return [twin for _, twin in self._known.values()]

    def of(self, given: Any) -> Any:
        """What an optimizer is to be given in the place of a model, of shapes, or of parameters."""
        if isinstance(given, nn.Module):
            return self._module(given).parameters()
        if isinstance(given, Mapping):
            return [(name, self._one(name, shape)) for name, shape in given.items()]
        if isinstance(given, (Tensor, str)) or not isinstance(given, Iterable):
            raise wrong_kind("model_or_shapes", given, A_MODEL)
        return [self._entry(i, entry) for i, entry in enumerate(given)]

    def _module(self, module: nn.Module) -> nn.Module:
        """The module with other parameters, and without memory for its buffers: classes may ask what it is made of."""
        memo: dict[int, Any] = {id(p): self._one(name, p) for name, p in module.named_parameters()}
        memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
        return copy.deepcopy(module, memo)

    def _entry(self, i: int, entry: Any) -> Any:
        match entry:
            case {"params": Tensor() as p}:
                return {**entry, "params": [self._one(f"parameter {i}", p)]}
            case {"params": params}:
                return {**entry, "params": self.of(params)}
            case (str() as name, given):
                return name, self._one(name, given)
        return self._one(f"parameter {i}", entry)

    def _one(self, name: str, given: Any) -> nn.Parameter:
        """The parameter that stands for one, or that has a shape."""
        if id(given) in self._known and isinstance(given, Tensor):
            return self._known[id(given)][1]
        if isinstance(given, Tensor):
            check_has_shape(name, given)
            dtype = self._dtype if self._dtype is not None and given.is_floating_point() else given.dtype
            twin = nn.Parameter(torch.empty(given.shape, dtype=dtype, device="cpu"), given.requires_grad)
        elif isinstance(given, Sequence) and not isinstance(given, str):
            shape = [whole(f"shape of {name}", size, 0) for size in given]
            given = object()  # shapes may be one object and mean several parameters
            twin = nn.Parameter(torch.empty(shape, dtype=self._dtype, device="cpu"))
        else:
            raise wrong_kind(name, given, "a tensor or a shape")
        self._known[id(given)] = (given, twin)
        return twin


def scratch_of(optimizer: Optimizer) -> dict[str, int]:
    """Let an optimizer make its state as in a first step; returns the bytes that a step takes besides, by their name.

    Its parameters and gradients are to have no memory, so nothing is computed.
    """
    if isinstance(optimizer, SAM):
        weights: list[int] = [
            p.nbytes for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        return {"": max(sum(weights), sum(scratch_of(optimizer.base_optimizer).values()))}
    from ferrostep.offload import HostOptimizer  # which needs this package

    if isinstance(optimizer, HostOptimizer):
        with optimizer.on_host() as inner:
            return scratch_of(inner)
    if isinstance(optimizer, RuleOptimizer):
        taken = optimizer._take(NewState(optimizer.state))
        # Without parameters, which are fake here and for plain torch as such.
        by_kernel = [g for g in taken.elsewhere if not optimizer._is_for_plain_torch({**g.group, "params": []})]
        return {"": max(map(working_memory, by_kernel), default=0), BESIDE: optimizer._bytes_besides()}
    optimizer.step()
    return {}


def working_memory(gathered: Gathered) -> int:
    """The bytes that the Rust rule of some parameters works in."""
    rule = gathered.rule.native()
    if not isinstance(rule, _core.MatrixRule):
        return 0
    (momentum, *_) = (gathered.columns[name] for name in gathered.rule.states)
    pairs = zip(gathered.params, momentum, strict=True)
    params = [([*p.shape], arithmetic_dtype(p).itemsize, state.itemsize) for p, state in pairs]
    return rule.working_memory(params, torch.get_num_threads())


def attached_gradients(optimizer: Optimizer, sizes: Sequence[int]) -> int | None:
    """The most bytes of gradients of these sizes that an attached optimizer lets be; None if it cannot be attached."""
    if not isinstance(optimizer, RuleOptimizer):
        return None
    try:
        optimizer.attach()
    except RuntimeError:
        return None
    return min(sum(sizes), max(sizes, default=0) + BYTES_AT_ONCE)


def states_of(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the state with their keys."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield name, value


def parts_of(kind: Kind, tensors: Iterable[tuple[str, Tensor]]) -> list[MemoryPart]:
    """The bytes of named tensors, by name and dtype."""
    bytes_of: dict[tuple[str, str], int] = {}
    for name, x in tensors:
        key = name, str(x.dtype).removeprefix("torch.")
        bytes_of[key] = bytes_of.get(key, 0) + x.nbytes
    return [MemoryPart(kind, *key, size) for key, size in bytes_of.items()]


def name_of(optimizer: Optimizer) -> str:
    """The class's name, with that of the optimizer inside."""
    inner = inner_of(optimizer)
    package = type(optimizer).__module__.partition(".")[0]
    own = type(optimizer).__name__ if package == "ferrostep" else f"{package}.{type(optimizer).__name__}"
    return own if inner is None else f"{own}({name_of(inner)})"
