"""Inference tensors, which do not count their versions, are written in inference mode only, as with torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import ferrostep
from ferrostep import gradients, guidance, orthogonalize, projections
from ferrostep.bilevel import BOREP, LVHBA
from ferrostep.gradients import combine, ema_, orthogonal_, orthogonal_combine_, pcgrad_
from ferrostep.guidance import MomentumBuffer
from ferrostep.offload import HostOptimizer
from ferrostep.optim import SAM, SGD, AdamW, GradNormSmooth
from tests.bad_inputs.torch_cases import inferred
from tests.contract.maps.registry import ENTRIES, every_set
from tests.contract.maps.registry import Entry as MapEntry

REFUSED = "is an inference tensor: Inplace update to inference tensor outside InferenceMode is not allowed"
X = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
BY_HAND: dict[str, Callable[[list[Tensor]], object]] = {
    "ema_": lambda to: ema_(to, [X, X], 0.5),
    "combine": lambda to: combine([[X, X]], [2.0], out=to),
    "orthogonal_": lambda to: orthogonal_(to, [X, X.T.contiguous()]),
    "orthogonal_combine_": lambda to: orthogonal_combine_(to, [X, X], [X, X]),
    "pcgrad_": lambda to: pcgrad_([[to[0]], [to[1]], [X.clone()]]),
    "orthogonalize": lambda to: orthogonalize([X, X], out=to),
    "cfg": lambda to: guidance.cfg(X, 4 * X, 3.0, out=to[1]),
    "apg": lambda to: guidance.apg(X, 2 * X.flip(1), 3.0, out=to[1]),
    "cfg_zero_star": lambda to: guidance.cfg_zero_star(X, 2 * X, 3.0, out=to[1]),
    "tangential": lambda to: guidance.tangential(X, 4 * X, 3.0, out=to[1]),
    "magnitude_aware": lambda to: guidance.magnitude_aware(X, 2 * X, 3.0, out=to[1]),
    "perp_neg": lambda to: guidance.perp_neg(X, 2 * X, [X.flip(1)], 3.0, [1.0], out=to[1]),
}
every_function = pytest.mark.parametrize("name", BY_HAND)


def test_every_function_that_writes_is_tried() -> None:
    writing = {
        name
        for module in (ferrostep, gradients, guidance, projections, projections.prox)
        for name in module.__all__
        if callable(function := getattr(module, name)) and not inspect.isclass(function)
        if name.endswith("_") or "out" in inspect.signature(function).parameters
    }
    assert writing == BY_HAND.keys() | {f"{entry.name}_" for entry in ENTRIES if entry.in_place}


@every_function
def test_outside_of_inference_mode_nothing_is_written(name: str) -> None:
    to = [-X, inferred(-X)]
    with pytest.raises(RuntimeError, match=REFUSED):
        BY_HAND[name](to)
    assert torch.equal(to[0], -X) and torch.equal(to[1], -X)
    assert to[0]._version == 0


@every_function
def test_within_it_tensors_of_both_kinds_are_written(name: str) -> None:
    expected, to = [-X, -X], [-X, inferred(-X)]
    torch.manual_seed(0)
    BY_HAND[name](expected)
    with torch.inference_mode():
        torch.manual_seed(0)
        BY_HAND[name](to)
    assert all(map(torch.equal, to, expected)) and not torch.equal(to[1], -X)


@every_set
def test_projections_in_place(entry: MapEntry) -> None:
    x = 10 * torch.arange(24.0).reshape(2, 12)
    to, expected = inferred(x), entry(x)
    with pytest.raises(RuntimeError, match=REFUSED):
        entry.change(to)
    assert torch.equal(to, x)
    with torch.inference_mode():
        entry.change(to)
    assert torch.equal(to, expected)


def test_a_gradient_of_inference_mode_is_not_added_to() -> None:
    p = Parameter(X.clone())
    p.grad = inferred(X)
    with pytest.raises(RuntimeError, match=rf"^params\[0\]\.grad {REFUSED}"):
        gradients.backward([p.sum(), p.square().sum()], [p])
    assert torch.equal(p.grad, X)


def test_what_has_a_version_all_the_same_is_written() -> None:
    """As torch has it: a parameter made outside of what was computed within, and one with such data."""
    made, filled = Parameter(inferred(X), requires_grad=False), Parameter(X.clone())
    filled.data = inferred(X)
    for p in (made, filled):
        p.grad = torch.ones_like(p)
        SGD([p], lr=1.0).step()
        assert torch.equal(p.detach(), X - 1)


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_what_has_none_though_its_data_has_been_replaced_is_refused(backend: str) -> None:
    p = inferred_parameter()
    p.requires_grad_(False)
    p.data = torch.ones(2)
    p.grad = torch.ones(2)
    optimizer = AdamW([p], backend=backend)
    with pytest.raises(RuntimeError, match=REFUSED):
        optimizer.step()
    assert (p == 1).all() and not optimizer.state[p]


def test_momentum_goes_on_outside() -> None:
    own, expected = MomentumBuffer(-0.5), MomentumBuffer(-0.5)
    with torch.inference_mode():
        guidance.apg(X, 2 * X.flip(1), 3.0, momentum_buffer=own)
    guidance.apg(X, 2 * X.flip(1), 3.0, momentum_buffer=expected)
    results = [guidance.apg(3 * X, X.flip(1), 3.0, momentum_buffer=each) for each in (own, expected)]
    assert torch.equal(*results)
    assert torch.equal(own.running_average, expected.running_average)


class Levels(NamedTuple):
    """Two levels, one of which is of inference mode."""

    upper: Parameter
    lower: Parameter

    def above(self) -> Tensor:
        return (self.upper - 1.0).sum() + (self.lower + 1.0).sum()

    def below(self) -> Tensor:
        return ((self.lower + 1.0) - self.upper).square().sum()

    def borep(self) -> Any:
        return BOREP([self.upper], [self.lower]).step(self.above, self.below)

    def lvhba(self) -> Any:
        return LVHBA([self.upper], [self.lower]).step(self.above, self.below, lambda: self.lower - 3.0)


@torch.inference_mode()
def inferred_parameter() -> Parameter:
    return Parameter(torch.ones(2))


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize("step", [Levels.borep, Levels.lvhba])
def test_neither_level_is_changed(step: Callable[[Levels], object], level: str) -> None:
    levels = Levels(Parameter(torch.ones(2)), Parameter(torch.ones(2)))._replace(**{level: inferred_parameter()})
    with pytest.raises(RuntimeError, match=rf"^{level}_params\[0\] {REFUSED}"):
        step(levels)
    assert (levels.upper == 1).all() and (levels.lower == 1).all()


@pytest.mark.parametrize(
    ("cls", "steps_within"),
    [(torch.optim.AdamW, ()), *((cls, within) for cls in (torch.optim.SGD, AdamW) for within in ((), (0,), (1,)))],
)  # states that torch makes within are not to be written outside, with masters or without
def test_masters_made_within_go_on_outside(cls: type[torch.optim.Optimizer], steps_within: tuple[int, ...]) -> None:
    p, q = Parameter(X.bfloat16()), Parameter(X.bfloat16())
    with torch.inference_mode():
        optimizer = HostOptimizer([p], cls, lr=0.1)
    expected = HostOptimizer([q], cls, lr=0.1)
    for step in range(3):
        p.grad = q.grad = torch.full_like(p, step + 1.0)
        with torch.inference_mode(step in steps_within):
            optimizer.step()
        expected.step()
    assert torch.equal(p, q) and not torch.equal(p, X)
    assert torch.equal(optimizer.state[p]["master_param"], expected.state[q]["master_param"])


def test_optimizers_that_write_by_themselves() -> None:
    p = inferred_parameter()

    def loss() -> Tensor:
        return (p + 1.0).square().sum()

    def evaluate() -> Tensor:
        value = loss()
        value.backward()
        return value

    for step in (
        lambda: GradNormSmooth([p], hessian="exact").step(loss),
        lambda: SAM(AdamW([p])).step(evaluate),
        lambda: HostOptimizer([p], AdamW).step(evaluate),
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            step()
        assert (p == 1).all()
    with torch.inference_mode():
        p.grad = torch.ones_like(p)
        HostOptimizer([p], AdamW).step()
    assert (p != 1).all()
