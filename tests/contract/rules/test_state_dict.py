"""Checkpoints: what is saved resumes to the bit, and moves between ferrostep, torch and lion-pytorch."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lion_pytorch
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ferrostep.optim import EGD, SAM, AdaGradNorm, Adam, AdamW, Lion, Muon, MuonAdamW, RMSprop
from tests.contract.rules.registry import (
    ADAMW,
    LION,
    Entry,
    every,
    every_class,
    every_class_of_any_shape,
    every_entry,
    every_with_state,
    one_of_each_class,
)
from tests.contract.training import assert_close, assert_same_bits, contents, copies, parameters, train


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """Saved and loaded as a trainer does it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "itself": lambda state: state,
    "file": through_file,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}

OPTIONS: tuple[tuple[torch.dtype, dict[str, Any]], ...] = (
    (torch.float32, {}),
    (torch.float32, {"state_dtype": torch.bfloat16}),
    (torch.float64, {}),
    (torch.complex64, {}),
    (torch.bfloat16, {"rounding": "kahan"}),
    (torch.bfloat16, {"master_weights": "split"}),
    (torch.float16, {"master_weights": "float32"}),
    (torch.bfloat16, {"rounding": "stochastic", "seed": 2**64 - 1}),
    (torch.float16, {"rounding": "nearest"}),
    (torch.float16, {"rounding": "stochastic", "seed": 5, "state_dtype": torch.float16}),
)


@every_entry
@pytest.mark.parametrize(("dtype", "options"), OPTIONS, ids=lambda x: str(x).replace("torch.", ""))
@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_state_resumes_to_the_bit(entry: Entry, dtype: torch.dtype, options: dict[str, Any], way: str) -> None:
    if dtype.is_complex and not entry.complex:
        pytest.skip("this rule has no complex form")
    assert_resumes(entry, dtype, options, way)


