"""Numbers worked out by hand or measured independently, and public implementations step by step."""

from __future__ import annotations

import lion_pytorch
import pytest
import pytorch_optimizer
import torch

from ferrostep.optim import AdaGradNorm, AdamW, DiffGrad, Lion
from tests.contract.rules.registry import ADAMW, LION, Entry, every, every_with_peer
from tests.contract.subprocesses import run_python
from tests.contract.training import assert_close, bits, contents, parameters, set_gradients, train


@pytest.mark.smoke
@every_with_peer
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["f64", "f32"])
def test_equals_the_peer_step_by_step(entry: Entry, dtype: torch.dtype, relative: float, boundary: str) -> None:
    ours, theirs = parameters(entry.shapes, dtype), parameters(entry.shapes, dtype)
    optimizer, peer = entry.build(ours), entry.peer(theirs)
    for step in range(20):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            each.step()
        assert_close(optimizer, peer, relative, least_size=1.0)


@every_with_peer
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_special_gradients_behave_as_in_the_peer(entry: Entry, special: float, dtype: torch.dtype, isa: str) -> None:
    ours, theirs = parameters([(40,)], dtype), parameters([(40,)], dtype)
    optimizer, peer = entry.build(ours), entry.peer(theirs)
    for step in range(4):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            if step == 1:
                params[0].grad[5] = special
                params[0].grad[39] = special
            each.step()
        assert_close(optimizer, peer, 1e-6, only_params=True, least_size=1.0)
        actual, expected = contents(optimizer), contents(peer)
        for name, tensor in expected.items():
            # An infinity in exp_avg stays one here; torch's lerp makes it a NaN at the next step.
            finite = tensor.isfinite()
            assert torch.equal(actual[name].isfinite(), finite), name
            torch.testing.assert_close(actual[name][finite], tensor[finite], rtol=1e-6, atol=1e-6)


@every(lambda entry: entry.peer is not None and entry.name != "rmsprop-centered")  # a difference of two of them
@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e200), (torch.float32, 1e25)], ids=["f64", "f32"])
def test_gradients_whose_squares_are_infinite_behave_as_in_the_peer(
    entry: Entry, backend: str, dtype: torch.dtype, size: float, isa: str
) -> None:
    ours, theirs = parameters([(5, 8)], dtype), parameters([(5, 8)], dtype)
    optimizer, peer = entry.build(ours, backend=backend), entry.peer(theirs)
    for step in range(3):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            params[0].grad.mul_(size)
            each.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lions_parameters_are_lion_pytorchs_to_the_bit(weight_decay: float, isa: str) -> None:
    arguments = LION | {"weight_decay": weight_decay}
    ours, theirs = parameters([(300,), (7, 11)], torch.float64), parameters([(300,), (7, 11)], torch.float64)
    optimizer, peer = Lion(ours, **arguments), lion_pytorch.Lion(theirs, **arguments)
    train(optimizer, ours, 50)
    train(peer, theirs, 50)
    for a, b in zip(ours, theirs, strict=True):
        assert bits(a) == bits(b)
    # torch fuses exp_avg's multiplication and addition on CPUs that can: half a rounding less.
    assert_close(optimizer, peer, 1e-15)


WITHOUT_FUSION = """
import lion_pytorch, torch
from ferrostep.optim import Lion
from tests.contract.rules.registry import LION
from tests.contract.training import assert_same_bits, parameters, train
assert torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX")
ours, theirs = parameters([(300,), (7, 11)], torch.float64), parameters([(300,), (7, 11)], torch.float64)
optimizer, peer = Lion(ours, **LION), lion_pytorch.Lion(theirs, **LION)
train(optimizer, ours, 50)
train(peer, theirs, 50)
assert_same_bits(optimizer, peer)
"""


def test_lion_is_lion_pytorchs_to_the_bit_where_torch_does_not_fuse() -> None:
    run_python(WITHOUT_FUSION, ATEN_CPU_CAPABILITY="default")


