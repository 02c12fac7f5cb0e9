"""What is measured: optimizers bound by the memory, ours and their peers, by storage type and model. One table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lion_pytorch
import pytorch_optimizer
import torch
from torch import Tensor
from torch.optim import Optimizer

import ferrostep.optim
import plain
import shapes

OURS = "ferrostep"


class Refresh(ferrostep.optim.SophiaG):
    """Takes only the refreshes between Sophia's steps."""

    def step(self, closure: Any = None, bs: float | None = None) -> None:  # type: ignore[override]
        """Refresh."""
        self.update_hessian()


class Transported(ferrostep.optim.STORM):
    """Takes only the steps, with what was the momentum before as gradients at the point before."""

    def __init__(self, params: Sequence[Tensor], **options: Any) -> None:
        super().__init__(params, **options)
        self.before = [torch.rand_like(p) for p in self._params()]

    def step(self, closure: Any = None) -> None:
        """Step."""
        states = [self.state[p] for p in self._params() if p in self.state]
        momenta = [state["momentum_buffer"] for state in states]
        for state, before in zip(states, self.before, strict=False):
            state["transport"] = before
        super().step()
        self.before[: len(momenta)] = momenta  # the transports have become the momenta


class Storage(NamedTuple):
    """The dtypes of parameters (with their gradients) and of the optimizer's state."""

    name: str
    param: torch.dtype
    state: torch.dtype


F32 = Storage("f32", torch.float32, torch.float32)
BF16_F32 = Storage("bf16, state f32", torch.bfloat16, torch.float32)
BF16 = Storage("bf16", torch.bfloat16, torch.bfloat16)
F16_F32 = Storage("f16, state f32", torch.float16, torch.float32)
F16 = Storage("f16", torch.float16, torch.float16)
BF16_INT8 = Storage("bf16, state 8-bit", torch.bfloat16, torch.uint8)
F32_INT8 = Storage("f32, state 8-bit", torch.float32, torch.uint8)
STORAGES = (F32, BF16_F32, BF16)


class Rule(NamedTuple):
    """An update rule, with its traffic and the implementation that others are compared with."""

    name: str
    moved: tuple[int, int]
    """The least number of tensors like the parameter, and like its state, that a step must read and write."""
    peer: str


ADAMW = Rule("AdamW", (3, 4), "torch fused")
# The gradient twice: the norm of all comes before the step.
CLIPPED = Rule("AdamW, clipped", (4, 4), "clip_grad_norm_, then ferrostep")
# The previous gradient is a third state.
DIFFGRAD = Rule("diffGrad", (3, 6), "pytorch_optimizer")
LION = Rule("Lion", (3, 2), "lion-pytorch")
SGD = Rule("SGD with momentum", (3, 2), "torch fused")
ADAGRAD = Rule("Adagrad", (3, 2), "torch fused")
# As AuON: the norm of the whole comes before the step.
LION_BY_NORM = Rule("Lion-K by a norm", (4, 3), "plain torch")
# Gradient and momentum twice, as the norm comes before the step.
NIGT = Rule("NIGT", (4, 3), "plain torch")
# The new momentum takes the place of the gradient at the point before.
STORM = Rule("STORM", (5, 2), "plain torch")
# The Hessian's estimate is only read.
EGD = Rule("EGD", (3, 0), "plain torch")
# Both moments of a fourth of the elements.
FRUGAL = Rule("FRUGAL, a fourth", (3, 1), "plain torch")
FRUGAL_SIGNS = Rule("FRUGAL, signs alone", (3, 0), "plain torch")
OPTIMISTIC_MD = Rule("OptimisticMD", (3, 2), "plain torch, foreach")
SOPHIA = Rule("Sophia", (3, 3), "plain torch")
SOPHIA_REFRESH = Rule("Sophia's refresh (G)", (1, 2), "plain torch")
# The gradient and the momentum twice: the norm of the whole comes before the step.
AUON = Rule("AuON", (4, 3), "plain torch")


@dataclass(frozen=True, eq=False)
class Case:
    """One implementation of one rule for one storage type."""

    rule: Rule
    implementation: str
    storage: Storage
    optimizer: Callable[..., Optimizer]
    options: dict[str, Any]
    compensated: bool = False
    """Whether a compensation like the parameter is read and written."""

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.rule.name}, {self.implementation}"

    @property
    def bytes_per_element(self) -> int:
        """What a step must move."""
        params, states = self.rule.moved
        params += 2 * self.compensated
        return params * self.storage.param.itemsize + states * self.storage.state.itemsize

    def make(self, params: Sequence[Tensor]) -> Optimizer:
        """The optimizer over `params`."""
        return self.optimizer(params, **self.options)

    def is_peer_of(self, other: Case) -> bool:
        """Whether `other` is compared with this. The peers know no state that is wider than the parameters."""
        same_params = self.storage.param == other.storage.param
        return self.rule == other.rule and self.implementation == self.rule.peer and same_params


