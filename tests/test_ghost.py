"""Ghost batch normalization against the loop over chunks, closed forms, and torch's layers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ferrostep.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, convert_ghost_batchnorm
from ferrostep.nn.ghost import _Normalized
from ferrostep.reference import ghost as reference

KINDS = [
    (GhostBatchNorm1d, nn.BatchNorm1d, (5,)),
    (GhostBatchNorm1d, nn.BatchNorm1d, (5, 4)),
    (GhostBatchNorm2d, nn.BatchNorm2d, (5, 3, 2)),
    (GhostBatchNorm3d, nn.BatchNorm3d, (5, 2, 2, 3)),
]


def loop(layer: nn.Module, x: Tensor, size: int) -> Tensor:
    """Chunk by chunk through torch's layer, the rest with the last."""
    starts = range(0, len(x) // size * size, size)
    chunks = [x[start : start + size if start != starts[-1] else len(x)] for start in starts]
    return torch.cat([layer(chunk) for chunk in chunks])


def by_the_kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int) -> tuple[Tensor, ...]:
    """What is normalized, and the means and variances of the ghosts."""
    statistics = torch.empty(3, len(x) // size, x.shape[1], dtype=torch.float64)
    return _Normalized.apply(x, weight, bias, size, 1e-5, statistics), statistics[0], statistics[2]


@pytest.mark.parametrize(("kind", "plain", "shape"), KINDS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.01}])
def test_ghosts_are_the_loop_over_chunks(kind: Any, plain: Any, shape: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ghost, other = kind(5, 4, dtype=torch.float64, **options), plain(5, dtype=torch.float64, **options)
    for count in (8, 16, 19, 5):
        x = torch.randn(count, *shape, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        weight = torch.randn_like(x)
        out, expected = ghost(x), loop(other, y, 4)
        torch.testing.assert_close(out, expected)
        (out * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(dict(ghost.state_dict()), dict(other.state_dict()))
    for ours, theirs in zip(ghost.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((13, 40), torch.contiguous_format),
        ((9, 3, 5, 7), torch.contiguous_format),
        ((9, 3, 5, 7), torch.channels_last),
        ((8, 2, 12, 12), torch.contiguous_format),
        ((8, 2, 2, 3, 5), torch.channels_last_3d),
    ],
)
def test_the_kernel_is_plain_torch(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + 5).to(dtype).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(shape[1]).requires_grad_() for _ in range(2))
    grad, given = torch.randn(shape).to(dtype).flip(0), (x, weight, bias)
    ours, theirs = by_the_kernel(*given, 4), reference.normalized(*given, 4, 1e-5)
    assert ours[0].dtype == dtype and ours[0].stride() == x.stride()
    found, expected = (torch.autograd.grad(out, given, grad) for out in (ours[0], theirs[0]))
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    for one, other in zip((*ours, *found), (*theirs, *expected), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


def test_derivatives_have_derivatives() -> None:
    torch.manual_seed(0)
    layer = GhostBatchNorm1d(2, 3, dtype=torch.float64).train()
    x = torch.randn(7, 2, 4, dtype=torch.float64, requires_grad=True)

    def normalized(x: Tensor) -> Tensor:
        return by_the_kernel(x, layer.weight, layer.bias, 3)[0]

    assert torch.autograd.gradcheck(normalized, x) and torch.autograd.gradgradcheck(normalized, x)


@pytest.mark.parametrize("affine", [True, False])
def test_whoever_looks_on_sees_plain_torch(affine: bool) -> None:
    torch.manual_seed(0)
    layer, x = GhostBatchNorm1d(3, 4, affine=affine, track_running_stats=False), torch.randn(2, 16, 3)
    direct = [layer(each) for each in x]
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack(direct))
    out, tangent = torch.func.jvp(layer, (x[0],), (x[1],))
    torch.testing.assert_close(out, direct[0])
    leaf = x[0].clone().requires_grad_()
    (along,) = torch.autograd.grad(layer(leaf), leaf, tangent)
    torch.testing.assert_close((along * x[1]).sum(), (tangent * tangent).sum())
    batch = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(batch(x[0]), direct[0])


def test_the_statistics_are_as_exact_as_the_elements() -> None:
    """Far from zero, in order, and with first rows that are unlike the rest."""
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    for case in (x + 1000, x.sort(0).values * 10, torch.cat([torch.zeros(8, 64), x[8:] + 100])):
        out, *statistics = by_the_kernel(case, None, None, 128)
        expected, *exact = reference.normalized(case.double(), None, None, 128, 1e-5)
        for found, of_ghosts, atol in zip(statistics, exact, (1e-6, 0), strict=True):
            torch.testing.assert_close(found, of_ghosts, rtol=2e-6, atol=atol)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left_out", ["weight", "bias"])
def test_a_weight_or_a_bias_alone(left_out: str) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(3, dtype=torch.float64)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    plain.register_parameter(left_out, None)
    ghost = convert_ghost_batchnorm(copy.deepcopy(plain), 4)
    x, grad = torch.randn(2, 16, 3, dtype=torch.float64)
    out, expected = ghost(x), loop(plain, x, 4)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out, list(ghost.parameters()), grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(plain.parameters()), grad))
    assert GhostBatchNorm1d(3, 4, bias=False).bias is None


