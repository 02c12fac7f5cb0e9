"""Parameter groups, learning rates and their schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler, swa_utils

from ferrostep.optim import AdamW, Muon, MuonWithAuxAdamW
from ferrostep.optim.muon_with_adamw import ADAMW as ADAMW_GROUP
from ferrostep.optim.muon_with_adamw import MUON as MUON_GROUP
from tests.contract.rules.registry import Entry, every, every_class, one_of_each_class
from tests.contract.training import (
    assert_close,
    assert_same_bits,
    bits,
    contents,
    normal,
    parameters,
    set_gradients,
    train,
)


def grouped(entry: Entry, params: list[Parameter], **changes: Any) -> list[dict[str, Any]]:
    """Three groups: as the entry says, another learning rate, no weight decay."""
    return [
        {"params": params[:2]},
        {"params": params[2:4], "lr": 0.05},
        {"params": params[4:], "weight_decay": 0.0, **changes},
    ]


@every_class
def test_groups_have_their_own_options(entry: Entry) -> None:
    together = parameters(entry.shapes)
    train(entry.build(grouped(entry, together)), together, 3)
    apart = parameters(entry.shapes)
    optimizers = [
        entry.build(apart[:2]),
        entry.build(apart[2:4], lr=0.05),
        entry.build(apart[4:], weight_decay=0.0),
    ]
    for step in range(3):
        set_gradients(apart, step)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, apart, strict=True):
        assert bits(a) == bits(b)


@every_class
def test_groups_have_their_own_rounding_and_state_dtype(entry: Entry) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    groups = grouped(entry, params, rounding="kahan", state_dtype=torch.bfloat16)
    optimizer = entry.build(groups, rounding="stochastic")
    train(optimizer, params, 3)
    found = contents(optimizer)
    assert all(name.startswith("2.") for name in found if name.endswith("kahan_comp"))
    assert {found[f"2.{i}.kahan_comp"].dtype for i in range(len(params) - 4)} == {torch.bfloat16}
    assert {t.dtype for name, t in found.items() if entry.state in name and name[0] == "2"} == {torch.bfloat16}
    assert {t.dtype for name, t in found.items() if entry.state in name and name[0] != "2"} == {torch.float32}


@every_class
def test_a_group_of_all_dtypes(entry: Entry) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    params = [Parameter(normal((3, 5), dtype, 9, i)) for i, dtype in enumerate(dtypes)]
    optimizer = entry.build(params)
    train(optimizer, params, 3)
    for i, dtype in enumerate(dtypes):
        alone = Parameter(normal((3, 5), dtype, 9, i))
        single = entry.build([alone])
        for step in range(3):
            alone.grad = normal((3, 5), dtype, 1, step, i)
            single.step()
        assert bits(alone) == bits(params[i]), dtype


@every_class
def test_add_param_group(entry: Entry) -> None:
    params, expected = parameters(entry.shapes), parameters(entry.shapes)
    optimizer = entry.build(params[:3])
    first, second = entry.build(expected[:3]), entry.build(expected[3:], lr=0.02)
    train(optimizer, params[:3], 2)
    train(first, expected[:3], 2)
    optimizer.add_param_group({"params": params[3:], "lr": 0.02})
    for step in range(2, 5):
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.step()
        first.step()
        second.step()
    for a, b in zip(params, expected, strict=True):
        assert bits(a) == bits(b)


@every_class
def test_a_frozen_and_thawed_parameter(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    set_gradients(params, 0)
    params[0].grad = None
    before, version = bits(params[0]), params[0]._version
    optimizer.step()
    assert (bits(params[0]), params[0]._version) == (before, version)
    assert params[0] not in optimizer.state
    set_gradients(params, 1)
    optimizer.step()
    alone = parameters(entry.shapes)[0]
    alone.grad = params[0].grad.clone()
    entry.build([alone]).step()
    assert bits(alone) == bits(params[0])


@every_class
def test_nothing_to_do_is_no_error(entry: Entry) -> None:
    params = parameters([(3, 2), (0, 2)])
    optimizer = entry.build(params)
    optimizer.step()
    assert not optimizer.state
    params[1].grad = torch.zeros(0, 2)
    optimizer.step()
    assert list(optimizer.state) == [params[1]]


@every_class
def test_live_edits_of_the_learning_rate(entry: Entry) -> None:
    edited, tensor, fresh = (parameters(entry.shapes) for _ in range(3))
    optimizer = entry.build(edited)
    by_tensor = entry.build(tensor, lr=torch.tensor(0.01, dtype=torch.float64))
    saved: dict[str, Any] = {}
    for step, lr in enumerate((0.01, 0.5, 0.0, 0.125)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        by_tensor.param_groups[0]["lr"].fill_(lr)
        rebuilt = entry.build(fresh, lr=lr)
        if saved:
            rebuilt.load_state_dict(saved | {"param_groups": rebuilt.state_dict()["param_groups"]})
        for params, each in ((edited, optimizer), (tensor, by_tensor), (fresh, rebuilt)):
            set_gradients(params, step)
            each.step()
        saved = rebuilt.state_dict()
        assert_same_bits(optimizer, rebuilt)
        assert_same_bits(by_tensor, rebuilt)


@every_class
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_the_learning_rate_may_be_a_tensor(
    entry: Entry, shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    of_parameters = torch.float32 if backend == "rust" else torch.bfloat16
    ours, theirs = parameters(entry.shapes, of_parameters), parameters(entry.shapes, of_parameters)
    options = {"rounding": "stochastic", "backend": backend}
    optimizer = entry.build(ours, lr=torch.full(shape, 0.125, dtype=dtype), **options)
    train(optimizer, ours, 3)
    expected = entry.build(theirs, lr=0.125, **options)
    train(expected, theirs, 3)
    assert_same_bits(optimizer, expected)


@every(lambda entry: "betas" in entry.arguments and entry in one_of_each_class())
def test_betas_may_be_tensors(entry: Entry) -> None:
    ours, theirs = parameters(entry.shapes), parameters(entry.shapes)
    optimizer = entry.build(ours, betas=(torch.tensor(0.75), torch.tensor([0.875])))
    train(optimizer, ours, 3)
    expected = entry.build(theirs, betas=(0.75, 0.875))
    train(expected, theirs, 3)
    assert_same_bits(optimizer, expected)


@every_class
def test_named_parameters(entry: Entry) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = entry.build(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    set_gradients(list(model.parameters()), 0)
    optimizer.step()
    fresh = entry.build(model.named_parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert_same_bits(fresh, optimizer)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.3, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=1e-2, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=6),
    "LRScheduler": lambda o: HalvingLR(o),
}


class HalvingLR(lr_scheduler.LRScheduler):
    """A scheduler of the user's own."""

    def get_lr(self) -> list[float]:
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


