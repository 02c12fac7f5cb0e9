"""``HostOptimizer``: the class that it holds, with masters, state and steps in host memory, wherever parameters are."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import textwrap
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.offload import HostOptimizer, twins
from ferrostep.offload.transfers import CudaTransfers
from ferrostep.optim import AdamW, Lion, MuonAdamW, MuonWithAuxAdamW, SophiaG, muon_param_groups
from tests.contract.rules.registry import Entry, every_class
from tests.contract.rules.test_interrupts import Interrupts, places
from tests.contract.snapshot import Snapshot
from tests.contract.training import assert_same_bits, bits, contents, copies, parameters, set_gradients, train

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
ADAMW = {"lr": 1e-4, "weight_decay": 0.1}

over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT], ids=["f32", "bf16", "f16"])
over_classes = pytest.mark.parametrize("optimizer_class", [AdamW, torch.optim.AdamW], ids=["ours", "torch"])


@pytest.fixture(params=["in place", "copied"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Parameters that the kernels reach, and the same ones taken for such on another device."""
    if request.param == "copied":
        monkeypatch.setattr(twins, "is_on_host", lambda _p: False)
    return request.param


def hosted(entry: Entry, params: Any, **changes: Any) -> HostOptimizer:
    """The entry's optimizer in host memory."""
    return HostOptimizer(params, entry.optimizer, **entry.arguments, **changes)


@every_class
@over_dtypes
def test_it_is_the_class_with_masters_to_the_bit(entry: Entry, dtype: torch.dtype, where: str) -> None:
    params, others = parameters(entry.shapes, dtype), parameters(entry.shapes, dtype)
    groups = [[{"params": each[:2]}, {"params": each[2:], "lr": 1e-5}] for each in (params, others)]
    ours = hosted(entry, groups[0])
    bare = entry.build(groups[1], master_weights="float32")
    for step in range(4):
        ours.param_groups[0]["lr"] = bare.param_groups[0]["lr"] = 1e-3 / (1 + step)
        train(ours, params, 1, step)
        train(bare, others, 1, step)
    assert_same_bits(ours, bare)


@over_dtypes
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad], ids=lambda c: c.__name__)
def test_a_class_of_others_steps_the_masters(make: type[Optimizer], dtype: torch.dtype, where: str) -> None:
    params = parameters([(5, 3), (7,)], dtype)
    masters = [Parameter(p.detach().float()) for p in params]
    ours, by_hand = HostOptimizer(params, make, lr=1e-3), make(masters, lr=1e-3)
    for step in range(3):
        set_gradients(params, step)
        for p, q in zip(params, masters, strict=True):
            q.grad = p.grad.float()
        ours.step()
        by_hand.step()
        for p, q in zip(params, masters, strict=True):
            assert bits(p) == bits(q.to(dtype))
            if dtype != torch.float32:
                assert bits(ours.state[p]["master_param"]) == bits(q)


def test_without_masters_the_class_rounds_as_it_does() -> None:
    params, others = (parameters([(50, 3)], torch.bfloat16) for _ in range(2))
    ours = HostOptimizer(params, AdamW, master_dtype=None, rounding="kahan")
    bare = AdamW(others, rounding="kahan")
    train(ours, params, 3)
    train(bare, others, 3)
    assert_same_bits(ours, bare)
    split = HostOptimizer(params, AdamW, master_weights="split")
    assert split.param_groups[0]["master_weights"] == "split"


@over_classes
def test_it_is_an_optimizer_of_torch(optimizer_class: type[Optimizer], where: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2).bfloat16()
    optimizer = HostOptimizer(model.named_parameters(), optimizer_class, lr=0.1)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"][0] is model.weight
    assert "HostOptimizer" in repr(optimizer)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4, dtype=torch.bfloat16)).square().mean()
        loss.backward()
        return loss.item()

    losses = []
    for _ in range(5):
        losses.append(optimizer.step(closure))
        scheduler.step()
    assert seen == ["before", "after"] * 5
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] != 0.1


@over_classes
def test_a_scaler_and_clipping_are_heeded(optimizer_class: type[Optimizer], where: str) -> None:
    """They change gradients after the backward pass, the first without a trace in the tensors' versions."""
    results = []
    for wrapped in (False, True):
        p = Parameter(torch.ones(4))
        make: Callable[..., Optimizer] = partial(HostOptimizer, optimizer_class=optimizer_class)
        optimizer = (make if wrapped else optimizer_class)([p], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, float("inf"), 3.0):
            optimizer.zero_grad()
            scaler.scale((factor * torch.arange(4.0) * p).sum()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p], 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append(bits(p))
    assert results[0] == results[1]