@pytest.mark.parametrize("create_graph", [True, False])
def test_tensors_that_depend_on_one_another(create_graph: bool) -> None:
    """A layer used twice, a weight made of the input, and hooks: each derivative counts once."""
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((16, 3), (3,), (3,))]

    def gradients(normalized: Any) -> tuple[Tensor, ...]:
        x, weight, bias = given
        hooked = weight * x.mean(0)
        hooked.register_hook(lambda grad: 2 * grad)
        out = normalized(normalized(x, hooked, bias).sin(), hooked, bias)
        return torch.autograd.grad(out.cos().sum(), given, create_graph=create_graph)

    found = gradients(lambda *of: by_the_kernel(*of, 4)[0])
    torch.testing.assert_close(found, gradients(lambda *of: reference.normalized(*of, 4, 1e-5, tracked=False)[0]))


def test_many_gradients_at_once_are_those_one_by_one() -> None:
    layer, x = GhostBatchNorm1d(3, 4, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    out, grads = layer(layer(x)), torch.randn(5, 16, 3, dtype=torch.float64)
    of = [x, *layer.parameters()]
    found = torch.autograd.grad(out, of, grads, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(out, of, grad, retain_graph=True) for grad in grads]
    torch.testing.assert_close(found, tuple(torch.stack(of_each) for of_each in zip(*each, strict=True)))
    negative = torch.randn(16, 3, dtype=torch.complex128).conj().imag
    found = torch.autograd.grad(out, of, negative, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(out, of, negative.resolve_neg()))


def test_the_bias_may_change_before_the_backward_pass_but_not_the_weight() -> None:
    layer, x = GhostBatchNorm1d(3, 4), torch.randn(16, 3, requires_grad=True)
    for name in ("bias", "weight"):
        out = layer(x)
        with torch.no_grad():
            getattr(layer, name).add_(1)
        if name == "bias":
            out.sum().backward()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_forward_pass_that_ends_early_moves_no_statistics(momentum: float | None) -> None:
    """Torch's checkpoints end the second one where nothing more is needed; a hook may raise, too."""
    layer = GhostBatchNorm1d(3, 4, momentum=momentum)
    once, x = copy.deepcopy(layer), torch.randn(16, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    once(x)
    torch.testing.assert_close(dict(layer.state_dict()), dict(once.state_dict()))

    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("no room")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda x: x), pytest.raises(RuntimeError, match="no room"):
        layer(x)
    torch.testing.assert_close(dict(layer.state_dict()), dict(once.state_dict()))


def test_a_weight_with_gaps_and_derivatives_of_derivatives() -> None:
    layer, x = GhostBatchNorm1d(3, 4, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    layer.weight = nn.Parameter(torch.arange(6, dtype=torch.float64)[::2])
    out, grad = layer(x), torch.randn(16, 3, dtype=torch.float64)
    (plain,) = torch.autograd.grad(out, x, grad, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out, x, grad, create_graph=True)[0], plain)


def test_whatever_has_been_counted() -> None:
    for momentum, counted in ((0.1, -3), (0.1, math.nan), (None, 2.5)):
        layer, plain = GhostBatchNorm1d(3, 4, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
        for each in (layer, plain):
            each.num_batches_tracked = torch.tensor(counted)
        x = torch.randn(16, 3)
        torch.testing.assert_close(layer(x), loop(plain, x, 4))
        torch.testing.assert_close(dict(layer.state_dict()), dict(plain.state_dict()), equal_nan=True)


def test_what_is_not_tracked_is_left_out() -> None:
    """Statistics may be taken away at any time."""
    x = torch.randn(16, 3)
    for gone in (("running_mean", "running_var"), ("num_batches_tracked",)):
        for momentum in (0.1, None):
            layer, plain = GhostBatchNorm1d(3, 4, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
            for each in (layer, plain):
                for name in gone:
                    setattr(each, name, None)
            torch.testing.assert_close(layer(x), loop(plain, x, 4))
            torch.testing.assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    late = GhostBatchNorm1d(3, 4, track_running_stats=False)
    late.track_running_stats = True
    torch.testing.assert_close(late(x), layer(x))
    empty, plain = GhostBatchNorm1d(3, 4), nn.BatchNorm1d(3)
    for each in (empty, plain):
        assert each(torch.empty(8, 3, 0)).shape == (8, 3, 0)
    torch.testing.assert_close(dict(empty.state_dict()), dict(plain.state_dict()))


def test_closed_forms() -> None:
    layer = GhostBatchNorm1d(1, 2, affine=False, dtype=torch.float64)
    out = layer(torch.tensor([[1.0], [3.0], [5.0], [11.0]], dtype=torch.float64)).flatten()
    expected = torch.tensor([-0.999995, 0.999995, -0.9999994, 0.9999994], dtype=torch.float64)
    torch.testing.assert_close(out, expected, atol=5e-8, rtol=0)
    assert (layer.running_mean.item(), layer.running_var.item()) == pytest.approx((0.98, 2.79))
    layer = GhostBatchNorm1d(1, 2)
    layer(torch.tensor([[1.0], [3.0], [5.0], [11.0], [2.0]]))  # the last ghost has three
    assert (layer.running_mean.item(), layer.running_var.item()) == pytest.approx((0.78, 3.09))


def test_momentum_per_batch_is_that_of_the_batch() -> None:
    layer = GhostBatchNorm1d(1, 2, momentum=0.5, momentum_per="batch")
    layer(torch.full((8, 1), 3.0))
    assert layer.running_mean.item() == pytest.approx(1.5)


@pytest.mark.parametrize(("kind", "plain", "shape"), KINDS)
def test_few_samples_and_evaluation_are_those_of_torch(kind: Any, plain: Any, shape: Any) -> None:
    ghost, other = kind(5, 8), plain(5)
    other.load_state_dict(ghost.state_dict())
    x = torch.randn(15, *shape)
    assert torch.equal(ghost(x), other(x))
    ghost.eval()
    other.eval()
    assert torch.equal(ghost(torch.cat([x, x])), other(torch.cat([x, x]))) and torch.equal(ghost(x[:1]), other(x[:1]))
    untracked = kind(5, 8, track_running_stats=False).eval()
    torch.testing.assert_close(untracked(torch.cat([x, x])), loop(other.train(), torch.cat([x, x]), 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_have_their_statistics_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(64, 3, 4, 4)
    low, high = GhostBatchNorm2d(3, 16), GhostBatchNorm2d(3, 16)
    out = low(x.to(dtype))
    assert out.dtype == dtype and low.running_mean.dtype == torch.float32
    torch.testing.assert_close(out.float(), high(x.to(dtype).float()), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(low.running_var, high.running_var, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_sixteen_bits(dtype: torch.dtype) -> None:
    layer = convert_ghost_batchnorm(nn.BatchNorm1d(3).to(dtype), 4)
    x = torch.randn(16, 3, dtype=dtype, requires_grad=True)
    out = layer(x)
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), GhostBatchNorm1d(3, 4)(x.float()), atol=2e-2, rtol=2e-2)
    assert out.dtype == layer.weight.grad.dtype == layer.running_mean.dtype == dtype


def test_conversion_keeps_parameters_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    model(torch.randn(9, 4))
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    assert convert_ghost_batchnorm(model, 4, "batch") is model
    assert isinstance(model[1], GhostBatchNorm1d) and "ghost_size=4, momentum_per='batch'" in repr(model[2][1])
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    convert_ghost_batchnorm(model, 2)
    assert model[1].ghost_size == 2 and model[1].momentum_per == "ghost"
    single = convert_ghost_batchnorm(nn.BatchNorm2d(3))
    assert type(single) is GhostBatchNorm2d


def per_batch(momentum: float) -> GhostBatchNorm1d:
    layer = GhostBatchNorm1d(3, momentum_per="batch")
    layer.momentum = momentum
    return layer


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GhostBatchNorm1d(3, 0), ValueError, "ghost_size"),
        (lambda: GhostBatchNorm1d(3, 2.5), TypeError, "ghost_size"),
        (lambda: GhostBatchNorm1d(3, momentum_per="step"), ValueError, "momentum_per"),
        (
            lambda: GhostBatchNorm1d(3, momentum=1.5, momentum_per="batch"),
            ValueError,
            "Invalid momentum: 1.5; .*0 to 1",
        ),
        (lambda: per_batch(1.5)(torch.ones(64, 3)), ValueError, "Invalid momentum: 1.5"),
        (lambda: GhostBatchNorm1d(3, ghost_sise=2), TypeError, "did you mean 'ghost_size'"),
        (lambda: GhostBatchNorm2d(3, 2)(torch.ones(8, 3)), ValueError, "4D input"),
        (lambda: GhostBatchNorm1d(3, 2)(torch.tensor(1.0)), ValueError, "2D or 3D input"),
        (lambda: GhostBatchNorm1d(3, 1)(torch.ones(8, 3)), ValueError, "more than 1 value per channel"),
        (lambda: GhostBatchNorm2d(3, 2)(torch.ones(8, 4, 2, 2)), ValueError, "input has shape .* expected 3 channels"),
        (lambda: convert_ghost_batchnorm(torch.ones(3)), TypeError, "module"),
        (lambda: convert_ghost_batchnorm(nn.BatchNorm1d(3), 0), ValueError, "ghost_size"),
    ],
)
def test_bad_input_is_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_synchronized_statistics_are_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3))
    with pytest.raises(TypeError, match="1 is a SyncBatchNorm"):
        convert_ghost_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm1d
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=2.0))
    with pytest.raises(ValueError, match=r"Invalid momentum: 2\.0"):
        convert_ghost_batchnorm(model, momentum_per="batch")
    assert type(model[0]) is nn.BatchNorm1d
    assert type(convert_ghost_batchnorm(model)[1]) is GhostBatchNorm1d  # per ghost it is as torch has it
