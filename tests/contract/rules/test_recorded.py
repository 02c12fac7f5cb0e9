"""Norms of gradients that steps leave behind: those of a pass before it, to the bit; and the steps are the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from ferrostep.offload import HostOptimizer
from ferrostep.optim import FRUGAL, SAM, AdamW, Lion, release
from ferrostep.schedules import GradNormRecorder
from tests.contract.rules.registry import ADAMW, Entry, every
from tests.contract.training import assert_same_bits, normal, parameters, set_gradients

SHAPES = ((40, 1000), (7, 5), (0, 4), (300,))


def recorders(optimizer: Optimizer) -> list[GradNormRecorder]:
    return [GradNormRecorder(optimizer, norm) for norm in ("l1", "l2")]


def check(optimizer: Optimizer, params: Sequence[Tensor], other: Optimizer, others: Sequence[Tensor]) -> None:
    """The recorded steps of one optimizer beside the plain ones of another."""
    attached, by_hand = [each.attach() for each in recorders(optimizer)], recorders(optimizer)
    for step in range(2):
        for each in (params, others):
            set_gradients(each, step)
        for one in by_hand:
            one.record()
        optimizer.step()
        other.step()
    assert [one.norms for one in attached] == [one.norms for one in by_hand]
    assert all(len(one.norms) == 2 and min(one.norms) > 0 for one in attached)
    assert_same_bits(optimizer, other)


@every()
def test_norms_are_those_of_a_pass_before_the_step(entry: Entry) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    check(entry.build(params), params, entry.build(others), others)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (AdamW, {"rounding": "stochastic", "seed": 3}),
        (AdamW, {"rounding": "kahan"}),
        (AdamW, {"master_weights": "split"}),
        (AdamW, {"master_weights": "float32"}),
        (AdamW, {"state_dtype": "int8", "min_quant_numel": 1}),
        (AdamW, {"max_grad_norm": 0.5, "state_dtype": torch.bfloat16}),
        (Lion, {"kappa": "topk", "kappa_param": 3, "rounding": "stochastic"}),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else x.__name__,
)
def test_steps_in_16_bits_are_the_same(build: Any, options: dict[str, Any]) -> None:
    dtype = torch.float16 if options.get("rounding") == "stochastic" else torch.bfloat16
    params, others = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    check(build(params, **options), params, build(others, **options), others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"backend": "reference"}], ids=str)
def test_norms_are_those_of_the_definition(dtype: torch.dtype, options: dict[str, Any]) -> None:
    params = parameters([*SHAPES, ()], dtype)
    optimizer = AdamW([{"params": params[:2], **options}, {"params": params[2:]}])
    l1, l2 = (each.attach() for each in recorders(optimizer))
    set_gradients(params, 0)
    params[3].grad = None
    optimizer.step()
    every = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    assert l1.norms == pytest.approx([torch.linalg.vector_norm(every, 1, dtype=_wide(dtype)).item()], rel=1e-12)
    assert l2.norms == pytest.approx([torch.linalg.vector_norm(every, 2, dtype=_wide(dtype)).item()], rel=1e-12)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def test_norms_are_the_same_with_any_number_of_threads(isa: str) -> None:
    found = set()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            params = parameters([(100_001,), (40_000, 2)])
            optimizer = AdamW(params)
            l1, l2 = (each.attach() for each in recorders(optimizer))
            set_gradients(params, 0)
            optimizer.step()
            found.add((*l1.norms, *l2.norms))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_gradients_that_are_freed_as_they_come_are_recorded(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "BYTES_AT_ONCE", at_once)
    found = []
    for is_attached in (True, False):
        params = parameters([(30, 20), (5,), (7, 5)])
        optimizer = AdamW(params, **ADAMW)
        l1, l2 = (each.attach() for each in recorders(optimizer))
        if is_attached:
            optimizer.attach()
        for step in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(params, [normal(p.shape, p.dtype, 1, step, i) for i, p in enumerate(params)])
            optimizer.step()
        found.append((l1.norms, l2.norms))
    assert found[0] == found[1] and len(found[0][0]) == 2
    # What a broken round has left does not go into the next.
    with optimizer.attach():
        torch.autograd.backward(params[:1], [torch.full((30, 20), 9.0)])
        optimizer.zero_grad()
        torch.autograd.backward(params[1:2], [torch.ones(5)])
        optimizer.step()
    assert l1.norms[-1] == 5.0


def test_steps_that_are_not_taken_are_not_recorded() -> None:
    params = parameters([(5,), (3, 2)])
    optimizer = AdamW(params, skip_nonfinite=True)
    every, second = GradNormRecorder(optimizer).attach(), GradNormRecorder(optimizer, "l2", every=2).attach()
    for x in (1.0, float("nan"), 2.0):
        for p in params:
            p.grad = torch.full_like(p, x)
        optimizer.step()
    assert (every.norms, second.norms) == ([11.0, 22.0], [11.0**0.5])
    params[1].grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert (len(every.norms), len(second.norms)) == (2, 1)


def test_norms_are_of_the_closures_gradients_and_end_with_detach() -> None:
    for build in (AdamW, torch.optim.AdamW):
        (p,) = parameters([(4,)])
        optimizer = build([p])

        def closure(p: Tensor = p, optimizer: Optimizer = optimizer) -> float:
            optimizer.zero_grad()
            loss = 3 * p.sum()
            loss.backward()
            return loss.item()

        with GradNormRecorder(optimizer).attach() as recorder:
            optimizer.step(closure)
            with pytest.raises(RuntimeError, match="twice"):
                recorder.attach()
            with pytest.raises(RuntimeError, match="twice"):
                recorder.record()
        optimizer.step(closure)
        assert recorder.norms == [12.0]
        assert recorder.record() == 12.0


def test_all_recorders_hear_of_a_step_whatever_one_of_them_raises() -> None:
    class Failing(GradNormRecorder):
        def _passed(self, power_sum: float | None) -> None:
            raise RuntimeError("no room")

    (p,) = parameters([(4,)])
    optimizer = FRUGAL([p], update_gap=5)
    first, failing, last = (each(optimizer).attach() for each in (GradNormRecorder, Failing, GradNormRecorder))
    p.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="no room"):
        optimizer.step()
    failing.detach()
    optimizer.step()
    assert first.norms == last.norms == [4.0, 4.0]
    assert optimizer.state[p]["step"] == 2 and optimizer.param_groups[0]["steps_left"] == 3


def test_copies_are_not_recorded() -> None:
    (p,) = parameters([(4,)])
    optimizer = AdamW([p])
    recorder = GradNormRecorder(optimizer).attach()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        copied.param_groups[0]["params"][0].grad = torch.ones(4)
        copied.step()
    assert recorder.norms == []
    optimizer.load_state_dict(optimizer.state_dict())
    p.grad = torch.ones(4)
    optimizer.step()
    assert recorder.norms == [4.0]


@pytest.mark.parametrize("build", [AdamW, torch.optim.AdamW])
def test_what_an_optimizer_inside_has_used_is_recorded(build: type[Optimizer]) -> None:
    (p,) = parameters([(4,)], torch.bfloat16)
    around = SAM(HostOptimizer([p], build), rho=0.5)
    recorder = GradNormRecorder(around).attach()
    (2 * p).sum().backward()
    around.first_step(zero_grad=True)
    (3 * p).sum().backward()
    around.second_step(zero_grad=True)
    assert recorder.norms == [12.0]


def test_gradients_that_were_taken_to_the_host_are_recorded_there() -> None:
    (p,) = parameters([(4,)], torch.bfloat16)
    optimizer = HostOptimizer([p], torch.optim.AdamW, offload_gradients=True)
    recorder = GradNormRecorder(optimizer)
    (2 * p).sum().backward()
    with pytest.raises(RuntimeError, match=r"record\(\) needs all gradients"):
        recorder.record()
    with recorder.attach():
        optimizer.step()
    assert recorder.norms == [8.0]