@over_classes
def test_parameters_without_a_gradient_are_skipped(optimizer_class: type[Optimizer], where: str) -> None:
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer(params, optimizer_class)
    set_gradients(params[:1], 0)
    optimizer.step()
    assert bits(params[1]) == bits(parameters([(3,), (4,)], torch.bfloat16)[1])
    assert set(optimizer.state_dict()["state"]) == {0}
    params[0].grad = None  # as `model.zero_grad()` does
    before = Snapshot(optimizer)
    optimizer.step()
    before.assert_unchanged()


@over_classes
def test_groups_are_added_and_refused_whole(optimizer_class: type[Optimizer], where: str) -> None:
    params = parameters([(3,), (4,), (5,)], torch.bfloat16)
    optimizer = HostOptimizer(params[:1], optimizer_class, lr=0.1)
    optimizer.add_param_group({"params": params[1], "lr": 0.2})
    for wrong in ({"params": [params[2], params[0]]}, {"params": [params[2]], "lr": -1.0}):
        if optimizer_class is AdamW or "lr" not in wrong:  # torch's AdamW takes any in a group
            with pytest.raises(ValueError, match=r"more than one parameter group|Invalid"):
                optimizer.add_param_group(wrong)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(p)] for p in params[:2]]
    train(optimizer, params, 2)
    assert set(optimizer.state_dict()["state"]) == {0, 1}
    optimizer.add_param_group({"params": params[2:]})
    train(optimizer, params, 1)
    assert optimizer.param_groups[2]["lr"] == 0.1
    assert set(optimizer.state_dict()["state"]) == {0, 1, 2}


def saved(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict that went through a file."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)


@over_classes
@over_dtypes
def test_a_checkpoint_resumes_to_the_bit(optimizer_class: type[Optimizer], dtype: torch.dtype, where: str) -> None:
    params = parameters([(5, 3), (7,)], dtype)
    optimizer = HostOptimizer(params, optimizer_class, **ADAMW)
    train(optimizer, params, 3)
    model, state = [p.detach().clone() for p in params], saved(optimizer.state_dict())
    train(optimizer, params, 2, 3)
    others = parameters([(5, 3), (7,)], dtype)
    resumed = HostOptimizer(others, optimizer_class)
    with torch.no_grad():
        for p, weight in zip(others, model, strict=True):
            p.copy_(weight)
    resumed.load_state_dict(state)
    train(resumed, others, 2, 3)
    assert_same_bits(resumed, optimizer)
    assert resumed.param_groups[0]["lr"] == ADAMW["lr"]


@pytest.mark.parametrize("bare_class", [AdamW, torch.optim.AdamW], ids=["ours", "torch"])
@over_classes
def test_checkpoints_move_between_it_and_the_bare_class(
    bare_class: type[Optimizer], optimizer_class: type[Optimizer], where: str
) -> None:
    params = parameters([(5, 3), (7,)], torch.bfloat16)
    bare = bare_class(params, **ADAMW)
    train(bare, params, 2)
    ours = HostOptimizer(params, optimizer_class)
    ours.load_state_dict(saved(bare.state_dict()))
    for p in params:
        assert torch.equal(ours.state[p]["exp_avg"], bare.state[p]["exp_avg"].float())
    train(ours, params, 2, 2)
    for p in params:
        assert bits(ours.state[p]["master_param"].bfloat16()) == bits(p)
    others = bare_class([p.detach().clone() for p in params])
    others.load_state_dict(saved(ours.state_dict()))
    for p, q in zip(params, others.param_groups[0]["params"], strict=True):
        assert float(others.state[q]["step"]) == 4
        torch.testing.assert_close(others.state[q]["exp_avg"].float(), ours.state[p]["exp_avg"], rtol=1e-2, atol=1e-2)


def test_a_master_of_another_shape_is_refused(where: str) -> None:
    """Of a class of others; ours names it in the step, as any state."""
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer(params, torch.optim.AdamW)
    train(optimizer, params, 1)
    state, before = copy.deepcopy(optimizer.state_dict()), copies(optimizer)
    state["state"][1]["master_param"] = torch.ones(3)
    message = r"master_param of parameter 1 in group 0 has shape \[3\], expected \[4\]"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert_same_bits(optimizer, before)


@over_classes
def test_hooks_of_state_dicts_run(optimizer_class: type[Optimizer]) -> None:
    params = parameters([(3,)])
    optimizer = HostOptimizer(params, optimizer_class)
    train(optimizer, params, 1)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda _o: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _o, _s: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _o, _s: seen.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda _o: seen.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["saving", "saved", "loading", "loaded"]


@over_classes
def test_a_checkpoint_of_other_groups_changes_nothing(optimizer_class: type[Optimizer], where: str) -> None:
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer(params, optimizer_class)
    train(optimizer, params, 1)
    other = HostOptimizer(parameters([(3,)]), optimizer_class).state_dict()
    before = copies(optimizer)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(other)
    assert_same_bits(optimizer, before)
    assert optimizer.param_groups[0]["params"][0] is params[0]
    train(optimizer, params, 1)


@over_classes
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_copy_goes_on_as_the_original(
    optimizer_class: type[Optimizer], duplicate: Callable[[Any], Any], dtype: torch.dtype, where: str
) -> None:
    params = parameters([(5, 3), (7,)], dtype)
    optimizer = HostOptimizer(params, optimizer_class, offload_gradients=True, **ADAMW)
    train(optimizer, params, 2)
    optimizer.zero_grad()
    twin = duplicate(optimizer)
    others = twin.param_groups[0]["params"]
    for each, its in ((optimizer, params), (twin, others)):
        sum((p * p).sum() for p in its).backward()
        each.step()
        if where == "copied":
            assert all(p.grad is None for p in its)  # the copy has its hooks
    assert_same_bits(contents(twin), contents(optimizer))
    assert all(p is not q for p, q in zip(params, others, strict=True))


@over_classes
@over_dtypes
def test_what_is_written_to_a_parameter_stands(
    optimizer_class: type[Optimizer], dtype: torch.dtype, where: str
) -> None:
    """Before the first step, as by ``model.load_state_dict``, and between steps; masters of the rest are kept."""
    (p,) = params = parameters([(8,)], dtype)
    optimizer = HostOptimizer(params, optimizer_class, lr=1e-6, weight_decay=0.0)
    with torch.no_grad():
        p.copy_(torch.arange(8.0) + 1)
    train(optimizer, params, 2)
    assert torch.allclose(p.float(), torch.arange(8.0) + 1, atol=1e-2)
    with torch.no_grad():
        p[:4] = 100.0
    masters = optimizer.state[p].get("master_param", p).detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, 1, 2)
    assert (p[:4] == 100).all()
    after = optimizer.state[p].get("master_param", p).detach()
    assert torch.equal(after[4:], masters[4:])
    assert (after[:4] == 100).all()