@every(lambda entry: not {(4, 2), 3} & {entry.arguments.get(name) for name in ("split_sizes", "num_heads")})
@pytest.mark.filterwarnings("ignore")  # of torch, about its own parts
def test_torchs_distributed_checkpoint_resumes_to_the_bit(entry: Entry, tmp_path: Path) -> None:
    """It wants a state of every parameter or of none, and loads into the tensors of a state dict."""
    models = [torch.nn.Sequential(torch.nn.Linear(6, 6, False), torch.nn.Linear(6, 12, False)) for _ in range(2)]
    optimizers = [entry.build(model.parameters()) for model in models]
    train(optimizers[0], list(models[0].parameters()), 3)
    pairs = zip(models, optimizers, strict=True)
    states = [dict(zip(("model", "optimizer"), get_state_dict(*each), strict=True)) for each in pairs]
    dcp.save(states[0], checkpoint_id=tmp_path, no_dist=True)
    dcp.load(states[1], checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(
        models[1], optimizers[1], model_state_dict=states[1]["model"], optim_state_dict=states[1]["optimizer"]
    )
    assert_same_bits(*optimizers)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(optimizer, list(model.parameters()), 2, start=3)
    assert_same_bits(*optimizers)


@every_with_state
@pytest.mark.parametrize("way", WAYS)
def test_states_of_several_dtypes_resume_to_the_bit(entry: Entry, way: str) -> None:
    assert_resumes(entry, torch.float32, {"state_dtype": {entry.state: torch.bfloat16}}, way)


def assert_resumes(entry: Entry, dtype: torch.dtype, options: dict[str, Any], way: str) -> None:
    """Fail unless an optimizer with the loaded state of another goes on as the other does."""
    params = parameters(entry.shapes, dtype)
    optimizer = entry.build(params, **options)
    train(optimizer, params, 3)
    state = WAYS[way](optimizer.state_dict())
    resumed_params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = entry.build(resumed_params, lr=0.5)  # the loaded groups take the place of these options
    resumed.load_state_dict(state)
    assert_same_bits(resumed, optimizer)
    train(optimizer, params, 3, start=3)
    train(resumed, resumed_params, 3, start=3)
    assert_same_bits(resumed, optimizer)


@every_class
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copied_optimizer_resumes_to_the_bit(entry: Entry, how: Callable[[Any], Any]) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    optimizer = entry.build(params, rounding="kahan")
    train(optimizer, params, 2)
    other_params, other = how((params, optimizer))
    before = copies(optimizer)
    train(other, other_params, 2, start=2)
    assert_same_bits(optimizer, before)
    train(optimizer, params, 2, start=2)
    assert_same_bits(other, optimizer)


@every_class
@pytest.mark.parametrize(
    "parts", [(), ("state",), ("param_groups",), ("defaults",), ("state", "param_groups")], ids=str
)
def test_a_part_of_the_state_may_be_set(entry: Entry, parts: tuple[str, ...]) -> None:
    params, expected = parameters(entry.shapes), parameters(entry.shapes)
    optimizer, untouched = entry.build(params), entry.build(expected)
    train(optimizer, params, 2)
    train(untouched, expected, 4)
    whole = optimizer.__getstate__()
    optimizer.__setstate__({part: whole[part] for part in parts})
    train(optimizer, params, 2, start=2)
    assert_same_bits(optimizer, untouched)


@every_class
def test_loading_copies(entry: Entry) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    optimizer, other = entry.build(params), entry.build(others)
    train(optimizer, params, 2)
    other.load_state_dict(optimizer.state_dict())
    before = copies(optimizer)
    train(other, others, 1)
    assert_same_bits(optimizer, before)


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_a_float32_state_of_sixteen_bit_parameters_is_not_rounded(entry: Entry, dtype: torch.dtype) -> None:
    params = parameters(entry.shapes, dtype)
    optimizer = entry.build(params)
    train(optimizer, params, 3)
    for target in (dtype, torch.float32):
        fresh = entry.build(parameters(entry.shapes, target))
        fresh.load_state_dict(through_file(optimizer.state_dict()))
        expected = {name: t for name, t in contents(optimizer).items() if not name.endswith("param")}
        actual = {name: t for name, t in contents(fresh).items() if not name.endswith("param")}
        assert_same_bits(actual, expected)


@every_class
def test_loading_after_a_change_of_the_models_dtype(entry: Entry) -> None:
    params = parameters(entry.shapes, torch.float32)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        others = [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
        other = entry.build(others)
        other.load_state_dict(optimizer.state_dict())
        for name, tensor in contents(other).items():
            if "exp_avg" in name:
                assert tensor.dtype == kept
                assert torch.equal(tensor, contents(optimizer)[name].to(kept))
        train(other, others, 2, start=2)


@every_class_of_any_shape
def test_loading_takes_the_layout_of_the_parameter(entry: Entry) -> None:
    (p,) = parameters([(2, 3, 4, 5)])
    optimizer = entry.build([p])
    train(optimizer, [p], 2)
    last = torch.nn.Parameter(p.detach().clone().to(memory_format=torch.channels_last))
    other = entry.build([last])
    other.load_state_dict(optimizer.state_dict())
    tensors = [t for name, t in contents(other).items() if entry.state in name]
    assert tensors
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
    train(optimizer, [p], 2, start=2)
    train(other, [last], 2, start=2)
    if entry.sums:  # in the order of the memory
        assert_close(other, optimizer, 1e-6)
    else:
        assert_same_bits(other, optimizer)


@every(
    lambda entry: (
        entry.peer and entry.peer.func.__module__.startswith("torch.optim") and entry.optimizer is not MuonAdamW
    )
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("from_us", [True, False], ids=["to torch", "from torch"])
def test_state_moves_between_torch_and_us(entry: Entry, dtype: torch.dtype, from_us: bool) -> None:
    builders: list[Callable[..., Optimizer]] = [entry.build, entry.peer]
    first, second = builders if from_us else builders[::-1]
    params = parameters(entry.shapes, dtype)
    optimizer = first(params)
    train(optimizer, params, 4)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = second(others)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    train(optimizer, params, 10, start=4)
    train(resumed, others, 10, start=4)
    actual = contents(resumed)
    # torch gives all that it loads but the step the parameter's dtype.
    expected = {name: x.to(actual[name].dtype) if x.ndim == 0 else x for name, x in contents(optimizer).items()}
    assert_close(actual, expected, 1e-6, least_size=1.0)


@pytest.mark.parametrize("count", [1, 4])
def test_lion_pytorchs_state_loads(count: int) -> None:
    theirs = parameters([(9,), (3, 4)], torch.float64)
    peer = lion_pytorch.Lion(theirs, **LION)
    train(peer, theirs, count)
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = Lion(ours)
    optimizer.load_state_dict(through_file(peer.state_dict()))
    assert {name: optimizer.param_groups[0][name] for name in LION} == LION
    train(peer, theirs, 5, start=count)
    train(optimizer, ours, 5, start=count)
    assert_close(optimizer, peer, 1e-14, only_params=True)


@pytest.mark.parametrize("number", [4, 4.0])
def test_checkpoints_with_the_step_as_a_number(number: float) -> None:
    params = parameters([(9,)], torch.float64)
    optimizer = AdamW(params, **ADAMW)
    train(optimizer, params, 4)
    state = copy.deepcopy(optimizer.state_dict())
    for each in state["state"].values():
        each["step"] = number
    # Old versions of torch did not save these.
    for name in ("decoupled_weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable", "rounding"):
        for group in state["param_groups"]:
            del group[name]
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = AdamW(others)
    resumed.load_state_dict(state)
    train(optimizer, params, 3, start=4)
    train(resumed, others, 3, start=4)
    assert_close(resumed, optimizer, 0.0)


@every_class
def test_rounding_may_change_during_a_training(entry: Entry) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    optimizer.param_groups[0]["rounding"] = "kahan"
    train(optimizer, params, 2, start=2)
    assert all("kahan_comp" in optimizer.state[p] for p in params)
    state = optimizer.state_dict()
    fresh = entry.build(parameters(entry.shapes, torch.bfloat16))
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["rounding"] == "kahan"


@every_entry
def test_a_state_saved_before_all_parameters_have_begun(entry: Entry) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    optimizers = [entry.build(each) for each in (params, others)]
    train(optimizers[0], params[1:], 1)
    optimizers[1].load_state_dict(through_file(optimizers[0].state_dict()))
    for p, q in zip(others, params, strict=True):
        p.data.copy_(q)
    for optimizer, own in zip(optimizers, (params, others), strict=True):
        train(optimizer, own, 2, start=1)
    assert_same_bits(*optimizers)


@every_entry
def test_an_empty_state_begins_anew(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    empty = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, 2)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    new = entry.build(others)
    optimizer.load_state_dict(empty)
    train(optimizer, params, 2, start=2)
    train(new, others, 2, start=2)
    assert_same_bits(optimizer, new)


@every_entry
def test_options_come_with_a_state_and_groups_may_come_after_it(entry: Entry) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    optimizer, other = entry.build(params), entry.build(others, lr=0.5, maximize=True)
    train(optimizer, params, 2)
    other.load_state_dict(through_file(optimizer.state_dict()))
    for p, q in zip(others, params, strict=True):
        p.data.copy_(q)
    options = {**optimizer.param_groups[0], "lr": 1e-3}
    for each, own in ((optimizer, params), (other, others)):
        late = parameters(entry.shapes[:1])
        each.add_param_group({**options, "params": late})
        train(each, [*own, *late], 2, start=2)
    assert_same_bits(optimizer, other)


@every_class
def test_groups_that_do_not_fit_are_refused(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 1)
    before = copies(optimizer)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(entry.build(parameters(entry.shapes[:-1])).state_dict())
    assert_same_bits(optimizer, before)


FOREIGN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Rprop": lambda p: {"step": torch.tensor(3.0), "prev": torch.ones_like(p), "step_size": torch.ones_like(p)},
    "bitsandbytes' AdamW8bit": lambda p: {"step": 3, "state1": torch.zeros_like(p, dtype=torch.uint8)},
    "a step count alone": lambda p: {"step": torch.tensor(3.0)},
}


@every_class
@pytest.mark.parametrize("theirs", FOREIGN)
def test_states_of_other_optimizers_are_refused(entry: Entry, theirs: str) -> None:
    """As torch does, by a KeyError, but when they are loaded and with nothing changed."""
    if theirs == "a step count alone" and entry.begins_late:
        pytest.skip("its momentum begins then, as torch's")
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    before = copies(optimizer)
    saved["state"] = {**saved["state"], 1: FOREIGN[theirs](params[1])}
    with pytest.raises(KeyError, match=rf"state of parameter 1 in group 0 has .*, but no {entry.state}"):
        optimizer.load_state_dict(saved)
    assert_same_bits(optimizer, before)
    train(optimizer, params, 1, start=2)


def test_another_rules_state_of_the_same_name_is_refused() -> None:
    params, others = parameters([(3,)]), parameters([(3,)])
    adagrad, optimizer = torch.optim.Adagrad(params), AdaGradNorm(others)
    train(adagrad, params, 1)
    train(optimizer, others, 1)
    before = copies(optimizer)
    with pytest.raises(ValueError, match=r"sum of a state has shape \[3\], expected one number: it is another rule's"):
        optimizer.load_state_dict(adagrad.state_dict())
    assert_same_bits(optimizer, before)


@every_class
def test_a_load_that_fails_midway_changes_nothing(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    last = max(saved["state"])
    saved["state"][last] = saved["state"][last] | {"step": [1.0]}
    before, groups = copies(optimizer), copy.deepcopy(optimizer.param_groups)
    with pytest.raises(TypeError, match="float"):
        optimizer.load_state_dict(saved)
    assert_same_bits(optimizer, before)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in groups]
    train(optimizer, params, 1, start=2)


@every_class
def test_a_loaded_state_that_no_kernel_takes_is_named_by_the_step(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    for spoilt, what in ((lambda state: state.to_sparse(), "has layout torch.sparse_coo"),):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][1][entry.state] = spoilt(saved["state"][1][entry.state])
        fresh = entry.build(parameters(entry.shapes))
        fresh.load_state_dict(saved)
        with pytest.raises(RuntimeError, match=f"{entry.state} of parameter 1 in group 0 {what}"):
            train(fresh, fresh.param_groups[0]["params"], 1)


@pytest.mark.parametrize("count", [2.0**64, 1e30])
def test_a_step_count_beyond_integers_is_a_late_step(count: float) -> None:
    for dtype in (torch.float32, torch.float64):
        params = parameters([(9,)])
        optimizer = AdamW(params)
        train(optimizer, params, 1)
        optimizer.state[params[0]]["step"] = torch.tensor(count, dtype=dtype)
        train(optimizer, params, 1)
        assert params[0].isfinite().all()


def test_any_mapping_of_state_dtypes_can_be_saved() -> None:
    params = parameters([(9,)])
    given = {"exp_avg": torch.bfloat16}
    optimizer = AdamW(params, state_dtype=MappingProxyType(given))
    given["exp_avg"] = torch.int8
    train(optimizer, params, 1)
    loaded = through_file(copy.deepcopy(optimizer).state_dict())
    assert loaded["param_groups"][0]["state_dtype"] == {"exp_avg": torch.bfloat16}


@every(lambda entry: entry.state == "exp_avg" and entry in one_of_each_class())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgds_checkpoint_is_refused(entry: Entry, momentum: float) -> None:
    params = parameters(entry.shapes)
    sgd = torch.optim.SGD(params, lr=0.1, momentum=momentum)
    train(sgd, params, 1)
    sgd.state[params[0]].setdefault("momentum_buffer", None)  # as torch had it until 2.3
    with pytest.raises(KeyError, match="state of parameter 0 in group 0 has momentum_buffer, but no exp_avg"):
        entry.build(params).load_state_dict(sgd.state_dict())


@every(lambda entry: entry in one_of_each_class() and not entry.begins_late)
def test_a_state_that_has_lost_a_part_is_refused(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params, rounding="stochastic")
    train(optimizer, params, 2)
    del optimizer.state[params[1]][entry.state]
    before = copies(optimizer)
    with pytest.raises(KeyError, match=rf"state of parameter 1 in group 0 has .*step.*, but no {entry.state}"):
        train(optimizer, params, 1)
    assert_same_bits(optimizer, before)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    ("cls", "before", "options", "missing"),
    [
        (Adam, {}, {"amsgrad": True}, "max_exp_avg_sq"),
        (AdamW, {}, {"amsgrad": True}, "max_exp_avg_sq"),
        (RMSprop, {}, {"momentum": 0.5}, "momentum_buffer"),
        (RMSprop, {}, {"centered": True}, "grad_avg"),
        (RMSprop, {"momentum": 0.5}, {"centered": True}, "grad_avg"),
        (Muon, {}, {"normalize": "normuon"}, "second_momentum_buffer"),
        (EGD, {"momentum": 0.5}, {"momentum": 0.0, "adam": True}, "exp_avg, exp_avg_sq"),
    ],
    ids=str,
)
def test_states_that_an_option_adds_later_are_refused(
    cls: Any, before: dict[str, Any], options: dict[str, Any], missing: str, rounding: str
) -> None:
    """Where torch has the option, by torch's error, too; a momentum that torch begins: test_sgd.py."""
    params, others = parameters([(5, 3), (9, 2)]), parameters([(5, 3), (9, 2)])
    optimizer, peer = cls(params, rounding=rounding, **before), getattr(torch.optim, cls.__name__, None)
    train(optimizer, params, 2)
    optimizer.param_groups[0].update(options)
    kept = copies(optimizer)
    message = rf"state of parameter 0 in group 0 has .*, but no {missing}: .*, or of before an option was chosen"
    with pytest.raises(KeyError, match=message):
        train(optimizer, params, 1, start=2)
    assert_same_bits(optimizer, kept)
    if peer is not None and options.keys() <= peer(others).defaults.keys():
        theirs = peer(others, **before)
        train(theirs, others, 2)
        theirs.param_groups[0].update(options)
        with pytest.raises(KeyError, match=missing):
            train(theirs, others, 1, start=2)


@every_class
def test_a_wrapper_may_keep_something_in_the_state_before_the_first_step(entry: Entry) -> None:
    """As schedulefree's does."""
    params, plain = parameters(entry.shapes), parameters(entry.shapes)
    optimizer = entry.build(params)
    for p in params:
        optimizer.state[p]["z"] = p.detach().clone()
    train(optimizer, params, 2)
    train(entry.build(plain), plain, 2)
    for p, expected in zip(params, plain, strict=True):
        assert torch.equal(p, expected)
        assert {"z", entry.state} <= optimizer.state[p].keys()


@every_class
@pytest.mark.parametrize("drop", ["clear", "load"])
def test_a_dropped_state_is_freed_at_once(entry: Entry, drop: str) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 2)
    kept = weakref.ref(optimizer.state[params[0]][entry.state])
    if drop == "clear":
        optimizer.state.clear()
    else:
        optimizer.load_state_dict(optimizer.state_dict())
    assert kept() is None
    train(optimizer, params, 1)


