"""States in 8 bits: what is kept and how, that both forms of a rule agree, and that nothing misreads a code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import ferrostep.numpy
from ferrostep import _core
from ferrostep.optim import EGD, Adagrad, AdamW, Lion, Muon, MuonAdamW, OptimisticMD, RMSprop, SophiaG, SophiaH
from ferrostep.optim.base import SCALARS
from ferrostep.reference.codes import BLOCK_SIZE, Codes, blocks_of, book, encode
from tests.contract.rules.registry import Entry, every, every_coded_class
from tests.contract.rules.test_layouts import LAYOUTS
from tests.contract.rules.test_layouts import SHAPE as SHAPE_OF_LAYOUTS
from tests.contract.rules.test_state_dict import WAYS
from tests.contract.snapshot import Snapshot
from tests.contract.training import (
    assert_close,
    assert_same_bits,
    bits,
    contents,
    copies,
    normal,
    parameters,
    set_gradients,
    train,
)

CODES = {"state_dtype": "int8", "min_quant_numel": 1}
SHAPES = ((5, 3), (), (300,), (0, 4), (16, 16), (2, 3, 4, 65), (1, 257), (70, 90))
"""Less than a block, none, one, several with a short last one, and what stays as it is."""
WAYS_OF_ROUNDING: tuple[tuple[torch.dtype, dict[str, Any]], ...] = (
    (torch.float32, {}),
    (torch.bfloat16, {"rounding": "stochastic", "seed": 3}),
    (torch.bfloat16, {"rounding": "kahan"}),
    (torch.bfloat16, {"master_weights": "split"}),
    (torch.float16, {"master_weights": "float32"}),
)

over_rounding = pytest.mark.parametrize(
    ("dtype", "options"), WAYS_OF_ROUNDING, ids=lambda x: str(x).replace("torch.", "")
)
over_backends = pytest.mark.parametrize("backend", ["rust", "reference"])


def trained(entry: Entry, dtype: torch.dtype, steps: int = 3, **options: Any) -> Optimizer:
    """Parameters of all shapes after the steps, with their states in codes."""
    params = parameters(SHAPES, dtype)
    optimizer = entry.build(params, **{**CODES, **options})
    train(optimizer, params, steps)
    return optimizer


def coded(optimizer: Any) -> Iterator[tuple[Parameter, str, Codes]]:
    """The states that are codes, each with its parameter and name."""
    for group in optimizer.param_groups:
        signed = optimizer.rule(group).signed
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            for name in signed:
                if f"{name}_scale" in state:
                    yield p, name, Codes(state[name], state[f"{name}_scale"], signed[name])


@every_coded_class
@over_rounding
def test_every_instruction_set_gives_the_same_bits(
    entry: Entry, dtype: torch.dtype, options: dict[str, Any], isa: str
) -> None:
    ours = trained(entry, dtype, **options)
    _core.use_isa("portable")
    assert_same_bits(ours, trained(entry, dtype, **options))


@every_coded_class
@over_rounding
def test_both_forms_agree(entry: Entry, dtype: torch.dtype, options: dict[str, Any]) -> None:
    for steps in (1, 3):
        assert_agree(*(trained(entry, dtype, steps, **options, backend=backend) for backend in ("rust", "reference")))


@every(lambda entry: entry.sums and entry.state)
def test_both_forms_sum_what_codes_stand_for(entry: Entry) -> None:
    assert_agree(*(trained(entry, torch.float32, backend=backend) for backend in ("rust", "reference")))


def assert_agree(ours: Optimizer, plain: Optimizer) -> None:
    """Fail unless all is the same but for a few codes and what follows from them.

    Gradients of 16 bits often lie in the middle between two codes, and where all magnitudes are nearly the same, so do
    the signs of scales: a rounding decides.
    """
    assert contents(ours).keys() == contents(plain).keys()
    for (p, name, own), (q, _, other) in zip(coded(ours), coded(plain), strict=True):
        torch.testing.assert_close(own.scale.abs(), other.scale.abs(), rtol=1e-2, atol=0.0)
        assert (own.decode() - other.decode()).norm() <= 1e-2 * other.decode().norm(), name
        assert (p.float() - q.float()).abs().le(1e-2 * (1 + q.float().abs())).double().mean() > 0.99


@every_coded_class
def test_what_is_kept(entry: Entry) -> None:
    """A byte for each number and a float for each block, under the state's own name; what is small stays as it was."""
    params = parameters([(64, 64), (64, 63), (5000,), ()])
    optimizer: Any = entry.build(params, state_dtype="int8")
    train(optimizer, params, 1)
    names = optimizer.rule(optimizer.param_groups[0]).states
    large, *others = (optimizer.state[p] for p in params)
    for name in names:
        assert (large[name].dtype, large[name].shape) == (torch.uint8, params[0].shape)
        assert (large[f"{name}_scale"].dtype, large[f"{name}_scale"].shape) == (torch.float32, (16,))
        for state in others:
            assert state[name].dtype == torch.float32 and f"{name}_scale" not in state
    bytes_of_state = sum(x.nbytes for name, x in large.items() if name not in SCALARS)
    assert bytes_of_state == len(names) * (1 + 4 / BLOCK_SIZE) * params[0].numel()