def test_lion_agrees_with_pytorch_optimizers() -> None:
    ours, theirs = parameters([(300,), (7, 11)], torch.float64), parameters([(300,), (7, 11)], torch.float64)
    optimizer = Lion(ours, **LION)
    peer = pytorch_optimizer.Lion(theirs, **LION, weight_decouple=True)
    train(optimizer, ours, 50)
    train(peer, theirs, 50)
    assert_close(optimizer, peer, 1e-12, only_params=True)


LION_GRADIENTS = ((1.0, -1.0, 0.0, 0.0), (-0.05, 0.2, 1.0, 0.0), (-0.2, -0.3, -0.001, 0.0))
LION_PARAMS = (
    (0.85, -1.8, 0.475, 0.0),
    (0.7075, -1.81, 0.35125, 0.0),
    (0.772125, -1.6195, 0.2336875, 0.0),
)


@pytest.mark.smoke
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_lion_by_hand(backend: str) -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64))
    optimizer = Lion([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5, backend=backend)
    for grad, expected in zip(LION_GRADIENTS, LION_PARAMS, strict=True):
        p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    momentum = torch.tensor([0.007306, -0.010821, 0.00989, 0.0], dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], momentum, rtol=1e-13, atol=1e-15)


def test_lion_stays_in_its_box() -> None:
    p = torch.nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
    optimizer = Lion([p], lr=0.01, weight_decay=2.0)
    for _ in range(500):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.item() == pytest.approx(-0.4997743680816999, abs=1e-12)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lion_leaves_coordinates_without_gradient_alone(zero: float, dtype: torch.dtype, isa: str) -> None:
    p = torch.nn.Parameter(torch.full((33,), 0.7, dtype=dtype))
    before = bits(p)
    optimizer = Lion([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.full_like(p, zero)
        optimizer.step()
    assert bits(p) == before


DIFFGRAD_GRADIENTS = ((1.0, -0.5, 0.1), (0.5, 0.5, 0.1), (-1.0, 0.25, 0.1))
DIFFGRAD_PARAMS = {
    1: (0.9268941652550943, 1.0622458937524255, 0.9475022472645767),
    3: (0.8598124509796617, 1.0442631789121524, 0.8475024504282758),
}


@pytest.mark.smoke
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_diffgrad_by_the_authors_second_version(backend: str) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    p.grad = torch.empty_like(p)  # the one that stays is where their first version compares a gradient with itself
    optimizer = DiffGrad([p], lr=0.1, backend=backend)
    for step, grad in enumerate(DIFFGRAD_GRADIENTS, start=1):
        p.grad.copy_(torch.tensor(grad, dtype=torch.float64))
        before = p.grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, before)
        if step in DIFFGRAD_PARAMS:
            expected = torch.tensor(DIFFGRAD_PARAMS[step], dtype=torch.float64)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("decoupled", [False, True])
def test_diffgrad_agrees_with_pytorch_optimizers(decoupled: bool) -> None:
    ours, theirs = parameters([(300,), (7, 11)], torch.float64), parameters([(300,), (7, 11)], torch.float64)
    optimizer = DiffGrad(ours, **ADAMW, decoupled_weight_decay=decoupled)
    peer = pytorch_optimizer.DiffGrad(theirs, **ADAMW, weight_decouple=decoupled)
    train(optimizer, ours, 50)
    train(peer, theirs, 50)
    assert_close(optimizer, peer, 1e-9, only_params=True)  # they add 1e-15 under the root, too


def test_diffgrads_previous_gradient_may_be_narrow() -> None:
    ours, exact = parameters([(300,)], torch.float32), parameters([(300,)], torch.float32)
    optimizer = DiffGrad(ours, state_dtype={"previous_grad": torch.bfloat16})
    plain = DiffGrad(exact)
    train(optimizer, ours, 5)
    train(plain, exact, 5)
    dtypes = {name: x.dtype for name, x in optimizer.state[ours[0]].items()}
    assert dtypes["previous_grad"] == torch.bfloat16
    assert dtypes["exp_avg"] == dtypes["exp_avg_sq"] == torch.float32
    torch.testing.assert_close(ours[0], exact[0], rtol=0.0, atol=5 * 1e-3 * 0.0025)


def a_hundred_steps(count: int = 1, **options: object) -> tuple[torch.nn.Parameter, AdamW]:
    """From 1 in bfloat16 with lr 1e-3 and gradient 1: exactly 0.9."""
    p = torch.nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    optimizer = AdamW([p], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p, optimizer


def test_bfloat16_rounded_to_nearest_does_not_move() -> None:
    p, _ = a_hundred_steps()
    assert p.item() == 1.0


@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_bfloat16_with_kahan_compensation(backend: str) -> None:
    p, optimizer = a_hundred_steps(rounding="kahan", backend=backend)
    lost = optimizer.state[p]["kahan_comp"]
    assert lost.dtype == torch.bfloat16
    assert p.item() == 0.8984375
    assert lost.item() == pytest.approx(0.00161743, abs=5e-9)


@pytest.mark.parametrize("optimizer", [AdamW, Lion])
def test_weight_decay_goes_through_the_compensation(optimizer: type) -> None:
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    instance = optimizer([p], lr=1e-3, weight_decay=0.1, rounding="kahan")
    for _ in range(1000):
        p.grad = torch.zeros_like(p)
        instance.step()
    total = p.item() + instance.state[p]["kahan_comp"].item()
    assert total == pytest.approx(0.9048328935585562, abs=2e-3)


def test_bfloat16_rounded_stochastically_is_right_in_the_mean() -> None:
    p, _ = a_hundred_steps(20_000, rounding="stochastic")
    # The spec's measured mean and spread, the mean to four of its standard errors.
    assert p.double().mean().item() == pytest.approx(0.9, abs=5e-4)
    assert p.double().std().item() == pytest.approx(0.0172, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("fraction", [0.5, 0.125])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, sign: float, fraction: float, isa: str) -> None:
    spacing = torch.finfo(dtype).eps
    start = 1.0 + 4 * spacing  # within a binade
    p = torch.nn.Parameter(torch.full((100_000,), sign * start, dtype=dtype))
    p.grad = torch.full_like(p, -sign)
    Lion([p], lr=spacing * fraction, rounding="stochastic", seed=3).step()
    assert set(p.detach().double().unique().tolist()) == {sign * start, sign * (start + spacing)}
    expected = sign * (start + spacing * fraction)
    assert p.double().mean().item() == pytest.approx(expected, abs=spacing * 0.0064)  # four standard errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_stochastic_rounding_keeps_what_needs_no_rounding(dtype: torch.dtype, backend: str) -> None:
    every_number = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every_number[every_number.isfinite()].clone()
    p = torch.nn.Parameter(finite.clone())
    p.grad = torch.zeros_like(p)
    Lion([p], rounding="stochastic", backend=backend).step()
    assert torch.equal(p.detach(), finite)


@pytest.mark.parametrize("backend", ["rust", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_adagrad_norms_two_steps(backend: str, dtype: torch.dtype) -> None:
    params = [torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([3.0], dtype=dtype)]
    optimizer = AdaGradNorm([{"params": [p]} for p in params], lr=0.5, eps=0.0, backend=backend)
    for total, first, second in ((25, 0.7, 2.6), (50, 0.487867966, 2.317157287)):
        params[0].grad, params[1].grad = torch.tensor([3.0, 0.0], dtype=dtype), torch.tensor([4.0], dtype=dtype)
        optimizer.step()
        assert optimizer.state[params[0]]["sum"] == total and not optimizer.state.get(params[1])
        torch.testing.assert_close(torch.cat(params), torch.tensor([first, 2, second], dtype=dtype), rtol=1e-7, atol=0)


def test_adagrad_norm_of_groups_and_of_nothing() -> None:
    params = parameters([(3,), (3,)], torch.float64)
    optimizer = AdaGradNorm([{"params": [p]} for p in params], lr=0.5, norm="group")
    set_gradients(params, 0)
    optimizer.step()
    for p in params:
        assert optimizer.state[p]["sum"].item() == pytest.approx(p.grad.square().sum().item())
    (still,) = parameters([(3,)])
    still.grad = torch.zeros(3)
    before = bits(still)
    AdaGradNorm([still]).step()
    assert bits(still) == before
    still.grad = torch.tensor([1.0, float("inf"), 0.0])
    AdaGradNorm([still], weight_decay=0.1).step()
    assert bits(still) == before
