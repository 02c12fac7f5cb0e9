"""Adaptive batches: statistics of gradients, tests and sizes by their definitions, the sampler's streams."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ferrostep.batch_size import (
    AdaptiveBatchSize,
    BatchSizeDecision,
    GradStatistics,
    GradVarianceAccumulator,
    ResizableBatchSampler,
    augmented_test,
    inner_product_test,
    noise_scale,
    norm_test,
    sample_statistics,
    two_batch_statistics,
)
from ferrostep.gradients.lists import follow, power_sum
from ferrostep.reference import gradients as reference

ROWS = torch.tensor([[1.0, 0, 2], [3, 1, 0], [2, -1, 1], [0, 0, 1]], dtype=torch.float64)
NAN, INF = math.nan, math.inf


def accumulated(parts: list[Tensor], params: list[nn.Parameter] | None = None, **options: Any) -> GradStatistics:
    """Of rows as per-sample gradients, part by part, spread over parameters of one and two elements."""
    params = params or [nn.Parameter(torch.zeros(n, dtype=parts[0].dtype)) for n in (1, 2)]
    accumulator = GradVarianceAccumulator(params, **options)
    count = sum(map(len, parts))
    for part in parts:
        loss = part[:, :1] @ params[0] + part[:, 1:] @ params[1]
        (loss.mean() * len(part) / count).backward()
        accumulator.add(len(part))
    return accumulator.result()


def test_statistics_of_samples_are_exact_however_parameters_are_cut() -> None:
    for cuts in ((3,), (1, 2), (2, 1)):
        found = sample_statistics(ROWS.split(cuts, 1))
        expected = (4, 3.25, 3.0, 2.4166666666666665, 2.2564102564102564)
        assert (*found, found.orthogonal_variance) == pytest.approx(expected, rel=1e-14)
    assert sample_statistics({"w": ROWS}) == sample_statistics([ROWS])


def test_statistics_of_torch_func() -> None:
    layer, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    params = {name: p.detach() for name, p in layer.named_parameters()}
    each = torch.func.vmap(
        torch.func.grad(lambda p, row: torch.func.functional_call(layer, p, row).square().sum()), (None, 0)
    )(params, x)
    flat = torch.cat([g.flatten(1) for g in each.values()], 1)
    assert sample_statistics(each).variance == pytest.approx(flat.var(0).sum().item())


def test_statistics_of_micro_batches() -> None:
    found = accumulated([ROWS[:2], ROWS[2:]], inner_products=True)
    assert found[:3] == pytest.approx((4, 3.25, 2.0))
    assert found.inner_variance == pytest.approx(2 * torch.tensor([4.0, 2.5]).var().item())
    one_by_one = accumulated(list(ROWS.split(1)), inner_products=True)
    assert one_by_one == pytest.approx(sample_statistics([ROWS]), rel=1e-12)


def test_micro_batches_of_any_size_give_the_variance_without_bias() -> None:
    rows = torch.randn(12, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    exact = sample_statistics([rows])
    params = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (1, 2)]
    found = []
    for _ in range(400):
        params[0].grad = params[1].grad = None
        found.append(accumulated(list(rows[torch.randperm(12)].split([2, 5, 4, 1])), params))
    assert np.mean([each.variance for each in found]) == pytest.approx(exact.variance, rel=0.1)
    assert found[0].squared_norm == pytest.approx(exact.squared_norm)


def test_statistics_of_two_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, generator=generator, dtype=torch.float64) + 0.6
    squares = [
        rows[torch.randint(4000, (20_000, size), generator=generator)].mean(1).square().sum(1).mean().item()
        for size in (4, 16)
    ]
    found = two_batch_statistics(4, squares[0], 16, squares[1])
    assert found.variance == pytest.approx(rows.var(0).sum().item(), rel=0.03)
    assert found.unbiased_squared_norm == pytest.approx(rows.mean(0).square().sum().item(), rel=0.03)


def test_ranks_count_as_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks one after the other: the second gets the first one's numbers."""
    sent: list[Tensor] = []

    def all_reduce(x: Tensor, group: Any) -> None:
        sent.append(x.clone())
        x += sum(sent[:-1])

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for rows in (ROWS[:2], ROWS[2:]):
        w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        accumulator = GradVarianceAccumulator([w], inner_products=True)
        for row in rows.split(1):
            (row @ w / 2).sum().backward()
            accumulator.add(1)
        w.grad.copy_(ROWS.mean(0))
        found = accumulator.result(group="all")
    assert found == pytest.approx(sample_statistics([ROWS]), rel=1e-12)
    with pytest.raises(RuntimeError, match="different sizes"):
        GradVarianceAccumulator([w]).result(group="all")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_the_passes_are_those_of_plain_torch(dtype: torch.dtype) -> None:
    gradient = [torch.randn(n, 7).t().to(dtype) for n in (1, 5, 900)] + [None]
    before = [None if x is None else torch.randn_like(x) for x in gradient]
    others = [None if x is None else x.clone() for x in before]
    if not dtype.is_complex:
        found = [power_sum(gradient, order) for order in (1, 2)]
        assert found == pytest.approx(reference.norms(gradient), rel=1e-12)
    assert follow(gradient, before) == pytest.approx(reference.follow(gradient, others), rel=1e-12)
    for x, copied, other in zip(gradient, before, others, strict=True):
        assert x is None or (torch.equal(x, copied) and torch.equal(x, other))