def ours(rule: Rule, optimizer: Callable[..., Optimizer], **options: Any) -> list[Case]:
    """Our implementation of a rule, for all storage types."""
    return [Case(rule, OURS, storage, optimizer, {**options, "state_dtype": storage.state}) for storage in STORAGES]


def rounded(rule: Rule, optimizer: Callable[..., Optimizer], **options: Any) -> list[Case]:
    """Our implementation for bf16, state included, in its other ways of rounding."""
    ways: dict[str, dict[str, Any]] = {
        "Kahan": {"rounding": "kahan"},
        "split master": {"master_weights": "split"},
        "stochastic": {"rounding": "stochastic"},
    }
    own = {**options, "state_dtype": BF16.state}
    return [
        Case(rule, f"{OURS}, {name}", BF16, optimizer, {**own, **way}, compensated=name != "stochastic")
        for name, way in ways.items()
    ]


def kappas(rule: Rule, chosen: dict[str, dict[str, Any]]) -> list[Case]:
    """Our Lion-K for f32, with these arguments by name."""
    return [
        Case(rule, f"{OURS}, {name}", F32, ferrostep.optim.Lion, {"weight_decay": 0.01, **arguments})
        for name, arguments in chosen.items()
    ]


def half(rule: Rule, optimizer: Callable[..., Optimizer], **options: Any) -> list[Case]:
    """Our implementation for f16."""
    return [
        Case(rule, OURS, storage, optimizer, {**options, "state_dtype": storage.state}) for storage in (F16_F32, F16)
    ]


def coded(rule: Rule, optimizer: Callable[..., Optimizer], **options: Any) -> list[Case]:
    """Our implementation with states of 8-bit codes; 16-bit parameters are rounded stochastically."""
    own = {**options, "state_dtype": "int8", "rounding": "stochastic"}
    return [Case(rule, OURS, storage, optimizer, own) for storage in (F32_INT8, BF16_INT8)]


def selections(*names: str) -> list[Case]:
    """Ours with a fourth of each matrix, or of the matrices, in float32."""
    optimizer = ferrostep.optim.FRUGAL
    return [Case(FRUGAL, f"{OURS}, {name}", F32, optimizer, {"density": 0.25, "selection": name}) for name in names]


def peer(
    rule: Rule,
    name: str,
    optimizer: Callable[..., Optimizer],
    storages: Sequence[Storage] = (F32, BF16),
    **options: Any,
) -> list[Case]:
    """Someone else's implementation: its state has the parameters' type."""
    return [Case(rule, name, storage, optimizer, options) for storage in storages]


