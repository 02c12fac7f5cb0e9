"""Parameters that are put back onto a set after each step: with every class, for every name, and what is refused."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from ferrostep import projections
from ferrostep.optim import NIGT, SGD, STORM, AdamW, Muon
from ferrostep.optim.points import TwoPointOptimizer
from ferrostep.projections import simplex_
from tests.contract.rules.registry import Entry, every, one_of_each_class
from tests.contract.training import assert_same_bits, bits, parameters, set_gradients, train

NAMES: tuple[tuple[Any, ...], ...] = (
    ("simplex",),
    ("simplex", 2.0),
    ("l1_ball", 1.5),
    ("l2_ball", 1.5),
    ("linf_ball", 0.3),
    ("box", -0.25, 0.5),
    ("nonnegative",),
)
takes_projections = every(
    lambda entry: (
        entry in one_of_each_class()
        and not issubclass(type(entry.build([Parameter(torch.zeros(4, 4))])), TwoPointOptimizer)
    )
)


@takes_projections
def test_a_step_is_the_rules_and_then_the_projection(entry: Entry) -> None:
    ours, theirs = parameters(entry.shapes), parameters(entry.shapes)
    optimizer = entry.build(ours, projection=("box", -0.5, 0.75))
    other = entry.build(theirs)
    for step in range(2):
        for params, each in ((ours, optimizer), (theirs, other)):
            set_gradients(params, step)
            each.step()
        with torch.no_grad():
            for p in theirs:
                p.clamp_(-0.5, 0.75)
        assert_same_bits(optimizer, other)


@pytest.mark.parametrize("named", NAMES, ids=str)
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_names_are_functions_in_place(named: tuple[Any, ...], backend: str) -> None:
    ours, theirs = parameters([(5, 3), (17,), (0, 4)]), parameters([(5, 3), (17,), (0, 4)])
    given = named if len(named) > 1 else named[0]
    name, *arguments = named
    optimizer, other = AdamW(ours, projection=given, backend=backend), AdamW(theirs, backend=backend)
    train(optimizer, ours, 1)
    train(other, theirs, 1)
    for p in theirs:
        if p.numel():
            getattr(projections, f"{name}_")(p, *arguments)
    assert_same_bits(optimizer, other)


def test_groups_have_their_own_and_a_parameter_without_a_gradient_stays() -> None:
    params = parameters([(4, 6), (4, 6), (4, 6), (3,)])
    groups = [
        {"params": params[:1], "projection": "simplex"},
        {"params": params[1:2], "projection": partial(simplex_, dim=0)},
        {"params": params[2:]},
    ]
    optimizer = Muon([{**group, "params": [p for p in group["params"] if p.ndim == 2]} for group in groups])
    set_gradients(params[:1], 0)
    before = bits(params[1])
    optimizer.step()
    torch.testing.assert_close(params[0].sum(1), torch.ones(4))
    assert bits(params[1]) == before
    set_gradients(params[:3], 1)
    optimizer.step()
    torch.testing.assert_close(params[1].sum(0), torch.ones(6))
    assert (params[2] < 0).any()


def test_a_resumed_or_copied_run_goes_on_to_the_bit() -> None:
    params = parameters([(5, 3)])
    optimizer = AdamW(params, lr=0.1, projection=("simplex", 2.0))
    train(optimizer, params, 2)
    loaded = parameters([(5, 3)])
    other = AdamW(loaded)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded[0].data.copy_(params[0])
    pickled = pickle.loads(pickle.dumps(optimizer))
    train(optimizer, params, 2, start=2)
    train(other, loaded, 2, start=2)
    train(pickled, pickled.param_groups[0]["params"], 2, start=2)
    assert_same_bits(other, optimizer)
    assert_same_bits(pickled, optimizer)


@pytest.mark.parametrize("options", [{"rounding": "kahan"}, {"master_weights": "split"}, {"master_weights": "float32"}])
def test_what_rounding_kept_goes_where_the_projection_moves(options: dict[str, Any]) -> None:
    ours, theirs = (parameters([(40, 12)], torch.bfloat16) for _ in range(2))
    optimizer, other = AdamW(ours, **options, projection=("box", -0.5, 0.5)), AdamW(theirs, **options)
    train(optimizer, ours, 1)
    train(other, theirs, 1)
    inside = (theirs[0].abs() <= 0.5).flatten()
    for name, own in optimizer.state[ours[0]].items():
        whole = other.state[theirs[0]][name]
        assert torch.equal(own.flatten()[inside] if own.ndim else own, whole.flatten()[inside] if own.ndim else whole)
        if name in ("kahan_comp", "master_low"):
            assert not own.flatten()[~inside].any()
    train(optimizer, ours, 4, start=1)
    assert ours[0].abs().max() <= 0.5


def test_steps_within_the_backward_pass_and_skipped_ones() -> None:
    params = parameters([(5, 3)])
    optimizer = SGD(params, lr=1.0, projection="nonnegative")
    with optimizer.attach():
        (params[0] * torch.ones(5, 3)).sum().backward()
        optimizer.step()
    assert (params[0] >= 0).all() and params[0].any()
    skipping = SGD(parameters([(5, 3)]), lr=1.0, projection="nonnegative", skip_nonfinite=True)
    (p,) = skipping.param_groups[0]["params"]
    p.grad = torch.full_like(p, float("nan"))
    before = bits(p)
    skipping.step()
    assert bits(p) == before


BAD: tuple[tuple[Any, type[Exception], str], ...] = (
    ("simples", ValueError, "Invalid projection: 'simples'; expected 'box', "),
    (3, TypeError, "projection is a int, expected a name"),
    (partial(projections.simplex, dim=0), ValueError, "projection is simplex, which leaves the parameter; expected"),
    (("l1_ball", -1.0), ValueError, "Invalid r: -1.0; expected a finite number"),
    (("box", 1.0, 0.0), ValueError, "Invalid hi: 0.0; expected lo"),
    (("box", 1.0), ValueError, r"projection 'box' has 1 numbers, expected 2 \(lo, hi\)"),
    (("simplex", 1.0, 0), ValueError, r"projection 'simplex' has 2 numbers, expected at most 1 \(s\)"),
    (("nonnegative", 1), ValueError, "projection 'nonnegative' has 1 numbers, expected none"),
    (("simplex", torch.ones(())), TypeError, "projection's argument is a Tensor, expected a number"),
)


@pytest.mark.parametrize(("projection", "error", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_a_bad_one_is_an_error_before_anything_changes(projection: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdamW(parameters([(5, 3)]), projection=projection)
    params = parameters([(5, 3)])
    optimizer = AdamW(params)
    optimizer.param_groups[0]["projection"] = projection
    set_gradients(params, 0)
    before = bits(params[0])
    with pytest.raises(error, match=message):
        optimizer.step()
    assert bits(params[0]) == before and not optimizer.state


def test_a_function_that_is_not_in_place_is_told() -> None:
    params = parameters([(5, 3)])
    optimizer = AdamW(params, projection=lambda p: p.clamp(min=0))
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match="projection returned a new tensor, expected a function that changes"):
        optimizer.step()


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^param group 0: parameter 1 has shape \[\], expected 1 or more"):
        AdamW([Parameter(torch.ones(3)), Parameter(torch.ones(()))], projection="simplex")
    with pytest.raises(ValueError, match=r"^param group 0: parameter 0 has dtype torch\.complex64"):
        AdamW([Parameter(torch.ones(3, dtype=torch.complex64))], projection="nonnegative")
    with pytest.raises(RuntimeError, match="projection does not support `differentiable`"):
        AdamW(parameters([(3,)]), projection="simplex", differentiable=True)
    with pytest.raises(TypeError, match=r"param group 0 got .* 'project'; did you mean 'projection'\?"):
        AdamW([{"params": parameters([(3,)]), "project": "simplex"}])
    for two_points in (NIGT, STORM):
        with pytest.raises(RuntimeError, match="does not support projection: its second point"):
            two_points(parameters([(3,)]), lr=0.1, projection="simplex")
