"""What training steps take of memory, measured in the process that runs this file.

Prints, as JSON, for each case the plan's bytes and the peak's.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.offload import HostOptimizer
from ferrostep.optim import (
    EGD,
    FRUGAL,
    NIGT,
    SAM,
    SGD,
    STORM,
    Adagrad,
    AdaGradNorm,
    Adam,
    Adamax,
    AdamW,
    AuON,
    DiffGrad,
    HybridAuON,
    Lion,
    Muon,
    MuonAdamW,
    MuonWithAuxAdamW,
    NAdam,
    OptimisticAdam,
    OptimisticMD,
    RAdam,
    RMSprop,
    SophiaG,
    SophiaH,
    memory_plan,
)

SHAPES = [(640, 640), (768, 640), (640, 768), (600_000,)]
"""Of matrices so large that Muon takes one after the other: else threads take what comes, not always the same."""
MATRICES = SHAPES[:3]
PR_SET_THP_DISABLE, M_MMAP_THRESHOLD = 41, -3


class Case(NamedTuple):
    """An optimizer, with the dtype and the shapes of its parameters."""

    make: Callable[[Any], Optimizer]
    dtype: torch.dtype = torch.float32
    shapes: Sequence[Sequence[int]] = SHAPES
    step: Callable[[Optimizer], object] = lambda optimizer: optimizer.step()


def both_steps(optimizer: Any) -> None:
    """As SAM takes them, with the gradients that there are; twice, as there is no state beside the first copy."""
    for _ in range(2):
        optimizer.first_step()
        optimizer.second_step()


def switched(optimizer: Any) -> None:
    """A step, and one with states made anew."""
    optimizer.step()
    optimizer.refresh()
    optimizer.step()


def closed(optimizer: Any) -> None:
    """A step of its own gradients, and one that has the last step's beside."""
    for _ in range(2):
        optimizer.step(lambda: sum(p.sum() for group in optimizer.param_groups for p in group["params"]))


def groups(params: Any) -> list[dict[str, Any]]:
    """Matrices for Muon, the rest for AdamW."""
    own = list(params)
    return [{"params": own[:3], "use_muon": True}, {"params": own[3:], "use_muon": False}]


BF16 = torch.bfloat16
CASES: dict[str, Case] = {
    "Adagrad": Case(Adagrad),
    "AdaGradNorm": Case(AdaGradNorm),
    "Adam, amsgrad": Case(lambda p: Adam(p, amsgrad=True)),
    "Adamax": Case(Adamax),
    "AdamW": Case(AdamW),
    "AdamW, bfloat16": Case(AdamW, BF16),
    "AdamW, bfloat16 with bfloat16 states": Case(lambda p: AdamW(p, state_dtype=BF16), BF16),
    "AdamW, int8": Case(lambda p: AdamW(p, state_dtype="int8")),
    "AdamW, kahan": Case(lambda p: AdamW(p, rounding="kahan"), BF16),
    "AdamW, split masters": Case(lambda p: AdamW(p, master_weights="split"), BF16),
    "AdamW, float32 masters": Case(lambda p: AdamW(p, master_weights="float32"), BF16),
    "AdamW, float64": Case(AdamW, torch.float64),
    "AuON": Case(AuON),
    "DiffGrad": Case(DiffGrad),
    "EGD, adam": Case(lambda p: EGD(p, adam=True)),
    "FRUGAL, a switch": Case(FRUGAL, step=switched),
    "FRUGAL, a switch of blocks": Case(
        lambda p: FRUGAL(p, selection="block", block_order="descending"), shapes=MATRICES, step=switched
    ),
    "FRUGAL, a switch of elements": Case(lambda p: FRUGAL(p, selection="randk"), step=switched),
    "HostOptimizer": Case(lambda p: HostOptimizer(p, AdamW), BF16),
    "HybridAuON": Case(HybridAuON, shapes=MATRICES),
    "Lion": Case(Lion),
    "Lion, max_grad_norm": Case(lambda p: Lion(p, max_grad_norm=1.0)),
    "Muon": Case(Muon, shapes=MATRICES),
    "Muon, bfloat16 with bfloat16 states": Case(lambda p: Muon(p, state_dtype=BF16), BF16, MATRICES),
    "Muon, float64": Case(Muon, torch.float64, MATRICES),
    "Muon, gram": Case(lambda p: Muon(p, ns_algorithm="gram", ns_precision="float32"), shapes=MATRICES),
    "Muon, products in float64": Case(lambda p: Muon(p, ns_precision="float64"), shapes=MATRICES),
    "MuonAdamW": Case(lambda p: MuonAdamW(groups(p))),
    "MuonWithAuxAdamW": Case(lambda p: MuonWithAuxAdamW(groups(p))),
    "NAdam": Case(NAdam),
    "NIGT": Case(lambda p: NIGT(p, lr=1e-3)),
    "NorMuon": Case(lambda p: Muon(p, normalize="normuon"), shapes=MATRICES),
    "OptimisticAdam": Case(OptimisticAdam),
    "OptimisticMD": Case(lambda p: OptimisticMD(p, lr=1e-3)),
    "RAdam": Case(RAdam),
    "RMSprop, centered": Case(lambda p: RMSprop(p, centered=True, momentum=0.5)),
    "SAM": Case(lambda p: SAM(AdamW(p)), step=both_steps),
    "SGD": Case(lambda p: SGD(p, momentum=0.9)),
    "STORM": Case(lambda p: STORM(p, lr=1e-3), step=closed),
    "SophiaG": Case(lambda p: SophiaG(p, bs=8)),
    "SophiaH": Case(SophiaH),
}


def status(name: str) -> int:
    """Bytes of memory that the process has (VmRSS) or had at most (VmHWM)."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def prepare() -> None:
    """Have the memory of tensors come from the system in whole pages, and go back there.

    On one CPU, of which the system counts the pages: it adds those of several up with some delay.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 15)


def training(case: Case) -> None:
    """Weights, gradients and a step."""
    params = [Parameter(torch.full(tuple(shape), 0.5, dtype=case.dtype)) for shape in case.shapes]
    for p in params:
        p.grad = torch.full_like(p, 0.01).add_(torch.eye(*p.shape) if p.ndim == 2 else 0.0)
    optimizer = case.make(params)
    case.step(optimizer)


def measured(call: Callable[[], object]) -> int:
    """By how many bytes the process's memory grows at most within a call."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def released(layers: int, size: int) -> tuple[int, int]:
    """The peak of a model's training step with its gradients all at once, and released."""
    peaks = []
    for attached in (False, True):
        model = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(layers)))
        optimizer = SGD(model.parameters())
        if attached:
            optimizer.attach()

        def step(model: torch.nn.Module = model, optimizer: SGD = optimizer) -> None:
            model(torch.ones(1, size)).sum().backward()
            optimizer.step()

        peaks.append(measured(step))
    return peaks[0], peaks[1]


def main() -> None:
    """Print what was planned and measured."""
    prepare()
    measured_bytes = {}
    measured(lambda: training(CASES["AdamW"]))  # starts threads
    for name, case in CASES.items():
        training(case._replace(shapes=[(40, 40)] * len(case.shapes)))  # loads what a first step loads
        plan = memory_plan(case.shapes, case.make, dtype=case.dtype)
        measured_bytes[name] = (plan.total, measured(lambda case=case: training(case)))
    print(json.dumps({"steps": measured_bytes, "released": released(12, 1024)}))


if __name__ == "__main__":
    main()
