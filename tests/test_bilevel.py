"""Bilevel optimizers: the numbers of the specification, resumption, and what is refused with nothing changed."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.bilevel import BOREP, LVHBA, hypergradient
from ferrostep.bilevel.borep import epochs
from ferrostep.implicit import ConvergenceWarning, linear
from tests.solutions import f64, near, nothing_is_told_by_itself  # noqa: F401  (used by all)


def parameter(*values: Any) -> Parameter:
    return Parameter(f64(*values))


class Quadratic:
    """g = y'Ay/2 - y'(Bx + c), f = |y - (1, 2)|^2 / 2 + .05 |x|^2."""

    A, B, C = torch.diag(f64(2.0, 1.0)), f64([[1.0, 0.0], [1.0, 1.0]]), f64(1.0, -1.0)

    def __init__(self) -> None:
        self.x, self.y = parameter(0.0, 0.0), parameter(0.0, 0.0)

    def upper(self) -> Tensor:
        return 0.5 * (self.y - f64(1.0, 2.0)).square().sum() + 0.05 * self.x.square().sum()

    def lower(self) -> Tensor:
        return 0.5 * self.y @ self.A @ self.y - self.y @ (self.B @ self.x + self.C)

    def optimizer(self, **options: Any) -> BOREP:
        settings = {"lr": 0.1, "lower_lr": 0.4, "refine_steps": 4, "neumann_steps": 5, "neumann_lr": 0.4, **options}
        return BOREP([self.x], [self.y], **settings)


# --- hypergradients -------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_hypergradient_goes_with_any_optimizer() -> None:
    task = Quadratic()
    with torch.no_grad():
        task.x.copy_(f64(1.185567010309, 1.649484536082))
        task.y.copy_(f64(1.092783505155, 1.835051546392))
    at_the_best = hypergradient(task.upper, task.lower, [task.x], [task.y], solver=linear.cg(rtol=1e-12))
    near(at_the_best.gradients[0], 0.0, 0.0, tolerance=1e-9)
    near(at_the_best.upper_loss, 0.224226804124)
    assert at_the_best.info.converged and task.x.grad is None and task.y.grad is None
    again = hypergradient(task.upper, task.lower, [task.x], [task.y], solver=linear.cg(), z0=at_the_best.z)
    assert again.info.iterations == 0


def test_fresh_batches_for_each_factor_of_the_series() -> None:
    task, calls = Quadratic(), [0]

    def lower() -> Tensor:
        calls[0] += 1
        return task.lower()

    for fresh, expected in ((False, 1), (True, 5)):
        calls[0] = 0
        solver = linear.neumann(steps=5, lr=0.4)
        found = hypergradient(task.upper, lower, [task.x], [task.y], solver=solver, fresh=fresh)
        assert calls[0] == expected
        near(found.z[0], -(1 - 0.2**5) / 2, -2 * (1 - 0.6**5))


def test_parts_that_losses_do_not_reach_are_zeros() -> None:
    x, unused, y, free = (parameter(v) for v in (2.0, 3.0, 1.0, 4.0))
    lower = lambda: (y - x).square() + free.square()  # noqa: E731
    found = hypergradient(lambda: y.square(), lower, [x, unused], [y, free])
    near(torch.stack(found.gradients), 2.0, 0.0)
    near(torch.stack(found.z), 1.0, 0.0)


def test_what_is_not_solved_is_told() -> None:
    x, y = parameter(2.0), parameter(1.0)
    arguments = (lambda: y.square(), lambda: -(y - x).square(), [x], [y])
    with pytest.warns(ConvergenceWarning, match="not positive definite"):
        hypergradient(*arguments)
    with pytest.raises(RuntimeError, match="a residual of 2"):
        hypergradient(*arguments, check="raise")


# --- BO-REP ---------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_borep_goes_the_way_of_the_specification() -> None:
    task = Quadratic()
    optimizer = task.optimizer()
    optimizer.step(task.upper, task.lower)
    near(task.y, 0.4992, -0.8704)
    near(optimizer.state[task.x]["momentum_buffer"] / 0.1, -2.897517568, -2.647197696, tolerance=1e-9)
    near(task.x, 0.073827761845, 0.06744969667)
    expected = [
        (0.147655523691, 0.13489939334),
        (0.221367312554, 0.202475810696),
        (0.295019647766, 0.270117022378),
    ]
    for k, point in enumerate(expected):
        optimizer.step(task.upper, task.lower)
        near(task.x, *point)
        if k == 1:
            near(task.y, 0.573230739751, -0.750483345048)
    assert task.x.grad is None and task.y.grad is None


@pytest.mark.parametrize("solver", ["cg", "running"])
def test_borep_ends_at_the_solution(solver: Any) -> None:
    """The oracle's 4000 steps from (0, 0), of 10 lower steps and rates from .1 to 0, which take 25 to 90 s, were run by
    hand: errors of 7.7e-4 with 60 terms of the series and 1.00e-2 with 5, as it says."""
    task, steps = Quadratic(), 50
    with torch.no_grad():
        task.x.copy_(f64(1.1, 1.5))
    optimizer = task.optimizer(lr=0.02, solver=solver, lower_steps=5, period=1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.step(task.upper, task.lower)
        scheduler.step()
    near(task.x, 1.185567010309, 1.649484536082, tolerance=2e-2)
    assert optimizer.lower["lr"] == 0.0 and optimizer.lower["lower_lr"] == 0.4


def test_a_cut_series_has_its_own_limit() -> None:
    task = Quadratic()
    with torch.no_grad():
        task.x.copy_(f64(1.182749962547, 1.639478668944))
        task.y.copy_(torch.linalg.solve(task.A, task.B @ task.x + task.C))
    found = hypergradient(task.upper, task.lower, [task.x], [task.y], solver=linear.neumann(steps=5, lr=0.4))
    near(found.gradients[0], 0.0, 0.0, tolerance=1e-9)


def test_normalization_saves_a_run_whose_gradients_explode() -> None:
    x, y = parameter(10.0), parameter(10.0)
    optimizer = BOREP([x], [y], lr=0.1, lower_lr=0.5, neumann_lr=0.5, lower_steps=20)
    lower = lambda: 0.5 * (y - x).square()  # noqa: E731
    for _ in range(100):
        optimizer.step(lambda: y.cosh(), lower)
    near(x, 0.0, tolerance=1e-9)


def test_the_ball_and_the_mean_of_the_paper() -> None:
    task = Quadratic()
    optimizer = task.optimizer(radius=0.1, refine_steps=3)
    optimizer.step(task.upper, task.lower)
    way = f64(0.4, -0.4)
    first = way * (0.1 / way.norm())
    assert 0 < task.y.detach().norm() <= 0.1 + 1e-12 and torch.dot(task.y.detach(), first) > 0
    found = list(epochs(100, 10, 0.4, 1.0))
    assert [steps for steps, _, _ in found] == [10, 20, 40, 30]
    assert found[2][1:] == (0.1, pytest.approx(0.5))


def test_a_lower_optimizer_of_the_users() -> None:
    task = Quadratic()
    lower_optimizer = torch.optim.Adam([task.y], lr=0.1)
    task.y.grad = mine = torch.ones_like(task.y)
    optimizer = task.optimizer(lower_optimizer=lower_optimizer, refine_steps=100)
    optimizer.step(task.upper, task.lower)
    near(task.y, 0.5, -1.0, tolerance=0.1)
    assert task.y.grad is mine and lower_optimizer.state[task.y]["step"] == 100


@pytest.mark.parametrize("solver", ["neumann", "cg", "running"])
def test_borep_resumes(solver: Any) -> None:
    whole, first, second = Quadratic(), Quadratic(), Quadratic()
    one, other = whole.optimizer(solver=solver), first.optimizer(solver=solver)
    for _ in range(3):
        one.step(whole.upper, whole.lower)
        other.step(first.upper, first.lower)
    second.x, second.y = Parameter(first.x.detach().clone()), Parameter(first.y.detach().clone())
    third = second.optimizer(solver=solver)
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    for _ in range(3):
        one.step(whole.upper, whole.lower)
        third.step(second.upper, second.lower)
    assert torch.equal(whole.x, second.x) and torch.equal(whole.y, second.y)


def test_a_step_without_a_finite_direction_is_left_out() -> None:
    task = Quadratic()
    optimizer = task.optimizer()
    optimizer.step(task.upper, task.lower)
    x, m = task.x.detach().clone(), optimizer.state[task.x]["momentum_buffer"].clone()
    with pytest.warns(ConvergenceWarning):
        losses = optimizer.step(lambda: task.upper() * math.nan, task.lower)
    assert losses.upper.isnan() and torch.equal(task.x, x)
    assert torch.equal(optimizer.state[task.x]["momentum_buffer"], m)
    stuck = BOREP([x0 := parameter(1.0)], [y0 := parameter(0.0)])
    stuck.step(lambda: 0.0 * y0, lambda: y0.square() + 0.0 * x0)
    near(x0, 1.0)


@pytest.mark.parametrize("solver", ["neumann", "cg", "running"])
def test_a_step_that_fails_at_its_end_changes_nothing(solver: Any) -> None:
    task = Quadratic()
    optimizer = task.optimizer(solver=solver)
    optimizer.step(task.upper, task.lower)
    optimizer.step(task.upper, task.lower)
    before = copy.deepcopy((optimizer.state_dict(), task.x, task.y))
    momentum = optimizer.state[task.x]["momentum_buffer"]
    optimizer.state[task.x]["momentum_buffer"] = momentum.to(torch.float16)
    with pytest.raises(ValueError, match="has dtype"):
        optimizer.step(task.upper, task.lower)
    optimizer.state[task.x]["momentum_buffer"] = momentum
    after = (optimizer.state_dict(), task.x, task.y)
    assert repr(after) == repr(before)


# --- LV-HBA ---------------------------------------------------------------------------------------------------------


class Coupled:
    """Lower y^2/2 - xy where x + y <= 1, upper (x - 1.5)^2 + (y + 1)^2."""

    def __init__(self, x: float, y: float, **options: Any) -> None:
        self.x, self.y = parameter(x), parameter(y)
        settings = {"lr": (0.05, 0.05, 0.1), "gamma": (1.0, 1.0), "multiplier_bound": 10.0, **options}
        self.optimizer = LVHBA([self.x], [self.y], project=self.project, **settings)

    def upper(self) -> Tensor:
        return (self.x - 1.5).square() + (self.y + 1).square()

    def lower(self) -> Tensor:
        return 0.5 * self.y.square() - self.x * self.y

    def g(self) -> Tensor:
        return self.x + self.y - 1

    def project(self) -> None:
        excess = ((self.x + self.y - 1) / 2).clamp(min=0.0)
        self.x.sub_(excess)
        self.y.sub_(excess)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.step(self.upper, self.lower, self.g)


@pytest.mark.smoke
def test_lvhba_goes_the_way_of_the_specification() -> None:
    """The oracle's 20000 steps, which take 16 s, were run by hand: within 1e-8 of the solution after 9000."""
    task = Coupled(3.0, -2.0)
    for x in (2.75, 2.55689976036, 2.39772855258):
        task.step()
        near(task.x, x)
    near(task.optimizer.state[task.y]["multiplier"], 0.068314976036)
    task.step(500)
    near(torch.stack([task.x, task.y]), 1.75, -0.75, tolerance=0.1)
    near(task.optimizer.state[task.y]["multiplier"], 2.5, tolerance=0.25)
    assert task.x.grad is None and task.y.grad is None