@over_classes
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_offloaded_gradients_of_several_passes_are_added_up(
    optimizer_class: type[Optimizer], passes: int, where: str
) -> None:
    params, others = (parameters([(5, 3), (7,)], torch.bfloat16) for _ in range(2))
    ours = HostOptimizer(params, optimizer_class, offload_gradients=True, lr=0.1)
    kept = HostOptimizer(others, optimizer_class, lr=0.1)
    for step in range(3):
        for optimizer, its in ((ours, params), (kept, others)):
            for k in range(passes):
                sum((p * (step + k + i)).sin().sum() for i, p in enumerate(its)).backward()
            if where == "copied" and optimizer is ours:
                assert all(p.grad is None for p in its)
            optimizer.step()
            optimizer.zero_grad()
    assert_same_bits(ours, kept)


def test_a_gradient_that_comes_after_one_was_taken_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DistributedDataParallel's does, which would otherwise be that of one process, or be counted twice."""
    monkeypatch.setattr(twins, "is_on_host", lambda _p: False)
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer(params, AdamW, offload_gradients=True)
    sum(p.sum() for p in params).backward()
    params[1].grad = torch.ones_like(params[1])
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"grad of parameter 1 in group 0 came after offload_gradients=True"):
        optimizer.step()
    before.assert_unchanged()


@over_classes
def test_offloaded_gradients_can_be_clipped_and_dropped(optimizer_class: type[Optimizer], where: str) -> None:
    params, others = (parameters([(5, 3), (7,)], torch.bfloat16) for _ in range(2))
    ours = HostOptimizer(params, optimizer_class, offload_gradients=True, lr=0.1)
    kept = HostOptimizer(others, optimizer_class, lr=0.1)
    for optimizer, its in ((ours, params), (kept, others)):
        (100 * sum(p.sum() for p in its)).backward()
        optimizer.zero_grad()
        sum(p.square().sum() for p in its).backward()
        if optimizer is ours and where == "copied":
            with ours.on_host() as host:
                torch.nn.utils.clip_grad_norm_([p for group in host.param_groups for p in group["params"]], 0.5)
        else:
            torch.nn.utils.clip_grad_norm_(its, 0.5)
        optimizer.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("offload", [False, True], ids=["kept", "offloaded"])