def test_accumulation_begins_anew_after_a_reset() -> None:
    w, unused = nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.zeros(2))
    accumulator = GradVarianceAccumulator([w, unused])
    for _ in range(2):
        w.grad = None
        accumulator.reset()
        for part in ROWS.split(2):
            ((part @ w).mean() / 2).backward()
            accumulator.add(2)
        assert accumulator.result().variance == pytest.approx(2.0)
    w.grad, unused.grad = None, torch.ones(2)
    with pytest.raises(RuntimeError, match=r"params\[0\].grad has gone"):
        accumulator.add(2)
    assert accumulator.result().variance == pytest.approx(2.0)
    accumulator.reset()
    w.data, w.grad, unused.grad = w.data.float(), None, None  # as after model.float()
    for part in ROWS.float().split(2):
        ((part @ w).mean() / 2).backward()
        accumulator.add(2)
    assert accumulator.result().variance == pytest.approx(2.0)


EXACT = sample_statistics([ROWS])


def test_decisions() -> None:
    assert norm_test(EXACT) == BatchSizeDecision(4, True, pytest.approx(3.6923076923))
    assert norm_test(EXACT, eta=0.1) == BatchSizeDecision(93, False, pytest.approx(92.3076923))
    assert inner_product_test(EXACT) == BatchSizeDecision(4, True, pytest.approx(0.28246524))
    assert augmented_test(EXACT, theta=2.0, nu=5.84).stat == pytest.approx(
        max(2.4166666667 / 4 / 3.25**2, 0.02035678), rel=1e-6
    )
    assert augmented_test(EXACT, theta=1e3, nu=5.84).stat == pytest.approx(0.02035678, rel=1e-6)
    assert noise_scale(EXACT) == pytest.approx(3.0 / 2.5)


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
def test_the_norm_test_asks_for_a_number_of_noise_scales(eta: float) -> None:
    enough = (1 / eta**2 - 1) * 1000
    for size, passes in ((math.ceil(enough), True), (math.floor(0.99 * enough), False)):
        known = GradStatistics(size, 2.0 + 2000.0 / size, 2000.0)
        assert noise_scale(known) == pytest.approx(1000.0) and norm_test(known, eta).passed == passes


