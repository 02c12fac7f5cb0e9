"""Steps of DTensors beside those of whole tensors in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from ferrostep.optim import (
    FRUGAL,
    NIGT,
    SAM,
    SGD,
    STORM,
    Adagrad,
    AdaGradNorm,
    AdamW,
    AuON,
    HybridAuON,
    Lion,
    Muon,
    OptimisticMD,
    SophiaG,
    SophiaH,
)
from ferrostep.schedules import GradNormRecorder
from tests.contract.rules.registry import ENTRIES, one_of_each_class
from tests.contract.training import parameters, train
from tests.distributed.registry import on
from tests.distributed.tensors import Twins, line, near, placed, split

SHAPES = ((9, 5), (3, 8), (4, 4, 2), (2,), (1, 7), (0, 4), ())
"""Shards of them are uneven, empty, and whole."""


@on(2, 4)
def elementwise_rules_step_shards_to_the_bit(folder: Path) -> None:
    for entry in ENTRIES:
        if entry.elementwise and entry.state == "exp_avg":
            for dim in (0, 1):
                twins = Twins(entry.build, SHAPES, lambda shape, dim=dim: [split(shape, dim)])
                twins.step()
                twins.check()


@on(2)
def shards_of_whole_tensors_take_turns(folder: Path) -> None:
    build = partial(FRUGAL, lr=1e-2, selection="block", density=0.4, update_gap=2)
    twins = Twins(build, SHAPES, lambda shape: [split(shape, 0)])
    twins.step(5)
    twins.check()


@on(2)
def options_of_16_bit_parameters_hold_for_shards(folder: Path) -> None:
    options: list[dict[str, Any]] = [
        {"rounding": "kahan"},
        {"master_weights": "split"},
        {"state_dtype": torch.bfloat16},
        {"state_dtype": {"exp_avg": torch.bfloat16}},
        {"amsgrad": True, "backend": "reference"},
    ]
    for own in options:
        twins = Twins(partial(AdamW, **own), SHAPES, lambda shape: [split(shape, 0)], dtype=torch.bfloat16)
        twins.step()
        twins.check()
    for own in ({"rounding": "kahan"}, {"master_weights": "split", "state_dtype": torch.bfloat16}):
        twins = Twins(partial(Muon, **own), MATRICES, lambda shape: [Shard(0)], dtype=torch.bfloat16)
        twins.step()
        twins.check()


@on(2)
def whole_rows_of_shards_are_projected(folder: Path) -> None:
    for projection, dims in (("simplex", (0,)), (("box", -0.5, 0.5), (0, 1)), (("l2_ball", 0.5), (0,))):
        for dim in dims:
            for options in ({}, {"rounding": "kahan"}):
                build = partial(AdamW, lr=0.1, projection=projection, **options)
                dtype = torch.bfloat16 if options else torch.float32
                twins = Twins(
                    build, ((9, 5), (1, 7), (4, 4, 2)), lambda shape, dim=dim: [split(shape, dim)], dtype=dtype
                )
                twins.step()
                twins.check()
    rows = Parameter(placed(torch.ones(4, 6), line(), [Shard(1)]))
    with pytest.raises(RuntimeError, match="parameter 0 is a DTensor whose rows are split"):
        AdamW([rows], projection="simplex")
    with pytest.raises(RuntimeError, match="projection is a function, which DTensors exclude"):
        AdamW([rows], projection=torch.Tensor.zero_)


@on(2, 4)
def codes_are_those_of_the_ranks_own_shard(folder: Path) -> None:
    shapes = ((70, 41), (9, 300), (3, 8), (1, 7), (0, 4), (600,))
    rules: list[tuple[Any, dict[str, Any]]] = [
        (AdamW, {}),
        (AdamW, {"amsgrad": True, "backend": "reference"}),
        (Lion, {}),
        (SGD, {"momentum": 0.9}),
        (SophiaG, {}),
    ]
    for cls, arguments in rules:
        for dim in (0, 1):
            build = partial(cls, **arguments, state_dtype="int8", min_quant_numel=0)
            twins = Twins(build, shapes, lambda shape, dim=dim: [split(shape, dim)])
            own = [Parameter(p.to_local().detach().clone()) for p in twins.parts]
            optimizer = build(own)
            for _ in range(3):
                twins.give_gradients()
                for p, q in zip(own, twins.parts, strict=True):
                    p.grad = q.grad.to_local().clone()
                for each in (optimizer, twins.optimizers[1]):
                    if cls is SophiaG:
                        each.update_hessian(bs=8)
                    each.step()
            for p, q in zip(own, twins.parts, strict=True):
                near(q.to_local(), p)
                state = twins.optimizers[1].state[q]
                assert state.keys() == optimizer.state[p].keys()
                for name, x in optimizer.state[p].items():
                    near(state[name].to_local() if isinstance(state[name], DTensor) else state[name], x)


@on(2, 4)
def adamw_is_torchs_fused_on_dtensors(folder: Path) -> None:
    ours = Twins(AdamW, SHAPES, lambda shape: [split(shape, 0)])
    theirs = [Parameter(p.detach().clone()) for p in ours.parts]
    fused = torch.optim.AdamW(theirs, fused=True)
    for _ in range(5):
        ours.give_gradients()
        for p, q in zip(theirs, ours.parts, strict=True):
            p.grad = q.grad
        fused.step()
        ours.optimizers[1].step()
    for p, q in zip(theirs, ours.parts, strict=True):
        near(p.full_tensor(), q.full_tensor(), rtol=1e-5, atol=1e-7)


@on(4)
def two_dimensions_of_a_mesh(folder: Path) -> None:
    """Blocks of matrices, also as FSDP2 makes them over tensor parallelism, and replicas of shards."""
    mesh = init_device_mesh("cpu", (2, 2))
    shapes = ((9, 5), (40, 60), (2, 4), (0, 4))
    clipped = {"normalize": "normuon", "max_grad_norm": 0.5, "ns_precision": "float64"}
    muon: list[tuple[Any, dict[str, Any]]] = [(Muon, clipped), (Muon, {"ndim_policy": "batch"})]
    others: list[tuple[Any, dict[str, Any]]] = [(AdamW, {}), (AuON, {}), (HybridAuON, {})]
    for placements, rules in (
        ([Shard(0), Shard(1)], muon + others),
        ([_StridedShard(0, split_factor=2), Shard(0)], muon + others),
        ([Shard(1), Shard(0)], muon),
        ([Shard(0), Shard(0)], muon),
        ([Replicate(), Shard(0)], muon),
    ):
        is_even = isinstance(placements[0], _StridedShard)  # as FSDP2 demands there
        for cls, arguments in rules:
            stacks = ((4, 8, 6), (3, 4, 5)) if "ndim_policy" in arguments else ()
            own = [shape for shape in (*shapes, *stacks) if shape[0] % 4 == 0 or not is_even]
            twins = Twins(partial(cls, **arguments), own, lambda _, where=placements: where, mesh)
            twins.step(2)
            is_near = cls is AuON or arguments is clipped
            twins.check(**({"rtol": 1e-5, "atol": 1e-7} if is_near else {}))


MATRICES = ((9, 5), (33, 70), (1, 7), (64, 64), (0, 4), (3, 8))


@on(2, 4)
def rules_of_matrices_step_parts_as_the_whole(folder: Path) -> None:
    for entry in ENTRIES:
        if entry.state != "momentum_buffer" or entry.arguments.get("skip_zero_grad"):
            continue
        shapes = (*entry.shapes, (64, 64)) if entry.shapes == MATRICES else entry.shapes
        for dim in (0, 1):
            twins = Twins(entry.build, shapes, lambda shape, dim=dim: [split(shape, dim)])
            twins.step()
            # The sums of AuON's directions are taken of other numbers than where these are written nowhere.
            is_near = entry.optimizer is AuON or entry.sums
            twins.check(**({"rtol": 1e-6, "atol": 1e-8} if is_near else {}))


@on(2)
def lion_k_looks_at_whole_tensors(folder: Path) -> None:
    chosen: list[dict[str, Any]] = [
        {"kappa": "l2"},
        {"kappa": "lp", "kappa_param": 1.5},
        {"kappa": "lp", "kappa_param": 9.0},
        {"kappa": "row"},
        {"kappa": "topk", "kappa_param": 3},
        {"kappa": torch.sign},
    ]
    for own in chosen:
        for dim in (0, 1):
            twins = Twins(partial(Lion, lr=0.1, **own), SHAPES[:5], lambda shape, dim=dim: [split(shape, dim)])
            twins.step()
            twins.check(rtol=1e-5, atol=1e-6)


@on(2)
def optimistic_descent_keeps_whole_tensors_in_their_balls(folder: Path) -> None:
    for adaptive in (None, "variation"):
        build = partial(OptimisticMD, lr=0.1, radius=0.5, adaptive=adaptive)
        twins = Twins(build, SHAPES[:5], lambda shape: [split(shape, 0)])
        twins.step()
        twins.check(rtol=1e-5, atol=1e-6)


@on(2)
def replicated_parameters_step_alike_without_exchange(folder: Path) -> None:
    for cls in (Muon, AuON, HybridAuON):
        twins = Twins(cls, MATRICES, lambda shape: [Replicate()])
        twins.step()
        twins.check()


@on(2, 4)
def experts_and_convolutions_in_parts(folder: Path) -> None:
    shapes = ((5, 8, 6), (2, 3, 4), (6, 9, 8), (8, 5))
    for policy in ("batch", "flatten"):
        for dim in (0, 1, 2):
            arguments = {"ndim_policy": policy, "normalize": "normuon", "cautious_weight_decay": True}
            twins = Twins(partial(Muon, **arguments), shapes, lambda shape, dim=dim: [split(shape, dim)])
            twins.step()
            twins.check()


@on(2)
def idle_experts_that_are_whole_on_a_rank_are_skipped(folder: Path) -> None:
    build = partial(Muon, ndim_policy="batch", skip_zero_grad=True)
    twins = Twins(build, ((4, 8, 6),), lambda shape: [Shard(0)])
    twins.step()
    before = twins.whole[0].detach().clone()
    twins.whole[0].grad[1] = 0
    twins.parts[0].grad = placed(twins.whole[0].grad, twins.mesh, [Shard(0)])
    for optimizer in twins.optimizers:
        optimizer.step()
    twins.check()
    assert torch.equal(before[1], twins.whole[0][1]) and not torch.equal(before[0], twins.whole[0][0])


@on(2)
def plain_torch_steps_parts_as_the_whole(folder: Path) -> None:
    rules: list[tuple[Any, dict[str, Any]]] = [
        (AdamW, {}),
        (Lion, {}),
        (SGD, {"momentum": 0.9, "dampening": 0.5}),
        (Adagrad, {"initial_accumulator_value": 0.1}),
        (Muon, {"normalize": "normuon", "ns_precision": "float64"}),
        (Muon, {"ndim_policy": "batch", "ns_precision": "float64"}),
        (AuON, {}),
    ]
    for cls, arguments in rules:
        shapes = ((9, 5), (5, 8, 6)) if "ndim_policy" in arguments else ((9, 5), (6, 8))
        build = partial(cls, **arguments)
        twins = Twins(build, shapes, lambda shape: [Shard(0)], dtype=torch.float64, backend="reference")
        twins.step()
        twins.check(rtol=1e-12, atol=1e-12)


@on(2, 4)
def norms_are_those_of_whole_tensors(folder: Path) -> None:
    rules: list[tuple[Any, dict[str, Any]]] = [
        (AdamW, {"max_grad_norm": 0.5}),
        (Muon, {"max_grad_norm": 0.5, "ns_precision": "float64"}),
        (NIGT, {"lr": 0.1, "max_grad_norm": 3.0}),
        (NIGT, {"lr": 0.1, "scope": "tensor", "weight_decay": 0.1}),
        (AdaGradNorm, {}),
        (AdaGradNorm, {"norm": "group"}),
    ]
    for cls, arguments in rules:
        for backend in ("auto", "reference"):
            build = partial(cls, **arguments)
            twins = Twins(build, MATRICES, lambda shape: [Shard(0)], dtype=torch.float64, backend=backend)
            recorders = [[GradNormRecorder(t, norm).attach() for t in twins.optimizers] for norm in ("l1", "l2")]
            twins.step()
            twins.check(rtol=1e-10, atol=1e-12)
            for of_whole, of_parts in recorders:
                assert of_parts.norms == pytest.approx(of_whole.norms, rel=1e-12) and of_whole.norms
            for each, other in zip(*(t.param_groups for t in twins.optimizers), strict=True):
                assert each.get("steps") == other.get("steps")


@on(2, 4)
def storm_carries_the_momentum_of_shards(folder: Path) -> None:
    def closure(params: list[Parameter]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            quartics = ((p**4).sum() / 4 for p in params)
            return sum(x.full_tensor() if isinstance(x, DTensor) else x for x in quartics)

        return loss

    for own in ({}, {"scope": "tensor", "weight_decay": 0.1}, {"normalize": False, "schedule": "storm"}):
        for backend in ("auto", "reference"):
            build = partial(STORM, lr=0.1, backend=backend, **own)
            twins = Twins(build, ((9, 5), (33, 70), (4, 8)), lambda shape: [Shard(0)], dtype=torch.float64)
            for _ in range(3):
                for optimizer, params in zip(twins.optimizers, (twins.whole, twins.parts), strict=True):
                    optimizer.step(closure(params))
            twins.check(rtol=1e-10, atol=1e-12)
    hessian = Twins(partial(STORM, lr=0.1, correction="hessian"), ((9, 5),), lambda shape: [Shard(0)])
    hessian.optimizers[1].step(closure(hessian.parts))
    with pytest.raises(NotImplementedError, match="does not support DTensors"):
        hessian.optimizers[1].step(closure(hessian.parts))


@on(2)
def storm_is_one_optimizer_under_ddp(folder: Path) -> None:
    batch = torch.randn(2, 8, 5)
    for correction in ("difference", "hessian"):
        whole = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
        inner = copy.deepcopy(whole)
        outer = DistributedDataParallel(inner, gradient_as_bucket_view=True)
        one, other = (STORM(model.parameters(), lr=0.1, correction=correction) for model in (whole, inner))
        own = batch[dist.get_rank()].double()
        for _ in range(3):
            one.step(lambda model=whole: model(batch.double()).square().mean())
            if correction == "difference":
                other.step(lambda model=outer, own=own: model(own).square().mean())
                continue
            with other.other_point():
                other.transport(inner(own).square().mean())
            other.zero_grad()
            outer(own).square().mean().backward()
            other.step()
        for p, q in zip(whole.parameters(), inner.parameters(), strict=True):
            near(q, p, rtol=1e-10, atol=1e-12)


@on(2)
def a_norm_over_two_dimensions_of_a_mesh(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (1, 2))
    for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(1)]):
        twins = Twins(partial(AdamW, max_grad_norm=0.5), ((9, 5), (4, 6)), lambda _, where=placements: where, mesh)
        twins.step()
        twins.check(rtol=1e-5, atol=1e-7)


@on(2)
def sam_goes_up_by_the_norm_of_all_shards(folder: Path) -> None:
    twins = Twins(lambda params, **_: SAM(AdamW(params), rho=0.3), MATRICES, lambda shape: [Shard(0)])
    twins.give_gradients()
    for optimizer in twins.optimizers:
        optimizer.first_step()
    twins.check(rtol=1e-5, atol=1e-6)
    twins.give_gradients()
    for optimizer in twins.optimizers:
        optimizer.second_step()
    twins.check(rtol=1e-5, atol=1e-6)


@on(2, 4)
def one_ranks_nan_makes_all_skip(folder: Path) -> None:
    for cls in (AdamW, Muon):
        for backend in ("auto", "reference"):
            build = partial(cls, skip_nonfinite=True, backend=backend)
            twins = Twins(build, ((8, 4), (8, 8)), lambda shape: [Shard(0)])
            twins.step(1)
            before = [p.full_tensor() for p in twins.parts]
            twins.give_gradients()
            if dist.get_rank() == 1:
                twins.parts[1].grad.to_local()[0, 0] = torch.nan
            twins.optimizers[1].step()
            for p, old in zip(twins.parts, before, strict=True):
                assert torch.equal(p.full_tensor(), old)
            state = twins.optimizers[1].state[twins.parts[0]]
            assert "step" not in state or state["step"] == 1
            twins.give_gradients()
            twins.optimizers[1].step()
            assert not torch.equal(twins.parts[0].full_tensor(), before[0])


@on(2)
def one_ranks_nan_in_a_plain_tensor_makes_all_skip(folder: Path) -> None:
    """Else that rank leaves its shards as they are, and the others step theirs."""
    for cls in (AdamW, Muon):
        for backend in ("auto", "reference"):
            part, plain = (Parameter(torch.ones(8, 4)) for _ in range(2))
            part = Parameter(placed(part, line(), [Shard(0)]))
            groups: list[dict[str, Any]] = [{"params": [part]}, {"params": [plain], "skip_nonfinite": True}]
            optimizer = cls(groups, backend=backend)
            for rank in (1, 2):  # one rank's, then nobody's
                part.grad, plain.grad = placed(torch.ones(8, 4), line(), [Shard(0)]), torch.ones(8, 4)
                if dist.get_rank() == rank:
                    plain.grad[0, 0] = torch.nan
                optimizer.step()
                assert torch.equal(part.full_tensor(), torch.ones(8, 4)) == (rank == 1)


@on(2)
def hessian_estimates_of_shards(folder: Path) -> None:
    g = Twins(partial(SophiaG, bs=8), SHAPES, lambda shape: [split(shape, 0)])
    for _ in range(2):
        g.give_gradients()
        for optimizer in g.optimizers:
            optimizer.update_hessian(bs=8)
        g.step(2)
    g.check()
    h = Twins(SophiaH, SHAPES, lambda shape: [split(shape, 0)])
    estimates = [torch.randn(p.shape) for p in h.whole]
    h.optimizers[0].update_hessian(estimates)
    h.optimizers[1].update_hessian([placed(d, h.mesh, where) for d, where in zip(estimates, h.placements, strict=True)])
    h.step(2)
    h.check()
    try:
        h.optimizers[1].estimate_hessian(lambda: torch.zeros(()))
    except NotImplementedError as error:
        assert "DTensors" in str(error)
    else:
        raise AssertionError("an estimate that DTensors do not have")


@on(2)
def a_changed_shard_is_noticed(folder: Path) -> None:
    """Autograd is told of the DTensor and of its shard; shards that are exchanged are those that are stepped."""
    twins = Twins(AdamW, ((8, 4),), lambda shape: [Shard(0)])
    (p,) = twins.parts
    twins.step(1)
    versions = p._version, p._local_tensor._version
    p._local_tensor = p._local_tensor.clone()
    twins.step(1)
    twins.check()
    assert p._version > versions[0] and p._local_tensor._version > 0


@on(2)
def ddp_leaves_all_ranks_with_the_same_bits(folder: Path) -> None:
    class Waves(torch.nn.Module):
        def __init__(self, shapes: Any) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.randn(shape) for shape in shapes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum((p - x).sin().mean() for p in self.weights)

    for entry in ENTRIES:
        model = DistributedDataParallel(Waves([shape for shape in entry.shapes if 0 not in shape]))
        optimizer = entry.build(model.parameters())
        for step in range(50):
            optimizer.zero_grad()
            model(torch.tensor(0.1 * step + dist.get_rank())).backward()
            optimizer.step()
        for p in model.parameters():
            others = [torch.empty_like(p) for _ in range(dist.get_world_size())]
            dist.all_gather(others, p.detach())
            assert p.isfinite().all(), entry.name
            assert all(torch.equal(p, other) for other in others), entry.name


@on(2)
def zero_gives_each_rank_a_share(folder: Path) -> None:
    """Parameters are those of one process, to the bit, and so is the state that one rank collects."""
    for entry in one_of_each_class():
        shapes = [shape for shape in entry.shapes if 0 not in shape]
        params, others = parameters(shapes), parameters(shapes)
        zero = ZeroRedundancyOptimizer(params, entry.optimizer, **entry.arguments)
        whole = entry.build(others)
        train(zero, params, 3)
        train(whole, others, 3)
        assert len(zero.optim.state) < len(params), entry.name
        zero.consolidate_state_dict(to=0)
        for p, q in zip(params, others, strict=True):
            near(p, q)
        if dist.get_rank() == 0:
            own, expected = zero.state_dict()["state"], whole.state_dict()["state"]
            assert own.keys() == expected.keys(), entry.name
            for i, state in expected.items():
                assert own[i].keys() == state.keys(), entry.name
                for name, x in state.items():
                    near(torch.as_tensor(own[i][name]), torch.as_tensor(x))


@on(2)
def new_states_are_dtensors_only_where_the_parameter_is(folder: Path) -> None:
    mesh = line()
    p, q = Parameter(torch.ones(4, 3)), Parameter(placed(torch.ones(4, 3), mesh, [Shard(0)]))
    optimizer = AdamW([p, q])
    p.grad, q.grad = torch.ones(4, 3), placed(torch.ones(4, 3), mesh, [Shard(0)])
    optimizer.step()
    assert torch.equal(q.full_tensor(), p)
    kinds = [{name: isinstance(x, DTensor) for name, x in optimizer.state[each].items()} for each in (p, q)]
    assert not any(kinds[0].values())
    assert kinds[1] == {"step": False, "exp_avg": True, "exp_avg_sq": True}
