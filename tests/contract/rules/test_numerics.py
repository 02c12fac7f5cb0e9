"""Every rule gives what its plain torch form gives, on every instruction set, in every dtype and rounding mode."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.optim.base import SCALARS
from tests.contract.rules.registry import (
    ENTRIES,
    Entry,
    RoundedNIGT,
    every,
    every_class,
    every_elementwise_class,
    every_near_the_reference,
    every_that_subtracts,
    every_with_state_near_the_reference,
    one_of_each_class,
)
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
    train_beside_float32,
)

STEPS = 20
BY_NAME = {entry.name: entry for entry in ENTRIES}
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
ROUNDINGS = ("nearest", "stochastic", "kahan")
# Parameter dtype and state dtype, as the option selects it.
SIXTEEN_BIT_PAIRS = (
    (torch.bfloat16, None),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, None),
    (torch.float16, torch.float16),
    (torch.float16, torch.bfloat16),
)


# The dtype of all states, or of one by its name.
StateDType = torch.dtype | tuple[str, torch.dtype] | None


@cache
def trained(name: str, dtype: torch.dtype, state_dtype: StateDType, rounding: str, how: str) -> dict[str, Tensor]:
    """Parameters and states after the steps, by an instruction set or by the reference."""
    entry = BY_NAME[name]
    params = parameters(entry.shapes, dtype)
    of_states = dict([state_dtype]) if isinstance(state_dtype, tuple) else state_dtype
    options = {"state_dtype": of_states, "rounding": rounding, "seed": 7}
    if how == "reference":
        options["backend"] = "reference"
    else:
        assert _core.isa() == how
        options["backend"] = "rust"
    optimizer = entry.build(params, **options)
    train(optimizer, params, STEPS)
    return contents(optimizer)


def portable(name: str, dtype: torch.dtype, state_dtype: StateDType, rounding: str) -> dict[str, Tensor]:
    """What the portable instruction set gives."""
    before = _core.isa()
    _core.use_isa("portable")
    try:
        return trained(name, dtype, state_dtype, rounding, "portable")
    finally:
        _core.use_isa(before)


@pytest.mark.smoke
@every_near_the_reference
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["f64", "f32"])
def test_equals_the_reference(entry: Entry, dtype: torch.dtype, relative: float, isa: str) -> None:
    actual = trained(entry.name, dtype, None, "nearest", isa)
    assert_close(actual, trained(entry.name, dtype, None, "nearest", "reference"), relative)
    if entry.exact:
        assert_same_bits(actual, portable(entry.name, dtype, None, "nearest"))


@every_with_state_near_the_reference
def test_float32_with_bfloat16_state_equals_the_reference(entry: Entry, isa: str) -> None:
    arguments = (entry.name, torch.float32, torch.bfloat16, "nearest")
    actual = trained(*arguments, isa)
    assert any(tensor.dtype == torch.bfloat16 for tensor in actual.values())
    # A state that lies between two bfloat16 numbers may be rounded either way: one part in 256 of the state.
    expected = trained(*arguments, "reference")
    assert_close(actual, expected, 2.0**-7)
    if entry.exact:
        assert_same_bits(actual, portable(*arguments))


@every_with_state_near_the_reference
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_of_several_dtypes_equal_the_reference(entry: Entry, dtype: torch.dtype, isa: str) -> None:
    arguments = (entry.name, dtype, (entry.state, torch.bfloat16), "nearest")
    actual = trained(*arguments, isa)
    for name, tensor in actual.items():
        if not name.endswith(("param", *SCALARS, *getattr(entry.optimizer, "_numbers", ()))):
            assert tensor.dtype == (torch.bfloat16 if name.endswith(f".{entry.state}") else torch.float32), name
    assert_close(actual, trained(*arguments, "reference"), 2.0**-7)
    if entry.exact:
        assert_same_bits(actual, portable(*arguments))


@every(lambda entry: entry.exact)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("dtype", "state_dtype"), SIXTEEN_BIT_PAIRS, ids=str)
def test_sixteen_bits_on_all_instruction_sets_are_the_same_bits(
    entry: Entry, dtype: torch.dtype, state_dtype: torch.dtype | None, rounding: str, isa: str
) -> None:
    arguments = (entry.name, dtype, state_dtype, rounding)
    assert_same_bits(trained(*arguments, isa), portable(*arguments))


@every(lambda entry: entry in one_of_each_class() and not entry.amplifies)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("dtype", "state_dtype"), SIXTEEN_BIT_PAIRS, ids=str)
def test_sixteen_bits_after_many_steps_equal_the_reference(
    entry: Entry, dtype: torch.dtype, state_dtype: torch.dtype | None, rounding: str
) -> None:
    arguments = (entry.name, dtype, state_dtype, rounding)
    actual, expected = portable(*arguments), trained(*arguments, "reference")
    for name, tensor in expected.items():
        if name.endswith("param") and entry.elementwise:
            # What was one spacing apart is two apart once both have shrunk below a power of two.
            assert (actual[name].float() - tensor.float()).abs().le(2 * spacing(tensor)).all(), name
        elif name.endswith(("exp_avg", "exp_avg_sq")) and state_dtype is None:
            # The gradients are 16-bit numbers, so the states differ as in float32 unless weight decay joins them.
            size = tensor.abs().max() if tensor.numel() else 0.0
            assert (actual[name] - tensor).abs().le(1e-3 * size).all(), name


def spacing(values: Tensor) -> Tensor:
    """The distance from a number to its neighbours, the wider one, as float32."""
    eps = torch.finfo(values.dtype).eps
    tiny = torch.finfo(values.dtype).smallest_normal
    _, exponent = torch.frexp(values.float().abs().clamp_min(tiny))
    return eps * torch.exp2(exponent.float() - 1)


def assert_within(actual: Tensor, exact: Tensor, allowed: Tensor, what: str) -> None:
    """Each element is off by no more than is allowed for it."""
    excess = (actual.double() - exact).abs() - allowed
    if not excess.le(0).all():
        i = int(excess.flatten().nan_to_num(float("inf")).argmax())
        found, expected, most = (float(x.flatten()[i]) for x in (actual, exact, allowed))
        pytest.fail(f"{what}, element {i}: {found}, expected {expected} (plain torch in float64) +- {most}")


@every(lambda entry: entry.has_one_rule and not entry.amplifies and not entry.sums)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=["bf16", "f16"])
def test_sixteen_bits_are_within_one_rounding_of_the_float32_result(
    entry: Entry, dtype: torch.dtype, rounding: str
) -> None:
    params = parameters(entry.shapes, dtype)
    optimizer = entry.build(params, rounding=rounding)
    train(optimizer, params, 1)
    for step in range(1, STEPS):
        set_gradients(params, step)
        before = copies(optimizer)
        optimizer.step()
        after = contents(optimizer)
        rule = optimizer.rule(optimizer.param_groups[0])
        for i, p in enumerate(params):
            exact = before[f"0.{i}.param"].double()
            if rounding == "kahan":
                exact += before[f"0.{i}.kahan_comp"]
            noise = exact.abs()
            assert all(before[f"0.{i}.{name}"].dtype == torch.float32 for name in rule.states)
            states = [before[f"0.{i}.{name}"].double() for name in rule.states]
            product = None if rule.product is None else after[f"0.{i}.{rule.product}"].item()
            arguments = (exact, p.grad.double(), states, step + 1.0, rule.hyperparameters)
            reference.apply(rule.reference, *arguments, product=product)
            now = after[f"0.{i}.param"]
            noise = (5e-7 if entry.exact else 2e-6) * (noise + exact.abs())  # of the float32 arithmetic
            allowed = spacing(now) * (1.0 if rounding == "stochastic" else 0.5) + noise
            assert_within(now, exact, allowed, f"step {step}, parameter {i}")
            if rounding == "kahan":
                lost = after[f"0.{i}.kahan_comp"]
                whole = now.double() + lost.double()
                assert_within(whole, exact, spacing(lost) + noise, f"step {step}, parameter {i} and kahan_comp")
            for name, state in zip(rule.states, states, strict=True):
                size = state.abs().max() if state.numel() else 0.0
                off = {"rtol": 1e-6, "atol": 1e-6 * float(size), "check_dtype": False}
                torch.testing.assert_close(
                    after[f"0.{i}.{name}"], state, **off, msg=lambda m, name=name: f"{name}: {m}"
                )


def masters(p: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers whose halves these are."""
    return ((p.detach().view(torch.int16).int() << 16) + low).view(torch.float32)


