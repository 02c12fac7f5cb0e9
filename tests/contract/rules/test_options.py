"""Constructor arguments: impossible values and misspelt names are refused at once, with torch's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ferrostep.optim import AdamW, Lion, MuonAdamW, MuonWithAuxAdamW, muon_param_groups
from tests.contract.rules.registry import Entry, TransportedSTORM, every, every_class, one_of_each_class
from tests.contract.training import parameters, set_gradients

IMPOSSIBLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": -1.0}, "[Ll]earning rate.*: -1.0"),
    ({"lr": float("nan")}, "[Ll]earning rate.*: nan"),
    ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
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
    ({"min_quant_numel": -1}, "Invalid min_quant_numel: -1"),
    ({"seed": -1}, r"Invalid seed value: -1; expected 0 to 2\*\*64 - 1"),
    ({"seed": 2**64}, "Invalid seed value"),
    ({"max_grad_norm": -1.0}, "Invalid max_grad_norm value: -1.0; expected a number of at least 0, or None"),
    ({"max_grad_norm": float("nan")}, "Invalid max_grad_norm value: nan"),
    ({"max_grad_norm": 10**400}, "Invalid max_grad_norm: int beyond all floats"),
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


OF_ANOTHER_KIND: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"lr": "1e-3"}, TypeError, "^lr is a str, expected a number$"),
    ({"lr": None}, TypeError, "^lr is a NoneType, expected a number$"),
    ({"weight_decay": [0.1]}, TypeError, "^weight_decay is a list, expected a number$"),
    ({"betas": 0.9}, TypeError, "^betas is a float, expected two numbers$"),
    ({"betas": "0.9"}, TypeError, "^betas is a str, expected two numbers$"),
    ({"betas": torch.tensor(0.9)}, TypeError, "^betas is a Tensor, expected two numbers$"),
    ({"betas": ("0.9", 0.99)}, TypeError, r"^betas\[0\] is a str, expected a number$"),
    ({"betas": (0.9,)}, ValueError, "^betas has length 1, expected two numbers$"),
    ({"betas": (0.9, 0.99, 0.999)}, ValueError, "^betas has length 3, expected two numbers$"),
    ({"momentum": "0.9"}, TypeError, "^momentum is a str, expected a number$"),
    ({"eps": "1e-8"}, TypeError, "^eps is a str, expected a number$"),
    ({"gamma": "1"}, TypeError, "^gamma is a str, expected a number$"),
    ({"rho": "0.1"}, TypeError, "^rho is a str, expected a number$"),
    ({"maximize": "False"}, TypeError, "^maximize is a str, expected a bool$"),
    ({"ns_steps": "5"}, TypeError, "^ns_steps is a str, expected an integer$"),
    ({"ns_steps": 5.5}, TypeError, "^ns_steps is a float, expected an integer$"),
    ({"ns_restarts": 2}, TypeError, "^ns_restarts is a int, expected a sequence$"),
    ({"split_sizes": 3}, TypeError, "^split_sizes is a int, expected a sequence$"),
    ({"num_heads": "2"}, TypeError, "^num_heads is a str, expected an integer$"),
    ({"update_period": "10"}, TypeError, "^update_period is a str, expected an integer$"),
    ({"maximize": "False"}, TypeError, "^maximize is a str, expected a bool$"),
    ({"amsgrad": "no"}, TypeError, "^amsgrad is a str, expected a bool$"),
    ({"nesterov": "false"}, TypeError, "^nesterov is a str, expected a bool$"),
    ({"normalize": "norm"}, ValueError, "^Invalid normalize: 'norm'; expected None or 'normuon'$"),
    ({"ns_precision": 3}, ValueError, "^Invalid ns_precision: 3; expected 'auto', 'float64', 'float32' or 'bfloat16'$"),
)


def of_group(message: str) -> str:
    """What an error about the first group's own argument begins with."""
    return message.replace("^", "^param group 0: ", 1)


def those_with_the_argument() -> Iterator[Any]:
    for entry in one_of_each_class():
        names = entry.build(parameters([(3, 2)])).param_groups[0].keys()
        if entry.optimizer is TransportedSTORM:
            names = names - {"normalize"}  # a bool
        for case in OF_ANOTHER_KIND:
            if case[0].keys() <= names:
                yield pytest.param(entry, *case, id=f"{entry.name}-{case[0]}")


