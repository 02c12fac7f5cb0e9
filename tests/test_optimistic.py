"""OptimisticMD and OptimisticAdam: oracles of the spec, games, and what the hint is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.optim import OptimisticAdam, OptimisticMD
from tests.contract.training import bits, parameters, train

both = pytest.mark.parametrize("backend", ["rust", "reference"])
GRADIENTS = ((1.0, -0.5), (0.5, 0.5), (-1.0, 0.25))


def close(actual: Tensor, expected: Sequence[float], absolute: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=absolute)


def played(rounds: int, **arguments: Any) -> list[Tensor]:
    """The points of ``min max x * y`` from (1, 1)."""
    x, y = (Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = OptimisticMD([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.1, **arguments)
    points = []
    for _ in range(rounds):
        x.grad, y.grad = y.detach().clone(), x.detach().clone()
        optimizer.step()
        points.append(torch.cat((x, y)).detach().clone())
    return points


@pytest.mark.smoke
@both
def test_a_bilinear_game(backend: str) -> None:
    points = played(2000, backend=backend)
    for point, expected in zip(points, ((0.9, 1.1), (0.78, 1.18), (0.654, 1.246)), strict=False):
        close(point, expected)
    assert points[-1].norm().item() == pytest.approx(5.564e-5, rel=1e-3)
    points = played(3, first_hint="zero", backend=backend)
    for point, expected in zip(points, ((0.8, 1.2), (0.66, 1.26), (0.528, 1.312)), strict=True):
        close(point, expected)
    assert played(2000, optimism=0.0, backend=backend)[-1].norm() > 1e3  # gradient descent diverges


@pytest.mark.smoke
@both
@pytest.mark.parametrize(
    ("optimizer", "arguments", "points", "absolute"),
    [
        (OptimisticMD, {}, ((0.9, -1.95), (0.9, -2.1), (1.15, -2.1)), 1e-12),
        (
            OptimisticAdam,
            {"betas": (0.5, 0.9), "eps": 1e-8},
            (
                (0.900000001, -1.900000002),
                (0.828617445692, -2.066666665333),
                (0.980251067507, -2.134121560703),
            ),
            1e-11,
        ),
    ],
    ids=["md", "adam"],
)
def test_by_hand(optimizer: Any, arguments: dict[str, Any], points: Any, absolute: float, backend: str) -> None:
    p = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    instance = optimizer([p], lr=0.1, backend=backend, **arguments)
    for grad, expected in zip(GRADIENTS, points, strict=True):
        p.grad = torch.tensor(grad, dtype=torch.float64)
        instance.step()
        close(p.detach(), expected, absolute)


@both
def test_multiplying_goes_along_the_same_direction(backend: str) -> None:
    values = torch.tensor([1.0, -2.0], dtype=torch.float64)
    p = Parameter(values.clone())
    optimizer = OptimisticMD([p], lr=0.1, geometry="eg", weight_decay=0.5, backend=backend)
    total = torch.zeros_like(values)
    for grad, ahead in zip(GRADIENTS, ((1.0, -0.5), (0.0, 1.5), (-2.5, 0.0)), strict=True):
        p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        total += torch.tensor(ahead, dtype=torch.float64)
    expected = values * (-0.1 * values.sign() * total - 0.15).exp()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("optimizer", [OptimisticMD, OptimisticAdam])
def test_the_hint_is_a_copy_and_waits_for_the_next_gradient(optimizer: Any) -> None:
    ours, others = parameters([(7,)], torch.float64), parameters([(7,)], torch.float64)
    one, other = optimizer(ours), optimizer(others)
    train(one, ours, 2)
    train(other, others, 2)
    ours[0].grad.fill_(9.0)
    ours[0].grad = None
    one.step()
    train(one, ours, 1, start=2)
    train(other, others, 1, start=2)
    assert bits(ours[0]) == bits(others[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimism": -1.0}, "Invalid optimism value: -1.0"),
        ({"geometry": "ball"}, "Invalid geometry: 'ball'; expected"),
        ({"first_hint": None}, "Invalid first_hint: None; expected 'gradient' or 'zero'"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimisticMD([torch.ones(2)], **arguments)
