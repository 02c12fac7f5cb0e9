"""What autograd sees of a step: gradients untouched, changed parameters noticed, the differentiable form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.optim import Optimizer

from ferrostep.optim import AdamW, NAdam
from tests.contract.rules.registry import ADAMW, Entry, every, every_class, every_complex, every_near_the_reference
from tests.contract.training import assert_close, assert_same_bits, bits, normal, parameters, set_gradients, train

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


@every_near_the_reference
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["rust", "reference"])
def test_gradients_are_not_changed(entry: Entry, dtype: torch.dtype, backend: str) -> None:
    if dtype.is_complex and not entry.complex:
        pytest.skip("this rule has no complex form")
    params = parameters(entry.shapes, dtype)
    optimizer = entry.build(params, backend=backend)
    set_gradients(params, 0)
    before = [(bits(p.grad), p.grad._version, p.grad.data_ptr()) for p in params]
    for _ in range(3):
        optimizer.step()
    assert [(bits(p.grad), p.grad._version, p.grad.data_ptr()) for p in params] == before


@every_class
def test_backward_after_a_step_notices_the_change(entry: Entry, boundary: str) -> None:
    p, other = parameters([(5, 3), (5, 3)])
    loss = (p * p * other).sum()
    p.grad = torch.ones_like(p)
    entry.build([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_class
def test_backward_does_not_notice_a_step_that_changed_nothing(entry: Entry) -> None:
    p, other = parameters([(5, 3), (5, 3)])
    optimizer = entry.build([p, other], skip_nonfinite=True)
    loss = (p * p * other).sum()
    optimizer.step()  # no gradients
    p.grad = torch.full_like(p, float("inf"))
    optimizer.step()  # skipped
    p.grad = None
    loss.backward()
    assert torch.equal(p.grad, 2 * p * other)


@every_class
def test_versions_of_all_changed_parameters_go_up(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build([{"params": params[:3]}, {"params": params[3:]}])
    set_gradients(params, 0)
    before = [p._version for p in params]
    optimizer.step()
    assert all(p._version > version for p, version in zip(params, before, strict=True))


@every_class
def test_nothing_is_recorded(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params)
    with torch.enable_grad():
        train(optimizer, params, 2)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in params)
    assert not any(t.requires_grad for state in optimizer.state.values() for t in state.values())


@every_class
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_gradients_that_autograd_recorded(entry: Entry) -> None:
    p, expected = parameters([(5, 3)]), parameters([(5, 3)])
    optimizer, other = entry.build(p), entry.build(expected)
    (p[0] ** 3).sum().backward(create_graph=True)
    (expected[0] ** 3).sum().backward()
    assert p[0].grad.requires_grad
    optimizer.step()
    other.step()
    assert_same_bits(optimizer, other)


@every_class
def test_tied_parameters_are_updated_once(entry: Entry) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    expected = Parameter(model[0].weight.detach().clone())
    optimizer = entry.build(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    expected.grad = model[0].weight.grad.clone()
    optimizer.step()
    other = entry.build([expected])
    other.step()
    assert_same_bits(optimizer, other)


@every_complex
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters_are_pairs_of_real_ones(entry: Entry, dtype: torch.dtype) -> None:
    params = parameters(entry.shapes, dtype)
    pairs = [Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    optimizer, other = entry.build(params), entry.build(pairs)
    for step in range(5):
        set_gradients(params, step)
        for p, pair in zip(params, pairs, strict=True):
            pair.grad = torch.view_as_real(p.grad).clone()
        optimizer.step()
        other.step()
    for p, pair in zip(params, pairs, strict=True):
        assert bits(p) == bits(pair)
        for name, value in optimizer.state[p].items():
            if name.startswith("exp_avg"):
                assert value.dtype == dtype
                assert bits(value) == bits(other.state[pair][name])


@every(lambda entry: entry.optimizer is AdamW)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.complex64, 1e-6), (torch.complex128, 1e-12)], ids=str)
def test_complex_parameters_equal_torchs(entry: Entry, dtype: torch.dtype, relative: float) -> None:
    ours, theirs = parameters(entry.shapes, dtype), parameters(entry.shapes, dtype)
    optimizer, peer = entry.build(ours), entry.peer(theirs)
    train(optimizer, ours, 10)
    train(peer, theirs, 10)
    assert_close(optimizer, peer, relative, least_size=1.0)


def derivatives(build: Callable[..., Optimizer], values: Tensor, steps: int, **arguments: object) -> tuple[Tensor, ...]:
    """A loss after differentiable steps, and its gradients with respect to the start, the gradients and lr."""
    start = values.clone().requires_grad_()
    grads = [normal(values.shape, values.dtype, 4, step).requires_grad_() for step in range(steps)]
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    p = start.clone()
    optimizer = build([p], lr=lr, differentiable=True, **arguments)
    for grad in grads:
        p.grad = grad
        optimizer.step()
    loss = (p**2).sum()
    return (loss.detach(), *torch.autograd.grad(loss, [start, *grads, lr]))


@every(lambda entry: entry.optimizer is AdamW and entry.arguments.get("decoupled_weight_decay", True))
@pytest.mark.usefixtures("float64_steps")
def test_a_differentiable_step_has_torchs_derivatives(entry: Entry) -> None:
    compare_derivatives(entry, 1)


@every(lambda entry: entry.name == "adam")
@pytest.mark.usefixtures("float64_steps")
def test_differentiable_steps_have_torchs_derivatives(entry: Entry) -> None:
    compare_derivatives(entry, 3)


def compare_derivatives(entry: Entry, steps: int) -> None:
    values = normal((3, 2), torch.float64, 2)
    arguments = {**entry.peer.keywords}
    del arguments["lr"]
    ours = derivatives(entry.build, values, steps)
    theirs = derivatives(entry.peer.func, values, steps, **arguments)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every(lambda entry: entry.optimizer in (AdamW, NAdam))
@pytest.mark.usefixtures("float64_steps")
def test_differentiable_steps_have_the_derivatives_of_finite_differences(entry: Entry) -> None:
    # Not torch's: its amsgrad and its NAdam cannot be differentiated over several steps.
    def trained(start: Tensor, grads: Tensor, lr: Tensor) -> Tensor:
        p = start.clone()
        optimizer = entry.build([p], lr=lr, differentiable=True)
        for grad in grads:
            p.grad = grad
            optimizer.step()
        return p

    inputs = (normal((4,), torch.float64, 2), normal((3, 4), torch.float64, 4), torch.tensor(0.05))
    assert torch.autograd.gradcheck(trained, [x.requires_grad_() for x in inputs])


@every_class
def test_differentiable_steps_give_the_numbers_of_the_others(entry: Entry) -> None:
    values = normal((3, 2), torch.float64, 2)
    p = values.clone().requires_grad_().clone()
    expected = Parameter(values.clone())
    optimizer, other = entry.build([p], differentiable=True), entry.build([expected])
    for step in range(3):
        grad = normal((3, 2), torch.float64, 4, step)
        p.grad, expected.grad = grad, grad
        optimizer.step()
        other.step()
    torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-12, atol=0)
    assert p.grad_fn is not None


def test_differentiable_excludes_the_rust_backend() -> None:
    p = torch.ones(3, requires_grad=True).clone()
    p.grad = torch.ones(3)
    optimizer = AdamW([p], **ADAMW, differentiable=True, backend="rust")
    with pytest.raises(RuntimeError, match="differentiable=True"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))


@every_class
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_in_inference_mode(entry: Entry, backend: str, boundary: str) -> None:
    with torch.inference_mode():
        p = Parameter(torch.ones(5, 2))
        p.grad = torch.ones(5, 2)
        entry.build([p], backend=backend).step()
    assert (p != 1).all()


@every_class
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_steps_go_on_in_and_outside_of_inference_mode(entry: Entry, backend: str) -> None:
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    optimizer, other = entry.build(params, backend=backend), entry.build(others, backend=backend)
    for step in range(4):
        versions = [p._version for p in params]
        with torch.inference_mode(step % 2 == 0):
            train(optimizer, params, 1, step)
        train(other, others, 1, step)
        assert all(p._version > version for p, version in zip(params, versions, strict=True) if p.numel())
    assert_same_bits(optimizer, other)


@every_class
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
def test_fake_parameters_take_the_reference(entry: Entry, backend: str, device: str, rounding: str) -> None:
    """As what estimates memory wants it; and what there is of other devices to test without one."""
    with FakeTensorMode():
        params = [Parameter(torch.ones(4, 3, device=device, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = entry.build(params, backend=backend, rounding=rounding)
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        state = optimizer.state[params[0]][entry.state]
    assert state.device.type == device
    assert state.shape == (4, 3)
    assert all(isinstance(p, FakeTensor) for p in params)


@every_class
@pytest.mark.parametrize("fake_first", [False, True])
def test_fake_parameters_beside_real_ones_are_refused(entry: Entry, fake_first: bool) -> None:
    with FakeTensorMode():
        fake = Parameter(torch.ones(4, 3))
        fake.grad = torch.ones_like(fake)
    real = Parameter(torch.ones(4, 3))
    real.grad = torch.ones_like(real)
    groups = [{"params": [real]}, {"params": [fake]}]
    optimizer = entry.build(groups[::-1] if fake_first else groups)
    with pytest.raises(RuntimeError, match="some parameters are fake tensors and others are real"):
        optimizer.step()
    assert (real == 1).all()
    assert not optimizer.state


@every_class
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"backend": "reference"}, {"skip_nonfinite": True}], ids=str)
def test_parameters_without_memory_are_refused_until_they_get_some(entry: Entry, options: dict[str, Any]) -> None:
    model = torch.nn.Linear(3, 4, bias=False, device="meta")
    optimizer = entry.build(model.parameters(), **options)
    model.weight.grad = torch.ones_like(model.weight)
    # With `fused`, in torch's own words.
    words = "`fused=True` requires all the params to be floating point Tensors of supported devices: "
    where = "param of parameter 0 in group 0 is on device meta, which has no memory"
    with pytest.raises(RuntimeError, match=f"^{words if options.get('fused') else ''}{where}"):
        optimizer.step()
    assert not optimizer.state
    model.weight.grad = None
    model.to_empty(device="cpu")
    torch.nn.init.ones_(model.weight)
    optimizer = entry.build(model.parameters(), **options)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert (model.weight != 1).all()
