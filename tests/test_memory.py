"""Plans of memory, beside what steps take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ferrostep.offload import HostOptimizer
from ferrostep.optim import (
    FRUGAL,
    SAM,
    STORM,
    AdamW,
    Lion,
    MemoryPlan,
    MuonAdamW,
    memory_plan,
    muon_param_groups,
)
from ferrostep.optim.release import BYTES_AT_ONCE
from tests.contract.rules.registry import Entry, every_entry
from tests.contract.subprocesses import ROOT
from tests.contract.training import parameters, set_gradients

MEASURED = Path(__file__).with_name("measured_memory.py")
MIB = 2**20

can_be_measured = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process, and forgets it"
)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What training steps took in a process of their own."""
    output = subprocess.run(
        [sys.executable, "-m", "tests.measured_memory"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found


@can_be_measured
def test_the_plan_is_what_a_step_takes(measured: dict[str, Any]) -> None:
    shares = {name: peak / plan for name, (plan, peak) in measured["steps"].items()}
    assert len(shares) > 30
    assert {name: share for name, share in shares.items() if not 0.98 <= share <= 1.02} == {}


@can_be_measured
def test_released_gradients_are_never_above_the_largest_and_some(measured: dict[str, Any]) -> None:
    """Of 12 matrices of 4 MiB, with an optimizer that has no state."""
    whole, released = measured["released"]
    assert whole > 47 * MIB
    assert released < 4 * MIB + BYTES_AT_ONCE + MIB


def states_of(optimizer: Any) -> dict[str, int]:
    bytes_of: dict[str, int] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and name not in getattr(optimizer, "_numbers", ()):
                bytes_of[name] = bytes_of.get(name, 0) + value.nbytes
    return bytes_of


def assert_planned(make: Callable[[Any], Any], shapes: Any, dtype: torch.dtype) -> MemoryPlan:
    params = parameters(shapes, dtype)
    optimizer = make(params)
    set_gradients(params, 0)
    optimizer.step()
    plan = memory_plan(shapes, make, dtype=dtype)
    assert plan.state == states_of(optimizer)
    assert plan.elements == sum(p.numel() for p in params)
    assert plan.parameters == plan.gradients == sum(p.nbytes for p in params)
    return plan


@every_entry
def test_states_are_those_of_a_step(entry: Entry) -> None:
    assert_planned(entry.build, entry.shapes, torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic"},
        {"rounding": "kahan"},
        {"master_weights": "split"},
        {"master_weights": "float32"},
        {"state_dtype": torch.bfloat16},
        {"state_dtype": "int8"},
        {"state_dtype": "int8", "min_quant_numel": 6000},
        {"state_dtype": {"exp_avg": "int8"}},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options_are_in_the_plan(options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_planned(lambda params: AdamW(params, **options), [(64, 80), (5000,), (300, 20), (3, 7), ()], dtype)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (FRUGAL, {"selection": "svd", "density": 0.0}),
        (Lion, {"kappa": torch.sign}),
        (MuonAdamW, {"backend": "reference"}),
    ],
)
def test_what_runs_in_plain_torch_has_a_plan_without_scratch(optimizer: Any, options: dict[str, Any]) -> None:
    plan = memory_plan([(64, 64), (64,)], optimizer, **options)
    assert plan.scratch == 0 and plan.total >= 2 * plan.parameters


@pytest.mark.parametrize(
    ("own", "renewed"),
    [
        ({}, 4 * (2 * 64 * 24 + 24)),
        ({"reset_state": False}, 4 * 24),
        ({"selection": "block"}, 4 * 2 * 64 * 96),
        ({"selection": "block", "state_dtype": torch.bfloat16}, 2 * 2 * 64 * 96),
        ({"density": 0.0}, 0),
        ({"projectable": False}, 0),
    ],
    ids=str,
)
def test_states_of_a_switch_lie_beside_the_old_ones(own: dict[str, Any], renewed: int) -> None:
    assert memory_plan([(64, 96), (64,)], FRUGAL, **own).scratch == renewed


def test_blocks_of_several_sizes_are_planned_for_the_largest() -> None:
    """The first two turns of three are the smallest and the largest; or any two, when the order is random."""
    shapes, bytes_of = [(8, 8), (8, 16), (8, 32)], 4 * 2 * 8
    for order, most in {"ascending": 16 + 32, "descending": 32 + 16, "random": 32 + 32}.items():
        plan = memory_plan(shapes, FRUGAL, selection="block", block_order=order)
        assert plan.state["exp_avg"] + plan.state["exp_avg_sq"] + plan.scratch == bytes_of * most


def test_attached_optimizers_renew_what_they_step_at_once() -> None:
    """Columns of matrices of 4 MiB, of which 3 are stepped at once."""
    shapes = [(1024, 1024)] * 10
    plan, kept = (memory_plan(shapes, FRUGAL, reset_state=reset) for reset in (True, False))
    assert plan.attached_gradients == 12 * MIB and plan.scratch - kept.scratch == 20 * MIB
    assert plan.attached_total - kept.attached_total == 6 * MIB


def test_storms_transport_lies_beside_the_gradients() -> None:
    assert memory_plan([(64, 80), (64,)], STORM, lr=0.1).scratch == 2 * 4 * (64 * 80 + 64)


def test_masters_of_other_peoples_classes() -> None:
    plan = memory_plan([(64, 80)], HostOptimizer, optimizer_class=torch.optim.AdamW, dtype=torch.bfloat16)
    assert plan.state == {"exp_avg": 20480, "exp_avg_sq": 20480, "step": 4, "master_param": 20480}
    assert plan.optimizer == "HostOptimizer(torch.AdamW)"
    assert plan.attached_gradients is plan.attached_total is None


def test_sam_has_a_copy_of_the_weights() -> None:
    plan = memory_plan([(64, 80)], lambda params: SAM(AdamW(params)))
    assert (plan.optimizer, plan.scratch, plan.attached_total) == ("SAM(AdamW)", 20480, None)


def test_a_model_is_routed_by_its_modules_and_left_alone() -> None:
    head = nn.Linear(16, 40, bias=False)
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 16), nn.BatchNorm1d(16), head)
    model[0].weight = head.weight  # tied
    model[1].bias.requires_grad_(False)
    before = {name: (id(p), p.device) for name, p in model.named_parameters()}
    plan = memory_plan(model, MuonAdamW)
    assert plan.elements == 40 * 16 + 16 * 16 + 3 * 16
    assert plan.gradients == plan.parameters - 4 * 16
    assert plan.state["momentum_buffer"] == 4 * 16 * 16
    assert plan.state["exp_avg"] == 4 * (40 * 16 + 2 * 16)
    assert {name: (id(p), p.device) for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    with torch.device("meta"):
        alike = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert memory_plan(alike, AdamW, dtype=torch.bfloat16).parameters == 2 * 2 * 72


def test_forms_of_shapes_and_parameters() -> None:
    plan = memory_plan({"a": (3, 4), "b": (5,)}, AdamW)
    p = nn.Parameter(torch.ones(3, 4))
    groups = [{"params": [p]}, {"params": (nn.Parameter(torch.ones(5)),), "lr": 0.1}]
    named = [("a", p), ("b", torch.Size([5]))]
    for form in ([(3, 4), [5]], groups, named, [p, nn.Parameter(torch.ones(5))]):
        assert memory_plan(form, AdamW) == plan
    assert memory_plan([(3,)] * 2, AdamW).elements == 6


def test_a_printed_plan_is_a_table() -> None:
    plan = memory_plan([(1024, 1024)], Lion, state_dtype="int8")
    assert str(plan).splitlines() == [
        "Lion                          MiB",
        "parameters           float32  4.0",
        "gradients            float32  4.0",
        "state exp_avg        uint8    1.0",
        "state exp_avg_scale  float32  0.0",
        "total                         9.0",
        "total with attach()           9.0",
    ]


def test_the_default_device_plays_no_part() -> None:
    expected = memory_plan([(8, 4)], AdamW)
    with torch.device("meta"):
        assert memory_plan([(8, 4)], AdamW) == memory_plan([nn.Parameter(torch.ones(8, 4))], AdamW) == expected


def test_nothing_is_allocated() -> None:
    """A trillion elements."""
    plan = memory_plan({"weight": (1_000_000, 1_000_000)}, AdamW, state_dtype=torch.bfloat16, dtype=torch.bfloat16)
    assert plan.total == 8 * 10**12 + 4


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (3, {}, TypeError, "model_or_shapes is a int, expected a module, shapes, parameters or parameter groups"),
        (torch.ones(3), {}, TypeError, "model_or_shapes is a Tensor"),
        ("gpt2", {}, TypeError, "model_or_shapes is a str"),
        ([3, 4], {}, TypeError, "parameter 0 is a int, expected a tensor or a shape"),
        ([(3, -4)], {}, ValueError, "Invalid shape of parameter 0: -4"),
        ({"w": (3, 0.5)}, {}, TypeError, "shape of w is a float, expected an integer"),
        ([(3, 4)], {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ([(3, 4)], {"momentun": 1}, TypeError, "momentun"),
        ([(3, 4)], {"dtype": "bfloat16"}, TypeError, "dtype is a str, expected a torch.dtype, or None"),
        ([(3, 4)], {"dtype": torch.int8}, ValueError, "dtype is torch.int8, expected one of floats"),
        (nn.LazyLinear(3), {}, RuntimeError, "weight is of a lazy module and has no shape yet"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_input(given: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        memory_plan(given, AdamW, **options)


@pytest.mark.parametrize(
    ("optimizer_class", "message"),
    [(3, "optimizer_class is a int, expected a class of optimizers"), (list, "optimizer_class made a list, expected")],
)
def test_what_makes_no_optimizer(optimizer_class: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        memory_plan([(3, 4)], optimizer_class)


def test_parameter_groups_of_a_routed_model() -> None:
    from ferrostep.optim import MuonWithAuxAdamW

    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    plan = memory_plan(muon_param_groups(model), MuonWithAuxAdamW)
    assert plan.state["momentum_buffer"] + plan.state["exp_avg"] == plan.parameters