def test_the_bias_of_a_fixed_penalty() -> None:
    c = 10.0
    task = Coupled(0.4, 0.1, penalty=(c, 0.0))
    task.step(300)
    near(torch.stack([task.x, task.y]), 0.25 + 2.5 / (c + 2), 0.25 - 2.5 / (c + 2), tolerance=2e-3)


@pytest.mark.parametrize("order", ["jacobi", "gauss-seidel"])
def test_a_toy_of_the_authors_which_their_settings_let_diverge(order: Any) -> None:
    """Lower |y1|^2 / 2 - x.y1 + 1.y2, the sum of all 0; the row of the constraint scaled to norm 1 in y."""
    n = 20
    x, y1, y2 = (Parameter(torch.zeros(n, dtype=torch.float64)) for _ in range(3))
    scale = math.sqrt(2 * n)

    def project() -> None:
        excess = (x.sum() + y1.sum() + y2.sum()) / (3 * n)
        for each in (x, y1, y2):
            each.sub_(excess)

    optimizer = LVHBA(
        [x], [y1, y2], lr=(0.05, 0.05, 0.05), gamma=(1.0, 1.0), project=project, equality=True, order=order
    )
    for _ in range(600):
        optimizer.step(
            lambda: 0.5 * (x - y2).square().sum() + 0.5 * (y1 - 1).square().sum(),
            lambda: 0.5 * y1.square().sum() - x @ y1 + y2.sum(),
            lambda: (x.sum() + y1.sum() + y2.sum()) / scale,
        )
    near(torch.stack([x.mean(), y1.mean(), y2.mean()]), -0.3, 0.7, -0.4, tolerance=0.1)
    assert optimizer.state[y1]["multiplier"] < 0