@pytest.mark.parametrize(("entry", "arguments", "error", "message"), list(those_with_the_argument()))
def test_arguments_of_another_kind_are_one_line(
    entry: Entry, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    params = parameters([(3, 2)])
    with pytest.raises(error, match=of_group(message)):
        entry.build([{"params": params, **arguments}])
    if not issubclass(entry.optimizer, MuonWithAuxAdamW):
        with pytest.raises(error, match=message):
            entry.build(params, **arguments)


@every_class
def test_a_module_is_no_parameters(entry: Entry) -> None:
    if not issubclass(entry.optimizer, MuonWithAuxAdamW | MuonAdamW):  # one wants groups, the other takes modules
        with pytest.raises(TypeError, match=r"^params is a Linear, expected parameters .*, such as model.parameters"):
            entry.build(torch.nn.Linear(3, 2))


def test_a_functions_misspelt_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"muon_param_groups\(\) got .* 'adam'; did you mean 'adamw'\?"):
        muon_param_groups(torch.nn.Linear(2, 2), adam={"lr": 0.1})
    with pytest.raises(TypeError, match=r"muon_param_groups\(\) got .* 'zzz'; there are model, exclude, "):
        muon_param_groups(torch.nn.Linear(2, 2), zzz=1)


@every_class
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "^seed is a float, expected an integer$"),
        ({"min_quant_numel": 0.5}, "^min_quant_numel is a float, expected an integer$"),
        ({"seed": None}, "^seed is a NoneType, expected an integer$"),
        ({"skip_nonfinite": "no"}, "^skip_nonfinite is a str, expected a bool$"),
        ({"max_grad_norm": "1"}, "^max_grad_norm is a str, expected a number$"),
        ({"max_grad_norm": torch.ones(2)}, "^max_grad_norm is a Tensor, expected a number$"),
        ({"max_grad_norm": torch.ones((), device="meta")}, "^max_grad_norm is a Tensor, expected a number$"),
    ],
    ids=str,
)
def test_options_of_another_type(entry: Entry, options: dict[str, Any], message: str) -> None:
    params = parameters([(3, 2)])
    with pytest.raises(TypeError, match=message):
        entry.build(params, **options)
    with pytest.raises(TypeError, match=of_group(message)):
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
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'zzz'.*rounding, state_dtype, min_quant_numel, seed"
    ):
        entry.build(parameters([(3, 2)]), zzz=1)


@pytest.mark.parametrize(("cls", "name", "nearest"), [(AdamW, "wieght_decay", "weight_decay"), (Lion, "beta", "betas")])
def test_a_misspelt_argument_of_the_class_names_the_nearest(cls: Any, name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; did you mean '{nearest}'\?"):
        cls(parameters([(3, 2)]), **{name: 0.5})


@every_class
@pytest.mark.parametrize(("name", "nearest"), [("learning_rate", "lr"), ("wd", "weight_decay"), ("LR", "lr")])
def test_another_librarys_name_names_ours(entry: Entry, name: str, nearest: str) -> None:
    given = parameters([(3, 2)])
    if not issubclass(entry.optimizer, MuonWithAuxAdamW):  # whose arguments stand in groups alone
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; did you mean '{nearest}'\?"):
            entry.build(given, **{name: 0.1})
    optimizer = entry.build(given)
    with pytest.raises(TypeError, match=rf"param group 1 got an unexpected .* '{name}'; did you mean '{nearest}'\?"):
        optimizer.add_param_group({"params": parameters([(3, 2)]), name: 0.1})
    assert len(optimizer.param_groups) == 1


@every_class
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("wieght_decay", "weight_decay"), ("weight_decays", "weight_decay"), ("roundng", "rounding"), ("param", "params")],
)
def test_a_misspelt_entry_of_a_group_is_refused(entry: Entry, name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=rf"param group 0 got an unexpected .* '{name}'; did you mean '{nearest}'\?"):
        entry.build([{"params": parameters([(3, 2)]), name: 0.1}])


OF_FRAMEWORKS = (
    *(
        "name",
        "names",
        "param_names",
        "group_name",
        "layer_name",
        "initial_lr",
        "max_lr",
        "min_lr",
        "swa_lr",
        "lr_scale",
    ),
    *("lr_mult", "wd_mult", "lr_multiplier", "wd_multiplier", "base_momentum", "max_momentum", "max_weight_decay"),
    *("no_weight_decay", "is_last_layer", "is_expert_parallel", "k", "train_mode", "algorithm", "weight_sum"),
)
"""Entries that schedulers, timm, torch.optim.swa_utils, Megatron, DINO, schedulefree and others put into groups."""


@every_class
def test_entries_of_frameworks_are_kept(entry: Entry) -> None:
    given = {**dict.fromkeys(OF_FRAMEWORKS, 0.5), "param_names": ["layer.weight"]}
    group = entry.build([{"params": parameters([(3, 2)]), **given, 3: "odd"}]).param_groups[0]
    assert given.items() <= group.items() and group[3] == "odd"


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
    assert all(word in documentation for word in ("Args:", "State per parameter", "Raises:"))
    assert re.search(r"arXiv|\b(19|20)\d\d\b", documentation), "no source, or when it appeared"