@pytest.mark.parametrize(
    "statistics",
    [
        GradStatistics(1, 1.0, NAN),  # one micro-batch
        GradStatistics(4, 0.0, 0.0, 0.0),  # zero gradients
        GradStatistics(4, 0.0, 2.0, 0.0),  # that cancel
        GradStatistics(4, NAN, NAN, NAN),
        GradStatistics(4, INF, INF, INF),
        sample_statistics([torch.full((1, 3), 2.0)]),
        sample_statistics([torch.zeros(4, 3)]),
        sample_statistics([torch.tensor([[INF], [1.0]])]),
    ],
)
def test_statistics_that_say_nothing_change_nothing(statistics: GradStatistics) -> None:
    present = statistics.batch_size
    for test in (norm_test, inner_product_test, augmented_test):
        assert test(statistics) == BatchSizeDecision(present, False, pytest.approx(NAN, nan_ok=True))
    for name in ("norm", "inner_product", "augmented"):
        batch = AdaptiveBatchSize(4, 64, test=name, interval=1)
        assert batch.update(statistics) == 4 and (batch.steps, batch.skipped, batch.decision) == (1, 1, None)
    assert not 0 < noise_scale(statistics) < INF


def test_scales_of_the_loss_do_not_count() -> None:
    for power in (-20, 7, 40):
        other = sample_statistics([ROWS * 2.0**power])
        for test in (norm_test, inner_product_test, augmented_test):
            assert test(other) == test(EXACT)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [4, 4]),
        ({"eta": 0.1}, [8, 16, 32, 64, 93, 93]),
        ({"eta": 0.1, "max_size": 20}, [8, 16, 20, 20]),
        ({"eta": 0.1, "multiple_of": 16}, [16, 32, 64, 96]),
        ({"eta": 0.1, "interval": 2}, [4, 8, 8, 16]),
        ({"eta": 0.1, "growth_cap": 100.0}, [93]),
        ({"eta": 0.1, "micro_batch": 2, "growth_cap": 100.0}, [94]),
        ({"test": "inner_product"}, [4]),
        ({"test": "augmented", "theta": 0.05, "growth_cap": 50.0}, [92]),
    ],
)
def test_sizes_grow_as_the_test_asks(options: dict[str, Any], sizes: list[int]) -> None:
    batch = AdaptiveBatchSize(4, **{"max_size": 1000, "interval": 1, **options})
    assert [batch.update(EXACT) for _ in sizes] == sizes
    assert batch.noise_scale == pytest.approx(1.2)


def test_averages_are_taken_of_both_parts_of_the_fraction() -> None:
    batch = AdaptiveBatchSize(4, 1000, eta=1.0, ema=0.5, interval=2, growth_cap=1e3)
    batch.update(GradStatistics(4, squared_norm=1.0, variance=2.0))
    batch.update(GradStatistics(4, squared_norm=3.0, variance=402.0))
    assert batch.decision == BatchSizeDecision(101, False, 101.0)


def test_what_was_not_known_does_not_stay_so() -> None:
    batch, other = AdaptiveBatchSize(4, 1000, interval=1), AdaptiveBatchSize(4, 1000, test="augmented", interval=1)
    batch.update(GradStatistics(4, squared_norm=1.0, variance=1.0))
    other.load_state_dict(batch.state_dict())
    assert other.update(GradStatistics(4, 1.0, variance=100.0, inner_variance=100.0)) == 8


def test_a_controller_resumes() -> None:
    batch = AdaptiveBatchSize(4, 1000, eta=0.1, interval=2, micro_batch=4)
    for _ in range(3):
        batch.update(EXACT if batch.is_due else None)
    other = AdaptiveBatchSize(8, 1000, eta=0.1, interval=2, micro_batch=4)
    other.load_state_dict(copy.deepcopy(batch.state_dict()))
    for each in (batch, other):
        assert each.is_due and each.update(EXACT) == 16 and each.accumulation_steps == 4
    assert batch.state_dict() == other.state_dict()
    with pytest.raises(ValueError, match="multiple of micro_batch"):
        other.load_state_dict({**batch.state_dict(), "size": 6})
    with pytest.raises(KeyError, match="variance"):
        other.load_state_dict({**batch.state_dict(), "averages": {"x": 1.0}})
    assert batch.state_dict() == other.state_dict()