def lists(name: str, optimizer: Optimizer) -> dict[str, list[float]]:
    """An argument of a scheduler for each group."""
    return {name: [(i + 1) / 20 for i, _ in enumerate(optimizer.param_groups)]}


VARIANTS: dict[str, Callable[[Optimizer], Any]] = {
    "CyclicLR without momentum": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 3, cycle_momentum=False),
    "CyclicLR of lists": lambda o: lr_scheduler.CyclicLR(
        o, 1e-3, step_size_up=3, **lists("max_lr", o), **lists("base_momentum", o)
    ),
    "OneCycleLR without momentum": lambda o: lr_scheduler.OneCycleLR(o, 0.02, 10, cycle_momentum=False),
    "OneCycleLR of lists": lambda o: lr_scheduler.OneCycleLR(
        o, total_steps=10, three_phase=True, **lists("max_lr", o), **lists("base_momentum", o)
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=4),
}
CYCLES = ("CyclicLR", "CyclicLR of lists", "OneCycleLR", "OneCycleLR of lists")
every_scheduler = pytest.mark.parametrize("name", SCHEDULERS | VARIANTS)


def schedule(name: str, optimizer: Optimizer) -> Callable[[], None]:
    """A scheduler's step."""
    if name in CYCLES and cycled(optimizer.param_groups[0]) is None:
        pytest.skip("the rule has no momentum to cycle")
    scheduler = (SCHEDULERS | VARIANTS)[name](optimizer)
    return lambda: scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))


def cycled(group: dict[str, Any]) -> float | None:
    """What schedulers cycle beside the learning rate, if there is anything."""
    if not {"momentum", "betas"} & group.keys():
        return None
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def test_all_schedulers_are_tested() -> None:
    assert set(SCHEDULERS) == set(lr_scheduler.__all__)


