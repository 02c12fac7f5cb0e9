"""Gradient projection and surgery: the spec's oracles and edges, the official O-DICE update, torchjd, bad input."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

import ferrostep.gradients
import ferrostep.numpy
from ferrostep import _core
from ferrostep.gradients import (
    OrthogonalGradient,
    aligned_mtl_weights,
    cagrad_weights,
    combine,
    ema_,
    gram,
    min_norm_weights,
    orthogonal_,
    orthogonal_combine_,
    pcgrad_,
    pcgrad_weights,
)
from ferrostep.numpy import weights
from ferrostep.optim import AdamW
from ferrostep.reference import gradients as reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SHAPES = ((3, 4), (5,), (), (0, 2), (70, 129), (2, 3, 4, 5))
F, B = (1.0, 2.0, 2.0), (3.0, 0.0, -1.0)


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in SHAPES]


def clones(given_: list[Any]) -> list[Any]:
    return [None if x is None else x.clone() for x in given_]


def dot(one: list[Any], other: list[Any]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def close(actual: list[Any], expected: list[Any]) -> None:
    """To one rounding, of the largest number that took part."""
    size = max(float(x.double().abs().max()) for x in expected if x is not None and x.numel())
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=TOLERANCE[a.dtype] * size)


def split(values: tuple[float, ...], at: int) -> list[Any]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return [tensor] if at == 0 else [tensor[:at], tensor[at:]]


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 1, 2], ids=["whole", "split at 1", "split at 2"])
@pytest.mark.parametrize("form", ["rust", "reference", "numpy"])
def test_oracles(form: str, at: int) -> None:
    f, b = split(F, at), split(B, at)
    out = [x.clone() for x in f]
    if form == "numpy":
        arrays = [[x.numpy() for x in each] for each in (f, b, out)]
        kappas = (
            ferrostep.numpy.orthogonal_combine_(arrays[2], arrays[0], arrays[1], eta=2.0),
            ferrostep.numpy.orthogonal_(arrays[1], arrays[0]),
        )
    elif form == "reference":
        kappas = reference.orthogonal_combine_(out, f, b, eta=2.0), reference.orthogonal_(b, f)
        kappas = kappas[0], kappas[1]
    else:
        kappas = orthogonal_combine_(out, f, b, eta=2.0), orthogonal_(b, f)
    assert kappas == pytest.approx((1 / 9, 1 / 9))
    expected = torch.tensor([26, -2, -11], dtype=torch.float64) / 9
    torch.testing.assert_close(torch.cat(b), expected)
    torch.testing.assert_close(torch.cat(out), 2 * torch.tensor(F, dtype=torch.float64) + 2 * expected)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_kernels_agree_with_the_reference(isa: str, dtype: torch.dtype, per_tensor: bool) -> None:
    f, b, out = (tensors(seed, dtype) for seed in range(3))
    f[1] = b[2] = out[3] = None
    b[4] = out[4] = None
    for scale in (1.0, -0.5):
        actual, expected = clones(b), clones(b)
        kappa = orthogonal_(actual, f, scale=scale, per_tensor=per_tensor)
        assert kappa == pytest.approx(
            reference.orthogonal_(expected, f, scale=scale, per_tensor=per_tensor), rel=1e-12, abs=1e-15
        )
        close(actual, expected)
    actual, expected = clones(out), clones(out)
    kappa = orthogonal_combine_(actual, f, b, eta=0.7, per_tensor=per_tensor)
    assert kappa == pytest.approx(
        reference.orthogonal_combine_(expected, f, b, eta=0.7, per_tensor=per_tensor), rel=1e-12, abs=1e-15
    )
    close(actual, expected)
    torch.testing.assert_close(gram([f, b, out]), reference.gram([f, b, out]), rtol=1e-12, atol=1e-12)
    close(
        combine([f, b, out], [0.5, -2.0, 3.0]),
        reference.combine([f, b, out], [0.5, -2.0, 3.0], out=[None] * len(SHAPES)),
    )
    for tau in (0.0, 0.3, 0.7, 1.0):
        targets = tensors(5, dtype), tensors(5, dtype)
        ema_(targets[0], tensors(6, dtype), tau)
        reference.ema_(targets[1], tensors(6, dtype), tau)
        close(targets[0], targets[1])
        for target in targets if tau in (0, 1) else ():
            assert all(torch.equal(x, y) for x, y in zip(target, tensors(5 + int(tau), dtype), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([torch.float32, torch.float64]))
def test_projected_once_is_orthogonal_and_projected_for_good(seed: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    f, b = (torch.randn(size, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    single = dtype == torch.float32
    # The factor, its product and the sum are each rounded to float32: half a unit in the last place three times.
    rounded = 3 * 2**-24 if single else 1e-14
    length = float(b.double().norm())
    projected: list[Any] = [b.clone()]
    orthogonal_(projected, [f])
    assert abs(dot([f], projected)) <= (1e-6 if single else 1e-14) * float(f.double().norm()) * length
    again: list[Any] = clones(projected)
    orthogonal_(again, [f])
    assert float((again[0] - projected[0]).double().norm()) <= rounded * length
    parallel: list[Any] = [1.7 * f]
    orthogonal_(parallel, [f])
    assert float(parallel[0].double().norm()) <= rounded * 1.7 * float(f.double().norm())
    double: list[Any] = [2 * f]
    orthogonal_(double, [f])
    assert not double[0].any()


def test_nothing_is_taken_where_there_is_nothing() -> None:
    b, zero = tensors(0), [torch.zeros(shape).double() for shape in SHAPES]
    for one, other in ((b, zero), (zero, b)):
        projected = clones(one)
        assert orthogonal_(projected, other) == 0.0
        assert all(torch.equal(x, y) for x, y in zip(projected, one, strict=True))
    tiny: list[Any] = [torch.full((2,), 1e-6).double()]
    assert orthogonal_([torch.ones(2).double()], tiny) == pytest.approx(2e-6 / 1e-10)  # less than the whole 1e6
    assert orthogonal_([torch.ones(2).double()], tiny, eps=0.0) == pytest.approx(1e6)
    for m in (ferrostep.gradients, reference):
        left = clones(b)
        assert m.orthogonal_(left, zero, eps=0.0) == 0.0
        assert all(torch.equal(x, y) for x, y in zip(left, b, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("m", [ferrostep.gradients, reference], ids=["rust", "reference"])
def test_one_nonfinite_number_reaches_everything(m: Any, value: float) -> None:
    """Also where the other list has None, and from there."""
    for place, missing in ((4, 0), (0, 0)):
        f, b = tensors(0), tensors(1)
        b[missing] = None
        f[place].flatten()[:1] = value
        assert np.isnan(m.orthogonal_(b, f))
        assert all(x.isnan().all() for x in b)
    f, b = tensors(0), tensors(1)
    f[0], b[0][0, 0] = None, value
    m.orthogonal_(b, f)
    assert all(x.isnan().all() for x in b)
    assert torch.equal(gram([f, b]).isnan(), reference.gram([f, b]).isnan())


def test_empty_lists() -> None:
    assert orthogonal_([], []) == 0.0 and orthogonal_([None], [None], per_tensor=True) == [0.0]
    one: list[Any] = [None, torch.ones(2)]
    assert orthogonal_(clones(one), one, per_tensor=True) == [0.0, 1.0]
    assert torch.equal(gram([[None], [None]]), torch.zeros(2, 2).double())
    ema_([], [], 0.5)
    for m in (ferrostep.gradients, reference):
        out = [torch.ones(2)]
        assert m.combine([[None], [None]], [1.0, 2.0], out=out) == out and not out[0].any()
    for call in (lambda: gram([]), lambda: combine([], []), lambda: pcgrad_([])):
        with pytest.raises(ValueError, match="gradients is empty"):
            call()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    shape = (3, 4, 8, 9)
    f, b = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    expected: list[Any] = [b.clone()]
    orthogonal_(expected, [f])
    lay: Callable[[Tensor], Tensor]
    for lay in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
        lambda x: torch.stack([x, x], -1)[..., 1],
    ):
        for one, other in ((lay(b), lay(f)), (lay(b), f), (b.clone(), lay(f))):
            version = one._version
            orthogonal_([one], [other])
            close([one], expected)
            assert one._version > version
        target = lay(b).clone(memory_format=torch.preserve_format)
        ema_([target], [f], 0.25)
        close([target], [torch.lerp(b.double(), f.double(), 0.25).to(dtype)])


@pytest.mark.parametrize("m", [ferrostep.gradients, reference], ids=["rust", "reference"])
def test_complex_numbers_are_pairs(m: Any) -> None:
    f, b, out = (torch.randn(6, 2, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    one, other = ([x.clone() for x in (f, b, out)] for _ in range(2))
    pairs = [torch.view_as_complex(x) for x in other]
    assert m.orthogonal_([one[1]], [one[0]]) == m.orthogonal_([pairs[1]], [pairs[0]])
    m.orthogonal_combine_([one[2]], [one[0]], [one[1]])
    m.orthogonal_combine_([pairs[2]], [pairs[0]], [pairs[1]])
    m.ema_([one[0]], [one[1]], 0.3)
    m.ema_([pairs[0]], [pairs[1]], 0.3)
    for x, y in zip(one, other, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(m.gram([[f], [b]]), m.gram([[torch.view_as_complex(f)], [torch.view_as_complex(b)]]))
    (new,) = m.combine([[pairs[0]], [pairs[1]]], [2.0, 3.0], out=[None])
    torch.testing.assert_close(new, 2 * pairs[0] + 3 * pairs[1])


def test_equal_networks_stay_equal() -> None:
    x = torch.randn(1000)
    target = x.clone()
    ema_([target], [x], 0.005)
    assert torch.equal(target, x)


@pytest.mark.parametrize("function", ["orthogonal", "orthogonal_combine", "gram", "combine", "pcgrad", "ema"])
def test_threads_do_not_change_a_bit(function: str) -> None:
    lists = [[torch.randn(300_001, generator=torch.Generator().manual_seed(i))] for i in range(3)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            own: list[Any] = [clones(x) for x in lists]
            match function:
                case "orthogonal":
                    results.append(torch.tensor([orthogonal_(own[0], own[1]), *own[0][0].tolist()]))
                case "orthogonal_combine":
                    results.append(torch.tensor([orthogonal_combine_(*own), *own[0][0].tolist()]))
                case "gram":
                    results.append(gram(own))
                case "combine":
                    results.append(combine(own, [1.0, 2.0, 3.0])[0])
                case "pcgrad":
                    own[1] = [x - 0.5 * y for x, y in zip(own[1], own[0], strict=True)]
                    pcgrad_(own, generator=torch.Generator().manual_seed(0))
                    results.append(torch.stack([x[0] for x in own]))
                case "ema":
                    ema_(own[0], own[1], 0.3)
                    results.append(own[0][0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class TwinValue(nn.Module):
    """Two heads of 2 x 256."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


