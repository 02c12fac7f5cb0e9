"""SophiaG and SophiaH: oracles of the spec, public implementations step by step, and what loops need."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep.curvature import gauss_newton_bartlett, sampled_cross_entropy
from ferrostep.optim import SophiaG, SophiaH

both = pytest.mark.parametrize("backend", ["rust", "reference"])


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, relative: float = 1e-12) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=relative, atol=relative)


@both
def test_g_with_the_authors_denominator(backend: str) -> None:
    p = Parameter(double(1, 1, -2, 0.5))
    optimizer = SophiaG([p], lr=0.1, betas=(0.9, 0.99), rho=0.05, weight_decay=0.2, backend=backend)
    p.grad = double(1, -0.5, 0.001, 0)
    optimizer.step(bs=4)
    close(p, double(0.88, 1.08, -2.06, 0.49))
    p.grad = double(1, 0.5, 0.1, 2)
    optimizer.update_hessian()
    close(optimizer.state[p]["hessian"], double(0.01, 0.0025, 0.0001, 0.04))
    close(optimizer.state[p]["exp_avg"], double(0.1, -0.05, 0.0001, 0))
    other = Parameter(p.detach().clone())
    second = SophiaG([other], lr=0.1, betas=(0.9, 0.99), rho=0.05, weight_decay=0.2, backend=backend)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    p.grad, other.grad = double(0.2, 0.4, -0.3, 0.1), double(0.2, 0.4, -0.3, 0.1)
    second.step(bs=5120)
    close(other, double(0.858103125, 1.05918125, -1.9188, 0.48010234375))
    optimizer.step(bs=4)
    close(p, double(0.7624, 1.1584, -1.9188, 0.3802))
    close(optimizer.state[p]["exp_avg"], double(0.11, -0.005, -0.02991, 0.01))
    optimizer.step(bs=5120)
    close(p, double(0.7425035625, 1.129685125, -1.780424, 0.372410453125))


@both
def test_h_on_a_diagonal_hessian(backend: str) -> None:
    a = double(1, 10, 100, -5)
    p = Parameter(torch.ones(4).double())
    optimizer = SophiaH([p], betas=(0.96, 0.99), backend=backend)
    for n in (1, 2):
        optimizer.estimate_hessian(0.5 * (a * p.square()).sum())
        optimizer.update_hessian()
        close(optimizer.state[p]["hessian"], a * (1 - 0.99**n))


@both
@pytest.mark.parametrize(
    ("level", "steps", "expected"),
    [
        (0.01, 1, (0.9994, 0.9994, 0.9994, 1.0006)),
        (0.01, 4, (0.9976, 0.9976, 0.9976, 1.0024)),
        (10.0, 1, (0.76,) * 3 + (1.6,)),
    ],
)
def test_h_in_the_parameterization_of_pytorch_optimizer(
    level: float, steps: int, expected: tuple[float, ...], backend: str
) -> None:
    a = double(1, 10, 100, -5)
    p = Parameter(torch.ones(4).double())
    optimizer = SophiaH(
        [p], lr=0.06 * level, gamma=level, eps=1e-12 * level, weight_decay=0.0, update_period=2, backend=backend
    )
    for _ in range(steps):
        loss = 0.5 * (a * p.square()).sum()
        if optimizer.should_update_hessian():
            optimizer.estimate_hessian(loss, retain_graph=True)
            optimizer.update_hessian()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(p, double(*expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_g_follows_the_authors_formula(dtype: torch.dtype) -> None:
    lr, (b1, b2), rho, wd, bs = 0.01, (0.965, 0.99), 0.04, 0.1, 32
    p = Parameter(gaussian(50, 3).to(dtype))
    q, m, h = p.detach().clone(), torch.zeros(50, 3, dtype=dtype), torch.zeros(50, 3, dtype=dtype)
    optimizer = SophiaG([p], lr, (b1, b2), rho, wd, bs=bs)
    for step in range(50):
        p.grad = gaussian(50, 3, seed=step + 1).to(dtype)
        optimizer.step()
        q *= 1 - lr * wd
        m = b1 * m + (1 - b1) * p.grad
        q -= lr * m.sign() * (m.abs() / (rho * bs * h + 1e-15)).clamp(max=1)
        if step % 10 == 9:
            p.grad = gaussian(50, 3, seed=1000 + step).to(dtype) * 0.1
            optimizer.update_hessian()
            h = b2 * h + (1 - b2) * p.grad.square()
    close(p, q, 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_h_agrees_with_pytorch_optimizer(dtype: torch.dtype) -> None:
    start, level = gaussian(40).to(dtype), 0.02
    p, q = Parameter(start.clone()), Parameter(start.clone())
    ours = SophiaH([p], lr=0.06 * level, gamma=level, eps=1e-12 * level, weight_decay=0.1 / level)
    theirs = pytorch_optimizer.SophiaH([q], lr=0.06, p=level, weight_decay=0.1, update_period=5)
    for step in range(30):
        p.grad = gaussian(40, seed=step + 1).to(dtype)
        q.grad = p.grad.clone()
        hessian = [gaussian(40, seed=500 + step).to(dtype).abs()]
        ours.step(hessian=hessian if step % 5 == 0 else None)
        theirs.step(hessian=hessian if step % 5 == 0 else None)
    close(p, q.detach(), 1e-6 if dtype == torch.float32 else 1e-12)


def test_both_public_checkpoints_load() -> None:
    p, q = Parameter(gaussian(6).float()), Parameter(gaussian(6).float())
    authors = {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": gaussian(6).float(), "hessian": gaussian(6).float().abs()}},
        "param_groups": [
            {"lr": 2e-4, "betas": (0.965, 0.99), "rho": 0.03, "weight_decay": 0.1, "maximize": False, "params": [0]}
            | {"capturable": False}
        ],
    }
    optimizer = SophiaG([p], bs=16)
    optimizer.load_state_dict(authors)
    assert optimizer.param_groups[0]["rho"] == 0.03 and optimizer.param_groups[0]["eps"] == 1e-15
    assert torch.equal(optimizer.state[p]["hessian"], authors["state"][0]["hessian"])

    theirs = pytorch_optimizer.SophiaH([q], weight_decay=0.05)
    q.grad = gaussian(6, seed=1).float()
    theirs.step(hessian=[gaussian(6, seed=2).float().abs()])
    ours = SophiaH([p])
    p.data.copy_(q.data)
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        p.grad = gaussian(6, seed=10 + step).float()
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    close(p, q.detach(), 1e-6)
    with pytest.raises(ValueError, match="cannot express"):
        ours.load_state_dict(pytorch_optimizer.SophiaH([q], weight_decay=0.1, fixed_decay=True).state_dict())


def test_rho_and_lr_may_be_exchanged() -> None:
    m, h = gaussian(200), gaussian(200, seed=1).abs()
    for rho in (0.01, 0.5, 3.0):
        clipped = (m / h.clamp(min=1e-12)).clamp(-rho, rho) * 0.1
        p = Parameter(torch.zeros(200).double())
        optimizer = SophiaH([p], lr=0.1 * rho, betas=(0.0, 0.0), gamma=rho, eps=1e-12 * rho, weight_decay=0.0)
        p.grad = m.clone()
        optimizer.step(hessian=[h])
        close(p, -clipped, 1e-14)


@both
@pytest.mark.parametrize("make", [lambda p, **k: SophiaG(p, bs=8, **k), lambda p, **k: SophiaH(p, **k)], ids="GH")
def test_without_curvature_the_step_is_a_sign(make: Any, backend: str) -> None:
    p = Parameter(torch.zeros(5).double())
    optimizer = make([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, backend=backend)
    p.grad = double(3, -1e-9, 0, 1e30, -2)
    optimizer.step()
    close(p, double(-0.1, 0.1, 0, -0.1, 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_element_moves_by_more_than_lr(dtype: torch.dtype) -> None:
    p = Parameter(torch.zeros(2000, dtype=dtype))
    largest = torch.finfo(dtype).max
    p.grad = (gaussian(2000) * torch.logspace(-45, math.log10(largest) - 1, 2000).double()).to(dtype)
    grad = p.grad.clone()
    optimizer = SophiaG([p], lr=0.5, bs=4, weight_decay=0.0)
    optimizer.update_hessian()
    optimizer.step()
    assert p.abs().max() <= 0.5 * (1 + 1e-7)
    assert p.isfinite().all()
    assert torch.equal(p.grad, grad)


@both
def test_float16_zeros_are_safe(backend: str) -> None:
    p = Parameter(torch.ones(4, dtype=torch.float16))
    p.grad = torch.zeros_like(p)
    optimizer = SophiaG([p], bs=4, weight_decay=0.0, backend=backend)
    optimizer.step()
    assert torch.equal(p, torch.ones_like(p))


@both
def test_estimates_that_are_not_finite_are_skipped_element_by_element(backend: str) -> None:
    for skip in (True, False):
        p = Parameter(torch.ones(3).double())
        optimizer = SophiaH([p], skip_nonfinite_hessian=skip, backend=backend)
        optimizer.update_hessian([double(1, 2, 3)])
        optimizer.update_hessian([double(1, float("nan"), float("inf"))])
        h = optimizer.state[p]["hessian"]
        assert h.isfinite().tolist() == [True, skip, skip]
        if skip:
            close(h, double(0.01 * 0.99 + 0.01, 0.02, 0.03))


def test_maximizing_is_minimizing_the_negative() -> None:
    a = double(2, -3, 0.5)
    up, down = Parameter(double(1, 1, 1)), Parameter(double(1, 1, 1))
    climbing, descending = SophiaH([up], maximize=True), SophiaH([down])
    for p, optimizer, sign in ((up, climbing, -1.0), (down, descending, 1.0)):
        for _ in range(4):
            loss = sign * 0.5 * (a * p.square()).sum()
            optimizer.estimate_hessian(loss, retain_graph=True)
            optimizer.update_hessian()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    close(up, down.detach())
    up, down = Parameter(double(1, 1, 1)), Parameter(double(1, 1, 1))
    for p, maximize in ((up, True), (down, False)):
        optimizer = SophiaG([p], bs=2, maximize=maximize)
        p.grad = -a if maximize else a
        optimizer.update_hessian()
        optimizer.step()
    close(up, down.detach())


class TestBatchSize:
    """SophiaG's `bs`."""

    @staticmethod
    def optimizer(**arguments: Any) -> tuple[Parameter, SophiaG]:
        p = Parameter(double(1, 2))
        p.grad = double(0.5, -1)
        return p, SophiaG([p], **arguments)

    def test_a_warning_once_if_it_is_unset(self) -> None:
        _, optimizer = self.optimizer()
        with pytest.warns(UserWarning, match=r"no bs given, taking 5120") as caught:
            optimizer.step()
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()

    def test_the_first_one_counts_and_others_are_weighted(self) -> None:
        p, optimizer = self.optimizer(betas=(0.9, 0.5))
        optimizer.update_hessian(bs=10)
        assert optimizer.param_groups[0]["bs"] == 10
        optimizer.update_hessian(bs=30)
        # bs * h is the average of the curvatures bs * g^2.
        expected = 0.5 * (0.5 * 10 * p.grad.square()) + 0.5 * 30 * p.grad.square()
        close(10 * optimizer.state[p]["hessian"], expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()

    def test_scaled_gradients(self) -> None:
        p, optimizer = self.optimizer()
        expected = 0.01 * p.grad.square()
        p.grad *= 1024
        optimizer.update_hessian(bs=4, grad_scale=1024.0)
        close(optimizer.state[p]["hessian"], expected)

    @pytest.mark.parametrize("bs", [0, -1, float("nan"), float("inf")])
    def test_impossible_ones(self, bs: float) -> None:
        _, optimizer = self.optimizer()
        with pytest.raises(ValueError, match="bs value"):
            optimizer.step(bs=bs)
        with pytest.raises(ValueError, match="bs value"):
            SophiaG([torch.ones(1)], bs=bs)
        if bs != 0:  # a batch without labels
            with pytest.raises(ValueError, match="bs value"):
                optimizer.update_hessian(bs=bs)
        for grad_scale in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="grad_scale value"):
                optimizer.update_hessian(bs=2, grad_scale=grad_scale)
        assert not optimizer.state


