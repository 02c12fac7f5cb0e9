"""What is measured of Muon: its step beside its peers', and the accuracy of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils import zero_power_via_newton_schulz_5
from torch import Tensor
from torch.optim import Optimizer

import ferrostep
import shapes
from ferrostep import reference
from ferrostep.optim import Muon


class Work(NamedTuple):
    """Matrices that are stepped together."""

    name: str
    title: str
    shapes: Sequence[shapes.Shape]
    stacked: bool = False
    """Whether we take them as one tensor, which the peers cannot."""

    def make(self, implementation: str) -> Optimizer:
        """An implementation over parameters of its own, as some write to gradients."""
        params = parameters(self.shapes)
        if self.stacked and implementation.startswith("ferrostep"):
            grads = [p.grad for p in params if p.grad is not None]
            params = [torch.nn.Parameter(torch.stack(params))]
            params[0].grad = torch.stack(grads)
        return OPTIMIZERS[implementation](params)


def works(layers: int) -> list[Work]:
    """All that is measured, with so many layers of GPT-2."""
    gpt2 = [shape for shape in shapes.gpt2(layers) if len(shape) == 2 and 50257 not in shape and 1024 not in shape]
    convolutions = [(s[0], s[1] * s[2] * s[3]) for s in shapes.resnet18() if len(s) == 4]
    return [
        Work("gpt2", f"GPT-2's {len(gpt2)} hidden matrices", gpt2),
        Work("square2048", "2048 x 2048", [(2048, 2048)]),
        Work("square", "768 x 768", [(768, 768)]),
        Work("wide", "768 x 3072", [(768, 3072)]),
        Work("tall", "3072 x 768", [(3072, 768)]),
        Work("resnet18", "ResNet-18's convolutions, flattened", convolutions),
        Work("experts", "64 experts of 256 x 512", 64 * [(256, 512)]),
        Work("stack", "64 experts of 256 x 512, ours in one tensor", 64 * [(256, 512)], stacked=True),
    ]


class PlainMuon(Optimizer):
    """Muon with Newton-Schulz in float32, in torch: the peer where a CPU has no fast bfloat16."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params, {})
        for p in params:
            self.state[p] = {"m": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        for p in self.param_groups[0]["params"]:
            m = self.state[p]["m"].lerp_(p.grad, 0.05)
            o = in_torch(p.grad.lerp(m, 0.95))
            p.mul_(1 - 1e-4).add_(o, alpha=-1e-3 * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def in_torch(g: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton-Schulz as torch.optim.Muon does it, in a dtype."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(dtype)
    x = x.T if g.shape[0] > g.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if g.shape[0] > g.shape[1] else x


PEER = "torch.optim.Muon"
OTHER_PEER = "pytorch_optimizer.Muon"
PLAIN = "Newton-Schulz in torch, float32"
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    PEER: torch.optim.Muon,
    OTHER_PEER: lambda params: pytorch_optimizer.Muon(
        [{"params": params, "use_muon": True}], lr=1e-3, weight_decay=0.1
    ),
    PLAIN: PlainMuon,
    "ferrostep, auto": lambda params: Muon(params, ndim_policy="batch"),
    "ferrostep, float32": lambda params: Muon(params, ndim_policy="batch", ns_precision="float32"),
}
ORTHOGONALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    PEER: lambda g: in_torch(g, torch.bfloat16),
    OTHER_PEER: zero_power_via_newton_schulz_5,
    PLAIN: in_torch,
    "ferrostep, auto": ferrostep.orthogonalize,
    "ferrostep, float32": lambda g: ferrostep.orthogonalize(g, precision="float32"),
}


def parameters(shapes_: Sequence[shapes.Shape]) -> list[Tensor]:
    """Random matrices that have gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02)) for shape in shapes_]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).mul_(0.01)
    return params


class Accuracy(NamedTuple):
    """What an implementation makes of a matrix."""

    shape: str
    input: str
    implementation: str
    error: float
    """Relative to the result in float64."""
    smallest: float
    largest: float
    """Singular values."""


def accuracies() -> list[Accuracy]:
    """Of all implementations on easy and hard matrices, beside what float64 makes of them."""
    return [accuracy for shape in ((256, 1024), (768, 768), (768, 3072)) for accuracy in accuracies_at(*shape)]


def accuracies_at(rows: int, cols: int) -> list[Accuracy]:
    """On matrices of a shape."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(cols, rows, generator=generator, dtype=torch.float64))
    spectra = {
        "condition 1e6": torch.logspace(0, -6, rows, dtype=torch.float64),
        "rank 8 and noise of 1e-4": torch.cat([torch.ones(8), torch.full((rows - 8,), 1e-4)]).double(),
    }
    inputs = {"Gaussian": torch.randn(rows, cols, generator=generator, dtype=torch.float64)}
    inputs |= {name: u @ torch.diag(spectrum) @ v.T for name, spectrum in spectra.items()}
    found = []
    for name, g in inputs.items():
        exact = reference.newton_schulz(g, 5 * [(3.4445, -4.7750, 2.0315)])
        results = {"float64": exact} | {name: f(g.float()).double() for name, f in ORTHOGONALIZE.items()}
        for implementation, o in results.items():
            error = float((o - exact).norm() / exact.norm())
            values = torch.linalg.svdvals(o)
            found.append(Accuracy(f"{rows} x {cols}", name, implementation, error, float(values[-1]), float(values[0])))
    return found