def losses(net: nn.Module, target: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    s, r, s2 = batch
    with torch.no_grad():
        v_bar, v2_bar = target(s).amin(0), target(s2).amin(0)
    chi2 = lambda x: torch.where(x < -2, -torch.ones_like(x), x + x * x / 4)  # noqa: E731
    v = net(s)
    return 0.6 * chi2(r + 0.99 * v2_bar - v).mean(), 0.6 * chi2(r + 0.99 * net(s2) - v_bar).mean(), 0.4 * v.mean()


def test_the_official_update_for_a_hundred_steps() -> None:
    """As the official code has it: flat vectors, the projection over the whole network, Adam, a target network."""
    torch.manual_seed(0)
    ours = TwinValue().double()
    theirs = copy.deepcopy(ours)
    our_target, their_target = copy.deepcopy(ours), copy.deepcopy(ours)
    our_adam = torch.optim.Adam(ours.parameters(), lr=2e-4)
    their_adam = torch.optim.Adam(theirs.parameters(), lr=2e-4)
    orthogonal = OrthogonalGradient(our_adam, eta=0.8)
    for _ in range(100):
        batch = torch.randn(64, 5).double(), torch.randn(64).double(), torch.randn(64, 5).double()
        kappa = orthogonal.step(*losses(ours, our_target, batch))
        ema_(our_target.parameters(), ours.parameters(), 0.005)

        params = list(theirs.parameters())
        flat = []
        for i, loss in enumerate(losses(theirs, their_target, batch)):
            flat.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=i < 2)]))
        f, b = flat[0], 0.8 * flat[1]
        expected = float(f @ b / (f @ f).clamp(min=1e-10))
        g = flat[2] + f + b - expected * f
        for p, part in zip(params, g.split([p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)
        their_adam.step()
        with torch.no_grad():
            for t, p in zip(their_target.parameters(), params, strict=True):
                t.mul_(0.995).add_(p, alpha=0.005)
        assert 0.8 * kappa == pytest.approx(expected, rel=1e-6, abs=1e-9)  # type: ignore[operator]
    for one, other in ((ours, theirs), (our_target, their_target)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def quadratics(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (p * torch.tensor(F)).sum(), (p * torch.tensor(B)).sum(), 10 * p.sum()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, AdamW], ids=["torch", "ferrostep"])
def test_any_optimizer_steps(optimizer: Any) -> None:
    p, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2))
    stepped = OrthogonalGradient(optimizer([p, unused], lr=0.1))
    f, b, e = quadratics(p)
    assert stepped.step(f, b, e) == pytest.approx(1 / 9)
    torch.testing.assert_close(p.grad, torch.tensor([13.8889, 11.7778, 10.7778]), rtol=0, atol=1e-4)
    assert unused.grad is None and (p != 0).all()
    grad = p.grad
    stepped.step(*quadratics(p)[:2])
    assert p.grad is grad
    torch.testing.assert_close(p.grad, torch.tensor([3.8889, 1.7778, 0.7778]), rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="no gradients to combine"):
        stepped.combine()