@every_class
@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_a_model_that_changes_its_precision_goes_on(entry: Entry, backend: str, dtypes: Any) -> None:
    """As if its state had been loaded: `model.double()` and `model.float()` keep the parameters that they convert."""
    before, after = dtypes
    params = parameters(entry.shapes, before)
    optimizer = entry.build(params, backend=backend)
    train(optimizer, params, 2)
    expected = [torch.nn.Parameter(p.detach().to(after)) for p in params]
    other = entry.build(expected, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    for p in params:
        p.data = p.data.to(after)
    train(optimizer, params, 2, start=2)
    train(other, expected, 2, start=2)
    assert optimizer.state[params[0]][entry.state].dtype == after
    assert_same_bits(optimizer, other)


@every_class
def test_hooks_around_saving_and_loading_run(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 1)
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda _o, _s: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _o, state: calls.append("load") or through_file(state))
    optimizer.register_load_state_dict_post_hook(lambda _o: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "saved", "load", "loaded"]
    train(optimizer, params, 1, start=1)


@every_class
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hook_may_return_what_it_likes(entry: Entry, wrapped: bool) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 1)
    expected = optimizer.state_dict()
    wrapper = SAM(optimizer) if wrapped else optimizer
    wrapper.register_state_dict_post_hook(lambda _o, state: {"inner": state})
    found = wrapper.state_dict()
    assert found.keys() == {"inner"} and repr(found["inner"]) == repr(expected)
    wrapper.register_state_dict_post_hook(lambda _o, _state: {})
    assert wrapper.state_dict() == {}


@every_class
def test_a_hook_may_save_once_more(entry: Entry) -> None:
    """As another thread may, meanwhile."""
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    train(optimizer, params, 1)
    expected, inner = repr(optimizer.state_dict()), []

    def save_again(optimizer: Any, _state: Any) -> None:
        if not inner:
            inner.append(None)
            inner.append(repr(optimizer.state_dict()))

    optimizer.register_state_dict_post_hook(save_again)
    optimizer.register_state_dict_post_hook(lambda _o, _s: None)
    assert repr(optimizer.state_dict()) == expected and inner == [None, expected]


@every_class
def test_what_is_loaded_in_inference_mode_is_stepped_outside(entry: Entry) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    optimizer, other = entry.build(params), entry.build(others)
    for one, own in ((optimizer, params), (other, others)):
        train(one, own, 1)
        with torch.inference_mode(one is optimizer):
            one.load_state_dict(one.state_dict())
        train(one, own, 1, start=1)
    for one, another in zip(params, others, strict=True):
        assert torch.equal(one, another)
