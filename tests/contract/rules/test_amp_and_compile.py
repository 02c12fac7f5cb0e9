"""A step among what trainers put around it: gradient scaling and clipping, autocast, torch.compile, real models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.contract.rules.registry import Entry, every, every_class, every_class_of_any_shape, one_of_each_class
from tests.contract.training import assert_close, assert_same_bits, bits, contents, normal, parameters, set_gradients


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    return model(normal((5, 2, 6, 6), torch.float32, 3, step)).square().mean()


@every(lambda entry: entry.peer and entry in one_of_each_class())
def test_gradient_scaling_with_skipped_steps(entry: Entry) -> None:
    optimizers = []
    for build in (entry.build, entry.peer):
        params = parameters([(5, 3), (4,)])
        optimizer = build(params)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        scales = []
        for step in range(10):
            optimizer.zero_grad()
            loss = sum((p * normal(p.shape, p.dtype, 5, step, i)).sum() for i, p in enumerate(params))
            scaler.scale(loss).backward()
            if step in (2, 6):
                params[1].grad[0] = float("inf")
            before = [bits(p) for p in params]
            scaler.step(optimizer)
            assert ([bits(p) for p in params] == before) == (step in (2, 6))
            scaler.update()
            scales.append(scaler.get_scale())
        optimizers.append((optimizer, scales))
    (ours, our_scales), (theirs, their_scales) = optimizers
    assert our_scales == their_scales
    assert_close(ours, theirs, 1e-6, least_size=1.0)
    for p in ours.param_groups[0]["params"]:
        if "step" in ours.state[p]:
            assert ours.state[p]["step"] == 8


@every_class
def test_skip_nonfinite_leaves_everything_untouched(entry: Entry, boundary: str) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = entry.build(groups, skip_nonfinite=True, rounding="kahan")
    for step, special in enumerate((None, float("nan"), float("inf"), -float("inf"), None)):
        set_gradients(params, step)
        before = {name: bits(tensor) for name, tensor in contents(optimizer).items()}
        versions = [p._version for p in params]
        if special is not None:
            params[-1].grad.view(-1)[-1] = special
        optimizer.step()
        unchanged = {name: bits(tensor) for name, tensor in contents(optimizer).items()} == before
        assert unchanged == (special is not None)
        assert (versions == [p._version for p in params]) == (special is not None)


@every_class
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_skip_nonfinite_of_a_group_looks_at_its_gradients(entry: Entry, backend: str) -> None:
    params = parameters(entry.shapes[:2])
    groups = [{"params": params[:1]}, {"params": params[1:], "skip_nonfinite": True, "backend": backend}]
    optimizer = entry.build(groups)
    for victim, is_skipped in ((1, True), (0, False)):
        set_gradients(params, 0)
        params[victim].grad.view(-1)[0] = float("nan")
        before = [bits(p) for p in params]
        optimizer.step()
        assert ([bits(p) for p in params] == before) == is_skipped


@every_class
def test_skip_nonfinite_at_the_first_step_makes_no_state(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params, skip_nonfinite=True)
    set_gradients(params, 0)
    params[0].grad[0] = float("nan")
    optimizer.step()
    assert not optimizer.state


@every_class
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_skip_nonfinite_passes_finite_gradients(entry: Entry, backend: str) -> None:
    largest = torch.finfo(torch.float32).max
    ours, theirs = parameters(entry.shapes), parameters(entry.shapes)
    optimizer = entry.build(ours, skip_nonfinite=True, backend=backend)
    other = entry.build(theirs, backend=backend)
    for params, each in ((ours, optimizer), (theirs, other)):
        set_gradients(params, 0)
        params[0].grad[0] = torch.tensor([largest, -largest, 1e-45])
        each.step()
    assert_same_bits(optimizer, other)


@every_class
def test_skip_nonfinite_in_plain_torch(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params, skip_nonfinite=True, backend="reference")
    set_gradients(params, 0)
    optimizer.step()
    before = {name: bits(tensor) for name, tensor in contents(optimizer).items()}
    params[-1].grad.view(-1)[-1] = float("nan")
    optimizer.step()
    assert {name: bits(tensor) for name, tensor in contents(optimizer).items()} == before


@every(lambda entry: entry.peer and entry in one_of_each_class())
def test_clipped_gradients(entry: Entry) -> None:
    ours, theirs = parameters([(5, 3), (4,)]), parameters([(5, 3), (4,)])
    optimizer, peer = entry.build(ours), entry.peer(theirs)
    for step in range(5):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            assert torch.nn.utils.clip_grad_norm_(params, 0.5) > 0.5
            each.step()
    assert_close(optimizer, peer, 1e-6, least_size=1.0)


@every_class_of_any_shape
def test_a_step_under_autocast(entry: Entry) -> None:
    model, other = small_model(), small_model()
    optimizer, outside = entry.build(model.parameters()), entry.build(other.parameters())
    for step in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_of(other, step).backward()
        outside.step()
        outside.zero_grad()
    assert_same_bits(optimizer, outside)


@every(lambda entry: entry.any_shape and entry in one_of_each_class())
def test_a_compiled_model_with_the_step_outside(entry: Entry) -> None:
    model = small_model()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer, other = entry.build(model.parameters()), entry.build(plain.parameters())
    for step in range(4):
        for net, each in ((compiled, optimizer), (plain, other)):
            each.zero_grad()
            loss_of(net, step).backward()
            each.step()
    assert_same_bits(optimizer, other)


@every_class
def test_a_compiled_training_step_is_not_compiled_again(entry: Entry) -> None:
    """Dynamo stays out of our step, as of torch's, whatever the tensors are."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 2, bias=False))
    optimizer = entry.build([{"params": [p]} for p in model.parameters()])
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    @torch.compile(backend="aot_eager")
    def train_step(x: torch.Tensor) -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    before = model[0].weight.detach().clone()
    compiled = []
    for step in range(12):
        model[0].weight.requires_grad_(step % 2 == 0)  # one gradient or two
        train_step(torch.ones(3, 4))
        compiled.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
    assert (model[0].weight != before).any()
    assert compiled[1:] == compiled[1:2] * 11


@every(lambda entry: entry.any_shape and entry in one_of_each_class() and not entry.sums)  # their order is memory's
def test_a_model_in_channels_last(entry: Entry) -> None:
    model = small_model()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer, other = entry.build(model.parameters()), entry.build(last.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for p, q in zip(model.parameters(), last.parameters(), strict=True):
            q.grad = p.grad.to(memory_format=torch.channels_last) if p.dim() == 4 else p.grad.clone()
        optimizer.step()
        other.step()
    assert_same_bits(optimizer, other)


@every_class_of_any_shape
def test_a_model_learns(entry: Entry) -> None:
    model = small_model()
    optimizer = entry.build(model.parameters())
    first = loss_of(model, 0).item()
    sign = -1.0 if entry.arguments.get("maximize") else 1.0
    for _ in range(30):
        optimizer.zero_grad()
        (sign * loss_of(model, 0)).backward()
        optimizer.step()
    assert loss_of(model, 0).item() < 0.5 * first


@every_class_of_any_shape
def test_a_model_cast_to_bfloat16_goes_on_learning(entry: Entry) -> None:
    model = small_model()
    optimizer = entry.build(model.parameters(), rounding="kahan")
    loss_of(model, 0).backward()
    optimizer.step()
    model.bfloat16()  # replaces the parameters' memory under the optimizer
    for p in model.parameters():
        p.grad = p.grad.bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
