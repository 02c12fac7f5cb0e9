"""The solvers that the contract is tested over, and their problems. A new solver joins by one entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize, nnls

import ferrostep.gradients
import ferrostep.numpy
from ferrostep import _core

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """A solver of problems that are given by the inner products of points, and what may be asked of it."""

    name: str
    """In ``ferrostep.gradients`` and ``ferrostep.numpy``."""
    core: Callable[..., Array]
    """The same in Rust, where the steps can be limited."""
    shortfall: Callable[[Array, Array], float]
    """By how much the weights miss the best value for these points at most, by an argument that holds for any weights;
    in units of the largest squared norm."""
    peer: Callable[[Array], float]
    """The best value by another solver."""
    value: Callable[[Array, Array], float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ends_at_once: bool = True
    """Whether it needs no step from the solution."""
    has_rows: bool = False
    """Whether it has a row of weights for each task, of which each makes an update."""
    long: Callable[[int], Array] = lambda count: np.diag(np.arange(1.0, count + 1.0))
    """A problem of so many hundred tasks, or about as much work as one of the least norm has with those."""

    def numpy(self, gram: Any, **changes: Any) -> Array:
        """The solution for arrays."""
        result: Array = getattr(ferrostep.numpy, self.name)(gram, **{**self.arguments, **changes})
        return result

    def torch(self, gram: Any, **changes: Any) -> Any:
        """The solution for tensors."""
        return getattr(ferrostep.gradients, self.name)(gram, **{**self.arguments, **changes})

    def limited(self, gram: Array, steps: int, **changes: Any) -> Array:
        """What is known after so many steps."""
        return self.core(gram, max_steps=steps, **{**self.arguments, **changes})


def largest(points: Array) -> float:
    """The largest squared norm, or 1 where all are 0."""
    return float((points**2).sum(1).max()) or 1.0


def norm_shortfall(points: Array, weights: Array) -> float:
    """The point's square is at most by this more than its least inner product with a point."""
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, abs=1e-14)
    along = points @ (weights @ points)
    return float(weights @ along - along.min()) / largest(points)


def norm_value(points: Array, weights: Array) -> float:
    return float(np.linalg.norm(weights @ points)) / largest(points) ** 0.5


def least_norm(points: Array) -> float:
    """By non-negative least squares, of which the last equation says that the weights sum up to 1."""
    unit = points / largest(points) ** 0.5
    weights, _ = nnls(np.vstack([unit.T, np.full((1, len(unit)), 1e4)]), np.append(np.zeros(unit.shape[1]), 1e4))
    return norm_value(points, weights / weights.sum())


def gain(points: Array, weights: Array) -> float:
    """The worst task's."""
    return float((points @ (weights @ points)).min()) / largest(points)


def bound(points: Array, worst: Array, c: float) -> float:
    """No update in the ball gives all tasks more than it gives this combination of them."""
    unit = points / largest(points) ** 0.5
    mean = unit.mean(0)
    return float(worst @ unit @ mean + c * np.linalg.norm(mean) * np.linalg.norm(worst @ unit))


def gain_shortfall(c: float) -> Callable[[Array, Array], float]:
    def shortfall(points: Array, weights: Array) -> float:
        mean = points.mean(0)
        shift = np.linalg.norm(weights @ points - mean) - c * np.linalg.norm(mean)
        moves = weights - 1 / len(weights)
        worst = [_core.min_norm(points @ points.T)] + ([moves / moves.sum()] if moves.sum() > 0 else [])
        most = min(bound(points, w, c) for w in worst)
        return max(most - gain(points, weights), float(shift) / largest(points) ** 0.5)

    return shortfall


def best_gain(c: float) -> Callable[[Array], float]:
    """By minimizing the bound on the simplex, from several starts: where the norm is 0 it has a kink."""

    def best(points: Array) -> float:
        count = len(points)
        starts = [np.full(count, 1 / count), *np.eye(count)]
        found = [
            minimize(
                lambda w: bound(points, w, c),
                start,
                method="SLSQP",
                bounds=[(0, 1)] * count,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                options={"maxiter": 300, "ftol": 1e-14},
            ).x.clip(0)
            for start in starts
        ]
        return min(bound(points, w / w.sum(), c) for w in [*found, *starts])

    return best


def cagrad(c: float, name: str) -> Any:
    entry = Entry(
        "cagrad_weights",
        _core.cagrad,
        shortfall=gain_shortfall(c),
        peer=best_gain(c),
        value=gain,
        arguments={"c": c},
        ends_at_once=False,
    )
    return pytest.param(entry, id=name)


def directions(points: Array) -> tuple[Array, Array]:
    """Unit vectors, or zeros, and the norms."""
    norms = np.linalg.norm(points, axis=1)
    return points / np.where(norms > 0, norms, 1.0)[:, None], norms


def cone_shortfall(points: Array, weights: Array) -> float:
    """The distance of an update to the projection has a square of at most what the update has along what was added to
    the gradient, plus the most that it has against a direction, times the sum of what the projection adds."""
    assert (weights >= np.eye(len(points))).all()
    unit, norms = directions(points)
    updates = weights @ points / np.where(norms > 0, norms, 1.0)[:, None]
    along = np.abs(((updates - unit) * updates).sum(1))
    return float(max(along.max(), -(updates @ unit.T).min()))


def cone_value(points: Array, updates: Array) -> float:
    """The norm of the mean."""
    return float(np.linalg.norm(updates.mean(0))) / largest(points) ** 0.5


