"""GradNormSmooth: the specification's trajectories, every repair of its search, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ferrostep.curvature import GaussNewtonProduct, HessianProduct
from ferrostep.curvature.operators import FlatParameters
from ferrostep.optim import GradNormSmooth, grad_norm_smooth
from ferrostep.optim.grad_norm_smooth import matrix_of
from ferrostep.reference import grad_norm_smooth as rule

Double = torch.float64


def at(*numbers: float, dtype: torch.dtype = Double) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers, dtype=dtype))


def quadratic(x: Tensor) -> Tensor:
    return (x[0] ** 2 + 10 * x[1] ** 2) / 2


def root(x: Tensor) -> Tensor:
    return (1 + x**2).sqrt().sum()


def state_of(optimizer: GradNormSmooth) -> dict[str, Any]:
    return optimizer.state[optimizer.param_groups[0]["params"][0]]  # type: ignore[no-any-return]


TRAJECTORIES = {
    "quadratic": (
        quadratic,
        (1.0, 1.0),
        [
            (0.9095012430, 0.5012437863),
            (0.6530972727, 0.1017553658),
            (0.1515935305, 0.0029855926),
            (0.0028722829, 5.7550e-6),
        ],
    ),
    "root": (  # Newton's own method diverges here
        root,
        (3.0, -2.0),
        [
            (2.2896223076, -1.3580435052),
            (0.9301289724, -0.3741579007),
            (-0.2359416797, -0.0282421193),
            (0.0055589017, -0.0007728535),
            (1.7776e-6, -2.705e-7),
        ],
    ),
}


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_of_the_specification(name: str, solver: Any) -> None:
    loss, start, points = TRAJECTORIES[name]
    x = at(*start)
    optimizer = GradNormSmooth([x], hessian="exact", solver=solver, cg_tol=1e-12)
    for step, expected in enumerate(points, 1):
        optimizer.step(lambda: loss(x))
        torch.testing.assert_close(x.detach(), torch.tensor(expected, dtype=Double), rtol=1e-4, atol=1e-10)
        assert state_of(optimizer)["gamma"] == 2.0**step  # no trial was rejected
    assert state_of(optimizer)["n_evals"] == 2 * len(points)


def logistic() -> tuple[nn.Linear, Callable[[], tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 5, generator=generator, dtype=Double)
    labels = (data @ torch.ones(5, dtype=Double) + torch.randn(40, generator=generator, dtype=Double) > 0).to(Double)
    model = nn.Linear(5, 1, dtype=Double)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()

    def closure() -> tuple[Tensor, Tensor]:
        outputs = model(data).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels) + 0 * outputs.sum(), outputs

    return model, closure


def test_of_a_model_linear_in_its_parameters_the_gauss_newton_matrix_is_the_hessian() -> None:
    found = []
    for hessian, solver in (("ggn", "cholesky"), ("exact", "cholesky"), ("ggn", "cg"), ("exact", "cg")):
        model, closure = logistic()
        optimizer = GradNormSmooth(model.parameters(), hessian=hessian, solver=solver, cg_tol=1e-10)  # type: ignore[arg-type]
        losses = [optimizer.step(closure).item() for _ in range(10)]
        assert all(a >= b for a, b in pairwise(losses))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("hessian", ["fisher", "diag"])
def test_cheap_approximations_descend(hessian: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_norm_smooth, "MOST_EXACT", 0)
    model, closure = logistic()
    optimizer = GradNormSmooth(model.parameters(), hessian=hessian)
    losses = [optimizer.step(closure).item() for _ in range(15)]
    assert losses[-1] < 0.6 * losses[0] and not optimizer.stalled


def test_fisher_of_rank_one() -> None:
    g = torch.tensor([3.0, 4.0], dtype=Double)
    expected = torch.tensor([-0.2068965517, -0.2758620690], dtype=Double)
    torch.testing.assert_close(rule.by_rank_one(g, 0.5, g, 2.0), expected, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(rule.by_cholesky(0.5 * torch.outer(g, g), g, 2.0), expected, rtol=1e-9, atol=0.0)


def test_the_diagonal_of_a_diagonal_hessian_is_exact() -> None:
    one, other = at(1.0, 1.0), at(1.0, 1.0)
    for x, hessian in ((one, "diag"), (other, "exact")):
        GradNormSmooth([x], hessian=hessian).step(lambda x=x: quadratic(x))  # type: ignore[arg-type, misc]
    torch.testing.assert_close(one, other)


class Counted(torch.autograd.Function):
    """A square whose backward pass looks at numbers, which vmap does not allow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        assert math.isfinite(grad.sum().item())
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("square", [lambda x: x * x, Counted.apply], ids=["batched", "one by one"])
def test_matrices_are_those_of_torch_func(square: Callable[[Tensor], Tensor]) -> None:
    """Of more than one batch of products, of which the first parameter has no part."""
    generator = torch.Generator().manual_seed(0)
    unused, w = at(1.0, 2.0), nn.Parameter(torch.randn(7, 10, generator=generator, dtype=Double))
    x = torch.randn(5, 7, generator=generator, dtype=Double)
    flat = FlatParameters([unused, w])

    def loss(outputs: Tensor) -> Tensor:
        return (square(outputs).sum(1) + 1).log().sum()

    def of(flat_w: Tensor) -> Tensor:
        return ((x @ flat_w.view(7, 10)).square().sum(1) + 1).log().sum()

    exact = torch.func.hessian(of)(w.detach().flatten())
    outputs = x @ w
    for product in (
        HessianProduct(loss(outputs), flat.params),
        GaussNewtonProduct((loss(outputs), outputs), flat.params),
    ):
        found = matrix_of(product, flat)
        assert found.shape == (72, 72) and found[:2].count_nonzero() == 0 == found[:, :2].count_nonzero()
        torch.testing.assert_close(found[2:, 2:], exact)  # the outputs are linear in w
    optimizer = GradNormSmooth([w], hessian="diag")
    gradient, before = torch.autograd.grad(loss(x @ w), w)[0].flatten(), w.detach().clone()
    optimizer.step(lambda: loss(x @ w))
    lam = rule.damping(rule.norm_of(gradient), state_of(optimizer)["gamma"] / 2)
    expected = rule.by_diagonal(exact.diagonal(), gradient, lam)
    torch.testing.assert_close((w - before).detach().flatten(), expected)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("as_matrix", [True, False])
