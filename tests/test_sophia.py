"""SophiaG and SophiaH: oracles of the spec, public implementations step by step, and what loops need."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep.curvature import gauss_newton_bartlett, hutchinson_diagonal, sampled_cross_entropy
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


@pytest.mark.smoke
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


@pytest.mark.smoke
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
    start, level, relative = gaussian(40).to(dtype), 0.02, 1e-6 if dtype == torch.float32 else 1e-12
    p, q = Parameter(start.clone()), Parameter(start.clone())
    ours = SophiaH([p], lr=0.06 * level, gamma=level, eps=1e-12 * level, weight_decay=0.1 / level)
    theirs = pytorch_optimizer.SophiaH([q], lr=0.06, p=level, weight_decay=0.1, update_period=5)
    for step in range(30):
        p.grad = gaussian(40, seed=step + 1).to(dtype)
        q.grad = p.grad.clone()
        hessian = [300 * gaussian(40, seed=500 + step).to(dtype)]  # so that some elements are not clipped
        ours.step(hessian=hessian if step % 5 == 0 else None)
        theirs.step(hessian=hessian if step % 5 == 0 else None)
        close(p, q.detach(), relative)
        close(ours.state[p]["exp_avg"], theirs.state[q]["momentum"], relative)
        close(ours.state[p]["hessian"], theirs.state[q]["hessian_moment"], relative)
    assert 0 < ours.unclipped_fraction() < 1 and (ours.state[p]["hessian"] < 0).any()


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


@pytest.mark.parametrize(
    "options", [{"fixed_decay": True, "weight_decay": 0.1}, {"weight_decouple": False, "weight_decay": 0.1}, {"p": 0.0}]
)
def test_a_checkpoint_that_sophia_h_has_no_equal_of_is_refused(options: dict[str, Any]) -> None:
    p = Parameter(torch.ones(2))
    optimizer = SophiaH([p])
    with pytest.raises(ValueError, match=r"group 0 of the state dict has .* cannot express"):
        optimizer.load_state_dict(pytorch_optimizer.SophiaH([p], **options).state_dict())
    assert optimizer.param_groups[0]["lr"] == 6e-4


def test_a_checkpoint_with_a_parameter_that_has_an_estimate_only() -> None:
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    theirs = pytorch_optimizer.SophiaH([p, q])
    p.grad = torch.ones(2)
    theirs.step(hessian=[torch.ones(2), torch.ones(2)])
    assert theirs.state[q].keys() == {"hessian"}
    ours = SophiaH([p, q])
    ours.load_state_dict(theirs.state_dict())
    assert "exp_avg" in ours.state[p] and not ours.state.get(q)
    q.grad = torch.ones(2)
    ours.step()
    assert ours.state[q]["step"] == 1


def test_rho_and_lr_may_be_exchanged() -> None:
    m, h = gaussian(200), gaussian(200, seed=1).abs()
    for rho in (0.01, 0.5, 3.0):
        clipped = (m / h.clamp(min=1e-12)).clamp(-rho, rho) * 0.1
        p = Parameter(torch.zeros(200).double())
        optimizer = SophiaH([p], lr=0.1 * rho, betas=(0.0, 0.0), gamma=rho, eps=1e-12 * rho, weight_decay=0.0)
        p.grad = m.clone()
        optimizer.step(hessian=[h])
        close(p, -clipped, 1e-14)


g_and_h = pytest.mark.parametrize("make", [partial(SophiaG, bs=8), SophiaH], ids="GH")


@both
@g_and_h
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_without_curvature_the_step_is_a_sign(make: Any, weight_decay: float, backend: str) -> None:
    p = Parameter(torch.ones(5).double())
    optimizer = make([p], lr=0.1, betas=(0.9, 0.99), weight_decay=weight_decay, backend=backend)
    q, m = p.detach().clone(), torch.zeros(5).double()
    for grad in (double(3, -1e-9, 0, 1e30, -2), double(-1, 5e-10, 0, -1e31, -2), double(-40, 2, 0, 1, 3)):
        p.grad = grad
        optimizer.step()
        m = 0.9 * m + 0.1 * grad
        q = q * (1 - 0.1 * weight_decay) - 0.1 * m.sign()
        close(p, q)


@g_and_h
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_element_moves_by_more_than_lr(make: Any, dtype: torch.dtype, weight_decay: float) -> None:
    lr, count = 0.5, 2000
    p = Parameter(gaussian(count, seed=1).to(dtype))
    optimizer = make([p], lr=lr, weight_decay=weight_decay)
    largest = min(math.log10(torch.finfo(dtype).max) - 1, 30)
    for step in range(4):
        numbers = (gaussian(count, seed=2 + step) * torch.logspace(-45, largest, count).double()).to(dtype)
        p.grad = numbers.flip(0) if step % 2 else numbers
        grad, before = p.grad.clone(), p.detach().clone()
        if isinstance(optimizer, SophiaG):
            optimizer.update_hessian()
        else:
            optimizer.update_hessian([numbers.roll(step)])
        optimizer.step()
        moved = (p.double() - before.double() * (1 - lr * weight_decay)).abs()
        rounding = torch.finfo(dtype).eps * before.double().abs().clamp(min=lr)
        assert (moved <= lr * (1 + 1e-7) + rounding).all()
        assert torch.equal(p.grad, grad)


@both
@g_and_h
def test_zeros_are_safe(make: Any, backend: str) -> None:
    for dtype in (torch.float16, torch.float32):
        p = Parameter(torch.ones(4, dtype=dtype))
        p.grad = torch.zeros_like(p)
        optimizer = make([p], weight_decay=0.0, backend=backend)
        optimizer.step()
        assert torch.equal(p, torch.ones_like(p))


@both
@g_and_h
def test_an_estimate_that_is_not_finite_stops_or_spoils_its_element_only(make: Any, backend: str) -> None:
    p = Parameter(torch.ones(3).double())
    optimizer = make([p], lr=0.1, weight_decay=0.0, backend=backend)
    p.grad = torch.ones(3).double()
    optimizer.step()
    optimizer.state[p]["hessian"][:2] = double(math.inf, math.nan)
    optimizer.step()
    close(p[[0, 2]], double(0.9, 0.8))
    assert p[1].isnan()


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


@both
def test_given_estimates_are_negated_where_the_objective_is_maximized(backend: str) -> None:
    p = Parameter(double(1, 1))
    optimizer = SophiaH([p], betas=(0.9, 0.5), maximize=True, backend=backend)
    optimizer.update_hessian([double(2, -4)])
    close(optimizer.state[p]["hessian"], double(-1, 2))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_h_takes_what_hutchinson_diagonal_gives(distribution: str, num_samples: int) -> None:
    a = gaussian(6, 6)
    p = Parameter(gaussian(6, seed=1))
    options: Any = {"distribution": distribution, "num_samples": num_samples}
    optimizer = SophiaH([p], **options, generator=torch.Generator().manual_seed(3))
    optimizer.estimate_hessian(p @ a @ p)
    optimizer.update_hessian()
    (d,) = hutchinson_diagonal(p @ a @ p, [p], **options, generator=torch.Generator().manual_seed(3))
    close(optimizer.state[p]["hessian"], 0.01 * d)
    diagonal = 2 * a.diagonal()
    assert not torch.allclose(d, diagonal)
    options["num_samples"] = 4000
    (mean,) = hutchinson_diagonal(p @ a @ p, [p], **options, generator=torch.Generator().manual_seed(4))
    assert (mean - diagonal).abs().max() < 0.3


class TestRefusals:
    """What the constructors and the refreshes refuse, with nothing changed."""

    @pytest.mark.parametrize(
        ("make", "arguments", "message"),
        [
            (SophiaG, {"rho": -0.1}, "rho value"),
            (SophiaG, {"eps": 0.0}, "epsilon value"),
            (SophiaH, {"gamma": -0.1}, "gamma value"),
            (SophiaH, {"eps": 0.0}, "epsilon value"),
            (SophiaH, {"update_period": 0}, "update_period value"),
            (SophiaH, {"num_samples": 0}, "num_samples value"),
            (SophiaH, {"distribution": "uniform"}, "'rademacher' or 'gaussian'"),
            (SophiaH, {"betas": (0.9, 1.0)}, "beta parameter at index 1"),
        ],
    )
    def test_arguments(self, make: Any, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make([Parameter(torch.ones(2))], **arguments)

    @g_and_h
    def test_complex_parameters(self, make: Any) -> None:
        with pytest.raises(RuntimeError, match="does not support complex parameters"):
            make([Parameter(torch.ones(2, dtype=torch.complex64))])

    def test_a_group_with_a_period_of_its_own(self) -> None:
        groups = [{"params": [Parameter(torch.ones(2))]}, {"params": [Parameter(torch.ones(2))], "update_period": 5}]
        with pytest.raises(ValueError, match="update_period is one for all groups: got 5, expected 10"):
            SophiaH(groups)

    @both
    def test_gradients(self, backend: str) -> None:
        p, q = Parameter(torch.ones(2, 3)), Parameter(torch.ones(2, 3))
        optimizer = SophiaG([p, q], bs=2, backend=backend)
        p.grad, q.grad = torch.ones(2, 3), torch.ones(2, 3).to_sparse()
        with pytest.raises(RuntimeError, match=r"parameter 1 in group 0 .*sparse"):
            optimizer.update_hessian()
        assert not optimizer.state

    @both
    def test_an_estimate_of_another_shape(self, backend: str) -> None:
        """Found before the first group changes, also where only the second runs in plain torch."""
        p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
        optimizer = SophiaG([{"params": [p]}, {"params": [q], "backend": backend}], bs=2)
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.update_hessian()
        before = optimizer.state[p]["hessian"].clone()
        optimizer.state[q]["hessian"] = torch.ones(1)
        with pytest.raises(ValueError, match=r"hessian of parameter 0 in group 1 has shape \[1\]"):
            optimizer.update_hessian()
        assert torch.equal(optimizer.state[p]["hessian"], before)

    def test_another_device_where_rust_is_asked_for(self) -> None:
        p = Parameter(torch.ones(2, device="meta"))
        optimizer = SophiaG([p], bs=2, backend="rust")
        p.grad = torch.ones(2, device="meta")
        with pytest.raises(RuntimeError, match="on device meta, expected the CPU"):
            optimizer.update_hessian()
        assert not optimizer.state

    def test_a_parameter_without_memory(self) -> None:
        p = Parameter(torch.ones(2, device="meta"))
        optimizer = SophiaG([p], bs=2)
        p.grad = torch.ones(2, device="meta")
        with pytest.raises(RuntimeError, match="parameter 0 in group 0 is on device meta, which has no memory"):
            optimizer.update_hessian()
        assert not optimizer.state

    @pytest.mark.parametrize(
        ("estimates", "error", "message"),
        [
            ([torch.ones(2)], ValueError, "got 1 Hessian estimates, expected 2"),
            ([None, 1.0], TypeError, "parameter 1 in group 0 is a float"),
            ([None, torch.ones(3)], ValueError, r"parameter 1 in group 0 has shape \[3\]"),
            ([torch.ones(2, dtype=torch.int64), None], ValueError, "parameter 0 in group 0 .*int64"),
            ([torch.ones(2, dtype=torch.complex64), None], ValueError, "parameter 0 in group 0 .*complex64"),
        ],
    )
    def test_given_estimates(self, estimates: list[Any], error: type[Exception], message: str) -> None:
        optimizer = SophiaH([Parameter(torch.ones(2)), Parameter(torch.ones(2))])
        with pytest.raises(error, match=message):
            optimizer.update_hessian(estimates)
        assert not optimizer.state


def test_no_estimate_for_a_parameter_leaves_it_as_it_is() -> None:
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    optimizer = SophiaH([p, q])
    optimizer.update_hessian([None, torch.ones(2)])
    assert p not in optimizer.state and optimizer.state[q]["hessian"].all()


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


@both
def test_the_unclipped_are_counted_in_float32(backend: str) -> None:
    p = Parameter(torch.ones(3))
    # 1.001 is 1 in bfloat16.
    optimizer = SophiaH([p], betas=(0.0, 0.0), gamma=1.001, backend=backend, state_dtype=torch.bfloat16)
    p.grad = torch.ones(3)
    optimizer.step(hessian=[torch.ones(3)])
    assert optimizer.unclipped_fraction() == 1.0


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
        parts.estimate_hessian(1024 * loss(slice(4 * i, 4 * i + 4)), accumulate=i > 0, grad_scale=1024.0)
    parts.update_hessian()
    for p in model.parameters():
        close(parts.state[p]["hessian"], whole.state[p]["hessian"])


def test_micro_batches_of_different_sizes_add_up_to_the_whole() -> None:
    """The gradient of the sum over labels, with their number as grad_scale."""
    w, x = Parameter(gaussian(3, 4)), gaussian(16, 4)
    labels = torch.arange(16) % 3
    optimizer = SophiaG([w])
    for part in torch.arange(16).split([1, 5, 10]):
        (nn.functional.cross_entropy(x[part] @ w.T, labels[part]) * len(part)).backward()
    optimizer.update_hessian(bs=16, grad_scale=16)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(x @ w.T, labels), [w])
    close(optimizer.state[w]["hessian"], 0.01 * g.square())


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
