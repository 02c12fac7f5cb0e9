"""Models trained by FSDP2 and tensor parallelism, beside the same in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ferrostep.optim import AdamW, MuonWithAuxAdamW, muon_param_groups
from tests.distributed.registry import on
from tests.distributed.tensors import line, near
from tests.test_docs import blocks


class Model(nn.Module):
    def __init__(self, up: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 10)
        self.up = nn.Linear(10, up)
        self.down = nn.Linear(up, 10)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 11)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        out: Tensor = self.head(self.norm(h + self.down(self.up(h).relu())))
        return out


def optimizers() -> list[Callable[[nn.Module], Optimizer]]:
    return [
        lambda model: AdamW(model.parameters(), lr=1e-2),
        lambda model: MuonWithAuxAdamW(muon_param_groups(model)),
    ]


def train(model: nn.Module, optimizer: Optimizer, batches: list[Tensor], norms: list[Any]) -> None:
    # torch clips DTensors and other tensors separately; the layers are those that tensor parallelism splits.
    layers = [p for layer in (model.up, model.down) for p in layer.parameters()]
    for x in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.flip(0)).backward()
        norm = clip_grad_norm_(layers, 0.1)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        optimizer.step()


def compare(split: Callable[[nn.Module], nn.Module], share: Callable[[Tensor], Tensor], up: int = 18) -> None:
    """Train a model and what ``split`` makes of it, which gets its share of each batch."""
    for build in optimizers():
        torch.manual_seed(1)
        whole = Model(up)
        parts = split(copy.deepcopy(whole))
        batches = [torch.randint(0, 11, (8,)) for _ in range(5)]
        norms: list[list[Any]] = [[], []]
        train(whole, build(whole), batches, norms[0])
        train(parts, build(parts), [share(x) for x in batches], norms[1])
        for one, other in zip(*norms, strict=True):
            near(one, other, rtol=1e-4, atol=1e-6)
        for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
            full = q.full_tensor() if isinstance(q, DTensor) else q
            torch.testing.assert_close(full, p, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@on(2, 4)
def fsdp2_trains_as_one_process(folder: Path) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def split(model: nn.Module) -> nn.Module:
        for layer in (model.up, model.down):
            fully_shard(layer, mesh=line())
        return fully_shard(model, mesh=line())

    # Labels are the batch turned round, so a share is taken from both ends.
    def share(x: Tensor) -> Tensor:
        half = 4 // ranks
        return torch.cat([x[rank * half : (rank + 1) * half], x[8 - (rank + 1) * half : 8 - rank * half]])

    compare(split, share)


@on(2)
def tensor_parallel_layers_train_as_one_process(folder: Path) -> None:
    def split(model: nn.Module) -> nn.Module:
        return parallelize_module(model, line(), {"up": ColwiseParallel(), "down": RowwiseParallel()})

    compare(split, lambda x: x)


@on(4)
def fsdp2_over_tensor_parallelism_trains_as_one_process(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    half = mesh.get_local_rank("dp")

    def split(model: nn.Module) -> nn.Module:
        model = parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        for layer in (model.up, model.down):
            fully_shard(layer, mesh=mesh["dp"])
        model = fully_shard(model, mesh=mesh["dp"])
        assert "_StridedShard" in str(model.up.weight.placements)
        return model

    compare(split, lambda x: torch.cat([x[half * 2 : half * 2 + 2], x[6 - half * 2 : 8 - half * 2]]), up=20)


@on(2)
def the_guides_program_trains(folder: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    names: dict[str, Any] = {}
    with patch.object(dist, "init_process_group"):  # there is one
        for code in blocks(guide):
            code = code.replace('"checkpoint"', repr(str(folder / "checkpoint-of-the-guide")))
            exec(compile(code, "distributed.md", "exec"), names)
    assert names["loss"] < 4.0  # of log(100) at first
    assert len(names["optimizer"].state) == len(list(names["model"].parameters()))