def test_gradients_that_share_memory() -> None:
    """Autograd gives one tensor for both terms of a sum, and an expanded one for a sum over elements."""
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    stepped = OrthogonalGradient(torch.optim.SGD([one, other], lr=0.1))
    total = one + other
    assert stepped.step(total.sum(), (total * torch.tensor(B)).sum()) == pytest.approx(2 / 3)
    torch.testing.assert_close(one.grad, torch.tensor([3 + 1 / 3, 1 / 3, -2 / 3]))
    assert torch.equal(one.grad, other.grad) and one.grad is not other.grad  # type: ignore[arg-type]


def test_accumulation_and_scaling() -> None:
    p = nn.Parameter(torch.zeros(3))
    stepped = OrthogonalGradient(torch.optim.SGD([p], lr=1.0))
    for _ in range(2):
        f, b, e = quadratics(p)
        stepped.backward(f / 2, b / 2, e / 2)
    assert stepped.combine() == pytest.approx(1 / 9)
    whole = p.grad.clone()  # type: ignore[union-attr]
    stepped.step(*quadratics(p))
    torch.testing.assert_close(p.grad, whole)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = p.detach().clone()
    f, b, e = (scaler.scale(loss) for loss in quadratics(p))
    stepped.backward(f, b, e)
    assert stepped.combine() == pytest.approx(1 / 9)
    scaler.step(stepped.optimizer)
    scaler.update()
    torch.testing.assert_close(before - p.detach(), whole)
    stepped.backward(scaler.scale(quadratics(p)[0] * torch.inf), scaler.scale(quadratics(p)[1]))
    stepped.combine()
    before = p.detach().clone()
    scaler.step(stepped.optimizer)
    scaler.update()
    assert torch.equal(p, before) and scaler.get_scale() < 2.0**10


