"""SpectralLR and what it is made of: closed forms, guards, torch's protocol."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ferrostep import optim
from ferrostep.schedules import BatchSpectrum, SpectralLR, batch_spectrum, heavy_ball

CURVATURES = (10.0, 3.0, 0.1)


def quadratic(curvatures: tuple[float, ...] = CURVATURES) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    w = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
    h = torch.tensor(curvatures, dtype=torch.float64)
    return w, lambda: (h * w**2).sum() / 2


def steps(optimizer: torch.optim.Optimizer, scheduler: SpectralLR, loss_fn: Callable[[], Tensor], count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss_fn().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()


def numbers(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


def test_the_heavy_ball_shrinks_both_ends_alike() -> None:
    best = heavy_ball(10.0, 0.1)
    assert best == pytest.approx((0.330578512, 0.669421488), rel=1e-8)
    for curvature in (10.0, 0.1):
        matrix = torch.tensor([[1 + best.momentum - best.lr * curvature, -best.momentum], [1.0, 0.0]])
        assert torch.linalg.eigvals(matrix.double()).abs().max().item() == pytest.approx(0.818181818, rel=1e-3)
    assert heavy_ball(4.0, 4.0) == (0.25, 0.0)
    limited = heavy_ball(1e6, 1.0, max_momentum=0.81)
    assert limited == pytest.approx((1.9**2 / 1e6, 0.81))


def test_batches_of_two_sizes_tell_the_spectrum() -> None:
    found = batch_spectrum((32, 16.25), (128, 11.5625))
    assert found == (10.0, 2000.0)
    assert [found.top_at(batch) for batch in (32, 128, 512)] == [16.25, 11.5625, 10.390625]
    assert BatchSpectrum(1.0, 2000.0).top_at(5) == 40.0  # lost in the noise
    assert batch_spectrum((32, 10.0), (128, 10.5)).noise == 0.0


def test_rates_come_from_the_spectrum_and_serve() -> None:
    w, loss_fn = quadratic()
    optimizer = optim.SGD([w], lr=0.2, momentum=0.5)
    scheduler = SpectralLR(optimizer, loss_fn, interval=2, safety=1.0)
    steps(optimizer, scheduler, loss_fn, 1)
    assert numbers(optimizer) == [(0.2, 0.5)] and scheduler.measured is None
    steps(optimizer, scheduler, loss_fn, 1)
    assert numbers(optimizer) == [pytest.approx((0.330578512, 0.669421488), rel=1e-6)]
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    assert scheduler.measured == pytest.approx((10.0, 0.1), rel=1e-6)
    scheduler.interval = 100
    steps(optimizer, scheduler, loss_fn, 60)
    assert loss_fn().item() < 1e-5


def test_of_the_groups_own_momentum_follows_its_rate() -> None:
    w, loss_fn = quadratic()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.25)
    scheduler = SpectralLR(optimizer, loss_fn, interval=1, safety=0.5, set_momentum=False)
    steps(optimizer, scheduler, loss_fn, 1)
    assert numbers(optimizer) == [pytest.approx((0.5 * 1.5**2 / 10, 0.25))]


def test_guards() -> None:
    w, loss_fn = quadratic((1e-3, -5.0))  # below zero: ignored
    groups: list[dict[str, Any]] = [{"params": [w]}, {"params": [nn.Parameter(torch.ones(1))], "lr": 1.0}]
    optimizer = optim.SGD(groups, lr=1e-3, momentum=0.0)
    scheduler = SpectralLR(optimizer, loss_fn, interval=1, max_momentum=0.9, warmup_steps=2)
    scheduler.optimizer.step()
    scheduler.step()
    assert [lr for lr, _ in numbers(optimizer)] == [1e-3, 1.0]  # in the warm-up
    scheduler.step()
    assert [lr for lr, _ in numbers(optimizer)] == [2e-3, 2.0]  # by 2 at most, on the way to the same
    assert all(momentum < 1e-20 for _, momentum in numbers(optimizer))  # one positive eigenvalue only

    top = scheduler._log_top
    scheduler.loss_fn = lambda: 4 * loss_fn()
    scheduler.step()
    assert top is not None and scheduler._log_top == pytest.approx(top + math.log(4) / 2)

    before = numbers(optimizer)
    scheduler.loss_fn = lambda: -(w**2).sum()
    scheduler.step()
    assert numbers(optimizer) == before


def test_momentum_is_bounded() -> None:
    w, loss_fn = quadratic((1e4, 2.0))
    optimizer = optim.SGD([w], lr=4e-4, momentum=0.5)
    scheduler = SpectralLR(optimizer, loss_fn, interval=1, max_momentum=0.81, safety=1.0)
    steps(optimizer, scheduler, loss_fn, 1)
    assert numbers(optimizer) == [pytest.approx((1.9**2 / 1e4, 0.81))]


def test_it_resumes_at_any_step() -> None:
    (w, loss_fn), (again, other_fn) = quadratic(), quadratic()
    optimizer, other = optim.SGD([w], lr=0.2, momentum=0.5), optim.SGD([again], lr=0.2, momentum=0.5)
    scheduler, resumed = SpectralLR(optimizer, loss_fn, interval=2), SpectralLR(other, other_fn, interval=9)
    steps(optimizer, scheduler, loss_fn, 3)
    file = io.BytesIO()
    saved = {"w": w.detach(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(saved, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again.data.copy_(saved["w"])
    other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    steps(optimizer, scheduler, loss_fn, 3)
    steps(other, resumed, other_fn, 3)
    assert numbers(optimizer) == numbers(other) and torch.equal(w, again)
    assert resumed.measured == scheduler.measured and resumed.loss_fn is other_fn


def test_gradients_and_random_numbers_are_left_alone() -> None:
    w, loss_fn = quadratic()
    w.grad = torch.ones_like(w)
    optimizer = optim.SGD([w], lr=0.2, momentum=0.5)
    scheduler = SpectralLR(optimizer, lambda: loss_fn() + 0 * torch.rand(()), interval=1)
    optimizer.step()
    weights, before = w.detach().clone(), torch.get_rng_state()
    scheduler.step()
    assert torch.equal(torch.get_rng_state(), before) and w.grad.tolist() == [1.0] * 3
    assert torch.equal(w, weights)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    w, loss_fn = quadratic()
    optimizer = optim.SGD([w], lr=0.2, momentum=0.5)
    scheduler = SpectralLR(optimizer, lambda: loss_fn() * math.nan, interval=1)
    optimizer.step()
    state = scheduler.state_dict()
    with pytest.raises(ValueError, match="not finite"):
        scheduler.step()
    assert scheduler.state_dict() == state and numbers(optimizer) == [(0.2, 0.5)]


W, LOSS = quadratic()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SpectralLR(optim.AdamW([W]), LOSS), ValueError, "Invalid optimizer: AdamW; expected SGD"),
        (lambda: SpectralLR(optim.RMSprop([W], momentum=0.9), LOSS), ValueError, "Invalid optimizer: RMSprop"),
        (lambda: SpectralLR(optim.SGD([W.bfloat16().detach()]), LOSS), ValueError, "params is empty"),
        (
            lambda: SpectralLR(optim.SGD([nn.Parameter(torch.ones(2).bfloat16())]), LOSS),
            ValueError,
            "parameter 0 has dtype torch.bfloat16, expected float32 or float64",
        ),
        (lambda: SpectralLR([W], LOSS), TypeError, "list is not an Optimizer"),  # type: ignore[arg-type]
        (lambda: SpectralLR(optim.SGD([W]), LOSS()), TypeError, "loss_fn is a Tensor, expected a function"),  # type: ignore[arg-type]
        (
            lambda: SpectralLR(torch.optim.SGD([W], momentum=0.9, nesterov=True), LOSS),
            ValueError,
            "Invalid nesterov of param group 0: True; expected none",
        ),
        (lambda: SpectralLR(optim.SGD([W]), LOSS, interval=0), ValueError, "Invalid interval: 0"),
        (lambda: SpectralLR(optim.SGD([W]), LOSS, steps=0), ValueError, "Invalid steps: 0"),
        (lambda: SpectralLR(optim.SGD([W]), LOSS, set_momentum="no"), TypeError, "set_momentum is a str"),
        (lambda: SpectralLR(optim.SGD([W]), LOSS, safety=0.0), ValueError, "Invalid safety: 0.0; expected more than 0"),
        (lambda: SpectralLR(optim.SGD([W]), LOSS, max_momentum=1.0), ValueError, "Invalid max_momentum: 1.0"),
        (lambda: heavy_ball(1.0, 2.0), ValueError, "Invalid smallest: 2.0; expected at most largest=1.0"),
        (lambda: heavy_ball(1.0, 0.0), ValueError, "Invalid smallest: 0.0; expected more than 0"),
        (lambda: batch_spectrum((32, 1.0), (32, 1.0)), ValueError, r"Invalid second\[0\]: 32; expected another batch"),
        (lambda: batch_spectrum((32, 10.0), (64, 1.0)), ValueError, "fit no positive one of all data"),
        (lambda: batch_spectrum(32, (64, 1.0)), TypeError, "first is a int, expected a pair"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