class Language(torch.nn.Module):
    """An embedding, a hidden matrix and an output layer, the first under a name or in a list."""

    def __init__(self, *, is_named: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 90, bias=False)])
        table = torch.nn.Embedding(100, 64)
        if is_named:
            self.wte = table
        else:
            self.layers.insert(0, table)


def in_codes(optimizer: Any, model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if optimizer.state[p]["exp_avg"].dtype == torch.uint8}


def test_embeddings_stay_numbers_where_names_tell() -> None:
    named, plain = (Language(is_named=True) for _ in range(2))
    options: dict[str, Any] = {"lr": 1e-2, "state_dtype": "int8"}
    optimizers = AdamW(named.named_parameters(), **options), AdamW(plain.parameters(), **options)
    for optimizer, model in zip(optimizers, (named, plain), strict=True):
        train(optimizer, list(model.parameters()), 2)
    linear = {"layers.0.weight", "layers.1.weight"}
    assert in_codes(optimizers[0], named) == linear
    assert in_codes(optimizers[1], plain) == {"wte.weight", *linear}
    # Each loads what the other saved: names come along, or are there.
    loading = AdamW(plain.parameters(), **options), AdamW(named.named_parameters(), **options)
    for source, saved, other, model in zip(optimizers, (named, plain), loading, (plain, named), strict=True):
        other.load_state_dict(copy.deepcopy(source.state_dict()))
        assert in_codes(other, model) == linear
        state = source.state[saved.wte.weight]
        codes = "exp_avg_scale" in state
        expected = Codes(state["exp_avg"], state["exp_avg_scale"], True).decode() if codes else state["exp_avg"]
        assert bits(other.state[model.wte.weight]["exp_avg"]) == bits(expected)
        train(other, list(model.parameters()), 1)


def test_embeddings_stay_numbers_where_modules_tell() -> None:
    model = Language(is_named=False)
    options: dict[str, Any] = {"lr": 1e-2, "state_dtype": {"exp_avg": "int8"}}
    optimizer, again = (MuonAdamW(model.parameters(), **options) for _ in range(2))
    train(optimizer, list(model.parameters()), 2)
    assert "exp_avg_scale" not in optimizer.state[model.layers[0].weight]
    assert "exp_avg_scale" in optimizer.state[model.layers[2].weight]
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_bits(again, optimizer)


@every_coded_class
def test_one_state_alone_may_be_codes(entry: Entry) -> None:
    params = parameters([(64, 64)])
    optimizer: Any = entry.build(params, state_dtype={entry.state: "int8"})
    train(optimizer, params, 2)
    assert [name for _, name, _ in coded(optimizer)] == [entry.state]


