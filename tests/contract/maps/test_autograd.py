"""Every map's derivatives: both modes, all orders, torch.func, torch.compile and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ferrostep import maps, projections

from .registry import ENTRIES, Entry, every, every_dtype, every_kind, every_map, every_set, sample
from .test_values import assert_near

to_compile = every(*(entry for entry in ENTRIES if str(entry) in ("simplex", "l2_ball")))
f64 = torch.float64


@every_map
def test_gradcheck(entry: Entry) -> None:
    x = sample((3, 4, 5)).requires_grad_()
    flags = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(lambda x: entry(x, 1), x, **flags, eps=1e-7, atol=1e-6)


@every_kind
def test_gradgradcheck(entry: Entry) -> None:
    x = sample((2, 4, 3)).requires_grad_()
    flags = {"check_fwd_over_rev": True, "check_batched_grad": True}
    assert torch.autograd.gradgradcheck(lambda x: entry(x, 1).square(), x, **flags, eps=1e-7, atol=1e-5)


@every_map
def test_gradcheck_by_parameters(entry: Entry) -> None:
    x = sample((3, 5)).requires_grad_()
    given = {name: value for name, value in entry.tensors(5).items() if not isinstance(value, bool)}
    flags = {name: value for name, value in entry.tensors(5).items() if isinstance(value, bool)}
    leaves = [torch.as_tensor(value, dtype=f64).clone().requires_grad_() for value in given.values()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return entry.function(x, **dict(zip(given, parameters, strict=True)), **flags)

    torch.testing.assert_close(function(x, *leaves), entry(x), rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(function, (x, *leaves), check_forward_ad=True, eps=1e-7, atol=1e-6)


@every_kind
def test_third_derivatives(entry: Entry) -> None:
    x = sample((5,))

    def cubed(x: Tensor) -> Tensor:
        return entry(x).pow(3).sum()

    third = torch.func.jacrev(torch.func.hessian(cubed))(x)
    expected = torch.func.jacfwd(torch.func.hessian(lambda x: entry.reference(x).pow(3).sum()))(x)
    torch.testing.assert_close(third, expected)


@every_map
@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.bfloat16], ids=str)
def test_products_are_the_references_both_ways(entry: Entry, dtype: torch.dtype) -> None:
    for shape in ((5,), (4, 17), (2, 3, 70), (0, 3)):
        x, v = sample(shape, dtype), sample(shape, dtype, seed=1)
        leaf = x.clone().requires_grad_()
        y = entry(leaf)
        (backward,) = torch.autograd.grad(y, leaf, v)
        size = float(v.abs().max()) if v.numel() else 0.0
        assert_near(backward, entry.product(x, v), 4 * size)
        image, forward = torch.func.jvp(entry, (x,), (v,))
        torch.testing.assert_close(image, y.detach())
        if "weight" not in entry.arguments:  # else the Jacobian is not symmetric
            assert_near(forward, backward, 4 * size)


def test_the_simplexs_jacobian_by_hand() -> None:
    x, v = (torch.tensor(row, dtype=f64) for row in ([0.5, 1.2, -0.3, 0.9, 0.2], [1, -2, 3, 0.5, -1]))
    for s, expected in ((1.0, [0, -1.25, 0, 1.25, 0]), (2.0, [7 / 6, -11 / 6, 0, 2 / 3, 0]), (0.0, [0] * 5)):
        _, product = torch.func.vjp(lambda x, s=s: projections.simplex(x, s), x)
        torch.testing.assert_close(product(v)[0], torch.tensor(expected, dtype=f64))
    nan = torch.tensor([[float("nan"), 1.0], [0.3, 0.4]], dtype=f64, requires_grad=True)
    (grad,) = torch.autograd.grad(projections.simplex(nan), nan, torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=f64))
    assert grad[0].isnan().all() and grad[1].tolist() == [-0.5, 0.5]


def test_each_row_may_have_its_own_parameter() -> None:
    x, s = sample((4, 6)), torch.tensor([[0.5], [1.0], [2.0], [9.0]], dtype=f64)
    for function in (projections.simplex, projections.l1_ball, projections.l2_ball, projections.prox.group_lasso):
        for row, (each,), image in zip(x, s.tolist(), function(x, s), strict=True):
            torch.testing.assert_close(image, function(row, each))
        torch.testing.assert_close(function(x.T, s.T, dim=0).T, function(x, s))


@every_kind
def test_torch_func(entry: Entry) -> None:
    x = sample((4, 5, 6))
    for dim in (0, 1, 2):
        expected = torch.stack([entry(one) for one in x.unbind(dim)], dim)
        for inner in (-1, 1):
            torch.testing.assert_close(torch.vmap(lambda x, inner=inner: entry(x, inner), dim, dim)(x), expected)

    def loss(x: Tensor) -> Tensor:
        return (entry(x) * torch.arange(6)).square().sum()

    row = x[0, 0]
    reverse, forward = torch.func.jacrev(entry)(row), torch.func.jacfwd(entry)(row)
    torch.testing.assert_close(reverse, forward)
    torch.testing.assert_close(torch.autograd.functional.jacobian(entry, row, vectorize=True), reverse)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(entry, row, vectorize=True, strategy="forward-mode"), reverse
    )
    hessians = [torch.func.hessian(loss), torch.func.jacrev(torch.func.jacrev(loss))]
    hessians.append(torch.func.jacrev(torch.func.jacfwd(loss)))
    expected = torch.func.hessian(lambda x: (entry.reference(x) * torch.arange(6)).square().sum())(row)
    for hessian in hessians:
        torch.testing.assert_close(hessian(row), expected)
    gradients = torch.vmap(torch.func.grad(loss))(x[0])
    torch.testing.assert_close(gradients, torch.stack([torch.func.grad(loss)(one) for one in x[0]]))


@every_map
def test_functionalized_maps_are_plain_torch_or_refused(entry: Entry) -> None:
    x, functionalize = sample((4, 6)), torch.func.functionalize
    if entry.name in ("box_section", "isotonic", "permutahedron", "sorted_l1"):
        with pytest.raises(NotImplementedError, match="functionalize does not support this map"):
            functionalize(entry)(x)
        return

    def loss(x: Tensor) -> Tensor:
        return entry(x).square().sum()

    expected, gradient = entry.reference(x), torch.func.grad(loss)(x)
    for way in (functionalize(entry), functionalize(torch.vmap(entry)), make_fx(functionalize(entry))(x + 1)):
        torch.testing.assert_close(way(x), expected)
    for of_loss in (functionalize(torch.func.grad(loss)), torch.func.grad(functionalize(loss))):
        torch.testing.assert_close(of_loss(x), gradient)


@every_set
def test_in_place_keeps_tangents_and_levels(entry: Entry) -> None:
    x, t = sample((4, 6)), sample((4, 6), seed=1)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone(), t.clone())
        entry.change(dual)
        image, tangent = forward_ad.unpack_dual(dual)
    expected = torch.func.jvp(entry, (x,), (t,))
    assert torch.equal(image, expected[0]) and tangent is not None and torch.equal(tangent, expected[1])
    batched = x.clone()
    torch.vmap(entry.change)(batched)
    torch.testing.assert_close(batched, entry(x))


@every_kind
def test_lazily_negated_and_expanded_tensors(entry: Entry) -> None:
    x = torch._neg_view(-sample((4, 6))).requires_grad_()
    y = entry(x)
    assert torch.equal(y, entry(sample((4, 6))))
    if entry.in_place is not None:
        assert torch.equal(entry.change(torch._neg_view(-sample((4, 6)))), y)
    negative = torch._neg_view(sample((4, 6), seed=1))
    for v in (negative, torch.ones(1, 1, dtype=f64).expand(4, 6), sample((6, 4), seed=2).T):
        (product,) = torch.autograd.grad(y, x, v, retain_graph=True)
        torch.testing.assert_close(product, entry.product(sample((4, 6)), v.resolve_neg()))


@to_compile
@pytest.mark.parametrize("mode", ["plain", "batched"])
def test_compile_without_a_graph_break(entry: Entry, mode: str) -> None:
    torch._dynamo.reset()

    def loss(x: Tensor, scale: float) -> Tensor:
        f: Any = entry if mode == "plain" else torch.vmap(lambda x: entry(x))
        return f(x.sin() * scale).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 1.5, 3.0):
        x = sample((4, 5, 6)).requires_grad_()
        value, expected = compiled(x, scale), loss(x, scale)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


def test_compile_in_place_with_another_argument_each_time() -> None:
    torch._dynamo.reset()

    def step(x: Tensor, s: float) -> Tensor:
        x = x + 1
        return projections.simplex_(x, s) + projections.simplex(x, s)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for s in (1.0, 2.0, 3.0):
        x = sample((4, 6))
        torch.testing.assert_close(compiled(x, s), step(x, s))


@to_compile
def test_compiled_forward_mode_is_right(entry: Entry) -> None:
    torch._dynamo.reset()
    x, t = sample((4, 6)), sample((4, 6), seed=1)

    def jvp(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(entry, (x,), (t,))[1]

    torch.testing.assert_close(torch.compile(jvp, backend="eager")(x, t), jvp(x, t))


@every_kind
def test_operators_pass_torchs_own_checks(entry: Entry) -> None:
    x, v = sample((4, 6)).requires_grad_(), sample((4, 6), seed=1).requires_grad_()
    of = maps._split(entry.name, list(entry.tensors(6).values()))
    torch.library.opcheck(maps._forward, (x, *of, -1))
    told = entry(x) if maps.MAPS[entry.name].by_image else x
    torch.library.opcheck(maps._product_of, (told.detach(), v, *of, -1, True))


class Seen(TorchDispatchMode):
    """The operators that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(op.name())
        return op(*args, **(kwargs or {}))