def test_float32_gradients_of_bfloat16_parameters_stay_float32(where: str, offload: bool) -> None:
    """As they are accumulated with ``p.grad_dtype``: sums that bfloat16 does not have count."""
    p, master = Parameter(torch.ones(3, dtype=torch.bfloat16)), Parameter(torch.ones(3))
    p.grad_dtype = torch.float32
    ours, other = HostOptimizer([p], Lion, lr=0.1, offload_gradients=offload), Lion([master], lr=0.1)
    for _ in range(2):
        for scale in (1.0, 2.0**-9):
            (p * scale).sum().backward()
        master.grad = torch.full((3,), 1 + 2.0**-9)
        ours.step()
        ours.zero_grad()
        other.step()
    assert bits(ours.state[p]["exp_avg"]) == bits(other.state[master]["exp_avg"])


def test_matrices_and_the_rest_by_groups_and_by_names(where: str) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)).bfloat16()
    other = copy.deepcopy(model)
    ours = HostOptimizer(muon_param_groups(model), MuonWithAuxAdamW)
    bare = MuonWithAuxAdamW(muon_param_groups(other), master_weights="float32")
    for m, optimizer in ((model, ours), (other, bare)):
        for _ in range(3):
            optimizer.zero_grad()
            m(torch.ones(2, 6, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step()
    assert_same_bits(ours, bare)


@pytest.mark.parametrize("given", [lambda m: m, lambda m: m.parameters(), lambda m: [{"params": m}]], ids="mpg")
def test_matrices_and_the_rest_by_modules(given: Callable[[nn.Module], Any], where: str) -> None:
    model = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)).bfloat16()
    optimizer = HostOptimizer(given(model), MuonAdamW)
    model(torch.arange(4)).square().sum().backward()
    optimizer.step()
    assert [p for p, state in optimizer.state.items() if "momentum_buffer" in state] == [model[1].weight]
    assert len(optimizer.state) == 7
    with optimizer.on_host() as host:
        assert host.routes[0].reason == "embedding"


def test_what_else_a_class_does_is_done_on_the_host(where: str) -> None:
    params, others = (parameters([(5, 3)], torch.bfloat16) for _ in range(2))
    ours = HostOptimizer(params, SophiaG, rho=0.05)
    bare = SophiaG(others, rho=0.05, master_weights="float32")
    for its in (params, others):
        set_gradients(its, 0)
    with ours.on_host() as host:
        host.update_hessian(bs=32)
    bare.update_hessian(bs=32)
    assert ours.param_groups[0]["bs"] == 32
    for its in (params, others):
        set_gradients(its, 1)
    ours.step(bs=16)
    bare.step(bs=16)
    assert_same_bits(ours, bare)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (AdamW([torch.ones(1)]), "optimizer_class is a AdamW, expected a subclass of torch.optim.Optimizer"),
        ("AdamW", "optimizer_class is a str, expected a subclass of torch.optim.Optimizer"),
        (nn.Linear, "optimizer_class is Linear, expected a subclass of torch.optim.Optimizer"),
        (HostOptimizer, "optimizer_class is HostOptimizer, expected the class of the optimizer on the host"),
        (torch.optim.LBFGS, "optimizer_class is LBFGS, expected one whose step needs no closure"),
    ],
    ids=lambda x: x.split()[2] if isinstance(x, str) and " " in x else "",
)
def test_what_is_no_class_of_optimizers_is_refused(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        HostOptimizer([torch.ones(1)], given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"master_dtype": torch.float64}, ValueError, "Invalid master_dtype: torch.float64; expected torch.float32 or"),
        ({"offload_gradients": 1}, TypeError, "offload_gradients is a int, expected a bool"),
        ({"learning_rate": 1.0}, TypeError, "unexpected keyword argument 'learning_rate'"),
        ({"offload_gradient": True}, TypeError, r"HostOptimizer\(\) got an .*; did you mean 'offload_gradients'\?"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"rounding": "kahan"}, ValueError, "master_weights='float32' rounds to the nearest and excludes"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HostOptimizer(parameters([(3,)], torch.bfloat16), AdamW, **arguments)


