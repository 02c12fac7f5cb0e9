"""NIGT: the paper's numbers, the two points that it goes between, and what may not be asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.optim import NIGT
from tests.contract.training import assert_close, assert_same_bits, bits, contents, parameters, set_gradients, train

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
B = torch.tensor([1.0, -1.0], dtype=torch.float64)

every_backend = pytest.mark.parametrize("backend", ["rust", "reference"])


def quadratic(x: Tensor) -> Tensor:
    """The gradient of x'Hx / 2 - b'x."""
    return H @ x - B


def at_x(optimizer: NIGT) -> list[Tensor]:
    """The parameters in evaluation mode."""
    optimizer.eval()
    found = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    optimizer.train()
    return found


def descend(steps: int, gradient: Callable[[Tensor], Tensor] = quadratic, **arguments: Any) -> tuple[NIGT, Tensor]:
    """So many steps from (1, 2), and the greatest difference of the momentum from the gradient at x."""
    z = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = NIGT([z], **arguments)
    error = torch.zeros(())
    for _ in range(steps):
        (x,) = at_x(optimizer)
        z.grad = gradient(z.detach())
        optimizer.step()
        error = torch.maximum(error, (optimizer.state[z]["momentum_buffer"] - gradient(x)).abs().max())
    return optimizer, error


@every_backend
@pytest.mark.parametrize(
    ("weight_decay", "x", "z"),
    [
        (0.0, (0.855895524169, 1.73691438475), (0.438090380372, 0.939770193392)),
        (0.5, (0.725854075767, 1.46179266581), (-0.0225422283328, -0.0872739174034)),
    ],
)
def test_three_steps_on_a_quadratic(weight_decay: float, x: Any, z: Any, backend: str) -> None:
    optimizer, error = descend(3, lr=0.1, weight_decay=weight_decay, backend=backend)
    (p,) = optimizer.param_groups[0]["params"]
    torch.testing.assert_close(p.detach(), torch.tensor(z, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(at_x(optimizer)[0], torch.tensor(x, dtype=torch.float64), rtol=1e-10, atol=0)
    assert error < 1e-14
    if weight_decay == 0:
        d = torch.tensor([1.71737961663, 3.27664512053], dtype=torch.float64)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], d, rtol=1e-10, atol=0)


@every_backend
def test_five_steps_of_n_pg_igt(backend: str) -> None:
    optimizer, error = descend(5, lr=0.1, schedule="n-pg-igt", backend=backend)
    (p,) = optimizer.param_groups[0]["params"]
    expected = torch.tensor([0.861229762502, 1.74540586045], dtype=torch.float64)
    torch.testing.assert_close(at_x(optimizer)[0], expected, rtol=1e-10, atol=0)
    d = torch.tensor([1.64031783622, 3.21328724258], dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], d, rtol=1e-10, atol=0)
    assert error < 1e-14


@pytest.mark.parametrize("schedule", [None, "n-pg-igt"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_momentum_is_the_gradient_at_x_whatever_joins_and_leaves(scope: Any, schedule: Any) -> None:
    params = [Parameter(torch.tensor([1.0, 2.0 + i], dtype=torch.float64)) for i in range(3)]
    optimizer = NIGT(
        [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], lr=0.1, scope=scope, weight_decay=0.3
    )
    for step in range(12):
        stepped = [i for i in range(3) if step >= i and (i != 1 or step % 3)]
        xs = at_x(optimizer)
        for i, p in enumerate(params):
            p.grad = quadratic(p.detach()) if i in stepped else None
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.param_groups[1]["momentum"] = 0.8 if step % 2 else 0.9
        optimizer.step()
        for i in stepped:
            d = optimizer.state[params[i]]["momentum_buffer"]
            torch.testing.assert_close(d, quadratic(xs[i]), rtol=1e-12, atol=1e-12)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_evaluation_and_back_changes_z_by_a_rounding(dtype: torch.dtype, backend: str) -> None:
    params = parameters([(300,), (5, 7)], dtype)
    optimizer = NIGT([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}], lr=0.01, backend=backend)
    train(optimizer, params, 5)
    before = [p.detach().clone() for p in params]
    (x, _) = at_x(optimizer)
    for p, z in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), z, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert not torch.equal(x, before[0])
    optimizer.train()
    optimizer.eval()
    optimizer.eval()
    assert bits(params[0]) == bits(x)


@pytest.mark.parametrize("power", [-40, 50])
def test_the_path_does_not_depend_on_the_gradients_scale(power: int, isa: str) -> None:
    paths = []
    for scale in (1.0, 2.0**power):
        params = parameters([(300,), (5, 7)])
        optimizer = NIGT(params, lr=0.01)
        for step in range(4):
            set_gradients(params, step, scale)
            optimizer.step()
        paths.append([bits(p) for p in params])
    assert paths[0] == paths[1]


def test_a_step_is_as_long_as_the_rate_says() -> None:
    params = parameters([(300,), (5, 7)], torch.float64)
    optimizer = NIGT(params, lr=0.25)
    for step in range(3):
        before = at_x(optimizer)
        set_gradients(params, step)
        optimizer.step()
        moved = sum((x - y).square().sum() for x, y in zip(at_x(optimizer), before, strict=True))
        assert moved.sqrt().item() == pytest.approx(0.25)
    set_gradients(params, 0, 0.0)
    for p in params:
        optimizer.state[p]["momentum_buffer"].zero_()
    before = [bits(x) for x in at_x(optimizer)]
    optimizer.step()
    assert [x.isfinite().all().item() for x in params] == [True, True]
    assert len(before) == 2


def test_a_checkpoint_in_evaluation_mode_resumes() -> None:
    params, others = parameters([(40,), (5, 7)], torch.float64), parameters([(40,), (5, 7)], torch.float64)
    optimizer, other = NIGT(params, lr=0.01), NIGT(others, lr=0.01)
    train(optimizer, params, 3)
    optimizer.eval()
    saved = optimizer.state_dict()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(saved)
    for each, own in ((optimizer, params), (other, others)):
        with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) before a step"):
            each.step()
        each.train()
        train(each, own, 2, start=3)
    assert_same_bits(optimizer, other)
    assert other.param_groups[0]["steps"] == 5


@pytest.mark.parametrize("in_evaluation", [False, True])
@pytest.mark.parametrize(("before", "after"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_parameters_that_become_others_go_on(before: torch.dtype, after: torch.dtype, in_evaluation: bool) -> None:
    """As steps do, the ways to x and back convert states then."""
    params = parameters([(40,), (5, 7)], before)
    optimizer = NIGT(params, lr=0.01)
    train(optimizer, params, 3)
    if in_evaluation:
        optimizer.eval()
    for p in params:
        p.grad = None
        p.data = p.data.to(after)
    optimizer.eval()
    x = [p.detach().clone() for p in params]
    optimizer.train()
    train(optimizer, params, 1, start=3)
    assert all(p.dtype == after and not torch.equal(p, own) for p, own in zip(params, x, strict=True))


@pytest.mark.parametrize("master_weights", ["split", "float32"])
def test_16_bit_parameters_with_masters_are_float32_ones_rounded(master_weights: Any) -> None:
    params = parameters([(300,), (5, 7)], torch.bfloat16)
    whole = [Parameter(p.detach().float()) for p in params]
    optimizer, other = NIGT(params, lr=0.01, master_weights=master_weights), NIGT(whole, lr=0.01)
    for step in range(4):
        set_gradients(params, step)
        for p, q in zip(params, whole, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        other.step()
        for each in (optimizer, other):
            each.eval()
        for p, q in zip(params, whole, strict=True):
            torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2**-8, atol=0)
        for each in (optimizer, other):
            each.train()
    momenta = [
        [own[name] for name in own if name.endswith("momentum_buffer")] for own in map(contents, (optimizer, other))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


def test_a_momentum_of_codes() -> None:
    """x is the point of the numbers that codes stand for."""
    params = parameters([(64, 80)])
    optimizer = NIGT(params, lr=1.0, state_dtype="int8")
    train(optimizer, params, 1)
    z = params[0].detach().clone()
    (x,) = at_x(optimizer)
    assert (x - z).norm().item() == pytest.approx(9.0, rel=1e-2)


def test_plain_torch_and_rust_share_a_norm() -> None:
    ours, theirs = parameters([(40,), (5, 7)]), parameters([(40,), (5, 7)])
    optimizer = NIGT([{"params": ours[:1]}, {"params": ours[1:], "backend": "reference"}], lr=0.01)
    other = NIGT([{"params": theirs[:1]}, {"params": theirs[1:]}], lr=0.01)
    train(optimizer, ours, 4)
    train(other, theirs, 4)
    assert_close(optimizer, other, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "arguments", "error", "message"),
    [
        (
            torch.bfloat16,
            {},
            ValueError,
            "parameter 0 has dtype torch.bfloat16, expected float32 or float64, or master",
        ),
        (
            torch.float32,
            {"lr": 1.0, "weight_decay": 0.1},
            ValueError,
            r"Invalid lr \* weight_decay: 0.1; expected less",
        ),
        (torch.float32, {"momentum": 1.0}, ValueError, "Invalid momentum value: 1.0"),
        (torch.float32, {"scope": "all"}, ValueError, "Invalid scope: 'all'; expected 'global' or 'tensor'"),
        (torch.float32, {"schedule": "igt"}, ValueError, "Invalid schedule: 'igt'"),
    ],
    ids=str,
)
def test_impossible_arguments(dtype: torch.dtype, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NIGT(parameters([(3,)], dtype), **{"lr": 0.1, **arguments})


def test_a_state_of_another_rule_is_refused() -> None:
    params = parameters([(3,)])
    other = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    train(other, params, 1)
    optimizer = NIGT(params, lr=0.1)
    saved = optimizer.state_dict()
    saved["state"] = other.state_dict()["state"]
    with pytest.raises(KeyError, match="state of parameter 0 has no eta, of_param, of_momentum"):
        optimizer.load_state_dict(saved)
