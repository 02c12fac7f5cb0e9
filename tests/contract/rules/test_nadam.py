"""NAdam's product of momenta: one number of each parameter that every step multiplies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ferrostep import _core
from ferrostep.optim import Adam, NAdam
from tests.contract.rules.registry import NADAM
from tests.contract.training import assert_close, assert_same_bits, bits, copies, parameters, set_gradients, train

SHAPES = ((5, 3), (17,), ())
every_backend = pytest.mark.parametrize("backend", ["rust", "reference"])


def products(optimizer: torch.optim.Optimizer) -> list[bytes]:
    return [bits(state["mu_product"]) for state in optimizer.state.values()]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_the_product_is_torchs_to_the_bit(
    backend: str, dtype: torch.dtype, default: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if default == torch.float64:
        request.getfixturevalue("float64_steps")
    ours, theirs = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    optimizer, peer = NAdam(ours, **NADAM, backend=backend), torch.optim.NAdam(theirs, **NADAM)
    for step in range(40):
        train(optimizer, ours, 1, start=step)
        train(peer, theirs, 1, start=step)
        assert {state["mu_product"].dtype for state in optimizer.state.values()} == {default}
        assert products(optimizer) == products(peer)


@every_backend
def test_parameters_may_begin_at_different_steps(backend: str) -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, peer = NAdam(ours, **NADAM, backend=backend), torch.optim.NAdam(theirs, **NADAM)
    for step, without in enumerate([(0, 2), (1,), (), (), ()]):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            for i in without:
                params[i].grad = None
            each.step()
        assert_close(optimizer, peer, 1e-12, least_size=1.0)


@every_backend
def test_parameters_at_one_step_may_have_different_products(backend: str) -> None:
    """Where ``momentum_decay`` was another for a while."""
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, peer = NAdam(ours, **NADAM, backend=backend), torch.optim.NAdam(theirs, **NADAM)
    for params, each in ((ours, optimizer), (theirs, peer)):
        train(each, params, 2)
        each.state[params[1]]["mu_product"].fill_(0.25)
        train(each, params, 2, start=2)
    assert_close(optimizer, peer, 1e-12, least_size=1.0)


@every_backend
def test_a_skipped_step_multiplies_nothing(backend: str) -> None:
    params = parameters(SHAPES)
    optimizer = NAdam(params, **NADAM, skip_nonfinite=True, backend=backend)
    train(optimizer, params, 2)
    before = copies(optimizer)
    set_gradients(params, 2)
    params[1].grad[3] = float("nan")
    optimizer.step()
    assert_same_bits(optimizer, before)


@every_backend
def test_a_step_that_fails_multiplies_nothing(backend: str) -> None:
    params = parameters(SHAPES)
    optimizer = NAdam(params, **NADAM, backend=backend)
    train(optimizer, params, 2)
    optimizer.state[params[2]]["mu_product"].fill_(1.5)
    before = copies(optimizer)
    with pytest.raises(ValueError, match=r"mu_product of parameter 2 in group 0 is 1.5, expected a number from 0 to 1"):
        train(optimizer, params, 1, start=2)
    assert_same_bits(optimizer, before)


def test_adams_state_has_no_product() -> None:
    """As torch does, a KeyError, but with nothing changed."""
    params = parameters(SHAPES)
    optimizer, adam = NAdam(params), Adam(params)
    train(adam, params, 1)
    with pytest.raises(KeyError, match="has exp_avg, exp_avg_sq, step, but no mu_product: it is another rule's"):
        optimizer.load_state_dict(adam.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [("NAdam", None, "has the product mu_product, got none"), ("RAdam", "mu_product", "has no product, got one")],
)
def test_a_rule_gets_the_product_that_it_has(name: str, given: str | None, message: str) -> None:
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 0.0}
    flags = {"decoupled_weight_decay": False, "maximize": False}
    rule = _core.Rule(name, _core.hyperparameters(name, group | flags))
    p, g, m, v = torch.ones(4, 3).unbind()
    product = None if given is None else (given, [torch.ones(())])
    with pytest.raises(ValueError, match=message):
        _core.Batch().add(rule, [p], [g], {"exp_avg": [m], "exp_avg_sq": [v]}, step=1, product=product)


def checkpoint(changed: Any) -> tuple[Any, dict[str, Any]]:
    """An optimizer after some steps, and its checkpoint with the products changed."""
    params = parameters(SHAPES, torch.bfloat16)
    optimizer = NAdam(params, **NADAM)
    train(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["mu_product"] = changed(state["mu_product"])
    return optimizer, saved


def test_checkpoints_with_the_product_as_a_number() -> None:
    optimizer, saved = checkpoint(lambda product: product.item())
    resumed = NAdam(parameters(SHAPES, torch.bfloat16))
    resumed.load_state_dict(saved)
    assert products(resumed) == products(optimizer)


def test_a_product_that_torch_has_rounded_is_multiplied_in_float32() -> None:
    """As that of 16-bit parameters is when torch loads it."""
    optimizer, saved = checkpoint(lambda product: product.bfloat16())
    params = parameters(SHAPES, torch.bfloat16)
    resumed = NAdam(params)
    resumed.load_state_dict(saved)
    train(resumed, params, 1, start=3)
    train(optimizer, optimizer.param_groups[0]["params"], 1, start=3)
    for own, other in zip(resumed.state.values(), optimizer.state.values(), strict=True):
        torch.testing.assert_close(own["mu_product"], other["mu_product"], rtol=2.0**-8, atol=0.0)
