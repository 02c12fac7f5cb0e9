"""Clipping by the global norm within the step, beside torch's clip_grad_norm_ before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ferrostep.offload import HostOptimizer
from ferrostep.optim import SAM, AdamW, MuonWithAuxAdamW
from tests.contract.rules.registry import ADAMW, Entry, every, one_of_each_class
from tests.contract.training import assert_close, assert_same_bits, copies, parameters, set_gradients

every_class_near_the_reference = every(lambda entry: entry in one_of_each_class() and not entry.amplifies)


def squares(params: Sequence[Tensor]) -> float:
    """The squared norm of all gradients, in float64."""
    return sum(p.grad.abs().double().square().sum().item() for p in params)


@pytest.mark.smoke
@every_class_near_the_reference
@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize("limit", [0.5, 1e3, 0.0])
def test_is_a_clip_before_the_step(entry: Entry, backend: str, limit: float) -> None:
    ours, theirs = parameters(entry.shapes, torch.float64), parameters(entry.shapes, torch.float64)
    optimizer = entry.build(ours, max_grad_norm=limit, backend=backend)
    other = entry.build(theirs, backend=backend)
    for step in range(3):
        for params in (ours, theirs):
            set_gradients(params, step)
        optimizer.step()
        norm = clip_grad_norm_(theirs, limit)
        other.step()
        torch.testing.assert_close(optimizer.last_grad_norm.double(), norm, rtol=1e-6, atol=0)
    assert_close(optimizer, other, 1e-9, least_size=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_gradients_stay_and_the_norm_is_that_of_all(dtype: torch.dtype, backend: str) -> None:
    params = parameters([(1000, 33), (), (0, 4), (7, 5)], dtype)
    params[3].data = params[3].data.t().contiguous().t()
    optimizer = AdamW(params, max_grad_norm=1.0, backend=backend)
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))
    assert optimizer.last_grad_norm.dim() == 0
    assert optimizer.last_grad_norm.item() == pytest.approx(squares(params) ** 0.5, rel=1e-6)


def test_groups_share_a_norm_and_have_limits_of_their_own() -> None:
    ours, theirs = parameters([(30,)] * 4), parameters([(30,)] * 4)
    limits = (0.5, None, 2.0)
    optimizer = AdamW(
        [
            {"params": ours[:1], "max_grad_norm": limits[0]},
            {"params": ours[1:2]},
            {"params": ours[2:3], "max_grad_norm": limits[2], "backend": "reference"},
            {"params": ours[3:], "max_grad_norm": float("inf")},
        ],
        **ADAMW,
    )
    other = AdamW([{"params": [p]} for p in theirs], **ADAMW)
    for params in (ours, theirs):
        set_gradients(params, 0)
    optimizer.step()
    norm = squares([theirs[0], *theirs[2:]]) ** 0.5
    for p, limit in zip(theirs, limits, strict=False):
        if limit is not None:
            p.grad *= min(1.0, limit / (norm + 1e-6))
    other.step()
    assert optimizer.last_grad_norm.item() == pytest.approx(norm, rel=1e-6)
    assert_close(optimizer, other, 1e-6)


def test_what_is_below_the_limit_is_not_changed_by_a_bit(isa: str) -> None:
    results = []
    for limit in (None, float("inf")):
        params = parameters([(300,), (5, 7)])
        optimizer = AdamW(params, max_grad_norm=limit)
        set_gradients(params, 0)
        optimizer.step()
        results.append(optimizer)
    assert results[0].last_grad_norm is None
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_behaves_as_in_torch(special: float, backend: str) -> None:
    ours, theirs = parameters([(5,), (3, 2)]), parameters([(5,), (3, 2)])
    optimizer, other = AdamW(ours, max_grad_norm=1.0, backend=backend), AdamW(theirs)
    for params in (ours, theirs):
        set_gradients(params, 0)
        params[0].grad[2] = special
    optimizer.step()
    clip_grad_norm_(theirs, 1.0)
    other.step()
    assert torch.equal(optimizer.last_grad_norm.isnan(), torch.tensor(special).isnan())
    assert_close(optimizer, other, 1e-6)


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_a_step_that_is_skipped_changes_nothing(backend: str) -> None:
    params = parameters([(5,), (3, 2)])
    optimizer = AdamW(params, max_grad_norm=1.0, skip_nonfinite=True, backend=backend)
    set_gradients(params, 0)
    optimizer.step()
    before = copies(optimizer)
    params[1].grad[0, 0] = float("nan")
    optimizer.step()
    assert_same_bits(copies(optimizer), before)
    assert optimizer.last_grad_norm.isnan()


WRAPPED: dict[str, Callable[..., Optimizer]] = {
    "HostOptimizer": lambda cls, params, **options: HostOptimizer(params, cls, **options),
    "SAM": lambda cls, params, **options: SAM(cls(params, **options)),
    "SAM of HostOptimizer": lambda cls, params, **options: SAM(HostOptimizer(params, cls, **options)),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_who_holds_an_optimizer_has_its_norm(wrapped: Callable[..., Optimizer]) -> None:
    params = parameters([(5,), (3, 2)])
    optimizer = wrapped(AdamW, params, max_grad_norm=1.0)
    assert optimizer.last_grad_norm is None
    optimizer.step(lambda: set_gradients(params, 0))
    assert optimizer.last_grad_norm.item() == pytest.approx(squares(params) ** 0.5, rel=1e-6)
    assert wrapped(torch.optim.AdamW, params).last_grad_norm is None


def test_the_norm_is_the_same_with_any_number_of_threads(isa: str) -> None:
    norms = set()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            params = parameters([(100_001,), (40_000, 2)])
            optimizer = AdamW(params, max_grad_norm=1.0)
            set_gradients(params, 0)
            optimizer.step()
            norms.add(optimizer.last_grad_norm.item())
    finally:
        torch.set_num_threads(threads)
    assert len(norms) == 1


def test_groups_of_adamw_and_muon_share_a_norm() -> None:
    ours, theirs = parameters([(6, 5), (7,)], torch.float64), parameters([(6, 5), (7,)], torch.float64)
    optimizers = [
        MuonWithAuxAdamW(
            [
                {"params": params[:1], "use_muon": True, "ns_precision": "float64", **limit},
                {"params": params[1:], "use_muon": False, **limit},
            ]
        )
        for params, limit in ((ours, {"max_grad_norm": 0.3}), (theirs, {}))
    ]
    for params in (ours, theirs):
        set_gradients(params, 0)
    clip_grad_norm_(theirs, 0.3)
    for optimizer in optimizers:
        optimizer.step()
    assert_close(*optimizers, 1e-9, least_size=1.0)
