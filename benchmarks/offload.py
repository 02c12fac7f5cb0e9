"""What is measured of masters in float32 for 16-bit weights: one pass over memory, and the same in torch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.offload import HostOptimizer
from ferrostep.optim import AdamW
from projections import Contest

SHAPES = 24 * [(1024, 1024)]
ELEMENTS = sum(map(math.prod, SHAPES))
BYTES = 2 + (4 + 4) + 16 + 2
"""Of each element that one pass moves: the gradient, the master in and out, two moments in and out, the weight."""
PLAN = 2 + 2 + 4 + 8
"""Of each element in memory: weight, gradient, master, moments."""
ARGUMENTS = {"lr": 1e-4, "weight_decay": 0.01}
PEER, MIXED, HOSTED = "torch: cast, fused AdamW, copy back", "AdamW, master_weights='float32'", "HostOptimizer, AdamW"


def weights(dtype: torch.dtype) -> list[Tensor]:
    """Random ones with gradients."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in SHAPES:
        p = Parameter(torch.randn(shape, generator=generator).mul_(0.02).to(dtype))
        p.grad = torch.randn(shape, generator=generator).mul_(0.01).to(dtype)
        params.append(p)
    return params


def by_hand(params: list[Tensor], optimizer_class: Callable[..., Optimizer]) -> Callable[[], object]:
    """Gradients cast into memory that is there already, a step on masters, these cast back."""
    masters = [Parameter(p.detach().float()) for p in params]
    for master in masters:
        master.grad = torch.empty_like(master)
    optimizer = optimizer_class(masters, **ARGUMENTS)

    @torch.no_grad()
    def step() -> None:
        torch._foreach_copy_([master.grad for master in masters], [p.grad for p in params])
        optimizer.step()
        torch._foreach_copy_(params, masters)

    return step


def deepspeeds() -> dict[str, Callable[..., Optimizer]]:
    """DeepSpeedCPUAdam where it is installed; it compiles its kernel at first, which takes minutes."""
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    except ImportError:
        return {}
    return {"DeepSpeedCPUAdam: cast, step, copy back": DeepSpeedCPUAdam}


def contests() -> list[Contest]:
    """Steps of AdamW on weights of both types."""
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        # Each has weights of its own: one that another writes would have to be looked at.
        of_others = HostOptimizer(weights(dtype), torch.optim.AdamW, fused=True, **ARGUMENTS)
        contestants: dict[str, Callable[[], object]] = {
            PEER: by_hand(weights(dtype), partial(torch.optim.AdamW, fused=True)),
            **{name: by_hand(weights(dtype), each) for name, each in deepspeeds().items()},
            MIXED: AdamW(weights(dtype), master_weights="float32", **ARGUMENTS).step,
            HOSTED: HostOptimizer(weights(dtype), AdamW, **ARGUMENTS).step,
            "HostOptimizer, torch's fused AdamW": of_others.step,
        }
        found.append(Contest(f"AdamW, {str(dtype).removeprefix('torch.')}, 25 million elements", contestants))
    return found


def memory() -> float:
    """The peak of a process with weights, gradients and ``HostOptimizer``, as a share of the plan."""
    output = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True).stdout
    return int(output) / (PLAN * ELEMENTS)


def peak() -> int:
    """Bytes of memory that this process has had at most; /proc knows it on Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Print by how many bytes the process's peak grew."""
    small = [Parameter(torch.ones(8, dtype=torch.bfloat16))]  # loads what a first step loads
    small[0].grad = torch.ones_like(small[0])
    HostOptimizer(small, AdamW).step()
    before = peak()
    params = [Parameter(torch.zeros(shape, dtype=torch.bfloat16)) for shape in SHAPES]
    for p in params:
        p.detach().fill_(0.02)
        p.grad = torch.full_like(p, 0.01)
    optimizer = HostOptimizer(params, AdamW, **ARGUMENTS)
    for _ in range(3):
        optimizer.step()
    print(peak() - before)


if __name__ == "__main__":
    main()