@pytest.mark.parametrize("which", [0, 1, 2])
def test_nonfinite_gradients_are_skipped_on_demand(which: int) -> None:
    p = nn.Parameter(torch.zeros(3))
    stepped = OrthogonalGradient(torch.optim.SGD([p], lr=1.0), skip_nonfinite=True)
    three = list(quadratics(p))
    three[which] = three[which] * torch.nan
    assert stepped.step(*three) is None
    assert p.grad is None and torch.equal(p, torch.zeros(3))
    assert stepped.step(*quadratics(p)) == pytest.approx(1 / 9)


def jacobian(tasks: int, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, size, generator=generator, dtype=torch.float64) + 0.2


def as_lists(j: Tensor) -> list[list[Tensor | None]]:
    return [[row[:5].clone(), row[5:].clone()] for row in j]


def combined(j: Tensor, w: Tensor) -> Tensor:
    return torch.cat([x for x in combine(as_lists(j), w) if x is not None])


@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 7, 9])
def test_gram_and_combine_for_any_number_of_tasks(tasks: int) -> None:
    j = jacobian(tasks)
    torch.testing.assert_close(gram(as_lists(j)), j @ j.T)
    w = torch.arange(tasks).double() - 1.5
    torch.testing.assert_close(combined(j, w), w @ j)


@pytest.mark.frameworks
def test_two_conflicting_tasks_are_those_of_torchjd() -> None:
    theirs = pytest.importorskip("torchjd.aggregation").PCGrad()
    for seed in range(5):
        j = jacobian(2, seed=seed)
        j[1] -= 1.3 * j[0]
        lists = as_lists(j)
        pcgrad_(lists)
        projected = torch.stack([torch.cat([x for x in each if x is not None]) for each in lists])
        torch.testing.assert_close(projected.sum(0), theirs(j))
        assert (projected @ j.T >= -1e-12).all()


def test_many_tasks_meet_in_the_drawn_order() -> None:
    j = jacobian(5, 8) - 0.4
    lists = as_lists(j)
    pcgrad_(lists, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for i in range(5):
        g = j[i].clone()
        for k in torch.randperm(5, generator=generator).tolist():
            if k != i and g @ j[k] < 0:
                g -= (g @ j[k]) / (j[k] @ j[k]) * j[k]
        torch.testing.assert_close(torch.cat([x for x in lists[i] if x is not None]), g)
    assert torch.equal(pcgrad_weights(torch.eye(4).double()), torch.eye(4).double())


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8])
def test_min_norm_is_optimal(tasks: int) -> None:
    for seed in range(5):
        j = jacobian(tasks, 6, seed=seed) + 0.5
        g = j @ j.T
        w = min_norm_weights(g)
        assert (w >= 0).all() and float(w.sum()) == pytest.approx(1)
        # Optimal: no gradient has less along the point than the point itself.
        assert float((g @ w).min()) >= float(w @ g @ w) - 1e-10


@pytest.mark.frameworks
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8])
def test_min_norm_is_torchjds(tasks: int) -> None:
    solve = pytest.importorskip("torchjd.aggregation").MGDA(epsilon=1e-8, max_iters=20_000)
    for seed in range(5):
        j = jacobian(tasks, 6, seed=seed) + 0.5
        w, theirs = min_norm_weights(j @ j.T), solve(j)
        assert float(combined(j, w).norm()) <= float(theirs.norm()) + 1e-12
        torch.testing.assert_close(combined(j, w), theirs, rtol=0, atol=2e-2)


