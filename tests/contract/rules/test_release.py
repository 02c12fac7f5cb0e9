"""Steps within the backward pass: those of whole steps to the bit, and what cannot be taken so is refused."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep.optim import FRUGAL, SAM, SGD, AdaGradNorm, AdamW, Lion, SophiaG, SophiaH, release
from ferrostep.schedules import GradNormRecorder
from tests.contract.rules.registry import Entry, every, every_class
from tests.contract.snapshot import Snapshot
from tests.contract.training import assert_same_bits, copies, normal, parameters


def can_be_attached(entry: Entry) -> bool:
    optimizer = entry.build(parameters(entry.shapes[:1]))
    return optimizer._needs_all_gradients(optimizer.param_groups[0]) is None  # type: ignore[attr-defined]


every_attachable = every(can_be_attached)
every_attachable_class = pytest.mark.parametrize(
    "entry",
    [mark for mark in every_class.args[1] if can_be_attached(mark)],
    ids=lambda entry: entry.name,
)
every_other = every(lambda entry: not can_be_attached(entry))


@pytest.fixture(params=[1, 300, 1 << 30], ids=["one by one", "some at once", "all at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes of gradients are worth a step."""
    monkeypatch.setattr(release, "BYTES_AT_ONCE", request.param)
    return int(request.param)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "BYTES_AT_ONCE", 1)


def backward(params: Sequence[Tensor], step: int) -> None:
    """A backward pass that ends in the gradients of a step."""
    grads = [normal(p.shape, p.dtype, 1, step, i) for i, p in enumerate(params)]
    torch.autograd.backward(list(params), grads)


def train(optimizer: Any, params: Sequence[Tensor], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        backward(params, step)
        optimizer.step()


@every_attachable
def test_steps_are_those_of_whole_steps(entry: Entry, at_once: int) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    attached, whole = entry.build(params), entry.build(others)
    with attached.attach():  # type: ignore[attr-defined]
        train(attached, params, 3)
        assert all(p.grad is None for p in params)
    train(whole, others, 3)
    assert_same_bits(attached, whole)


@every_attachable_class
@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "stochastic", "seed": 7},
        {"rounding": "kahan"},
        {"master_weights": "split"},
        {"backend": "reference"},
    ],
    ids=["stochastic", "kahan", "split", "reference"],
)
def test_options_make_no_difference(entry: Entry, options: dict[str, Any], one_by_one: None) -> None:
    params, others = (parameters(entry.shapes, torch.bfloat16) for _ in range(2))
    both = [entry.build([{"params": own[:2]}, {"params": own[2:], "lr": 1e-3}], **options) for own in (params, others)]
    with both[0].attach():  # type: ignore[attr-defined]
        train(both[0], params, 3)
    train(both[1], others, 3)
    assert_same_bits(*both)


def test_states_of_8_bits(one_by_one: None) -> None:
    params, others = parameters([(64, 80), (80,), (300, 20)]), parameters([(64, 80), (80,), (300, 20)])
    both = [AdamW(own, state_dtype="int8") for own in (params, others)]
    with both[0].attach():
        train(both[0], params, 3)
    train(both[1], others, 3)
    assert_same_bits(*both)
    assert both[0].state[params[0]]["exp_avg"].dtype == torch.uint8


@pytest.mark.smoke
def test_gradients_are_freed_while_the_backward_pass_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    size, most = 4 * 30 * 30, []
    monkeypatch.setattr(release, "BYTES_AT_ONCE", 2 * size)
    model = nn.Sequential(*(nn.Linear(30, 30, bias=False) for _ in range(10)))
    optimizer = AdamW(model.parameters())
    for p in model.parameters():  # before the optimizer's, so that it sees what there is at most
        p.register_post_accumulate_grad_hook(
            lambda _p: most.append(sum(q.grad.nbytes for q in model.parameters() if q.grad is not None))
        )
    with optimizer.attach():
        model(torch.ones(30)).sum().backward()
        assert max(most) == 2 * size
        optimizer.step()


def accumulated(model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()
    model(torch.ones(4)).sum().backward()
    model(torch.ones(4)).sum().backward()


def scaled(model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(4)).sum()).backward()
    scaler.step(optimizer)


