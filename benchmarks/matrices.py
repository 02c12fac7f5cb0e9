"""What is measured of Muon: its step beside torch's, and the accuracy of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

import ferrostep
import shapes
from ferrostep import reference
from ferrostep.optim import Muon


class Work(NamedTuple):
    """Matrices that are stepped together."""

    title: str
    shapes: Sequence[shapes.Shape]


def works(layers: int) -> list[Work]:
    """All that is measured, with so many layers of GPT-2."""
    gpt2 = [shape for shape in shapes.gpt2(layers) if len(shape) == 2 and 50257 not in shape and 1024 not in shape]
    convolutions = [(s[0], s[1] * s[2] * s[3]) for s in shapes.resnet18() if len(s) == 4]
    return [
        Work(f"GPT-2's {len(gpt2)} hidden matrices", gpt2),
        Work("2048 x 2048", [(2048, 2048)]),
        Work("768 x 768", [(768, 768)]),
        Work("768 x 3072", [(768, 3072)]),
        Work("3072 x 768", [(3072, 768)]),
        Work("ResNet-18's convolutions, flattened", convolutions),
        Work("64 experts of 256 x 512", 64 * [(256, 512)]),
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
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    PEER: torch.optim.Muon,
    "Newton-Schulz in torch, float32": PlainMuon,
    "ferrostep, auto": Muon,
    "ferrostep, float32": lambda params: Muon(params, ns_precision="float32"),
}
ORTHOGONALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    PEER: lambda g: in_torch(g, torch.bfloat16),
    "Newton-Schulz in torch, float32": in_torch,
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


def errors() -> list[tuple[str, str, float, float]]:
    """Inputs, implementations, relative errors against float64, and largest singular values."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = 256, 1024
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
        for implementation, function in ORTHOGONALIZE.items():
            o = function(g.float()).double()
            error = float((o - exact).norm() / exact.norm())
            found.append((name, implementation, error, float(torch.linalg.matrix_norm(o, 2))))
    return found