@every_coded_class
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_bits_of_the_contiguous_one(entry: Entry, layout: str) -> None:
    """Blocks go by the indices, so a checkpoint means the same in any layout."""
    values = normal(SHAPE_OF_LAYOUTS, torch.bfloat16, 3)
    p, expected = Parameter(LAYOUTS[layout](values.clone())), Parameter(values.clone())
    for backend in ("rust", "reference"):
        options = {**CODES, "rounding": "stochastic", "backend": backend}
        optimizer, other = entry.build([p], **options), entry.build([expected], **options)
        train(optimizer, [p], 3)
        train(other, [expected], 3)
        assert_same_bits(optimizer, other)


@every_coded_class
def test_the_number_of_threads_does_not_matter(entry: Entry) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = parameters([(300, 401)], torch.bfloat16)
        optimizer = entry.build(params, state_dtype="int8", rounding="stochastic")
        train(optimizer, params, 2)
        results.append(copies(optimizer))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@every_coded_class
def test_training_goes_as_with_numbers(entry: Entry) -> None:
    """A loss whose curvature, hence gradients and their squares, differ by orders of magnitude within a block.

    Most rules are within 2% of the way; Adagrad's sum and slow momenta lose what a step adds to small numbers.
    """
    curvature = torch.logspace(-1.5, 0, 256).view(4, 64)
    losses = []
    for options in ({}, CODES):
        p = Parameter(normal((4, 64), torch.float32, 1))
        optimizer = entry.build([p], **options)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (curvature * (p - 0.5) ** 2).sum()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
    numbers, codes = losses[:30], losses[30:]
    assert codes[0] == numbers[0] > numbers[-1]
    assert abs(codes[-1] - numbers[-1]) < 0.15 * (numbers[0] - numbers[-1])
    for _, name, state in coded(optimizer):
        assert state.signed or state.codes.min() > 0, name  # no second moment has become zero


def test_a_small_second_moment_does_not_become_zero() -> None:
    """Divided by the root of nothing, the momentum that is left would throw the weight off (arXiv 2309.01507)."""
    for backend in ("rust", "reference"):
        p = Parameter(torch.zeros(1, 256))
        optimizer = AdamW([p], lr=1.0, weight_decay=0.0, **CODES, backend=backend)
        p.grad = torch.full((1, 256), 1e-4)
        p.grad[0, 0] = 1.0
        optimizer.step()
        p.grad.zero_()
        before = p.detach().clone()
        optimizer.step()
        assert optimizer.state[p]["exp_avg_sq"].min() == 1
        assert (p - before).abs().max() < 1


@every_coded_class
def test_what_is_never_negative_is_declared_so(entry: Entry) -> None:
    """Else its codes are those of signed numbers, of which a small positive one becomes zero."""
    params = parameters(entry.shapes)
    optimizer: Any = entry.build(params)
    train(optimizer, params, 3)
    rule = optimizer.rule(optimizer.param_groups[0])
    for name in rule.states:
        is_negative = any((optimizer.state[p][name] < 0).any() for p in params)
        # The Hessian of SophiaG is that of SophiaH to the rule.
        assert rule.signed[name] == (is_negative or name == "hessian"), name


@over_backends
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_codes_begin_with_the_initial_value(value: float, backend: str) -> None:
    (p,) = params = parameters([(70, 90)])
    optimizer = Adagrad(params, **CODES, backend=backend, initial_accumulator_value=value)
    train(optimizer, params, 1)
    ((_, _, codes),) = coded(optimizer)
    expected = value + p.grad**2
    assert (codes.decode() - expected).norm() <= 0.02 * expected.norm()


def test_sophias_refresh_takes_codes() -> None:
    results = []
    for backend in ("rust", "reference"):
        (p,) = params = parameters([(70, 90)], torch.bfloat16)
        optimizer = SophiaG(params, lr=1e-2, betas=(0.9, 0.0), **CODES, backend=backend)
        set_gradients(params, 0)
        optimizer.update_hessian(bs=1)
        hessian = Codes(optimizer.state[p]["hessian"], optimizer.state[p]["hessian_scale"], True).decode()
        expected = p.grad.float() ** 2
        assert (hessian - expected).norm() <= 0.02 * expected.norm()
        train(optimizer, params, 2)
        results.append(optimizer)
    assert_agree(*results)