class Own(Tensor):
    """A subclass."""


def test_whoever_looks_on_sees_the_operators() -> None:
    x, f = sample((4, 6), torch.float32), projections.simplex
    leaf, v = x.clone().requires_grad_(), sample((4, 6), torch.float32, seed=1)
    assert maps.is_direct(x, leaf, torch.nn.Parameter(x), x.T)
    for lazy in (x._neg_view(), torch._efficientzerotensor(4, 6), torch._to_functional_tensor(x)):
        assert not maps.is_direct(x, lazy) and not maps.is_direct(lazy)
    with Seen() as seen:
        torch.autograd.grad(f(leaf), leaf, v)
    assert [name for name in seen.names if "map" in name] == ["ferrostep::map_forward", "ferrostep::map_product"]
    with torch.profiler.profile() as profile:
        f(x)
    assert "ferrostep::map_forward" in {event.name for event in profile.events()}
    for traced in (make_fx(lambda x: f(x))(x), make_fx(lambda x: projections.simplex_(x.clone()))(x)):
        assert torch.equal(traced(v), f(v)) and "map_forward" in traced.code
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert isinstance(f(fake), FakeTensor) and projections.simplex_(fake) is fake
    assert isinstance(f(x.as_subclass(Own)), Own)


def test_plain_autograd_goes_past_the_operators_with_the_same_results() -> None:
    x, v = sample((4, 6)), sample((4, 6), seed=1)
    for f in (projections.simplex, projections.l2_ball):  # told by the image, and curved

        def of(f: Any = f) -> list[Tensor]:
            leaf, w = x.clone().requires_grad_(), v.clone().requires_grad_()
            y = f(leaf)
            (first,) = torch.autograd.grad(y, leaf, w, create_graph=True)
            return [y, first, *torch.autograd.grad(first, (leaf, w), v, materialize_grads=True)]

        direct = of()
        with Seen():
            by_operators = of()
        assert all(map(torch.equal, direct, by_operators))
        with torch.inference_mode():
            inner = x.clone()
            assert maps.is_direct(inner) and torch.equal(f(inner), direct[0])


