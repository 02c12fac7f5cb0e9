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
        ({"radius": 0.0}, "Invalid radius value: 0.0; expected a finite number greater than 0"),
        ({"radius": float("inf")}, "Invalid radius value: inf"),
        ({"adaptive": "norm"}, "Invalid adaptive: 'norm'; expected None or 'variation'"),
        ({"initial_accumulator_value": 0.0}, "Invalid initial_accumulator_value value: 0.0"),
        ({"radius": 1.0, "geometry": "eg"}, "radius=1.0 and geometry='eg' exclude each other"),
        (
            {"adaptive": "variation", "geometry": "entropic"},
            "adaptive='variation' and geometry='entropic' exclude each other",
        ),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimisticMD([torch.ones(2)], **arguments)


CENTRES = ((0.6, 0.8), (1.2, -0.5))
STEPS = (0.301511344578, 0.298142397000, 0.288000582100, 0.273374142424)
PLAYS = ((0.0, 0.0), (0.3597922449, 0.4797229933), (0.6733886834, -0.3330486783), (0.3902098089, 0.5851770037))
BALL: dict[str, Any] = {"lr": 2.0, "first_hint": "zero", "adaptive": "variation", "initial_accumulator_value": 44.0}
"""Of diameter 2, with gradients up to 1 and smoothness 1."""


@pytest.mark.smoke
@pytest.mark.parametrize(
    "options",
    [{"backend": "rust"}, {"backend": "reference"}, {"radius": 1.0, "backend": "rust"}, {"maximize": True}],
    ids=str,
)
def test_rates_that_follow_the_variation(options: dict[str, Any]) -> None:
    """The spec's plays on ``norm(x - c)^2 / 2`` with two centres in turn; none leaves the ball."""
    p = Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = OptimisticMD([p], **BALL, **options)
    sign = -1 if options.get("maximize") else 1
    for t, (step, play) in enumerate(zip(STEPS, PLAYS, strict=True)):
        variation = optimizer.state[p]["variation"].item() if t else 44.0
        assert 2 / variation**0.5 == pytest.approx(step, abs=1e-12)
        close(p.detach(), play, 1e-9)
        p.grad = sign * (p.detach() - torch.tensor(CENTRES[t % 2], dtype=torch.float64))
        optimizer.step()


@pytest.mark.parametrize("first_hint", ["gradient", "zero"])
@pytest.mark.parametrize("optimism", [0.0, 0.7, 1.0])
def test_one_sequence_is_two(optimism: float, first_hint: Any) -> None:
    """``y <- y - rate * g`` and ``x <- y - rate' * optimism * g``, with one rate for two parameters of a group."""
    params = parameters([(3, 4), (5,)], torch.float64)
    optimizer = OptimisticMD(params, lr=0.3, optimism=optimism, first_hint=first_hint, adaptive="variation")
    y, before, variation = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params], 1.0
    for step in range(4):
        train(optimizer, params, 1, start=step)
        grads = [p.grad for p in params]
        if step == 0 and first_hint == "gradient":  # as if it had been there before
            before = grads
            y = [a + optimism * 0.3 * g for a, g in zip(y, grads, strict=True)]
        rate = 0.3 / variation**0.5
        variation += sum((g - h).square().sum().item() for g, h in zip(grads, before, strict=True))
        y = [a - rate * g for a, g in zip(y, grads, strict=True)]
        for p, a, g in zip(params, y, grads, strict=True):
            torch.testing.assert_close(p.detach(), a - 0.3 / variation**0.5 * optimism * g, rtol=1e-12, atol=1e-12)
        before = grads
    assert optimizer.state[params[0]]["variation"].item() == pytest.approx(variation, rel=1e-12)
    assert "variation" not in optimizer.state[params[1]]


def test_the_variation_of_each_group_is_its_own_and_is_saved() -> None:
    ours, others = parameters([(7,), (4,)]), parameters([(7,), (4,)])
    one, other = ([{"params": [p]} for p in params] for params in (ours, others))
    optimizer, resumed = (OptimisticMD(groups, adaptive="variation") for groups in (one, other))
    train(optimizer, ours, 3)
    variations = [optimizer.state[p]["variation"].item() for p in ours]
    assert variations[0] != variations[1]
    for p, q in zip(ours, others, strict=True):
        q.data.copy_(p)
    resumed.load_state_dict(optimizer.state_dict())
    train(optimizer, ours, 2, start=3)
    train(resumed, others, 2, start=3)
    assert [bits(p) for p in ours] == [bits(p) for p in others]


@both
def test_a_step_without_a_finite_variation_is_left_out(backend: str) -> None:
    (p,) = parameters([(4,)])
    optimizer = OptimisticMD([p], adaptive="variation", backend=backend)
    train(optimizer, [p], 1)
    before, variation = bits(p), optimizer.state[p]["variation"].item()
    p.grad = torch.tensor([1.0, float("inf"), 0.0, 0.0])
    optimizer.step()
    assert bits(p) == before
    assert optimizer.state[p]["variation"].item() == variation


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_a_ball_is_not_left(dtype: torch.dtype) -> None:
    inside, outside = Parameter(torch.zeros(3, 2, dtype=dtype)), Parameter(torch.full((9,), 5.0, dtype=dtype))
    optimizer = OptimisticMD([inside, outside], lr=0.5, radius=2.0)
    for step in range(6):
        train(optimizer, [inside, outside], 1, start=step)
        for p in (inside, outside):
            assert torch.linalg.vector_norm(p.detach()).item() <= 2 * (1 + 4 * torch.finfo(dtype).eps)
    p = Parameter(torch.zeros(2))
    p.grad = torch.tensor([-3.0, 4.0])
    OptimisticMD([p], lr=0.1, radius=10.0).step()  # far from the surface
    close(p.detach(), (0.3, -0.4), 1e-7)
    OptimisticMD([p], lr=1.0, radius=2.5).step()
    close(p.detach(), (1.5, -2.0), 1e-6)
    p.grad.fill_(float("nan"))
    OptimisticMD([p], radius=2.5).step()
    assert p.isnan().all()


def test_a_game_of_balls_has_its_saddle_at_the_surface() -> None:
    """``min max x * y + a * x - b * y`` on [-1, 1], whose saddle (1, -1) is a corner of the domain."""
    x, y = (Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [x]}, {"params": [y], "maximize": True}]
    optimizer = OptimisticMD(groups, lr=0.2, radius=1.0)
    for _ in range(300):
        x.grad, y.grad = y.detach() - 2.0, x.detach() - 3.0
        optimizer.step()
    close(torch.cat((x, y)).detach(), (1.0, -1.0))


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