@over_backends
def test_an_estimate_goes_into_codes(backend: str) -> None:
    (p,) = parameters([(8, 64)])
    optimizer = SophiaH([p], betas=(0.9, 0.0), **CODES, backend=backend)
    estimate = normal(p.shape, torch.float64, 5)
    optimizer.update_hessian([estimate])
    codes, scale = encode(estimate, signed=True)
    assert torch.equal(optimizer.state[p]["hessian"], codes)
    assert torch.equal(optimizer.state[p]["hessian_scale"], scale)


@over_backends
def test_products_with_a_probe_go_into_codes(backend: str) -> None:
    (p,) = parameters([(8, 64)])
    optimizer = SophiaH([p], betas=(0.9, 0.0), **CODES, backend=backend)
    optimizer.estimate_hessian((p**4).sum())
    optimizer.update_hessian()
    codes, scale = encode(12 * p**2, signed=True)
    assert (optimizer.state[p]["hessian"] != codes).sum() <= 2
    torch.testing.assert_close(optimizer.state[p]["hessian_scale"], scale)


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "codes of another shape": (lambda s: s.update(exp_avg=s["exp_avg"].t()), r"exp_avg of .* has shape \[90, 70\]"),
    "numbers": (lambda s: s.update(exp_avg=torch.zeros(70, 90)), "exp_avg of .* has dtype .*float32, expected .*uint8"),
    "too few scales": (lambda s: s.update(exp_avg_scale=torch.ones(24)), r"exp_avg_scale of .* has shape \[24\]"),
    "scales in float64": (lambda s: s.update(exp_avg_scale=torch.ones(25).double()), "exp_avg_scale of .* has dtype"),
    "no scales": (lambda s: s.pop("exp_avg_scale"), "exp_avg of .* has dtype .*uint8, expected"),
}


@every_coded_class
@pytest.mark.parametrize("how", UNFIT)
@over_backends
def test_codes_that_do_not_fit_are_refused(entry: Entry, how: str, backend: str, boundary: str) -> None:
    params = parameters([(3, 4), (70, 90)])
    optimizer = entry.build(params, **CODES, backend=backend)
    train(optimizer, params, 1)
    spoil, message = UNFIT[how]
    state = {name.replace(entry.state, "exp_avg"): value for name, value in optimizer.state[params[1]].items()}
    spoil(state)
    optimizer.state[params[1]] = {name.replace("exp_avg", entry.state, 1): value for name, value in state.items()}
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=message.replace("exp_avg", entry.state).replace("of .*", "of parameter 1.*")):
        optimizer.step()
    before.assert_unchanged()


@every_coded_class
@pytest.mark.parametrize("part", ["", "_scale"])
def test_codes_that_share_memory_are_refused(entry: Entry, part: str) -> None:
    params = parameters([(70, 90), (70, 90)])
    optimizer = entry.build(params, **CODES)
    train(optimizer, params, 1)
    name = f"{entry.state}{part}"
    optimizer.state[params[1]][name] = optimizer.state[params[0]][name]
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=rf"{name} of parameter \d in group 0 shares memory with {name}"):
        optimizer.step()
    before.assert_unchanged()


@every_coded_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_other_parameters_are_refused(entry: Entry, dtype: torch.dtype) -> None:
    if dtype.is_complex and not entry.complex:
        pytest.skip("this rule has no complex form")
    params = parameters([(3, 4), (70, 90)], dtype)
    message = f"parameter 0 has dtype {dtype}, expected float32, bfloat16 or float16"
    for given in (CODES, {"state_dtype": {entry.state: "int8"}}):
        with pytest.raises(ValueError, match=message):
            entry.build(params, **given)
        with pytest.raises(ValueError, match=message):
            entry.build([{"params": params, **given}])