@pytest.mark.frameworks
def test_aligned_mtl_is_torchjds() -> None:
    theirs = pytest.importorskip("torchjd.aggregation").AlignedMTL()
    for tasks in (2, 3, 5):
        j = jacobian(tasks)
        torch.testing.assert_close(combined(j, aligned_mtl_weights(j @ j.T)), theirs(j), rtol=1e-6, atol=1e-8)
    aligned = aligned_mtl_weights(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))  # one direction
    assert aligned.isfinite().all()


C = (0.0, 0.2, 0.5, 0.99, 1.0, 1.01, 1.5, 3.0, 10.0)
SPOILS: dict[str, Callable[[Tensor], Any]] = {
    "any": lambda j: None,
    "duplicate": lambda j: j[-1].copy_(j[0]),
    "zero": lambda j: j[-1].zero_(),
    "conflict": lambda j: j[-1].copy_(-1.7 * j[0]),
    "opposite": lambda j: j[-1].copy_(-j[0]),
    "sizes": lambda j: j.mul_(10.0 ** (torch.arange(len(j)) % 4 - 2).unsqueeze(1)),
    "tiny": lambda j: j.mul_(1e-12),
}


def best_worst_gain(j: Any, radius: float) -> float:
    """Of a step in the ball about the mean gradient, by a solver for convex problems."""
    mean, size = j.mean(0), np.linalg.norm(j, axis=1).max()
    j, center, radius = j / size, mean / size, radius / size
    result = minimize(
        lambda x: -x[-1],
        np.append(center, (j @ center).min()),
        jac=lambda x: np.append(0 * center, -1.0),
        method="SLSQP",
        constraints=[
            {
                "type": "ineq",
                "fun": lambda x: j @ x[:-1] - x[-1],
                "jac": lambda x: np.pad(j, ((0, 0), (0, 1)), constant_values=-1.0),
            },
            {
                "type": "ineq",
                "fun": lambda x: radius**2 - ((x[:-1] - center) ** 2).sum(),
                "jac": lambda x: np.append(-2 * (x[:-1] - center), 0.0),
            },
        ],
        options={"maxiter": 500, "ftol": 1e-15},
    )
    step = result.x[:-1] - center
    within = center + step * min(1.0, radius / max(float(np.linalg.norm(step)), 1e-300))
    return float((j @ within).min()) * size**2


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize(("tasks", "size"), [(2, 2), (2, 5), (3, 2), (3, 6), (5, 2), (8, 3), (4, 1)])
def test_cagrad_has_the_best_worst_gain_in_its_ball(tasks: int, size: int, spoil: Callable[[Tensor], Any]) -> None:
    for seed in range(2):
        j = jacobian(tasks, size, seed=seed) * (1 + seed)
        spoil(j)
        largest = float(j.norm(dim=1).max())
        for dtype in (torch.float64, torch.float32):
            given_ = j.to(dtype)
            exact = given_.double()
            mean = exact.mean(0)
            lists: list[list[Tensor | None]] = [[row.clone()] for row in given_]
            for c in C:
                w = cagrad_weights(gram(lists), c=c)
                (d,) = combine(lists, w)
                assert d is not None
                # A sum of float32 numbers is as exact as its terms.
                rounded = 1e-9 if dtype == torch.float64 else 2**-22 * max(1.0, float(w.abs().max()))
                radius = c * float(mean.norm())
                assert float((d.double() - mean).norm()) <= radius + rounded * largest
                gain = float((exact @ d.double()).min())
                assert gain >= best_worst_gain(exact.numpy(), radius) - (1e-6 + 2 * rounded) * largest**2


@pytest.mark.parametrize("function", [cagrad_weights, weights.cagrad_weights])
@pytest.mark.parametrize("c", [1.0, 1.5, 10.0])
def test_cagrad_stands_still_where_no_task_can_gain(function: Callable[..., Any], c: float) -> None:
    for j in ([[1, 0], [-1, 1], [-0.3, -1]], [[2.0], [-1.0], [3.0]], [[0, 1], [0, -1], [1, 0], [-1, 0], [0, 0]]):
        matrix = torch.tensor(j, dtype=torch.float64)
        products = matrix @ matrix.T
        w = torch.as_tensor(function(products if function is cagrad_weights else products.numpy(), c=c))
        assert float((w @ matrix).norm()) < 1e-9
        assert float(w.abs().max()) < 3.0


def test_cagrad_goes_where_no_task_loses() -> None:
    """The second component of the mean is good for one task and bad for none."""
    j = torch.tensor([[1, 0], [-2, 0], [0, 1]], dtype=torch.float64)
    for c in (1.0, 3.0):
        torch.testing.assert_close(cagrad_weights(j @ j.T, c=c) @ j, torch.tensor([0, 1 / 3]).double())


