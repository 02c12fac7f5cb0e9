"""An interrupt or an error within a step leaves all of it or nothing, wherever it comes."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import ferrostep
from ferrostep import gradients, guidance
from ferrostep.optim import NIGT, SAM, AdamW, SophiaG, SophiaH
from ferrostep.optim.agreement import interrupts_held
from ferrostep.optim.gathered import Gathered
from tests.contract.interrupts import Interrupts
from tests.contract.rules.registry import Entry, every_class
from tests.contract.snapshot import Snapshot
from tests.contract.training import assert_same_bits, copies, parameters, set_gradients, train

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PLACES = 40


def places(count: int) -> list[int]:
    """Some of the instructions, and all of the last ones."""
    return sorted({*range(1, count + 1, max(1, count // PLACES)), *range(max(1, count - PLACES), count + 1)})


def mixed(entry: Entry, **options: Any) -> Optimizer:
    """An optimizer of which one group is updated by Rust, the other in plain torch."""
    params = parameters(entry.shapes[:2], torch.bfloat16)
    groups = [{"params": params[:1]}, {"params": params[1:], "backend": "reference"}]
    optimizer = entry.build(groups, rounding="kahan", **options)
    set_gradients(params, 0)
    return optimizer


def params_of(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def of_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What groups say and count."""
    return [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]


@every_class
@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_step_that_is_interrupted_is_whole_or_has_not_begun(entry: Entry, steps_before: int) -> None:
    def build() -> Optimizer:
        optimizer = mixed(entry)
        train(optimizer, params_of(optimizer), steps_before)
        set_gradients(params_of(optimizer), steps_before)
        return optimizer

    counting = Interrupts()
    counting.run(build().step)
    assert counting.passed > PLACES
    expected = build()
    expected.step()
    seen = set()
    for at in places(counting.passed):
        optimizer = build()
        before = Snapshot(optimizer)
        versions = [p._version for p in params_of(optimizer)]
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(optimizer.step)
        has_moved = [p._version > version for p, version in zip(params_of(optimizer), versions, strict=True)]
        seen.add(all(has_moved))
        if not any(has_moved):
            before.assert_unchanged()
            optimizer.step()
        assert_same_bits(optimizer, expected)
        assert of_groups(optimizer) == of_groups(expected)
    assert seen == {False, True}


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_an_interrupted_step_projects_all_parameters_or_has_not_begun(backend: str) -> None:
    def build() -> Optimizer:
        params = parameters([(4, 3), (5,), (2, 2)], torch.bfloat16)
        groups = [{"params": params[:2], "projection": ("box", -0.5, 0.5)}, {"params": params[2:]}]
        groups[1]["projection"] = lambda p: p.clamp_(min=0).clamp_(max=0.25)
        optimizer = AdamW(groups, lr=0.1, rounding="kahan", backend=backend)
        set_gradients(params, 0)
        return optimizer

    counting, expected = Interrupts(), build()
    counting.run(expected.step)
    seen = set()
    for at in places(counting.passed):
        optimizer = build()
        before = Snapshot(optimizer)
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(optimizer.step)
        seen.add(bool(optimizer.state))
        if not optimizer.state:
            before.assert_unchanged()
            optimizer.step()
        assert_same_bits(optimizer, expected)
    assert seen == {False, True}


def test_what_a_projection_raises_leaves_the_others_projected() -> None:
    def fail(_: torch.Tensor) -> None:
        raise ValueError("no set")

    params = parameters([(4, 3), (5,), (2, 2)])
    groups = [{"params": [p], "projection": how} for p, how in zip(params, ("simplex", fail, "simplex"), strict=True)]
    optimizer = AdamW(groups, lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="no set"):
        optimizer.step()
    for p in (params[0], params[2]):
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[0]))
    assert all(state["step"] == 1 for state in optimizer.state.values())


