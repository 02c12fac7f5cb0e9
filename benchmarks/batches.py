"""What is measured of norms of gradients and of ghost batch normalization: ours beside plain torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import shapes
from ferrostep.batch_size import GradVarianceAccumulator
from ferrostep.nn import GhostBatchNorm1d, GhostBatchNorm2d
from ferrostep.optim import AdamW
from ferrostep.schedules import GradNormRecorder
from projections import Contest

GHOSTS = 16
BATCHES = (
    ((512, 128), torch.float32, torch.contiguous_format),
    ((4096, 64), torch.float32, torch.contiguous_format),
    ((4096, 512), torch.float32, torch.contiguous_format),
    ((256, 64, 16, 16), torch.float32, torch.contiguous_format),
    ((256, 64, 16, 16), torch.float32, torch.channels_last),
    ((256, 64, 16, 16), torch.bfloat16, torch.contiguous_format),
)


def norms(layers: int) -> list[Contest]:
    """Norms of GPT-2's gradients, and what a micro-batch adds to the statistics of a batch."""
    params = [Parameter(torch.full(shape, 0.02)) for shape in shapes.gpt2(layers)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = AdamW(params)
    accumulator, before = GradVarianceAccumulator(params), [torch.zeros_like(p) for p in params]

    def add() -> None:
        accumulator.reset()
        accumulator.add(1)

    def plain() -> list[Tensor]:
        each = [(p.grad - there).square().sum() for p, there in zip(params, before, strict=True)]
        torch._foreach_zero_(before)
        torch._foreach_copy_(before, [p.grad for p in params])
        return each

    def recorded(*norms: Literal["l1", "l2"]) -> Callable[[], None]:
        recorders = [GradNormRecorder(optimizer, norm) for norm in norms]

        def step() -> None:
            with ExitStack() as stack:
                for recorder in recorders:
                    stack.enter_context(recorder.attach())
                optimizer.step()

        return step

    clipped = AdamW(params, max_grad_norm=1.0)
    return [
        Contest(
            "norms, GPT-2",
            {
                "sum(g.abs().sum())": lambda: sum(p.grad.abs().sum() for p in params).item(),
                "GradNormRecorder, l1": GradNormRecorder(optimizer, "l1").record,
                "GradNormRecorder, l2": GradNormRecorder(optimizer, "l2").record,
                "sum(g.sum()), which only reads": lambda: sum(p.grad.sum() for p in params).item(),
            },
        ),
        Contest(
            "a step and its norms, GPT-2",
            {
                "AdamW.step": optimizer.step,
                "recorded, l1": recorded("l1"),
                "recorded, l2": recorded("l2"),
                "recorded, both": recorded("l1", "l2"),
                "with max_grad_norm": clipped.step,
            },
        ),
        Contest("a micro-batch's variance, GPT-2", {"plain torch": plain, "GradVarianceAccumulator": add}),
    ]


def ghosts() -> list[Contest]:
    """Forwards and backwards, with 16 ghosts."""
    found = []
    for shape, dtype, layout in BATCHES:
        ghost, plain = (GhostBatchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (GhostBatchNorm2d, nn.BatchNorm2d)
        size = shape[0] // GHOSTS
        layer, chunks = ghost(shape[1], size), plain(shape[1])
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "chunks through torch's layer": lambda x, chunks=chunks, size=size: torch.cat(
                [chunks(chunk) for chunk in x.split(size)]
            ),
            "ferrostep": layer,
            "one batch normalization": chunks,
        }
        x = torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_()
        grad = torch.randn_like(x)
        title = f"{shape}, {str(dtype).removeprefix('torch.')}"
        title += ", channels last" if layout is torch.channels_last else ""
        contestants = {name: passes(form, x, grad) for name, form in forms.items()}
        contestants["clone and add, the least"] = least(x.detach(), grad)
        found.append(Contest(title, contestants))
    return found


def least(x: Tensor, grad: Tensor) -> Callable[[], None]:
    """To read the batch once and to write as much; and to read both and to write as much."""

    def run() -> None:
        kept = x.clone()
        torch.add(x, grad)
        del kept

    return run


def passes(form: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forwards and backwards."""

    def run() -> None:
        x.grad = None
        form(x).backward(grad)

    return run