def test_resolve_tells_what_the_iterate_hides() -> None:
    task = Coupled(1.75, -0.5)
    task.y.grad = mine = torch.ones_like(task.y)
    found = task.optimizer.resolve(task.lower, task.g)
    near(found.lower[0], -0.75, tolerance=1e-6)
    assert found.value == pytest.approx(0.5 * 0.75**2 + 1.75 * 0.75)
    assert found.gap == pytest.approx(0.5 * 0.25 + 1.75 * 0.5 - found.value)
    assert found.violation == pytest.approx(0.25) and found.residual < 1e-6
    near(task.y, -0.5)
    assert task.y.grad is mine
    unconstrained = task.optimizer.resolve(task.lower)
    near(unconstrained.lower[0], 1.75, tolerance=1e-8)


def test_lvhba_resumes() -> None:
    whole, first = Coupled(3.0, -2.0), Coupled(3.0, -2.0)
    whole.step(6)
    first.step(3)
    second = Coupled(first.x.item(), first.y.item())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.step(3)
    assert torch.equal(whole.x, second.x) and torch.equal(whole.y, second.y)


def test_copies_have_what_the_user_gave() -> None:
    task = Quadratic()
    copied: Any = copy.deepcopy(task.optimizer(lower_optimizer=torch.optim.SGD([task.y], lr=0.4)))
    assert copied._lower_optimizer.param_groups[0]["params"][0] is copied.lower["params"][0]
    constrained = LVHBA([X], [Y], project=square, project_lower=square)
    loaded: Any = pickle.loads(pickle.dumps(constrained))
    assert loaded.project is square and loaded.project_lower is square