@every_near_the_reference
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_split_master_weights_are_those_of_float32_parameters(entry: Entry, backend: str, isa: str) -> None:
    """Bit for bit, with the parameters next to them: nothing is ever lost."""
    halves = parameters(entry.shapes, torch.bfloat16)
    whole = [torch.nn.Parameter(p.detach().float()) for p in halves]
    ours = entry.build(halves, lr=1e-6, master_weights="split", backend=backend)
    other = entry.build(whole, lr=1e-6, backend=backend)
    train_beside_float32(ours, halves, other, whole, STEPS)
    for p, q in zip(halves, whole, strict=True):
        assert bits(masters(p, ours.state[p]["master_low"])) == bits(q)
        near = q.detach().bfloat16()
        assert ((p == near) | ((p.float() - q).abs() == (near.float() - q).abs())).all()


@every_class
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_split_master_weights_of_a_model_that_becomes_float16_are_refused(entry: Entry, backend: str) -> None:
    params = parameters(entry.shapes, torch.bfloat16)
    optimizer = entry.build(params, master_weights="split", backend=backend)
    train(optimizer, params, 1)
    for p in params:
        p.data = p.data.half()
    before = copies(optimizer)
    message = {
        "rust": r"no kernel for float16 parameters with float32 state and rounding=.split.",
        "reference": r"has dtype torch.float16, but master_weights='split' takes torch.bfloat16",
    }
    with pytest.raises(ValueError, match=message[backend]):
        train(optimizer, params, 1)
    assert_same_bits(optimizer, before)