@pytest.mark.parametrize(
    ("params", "error"), [([], ValueError), (torch.ones(2), TypeError), ([3], TypeError), ([{"lr": 1.0}], KeyError)]
)
@over_classes
def test_impossible_parameters_are_refused_as_by_the_class(
    params: Any, error: type[Exception], optimizer_class: type[Optimizer], where: str
) -> None:
    with pytest.raises(error) as of_class:
        optimizer_class(params)
    with pytest.raises(error) as ours:
        HostOptimizer(params, optimizer_class)
    assert str(ours.value) == str(of_class.value)


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}], ids=["plain", "skipping"])
def test_a_step_that_is_interrupted_is_whole_or_has_not_begun(options: dict[str, Any], where: str) -> None:
    """Where the weights are copied, they may stay on the host until the next step, if it comes to that."""

    def build() -> HostOptimizer:
        params = parameters([(3, 2), (4,)], torch.bfloat16)
        optimizer = HostOptimizer([{"params": params[:1]}, {"params": params[1:]}], AdamW, lr=0.1, **options)
        train(optimizer, params, 1)
        set_gradients(params, 1)
        return optimizer

    counting, expected = Interrupts(), build()
    counting.run(expected.step)
    ends = set()
    for at in places(counting.passed):
        optimizer = build()
        params = [group["params"][0] for group in optimizer.param_groups]
        before = Snapshot(optimizer)
        steps = [float(optimizer.state[p]["step"]) for p in params]
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(optimizer.step)
        assert all(group["params"][0] is p for group, p in zip(optimizer.param_groups, params, strict=True))
        has_moved = [float(optimizer.state[p]["step"]) > step for p, step in zip(params, steps, strict=True)]
        ends.add(all(has_moved))
        if not any(has_moved):
            before.assert_unchanged()
            optimizer.step()
        assert_same_bits(optimizer, expected)
    assert ends == {False, True}


class Failing(torch.optim.SGD):
    """Steps one parameter, then fails."""

    def step(self, closure: Any = None) -> None:
        first, *_ = self.param_groups[0]["params"]
        with torch.no_grad():
            first.sub_(1.0)
        raise RuntimeError("on the way")


def test_what_a_class_has_written_before_it_failed_is_in_the_parameters(where: str) -> None:
    """As it is without the wrapper; else the next step would add to what nobody sees."""
    params = parameters([(3,), (4,)], torch.bfloat16)
    before = [p.detach().clone() for p in params]
    optimizer = HostOptimizer(params, Failing, lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match="on the way"):
        optimizer.step()
    assert torch.equal(params[0], (before[0].float() - 1).bfloat16()) and torch.equal(params[1], before[1])


@over_classes
def test_what_is_written_on_the_host_reaches_the_parameter(optimizer_class: type[Optimizer], where: str) -> None:
    """As by an optimizer that shows other weights in evaluation."""
    (p,) = parameters([(3,)])
    optimizer = HostOptimizer([p], optimizer_class, lr=0.1)
    with optimizer.on_host() as host, torch.no_grad():
        host.param_groups[0]["params"][0].fill_(2.0)
        host.param_groups[0]["seen"] = True
    assert (p == 2.0).all() and optimizer.param_groups[0]["seen"] and optimizer.param_groups[0]["params"] == [p]


@over_classes
def test_parameters_can_be_exchanged_in_their_groups(optimizer_class: type[Optimizer], where: str) -> None:
    """As trainers do that shard or replace the model's after the optimizer was made."""
    first, p = parameters([(3,), (3,)], torch.bfloat16)
    optimizer = HostOptimizer([first], optimizer_class, lr=0.1, offload_gradients=True)
    optimizer.param_groups[0]["params"][0] = p
    before = [x.detach().clone() for x in (first, p)]
    for _ in range(2):
        p.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(first, before[0]) and not torch.equal(p, before[1])
    assert set(copy.deepcopy(optimizer).state_dict()["state"]) == {0}


