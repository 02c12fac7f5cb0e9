"""A solution is the best, whatever the problem's kind, scale, order or start, and in both twins."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ferrostep.gradients
import ferrostep.numpy
from ferrostep import _core
from tests.contract.solvers.registry import COUNTS, SOLVERS, Entry, Points, every_problem, every_solver, points_of


def test_every_solver_is_registered() -> None:
    registered = {param.values[0].name for param in SOLVERS}
    for module in (ferrostep.gradients, ferrostep.numpy):
        functions = {name: getattr(module, name) for name in module.__all__}
        solvers = {
            name
            for name, function in functions.items()
            if callable(function) and "callback" in inspect.signature(function).parameters
        }
        assert solvers == registered


@every_solver
@every_problem
@pytest.mark.parametrize("count", COUNTS)
def test_no_weights_are_better(entry: Entry, make: Points, count: int) -> None:
    for seed in range(3):
        points = points_of(make, count, seed)
        reports: list[_core.Report] = []
        weights = entry.numpy(points @ points.T, callback=reports.append)
        assert reports[-1].status == "converged"
        assert entry.shortfall(points, weights) <= 1e-7  # of products in float64, their root


@every_solver
@every_problem
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_another_solver_finds_none_better(entry: Entry, make: Points, count: int) -> None:
    points = points_of(make, count)
    value = entry.value(points, entry.numpy(points @ points.T))
    assert value == pytest.approx(entry.peer(points), abs=1e-5)


@every_solver
@every_problem
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-12, 7.0, 1e150, 1e300])
def test_the_unit_does_not_matter(entry: Entry, make: Points, scale: float) -> None:
    points = points_of(make, 5)
    gram = points @ points.T
    same_update(points, entry.numpy(gram * (scale / max(gram.max(), 1.0))), entry.numpy(gram))


@every_solver
@every_problem
@pytest.mark.parametrize("count", COUNTS)
def test_the_order_does_not_matter(entry: Entry, make: Points, count: int) -> None:
    points = points_of(make, count)
    order = np.random.default_rng(1).permutation(count)
    gram = points @ points.T
    same_update(points[order], entry.numpy(gram[np.ix_(order, order)]), reordered(entry.numpy(gram), order))


def reordered(weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Those of tasks in another order."""
    return weights[np.ix_(*[order] * weights.ndim)]


def same_update(points: np.ndarray, weights: np.ndarray, expected: np.ndarray) -> None:
    """The weights of dependent points may differ, what they make of them not: a difference of 0 has a square of 1e-16,
    and where that is all there is, the root of it."""
    size = np.abs(points).max() or 1.0
    np.testing.assert_allclose(weights @ points / size, expected @ points / size, rtol=0, atol=1e-6)


@every_solver
@pytest.mark.parametrize("count", COUNTS)
def test_where_the_weights_are_unique_they_are_the_same_in_any_order_and_unit(entry: Entry, count: int) -> None:
    points = np.random.default_rng(2).standard_normal((count, 2 * count + 1))
    gram = points @ points.T
    expected = entry.numpy(gram)
    order = np.random.default_rng(1).permutation(count)
    permuted = entry.numpy(gram[np.ix_(order, order)])
    np.testing.assert_allclose(permuted, reordered(expected, order), rtol=0, atol=1e-12)
    np.testing.assert_allclose(entry.numpy(gram * 3e-200), expected, rtol=0, atol=1e-12)


@every_solver
@every_problem
@pytest.mark.parametrize("count", COUNTS)
def test_a_start_at_the_solution_or_elsewhere_leads_there(entry: Entry, make: Points, count: int) -> None:
    points = points_of(make, count)
    gram = points @ points.T
    cold = entry.numpy(gram)
    reports: list[_core.Report] = []
    warm = entry.numpy(gram, initial=cold, callback=reports.append)
    same_update(points, warm, cold)
    if entry.ends_at_once:
        assert reports[-1].steps == 0
        assert np.array_equal(warm, cold)
    for start in (np.full(count, 1 / count), np.eye(count)[-1]):
        initial = np.broadcast_to(start, cold.shape)
        if entry.name == "min_norm_weights" and not gram.any():
            continue  # there any weights are as good
        same_update(points, entry.numpy(gram, initial=initial), cold)


@every_solver
def test_a_near_start_saves_steps(entry: Entry) -> None:
    points = np.random.default_rng(0).standard_normal((60, 80)) + 0.1
    before = entry.numpy(points @ points.T)
    points += 1e-3 * np.random.default_rng(1).standard_normal(points.shape)
    steps = []
    for initial in (None, before):
        reports: list[_core.Report] = []
        entry.numpy(points @ points.T, initial=initial, callback=reports.append)
        steps.append(reports[-1].steps)
    assert steps[1] < steps[0]


@every_solver
@every_problem
def test_twins_give_the_same_bits_and_change_nothing(entry: Entry, make: Points) -> None:
    points = points_of(make, 6)
    gram = points @ points.T
    expected = entry.numpy(gram)
    before = gram.copy()
    initial = expected.copy()
    for given in (gram, np.asfortranarray(gram), np.repeat(gram, 2, axis=1)[:, ::2], gram.astype(">f8"), gram.tolist()):
        assert np.array_equal(entry.numpy(given), expected)
    assert np.array_equal(entry.torch(torch.from_numpy(gram)).numpy(), expected)
    entry.numpy(gram, initial=initial)
    entry.torch(torch.from_numpy(gram), initial=torch.from_numpy(initial))
    assert np.array_equal(gram, before) and np.array_equal(initial, expected)
    gram.flags.writeable = False
    assert np.array_equal(entry.numpy(gram), expected)


@every_solver
def test_calls_from_several_threads_do_not_mix(entry: Entry) -> None:
    problems = [points_of(make, 30, seed) for seed in range(4) for make in (lambda rng, n: rng.normal(size=(n, 40)),)]
    grams = [points @ points.T for points in problems]
    expected = [entry.numpy(gram) for gram in grams]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(entry.numpy, grams * 5), expected * 5, strict=True):
            assert np.array_equal(one, other)