@every_coded_class
def test_parameters_that_become_float64_are_refused(entry: Entry) -> None:
    params = parameters([(70, 90)])
    optimizer = entry.build(params, **CODES)
    train(optimizer, params, 1)
    params[0].data, params[0].grad = params[0].data.double(), None
    set_gradients(params, 1)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="no kernel for float64 parameters with 8-bit state"):
        optimizer.step()
    before.assert_unchanged()


def test_rules_of_matrices_have_no_codes() -> None:
    with pytest.raises(ValueError, match="Invalid state_dtype: momentum_buffer cannot be 'int8'"):
        Muon(parameters([(3, 4)]), state_dtype="int8")


@pytest.mark.parametrize(
    ("kappa", "kappa_param"), [("row", None), ("l2", None), ("topk", 3), (torch.tanh, None)], ids=str
)
def test_a_kappa_of_more_than_elements_takes_codes(kappa: Any, kappa_param: Any) -> None:
    """What has no kernel for them runs in plain torch."""
    ends = []
    for backend in ("auto", "reference"):
        params = parameters(SHAPES)
        optimizer = Lion(params, kappa=kappa, kappa_param=kappa_param, backend=backend, **CODES)
        train(optimizer, params, 3)
        assert optimizer.state[params[0]]["exp_avg"].dtype == torch.uint8
        ends.append({f"{i}.param": p.detach() for i, p in enumerate(params)})
    assert_close(*ends, 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: EGD(params, simplex_dim=-1, momentum=0.9, state_dtype="int8"),
        lambda params: EGD(params, simplex_dim=-1, adam=True, state_dtype={"exp_avg": "int8"}),
        lambda params: OptimisticMD(params, geometry="entropic", state_dtype="int8"),
    ],
    ids=["EGD", "EGD-adam", "OptimisticMD"],
)
def test_rows_on_the_simplex_have_no_codes(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Invalid state_dtype: \w+ cannot be 'int8'; expected an element-wise rule"):
        make([Parameter(torch.full((3, 4), 0.25))])


@pytest.mark.parametrize("given", ["int8", {"square_avg": "int8"}, {"grad_avg": "int8"}], ids=str)
def test_averages_of_which_a_difference_is_taken_have_no_codes(given: Any) -> None:
    """Where it is below their rounding, a step would be lr / eps."""
    params = parameters([(70, 90)])
    with pytest.raises(ValueError, match=r"(square|grad)_avg cannot be 'int8'; expected momentum_buffer alone"):
        RMSprop(params, centered=True, momentum=0.5, state_dtype=given)
    optimizer = RMSprop(params, centered=True, momentum=0.5, state_dtype={"momentum_buffer": "int8"})
    train(optimizer, params, 2)
    assert [name for _, name, _ in coded(optimizer)] == ["momentum_buffer"]


def test_codes_are_not_differentiable() -> None:
    with pytest.raises(RuntimeError, match="state_dtype='int8' does not support `differentiable`"):
        AdamW(parameters([(3, 4)]), state_dtype="int8", differentiable=True)


@every_coded_class
@over_rounding
@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_state_resumes_to_the_bit(entry: Entry, dtype: torch.dtype, options: dict[str, Any], way: str) -> None:
    optimizer = trained(entry, dtype, **options)
    params = optimizer.param_groups[0]["params"]
    resumed_params = [Parameter(p.detach().clone()) for p in params]
    resumed = entry.build(resumed_params, lr=0.5)
    resumed.load_state_dict(WAYS[way](optimizer.state_dict()))
    assert_same_bits(resumed, optimizer)
    train(optimizer, params, 2, start=3)
    train(resumed, resumed_params, 2, start=3)
    assert_same_bits(resumed, optimizer)


def loaded(entry: Entry, saved: dict[str, Any], optimizer: Optimizer, **options: Any) -> Any:
    """Another optimizer with these options, and the saved state."""
    other = entry.build([Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]], **options)
    other.load_state_dict({**saved, "param_groups": other.state_dict()["param_groups"]})
    return other