@every_class
def test_a_step_whose_plain_torch_part_fails_has_not_begun(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as for want of memory on a device."""

    def fail(_gathered: Gathered) -> list[Any]:
        raise torch.OutOfMemoryError("no memory")

    optimizer = mixed(entry)
    before = Snapshot(optimizer)
    monkeypatch.setattr(Gathered, "updates", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        optimizer.step()
    before.assert_unchanged()
    monkeypatch.undo()
    optimizer.step()
    expected = mixed(entry)
    expected.step()
    assert_same_bits(optimizer, expected)


@pytest.mark.parametrize("to_train", [False, True], ids=["eval", "train"])
def test_a_way_to_the_second_point_that_is_interrupted_is_whole_or_has_not_begun(to_train: bool) -> None:
    def build() -> NIGT:
        params = parameters([(3, 2), (4,)])
        optimizer = NIGT([{"params": params[:1]}, {"params": params[1:], "backend": "reference"}], lr=0.1)
        train(optimizer, params, 2)
        if to_train:
            optimizer.eval()
        return optimizer

    def move(optimizer: NIGT) -> None:
        (optimizer.train if to_train else optimizer.eval)()

    counting = Interrupts()
    expected = build()
    counting.run(lambda: move(expected))
    modes = set()
    for at in places(counting.passed):
        optimizer = build()
        before = copies(optimizer)
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(lambda optimizer=optimizer: move(optimizer))
        (mode,) = {group["train_mode"] for group in optimizer.param_groups}
        modes.add(mode)
        assert_same_bits(optimizer, expected if mode is to_train else before)
    assert modes == {False, True}


def test_a_sharpness_aware_step_that_is_interrupted_is_at_the_weights() -> None:
    def build() -> tuple[SAM, Callable[[], object]]:
        params = parameters([(3, 2), (4,)])
        optimizer = SAM(AdamW([{"params": params[:1]}, {"params": params[1:], "backend": "reference"}]), rho=0.5)

        def closure() -> torch.Tensor:
            loss = torch.stack([p.square().sum() for p in params]).sum()
            loss.backward()
            return loss

        return optimizer, lambda: optimizer.step(closure)

    counting = Interrupts()
    optimizer, step = build()
    untouched = copies(optimizer)
    counting.run(step)
    expected = copies(optimizer)
    ends = set()
    for at in range(1, counting.passed, 29):
        optimizer, step = build()
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(step)
        now = copies(optimizer)
        ends.add(len(now))
        assert_same_bits(now, expected if now.keys() != untouched.keys() else untouched)
        step()
    assert ends == {len(untouched), len(expected)}


@pytest.mark.parametrize("optimizer_class", [SophiaG, SophiaH])
def test_a_refresh_that_is_interrupted_is_whole_or_has_not_begun(optimizer_class: type[Any]) -> None:
    def build() -> tuple[Any, Callable[[], object]]:
        params = parameters([(3, 2), (4,)])
        optimizer = optimizer_class([{"params": params[:1]}, {"params": params[1:], "backend": "reference"}])
        set_gradients(params, 0)
        if optimizer_class is SophiaG:
            return optimizer, lambda: optimizer.update_hessian(bs=4)
        return optimizer, lambda: optimizer.update_hessian([p.grad for p in params])

    counting = Interrupts()
    counting.run(build()[1])
    expected, refresh = build()
    refresh()
    for at in places(counting.passed):
        optimizer, refresh = build()
        before = copies(optimizer)
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(refresh)
        now = copies(optimizer)
        assert_same_bits(now, expected if now.keys() != before.keys() else before)


def whole(*seeds: int) -> list[Any]:
    return [torch.full((2, 3), float(seed)) for seed in seeds]


class Written(NamedTuple):
    """What a function changes, and the call."""

    tensors: list[Any]
    call: Callable[[], object]


def orthogonal_gradient() -> Written:
    params = [nn.Parameter(x) for x in whole(1, 2)]
    stepped = gradients.OrthogonalGradient(torch.optim.SGD(params, lr=0.1))
    stepped.backward(params[0].square().sum(), params[0].sum() + params[1].sum())
    return Written(params, stepped.combine)


def with_momentum() -> Written:
    c, u, kept, out = whole(3, 1, 2, 0)
    buffer = guidance.MomentumBuffer(0.5)
    buffer.running_average = kept
    return Written([kept, out], lambda: guidance.apg(c, u, 2.0, momentum_buffer=buffer, out=out))


def lists(call: Callable[[list[Any]], object], *seeds: int | None) -> Callable[[], Written]:
    def make() -> Written:
        given = [None if seed is None else whole(seed)[0] for seed in seeds]
        return Written(given, lambda: call(given))

    return make


WRITERS: dict[str, Callable[[], Written]] = {
    "orthogonal_": lists(lambda x: gradients.orthogonal_(x, whole(1, 2, 1)), 3, 1, None),
    "orthogonal_combine_": lists(lambda x: gradients.orthogonal_combine_(x, whole(1, 2), whole(3, 1)), None, 1),
    "combine": lists(lambda x: gradients.combine([whole(1, 2), whole(3, 1)], [1.0, 2.0], out=x), None, 1),
    "pcgrad_": lists(lambda x: gradients.pcgrad_([x[:2], x[2:]]), 1, -2, -1, 2),
    "ema_": lists(lambda x: gradients.ema_(x, whole(3, 4), 0.5), 1, 2),
    "orthogonalize": lists(lambda x: ferrostep.orthogonalize(x, out=x), 1, 2),
    "cfg": lists(lambda x: guidance.cfg(x[0], x[1], 3.0, out=x[0]), 1, 2),
    "apg": with_momentum,
    "OrthogonalGradient.combine": orthogonal_gradient,
}


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_what_is_written_in_place_is_written_as_a_whole_and_autograd_told(make: Callable[[], Written]) -> None:
    def seen(written: Written) -> list[Any]:
        return [(x, None if x is None else x.grad) for x in written.tensors]

    def same(one: list[Any], other: list[Any]) -> bool:
        return all(
            (a is None) == (b is None) and (a is None or torch.equal(a, b))
            for pairs in zip(one, other, strict=True)
            for a, b in zip(*pairs, strict=True)
        )

    counting = Interrupts()
    expected, untouched = make(), make()
    counting.run(expected.call)
    ends = set()
    for at in places(counting.passed):
        written = make()
        given = list(written.tensors)
        versions = [None if x is None else x._version for x in given]
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(written.call)
        changed = not same(seen(written), seen(untouched))
        ends.add(changed)
        assert same(seen(written), seen(expected if changed else untouched))
        for x, before, now, version in zip(given, seen(untouched), seen(written), versions, strict=True):
            if x is not None and not torch.equal(before[0], now[0]):
                assert x._version > version
    assert ends == {False, True}


@pytest.mark.skipif(sys.platform == "win32", reason="handlers of others are a matter of POSIX")
def test_a_handler_that_python_does_not_know_stays(tmp_path: Path) -> None:
    """A step of several ranks holds SIGINT back; at its end the handler that was there is told, here one in C."""
    with (tmp_path / "traces").open("w+") as file:
        faulthandler.register(signal.SIGINT, file, chain=False)
        try:
            for times in (1, 2):
                with interrupts_held([cast("ProcessGroup", None)]):
                    signal.raise_signal(signal.SIGINT)
                    assert Path(file.name).read_text().count("Current thread") == times - 1
                assert Path(file.name).read_text().count("Current thread") == times
        finally:
            faulthandler.unregister(signal.SIGINT)
