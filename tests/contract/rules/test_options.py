"""Constructor arguments: impossible values and misspelt names are refused at once, with torch's errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ferrostep.optim import AdamW, Lion
from tests.contract.rules.registry import Entry, every, every_class, one_of_each_class
from tests.contract.training import parameters, set_gradients

IMPOSSIBLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": -1.0}, "[Ll]earning rate.*: -1.0"),
    ({"lr": float("nan")}, "[Ll]earning rate.*: nan"),
    ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
    ({"lr": torch.tensor(0.1), "foreach": True}, "lr as a Tensor is not supported"),
    ({"weight_decay": -0.1}, "weight.decay.*: -0.1"),
    ({"rounding": "up"}, "Invalid rounding value: 'up'; expected one of 'nearest', 'stochastic', 'kahan'"),
    ({"rounding": None}, "Invalid rounding value: None"),
    ({"master_weights": "bf16"}, "Invalid master_weights value: 'bf16'; expected one of None, 'split', 'float32'"),
    ({"master_weights": "split", "rounding": "kahan"}, "master_weights='split' .* excludes rounding='kahan'"),
    (
        {"master_weights": "float32", "rounding": "stochastic"},
        "master_weights='float32' .* excludes rounding='stochastic'",
    ),
    ({"backend": "cuda"}, "Invalid backend value: 'cuda'; expected one of 'auto', 'rust', 'reference'"),
    ({"state_dtype": torch.int8}, r"Invalid state_dtype value: torch.int8; expected one of None, torch.float32"),
    ({"state_dtype": "bf16"}, "Invalid state_dtype value: 'bf16'"),
    (
        {"state_dtype": {"exp_avgs": torch.bfloat16}},
        "Invalid state_dtype: 'exp_avgs' is not a state; expected names of",
    ),
    ({"state_dtype": {"exp_avg": "bf16"}}, "Invalid state_dtype value: 'bf16'; expected one of None, torch.float32"),
    ({"seed": -1}, r"Invalid seed value: -1; expected 0 to 2\*\*64 - 1"),
    ({"seed": 2**64}, "Invalid seed value"),
)
IMPOSSIBLE_BETAS: tuple[tuple[Any, str], ...] = (
    ((1.0, 0.9), "Invalid beta parameter at index 0: 1.0"),
    ((0.9, 1.0), "Invalid beta parameter at index 1: 1.0"),
    ((-0.1, 0.9), "Invalid beta parameter at index 0: -0.1"),
    ((0.9, float("nan")), "Invalid beta parameter at index 1: nan"),
    ((0.9, torch.tensor(0.9)), "betas must be either both floats or both Tensors"),
)


@every_class
@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE, ids=lambda x: str(x)[:30])
def test_impossible_values(entry: Entry, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry.build(parameters([(3, 2)]), **arguments)


@every_class
@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE, ids=lambda x: str(x)[:30])
def test_impossible_values_in_a_group(entry: Entry, arguments: dict[str, Any], message: str) -> None:
    first, second = parameters([(3, 2), (3, 2)])
    with pytest.raises(ValueError, match=message):
        entry.build([{"params": [first]}, {"params": [second], **arguments}])
    optimizer = entry.build([first])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [second], **arguments})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second]})


@every(lambda entry: "betas" in entry.arguments and entry in one_of_each_class())
@pytest.mark.parametrize(("betas", "message"), IMPOSSIBLE_BETAS, ids=str)
def test_impossible_betas_in_a_group(entry: Entry, betas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry.build([{"params": parameters([(3, 2)]), "betas": betas}])


@every(lambda entry: "betas" in entry.arguments and entry in one_of_each_class())
@pytest.mark.parametrize(("betas", "message"), IMPOSSIBLE_BETAS, ids=str)
def test_impossible_betas(entry: Entry, betas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry.build(parameters([(3, 2)]), betas=betas)


def test_impossible_epsilon() -> None:
    with pytest.raises(ValueError, match="Invalid epsilon value: -1"):
        AdamW(parameters([(3, 2)]), eps=-1)


@every_class
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "^seed is a float, expected an integer$"),
        ({"seed": None}, "^seed is a NoneType, expected an integer$"),
        ({"skip_nonfinite": "no"}, "^skip_nonfinite is a str, expected a bool$"),
    ],
    ids=str,
)
def test_options_of_another_type(entry: Entry, options: dict[str, Any], message: str) -> None:
    params = parameters([(3, 2)])
    with pytest.raises(TypeError, match=message):
        entry.build(params, **options)
    with pytest.raises(TypeError, match=message):
        entry.build([{"params": params, **options}])
    assert entry.build(params, seed=torch.tensor(3)).param_groups[0]["seed"] == 3


@every_class
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("roundin", "rounding"), ("state_dtyp", "state_dtype"), ("differentable", "differentiable"), ("Seed", "seed")],
)
def test_a_misspelt_option_names_the_nearest(entry: Entry, name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; did you mean '{nearest}'\?"):
        entry.build(parameters([(3, 2)]), **{name: 1})


@every_class
def test_an_unknown_option_names_those_there_are(entry: Entry) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'.*rounding, state_dtype, seed"):
        entry.build(parameters([(3, 2)]), zzz=1)


@pytest.mark.parametrize(("cls", "name", "nearest"), [(AdamW, "wieght_decay", "weight_decay"), (Lion, "beta", "betas")])
def test_a_misspelt_argument_of_the_class_names_the_nearest(cls: Any, name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; did you mean '{nearest}'\?"):
        cls(parameters([(3, 2)]), **{name: 0.5})


@every_class
def test_flags_for_other_implementations_have_no_effect(entry: Entry) -> None:
    results = []
    for flags in ({}, {"foreach": True}, {"fused": True}, {"capturable": True}, {"foreach": False, "fused": False}):
        params = parameters([(5, 3)])
        set_gradients(params, 0)
        entry.build(params, **flags).step()
        results.append(params[0].detach())
    assert all(torch.equal(result, results[0]) for result in results)


@every_class
@pytest.mark.parametrize(
    "flags",
    [
        {"fused": True, "differentiable": True},
        {"fused": True, "foreach": True},
        {"master_weights": "split", "differentiable": True},
        {"master_weights": "float32", "differentiable": True},
    ],
    ids=str,
)
def test_flags_that_exclude_each_other(entry: Entry, flags: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"fused|differentiable"):
        entry.build(parameters([(3, 2)]), **flags)


@every_class
def test_edges_are_possible(entry: Entry) -> None:
    params = parameters([(3, 2)])
    set_gradients(params, 0)
    before = params[0].detach().clone()
    entry.build(params, lr=0.0, weight_decay=0.0, seed=2**64 - 1).step()
    assert torch.equal(params[0], before)


@every_class
@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, torch.float16), (torch.float32, torch.float64), (torch.bfloat16, torch.float16)],
    ids=str,
)
def test_states_without_a_kernel_are_refused(entry: Entry, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    params = parameters([(3, 2)], dtype)
    set_gradients(params, 0)
    optimizer = entry.build(params, state_dtype=state_dtype)
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match=r"param of parameter 0 in group 0 cannot be updated: no kernel for"):
        optimizer.step()
    assert torch.equal(params[0], before)
    assert not optimizer.state


@every_class
def test_no_parameters(entry: Entry) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        entry.build([])


@pytest.mark.smoke
@every_class
def test_signatures_and_docstrings(entry: Entry) -> None:
    documentation = entry.optimizer.__doc__
    assert all(word in documentation for word in ("Args:", "State per parameter", "Raises:", "arXiv"))