def projections(points: Array) -> float:
    """By non-negative least squares, one task after the other."""
    unit, norms = directions(points)
    added = np.array([nnls(unit.T, -row)[0] for row in unit])
    return cone_value(points, norms[:, None] * (unit + added @ unit))


def bargain(points: Array, weights: Array) -> tuple[Array, Array]:
    """The weights of the directions of the gradients that there are, of which n is 1, and the directions."""
    unit, norms = directions(points)
    there = norms > 0
    size = np.linalg.norm(points @ points.T) ** 0.5
    return weights[there] * norms[there] / (size or 1.0), unit[there]


def bargain_value(points: Array, weights: Array) -> float:
    return least_gain(*bargain(points, weights))


def least_gain(parts: Array, unit: Array) -> float:
    """The least that the update has along a direction."""
    return float((unit @ (parts @ unit)).min()) if len(unit) else 0.0


RIDGE = 1e-12
"""What Nash-MTL's solver adds to the squares of directions."""


def bargain_shortfall(points: Array, weights: Array) -> float:
    """What the weights minimize is at most by this more than the least: by the dual problem, whose value with the gains
    ``s`` is ``sum(1 + log(s)) - alpha s / 2``. In units of the products' size, which their rounding is a part of."""
    parts, unit = bargain(points, weights)
    assert (weights >= 0).all() and (parts > 0).all()
    shares = parts * (unit @ (parts @ unit)) + RIDGE * parts**2
    size = parts @ np.abs(unit @ unit.T) @ parts
    return float((shares - 1 - np.log(shares)).sum() / max(size, 1.0)) if len(parts) else 0.0


def best_bargain(points: Array) -> float:
    """By Newton's method within a region of trust, for the logarithms of the weights."""
    unit, norms = directions(points)
    unit = unit[norms > 0]
    if not len(unit):
        return 0.0
    products = unit @ unit.T + RIDGE * np.eye(len(unit))

    def shares(x: Array) -> Array:
        parts: Array = np.exp(x)
        return parts * (products @ parts)

    def curvature(x: Array) -> Array:
        parts = np.exp(x)
        return np.diag(shares(x)) + parts[:, None] * products * parts

    found = minimize(
        lambda x: shares(x).sum() / 2 - x.sum(),
        np.zeros(len(unit)),
        jac=lambda x: shares(x) - 1,
        hess=curvature,
        method="trust-exact",
        options={"maxiter": 2000, "gtol": 1e-10},
    )
    return least_gain(np.exp(found.x), unit)


MIN_NORM = Entry("min_norm_weights", _core.min_norm, norm_shortfall, peer=least_norm, value=norm_value)
UPGRAD = Entry(
    "upgrad_weights",
    _core.upgrad,
    cone_shortfall,
    peer=projections,
    value=lambda points, weights: cone_value(points, weights @ points),
    ends_at_once=False,  # a step to see for each task that nothing is to be done
    has_rows=True,
    long=lambda count: np.eye(count // 8) + np.diag(np.linspace(0, 1, count // 8)) - 7 / count,
)
NASH_MTL = Entry(
    "nash_mtl_weights",
    _core.nash_mtl,
    bargain_shortfall,
    peer=best_bargain,
    value=bargain_value,
    long=lambda count: np.cov(np.random.default_rng(0).standard_normal((count // 2, count))),
)
SOLVERS = [
    pytest.param(MIN_NORM, id="min_norm"),
    pytest.param(UPGRAD, id="upgrad"),
    pytest.param(NASH_MTL, id="nash_mtl"),
    cagrad(0.5, "cagrad"),
    cagrad(0.01, "cagrad near"),
    cagrad(2.0, "cagrad far"),
]
every_solver = pytest.mark.parametrize("entry", SOLVERS)

Points: TypeAlias = Callable[[np.random.Generator, int], Array]


def spoilt(change: Callable[[Array], object]) -> Points:
    def make(rng: np.random.Generator, count: int) -> Array:
        points = rng.standard_normal((count, 2 * count + 1)) + 0.1
        change(points)
        return points

    return make


PROBLEMS: dict[str, Points] = {
    "any": spoilt(lambda x: None),
    "all along one": spoilt(lambda x: x.__iadd__(3.0)),
    "few dimensions": lambda rng, count: rng.standard_normal((count, max(1, count // 3))),
    "one dimension": lambda rng, count: rng.standard_normal((count, 1)) + 1,
    "duplicates": spoilt(lambda x: x[len(x) // 2 :].__setitem__(slice(None), x[: len(x) - len(x) // 2])),
    "a zero": spoilt(lambda x: x[-1].fill(0)),
    "zeros only": spoilt(lambda x: x.fill(0)),
    "opposites": spoilt(lambda x: x[-1].__setitem__(slice(None), -x[0])),
    "conflict": spoilt(lambda x: x[-1].__setitem__(slice(None), -1.7 * x[0])),
    "sizes": spoilt(lambda x: x.__imul__(10.0 ** (np.arange(len(x)) % 4 - 2)[:, None])),
    "nearly parallel": lambda rng, count: 1 + 1e-3 * rng.standard_normal((count, count + 2)),
}
every_problem = pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
COUNTS = (1, 2, 3, 5, 8, 40)


def points_of(make: Points, count: int, seed: int = 0) -> Array:
    """Points as rows."""
    return make(np.random.default_rng(seed), count)
