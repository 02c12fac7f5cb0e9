"""What is measured of steps within the backward pass: what they take beside one step after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

import shapes
from ferrostep.optim import AdamW, Lion, Muon
from ferrostep.optim.rules import RuleOptimizer
from projections import Contest

WHOLE, ATTACHED, ALONE = "one step", "attached", "backward pass alone"


def rounds_of(
    make: Callable[[Sequence[Tensor]], RuleOptimizer] | None, sizes: Sequence[shapes.Shape], *, attached: bool = False
) -> Callable[[], object]:
    """A backward pass that only brings gradients, and the step; without an optimizer the pass alone."""
    params = [Parameter(torch.full(shape, 0.02)) for shape in sizes]
    grads = [torch.full(shape, 0.01) for shape in sizes]
    optimizer = None if make is None else make(params)
    if optimizer is not None and attached:
        optimizer.attach()

    def run() -> None:
        torch.autograd.backward(params, grads)
        if optimizer is not None:
            optimizer.step()
        for p in params:
            p.grad = None

    return run


def contests(layers: int) -> list[Contest]:
    """Optimizers on models of large and of small tensors."""
    hidden = [shape for shape in shapes.gpt2(layers)[2:] if len(shape) == 2]
    works = [
        ("AdamW, GPT-2", AdamW, shapes.gpt2(layers)),
        ("Lion, GPT-2", Lion, shapes.gpt2(layers)),
        ("Muon, GPT-2's hidden matrices", Muon, hidden[:8]),
        ("AdamW, ResNet-18", AdamW, shapes.resnet18()),
        ("AdamW, MLP of 200 thousand elements", AdamW, shapes.mlp()),
    ]
    return [
        Contest(
            title,
            {
                ALONE: rounds_of(None, sizes),
                WHOLE: rounds_of(make, sizes),
                ATTACHED: rounds_of(make, sizes, attached=True),
            },
        )
        for title, make, sizes in works
    ]
