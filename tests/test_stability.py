"""Densities, batch sharpness and the stability report, against theory on problems small enough to solve."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep import optim
from ferrostep.curvature import (
    HessianProduct,
    LinearOperator,
    batch_sharpness,
    hvp_operator,
    spectral_density,
    stability_report,
)
from ferrostep.curvature.dynamics import averaged, heavy_ball

SAMPLES = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
SHARPNESS = 1.7675918793


def weights(*values: float) -> Parameter:
    return Parameter(torch.tensor(values, dtype=torch.float64))


def squares(w: Tensor) -> Callable[[], Tensor]:
    return lambda: ((SAMPLES @ w) ** 2).mean() / 2


def radius(lr: float) -> float:
    """Of the mean square dynamics of SGD with batches of one sample: stable up to 1."""
    each = [np.outer(x, x) for x in SAMPLES.numpy()]
    mean, eye = sum(each) / 3, np.eye(2)
    noise = sum(np.kron(h, h) for h in each) / 3 - np.kron(mean, mean)
    matrix = np.kron(eye - lr * mean, eye - lr * mean) + lr**2 * noise
    return float(abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.smoke
def test_thresholds_on_a_problem_that_is_solved() -> None:
    w = weights(1.0, 1.0)
    report = stability_report(squares(w), [w], 0.3, batch_size=1, probes=200)
    sharpness, trace = report.rows["sharpness"], report.rows["trace"]
    assert sharpness.value == pytest.approx(SHARPNESS, rel=1e-9)
    assert 2 / sharpness.value == pytest.approx(1.1314829082, rel=1e-9)  # the limit of gradient descent
    assert sharpness.ratio == pytest.approx(0.3 * SHARPNESS / 2)
    assert abs(trace.value - 7 / 3) < 4 * report.trace.standard_error and trace.threshold == pytest.approx(2 / 0.3)
    exact = math.hypot(0.5657414540, SHARPNESS)
    assert abs(report.frobenius.value - exact) < 4 * report.frobenius.standard_error
    assert report.products == 1 + 200 + 2
    # Both bounds are necessary: at the true limit, below, neither is exceeded.
    assert (radius(0.3), radius(0.5)) == (pytest.approx(0.7080617292), pytest.approx(0.8027762507))
    assert radius(0.576039492189) == pytest.approx(1.0, abs=1e-9)
    assert 0.576039492189 * SHARPNESS / 2 < 1 and 0.576039492189 * 7 / 3 / 2 < 1


def test_batch_sharpness_has_both_means() -> None:
    w = weights(1.0, 1.0)
    found = batch_sharpness(lambda x: (x @ w) ** 2 / 2, [w], SAMPLES)
    assert found == (pytest.approx(7 / 3), pytest.approx(3.24))
    one = batch_sharpness(squares(w), [w])
    gradient = SAMPLES.T @ SAMPLES @ w.detach() / 3
    assert (
        one.mean_of_ratios
        == one.ratio_of_means
        == pytest.approx(float((SAMPLES @ gradient).square().mean() / gradient.square().sum()))
    )
    assert math.isnan(batch_sharpness(lambda: (w * 0).square().sum(), [w]).mean_of_ratios)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), heavy_ball(0.9)),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5), 2 * heavy_ball(0.9)),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True), heavy_ball(0.9, nesterov=True)),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.9), averaged(0.9)),
    ],
)
def test_limits_are_where_optimizers_part_from_a_minimum(make: Callable[[Any], Any], limit: float) -> None:
    """On a quadratic whose curvature is a little below the limit, and a little above."""
    for factor, stays in ((0.98, True), (1.02, False)):
        p = weights(1.0)
        optimizer, curvature = make([p]), factor * limit / 0.1
        for _ in range(600):
            p.grad = curvature * p.detach()
            optimizer.step()
        assert (abs(p.item()) < 1) is stays
        report = stability_report(lambda p=p, h=curvature: h / 2 * (p**2).sum(), [p], 0.1, optimizer=optimizer)
        assert report.rows["sharpness"].ratio == pytest.approx(factor)


def test_adams_limit() -> None:
    """Where the companion matrix of averaged momentum leaves the unit circle."""

    def leaves(h: float) -> bool:
        return bool(abs(np.linalg.eigvals(np.array([[1 - 0.1 * h, -0.9], [0.1 * h, 0.9]]))).max() > 1 + 1e-12)

    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if leaves(middle) else (middle, high)
    assert low == pytest.approx(38) == averaged(0.9)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_preconditioners_are_those_of_the_step(name: str) -> None:
    """Torch's classes and ours have the same, of the states that they keep."""
    lr = 0.1
    classes = [getattr(torch.optim, name), getattr(optim, name, None)]
    found = []
    for cls in filter(None, classes):
        w = weights(1.0, 1.0)
        optimizer = cls([w], lr=lr)
        for _ in range(3):
            optimizer.zero_grad()
            squares(w)().backward()
            optimizer.step()
        report = stability_report(squares(w), [w], lr, optimizer=optimizer)
        d = report.dynamics.precond[0].numpy()
        h = SAMPLES.T.numpy() @ SAMPLES.numpy() / 3
        top = np.linalg.eigvalsh(h / np.sqrt(np.outer(d, d)))[-1]
        assert report.rows["sharpness"].value == pytest.approx(top, rel=1e-9)
        assert report.rows["sharpness"].standing == "comparison"
        found.append(report)
    if name == "Adam":
        state = optimizer.state[w]
        expected = (state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8
        assert report.dynamics.precond[0].tolist() == pytest.approx(expected.tolist())
        assert report.rows["sharpness"].threshold == pytest.approx(380)
    assert all(each.rows["sharpness"].value == pytest.approx(report.rows["sharpness"].value) for each in found)


def test_learning_rates_of_groups_count_by_their_ratio() -> None:
    one, two = weights(1.0), weights(1.0)
    optimizer = optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.4}])
    report = stability_report(lambda: (one**2 + two**2).sum() / 2, [one, two], 0.1, optimizer=optimizer)
    assert report.rows["sharpness"].ratio == pytest.approx(0.4 / 2)
    assert report.rows["sharpness"].standing == "bound"


