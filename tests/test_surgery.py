"""UPGrad, Nash-MTL and IMTL-G against their papers, closed forms and torchjd; and the step that takes any method."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ferrostep.numpy
from ferrostep import gradients
from ferrostep.gradients import accumulation, lists
from ferrostep.gradients.accumulation import METHODS, Method
from ferrostep.optim import AdamW, Lion

every_method = pytest.mark.parametrize("method", METHODS)


def jacobian(tasks: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HARD: dict[str, Tensor] = {
    "any": jacobian(3, 7),
    "one": jacobian(1, 3),
    "many": jacobian(8, 20),
    "conflict": jacobian(4, 9) - 1.2 * jacobian(4, 9).mean(0),
    "few dimensions": jacobian(5, 2).abs() - 0.3,
    "twice": jacobian(3, 5)[[0, 1, 1, 2]],
    "a zero": torch.cat([jacobian(2, 5), torch.zeros(1, 5, dtype=torch.float64)]),
    "small": 1e-8 * jacobian(3, 6),
    "large": 1e8 * jacobian(3, 6),
    "sizes": torch.tensor([[1e-8], [1.0], [1e8]], dtype=torch.float64) * jacobian(3, 6),
}
every_jacobian = pytest.mark.parametrize("j", HARD.values(), ids=HARD)


def cosines(j: Tensor, updates: Tensor) -> Tensor:
    """The inner products of updates and gradients, both of norm 1 (or 0)."""
    return nn.functional.normalize(updates, dim=-1, eps=1e-300) @ nn.functional.normalize(j, dim=1, eps=1e-300).T


@every_jacobian
def test_no_task_loses_by_upgrads_update(j: Tensor) -> None:
    weights = gradients.upgrad_weights(j @ j.T)
    assert (weights >= torch.eye(len(j))).all()
    assert (cosines(j, weights @ j) >= -1e-7).all()
    assert (j @ (weights.mean(0) @ j) >= -1e-7 * j.norm(dim=1) * float(j.norm(dim=1).max())).all()


@every_jacobian
def test_upgrad_leaves_gradients_without_conflicts_as_they_are(j: Tensor) -> None:
    assert torch.equal(gradients.upgrad_weights((j @ j.T).abs()), torch.eye(len(j)).double())


@pytest.mark.parametrize("cosine", [-0.999, -0.5, -1e-9, 0.0, 0.3])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_two_tasks_have_closed_forms(cosine: float, size: float) -> None:
    products = torch.tensor([[1.0, cosine * size], [cosine * size, size**2]], dtype=torch.float64)
    overlap = max(-cosine, 0.0)
    projected = torch.tensor([[1.0, overlap / size], [overlap * size, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gradients.upgrad_weights(products), projected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients.pcgrad_weights(products), projected, rtol=1e-9, atol=0)
    unit = (float(products.norm()) / (1 + cosine)) ** 0.5
    expected = unit * torch.tensor([1.0, 1 / size], dtype=torch.float64)
    torch.testing.assert_close(gradients.nash_mtl_weights(products), expected, rtol=1e-8, atol=0)
    expected = torch.tensor([size, 1.0], dtype=torch.float64) / (1 + size)
    torch.testing.assert_close(gradients.imtl_g_weights(products), expected, rtol=1e-9, atol=0)


@every_jacobian
def test_nashs_condition_holds(j: Tensor) -> None:
    """``G alpha = n / alpha``, with which the update's squared norm is ``T n``."""
    products = j @ j.T
    alpha = gradients.nash_mtl_weights(products)
    there = products.diag() > 0
    shares = (alpha * (products @ alpha) / products.norm())[there]
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-9)
    assert (alpha[there] > 0).all() and not alpha[~there].any()
    assert float((alpha @ j).square().sum()) == pytest.approx(float(shares.sum() * products.norm()))


def test_nash_stands_still_where_no_task_can_gain() -> None:
    for j in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [-1.0, 1.0], [-0.3, -1.0]], [[2.0], [-1.0], [3.0]]):
        matrix = torch.tensor(j, dtype=torch.float64)
        update = gradients.nash_mtl_weights(matrix @ matrix.T) @ matrix
        assert float(update.norm()) < 1e-5 * float(matrix.norm())