@pytest.mark.parametrize("function", [weights.min_norm_weights, weights.cagrad_weights, weights.aligned_mtl_weights])
def test_weights_of_hard_matrices(function: Callable[[Any], Any]) -> None:
    one = np.ones((3, 1)) * np.array([[1.0], [1.0], [-2.0]])
    for g in (np.zeros((2, 2)), one @ one.T, np.ones((4, 4)), np.diag([1e-30, 1e30])):
        assert np.isfinite(function(g)).all()
    with pytest.raises(ValueError, match="square"):
        function(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        function(np.full((2, 2), np.nan))


@pytest.mark.smoke
def test_arrays() -> None:
    lists = [tensors(seed, torch.float32) for seed in range(3)]
    arrays = [[x.numpy().copy() for x in each] for each in lists]
    assert np.array_equal(ferrostep.numpy.gram(arrays), gram(lists).numpy())
    ferrostep.numpy.combine(arrays, [1.0, 2.0, 3.0], arrays[0])
    combine(lists, [1.0, 2.0, 3.0], out=lists[0])
    ferrostep.numpy.ema_(arrays[1], arrays[2], 0.1, num_threads=1)
    ema_(lists[1], lists[2], 0.1)
    for one, other in zip(arrays, lists, strict=True):
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(one, other, strict=True))
    two = [[np.array([1.0, 0.0])], [np.array([-1.0, 1.0])]]
    ferrostep.numpy.pcgrad_(two, generator=np.random.default_rng(0))
    assert np.allclose(two[0][0], [0.5, 0.5]) and np.allclose(two[1][0], [0.0, 1.0])


X = [torch.ones(2, 3), torch.ones(4)]
OTHER = [torch.ones(2, 3), torch.ones(5)]
CASES: dict[str, tuple[str, Callable[[], object]]] = {
    "no tensor to write to": (
        r"^out\[1\] is a NoneType, expected a torch.Tensor",
        lambda: _core.combine([[torch.ones(2)] * 2], [[torch.ones(2), None]], [[1.0]], 1),
    ),
    "length": (r"backward has 1 tensors, expected 2", lambda: orthogonal_([X[0]], X)),
    "shape": (r"backward\[1\] has shape \[5\], expected \[4\]", lambda: orthogonal_(OTHER, X)),
    "dtype": (r"forward\[0\] has dtype", lambda: orthogonal_combine_(list(X), [x.double() for x in X], clones(X))),
    "integers": (r"forward\[0\] has dtype", lambda: orthogonal_(list(X), [x.long() for x in X])),
    "scale": ("scale", lambda: orthogonal_(clones(X), X, scale=float("inf"))),
    "eps": ("eps", lambda: orthogonal_(clones(X), X, eps=-1.0)),
    "eta": ("eta", lambda: orthogonal_combine_(clones(X), X, clones(X), eta=float("nan"))),
    "twice": (
        r"backward\[0\] shares memory with backward\[1\]",
        lambda: orthogonal_([X[1], X[1]], [torch.ones(4), torch.ones(4)]),
    ),
    "expanded": (r"backward\[0\] has elements", lambda: orthogonal_([torch.ones(1).expand(4)], [X[1]])),
    "tau": ("tau", lambda: ema_(clones(X), X, 1.5)),
    "weights": ("weights", lambda: combine([X, OTHER[:1] + X[1:]], [1.0])),
    "gram": (r"gradients\[1\]\[1\] has shape", lambda: gram([X, OTHER])),
    "tau None": ("tau|real number", lambda: ema_(clones(X), X, None)),  # type: ignore[arg-type]
    "one None": (r"one of target\[0\] and source\[0\] is None", lambda: ema_([None], [X[0]], 0.5)),  # type: ignore[list-item]
    "c None": ("^c is a NoneType", lambda: cagrad_weights(torch.eye(2), c=None)),  # type: ignore[arg-type]
    "c negative": ("^Invalid c: -1", lambda: cagrad_weights(torch.eye(2), c=-1.0)),
    "too few orders": ("^orders has 1 lists, expected 2", lambda: weights.pcgrad_weights(np.eye(2), [[0, 1]])),
    "order of no task": (
        r"^orders\[1\] has 2, expected tasks from 0 to below 2",
        lambda: weights.pcgrad_weights(np.eye(2), np.array([[0, 1], [0, 2]])),
    ),
    "order before the first": (r"^orders\[0\] has -1", lambda: weights.pcgrad_weights(np.eye(2), [[-1], []])),
    "order of halves": (r"^orders\[1\]\[0\] is a float", lambda: weights.pcgrad_weights(np.eye(2), [[0], [0.5]])),  # type: ignore[list-item]
    "complex gram": ("^gram has dtype", lambda: min_norm_weights(torch.eye(2, dtype=torch.complex64))),
    "no array": (r"^backward\[0\] is None", lambda: ferrostep.numpy.orthogonal_([None], [np.ones(2)])),  # type: ignore[list-item]
    "no array in out": (r"^out\[0\] is None", lambda: ferrostep.numpy.combine([[np.ones(2)]], [1.0], [None])),  # type: ignore[list-item]
    "no array in both": (
        r"^out\[0\] is None",
        lambda: ferrostep.numpy.orthogonal_combine_([None], [np.ones(2)], [None]),  # type: ignore[list-item]
    ),
    "no array of a task": (
        r"^gradients\[0\]\[0\] is None",
        lambda: ferrostep.numpy.pcgrad_([[None], [np.ones(2)]]),  # type: ignore[list-item]
    ),
    "sparse": ("sparse", lambda: orthogonal_([X[0].to_sparse()], [X[0]])),
}


