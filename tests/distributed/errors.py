"""What is refused: with an error on every rank that names rank, group and index; nothing changed, nobody waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.optim import (
    FRUGAL,
    SAM,
    AdamW,
    AuON,
    HybridAuON,
    Lion,
    Muon,
    MuonAdamW,
    MuonWithAuxAdamW,
    agreement,
    rules,
)
from ferrostep.optim.agreement import Talk
from ferrostep.optim.taken import Taken
from ferrostep.schedules import GradNormRecorder
from tests.contract.interrupts import Interrupts
from tests.contract.rules.registry import one_of_each_class
from tests.distributed.registry import on
from tests.distributed.tensors import Twins, line, near, placed

ERRORS = (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError)


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def refused(twins: Twins, *words: str) -> str:
    """A step raises with these words, changes nothing, and leaves the ranks able to take the next."""
    optimizer = twins.optimizers[1]
    before = [p.full_tensor() for p in twins.parts]
    states = {p: {name: kept(x) for name, x in state.items()} for p, state in optimizer.state.items()}
    message = message_of(optimizer.step)
    for word in words:
        assert word in message, (word, message)
    for p, old in zip(twins.parts, before, strict=True):
        assert torch.equal(p.full_tensor(), old)
    assert states.keys() == optimizer.state.keys()
    for p, state in states.items():
        for name, x in state.items():
            near(kept(optimizer.state[p][name]), x)
    twins.step(1)
    twins.check(rtol=1e-6, atol=1e-7)  # AuON's sums are rounded otherwise
    return message


def kept(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).clone()


def twins_of(build: Any, steps: int) -> Twins:
    twins = Twins(build, ((8, 4), (6, 6)), lambda shape: [Shard(0)])
    twins.step(steps)
    twins.give_gradients()
    return twins


RULES = (AdamW, Muon, AuON, HybridAuON)
PLACE = "grad of parameter 1 in group 0"


@on(2)
def gradients_that_are_placed_otherwise(folder: Path) -> None:
    def replaced(twins: Twins, how: str) -> Tensor:
        p, mesh = twins.parts[1], twins.mesh
        full = torch.ones(p.shape)
        if how == "partial":
            return DTensor.from_local(full, mesh, [Partial()])
        placements = [Replicate()] if how == "whole" else [Shard(1)]
        return placed(full, mesh, placements)

    for cls in RULES:
        for steps in (0, 1):
            for how, word in (
                ("partial", "has placements (Partial(sum),), expected the parameter's, (Shard(dim=0),)"),
                ("whole", "has placements (Replicate(),)"),
                ("along 1", "has placements (Shard(dim=1),)"),
            ):
                twins = twins_of(cls, steps)
                twins.parts[1].grad = replaced(twins, how)
                refused(twins, PLACE, word)


@on(2)
def what_one_rank_finds_is_told_to_all(folder: Path) -> None:
    """Only rank 1 has the fault; rank 0 would wait for it for ever, or go on alone."""
    for entry in one_of_each_class():
        for steps in (0, 1):
            twins = twins_of(entry.build, steps)
            if dist.get_rank() == 1:
                if steps and entry.state:
                    twins.optimizers[1].state[twins.parts[1]][entry.state] = torch.ones(2)
                else:
                    twins.parts[1].grad = placed_by_rank(twins, [Replicate()])
            told_to_all(twins, twins.optimizers[1].step)
    twins = Twins(lambda params, **_: SAM(AdamW(params)), ((8, 4), (6, 6)), lambda shape: [Shard(0)])
    twins.give_gradients()
    if dist.get_rank() == 1:
        twins.parts[1].grad = placed_by_rank(twins, [Replicate()])
    told_to_all(twins, twins.optimizers[1].first_step)


def told_to_all(twins: Twins, call: Callable[[], Any]) -> None:
    """The call fails because of rank 1, and changes nothing."""
    message = failing(twins, call)
    assert "parameter 1 in group 0" in message, message
    assert (dist.get_rank() == 1) != message.startswith("RuntimeError: rank 1 cannot take the step: "), message


def failing(twins: Twins, call: Callable[[], Any]) -> str:
    """The message of a call that changes no parameter."""
    before = [p.full_tensor() for p in twins.parts]
    message = message_of(call)
    for p, old in zip(twins.parts, before, strict=True):
        assert torch.equal(p.full_tensor(), old)
    return message


@on(2)
def options_that_one_rank_has_by_itself(folder: Path) -> None:
    """They decide what ranks ask one another, and whether they skip a step."""
    for entry in one_of_each_class():
        twins = twins_of(entry.build, 1)
        optimizer = twins.optimizers[1]
        for name, value, words in (
            ("skip_nonfinite", True, "group 0 with skip_nonfinite=True"),
            ("max_grad_norm", 1.0, "parameter 0 in group 0 by its norm"),
        ):
            before = optimizer.param_groups[0][name]
            optimizer.param_groups[0][name] = value if dist.get_rank() == 1 else before
            message = failing(twins, optimizer.step)
            assert f"rank 1 would step {words}" in message, (entry.name, message)
            optimizer.param_groups[0][name] = before
        optimizer.step()


@on(2)
def ranks_agree_in_groups_of_any_backend(folder: Path) -> None:
    """By messages from one to another, as on the CPU, and by a collective operation, as on other devices."""
    for backend in ("cpu:gloo", "gloo"):
        mesh = DeviceMesh.from_group(dist.new_group([0, 1], backend=backend), "cpu")
        for is_asked_ahead in (True, False):
            twins = Twins(AdamW, ((8, 4), (6, 6)), lambda shape: [Shard(0)], mesh)
            with pytest.MonkeyPatch.context() as patch:
                if not is_asked_ahead:
                    patch.setattr(Talk, "_is_direct", lambda talk: False)
                twins.step(1)
                twins.check()
                twins.give_gradients()
                if dist.get_rank() == 1:
                    twins.parts[1].grad = placed_by_rank(twins, [Replicate()])
                told_to_all(twins, twins.optimizers[1].step)
                twins.step(1)
                twins.check()


@on(2)
def interrupts_within_a_step(folder: Path) -> None:
    """Ctrl-C waits for the end of the step, wherever it comes."""
    where = (agreement.__file__, rules.__file__)
    twins = Twins(AdamW, ((8, 4), (6, 6)), lambda shape: [Shard(0)])
    twins.step(1)
    twins.give_gradients()
    counted = Interrupts(folders=where)
    counted.run(twins.optimizers[1].step)
    twins.optimizers[0].step()
    assert counted.passed > 300
    for at in range(60, counted.passed - 60, 17):  # between the first and the last instruction of `_update`
        twins.give_gradients()
        interrupts = Interrupts(at if dist.get_rank() == 1 else 0, folders=where, by_signal=True)
        with pytest.raises(KeyboardInterrupt) if dist.get_rank() == 1 else nullcontext():
            interrupts.run(twins.optimizers[1].step)
        twins.optimizers[0].step()
        twins.check()


@on(2)
def exceptions_while_ranks_tell_one_another(folder: Path) -> None:
    """Such as another thread raises: nobody waits for ever, and a step that only one rank takes is an error on both."""
    where = (agreement.__file__,)
    optimizer = twins_of(AdamW, 1).optimizers[1]
    counted = Interrupts(folders=where)
    counted.run(optimizer.step)
    before = steps_of(optimizer)
    errors = []
    for at in range(1, counted.passed + 1, 3):
        interrupts = Interrupts(at if dist.get_rank() == 1 else 0, folders=where)
        start = steps_of(optimizer)
        while steps_of(optimizer) == start:
            try:
                interrupts.run(optimizer.step)
            except KeyboardInterrupt:
                continue
            except RuntimeError as error:
                errors.append(str(error))
                if "has taken" in errors[-1] and dist.get_rank() == 1:
                    break  # the other one has taken its step already
    out_of_step = [error for error in errors if "rank 1 has taken" in error]
    others = [error for error in errors if error not in out_of_step]
    assert all("rank 1 cannot take the step: KeyboardInterrupt" in error for error in others), others
    told: list[Any] = [None, None]
    dist.all_gather_object(told, (steps_of(optimizer) - before, len(out_of_step), len(errors)))
    (first, ahead, failed), (second, behind, _) = told
    assert first - second == ahead == behind, told
    assert first > 50 and failed > ahead > 0, told


@on(2)
def a_step_that_one_rank_has_not_taken(folder: Path) -> None:
    """An interrupt between what ranks tell one another and the step is noticed in the next."""
    twins = twins_of(AdamW, 1)
    optimizer = twins.optimizers[1]
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(Taken, "run", interrupted)
        with pytest.raises(KeyboardInterrupt) if dist.get_rank() == 1 else nullcontext():
            optimizer.step()
    message = failing(twins, optimizer.step)
    assert "rank 1 has taken" in message and "load a checkpoint" in message, message
    optimizer.step()
    assert steps_of(optimizer) == (2 if dist.get_rank() == 1 else 3)


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def steps_of(optimizer: Optimizer) -> int:
    return int(next(iter(optimizer.state.values()))["step"])


@on(2)
def norms_that_one_rank_records_by_itself(folder: Path) -> None:
    """They are summed over ranks after the step, whatever is summed before it."""
    for limit in (None, 1.0):
        twins = twins_of(partial(AdamW, max_grad_norm=limit), 1)
        optimizer = twins.optimizers[1]
        for orders in (["l1"], ["l2"]), (["l2"], []):
            recorders = [GradNormRecorder(optimizer, norm).attach() for norm in orders[dist.get_rank()]]
            message = failing(twins, optimizer.step)
            assert f"its {orders[0][0]} norm to be recorded" in message, message
            for each in recorders:
                assert each.norms == []
                each.detach()
        optimizer.step()


def placed_by_rank(twins: Twins, placements: Any) -> DTensor:
    """A gradient of the second parameter that is made without the other ranks."""
    return DTensor.from_local(torch.ones(twins.parts[1].shape), twins.mesh, placements, run_check=False)


@on(2, 4)
def a_gradient_that_only_one_rank_lacks(folder: Path) -> None:
    for backend in ("auto", "reference"):
        twins = Twins(Muon, ((8, 4), (6, 6)), lambda shape: [Shard(0)], backend=backend)
        twins.give_gradients()
        if dist.get_rank() == 1:
            twins.parts[0].grad = None
        message = message_of(twins.optimizers[1].step)
        words = "RuntimeError: rank 1 would step parameter 1 in group 0", "but rank 0 parameter 0 in group 0"
        assert all(word in message for word in words), message
        assert not twins.optimizers[1].state


@on(2)
def ranks_that_would_step_the_same_matrices_otherwise(folder: Path) -> None:
    """They would send each other something of another size, or nothing."""
    of_rank_1: dict[str, tuple[Any, dict[str, Any], str]] = {
        "dtype of the state": (Muon, {"state_dtype": torch.bfloat16}, "momentum_buffer torch.bfloat16"),
        "states": (Muon, {"normalize": "normuon"}, "second_momentum_buffer"),
        "backend": (Muon, {"backend": "reference"}, "on every rank"),
        "layout": (Muon, {"num_heads": 2}, "by rows [4, 4]"),
        "rule": (MuonWithAuxAdamW, {"use_muon": False}, "rank 1 would step nothing more"),
        "route": (MuonAdamW, {"use_muon": False}, "rank 1 would step nothing more"),
    }
    for what, (cls, own, word) in of_rank_1.items():
        p = Parameter(placed(torch.ones(8, 4), line(), [Shard(0)]))
        group = {"params": [p], **({} if cls is Muon else {"use_muon": True})}
        optimizer = cls([{**group, **(own if dist.get_rank() == 1 else {})}])
        p.grad = placed(torch.ones(8, 4), line(), [Shard(0)])
        message = message_of(optimizer.step)
        assert word in message, (what, message)
        assert torch.equal(p.full_tensor(), torch.ones(8, 4)) and not optimizer.state, what


@on(2)
def placements_that_change_on_one_rank(folder: Path) -> None:
    twins = twins_of(Muon, 1)
    optimizer = twins.optimizers[1]
    before = [p.full_tensor() for p in twins.parts]
    if dist.get_rank() == 1:
        p = Parameter(placed_by_rank(twins, [Partial()]))
        p.grad = placed_by_rank(twins, [Partial()])
        optimizer.param_groups[0]["params"][1] = p
    message = message_of(optimizer.step)
    assert "parameter 1 in group 0" in message and "(Partial(sum),)" in message, message
    assert (dist.get_rank() == 1) != message.startswith("RuntimeError: rank 1 cannot take the step: "), message
    for p, old in zip(twins.parts, before, strict=True):
        assert torch.equal(p.full_tensor(), old)


@on(4)
def news_reaches_ranks_that_share_no_parameter(folder: Path) -> None:
    """Rank 0 and the last have no process group in common, in slices of a mesh as little as in the mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parts = [Parameter(placed(torch.ones(8, 4), mesh[name], [Shard(0)])) for name in ("dp", "tp")]
    for failing in range(4):
        optimizer = Muon(parts)
        for p in parts:
            p.grad = placed(torch.ones(8, 4), p.device_mesh, p.placements)
        if dist.get_rank() == failing:
            optimizer.param_groups[0]["ns_steps"] = -1
        message = message_of(optimizer.step)
        assert "Invalid ns_steps value: -1" in message, message
        assert (dist.get_rank() == failing) != message.startswith(f"RuntimeError: rank {failing} cannot"), message
        assert all(torch.equal(p.to_local(), torch.ones(4, 4)) for p in parts)