@both
def test_the_unclipped_fraction(backend: str) -> None:
    p = Parameter(double(0, 0, 0, 0))
    optimizer = SophiaH([p], betas=(0.0, 0.0), gamma=0.5, backend=backend)
    assert math.isnan(optimizer.unclipped_fraction())
    p.grad = double(1, 1, 1, 1)
    optimizer.step(hessian=[double(4, 1, -3, 2.1)])
    assert optimizer.unclipped_fraction() == 0.5


def test_micro_batches_accumulate_to_the_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = gaussian(16, 4), torch.arange(16) % 3
    whole, parts = (SophiaH(model.parameters(), generator=torch.Generator().manual_seed(5)) for _ in range(2))

    def loss(part: slice) -> Tensor:
        return nn.functional.cross_entropy(model(x[part]), y[part])

    whole.estimate_hessian(loss(slice(None)))
    whole.update_hessian()
    for i in range(4):
        parts.generator.manual_seed(5)  # the same probes, for the same mean
        parts.estimate_hessian(loss(slice(4 * i, 4 * i + 4)), accumulate=i > 0)
    parts.update_hessian()
    for p in model.parameters():
        close(parts.state[p]["hessian"], whole.state[p]["hessian"])


def test_should_update_hessian_follows_the_period() -> None:
    p = Parameter(torch.ones(2))
    optimizer = SophiaH([p], update_period=3)
    found = []
    for _ in range(8):
        found.append(optimizer.should_update_hessian())
        p.grad = torch.ones(2)
        optimizer.step()
    assert found == [True, False, False, True, False, False, True, False]
    with pytest.raises(RuntimeError, match="no estimate"):
        optimizer.update_hessian()