@pytest.mark.parametrize(("message", "call"), CASES.values(), ids=CASES)
def test_bad_input(message: str, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call()
    assert all(torch.equal(x, torch.ones_like(x)) for x in X)


def test_a_list_of_the_callers_is_left_alone_when_refused() -> None:
    out: list[Any] = [None, None]
    with pytest.raises(ValueError, match="shape"):
        combine([X, OTHER], [1.0, 2.0], out=out)
    assert out == [None, None]
    p = nn.Parameter(torch.zeros(3))
    stepped = OrthogonalGradient(torch.optim.SGD([p], lr=1.0), eta=torch.nan)
    stepped.backward(*quadratics(p))
    with pytest.raises(ValueError, match="eta"):
        stepped.combine()
    stepped.eta = 1.0
    assert stepped.combine() == pytest.approx(1 / 9)  # from the gradients that were kept


WRITTEN: dict[str, Callable[[Any], object]] = {
    "backward": lambda x: orthogonal_(x, X),
    "backward in plain torch": lambda x: orthogonal_(x, [each.to("meta") for each in X]),
    "out": lambda x: orthogonal_combine_(x, X, X),
    "out of combine": lambda x: combine([X, X], [1.0, 2.0], out=x),
    "gradients[1]": lambda x: pcgrad_([clones(X), x]),
}
READ: dict[str, Callable[[Any], object]] = {
    "forward": lambda x: orthogonal_(clones(X), x),
    "forward of both": lambda x: orthogonal_combine_(clones(X), x, X),
    "backward": lambda x: orthogonal_combine_(clones(X), X, x),
    "gradients": gram,
    "gradients[1]": lambda x: gram([X, x]),
    "gradients of combine": lambda x: combine(x, [1.0]),
    "gradients[0]": lambda x: combine([x], [1.0]),
    "gradients of pcgrad": pcgrad_,
    "target": lambda x: ema_(x, X, 0.5),
    "source": lambda x: ema_(clones(X), x, 0.5),
    "tensors": ferrostep.orthogonalize,
    "out of orthogonalize": lambda x: ferrostep.orthogonalize([torch.ones(2, 3)], out=3.0 if x is None else x),
}
ARRAYS = [x.numpy() for x in X]
READ_BY_NUMPY: dict[str, Callable[[Any], object]] = {
    "backward": lambda x: ferrostep.numpy.orthogonal_(x, ARRAYS),
    "forward": lambda x: ferrostep.numpy.orthogonal_(ARRAYS, x),
    "out": lambda x: ferrostep.numpy.orthogonal_combine_(x, ARRAYS, ARRAYS),
    "out of combine": lambda x: ferrostep.numpy.combine([ARRAYS], [1.0], x),
    "gradients": ferrostep.numpy.gram,
    "gradients[0]": lambda x: ferrostep.numpy.pcgrad_([x]),
    "target": lambda x: ferrostep.numpy.ema_(x, ARRAYS, 0.5),
    "out of orthogonalize": lambda x: ferrostep.numpy.orthogonalize([ARRAYS[0]], out=3.0 if x is None else x),
}


@pytest.mark.parametrize("name", [name for name in WRITTEN if "plain torch" not in name])
def test_tuples_are_written_in_place(name: str) -> None:
    call = WRITTEN[name]
    lists, tuples = clones(X), tuple(clones(X))
    call(lists)
    versions = [x._version for x in tuples]
    call(tuples)
    assert all(torch.equal(x, y) for x, y in zip(tuples, lists, strict=True))
    assert all(x._version > version for x, version in zip(tuples, versions, strict=True))


@pytest.mark.parametrize(("name", "call"), WRITTEN.items(), ids=WRITTEN)
def test_a_tuple_takes_no_new_tensor(name: str, call: Callable[[Any], object]) -> None:
    given_ = (torch.full((2, 3), 3.0), None)
    name = name.split()[0]
    with pytest.raises(TypeError, match=re.escape(f"{name}[1] is None, which a tuple cannot")):
        call(given_)
    assert torch.equal(given_[0], torch.full((2, 3), 3.0)) and given_[0]._version == 0
    with pytest.raises(TypeError, match=re.escape(f"{name} is a generator, expected a list")):
        call(x for x in clones(X))


NO_LISTS = [
    (name, call, given_)
    for name, call in (*WRITTEN.items(), *READ.items(), *READ_BY_NUMPY.items())
    for given_ in (X[1], None, 3.0)
    if not (given_ is None and name == "out of combine") and not (given_ is X[1] and name == "tensors")
]


@pytest.mark.parametrize(("name", "call", "given_"), NO_LISTS)
def test_what_is_no_list_is_refused_by_name(name: str, call: Callable[[Any], object], given_: Any) -> None:
    before = [x._version for x in X]
    with pytest.raises(
        TypeError, match=rf"^{re.escape(name.split()[0])} is a (Tensor|NoneType|float), expected a list"
    ):
        call(given_)
    assert all(torch.equal(x, torch.ones_like(x)) for x in X) and before == [x._version for x in X]


@pytest.mark.parametrize("module", [ferrostep.gradients, ferrostep.numpy], ids=["torch", "numpy"])
def test_weights_of_a_combination_are_numbers(module: Any) -> None:
    lists = [X] if module is ferrostep.gradients else [ARRAYS]
    out = clones(X) if module is ferrostep.gradients else [x.copy() for x in ARRAYS]
    bad: Any
    for bad, message in (
        (None, "^weights is a NoneType, expected numbers"),
        ([None], r"^weights\[0\] is a NoneType, expected a number"),
        (1.0, "^weights is a float"),
        ("1", "^weights is a str"),
        (torch.ones(1, 1), r"^weights has shape \[1, 1\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            module.combine(lists, bad, out=out)
    assert all((x == 1).all() for x in out)


@pytest.mark.parametrize(
    "function", [min_norm_weights, cagrad_weights, aligned_mtl_weights, pcgrad_weights, weights.min_norm_weights]
)
def test_weights_take_numbers_and_no_gradients(function: Callable[..., Any]) -> None:
    rows = [[2.0, 0.5], [0.5, 1]]
    array = function is weights.min_norm_weights
    given_ = np.array(rows) if array else torch.tensor(rows)
    assert np.array_equal(function(rows), function(given_))
    bad: Any
    for bad in ([X, X], [[torch.ones(())] * 2] * 2, X, [None], None, "gram", [["1", "2"]]):
        with pytest.raises(TypeError, match=r"^gram (is|has) a .* expected a square matrix of numbers"):
            function(bad)
    for bad in ([1.0, 2.0], [], 3.0, torch.ones(2, 3).numpy()):
        with pytest.raises(ValueError, match="square"):
            function(bad)


META = [x.to("meta") for x in X]
ELSEWHERE: dict[str, tuple[str, Callable[[], object]]] = {
    "length": ("backward has 1 tensors, expected 2, as forward has", lambda: orthogonal_(META[:1], META)),
    "shape": (
        r"backward\[1\] has shape \[5\], expected \[4\]",
        lambda: orthogonal_([x.to("meta") for x in OTHER], META),
    ),
    "dtype": (r"source\[0\] has dtype float64", lambda: ema_(META, [x.double() for x in META], 0.5)),
    "integers": (r"gradients\[0\]\[0\] has dtype", lambda: gram([[x.long() for x in META], META])),
    "devices": (r"backward\[0\] is on device cpu, expected meta", lambda: orthogonal_(list(X), META)),
    "devices within a list": (r"forward\[1\] is on device cpu", lambda: orthogonal_([None, None], [META[0], X[1]])),
    "the CPU first": (r"backward\[0\]", lambda: orthogonal_([*META], X)),
    "no tensor": (r"out\[0\] is a float", lambda: combine([META], [1.0], out=[3.0, None])),  # type: ignore[list-item]
    "weights": ("weights has 1 numbers, expected 2", lambda: combine([META, META], [1.0])),
    "scale": ("scale", lambda: reference.orthogonal_(clones(X), X, scale=float("inf"))),
    "eps": ("eps", lambda: reference.orthogonal_(clones(X), X, eps=-1.0)),
    "eps NaN": ("eps", lambda: reference.orthogonal_(clones(X), X, eps=float("nan"))),
    "eta": ("eta", lambda: reference.orthogonal_combine_(clones(X), X, clones(X), eta=float("nan"))),
    "one None": (r"one of target\[1\]", lambda: ema_([META[0], None], META, 0.5)),  # type: ignore[list-item]
    "tau None": ("^tau is a NoneType", lambda: ema_(META, META, None)),  # type: ignore[arg-type]
    "scale None": ("^scale is a", lambda: orthogonal_([*META], META, scale=None)),  # type: ignore[arg-type]
    "tau": ("tau", lambda: reference.ema_(clones(X), X, float("nan"))),
}


@pytest.mark.parametrize(("message", "call"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_bad_input_on_other_devices(message: str, call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call()
    assert all(torch.equal(x, torch.ones_like(x)) for x in X)


def test_other_devices_use_torch() -> None:
    meta = [torch.empty(3, device="meta")]
    with pytest.raises((RuntimeError, NotImplementedError)):  # meta tensors have no numbers, so no kappa
        orthogonal_([*meta], meta)
    combined_ = combine([meta, meta], [1.0, 2.0])
    assert combined_[0] is not None and combined_[0].device.type == "meta"