@on(2)
def a_loaded_state_that_is_no_dtensor(folder: Path) -> None:
    for cls in (AdamW, Muon):
        twins = twins_of(cls, 1)
        optimizer = twins.optimizers[1]
        state = optimizer.state_dict()
        name = "exp_avg" if cls is AdamW else "momentum_buffer"
        state["state"][1] = {**state["state"][1], name: torch.ones(6, 6)}
        optimizer.load_state_dict(state)
        before = [p.full_tensor() for p in twins.parts]
        message = message_of(optimizer.step)
        assert f"{name} of parameter 1 in group 0 is a Tensor, expected a DTensor, as the parameter is" in message
        for p, old in zip(twins.parts, before, strict=True):
            assert torch.equal(p.full_tensor(), old)


@on(2)
def ranks_with_other_groups(folder: Path) -> None:
    mesh = line()
    parts = [Parameter(placed(torch.ones(8, 4), mesh, [Shard(0)])) for _ in range(3)]
    own = parts[: 3 - dist.get_rank()]
    optimizer = Muon([{"params": [p]} for p in own])
    for p in parts:
        p.grad = placed(torch.ones(8, 4), mesh, [Shard(0)])
    message = message_of(optimizer.step)
    assert "rank 1 would step nothing more, but rank 0 parameter 0 in group 2" in message, message
    assert all(torch.equal(p.full_tensor(), torch.ones(8, 4)) for p in parts)
    assert not optimizer.state