@every_coded_class
def test_codes_become_numbers_and_numbers_codes_by_loading(entry: Entry) -> None:
    optimizer = trained(entry, torch.float32)
    numbers = loaded(entry, optimizer.state_dict(), optimizer)
    assert not list(coded(numbers)) and not any("_scale" in name for name in contents(numbers))
    counterparts = dict(zip(optimizer.param_groups[0]["params"], numbers.param_groups[0]["params"], strict=True))
    for p, name, codes in coded(optimizer):
        assert bits(numbers.state[counterparts[p]][name]) == bits(codes.decode()), name
    # What was decoded has the very codes that it came from, unless a block was all zero.
    again = loaded(entry, numbers.state_dict(), optimizer, **CODES)
    for (_, name, one), (_, _, other) in zip(coded(again), coded(optimizer), strict=True):
        assert bits(one.decode()) == bits(other.decode()), name
        assert bits(one.scale) == bits(other.scale), name


@every_coded_class
def test_scales_of_another_block_size_are_refused(entry: Entry) -> None:
    optimizer = trained(entry, torch.float32)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][7][f"{entry.state}_scale"] = torch.ones(50)
    with pytest.raises(ValueError, match=rf"{entry.state}_scale has shape \[50\], expected \[25\]"):
        loaded(entry, saved, optimizer)


