"""Schedules: linear decay and refinement against closed forms and peers, schedulers against torch's protocol."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ferrostep import optim
from ferrostep.schedules import (
    GradNormRecorder,
    LinearDecay,
    LinearDecayLR,
    RefinedLR,
    RefinedSchedule,
    RegimeAdaptation,
    ScheduleLR,
    refine_schedule,
    scale_lr_for_batch,
)
from ferrostep.schedules.refined import median_filtered

NORMS = (8.0, 4.0, 9.0, 2.0, 2.0, 1.0, 5.0, 1.0, 1.0, 2.0, 1.0, 1.0)


def values(schedule: Any, steps: int | None = None) -> list[float]:
    return [schedule(step) for step in range(steps or schedule.total_steps)]


def optimizer(lr: Any = 0.5) -> optim.SGD:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    p.grad, q.grad = torch.ones(2), torch.ones(3)
    return optim.SGD([{"params": [p]}, {"params": [q], "lr": 0.1}], lr=lr)


def rates(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_linear_decay_is_that_of_torch() -> None:
    ours, theirs = optimizer(), optimizer()
    peer = lr_scheduler.LinearLR(theirs, 1.0, 1e-300, total_iters=7)  # it takes no 0 as factors
    np.testing.assert_allclose(rates(LinearDecayLR(ours, 7), 7), rates(peer, 7), rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"total_steps": 4}, (1, 0.75, 0.5, 0.25, 0.25, 0.25)),
        ({"total_steps": 5, "final": "zero"}, (1, 0.75, 0.5, 0.25, 0, 0)),
        ({"total_steps": 6, "warmup_steps": 2}, (0.5, 1, 1, 0.75, 0.5, 0.25, 0.25)),
        ({"total_steps": 5, "warmup_steps": 1, "power": 2}, (1, 1, 0.5625, 0.25, 0.0625)),
        ({"total_steps": 3, "power": 0}, (1, 1, 1)),
        ({"total_steps": 1, "final": "zero"}, (1, 1)),
    ],
)
def test_factors_of_linear_decay(arguments: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert values(LinearDecay(**arguments), len(expected)) == list(expected)


def test_refinement_of_constant_norms_is_linear_decay_to_zero() -> None:
    for mode in ("adam", "sgd"):
        np.testing.assert_allclose(values(refine_schedule([3.0] * 5, mode=mode)), (1, 0.75, 0.5, 0.25, 0), atol=1e-15)


@pytest.mark.parametrize(
    ("norms", "smoothing", "mode", "expected"),
    [
        ((4, 2, 1, 1, 0.5), 0.0, "sgd", (0.078125, 0.3, 1, 0.8, 0)),
        ((4, 2, 1, 1, 0.5), 0.0, "adam", (0.375, 2 / 3, 1, 2 / 3, 0)),
        (
            NORMS,
            0.3,
            "sgd",
            (0.021337890625, 0.0212890625, 0.084375, 0.325, 0.3125, 0.3, 1, 0.8, 0.6, 0.4, 0.2, 0),
        ),
        (NORMS, 0.3, "adam", (0.196875, 0.19375, 0.375, 0.7, 0.65, 0.6, 1, 0.8, 0.6, 0.4, 0.2, 0)),
    ],
)
def test_refinement_of_the_papers_form(norms: Any, smoothing: float, mode: Any, expected: tuple[float, ...]) -> None:
    schedule = refine_schedule(norms, mode=mode, smoothing=smoothing)
    np.testing.assert_allclose(values(schedule), expected, rtol=1e-14)


@pytest.mark.parametrize("smoothing", [0.05, 0.3, 0.9])
def test_the_median_filter_is_that_of_scipy(smoothing: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    norms = np.random.default_rng(0).lognormal(size=57)
    width = 2 * (math.floor(smoothing * norms.size) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    expected = ndimage.median_filter(padded, size=width, mode="nearest")[: norms.size]
    np.testing.assert_array_equal(median_filtered(norms, smoothing), expected)


def test_scales_of_the_loss_do_not_count() -> None:
    norms = np.random.default_rng(1).lognormal(size=50)
    schedule = values(refine_schedule(norms))
    assert values(refine_schedule(norms * 2.0**-40)) == schedule
    np.testing.assert_allclose(values(refine_schedule(norms * 1e30)), schedule, rtol=1e-12)


def test_extreme_norms_give_finite_schedules() -> None:
    norms = [0.0, math.nan, 1.0, math.inf, 2.0, 0.0, 1e-30, 1.0]
    for smoothing in (0.0, 0.5):
        for mode in ("adam", "sgd"):
            schedule = refine_schedule(norms, mode=mode, smoothing=smoothing)
            assert schedule.dropped == 2 and np.isfinite(values(schedule)).all()
    assert refine_schedule(norms, smoothing=0.0).floored == 3
    assert values(refine_schedule([0.0] * 3)) == [1.0, 0.5, 0.0]


def test_another_horizon_is_the_same_shape() -> None:
    short, long = refine_schedule([1.0] * 5), refine_schedule([1.0] * 5, total_steps=9)
    assert values(long)[::2] == values(short) and long(100) == 0.0
    assert len(refine_schedule(np.ones(20_011)).factors) == 10_000


def schedulers(steps: int) -> dict[str, Any]:
    return {
        "linear": lambda opt, **more: LinearDecayLR(opt, steps, 2, **more),
        "refined": lambda opt, **more: RefinedLR(opt, refine_schedule(NORMS, steps), **more),
    }


@pytest.mark.parametrize("name", ["linear", "refined"])
def test_a_scheduler_resumes_at_any_step(name: str) -> None:
    make = schedulers(9)[name]
    expected = rates(make(optimizer()), 9)
    for at in range(9):
        first = optimizer()
        scheduler = make(first)
        rates(scheduler, at)
        file = io.BytesIO()
        torch.save({"optimizer": first.state_dict(), "scheduler": scheduler.state_dict()}, file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        second = optimizer()
        # A schedule of other numbers: the loaded ones count.
        resumed = LinearDecayLR(second, 50) if name == "linear" else RefinedLR(second, refine_schedule([1.0] * 3))
        resumed.load_state_dict(copy.deepcopy(saved["scheduler"]))
        second.load_state_dict(saved["optimizer"])
        assert rates(resumed, 9 - at) == expected[at:]


@pytest.mark.parametrize("name", ["linear", "refined"])
def test_a_scheduler_takes_last_epoch_and_pickles(name: str) -> None:
    make, opt = schedulers(9)[name], optimizer()
    expected = rates(make(optimizer()), 9)
    for group in opt.param_groups:
        group["initial_lr"] = group["lr"]
    resumed = make(opt, last_epoch=3)
    assert [group["lr"] for group in opt.param_groups] == expected[4]
    assert pickle.loads(pickle.dumps(resumed)).get_last_lr() == expected[4]
    with pytest.raises(KeyError, match="initial_lr"):
        make(optimizer(), last_epoch=3)


def test_schedulers_go_with_those_of_torch() -> None:
    opt = optimizer()
    warm = lr_scheduler.ConstantLR(opt, 0.5, total_iters=2)
    both = lr_scheduler.SequentialLR(opt, [warm, LinearDecayLR(opt, 4)], milestones=[2])
    assert [first for first, _ in rates(both, 6)] == [0.25, 0.25, 0.5, 0.375, 0.25, 0.125]
    opt, decay = optimizer(), LinearDecay(4)
    product = lr_scheduler.LambdaLR(opt, lambda step: decay(step) * 0.5)
    assert [first for first, _ in rates(product, 4)] == [0.25, 0.1875, 0.125, 0.0625]


def test_a_learning_rate_that_is_a_tensor_stays_one() -> None:
    p = nn.Parameter(torch.zeros(2))
    lr = torch.tensor(0.5)
    opt = torch.optim.AdamW([p], lr=lr)
    scheduler = LinearDecayLR(opt, 4)
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] is lr and lr.item() == 0.375


def test_the_recorder_has_the_norms_of_all_gradients(tmp_path: Path) -> None:
    opt = optimizer()
    l1, l2, second = GradNormRecorder(opt), GradNormRecorder(opt, "l2"), GradNormRecorder(opt, every=2)
    for factor in (1.0, -2.0, math.inf):
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, factor)
        assert (l1.record(), l2.record()) == (5 * abs(factor), pytest.approx(abs(factor) * 5**0.5))
        second.record()
    assert l1.norms == [5.0, 10.0, math.inf] and second.norms == [5.0, math.inf]
    l1.save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["norms"] == l1.norms


def test_the_recorder_refuses_an_attached_optimizer() -> None:
    opt = optimizer()
    recorder = GradNormRecorder(opt)
    with opt.attach(), pytest.raises(RuntimeError, match="needs all gradients"):
        recorder.record()


def test_the_recorder_takes_complex_sparse_and_missing_gradients() -> None:
    x, y, z = (nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.complex64, torch.float32, torch.bfloat16))
    x.grad, y.grad = torch.tensor([3 + 4j, 0]), torch.tensor([2.0, 0.0]).to_sparse()
    assert GradNormRecorder(torch.optim.SGD([x, y, z], lr=1.0)).record() == 7.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.1, 256, 1024, "linear"), 0.4),
        ((0.1, 256, 1024, "linear", 1e-310), 0.1),
        ((1e-3, 256, 1024), 2e-3),
        ((1.0, 1000, 250, "surge", 1000.0), 0.8),
        ((1.0, 1000, 1000, "surge", 1000.0), 1.0),
        ((1.0, 1000, 4000, "surge", 1000.0), 0.8),
        ((1.0, 100, 300, "linear", 100.0), 1.5),
        ((1.0, 100, 300, "sqrt", 100.0), 1.5**0.5),
    ],
)
def test_learning_rates_for_other_batches(arguments: tuple[Any, ...], expected: float) -> None:
    assert scale_lr_for_batch(*arguments) == pytest.approx(expected, rel=1e-15)


def test_a_regime_keeps_the_number_of_updates() -> None:
    recipe = [0.1 * 0.1 ** sum(epoch >= boundary for boundary in (81, 122)) for epoch in range(164)]
    adapted = RegimeAdaptation(recipe.__getitem__, base_batch=128, batch=2048, epochs=164)
    assert (adapted.stretch, adapted.total_steps, adapted(0)) == (16, 164 * 16, pytest.approx(0.4))
    found = values(adapted)
    assert [epoch for epoch in range(1, 164 * 16) if found[epoch] != found[epoch - 1]] == [1296, 1952]
    assert [rate / 4 for rate in found[::16]] == pytest.approx(recipe)
    opt = optimizer()
    scheduler = ScheduleLR(opt, RegimeAdaptation(LinearDecay(3), 2, 4, "linear"))
    assert [first for first, _ in rates(scheduler, 6)] == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])
    resumed = ScheduleLR(optimizer(), RegimeAdaptation(LinearDecay(3), 2, 6))
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert resumed.schedule(4) == scheduler.schedule(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RegimeAdaptation(0.1, 2, 4), TypeError, "scheduler_fn"),
        (lambda: RegimeAdaptation(LinearDecay(3), 0, 4), ValueError, "base_batch"),
        (lambda: RegimeAdaptation(LinearDecay(3), 2, 4, "cube"), ValueError, "lr_rule"),
        (lambda: LinearDecay(0), ValueError, "total_steps"),
        (lambda: LinearDecay(2.5), TypeError, "total_steps"),
        (lambda: LinearDecay(3, 3), ValueError, "warmup_steps"),
        (lambda: LinearDecay(3, power=math.nan), ValueError, "power"),
        (lambda: LinearDecay(3, final="0"), ValueError, "final"),
        (lambda: ScheduleLR(optimizer(), lambda step: 1.0), TypeError, "schedule"),
        (lambda: LinearDecayLR(nn.Linear(2, 2), 3), TypeError, "not an Optimizer"),
        (lambda: refine_schedule([1.0, math.nan]), ValueError, "norms has 1 finite numbers"),
        (lambda: refine_schedule([[1.0, 2.0]]), ValueError, "norms has shape"),
        (lambda: refine_schedule([1.0, -2.0]), ValueError, "norms"),
        (lambda: refine_schedule(["a", "b"]), TypeError, "norms is a list, expected a sequence of numbers"),
        (lambda: refine_schedule(torch.ones(3, requires_grad=True)), TypeError, "norms is a Tensor"),
        (lambda: refine_schedule([1.0, 0.0], floor=0.0), ValueError, "floor"),
        (lambda: refine_schedule([1e-200, 1.0, 1.0], mode="sgd", floor=0.0), ValueError, "Invalid floor: 0.0"),
        (lambda: refine_schedule([1.0, 10.0, 100.0], floor=1e308), ValueError, "Invalid floor"),
        (lambda: refine_schedule([1.0, 2.0], smoothing=1.0), ValueError, "smoothing"),
        (lambda: refine_schedule([1.0, 2.0], mode="lion"), ValueError, "mode"),
        (lambda: refine_schedule([1.0, 2.0], total_steps=0), ValueError, "total_steps"),
        (lambda: RefinedSchedule([1.0], 3), ValueError, "factors"),
        (lambda: RefinedSchedule([1.0, math.nan], 3), ValueError, r"factors\[1\]"),
        (lambda: RefinedSchedule([[1.0], [2.0]], 3), ValueError, "factors has shape"),
        (lambda: GradNormRecorder(nn.Linear(2, 2)), TypeError, "optimizer"),
        (lambda: GradNormRecorder(optimizer(), "l3"), ValueError, "norm"),
        (lambda: GradNormRecorder(optimizer(), every=0), ValueError, "every"),
        (lambda: scale_lr_for_batch(0.1, 0, 4), ValueError, "old_batch"),
        (lambda: scale_lr_for_batch(0.1, 4, 4.5), TypeError, "new_batch"),
        (lambda: scale_lr_for_batch(0.1, 4, 8, "surge"), ValueError, "critical_batch"),
        (lambda: scale_lr_for_batch(0.1, 4, 8, "cube"), ValueError, "rule"),
        (lambda: scale_lr_for_batch(0.1, 4, 8, critical_batch=0.0), ValueError, "critical_batch"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_state_of_another_scheduler_is_refused_and_nothing_changes() -> None:
    opt = optimizer()
    scheduler = LinearDecayLR(opt, 4)
    before = copy.deepcopy(scheduler.state_dict())
    for other in (RefinedLR(optimizer(), refine_schedule(NORMS)), lr_scheduler.LinearLR(optimizer())):
        with pytest.raises(KeyError, match="schedule"):
            scheduler.load_state_dict(other.state_dict())
        assert scheduler.state_dict() == before


def test_a_schedule_of_two_schedulers_stays_as_it_is_when_one_loads() -> None:
    decay = LinearDecay(4)
    one, other = ScheduleLR(optimizer(), decay), ScheduleLR(optimizer(), decay)
    one.load_state_dict(LinearDecayLR(optimizer(), 9).state_dict())
    assert (one.schedule.total_steps, other.schedule.total_steps) == (9, 4)


def test_a_schedule_says_what_it_is() -> None:
    assert repr(LinearDecay(4)) == "LinearDecay(total_steps=4, warmup_steps=0, power=1.0, final='1/T')"
    refined = repr(refine_schedule([1.0] * 5))
    assert refined == "RefinedSchedule(factors=[5 numbers], total_steps=5, floored=0, dropped=0)"


def test_a_schedule_draws_itself() -> None:
    pytest.importorskip("matplotlib")
    axes = LinearDecay(4).plot()
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 0.75, 0.5, 0.25])
    refine_schedule(NORMS).plot(axes)
    assert len(axes.lines) == 2