@pytest.mark.parametrize("change", [lambda x: x.float(), lambda x: x[:2]], ids=["dtype", "shape"])
@over_classes
def test_a_copied_parameter_that_became_another_is_refused(
    optimizer_class: type[Optimizer], change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by ``model.float()``, after which its weights would stay those that bfloat16 has."""
    monkeypatch.setattr(twins, "is_on_host", lambda _p: False)
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer(params, optimizer_class)
    train(optimizer, params, 1)
    params[1].grad = None
    params[1].data = change(params[1].data)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"param of parameter 1 in group 0 has .*, as when the optimizer got it"):
        optimizer.step()
    before.assert_unchanged()


def test_a_module_is_given_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16()
    optimizer = HostOptimizer(model, MuonAdamW)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    with pytest.raises(TypeError, match=r"can only optimize Tensors"):
        HostOptimizer(model, torch.optim.AdamW)


def test_a_parameter_without_memory_that_needs_a_master_is_refused() -> None:
    with pytest.raises(RuntimeError, match="a parameter is on device meta, which has no memory; materialize it first"):
        HostOptimizer([Parameter(torch.ones(3, dtype=torch.bfloat16, device="meta"))], torch.optim.AdamW)


def test_weights_that_return_on_several_streams_are_all_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event stands for them, so a stream waits for what it stood for before: here on stand-ins for CUDA's."""
    calls: list[tuple[str, str]] = []

    class Event:
        def record(self, stream: Any) -> None:
            calls.append(("record", stream.name))

        def synchronize(self) -> None:
            calls.append(("wait", "host"))

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = str(name)

        def wait_event(self, _event: Event) -> None:
            calls.append(("wait", self.name))

        def synchronize(self) -> None:
            pass

    current = Stream("a")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
    copies_of_device = CudaTransfers(torch.device("cuda:0"))
    for name in ("a", "b"):
        current = Stream(name)
        copies_of_device.to_device(torch.ones(1), torch.zeros(1))
    copies_of_device.wait()
    assert calls == [("wait", "a"), ("record", "a"), ("wait", "b"), ("record", "b"), ("wait", "host")]


@over_classes
def test_a_parameter_that_moved_is_refused(optimizer_class: type[Optimizer], where: str) -> None:
    params = parameters([(3,), (4,)], torch.bfloat16)
    optimizer = HostOptimizer([{"params": params[:1]}, {"params": params[1:]}], optimizer_class)
    train(optimizer, params, 1)
    before = Snapshot(optimizer, others=params[:1])
    optimizer._twins[params[1]].device = torch.device("cuda:0")  # as if it had come from there
    message = "param of parameter 0 in group 1 is on device cpu, expected cuda:0, where it was"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    before.assert_unchanged()


def test_a_sparse_gradient_of_a_copied_parameter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "is_on_host", lambda _p: False)
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = HostOptimizer(embedding.parameters(), AdamW, offload_gradients=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"grad of parameter 0 in group 0 has layout torch.sparse_coo"):
        optimizer.step()


def test_the_guide_runs() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "offload.md").read_text()
    blocks = [textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", guide, re.M | re.S)]
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "offload.md", "exec"), names)
    assert isinstance(names["optimizer"], HostOptimizer)
    assert names["optimizer"].state[names["model"].weight]["master_param"].dtype == torch.float32


def test_parameters_do_not_keep_the_optimizer(where: str) -> None:
    params = parameters([(3,)], torch.bfloat16)
    optimizer = HostOptimizer(params, AdamW, offload_gradients=True)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    params[0].sum().backward()
    assert params[0].grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [False, True], ids=["kept", "offloaded"])
@over_classes
@over_dtypes
def test_parameters_on_a_cuda_device(optimizer_class: type[Optimizer], dtype: torch.dtype, offload: bool) -> None:
    """The same bits as on the CPU, from the same gradients; the state stays on the host."""
    others = parameters([(512, 300), (7,)], dtype)
    params = [Parameter(p.detach().cuda()) for p in others]
    ours = HostOptimizer(params, optimizer_class, offload_gradients=offload, **ADAMW)
    bare = HostOptimizer(others, optimizer_class, **ADAMW)
    for step in range(4):
        set_gradients(others, step)
        for _ in range(1 + step % 2):  # twice the same gradient is exact in any order
            sum((p * q.grad.cuda()).sum() for p, q in zip(params, others, strict=True)).backward()
        if step % 2:
            for q in others:
                q.grad.mul_(2)
        ours.step()
        bare.step()
        assert all((p.grad is None) == offload for p in params)
        ours.zero_grad()
        for p, q in zip(params, others, strict=True):
            assert bits(p.cpu()) == bits(q)
    assert all(x.device.type == "cpu" for state in ours.state.values() for x in state.values())
    resumed = HostOptimizer(params, optimizer_class)
    resumed.load_state_dict(saved(ours.state_dict()))
    for p in params:
        assert all(bits(x) == bits(ours.state[p][name]) for name, x in resumed.state[p].items())
    duplicate = copy.deepcopy(ours)
    assert all(q.is_cuda for q in duplicate.param_groups[0]["params"])