@every_coded_class
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, CODES], ids=["to numbers", "to codes"])
def test_scales_of_no_codes_are_refused(entry: Entry, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Such as torch's own class makes of a state of codes: it takes every state to the parameter's dtype."""
    optimizer = trained(entry, torch.float32)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][7][entry.state] = saved["state"][7][entry.state].to(dtype)
    with pytest.raises(ValueError, match=f"{entry.state} has dtype {dtype}, expected torch.uint8: codes, as there is"):
        loaded(entry, saved, optimizer, **options)


@every_coded_class
@pytest.mark.parametrize("options", [{}, CODES], ids=["to numbers", "to codes"])
def test_codes_without_scales_are_not_taken_for_numbers(entry: Entry, options: dict[str, Any]) -> None:
    optimizer = trained(entry, torch.float32)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][7][f"{entry.state}_scale"]
    with pytest.raises(KeyError, match=f"codes in {entry.state}, but no {entry.state}_scale"):
        loaded(entry, saved, optimizer, **options)


def of_bitsandbytes(numbers: dict[str, Tensor], size: int, wrapped: bool, **maps: Tensor) -> dict[str, Any]:
    """A parameter's state as bitsandbytes' AdamW8bit saves it."""
    quantized: dict[str, Any] = {}
    for number, (name, x) in enumerate(numbers.items(), 1):
        values = maps.get(name, book(signed=name == "exp_avg"))
        codes, absmax = quantize(x, values, size)
        quantized |= {f"state{number}": codes, f"absmax{number}": absmax, f"qmap{number}": values}
    return {"step": 3, **({"__bnb_optimizer_quant_state__": quantized} if wrapped else quantized)}


class OptimState8bit:
    """What torchao keeps of a state: the attributes of its tensor."""

    def __init__(self, x: Tensor, values: Tensor, size: int) -> None:
        self.codes, self.scale = quantize(x, values, size)
        self.qmap, self.block_size = values, size

    def to(self, *_arguments: Any, **_options: Any) -> OptimState8bit:
        return self


def of_torchao(numbers: dict[str, Tensor], size: int) -> dict[str, Any]:
    states = {name: OptimState8bit(x, book(signed=name == "exp_avg"), size) for name, x in numbers.items()}
    return {"step": torch.tensor(3.0), **states}


def quantize(x: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """As both do it: the scale is the greatest magnitude."""
    padded = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % size)).view(-1, size)
    absmax = padded.abs().amax(1)
    distances = (padded / absmax.clip(1e-12).unsqueeze(1)).unsqueeze(-1) - values
    codes = distances.abs().argmin(-1).to(torch.uint8)
    return codes.view(-1)[: x.numel()].view(x.shape), absmax


def dequantize(codes: Tensor, absmax: Tensor, values: Tensor, size: int) -> Tensor:
    return (values[codes.int()].view(-1) * absmax.repeat_interleave(size)[: codes.numel()]).view(codes.shape)


@pytest.mark.parametrize("size", [256, 2048, 64])
@pytest.mark.parametrize("codes", [True, False], ids=["to codes", "to numbers"])
@pytest.mark.parametrize("peer", ["bitsandbytes", "bitsandbytes, wrapped", "torchao", "another map"])
def test_states_of_peers_load(peer: str, size: int, codes: bool) -> None:
    shape = (64, 64) if peer == "torchao" else (71, 97)  # torchao's blocks are all full
    numbers = {"exp_avg": normal(shape, torch.float32, 1), "exp_avg_sq": normal(shape, torch.float32, 2) ** 2}
    linear = torch.linspace(-1, 1, 256)
    maps = {"exp_avg": linear} if peer == "another map" else {}
    if peer == "torchao":
        state = of_torchao(numbers, size)
    else:
        state = of_bitsandbytes(numbers, size, "wrapped" in peer, **maps)
    p = Parameter(normal(shape, torch.float32, 0))
    optimizer: Any = AdamW([p], state_dtype="int8" if codes else None)
    group = {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.0, "alpha": 0.0, "params": [0]}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.state[p]["step"] == 3
    kept = {name: x.decode() for _, name, x in coded(optimizer)} or optimizer.state[p]
    for name, x in numbers.items():
        values = maps.get(name, book(signed=name == "exp_avg"))
        theirs = dequantize(*quantize(x, values, size), values, size)
        if not codes or (size == BLOCK_SIZE and name not in maps):  # else their blocks are not ours
            torch.testing.assert_close(kept[name], theirs, rtol=1e-6, atol=0.0)
        assert (kept[name] - theirs).norm() <= 0.015 * theirs.norm(), name
    train(optimizer, [p], 1)


def test_small_states_of_bitsandbytes_are_numbers() -> None:
    p = Parameter(torch.ones(3, 5))
    state = {"step": 2, "state1": torch.full((3, 5), 0.5), "state2": torch.full((3, 5), 0.25)}
    optimizer = AdamW([p], state_dtype="int8")
    group = {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.0, "params": [0]}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    assert torch.equal(optimizer.state[p]["exp_avg"], state["state1"])
    assert torch.equal(optimizer.state[p]["exp_avg_sq"], state["state2"])


def test_the_book_of_rust_is_that_of_plain_torch() -> None:
    """Each code by itself: what it stands for, and that it is found again."""
    for signed in (True, False):
        values = book(signed=signed)
        codes, scale = encode(values, signed=signed)
        assert torch.equal(codes, torch.arange(256, dtype=torch.uint8)) and scale.tolist() == [1.0]
        p = Parameter(torch.zeros(1, 256))
        p.grad = torch.zeros(1, 256)
        name = "exp_avg" if signed else "exp_avg_sq"
        optimizer = AdamW([p], lr=0.0, betas=(0.5, 0.5), state_dtype={name: "int8"}, min_quant_numel=1)
        optimizer.step()
        state = optimizer.state[p]
        state[name], state[f"{name}_scale"] = codes.view(1, 256), torch.full((1,), 2.0)
        optimizer.step()
        assert torch.equal(state[name].view(-1), codes) and state[f"{name}_scale"].tolist() == [1.0]


def test_the_number_of_blocks() -> None:
    assert [blocks_of(numel) for numel in (0, 1, 256, 257)] == [0, 1, 1, 2]


def test_arrays_of_codes_are_refused() -> None:
    param, grad, exp_avg = np.ones(3, np.float32), np.ones(3, np.float32), np.zeros(3, np.uint8)
    with pytest.raises(ValueError, match="exp_avg has dtype uint8, expected float32, float64, bfloat16 or float16"):
        ferrostep.numpy.lion_(param, grad, exp_avg)
    assert (param == 1).all() and (exp_avg == 0).all()