def test_a_hessian_of_the_users(solver: Any, as_matrix: bool) -> None:
    x, matrix = at(1.0, 1.0), torch.diag(torch.tensor([1.0, 10.0], dtype=Double))
    hessian = (lambda: matrix) if as_matrix else (lambda: lambda v: matrix @ v)
    GradNormSmooth([x], hessian=hessian, solver=solver, cg_tol=1e-12).step(lambda: quadratic(x))
    expected = torch.tensor(TRAJECTORIES["quadratic"][2][0], dtype=Double)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-9, atol=0.0)


def test_a_hessian_of_the_users_may_differentiate_and_is_copied() -> None:
    x, other = at(1.0, 1.0), at(1.0, 1.0)

    def hessian() -> Callable[[Tensor], Tensor]:
        (slope,) = torch.autograd.grad(quadratic(x), x, create_graph=True)
        return lambda v: torch.autograd.grad(slope, x, v, retain_graph=True)[0]

    optimizer = copy.deepcopy(GradNormSmooth([x], hessian=hessian, solver="cg", cg_tol=1e-12))
    optimizer.param_groups[0]["params"][0] = x
    optimizer.step(lambda: quadratic(x))
    GradNormSmooth([other], hessian="exact", solver="cg", cg_tol=1e-12).step(lambda: quadratic(other))
    assert optimizer.hessian is hessian and optimizer.solver == "cg"
    torch.testing.assert_close(x, other, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_an_indefinite_hessian_means_more_damping(solver: Any) -> None:
    x = at(0.1, 1.0)
    optimizer = GradNormSmooth([x], gamma=10.0, hessian="exact", solver=solver)
    losses = []
    for step in range(15):
        losses.append(optimizer.step(lambda: (x[0] ** 2 - 1) ** 2 + x[1] ** 2).item())
        assert step > 0 or state_of(optimizer)["gamma"] < 10.0  # trials were rejected
    assert losses[-1] < 1e-10
    assert all(a >= b for a, b in pairwise(losses))


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_an_exhausted_search_leaves_every_bit(solver: Any) -> None:
    x = at(0.1, -0.3, dtype=torch.float32)
    before = x.detach().clone()
    calls = 0

    def closure() -> Tensor:  # better nowhere
        nonlocal calls
        calls += 1
        return quadratic(x) + (calls > 1)

    optimizer = GradNormSmooth([x], hessian="exact", max_search=5, solver=solver)
    optimizer.step(closure)
    assert torch.equal(x, before) and optimizer.stalled and calls == 6
    assert state_of(optimizer)["gamma"] == 2.0**-5
    calls = 0
    optimizer.step(lambda: quadratic(x))
    assert not optimizer.stalled and quadratic(x) < quadratic(before)


def test_steps_to_where_the_loss_is_not_finite_are_rejected() -> None:
    x = at(1e-3)
    optimizer = GradNormSmooth([x], gamma=1e3, hessian=lambda: torch.zeros(1, 1))
    losses = [optimizer.step(lambda: (x - x.log()).sum()).item() for _ in range(40)]
    assert all(map(math.isfinite, losses)) and abs(losses[-1] - 1) < 1e-6


def test_products_may_use_their_memory_again() -> None:
    matrix, room = torch.arange(1.0, 5.0).diag() + 0.5, torch.empty(4)
    assert torch.equal(rule.of_products(lambda v: torch.mv(matrix, v, out=room), torch.ones(4)), matrix)


def test_losses_that_differ_by_rounding_leave_the_gradient_to_decide() -> None:
    assert rule.is_accepted((1.0, 1e-9), (1.0, 1e-10), lam=1.0)
    assert not rule.is_accepted((1.0, 1e-10), (1.0, 1e-9), lam=1.0)
    assert not rule.is_accepted((1.0, 1.0), (math.nan, 1.0), lam=1.0)
    assert not rule.is_accepted((1.0, 1.0), (0.0, math.inf), lam=1.0)


def test_without_a_gradient_nothing_moves() -> None:
    x = at(0.0, 0.0)
    optimizer = GradNormSmooth([x], hessian="exact")
    assert optimizer.step(lambda: quadratic(x)).item() == 0.0
    assert x.tolist() == [0.0, 0.0]
    assert state_of(optimizer) == {"gamma": 1.0, "n_evals": 1, "prev_loss": 0.0, "stalled": False}


@pytest.mark.parametrize("hessian", ["exact", "diag"])
def test_a_state_dict_goes_on_as_if_nothing_had_been(hessian: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_norm_smooth, "MOST_EXACT", 0)  # estimates go on, too
    x = at(3.0, -2.0)
    optimizer = GradNormSmooth([x], hessian=hessian)
    for _ in range(2):
        optimizer.step(lambda: root(x))
    file = io.BytesIO()
    torch.save({"x": x.detach(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = nn.Parameter(saved["x"])
    other = GradNormSmooth([again], hessian=hessian, gamma=7.0)
    other.load_state_dict(saved["optimizer"])
    for _ in range(2):
        optimizer.step(lambda: root(x))
        other.step(lambda: root(again))
    assert torch.equal(x, again) and state_of(optimizer) == state_of(other)


def test_schedulers_hear_that_there_is_no_learning_rate() -> None:
    x = at(3.0, -2.0)
    optimizer = GradNormSmooth([x], hessian="exact")
    optimizer.load_state_dict(optimizer.state_dict())
    for each in (optimizer, copy.deepcopy(optimizer)):
        with pytest.raises(KeyError, match="GradNormSmooth has no 'lr' to schedule"):
            torch.optim.lr_scheduler.StepLR(each, 3)
        with pytest.raises(KeyError, match=r"^'momentum'$"):
            each.param_groups[0]["momentum"]


def test_a_closure_that_fails_leaves_everything() -> None:
    x = at(1.0, 1.0)
    x.grad = torch.ones(2, dtype=Double)
    optimizer = GradNormSmooth([x], hessian="exact")
    optimizer.step(lambda: quadratic(x))
    point, state = x.detach().clone(), copy.deepcopy(state_of(optimizer))
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return quadratic(x)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(x, point) and state_of(optimizer) == state and x.grad.tolist() == [1.0, 1.0]


def test_autograd_sees_that_parameters_have_moved() -> None:
    x = at(1.0, 1.0)
    kept = (x**2).sum()
    GradNormSmooth([x], hessian="exact").step(lambda: quadratic(x))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()  # type: ignore[no-untyped-call]


X = at(1.0, 1.0)


def backward() -> Tensor:
    loss = quadratic(X)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize(
    ("closure", "arguments", "error", "message"),
    [
        (None, {}, TypeError, "needs a closure"),
        (backward, {}, RuntimeError, "the closure has called backward"),
        (lambda: X, {}, ValueError, "expected a tensor with one element"),
        (lambda: quadratic(X.detach()), {}, RuntimeError, "the loss has no graph"),
        (lambda: quadratic(X) / 0, {}, ValueError, "the loss is inf and its gradient's norm"),
        (lambda: quadratic(X), {"hessian": "ggn"}, TypeError, r"a pair \(loss, outputs\)"),
        (
            lambda: (quadratic(X), X.sum()),
            {"hessian": "ggn"},
            RuntimeError,
            "the loss was not computed from the outputs",
        ),
        (lambda: quadratic(X), {"hessian": lambda: torch.eye(3)}, ValueError, r"has shape \[3, 3\], expected \[2, 2\]"),
        (lambda: quadratic(X), {"hessian": lambda: 3}, TypeError, "what hessian"),
        (lambda: quadratic(X), {"hessian": lambda: lambda v: v[:1]}, ValueError, r"a product .* has shape \[1\]"),
        (lambda: quadratic(X), {"hessian": lambda: lambda v: 3.0}, TypeError, "a product by what hessian"),
    ],
    ids=[
        *("none", "backward", "vector", "detached", "infinite", "no pair", "wrong pair", "wrong shape", "wrong kind"),
        *("wrong product", "no product"),
    ],
)
def test_bad_closures(closure: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    optimizer = GradNormSmooth([X], **{"hessian": "exact", **arguments})
    with pytest.raises(error, match=message):
        optimizer.step(closure)
    assert X.tolist() == [1.0, 1.0] and X.grad is None and not optimizer.state


@pytest.mark.parametrize(
    ("params", "arguments", "error", "message"),
    [
        ([X], {"gamma": 0.0}, ValueError, "Invalid gamma: 0.0"),
        ([X], {"gamma": math.nan}, ValueError, "Invalid gamma: nan"),
        ([X], {"gamma_min": "a"}, TypeError, "gamma_min is a str, expected a number"),
        ([X], {"max_search": 0}, ValueError, "Invalid max_search: 0"),
        ([X], {"cg_tol": 1.0}, ValueError, "Invalid cg_tol: 1.0; expected less than 1"),
        ([X], {"hessian": "bfgs"}, ValueError, "Invalid hessian: 'bfgs'; expected 'ggn', 'fisher', 'diag' or 'exact'"),
        ([X], {"solver": "lu"}, ValueError, "Invalid solver: 'lu'; expected 'cholesky' or 'cg'"),
        ([{"params": [X]}, {"params": [at(1.0)]}], {}, ValueError, "GradNormSmooth takes one parameter group"),
        ([at(1.0, dtype=torch.bfloat16)], {}, ValueError, "parameter 0 has dtype torch.bfloat16, expected float32 or"),
    ],
    ids=str,
)
def test_bad_arguments(params: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradNormSmooth(params, **arguments)