@pytest.mark.parametrize("solver", ["neumann", "cg", "running"])
def test_one_batch_without_finite_losses_does_no_lasting_harm(solver: Any) -> None:
    task = Quadratic()
    optimizer = task.optimizer(solver=solver)
    optimizer.step(task.upper, task.lower)
    before = task.x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        optimizer.step(lambda: task.upper() * math.nan, task.lower)
    assert torch.equal(task.x, before)
    optimizer.step(task.upper, task.lower)
    assert task.x.isfinite().all() and not torch.equal(task.x, before)


@pytest.mark.parametrize("wrong", range(3))
def test_lvhba_leaves_out_a_step_without_finite_gradients(wrong: int) -> None:
    task = Coupled(3.0, -2.0)
    closures = [task.upper, task.lower, task.g]
    task.optimizer.step(*closures)
    before = [task.x.item(), task.y.item(), str(task.optimizer.state_dict())]
    task.optimizer.step(*(lambda f=f, k=k: f() * (math.nan if k == wrong else 1) for k, f in enumerate(closures)))
    assert [task.x.item(), task.y.item(), str(task.optimizer.state_dict())] == before


def test_the_lower_projection_sees_theta() -> None:
    task = Coupled(3.0, -2.0, project_lower=lambda: task.y.clamp_(min=-1.0))
    task.step()
    assert task.optimizer.state[task.y]["theta"] == -1.0 and task.y != -1.0
    with pytest.raises(RuntimeError, match="resolve does not know project_lower"):
        task.optimizer.resolve(task.lower)