@every_kind
def test_whoever_looks_on_from_the_backward_pass_on_sees_the_operator(entry: Entry) -> None:
    leaf, v = sample((4, 6)).requires_grad_(), sample((4, 6), seed=1)
    y = entry(leaf)

    def backward(v: Tensor) -> Tensor:
        return torch.autograd.grad(y, leaf, v, retain_graph=True)[0]

    plain = backward(v)
    with Seen() as seen:
        assert torch.equal(backward(v), plain)
    assert "ferrostep::map_product" in seen.names
    with torch.profiler.profile() as profile:
        assert torch.equal(backward(v), plain)
    assert "ferrostep::map_product" in {event.name for event in profile.events()}
    assert torch.equal(backward((-v)._neg_view()), plain)
    batch = torch.autograd.grad(y, leaf, torch.stack([v, 2 * v]), retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(batch, torch.stack([plain, 2 * plain]))


@every_kind
@every_dtype
def test_autocast_leaves_the_dtype_alone(entry: Entry, dtype: torch.dtype) -> None:
    x, v = sample((4, 30), dtype).requires_grad_(), sample((4, 30), dtype, seed=1)
    y = entry(x)
    (expected,) = torch.autograd.grad(y, x, v)
    with torch.autocast("cpu", torch.bfloat16):
        casted = entry(x)
        (product,) = torch.autograd.grad(casted, x, v)
    assert torch.equal(casted, y) and torch.equal(product, expected)


@every_map
def test_other_devices_take_the_reference(entry: Entry) -> None:
    if entry.name in ("isotonic", "permutahedron", "sorted_l1"):
        pytest.skip("pooling looks at numbers, which a meta tensor has not")
    x = torch.empty(3, 4, device="meta", requires_grad=True)
    given = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in entry.tensors(4).items()}
    y = entry.function(x, **given)
    assert (y.device.type, y.shape, y.dtype) == ("meta", x.shape, x.dtype)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    if entry.in_place is not None:
        assert entry.in_place(x, **given) is x


def test_a_batch_of_parameters_is_not_one_of_rows() -> None:
    x = torch.linspace(-3.0, 2.0, 36, dtype=torch.float64).sin().view(3, 3, 4) * 3
    c = torch.tensor([-1.0, 0.25, 2.0], dtype=torch.float64)
    batch = torch.vmap(lambda x, c: projections.box_section(x, -1.0, 1.0, 1.0, c))(x, c)
    torch.testing.assert_close(
        batch, torch.stack([projections.box_section(x[i], -1.0, 1.0, 1.0, c[i].item()) for i in range(3)])
    )