CASES: list[Case] = [
    *ours(ADAMW, ferrostep.optim.AdamW, weight_decay=0.01),
    *rounded(ADAMW, ferrostep.optim.AdamW, weight_decay=0.01),
    *half(ADAMW, ferrostep.optim.AdamW, weight_decay=0.01),
    *coded(ADAMW, ferrostep.optim.AdamW, weight_decay=0.01),
    *peer(ADAMW, "torch fused", torch.optim.AdamW, (F32, BF16, F16), weight_decay=0.01, fused=True),
    *peer(ADAMW, "torch foreach", torch.optim.AdamW, weight_decay=0.01, foreach=True),
    *peer(ADAMW, "torch for-loop", torch.optim.AdamW, weight_decay=0.01, foreach=False),
    *ours(CLIPPED, ferrostep.optim.AdamW, weight_decay=0.01, max_grad_norm=1.0)[:1],
    *peer(CLIPPED, "clip_grad_norm_, then ferrostep", plain.ClippedAdamW, (F32,), max_norm=1.0, weight_decay=0.01),
    *ours(DIFFGRAD, ferrostep.optim.DiffGrad),
    *peer(DIFFGRAD, "pytorch_optimizer", pytorch_optimizer.DiffGrad),
    *ours(LION, ferrostep.optim.Lion, weight_decay=0.01),
    *coded(LION, ferrostep.optim.Lion, weight_decay=0.01),
    *peer(LION, "lion-pytorch", lion_pytorch.Lion, weight_decay=0.01),
    *peer(LION, "pytorch_optimizer", pytorch_optimizer.Lion, weight_decay=0.01),
    *ours(SGD, ferrostep.optim.SGD, momentum=0.9, weight_decay=0.01),
    *peer(SGD, "torch fused", torch.optim.SGD, momentum=0.9, weight_decay=0.01, fused=True),
    *peer(SGD, "torch foreach", torch.optim.SGD, momentum=0.9, weight_decay=0.01, foreach=True),
    *ours(ADAGRAD, ferrostep.optim.Adagrad),
    *peer(ADAGRAD, "torch fused", torch.optim.Adagrad, fused=True),
    *peer(ADAGRAD, "torch foreach", torch.optim.Adagrad, foreach=True),
    *kappas(
        LION,
        {
            "Huber": {"kappa": "huber", "kappa_param": 1e-3},
            "dead zone": {"kappa": "deadzone", "kappa_param": 1e-3},
            "rows": {"kappa": "row"},
        },
    ),
    *kappas(
        LION_BY_NORM,
        {
            "l2": {"kappa": "l2"},
            "lp, p = 1.5": {"kappa": "lp", "kappa_param": 1.5},
            "lp, p = 1.7": {"kappa": "lp", "kappa_param": 1.7},
            "top 100,000": {"kappa": "topk", "kappa_param": 100_000},
        },
    ),
    *peer(LION_BY_NORM, "plain torch", ferrostep.optim.Lion, (F32,), weight_decay=0.01, kappa=plain.direction),
    *ours(NIGT, ferrostep.optim.NIGT, lr=1e-3)[:1],
    *peer(NIGT, "plain torch", plain.NIGT, (F32,), lr=1e-3, momentum=0.9),
    *ours(STORM, Transported, lr=1e-3)[:1],
    *peer(STORM, "plain torch", plain.STORM, (F32,), lr=1e-3, momentum=0.9),
    *ours(EGD, ferrostep.optim.EGD),
    Case(EGD, f"{OURS}, free signs", F32, ferrostep.optim.EGD, {"update": "eg+-"}),
    *peer(EGD, "plain torch", plain.EGD, lr=1e-2),
    *selections("columns", "rows", "randk", "block"),
    *peer(FRUGAL, "plain torch", plain.Frugal, (F32,), lr=1e-3, density=0.25),
    Case(FRUGAL_SIGNS, OURS, F32, ferrostep.optim.FRUGAL, {"density": 0.0}),
    *peer(FRUGAL_SIGNS, "plain torch", plain.Frugal, (F32,), lr=1e-3, density=0.0),
    Case(ADAMW, f"{OURS}, FRUGAL of everything", F32, ferrostep.optim.FRUGAL, {"density": 1.0, "weight_decay": 0.01}),
    *ours(OPTIMISTIC_MD, ferrostep.optim.OptimisticMD),
    *peer(OPTIMISTIC_MD, "plain torch, foreach", plain.OptimisticDescent, lr=1e-2),
    *ours(SOPHIA, ferrostep.optim.SophiaH),
    *peer(SOPHIA, "plain torch", plain.Sophia, lr=6e-4, beta1=0.96, gamma=0.01, weight_decay=0.1),
    *peer(SOPHIA, "pytorch_optimizer", plain.sophia_h_of_pytorch_optimizer, weight_decay=0.1),
    *ours(SOPHIA_REFRESH, Refresh, bs=480),
    *peer(SOPHIA_REFRESH, "plain torch", plain.SophiaRefresh, beta2=0.99, bs=480),
    *ours(AUON, ferrostep.optim.AuON),
    *peer(AUON, "plain torch", plain.AuON, lr=0.02, momentum=0.95),
]


class Model(NamedTuple):
    """A model as its optimizer sees it."""

    name: str
    title: str
    shapes: list[shapes.Shape]

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(map(math.prod, self.shapes))

    def parameters(self, dtype: torch.dtype) -> list[Tensor]:
        """Random parameters that have gradients."""
        generator = torch.Generator().manual_seed(0)
        params = []
        for shape in self.shapes:
            param = torch.nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(dtype))
            param.grad = torch.randn(shape, generator=generator).mul_(0.01).to(dtype)
            params.append(param)
        return params


def models(layers: int = shapes.GPT2_LAYERS) -> list[Model]:
    """The models to step, GPT-2 with this many of its twelve layers."""
    cut = "" if layers == shapes.GPT2_LAYERS else f", {layers} of {shapes.GPT2_LAYERS} layers"
    return [
        Model("gpt2", f"GPT-2 124M{cut}", shapes.gpt2(layers)),
        Model("resnet18", "ResNet-18", shapes.resnet18()),
        Model("mlp", "MLP, 3 layers of 256 x 256 with biases", shapes.mlp()),
    ]