@every_that_subtracts
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_what_is_written_over_split_weights_stands(entry: Entry, backend: str, isa: str) -> None:
    """Within the spacing of bfloat16, whatever the lower halves have been."""
    params = parameters([(1000,)], torch.bfloat16)
    optimizer = entry.build(params, master_weights="split", backend=backend)
    train(optimizer, params, 3)
    (p,) = params
    with torch.no_grad():
        p[:300], p[300:600], p[600:] = 0.0, float("inf"), 1.0
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    train(optimizer, params, 1)
    assert (p[:300].abs() < 1e-38).all()
    assert (p[300:600] == float("inf")).all()
    assert ((p[600:] - 1).abs() <= 2.0**-8).all()


@every_elementwise_class
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_split_master_weights_pass_special_values(entry: Entry, backend: str, isa: str) -> None:
    values = torch.tensor([0.0, -0.0, 1e-40, 3.38e38, float("inf"), -float("inf"), float("nan")])
    p = torch.nn.Parameter(values.bfloat16())
    q = torch.nn.Parameter(p.detach().float())
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    ours = entry.build([p], master_weights="split", backend=backend)
    ours.step()
    entry.build([q], backend=backend).step()
    torch.testing.assert_close(masters(p, ours.state[p]["master_low"]), q.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(p.isnan(), q.isnan())


@every_class
def test_rounding_has_no_effect_on_float32(entry: Entry) -> None:
    results = []
    for rounding in ROUNDINGS:
        params = parameters(entry.shapes)
        train(entry.build(params, rounding=rounding), params, 3)
        results.append([bits(p) for p in params])
    assert results[0] == results[1] == results[2]


@every_class
def test_stochastic_rounding_follows_from_its_seed(entry: Entry) -> None:
    results = []
    for seed in (1, 1, 2):
        params = parameters(entry.shapes, torch.bfloat16)
        train(entry.build(params, rounding="stochastic", seed=seed), params, 3)
        results.append([bits(p) for p in params])
    assert results[0] == results[1] != results[2]


@every_class
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=["bf16", "f16"])
def test_special_values_pass_through_sixteen_bits_as_in_the_reference(
    entry: Entry, special: float, rounding: str, dtype: torch.dtype, isa: str
) -> None:
    results = []
    for backend in ("rust", "reference"):
        params = parameters([(5, 8)], dtype)
        optimizer = entry.build(params, rounding=rounding, backend=backend)
        for step in range(2):
            set_gradients(params, step)
            params[0].grad.view(-1)[3] = special
            params[0].grad.view(-1)[37] = special
            optimizer.step()
        results.append(params[0].detach().float())
    assert torch.equal(results[0].isnan(), results[1].isnan())
    torch.testing.assert_close(results[0], results[1], equal_nan=True, rtol=2e-2, atol=1e-6)


@every_elementwise_class
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=["bf16", "f16"])
def test_values_beyond_the_range_become_infinite(entry: Entry, dtype: torch.dtype, isa: str) -> None:
    largest = torch.finfo(dtype).max
    p = torch.nn.Parameter(torch.tensor([largest, -largest, 1.0] * 7, dtype=dtype))
    p.grad = torch.tensor([-1.0, 1.0, 1.0] * 7, dtype=dtype)
    entry.build([p], lr=largest / 10, weight_decay=0.0).step()
    assert p[::3].isposinf().all()
    assert p[1::3].isneginf().all()
    assert p[2::3].isfinite().all()


@every(lambda entry: entry in one_of_each_class() and entry.optimizer is not RoundedNIGT)  # which adds zeros of d
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_subnormal_parameters_are_kept(entry: Entry, dtype: torch.dtype, isa: str) -> None:
    tiny = torch.finfo(dtype).smallest_normal * normal((8, 8), torch.float32, 5) / 8
    p = torch.nn.Parameter(tiny.to(dtype))
    before = bits(p)
    p.grad = torch.zeros_like(p)
    entry.build([p], weight_decay=0.0).step()
    assert p.count_nonzero() > 32
    assert bits(p) == before