@pytest.mark.parametrize("method", ["nash_mtl", "imtl_g"])
@every_jacobian
def test_the_scale_of_a_loss_does_not_turn_the_update(method: str, j: Tensor) -> None:
    weights: Callable[[Tensor], Tensor] = getattr(gradients, f"{method}_weights")
    scaled = j * (10.0 ** torch.linspace(-3, 4, len(j), dtype=torch.float64))[:, None]
    one, other = (nn.functional.normalize(weights(x @ x.T) @ x, dim=0) for x in (j, scaled))
    if method == "imtl_g" and float(one @ other) < 0:
        other = -other  # the weights' sum, which is 1, is of another sign
    torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@every_jacobian
def test_imtl_gs_projections_are_equal(j: Tensor) -> None:
    weights = gradients.imtl_g_weights(j @ j.T)
    there = j.norm(dim=1) > 0
    assert float(weights.sum()) == pytest.approx(1.0) and not weights[~there].any()
    if int(torch.linalg.matrix_rank(nn.functional.normalize(j, dim=1))) == int(there.sum()):
        found = cosines(j, weights @ j)[there]
        torch.testing.assert_close(found, found.mean().expand_as(found), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_imtl_g_is_the_papers_formula(tasks: int) -> None:
    """Its equation 5, of which the first task's weight is what is left to 1."""
    j = jacobian(tasks, 12)
    unit = nn.functional.normalize(j, dim=1)
    d, u = j[0] - j[1:], unit[0] - unit[1:]
    others = j[0] @ u.T @ torch.linalg.inv(d @ u.T)
    expected = torch.cat([1 - others.sum(0, keepdim=True), others])
    torch.testing.assert_close(gradients.imtl_g_weights(j @ j.T), expected, rtol=1e-9, atol=1e-12)


def test_imtl_g_without_a_solution_is_zero() -> None:
    for gram in (torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, -2.0], [-2.0, 4.0]])):
        assert torch.equal(gradients.imtl_g_weights(gram), torch.zeros(2, dtype=torch.float64))


# torchjd works with the gram itself, in which gradients that are small beside others are lost.
beside_torchjd = pytest.mark.parametrize(
    "j", [j for name, j in HARD.items() if name != "sizes"], ids=[name for name in HARD if name != "sizes"]
)


@pytest.mark.frameworks
@beside_torchjd
def test_imtl_g_is_torchjds(j: Tensor) -> None:
    if len(j) > j.shape[1]:
        pytest.skip("of dependent gradients ours takes the least weights of directions, not of the gradients")
    theirs = pytest.importorskip("torchjd.aggregation").IMTLG()
    torch.testing.assert_close(
        gradients.imtl_g_weights(j @ j.T) @ j / j.norm(), theirs(j) / j.norm(), rtol=0, atol=1e-6
    )


@pytest.mark.frameworks
@beside_torchjd
def test_upgrad_is_torchjds(j: Tensor) -> None:
    """To what it adds to the gram, by default 1e-4."""
    for package in ("qpsolvers", "quadprog"):
        pytest.importorskip(package)
    linalg, aggregation = (pytest.importorskip(f"torchjd.{name}") for name in ("linalg", "aggregation"))
    theirs = aggregation.UPGrad(projector=linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-10))(j)
    ours = gradients.upgrad_weights(j @ j.T).mean(0) @ j
    torch.testing.assert_close(ours / j.norm(), theirs / j.norm(), rtol=0, atol=1e-6)