def test_the_sampler_goes_through_each_epoch_once_whatever_the_sizes() -> None:
    sampler = ResizableBatchSampler(50, 4, seed=3)
    epochs = []
    for _ in range(2):
        seen: list[list[int]] = []
        for batch in sampler:
            seen.append(batch)
            sampler.resize(8 if len(seen) > 1 else 4)
        assert sorted(i for batch in seen for i in batch) == list(range(50))
        epochs.append(seen)
    assert [len(batch) for batch in epochs[0]] == [4, 4, 8, 8, 8, 8, 8, 2]
    assert epochs[0] != epochs[1] and len(sampler) == 7


def test_the_sampler_resumes_at_any_place() -> None:
    def stream(sampler: ResizableBatchSampler, count: int) -> list[list[int]]:
        found: list[list[int]] = []
        while len(found) < count:
            for batch in sampler:
                found.append(batch)
                if len(found) == 3:
                    sampler.resize(6)
                if len(found) == count:
                    break
        return found

    whole = stream(ResizableBatchSampler(23, 4, drop_last=True), 9)
    for at in range(9):
        first = ResizableBatchSampler(23, 4, drop_last=True)
        start = stream(first, at)
        second = ResizableBatchSampler(23, 5, seed=7, drop_last=True)
        second.load_state_dict(first.state_dict())
        rest = stream(second, 3 - at) + stream(second, 6) if at < 3 else stream(second, 9 - at)
        assert start + rest == whole or at < 3  # there the size changes later
        assert (start + rest)[:3] == whole[:3]


def test_workers_fetch_ahead_and_the_state_does_not() -> None:
    sampler = ResizableBatchSampler(12, 2, shuffle=False)
    batches = iter(DataLoader(range(12), batch_sampler=sampler, num_workers=1))
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    state = sampler.state_dict(batches=2)
    assert state["position"] == 4 < sampler.state_dict()["position"]
    sampler.load_state_dict(state)
    assert next(iter(sampler)) == [4, 5]


@pytest.mark.parametrize(
    "change", [lambda sampler: next(iter(sampler)), lambda sampler: sampler.load_state_dict(sampler.state_dict())]
)
def test_an_iteration_ends_where_the_sampler_begins_anew(change: Any) -> None:
    sampler = ResizableBatchSampler(12, 2, shuffle=False)
    first = iter(sampler)
    next(first)
    change(sampler)
    state = sampler.state_dict()
    with pytest.raises(RuntimeError, match="another iteration"):
        next(first)
    assert sampler.state_dict() == state