def test_the_expected_square_is_the_gauss_newton_diagonal() -> None:
    """By enumeration of all labels: 3 classes, 2 inputs."""
    w = gaussian(3, 4).requires_grad_()
    x = gaussian(2, 4, seed=1)
    probabilities = (x @ w.detach().T).softmax(-1)
    expected = torch.zeros(3, 4).double()
    for labels in itertools.product(range(3), repeat=2):
        loss = nn.functional.cross_entropy(x @ w.T, torch.tensor(labels))
        (d,) = gauss_newton_bartlett(loss, 2, [w])
        expected += math.prod(probabilities[i, label].item() for i, label in enumerate(labels)) * d
    exact = torch.stack([(p * (1 - p))[:, None] * row[None] ** 2 for p, row in zip(probabilities, x, strict=True)])
    close(expected, exact.mean(0), 1e-14)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "GradScaler"])
def test_g_trains_in_a_loop(scaled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x = torch.randn(64, 5)
    y = (x @ torch.randn(5, 3)).argmax(-1)
    optimizer = SophiaG(model.parameters(), lr=0.05, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    losses = []
    for step in range(40):
        if step % 10 == 0:
            loss, labels = sampled_cross_entropy(model(x))
            scaler.scale(loss).backward()
            optimizer.update_hessian(bs=labels, grad_scale=scaler.get_scale())
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