class Tasks(nn.Module):
    """A trunk, a head for each of three tasks, and a part that two of them share."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.pair = nn.Parameter(torch.ones(8))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.to(dtype)
        self.x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
        self.y = torch.randn(32, 3, generator=torch.Generator().manual_seed(2)).to(dtype)

    def losses(self) -> list[Tensor]:
        hidden = self.trunk(self.x)
        inputs = [hidden * self.pair, hidden * self.pair, hidden * self.frozen]
        found = zip(self.heads, inputs, self.y.T, strict=True)
        return [(3.0**i) * (head(h).squeeze(-1) - y).square().mean() for i, (head, h, y) in enumerate(found)]

    def grads(self) -> dict[str, Tensor | None]:
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()}


def same(one: dict[str, Tensor | None], other: dict[str, Tensor | None], **tolerance: float) -> None:
    for name, x in one.items():
        y = other[name]
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, **tolerance)


def expected_grads(model: Tasks, method: Method) -> dict[str, Tensor | None]:
    """By the parts that the step is made of."""
    params = dict(model.named_parameters())
    trainable = {name: p for name, p in params.items() if p.requires_grad}
    found = [
        dict(
            zip(
                trainable,
                torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for loss in model.losses()
    ]
    shared = [name for name in trainable if sum(each[name] is not None for each in found) > 1]
    assert len(shared) == 5
    surgery = METHODS[method]
    per_task = [[each[name] for name in shared] for each in found]
    torch.manual_seed(7)
    weights = surgery.weights(gradients.gram(per_task))
    weights = surgery.merge(weights) if surgery.merge else weights
    combined = dict(zip(shared, gradients.combine(per_task, weights), strict=True))
    own = {name: next((each[name] for each in found if each[name] is not None), None) for name in trainable}
    return {name: combined.get(name, own.get(name)) for name in params}


@every_method
def test_the_step_is_its_parts(method: Method) -> None:
    model = Tasks()
    expected = expected_grads(model, method)
    torch.manual_seed(7)
    weights = gradients.backward(model.losses(), model.parameters(), method)
    same(model.grads(), expected, rtol=1e-5, atol=1e-7)
    assert weights.dtype == torch.float64 and weights.shape == (3,) and not weights.requires_grad
    assert model.unused.grad is None and model.frozen.grad is None


def test_methods_are_their_type() -> None:
    assert tuple(METHODS) == get_args(Method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_sum_is_that_of_backward(dtype: torch.dtype) -> None:
    ours, theirs = Tasks(dtype), Tasks(dtype)
    for _ in range(2):
        gradients.backward(ours.losses(), ours.named_parameters(), "sum")
        torch.stack(theirs.losses()).sum().backward()
    rounded = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-6}[dtype]
    same(ours.grads(), theirs.grads(), rtol=rounded, atol=8 * rounded)


@every_method
def test_gradients_accumulate_in_place(method: Method) -> None:
    model = Tasks()
    gradients.backward(model.losses(), model.parameters(), method, **seeded(method))
    once = model.grads()
    places = {name: p.grad for name, p in model.named_parameters()}
    model.unused.grad = torch.full((2,), 3.0)
    gradients.backward(model.losses(), model.parameters(), method, **seeded(method))
    for name, p in model.named_parameters():
        if name != "unused":
            assert p.grad is places[name]
    unused = model.unused.grad
    model.unused.grad = None
    same(model.grads(), {name: None if x is None else 2 * x for name, x in once.items()}, rtol=1e-5, atol=1e-7)
    assert torch.equal(unused, torch.full((2,), 3.0))


def seeded(method: Method) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(5)} if method == "pcgrad" else {}


@every_method
def test_a_single_loss_is_plain_backward(method: Method) -> None:
    ours, theirs = Tasks(), Tasks()
    gradients.backward(ours.losses()[:1], ours.parameters(), method)
    theirs.losses()[0].backward()
    same(ours.grads(), theirs.grads(), rtol=1e-6, atol=1e-7)


@every_method
def test_a_scaler_unscales_what_it_scaled(method: Method) -> None:
    plain, scaled = Tasks(), Tasks()
    gradients.backward(plain.losses(), plain.parameters(), method, **seeded(method))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=1.0)
    gradients.backward([scaler.scale(x) for x in scaled.losses()], scaled.parameters(), method, **seeded(method))
    scaler.unscale_(optimizer)
    same(scaled.grads(), plain.grads(), rtol=1e-5, atol=1e-7)


@every_method
def test_a_scaler_skips_an_infinite_gradient(method: Method) -> None:
    model = Tasks()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = AdamW(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    losses = model.losses()
    losses[1] = losses[1] * torch.inf
    weights = gradients.backward([scaler.scale(x) for x in losses], model.parameters(), method)
    assert weights.isnan().all() and all(g is None or g.isnan().all() for g in model.grads().values())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**12
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.2, max_iter=2),
    "AdamW, ferrostep": lambda params: AdamW(params, lr=0.01),
    "Lion, ferrostep": lambda params: Lion(params, lr=0.003),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("method", ["upgrad", "nash_mtl", "imtl_g"])
def test_any_optimizer_steps_with_a_closure(make: Callable[[Any], Any], method: Method) -> None:
    model = Tasks()
    optimizer = make([p for p in model.parameters() if p.requires_grad])

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = model.losses()
        gradients.backward(losses, model.parameters(), method)
        return torch.stack(losses).sum().detach()

    before = float(closure())
    for _ in range(60):
        optimizer.step(closure)
    assert float(closure()) < 0.9 * before


def test_hooks() -> None:
    model = Tasks()
    of_tensor: list[Tensor] = []
    after: list[Tensor | None] = []
    weight = model.trunk[0].weight
    weight.register_hook(of_tensor.append)
    weight.register_post_accumulate_grad_hook(lambda p: after.append(p.grad))
    model.unused.register_post_accumulate_grad_hook(lambda p: after.append(p.grad))
    gradients.backward(model.losses(), model.parameters())
    assert len(of_tensor) == 3 and len(after) == 1 and after[0] is weight.grad


@pytest.mark.parametrize("of_odice", [False, True], ids=["backward", "OrthogonalGradient"])
def test_gradients_have_the_dtype_that_the_parameter_asks_for(of_odice: bool) -> None:
    """Also once there are some."""
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    for times in (1, 2):
        losses = [p.sum(), (p * torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)).sum()]
        if of_odice:
            stepped = gradients.OrthogonalGradient(torch.optim.SGD([p], lr=0.1), eta=0.0)
            stepped.backward(*losses)
            stepped.combine()
            expected = torch.ones(3)
        else:
            gradients.backward(losses, [p], "sum")
            expected = times * torch.tensor([2.0, 3.0, 4.0])
        assert p.grad is not None and p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, expected)


def test_parameters_of_several_dtypes_and_gradients_that_share_memory() -> None:
    one, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    wide = nn.Parameter(torch.ones(3, dtype=torch.float64))
    turned = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    total = one + other + wide
    losses = [total.sum(), (total * torch.tensor([1.0, -2.0, 1.0])).sum() + turned.abs().sum(), turned.real.sum()]
    gradients.backward(losses, [one, other, wide, turned], "sum")
    for p in (one, other, wide):
        torch.testing.assert_close(p.grad, torch.tensor([2.0, -1.0, 2.0]).to(p.dtype))
    torch.testing.assert_close(turned.grad, torch.full((3,), 2.0, dtype=torch.complex64))
    assert one.grad is not other.grad and one.grad.data_ptr() != other.grad.data_ptr()  # type: ignore[union-attr]


def test_the_graph_is_freed_unless_it_is_kept() -> None:
    model = Tasks()
    losses = model.losses()
    gradients.backward(losses, model.parameters(), "sum", retain_graph=True)
    once = model.grads()
    gradients.backward(losses, model.parameters(), "sum")
    same(model.grads(), {name: None if x is None else 2 * x for name, x in once.items()}, rtol=1e-5, atol=1e-6)
    before = model.grads()
    with pytest.raises(RuntimeError, match="second time"):
        gradients.backward(losses, model.parameters())
    same(model.grads(), before, rtol=0, atol=0)


@every_method
def test_other_devices_use_torch(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    rust, plain = Tasks(), Tasks()
    for _ in range(2):
        gradients.backward(rust.losses(), rust.parameters(), method, **seeded(method))
    monkeypatch.setattr(lists, "elsewhere", lambda _, **_written: True)
    for _ in range(2):
        gradients.backward(plain.losses(), plain.parameters(), method, **seeded(method))
    same(plain.grads(), rust.grads(), rtol=1e-5, atol=1e-6)


def test_options_reach_the_method() -> None:
    grads = []
    for c in (0.0, 2.0):
        model = Tasks()
        gradients.backward(model.losses(), model.parameters(), "cagrad", c=c)
        grads.append(model.trunk[0].weight.grad)
    assert not torch.equal(*grads)
    model = Tasks()
    weights = gradients.backward(model.losses(), model.parameters(), "nash_mtl")
    reports: list[Any] = []
    gradients.backward(model.losses(), model.parameters(), "nash_mtl", initial=weights, callback=reports.append)
    assert reports[-1].steps == 0


P = nn.Parameter(torch.ones(3))
Q = nn.Parameter(torch.ones(3))
LOSS = P.sum()
BAD: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "no losses": (ValueError, "^losses is empty, expected one loss at least", lambda: gradients.backward([], [P])),
    "a tensor": (TypeError, "^losses is a Tensor, expected a list", lambda: gradients.backward(torch.ones(2), [P])),
    "a number": (
        TypeError,
        r"^losses\[1\] is a float, expected a torch.Tensor",
        lambda: gradients.backward([P.sum(), 3.0], [P]),  # type: ignore[list-item]
    ),
    "several elements": (
        ValueError,
        r"^losses\[1\] has shape \[3\], expected one element",
        lambda: gradients.backward([P.sum(), 2 * P], [P]),
    ),
    "complex": (
        TypeError,
        r"^losses\[1\] has dtype torch.complex64, expected a real number",
        lambda: gradients.backward([P.sum(), (P * 1j).sum()], [P]),
    ),
    "no graph": (
        RuntimeError,
        r"^losses\[1\] has no graph: compute it with gradients enabled",
        lambda: gradients.backward([P.sum(), P.sum().detach()], [P]),
    ),
    "the same loss": (
        ValueError,
        r"^losses\[2\] has come before, expected each loss once",
        lambda: gradients.backward([LOSS, P.sum(), LOSS], [P]),
    ),
    "NaN": (
        ValueError,
        r"^losses\[1\] is NaN, expected a number",
        lambda: gradients.backward([P.sum(), P.sum() * torch.nan], [P]),
    ),
    "no params": (ValueError, "^params is empty", lambda: gradients.backward([P.sum()], [])),
    "an exhausted generator": (ValueError, "^params is empty", lambda: gradients.backward([P.sum()], iter([]))),
    "one parameter": (TypeError, "^params is a Parameter, expected a list", lambda: gradients.backward([P.sum()], P)),
    "no parameter": (
        TypeError,
        r"^params\[1\] is a str",
        lambda: gradients.backward([P.sum()], [P, "weight"]),  # type: ignore[list-item]
    ),
    "the same parameter": (
        ValueError,
        r"^params\[2\] has come before, expected each parameter once",
        lambda: gradients.backward([P.sum()], [P, Q, P]),
    ),
    "no leaf": (ValueError, r"^params\[1\] is no leaf", lambda: gradients.backward([P.sum()], [P, 2 * P])),
    "frozen": (
        RuntimeError,
        "^none of params requires gradients",
        lambda: gradients.backward([P.sum()], [P.detach(), torch.ones(2)]),
    ),
    "devices": (
        RuntimeError,
        r"^params\[1\] is on device meta, expected cpu, as params\[0\]",
        lambda: gradients.backward([P.sum()], [P, nn.Parameter(torch.ones(3, device="meta"))]),
    ),
    "unreached": (
        RuntimeError,
        r"^losses\[1\] reaches none of the parameters",
        lambda: gradients.backward([P.sum(), Q.sum()], [P]),
    ),
    "sparse": (
        RuntimeError,
        r"^the gradient of losses\[0\] in params\[1\] has layout torch.sparse_coo",
        lambda: gradients.backward(
            [nn.functional.embedding(torch.tensor([0]), TABLE, sparse=True).sum() + P.sum()], [P, TABLE]
        ),
    ),
    "a method": (
        ValueError,
        "^Invalid method: 'ugrad'; expected 'upgrad', 'mgda', .* 'mean' or 'sum'",
        lambda: gradients.backward([P.sum()], [P], "ugrad"),  # type: ignore[arg-type]
    ),
    "a method of another kind": (
        ValueError,
        "^Invalid method: None; expected 'upgrad'",
        lambda: gradients.backward([P.sum()], [P], None),  # type: ignore[arg-type]
    ),
    "an option": (
        TypeError,
        r"^backward\(\) got an unexpected keyword argument 'calback'; did you mean 'callback'\?",
        lambda: gradients.backward([P.sum()], [P], "cagrad", calback=print),
    ),
    "another method's option": (
        TypeError,
        r"^backward\(\) got an unexpected keyword argument 'c'; 'imtl_g' has no options",
        lambda: gradients.backward([P.sum()], [P], "imtl_g", c=0.5),
    ),
    "create_graph": (
        TypeError,
        r"^backward\(\) got an unexpected keyword argument 'create_graph'",
        lambda: gradients.backward([P.sum()], [P], create_graph=True),
    ),
    "an option's value": (
        ValueError,
        "^Invalid c: -1",
        lambda: gradients.backward([P.sum(), 2 * P.sum()], [P], "cagrad", c=-1.0),
    ),
    "a gradient of another dtype": (
        ValueError,
        r"^params\[0\].grad has dtype float64, expected float32",
        lambda: odd(),
    ),
    "an expanded gradient": (
        ValueError,
        r"^params\[0\].grad has elements that share memory",
        lambda: with_gradients(torch.ones(1).expand(3)),
    ),
    "gradients that overlap": (
        ValueError,
        r"^params\[0\].grad shares memory with params\[1\].grad",
        lambda: with_gradients(*torch.ones(5).as_strided((2, 3), (1, 1))),
    ),
}
TABLE = nn.Parameter(torch.ones(2, 3))


def odd() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad_dtype = None
    p.grad = torch.ones(3, dtype=torch.float64)
    gradients.backward([p.sum(), 2 * p.sum()], [p])


def with_gradients(*there: Tensor) -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in there]
    for p, gradient in zip(params, there, strict=True):
        p.grad = gradient
    total = torch.stack([p.sum() for p in params]).sum()
    gradients.backward([total, 2 * total], params)


@pytest.mark.parametrize(("error", "message", "call"), BAD.values(), ids=BAD)
def test_bad_input(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    P.grad, Q.grad = torch.full((3,), 5.0), None
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(P.grad, torch.full((3,), 5.0)) and Q.grad is None and P.grad._version == 0


class Stop(Exception):
    """What a callback may raise."""


@pytest.mark.parametrize("method", ["upgrad", "mgda", "cagrad", "nash_mtl"])
@pytest.mark.parametrize("raised", [Stop, KeyboardInterrupt])
def test_what_the_callback_raises_changes_nothing(method: Method, raised: type[BaseException]) -> None:
    model = Tasks()

    def stop(report: object) -> None:
        raise raised

    model.trunk[0].weight.grad = torch.ones(16, 6)
    before = model.grads()
    with pytest.raises(raised):
        gradients.backward(model.losses(), model.parameters(), method, callback=stop)
    same(model.grads(), before, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [0, 1, 2])
def test_an_interrupt_within_the_passes_changes_nothing(loss: int) -> None:
    model = Tasks()
    model.trunk[0].weight.grad = torch.ones(16, 6)
    before = model.grads()
    passes = []

    def interrupt(_: Tensor) -> None:
        passes.append(None)
        if len(passes) == loss + 1:
            raise KeyboardInterrupt

    model.trunk[0].weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gradients.backward(model.losses(), model.parameters())
    same(model.grads(), before, rtol=0, atol=0)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupt_at_the_end_leaves_all_written(existing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the kernel has written: what is left to do is done before it is passed on."""
    model, plain = Tasks(), Tasks()
    for each in (model, plain):
        if existing:
            gradients.backward(each.losses(), each.parameters())
    hand_over, calls = accumulation._hand_over, []

    def interrupted(*arguments: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt
        hand_over(*arguments)

    monkeypatch.setattr(accumulation, "_hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gradients.backward(model.losses(), model.parameters())
    monkeypatch.undo()
    gradients.backward(plain.losses(), plain.parameters())
    assert len(calls) == 2
    same(model.grads(), plain.grads(), rtol=0, atol=0)


def test_twins_of_closed_forms_agree() -> None:
    for j in HARD.values():
        products = j @ j.T
        assert np.array_equal(
            ferrostep.numpy.imtl_g_weights(products.numpy()), gradients.imtl_g_weights(products).numpy()
        )


def test_a_reentrant_checkpoint_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    hidden: Any = torch.utils.checkpoint.checkpoint(lambda x: x * p, x, use_reentrant=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match=re.escape("losses[0] went through torch.utils.checkpoint")):
        gradients.backward([(hidden + p).sum()], [p])
