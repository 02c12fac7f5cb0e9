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


def entropic(p: Parameter, **arguments: Any) -> OptimisticMD:
    return OptimisticMD([p], geometry="entropic", **arguments)


@pytest.mark.smoke
@both
def test_rows_on_the_simplex(backend: str) -> None:
    p = Parameter(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    optimizer = entropic(p, lr=0.2, first_hint="zero", backend=backend)
    points = ((0.359026310452, 0.321362590221, 0.319611099327), (0.406225127906, 0.297698694995, 0.296076177099))
    for grad, expected in zip(((1.0, 0.0, -1.0), (0.5, 0.5, 0.0)), points, strict=True):
        p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        close(p.detach(), expected, 2e-12)


BEATS = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]], dtype=torch.float64)


@both
def test_rock_paper_scissors(backend: str) -> None:
    x = Parameter(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    y = Parameter(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    groups = [{"params": [x]}, {"params": [y], "maximize": True}]
    optimizer = OptimisticMD(groups, lr=0.1, geometry="entropic", first_hint="zero", backend=backend)
    points = ((0.486810082536, 0.297986579125, 0.215203338338), (0.477224647217, 0.297914970360, 0.224860382423))
    for round_ in range(1999):  # the 2000th play
        x.grad, y.grad = BEATS @ y.detach(), BEATS.T @ x.detach()
        optimizer.step()
        if round_ < 2:
            close(x.detach(), points[round_], 2e-12)
    with torch.no_grad():
        gap = (BEATS.T @ x).max() - (BEATS @ y).min()
    assert gap.item() == pytest.approx(0.0137, abs=5e-5)


def test_a_zero_of_the_simplex_stays_one() -> None:
    p = Parameter(torch.tensor([[0.5, 0.0, 0.5]]))
    optimizer = entropic(p, lr=50.0)
    for _ in range(3):
        p.grad = torch.tensor([[9.0, -9.0, -9.0]])
        optimizer.step()
    assert p[0, 1] == 0
    assert p[0, 0] == torch.finfo(torch.float32).smallest_normal  # what is none does not become one
    assert p[0, 2] == 1


def test_what_is_not_on_the_simplex_is_refused() -> None:
    good, bad = torch.tensor([0.25, 0.75]), torch.tensor([[0.25, 0.75], [0.5, 0.6]])
    with pytest.raises(ValueError, match=r"parameter 1 has a row along dim -1 with sum 1.1"):
        OptimisticMD([good, bad], geometry="entropic")
    with pytest.raises(ValueError, match=r"weight_decay=0.1 has no effect"):
        entropic(Parameter(good), weight_decay=0.1)
    optimizer = entropic(Parameter(good))
    with pytest.raises(ValueError, match="parameter 0 has a row along dim 0"):
        optimizer.add_param_group({"params": [bad], "simplex_dim": 0})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(RuntimeError, match="does not support complex"):
        OptimisticMD([torch.ones(1, dtype=torch.complex64)], geometry="entropic")
    OptimisticMD([bad])