def test_ranks_share_each_batch() -> None:
    ranks = [ResizableBatchSampler(11, 4, num_replicas=2, rank=rank) for rank in range(2)]
    batches = list(zip(*ranks, strict=True))
    assert [[len(part) for part in batch] for batch in batches] == [[2, 2], [2, 2], [1, 1]]
    assert len({i for batch in batches for part in batch for i in part}) == 10


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GradVarianceAccumulator([]), ValueError, "params is empty"),
        (lambda: GradVarianceAccumulator([nn.Parameter(torch.ones(1))]).add(1), RuntimeError, "no parameter has"),
        (lambda: GradVarianceAccumulator([nn.Parameter(torch.ones(1))]).add(0), ValueError, "batch_size"),
        (lambda: GradVarianceAccumulator([nn.Parameter(torch.ones(1))]).result(), RuntimeError, "nothing has been"),
        (lambda: sample_statistics([]), ValueError, "gradients is empty"),
        (lambda: sample_statistics([torch.ones(0, 2)]), ValueError, r"gradients\[0\] is empty"),
        (lambda: sample_statistics([torch.ones(2), torch.ones(3)]), ValueError, r"gradients\[1\] has shape"),
        (lambda: sample_statistics([torch.ones(())]), ValueError, r"gradients\[0\] has shape"),
        (lambda: sample_statistics([torch.ones(2).int()]), ValueError, r"gradients\[0\] has dtype"),
        (lambda: two_batch_statistics(4, 1.0, 4, 1.0), ValueError, "batch"),
        (lambda: two_batch_statistics(4, NAN, 8, 1.0), ValueError, "small_squared_norm"),
        (lambda: norm_test(EXACT, eta=0.0), ValueError, "eta"),
        (lambda: inner_product_test(EXACT, theta=NAN), ValueError, "theta"),
        (lambda: augmented_test(EXACT, nu="1"), TypeError, "nu"),
        (lambda: norm_test(None), TypeError, "statistics is a NoneType, expected a GradStatistics"),
        (lambda: noise_scale(GradStatistics(0, 1.0, 1.0)), ValueError, "Invalid statistics.batch_size: 0"),
        (lambda: AdaptiveBatchSize(8, 16, test=["norm"]), ValueError, "Invalid test"),
        (lambda: AdaptiveBatchSize(0, 8), ValueError, "size"),
        (lambda: AdaptiveBatchSize(8, 4), ValueError, "max_size"),
        (lambda: AdaptiveBatchSize(8, 16, test="t"), ValueError, "test"),
        (lambda: AdaptiveBatchSize(8, 16, growth_cap=0.5), ValueError, "growth_cap"),
        (lambda: AdaptiveBatchSize(8, 16, ema=1.0), ValueError, "ema"),
        (lambda: AdaptiveBatchSize(8, 16, micro_batch=3), ValueError, "size.*multiple of micro_batch"),
        (lambda: AdaptiveBatchSize(8, 16).update(3.0), TypeError, "statistics"),
        (
            lambda: AdaptiveBatchSize(8, 16).update(GradStatistics(8, torch.ones(()), 1.0)),
            TypeError,
            "statistics.squared_norm is a Tensor, expected a float",
        ),
        (lambda: noise_scale(GradStatistics(8, 1.0, -1.0)), ValueError, "Invalid statistics.variance: -1.0"),
        (
            lambda: AdaptiveBatchSize(8, 16, test="augmented").update(GradStatistics(8, 1.0, 1.0)),
            ValueError,
            "inner_variance is NaN",
        ),
        (lambda: GradVarianceAccumulator([torch.ones(1)], inner_products="no"), TypeError, "inner_products is a str"),
        (lambda: ResizableBatchSampler(8, 2, shuffle="False"), TypeError, "shuffle is a str, expected a bool"),
        (lambda: ResizableBatchSampler(8, 2, drop_last="no"), TypeError, "drop_last is a str"),
        (lambda: ResizableBatchSampler(0, 1), ValueError, "n"),
        (lambda: ResizableBatchSampler(3, 4, num_replicas=4), ValueError, "Invalid n: 3; expected 4 <= n"),
        (lambda: ResizableBatchSampler(8, 2, seed=2**63), ValueError, "Invalid seed"),
        (lambda: ResizableBatchSampler(8, 2, num_replicas=4), ValueError, "size.*multiple of num_replicas"),
        (lambda: ResizableBatchSampler(8, 4, num_replicas=2, rank=2), ValueError, "rank"),
        (lambda: ResizableBatchSampler(8, 4).state_dict(batches=1), ValueError, "batches"),
        (
            lambda: ResizableBatchSampler(8, 4).load_state_dict({"size": 4, "seed": 0, "epoch": 0, "position": 9}),
            ValueError,
            "position",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_sparse_gradients_are_refused_and_nothing_is_taken_in() -> None:
    w = nn.Parameter(torch.zeros(3))
    accumulator = GradVarianceAccumulator([w])
    w.grad = torch.ones(3)
    accumulator.add(2)
    w.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        accumulator.add(2)
    assert accumulator.result() == pytest.approx((2, 3.0, NAN, NAN), nan_ok=True)