def in_a_group(model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()
    optimizer.param_groups[0]["max_grad_norm"] = 1.0
    model(torch.ones(4)).sum().backward()


def twice(_model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()
    optimizer.attach()


def one_more(_model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()
    optimizer.add_param_group({"params": [Parameter(torch.ones(2))], "skip_nonfinite": True})


def attach(_model: nn.Module, optimizer: Any) -> None:
    optimizer.attach()


MISTAKES: dict[str, tuple[Callable[[Any], Any], Callable[[nn.Module, Any], None], str]] = {
    "max_grad_norm": (lambda p: AdamW(p, max_grad_norm=1.0), attach, "does not support max_grad_norm .group 0.: the"),
    "max_grad_norm later": (AdamW, in_a_group, "does not support max_grad_norm .group 0."),
    "skip_nonfinite": (lambda p: Lion(p, skip_nonfinite=True), attach, "does not support skip_nonfinite .group 0."),
    "skip_nonfinite of a new group": (Lion, one_more, "param group 1: attach.. does not support skip_nonfinite"),
    "differentiable": (lambda p: AdamW(p, differentiable=True), attach, "does not support differentiable"),
    "one sum": (AdaGradNorm, attach, "does not support AdaGradNorm .group 0.: its rule is to know a sum over"),
    "one sum of a group": (lambda p: AdaGradNorm(p, norm="group"), attach, "does not support AdaGradNorm"),
    "gradients for something else": (SophiaG, attach, "does not support SophiaG .group 0.: update_hessian takes"),
    "SAM": (lambda p: SAM(AdamW(p)), attach, "does not support SAM: a step takes the gradients of two backward"),
    "twice": (AdamW, twice, "attach.. was called twice"),
    "accumulation": (AdamW, accumulated, "parameter 1 in group 0 gets a second gradient before step"),
    "GradScaler": (AdamW, scaled, "does not support GradScaler: gradients have been used"),
}


@pytest.mark.parametrize(("make", "mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_needs_all_gradients_is_refused(
    make: Callable[[Any], Any], mistake: Callable[[nn.Module, Any], None], message: str
) -> None:
    model = nn.Linear(4, 2)
    optimizer = make(model.parameters())
    before = copies(optimizer)
    with pytest.raises(RuntimeError, match=message):
        mistake(model, optimizer)
    assert_same_bits(optimizer, before)


@every_other
def test_classes_that_cannot_say_why(entry: Entry) -> None:
    optimizer = entry.build(parameters(entry.shapes))
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=rf"attach\(\) does not support {entry.optimizer.__name__} \(group 0\): \w"):
        optimizer.attach()  # type: ignore[attr-defined]
    backward([p for group in optimizer.param_groups for p in group["params"]], 0)
    optimizer.zero_grad()
    before.assert_unchanged()


def test_sam_around_an_attached_optimizer_is_refused() -> None:
    p = Parameter(torch.ones(3))
    base = AdamW([p])
    optimizer = SAM(base)
    base.attach()
    with pytest.raises(RuntimeError, match="SAM: a step takes the gradients of two backward passes"):
        optimizer.step(lambda: p.sum().backward())
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("drop", [True, False], ids=["zero_grad", "step"])
def test_after_an_error_the_optimizer_goes_on(one_by_one: None, drop: bool) -> None:
    """Of five parameters, the third has a gradient that cannot be."""
    params, others = parameters([(3,)] * 5), parameters([(3,)] * 5)
    optimizer, whole = AdamW(params), AdamW(others)
    train(optimizer, params, 1)
    train(whole, others, 1)
    optimizer.zero_grad()
    optimizer.attach()
    kept = optimizer.state[params[2]]["exp_avg"]
    optimizer.state[params[2]]["exp_avg"] = torch.zeros(4)
    with pytest.raises(ValueError, match="exp_avg of parameter 2 in group 0 has shape"):
        backward(params, 1)
    stepped = [i for i, p in enumerate(params) if optimizer.state[p]["step"] == 2]
    assert [i for i, p in enumerate(params) if p.grad is not None] == [2]
    optimizer.state[params[2]]["exp_avg"] = kept
    if drop:
        optimizer.zero_grad()
    else:
        optimizer.step()
        stepped += [2]
    for i, p in enumerate(others):
        p.grad = normal(p.shape, p.dtype, 1, 1, i) if i in stepped else None
    whole.step()
    assert_same_bits(optimizer, whole)
    train(optimizer, params, 2, start=2)
    train(whole, others, 2, start=2)
    assert_same_bits(optimizer, whole)


def test_a_step_that_an_error_broke_is_counted_once(one_by_one: None) -> None:
    params = parameters([(3,)] * 3)
    optimizer = FRUGAL(params, update_gap=10)
    train(optimizer, params, 1)
    ones, recorder = [torch.ones(3)] * 3, GradNormRecorder(optimizer).attach()
    optimizer.zero_grad()
    optimizer.attach()
    state = optimizer.state[params[1]]
    kept, state["exp_avg"] = state["exp_avg"], torch.zeros(4)
    with pytest.raises(ValueError, match="exp_avg of parameter 1 in group 0 has shape"):
        torch.autograd.backward(params, ones)
    state["exp_avg"] = kept
    optimizer.step()
    assert optimizer.param_groups[0]["steps_left"] == 8 and recorder.norms == [6.0]  # the third gradient never came
    torch.autograd.backward(params, ones)  # and a backward pass begins a new one
    optimizer.step()
    assert optimizer.param_groups[0]["steps_left"] == 7 and recorder.norms == [6.0, 9.0]


def test_a_backward_pass_that_ends_early_is_dropped_by_zero_grad(one_by_one: None) -> None:
    p, q = parameters([(3,), (3,)])
    optimizer = AdamW([p, q], lr=0.1)
    optimizer.attach()

    def interrupt(_grad: Tensor) -> None:
        raise KeyboardInterrupt

    y = q * 1.0
    handle = y.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        (y + p).sum().backward()
    handle.remove()
    optimizer.zero_grad()
    before = q.detach().clone()
    (q + p).sum().backward()
    optimizer.step()
    assert not torch.equal(q, before)


def test_schedulers_hooks_and_closures_see_one_step(one_by_one: None) -> None:
    params, others = parameters([(3, 2), (4,)]), parameters([(3, 2), (4,)])
    attached, whole = AdamW(params, lr=0.1), AdamW(others, lr=0.1)
    seen: list[str] = []
    attached.register_step_pre_hook(lambda *_: seen.append("before"))
    attached.register_step_post_hook(lambda *_: seen.append("after"))
    attached.attach()
    for own, optimizer in ((params, attached), (others, whole)):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(3):

            def closure(optimizer: Any = optimizer, own: Any = own, step: int = step) -> float:
                optimizer.zero_grad()
                backward(own, step)
                return 1.0

            assert optimizer.step(closure) == 1.0
            scheduler.step()
    assert seen == ["before", "after"] * 3
    assert_same_bits(attached, whole)


def test_state_dicts_copies_and_new_groups(one_by_one: None) -> None:
    params, others = parameters([(3, 2), (4,)]), parameters([(3, 2), (4,)])
    attached, whole = AdamW(params[:1]), AdamW(others)
    attached.attach()
    attached.add_param_group({"params": params[1:]})
    train(attached, params, 2)
    train(whole, others, 2)
    assert copies(attached)["1.0.exp_avg"].equal(copies(whole)["0.1.exp_avg"])
    alike = copy.deepcopy(attached)
    backward([p for group in alike.param_groups for p in group["params"]], 2)
    assert all(p.grad is not None for group in alike.param_groups for p in group["params"])  # it is not attached
    attached.load_state_dict(alike.state_dict())
    train(attached, params, 1, start=2)
    alike.step()
    assert_same_bits(attached, alike)


def test_gradients_that_come_otherwise_are_used_once() -> None:
    p, q = parameters([(3,), (3,)])
    optimizer = AdamW([p, q])
    optimizer.attach()
    p.grad = torch.ones(3)
    q.sum().backward()
    optimizer.step()
    assert p.grad is None and q.grad is None
    assert [optimizer.state[x]["step"].item() for x in (p, q)] == [1.0, 1.0]
    with torch.no_grad():
        before = p.clone()
    optimizer.step()
    assert torch.equal(p, before)


def test_frozen_parameters_and_parameters_without_gradient() -> None:
    p, frozen, unused = parameters([(3,), (3,), (3,)])
    frozen.requires_grad_(False)
    optimizer = AdamW([p, frozen, unused])
    optimizer.attach()
    (p + frozen).sum().backward()
    optimizer.step()
    assert set(optimizer.state) == {p}


def test_detached_in_the_midst_the_rest_is_left_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "BYTES_AT_ONCE", 40)
    params, others = parameters([(4,)] * 5), parameters([(4,)] * 5)
    optimizer, whole = AdamW(params), AdamW(others)
    with optimizer.attach() as same:
        assert same is optimizer
        backward(params, 0)
        assert sum(p.grad is not None for p in params) == 2
    optimizer.step()
    backward(others, 0)
    whole.step()
    assert_same_bits(optimizer, whole)
    optimizer.detach()
    backward(params[:1], 1)
    assert params[0].grad is not None
    optimizer.attach()


def taken_apart(optimizer: Any) -> None:
    optimizer.detach()


def loaded(optimizer: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def exchanged(optimizer: Any) -> None:
    optimizer.detach()
    optimizer.attach()


def dropped(optimizer: Any) -> None:
    optimizer.detach()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("end", "steps", "norm"), [(taken_apart, 1, 36.0), (exchanged, 1, 36.0), (loaded, 2, 4.0), (dropped, 2, 4.0)]
)
def test_a_round_that_ends_otherwise(
    end: Callable[[Any], None], steps: int, norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detached, the rest belongs to the same step, attached again or not; loading and zero_grad begin a new one."""
    monkeypatch.setattr(release, "BYTES_AT_ONCE", 100)
    first, last = Parameter(torch.zeros(8, 4)), Parameter(torch.zeros(4, 1))
    optimizer = FRUGAL([first, last], update_gap=10)
    recorder = GradNormRecorder(optimizer).attach()
    optimizer.attach()
    first.sum().backward()
    late = GradNormRecorder(optimizer).attach()  # of the next step on
    assert optimizer.param_groups[0]["steps_left"] == 9 and first.grad is None
    end(optimizer)
    last.sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["steps_left"] == 10 - steps
    assert recorder.norms == [norm]
    assert late.norms == ([] if steps == 1 else [norm])
    optimizer.zero_grad()
    last.sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["steps_left"] == 9 - steps
    assert recorder.norms[1:] == late.norms[-1:] == [4.0]


def test_a_second_gradient_is_refused_after_attaching_again(one_by_one: None) -> None:
    p, q = parameters([(3,), (3,)])
    optimizer = AdamW([p, q])
    optimizer.attach()
    p.sum().backward()
    exchanged(optimizer)
    with pytest.raises(RuntimeError, match="parameter 0 in group 0 gets a second gradient"):
        p.sum().backward()
    q.sum().backward()
    optimizer.step()
    assert [optimizer.state[each]["step"] for each in (p, q)] == [1, 1]
    p.sum().backward()
    assert optimizer.state[p]["step"] == 2


def test_what_waits_before_a_round_is_added_up_after_attaching_again() -> None:
    """As what is there before ``attach``: nothing has been stepped that a second gradient would be too late for."""
    p, q = parameters([(3,), (3,)])
    before = [x.detach().clone() for x in (p, q)]
    optimizer = SGD([p, q], lr=1.0)
    optimizer.attach()
    p.sum().backward()
    exchanged(optimizer)
    (p + 2 * q).sum().backward()
    exchanged(optimizer)
    optimizer.step()
    assert all(x.grad is None and torch.equal(x, old - 2) for x, old in zip((p, q), before, strict=True))
    optimizer.step()
    assert torch.equal(p, before[0] - 2)


def test_the_hooks_do_not_keep_the_optimizer() -> None:
    p = Parameter(torch.ones(3))
    optimizer = AdamW([p])
    optimizer.attach()
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    p.sum().backward()
    assert p.grad is not None


def test_sophias_count_is_over_the_whole_step(one_by_one: None) -> None:
    params = parameters([(30,), (50,)])
    optimizer, whole = SophiaH(params), SophiaH(parameters([(30,), (50,)]))
    others = [p for group in whole.param_groups for p in group["params"]]
    for each, own in ((optimizer, params), (whole, others)):
        each.update_hessian([normal(p.shape, p.dtype, 3, i).abs() * 100 for i, p in enumerate(own)])
    optimizer.attach()
    for step in range(2):
        train(optimizer, params, 1, start=step)
        train(whole, others, 1, start=step)
        assert 0 < optimizer.unclipped_fraction() < 1
        assert optimizer.unclipped_fraction() == whole.unclipped_fraction()
