"""Checkpoints by torch.distributed.checkpoint: saved by four ranks, loaded by two."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ferrostep.optim import AdamW, Lion, Muon
from tests.distributed.registry import on
from tests.distributed.tensors import line, near

RULES: dict[str, Any] = {
    "adamw": AdamW,
    "lion": Lion,
    "normuon": lambda params: Muon(params, normalize="normuon"),
}
CODED = partial(AdamW, lr=1e-2, state_dtype="int8", min_quant_numel=1)


def trained(name: str, model: nn.Module, steps: range) -> Optimizer:
    """The model's optimizer after these steps with gradients that are the same for any number of ranks."""
    return started(RULES[name], model, steps)


def started(build: Any, model: nn.Module, steps: range) -> Optimizer:
    optimizer: Optimizer = build(model.parameters())
    advance(model, optimizer, steps)
    return optimizer


def advance(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            gradient = torch.randn(p.shape, generator=generator)
            if isinstance(p, DTensor):
                gradient = torch.distributed.tensor.distribute_tensor(gradient, p.device_mesh, p.placements)
            p.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(7, 9, bias=False), nn.Linear(9, 5, bias=False))


def states(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}


@on(4)
def four_ranks_save(folder: Path) -> None:
    for name in RULES:
        parts = fully_shard(model(), mesh=line())
        optimizer = trained(name, parts, range(3))
        dcp.save(states(parts, optimizer), checkpoint_id=folder / name)


@on(2)
def two_ranks_load_what_four_saved(folder: Path) -> None:
    for name in RULES:
        whole = model()
        expected = trained(name, whole, range(3))
        parts = fully_shard(model(), mesh=line())
        optimizer: Optimizer = RULES[name](parts.parameters())
        loaded = states(parts, optimizer)
        dcp.load(loaded, checkpoint_id=folder / name)
        set_model_state_dict(parts, loaded["model"])
        set_optimizer_state_dict(parts, optimizer, loaded["optimizer"])
        for steps in (range(0), range(3, 5)):  # as saved, and further on
            advance(whole, expected, steps)
            advance(parts, optimizer, steps)
            for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
                near(q.full_tensor(), p)
                for key, x in expected.state[p].items():
                    y: Tensor = optimizer.state[q][key]
                    near(y.full_tensor() if isinstance(y, DTensor) else y, x)


def wide() -> nn.Module:
    """Of matrices that no number of ranks splits into whole blocks of codes, and one that every one does."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(70, 90), nn.Linear(90, 7), nn.Linear(256, 8))


def moments(optimizer: Optimizer) -> list[Tensor]:
    """In the order of the parameters, the numbers that stand in the state dict, whole."""
    state = optimizer.state_dict()["state"]
    moments = [state[i][name] for i in sorted(state) for name in ("exp_avg", "exp_avg_sq")]
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in moments]


@on(4)
def four_ranks_save_codes(folder: Path) -> None:
    parts = fully_shard(wide(), mesh=line())
    optimizer = started(CODED, parts, range(3))
    saved = states(parts, optimizer)
    assert not any("_scale" in name for state in saved["optimizer"]["state"].values() for name in state)
    dcp.save(saved, checkpoint_id=folder / "codes")
    numbers = moments(optimizer)
    if dist.get_rank() == 0:
        torch.save(numbers, folder / "numbers.pt")


@on(2)
def two_ranks_load_codes_of_four(folder: Path) -> None:
    expected = torch.load(folder / "numbers.pt")
    for chosen, error in (("int8", 0.02), (None, 0.0)):
        parts = fully_shard(wide(), mesh=line())
        optimizer: Optimizer = CODED(parts.parameters())
        loaded = states(parts, optimizer)
        dcp.load(loaded, checkpoint_id=folder / "codes")
        loaded["optimizer"]["param_groups"][0]["state_dtype"] = chosen
        set_optimizer_state_dict(parts, optimizer, loaded["optimizer"])
        for x, y in zip(moments(optimizer), expected, strict=True):
            assert (x - y).norm() <= error * y.norm()
        for p in parts.parameters():
            assert ("exp_avg_scale" in optimizer.state[p]) == (chosen == "int8" and p.ndim > 1)
        advance(parts, optimizer, range(3, 5))


@on(2)
def codes_of_the_same_ranks_load_to_the_bit(folder: Path) -> None:
    for wrap in (lambda model: model, partial(fully_shard, mesh=line())):
        model = wrap(wide())
        optimizer = started(CODED, model, range(2))
        again = CODED(model.parameters())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p in model.parameters():
            assert again.state[p].keys() == optimizer.state[p].keys()
            for key, x in optimizer.state[p].items():
                y = again.state[p][key]
                assert type(x) is type(y) and x is not y
                near(*((each.to_local() if isinstance(each, DTensor) else each) for each in (x, y)))


@on(2)
def state_dicts_of_ranks_load_by_themselves(folder: Path) -> None:
    for name in RULES:
        parts = fully_shard(model(), mesh=line())
        optimizer = trained(name, parts, range(2))
        again: Optimizer = RULES[name](parts.parameters())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for p in parts.parameters():
            for key, x in optimizer.state[p].items():
                y = again.state[p][key]
                assert type(x) is type(y) and x is not y
                near(*((each.full_tensor() if isinstance(each, DTensor) else each) for each in (x, y)))