def test_the_learning_rate_is_the_optimizers_or_another_that_is_told() -> None:
    w = weights(1.0, 1.0)
    optimizer = optim.SGD([w], lr=0.3)
    own, same, other = (stability_report(squares(w), [w], lr, optimizer=optimizer) for lr in (None, 0.3, 0.6))
    assert own.lr == same.lr == 0.3 and own.warnings == same.warnings
    assert other.rows["sharpness"].ratio == pytest.approx(2 * own.rows["sharpness"].ratio)
    assert other.warnings == ["the optimizer's first group has lr 0.3 now: this is about 0.6", *own.warnings]


def test_large_gradients_do_not_overflow() -> None:
    w = Parameter(torch.ones(3))
    found = batch_sharpness(lambda x: x * (w**2).sum() / 2, [w], [torch.tensor(1e25), torch.tensor(3e25)])
    assert found == (pytest.approx(2e25, rel=1e-5), pytest.approx(2.8e25, rel=1e-5))


def test_the_cost_is_kept_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))
    x, y = torch.randn(10, 6), torch.arange(10) % 3
    calls = []
    product = HessianProduct.__call__

    def counted(*arguments: Any, **options: Any) -> list[Tensor]:
        calls.append(1)
        return product(*arguments, **options)

    def live() -> int:
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    monkeypatch.setattr(HessianProduct, "__call__", counted)
    state, losses, before = torch.get_rng_state(), [], live()

    def loss() -> Tensor:
        losses.append(1)
        return F.cross_entropy(model(x), y)

    for _ in range(2):
        report = stability_report(loss, model.parameters(), 0.1, batch_size=10, probes=7, lanczos_steps=12)
    assert len(calls) == 2 * report.products == 2 * (1 + 7 + 12) and len(losses) == 2
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(p.grad is None for p in model.parameters())
    again = hvp_operator(loss, model.parameters())
    for _ in range(100):
        again(torch.ones(again.size))
    del again, report
    assert live() <= before + 1
    text = str(stability_report(loss, model.parameters(), 0.1, batch_size=10))
    assert "sharpness" in text and "eval mode" not in text
    assert "warning: batch norm is in eval mode" in str(stability_report(loss, model.eval().parameters(), 0.1))


def test_a_density_is_that_of_the_eigenvalues() -> None:
    values = torch.cat([torch.linspace(-1.0, 1.0, 190), torch.full((10,), 8.0)]).double()
    found = spectral_density(LinearOperator(lambda v: values * v, 200, dtype=torch.float64), 40, probes=4)
    step = float(found.grid[1] - found.grid[0])
    assert float(found.density.sum()) * step == pytest.approx(1, abs=1e-3)
    far = found.grid > 4
    assert float(found.density[far].sum()) * step == pytest.approx(0.05, abs=1e-3)
    for degree in (1, 2):
        assert float((found.weights * found.nodes**degree).sum()) == pytest.approx(float((values**degree).mean()))
    pytest.importorskip("matplotlib")
    (line,) = found.plot().lines
    assert len(line.get_xdata()) == 1000


def test_a_report_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    w = weights(1.0, 1.0)
    axes = stability_report(squares(w), [w], 0.3, batch_size=2).plot()
    assert [bar.get_fill() for bar in axes.patches] == [False, False, False, True]


P = weights(1.0, 1.0)
BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "lr": (ValueError, "^Invalid lr: 0", {"lr": 0.0}),
    "no lr": (TypeError, "^lr is a NoneType", {"lr": None}),
    "batch size": (ValueError, "^Invalid batch_size: 0", {"batch_size": 0}),
    "momentum": (ValueError, "^Invalid momentum: 1", {"momentum": 1.0}),
    "steps": (ValueError, "^Invalid lanczos_steps: 0", {"lanczos_steps": 0}),
    "probes": (ValueError, "^Invalid probes: 0", {"probes": 0}),
    "both": (ValueError, "^momentum is 0.9 beside", {"momentum": 0.9, "optimizer": torch.optim.SGD([P], 0.1)}),
    "no optimizer": (TypeError, "^optimizer is a str", {"optimizer": "adam"}),
    "Lion": (TypeError, "^optimizer is a Lion, expected one with", {"optimizer": optim.Lion([P])}),
    "others": (ValueError, "^parameter 0 is not the", {"optimizer": optim.SGD([weights(1.0)])}),
    "no state": (ValueError, "^parameter 0 has no 'exp_avg_sq'", {"optimizer": optim.AdamW([P])}),
    "NaN": (ValueError, "not finite", {"loss_fn": lambda: (P**3).sum() * math.nan}),
    "16 bits": (ValueError, "^parameter 0 has dtype", {"params": [P.detach().bfloat16().requires_grad_()]}),
}


@pytest.mark.parametrize(("error", "message", "changes"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        stability_report(**{"loss_fn": squares(P), "params": [P], "lr": 0.1, **changes})
    assert P.grad is None