@on(2)
def a_fault_in_another_group_of_one_rank(folder: Path) -> None:
    mesh = line()
    hidden = Parameter(placed(torch.ones(8, 4), mesh, [Shard(0)]))
    plain = Parameter(torch.ones(3))
    groups: list[dict[str, Any]] = [{"params": [hidden], "use_muon": True}, {"params": [plain], "use_muon": False}]
    optimizer = MuonWithAuxAdamW(groups)
    hidden.grad, plain.grad = placed(torch.ones(8, 4), mesh, [Shard(0)]), torch.ones(3)
    if dist.get_rank() == 0:
        plain.grad = torch.ones(3).to_sparse()
    message = message_of(optimizer.step)
    assert "parameter 0 in group 1" in message and "sparse" in message, message
    assert torch.equal(hidden.full_tensor(), torch.ones(8, 4)) and torch.equal(plain, torch.ones(3))
    plain.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(hidden.full_tensor(), torch.ones(8, 4)) and not torch.equal(plain, torch.ones(3))


def made(optimizer: Callable[..., Optimizer], *params: Tensor) -> str:
    return message_of(lambda: optimizer([{"params": [Parameter(torch.ones(2, 2))]}, {"params": list(params)}]))


@on(4)
def layouts_that_no_rank_can_own(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    matrix, plain = torch.ones(8, 8), Parameter(torch.ones(2, 2))
    place = f"parameter 1 in group 1 on rank {dist.get_rank()}"
    in_strips = [_StridedShard(0, split_factor=2), Replicate()]
    strips = Parameter(DTensor.from_local(torch.ones(4, 8), mesh, in_strips))
    for cls in (Muon, AuON, HybridAuON):
        message = made(cls, plain, strips)
        assert message.startswith("NotImplementedError"), message
        assert place in message and "_StridedShard" in message, message
        later = cls([{"params": [Parameter(torch.ones(2, 2))]}, {"params": [plain, Parameter(matrix.clone())]}])
        later.param_groups[1]["params"][1] = strips
        strips.grad = strips.detach().clone()
        message = message_of(later.step)
        assert message.startswith("NotImplementedError"), message
        assert place in message and "_StridedShard" in message, message
    sums = Parameter(DTensor.from_local(matrix, mesh, [Partial(), Replicate()]))
    for cls in (AdamW, Muon):
        message = made(cls, plain, sums)
        assert place in message and "expected Shard or Replicate" in message, message
    columns = Parameter(placed(torch.ones(4, 8, 8), mesh, [Replicate(), Shard(1)]))
    message = made(partial(Muon, ndim_policy="batch", skip_zero_grad=True), plain, columns)
    assert place in message and "skip_zero_grad" in message, message
    message = made(partial(AdamW, differentiable=True), plain, columns)
    assert place in message and "differentiable" in message, message
    message = made(partial(Lion, kappa="topk", kappa_param=3, state_dtype="int8"), plain, columns)
    assert place in message and "another state_dtype than 'int8'" in message, message


@on(2)
def selections_of_a_part_of_a_matrix(folder: Path) -> None:
    p = Parameter(placed(torch.ones(4, 6), line(), [Shard(0)]))
    for selection in ("columns", "rows", "randk", "svd", "random"):
        message = message_of(partial(FRUGAL, [p], selection=selection))
        assert f"selection={selection!r} needs the whole matrix, of which a DTensor has a part" in message
    FRUGAL([{"params": [p], "projectable": False}])