@every_class
@every_scheduler
def test_schedulers_give_every_class_what_they_give_torchs(entry: Entry, name: str) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:1]}, {"params": params[1:], "lr": 0.05}])
    groups = [{"params": [Parameter(torch.ones(1))], "lr": group["lr"]} for group in optimizer.param_groups]
    name_of_cycled = "betas" if "betas" in optimizer.param_groups[0] else "momentum"
    own = {key: value for key, value in optimizer.param_groups[0].items() if key == name_of_cycled}
    peer = (torch.optim.AdamW if "betas" in own else torch.optim.SGD)(groups, **own)
    step, peer_step = schedule(name, optimizer), schedule(name, peer)
    for number in range(9):
        set_gradients(params, number)
        for each in (optimizer.step, peer.step, step, peer_step):
            each()
        for found, expected in zip(optimizer.param_groups, peer.param_groups, strict=True):
            assert found["lr"] == expected["lr"]
            assert cycled(found) == (cycled(expected) if own else None)


@every_scheduler
def test_schedulers_of_muon_and_adamw_together_are_those_of_both_apart(name: str) -> None:
    together, apart = parameters([(5, 3), (7,)]), parameters([(5, 3), (7,)])
    groups = [{"params": together[:1], "use_muon": True}, {"params": together[1:], "use_muon": False}]
    one = MuonWithAuxAdamW(groups)
    muon, adamw = Muon(apart[:1], **MUON_GROUP), AdamW(apart[1:], **ADAMW_GROUP)
    # Each of both has the other's place, too, so that lists of arguments fit.
    muon.add_param_group({"params": []})
    adamw.param_groups.insert(0, {**adamw.param_groups[0], "params": []})
    steps = [schedule(name, optimizer) for optimizer in (one, muon, adamw)]
    for number in range(9):
        set_gradients(together, number)
        set_gradients(apart, number)
        for each in (one.step, muon.step, adamw.step, *steps):
            each()
        assert [group["lr"] for group in one.param_groups] == [
            muon.param_groups[0]["lr"],
            adamw.param_groups[1]["lr"],
        ]
        assert [bits(p) for p in together] == [bits(p) for p in apart]
    set_gradients(together, 9)
    one.step()
    assert one.param_groups[1]["betas"] == adamw.param_groups[1]["betas"]
    assert "momentum" not in one.param_groups[1]


def test_a_checkpoint_within_a_cycle_goes_on_to_the_bit() -> None:
    together, resumed = parameters([(5, 3), (7,)]), parameters([(5, 3), (7,)])

    def make(params: list[Parameter]) -> tuple[MuonWithAuxAdamW, lr_scheduler.OneCycleLR]:
        groups = [{"params": params[:1], "use_muon": True}, {"params": params[1:], "use_muon": False}]
        optimizer = MuonWithAuxAdamW(groups)
        return optimizer, lr_scheduler.OneCycleLR(optimizer, 0.02, 10)

    optimizer, scheduler = make(together)
    for number in range(9):
        if number == 4:
            again, scheduler_again = make(resumed)
            again.load_state_dict(optimizer.state_dict())
            scheduler_again.load_state_dict(scheduler.state_dict())
            for p, q in zip(resumed, together, strict=True):
                p.data.copy_(q.data)
        set_gradients(together, number)
        optimizer.step()
        scheduler.step()
        if number >= 4:
            set_gradients(resumed, number)
            again.step()
            scheduler_again.step()
    assert_same_bits(optimizer, again)


@every(lambda entry: entry.peer and entry in one_of_each_class())
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@every_scheduler
def test_schedulers(entry: Entry, name: str, tensor_lr: bool) -> None:
    ours, theirs = parameters([(7,)], torch.float64), parameters([(7,)], torch.float64)
    optimizer, peer = entry.build(ours), entry.peer(theirs)
    if tensor_lr:
        group = optimizer.param_groups[0]
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    for params, each in ((ours, optimizer), (theirs, peer)):
        scheduler_step = schedule(name, each)
        for step in range(9):
            set_gradients(params, step)
            each.step()
            scheduler_step()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(peer.param_groups[0]["lr"], rel=1e-12)
    found, expected = cycled(optimizer.param_groups[0]), cycled(peer.param_groups[0])
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-12))
    assert_close(optimizer, peer, 1e-12)