# --- what is refused ------------------------------------------------------------------------------------------------

X, Y = parameter(1.0), parameter(2.0)


def square() -> Tensor:
    return (X * Y).square()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no upper": (lambda: BOREP([], [Y]), ValueError, "upper_params is empty"),
    "no tensor": (lambda: BOREP([X], [3.0]), TypeError, r"lower_params\[0\] is a float"),  # type: ignore[list-item]
    "both levels": (lambda: LVHBA([X], [Y, X]), ValueError, r"upper_params\[0\] is lower_params\[1\]"),
    "dtype": (lambda: BOREP([Parameter(X.bfloat16())], [Y]), ValueError, r"upper_params\[0\] has dtype torch.bfloat16"),
    "expanded": (
        lambda: BOREP([X], [torch.ones(1).expand(3).requires_grad_()]),
        ValueError,
        r"lower_params\[0\] has elements that share memory \(an expanded view\?\), expected one place for each",
    ),
    "no leaf": (lambda: BOREP([X * 1], [Y]), ValueError, r"upper_params\[0\] is no leaf"),
    "lr": (lambda: BOREP([X], [Y], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    "momentum": (lambda: BOREP([X], [Y], momentum=1.0), ValueError, "Invalid momentum: 1.0"),
    "period": (lambda: BOREP([X], [Y], period=0), ValueError, "Invalid period: 0"),
    "radius": (lambda: BOREP([X], [Y], radius=-1.0), ValueError, "Invalid radius: -1.0"),
    "solver": (lambda: BOREP([X], [Y], solver="gmres"), ValueError, "Invalid solver: 'gmres'"),  # type: ignore[arg-type]
    "a linear solver": (
        lambda: hypergradient(X.sum, Y.sum, [X], [Y], solver="cg"),  # type: ignore[arg-type]
        TypeError,
        "solver is a str, expected a solver",
    ),
    "lower_optimizer": (lambda: BOREP([X], [Y], lower_optimizer=3), TypeError, "lower_optimizer is a int"),  # type: ignore[arg-type]
    "others": (
        lambda: BOREP([X], [Y], lower_optimizer=torch.optim.SGD([X])),
        ValueError,
        "lower_optimizer has other parameters than lower_params",
    ),
    "rates": (lambda: LVHBA([X], [Y], lr=(0.1, 0.1)), ValueError, "lr has 2 numbers, expected 3"),  # type: ignore[arg-type]
    "gamma": (lambda: LVHBA([X], [Y], gamma=(0.0, 1.0)), ValueError, r"Invalid gamma\[0\]: 0.0"),
    "power": (lambda: LVHBA([X], [Y], penalty=(1.0, 0.5)), ValueError, r"Invalid penalty\[1\]: 0.5"),
    "equality": (lambda: LVHBA([X], [Y], equality="no"), TypeError, "equality is a str, expected a bool"),  # type: ignore[arg-type]
    "order": (lambda: LVHBA([X], [Y], order="sor"), ValueError, "Invalid order: 'sor'"),  # type: ignore[arg-type]
    "project": (lambda: LVHBA([X], [Y], project=3), TypeError, "project is a int"),  # type: ignore[arg-type]
    "what solves": (lambda: hypergradient(square, square, [X], [Y], solver=3), TypeError, "solver is a int"),  # type: ignore[arg-type]
    "check": (lambda: hypergradient(square, square, [X], [Y], check="no"), ValueError, "Invalid check: 'no'"),  # type: ignore[arg-type]
    "no rate": (lambda: BOREP([X], [Y], neumann_lr=0.0), ValueError, "Invalid neumann_lr: 0.0"),
    "weight": (lambda: LVHBA([X], [Y]).resolve(square, weight=0.0), ValueError, "Invalid weight: 0.0"),
    "a group": (lambda: BOREP([X], [Y]).add_param_group({"params": [parameter(1.0)]}), RuntimeError, "takes no other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_argument_is_named(case: str) -> None:
    provoke, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        provoke()


def stop() -> Tensor:
    raise KeyboardInterrupt


CLOSURES: dict[str, tuple[Any, Any, Any, type[BaseException], str]] = {
    "no tensor": (lambda x, y: 3.0, None, None, TypeError, "what upper_closure returned is a float"),
    "no scalar": (None, lambda x, y: (y * x).expand(2), None, ValueError, "what lower_closure returned has shape"),
    "no graph": (lambda x, y: y.detach(), None, None, RuntimeError, "what upper_closure returned has no graph"),
    "not reached": (lambda x, y: X * 1, None, None, RuntimeError, "what upper_closure returned reaches none"),
    "no function": (3, None, None, TypeError, "upper_closure is a int"),
    "constraints": (None, None, lambda x, y: [x], TypeError, "what constraints returned is a list"),
    "other constraints": (None, None, lambda x, y: x.expand(3), ValueError, "multipliers belong to constraints"),
    "dtype": (None, None, lambda x, y: (x + y).float(), ValueError, "what constraints returned has dtype"),
    "interrupt": (lambda x, y: stop(), None, None, KeyboardInterrupt, "^$"),
}


@pytest.mark.parametrize("case", CLOSURES)
@pytest.mark.parametrize("kind", ["borep", "lvhba"])
def test_nothing_is_changed_by_a_step_that_fails(kind: str, case: str) -> None:
    upper, lower, g, error, message = CLOSURES[case]
    task = Coupled(3.0, -2.0)
    optimizer: Any = task.optimizer if kind == "lvhba" else BOREP([task.x], [task.y], period=1)
    if kind == "borep" and g is not None:
        pytest.skip("it has no constraints")

    def bound(given: Any, default: Callable[[], Tensor]) -> Any:
        return default if given is None else (lambda: given(task.x, task.y)) if callable(given) else given

    good = (task.upper, lambda: task.lower() + task.y.square(), task.g)[: 2 + (kind == "lvhba")]
    bad = [bound(*pair) for pair in zip((upper, lower, g), good, strict=False)]
    optimizer.step(*good)
    before = [task.x.item(), task.y.item(), copy.deepcopy(optimizer.state_dict())]
    with pytest.raises(error, match=message):
        optimizer.step(*bad)
    assert [task.x.item(), task.y.item()] == before[:2]
    assert str(optimizer.state_dict()) == str(before[2])


def test_a_state_of_another_class_is_refused() -> None:
    optimizer = BOREP([X], [Y])
    for other, message in (
        (torch.optim.SGD([X]), r"level of the groups: \[None\]; expected \['upper', 'lower'\]"),
        (LVHBA([X], [Y]), "the upper group of the state dict has no 'momentum'"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
    assert "penalty" not in optimizer.upper
