"""FRUGAL: oracles of its specification, selections, and what survives a save."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.optim import FRUGAL, AdamW, Lion, selections
from ferrostep.reference.frugal import down, top_directions
from tests.contract.training import assert_same_bits, copies, parameters, set_gradients, train

both = pytest.mark.parametrize("backend", ["rust", "reference"])
every_selection = pytest.mark.parametrize("selection", ["columns", "rows", "randk"])
every_choice = pytest.mark.parametrize("selection", ["columns", "rows", "randk", "block"])
G = ((1.0, -2.0, 0.5, 0.0), (3.0, 0.1, -0.2, 4.0))
SHAPES = ((5, 8), (12, 7), (3, 4, 2, 2), (9,), (), (0, 4), (4, 0), (1, 70), (600, 130))


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Any, relative: float = 1e-13) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), rtol=relative, atol=0)


@both
def test_by_hand(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([[0, 1], [0, 2]])
    monkeypatch.setattr(selections, "choose", lambda *_: torch.tensor(next(chosen), dtype=torch.int32))
    p, b = Parameter(torch.zeros(2, 4, dtype=torch.float64)), Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = FRUGAL(
        [p, b], lr=0.1, weight_decay=0.01, density=0.5, update_gap=2, state_free_lr_scale=0.5, backend=backend
    )
    expected = (
        ((-0.099999999, 0.0999999995, -0.05, 0), (-0.09999999966666667, -0.09999999, 0.05, -0.05)),
        (
            (-0.1989807246774859, 0.19898072556557508, -0.09995, 0),
            (-0.1989807258616048, -0.19898070869188184, 0.09995, -0.09995),
        ),
        (
            (-0.2987817434528084, 0.24878174484000953, -0.199850049, 0),
            (-0.29878174496907656, -0.24878172798318998, 0.1998500475, -0.14985005),
        ),
        (
            (-0.39844706486488735, 0.2985329630951695, -0.2996143016649885, 0),
            (-0.3984470666740015, -0.2985329462552068, 0.2996142988418587, -0.19970019995),
        ),
    )
    for t, now in enumerate(expected):
        p.grad, b.grad = double(G) * (1 + t / 2), double((1.0, -1.0)) * (t + 1)
        optimizer.step()
        close(p, now)
    close(b, (-0.3877709094069479, 0.3877709094069479))


@both
def test_blocks_by_hand(backend: str) -> None:
    params = [Parameter(torch.zeros(2, 2, dtype=torch.float64)) for _ in range(4)]
    own = {"selection": "block", "block_order": "descending", "update_gap": 2, "density": 0.25}
    optimizer = FRUGAL(params, lr=0.1, backend=backend, **own)
    active = []
    for t in range(10):
        for p in params:
            p.grad = torch.full_like(p, 0.5 + t)
        optimizer.step()
        active.append([i for i, p in enumerate(params) if "exp_avg" in optimizer.state.get(p, {})])
    assert active == [[3], [3], [2], [2], [1], [1], [0], [0], [3], [3]]
    found = double([p[0, 0].item() for p in params])
    torch.testing.assert_close(found, double((-1.000117, -1.000022, -0.999497, -0.991913)), rtol=0, atol=6e-7)


@both
@every_selection
def test_density_zero_is_the_sign_and_one_is_adamw(selection: str, backend: str) -> None:
    own: Any = {"lr": 1e-2, "weight_decay": 0.1, "selection": selection, "backend": backend}
    params, others = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    whole = FRUGAL(params, density=1.0, reset_state=False, update_gap=2, **own)
    train(whole, params, 5)
    train(AdamW(others, lr=1e-2, weight_decay=0.1, backend=backend), others, 5)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))

    params = parameters(SHAPES, torch.float64)
    free = FRUGAL(params, density=0.0, **own)
    expected = [p.detach().clone() for p in params]
    for step in range(3):
        set_gradients(params, step)
        expected = [q * (1 - 1e-2 * 0.1) - 1e-2 * p.grad.sign() for p, q in zip(params, expected, strict=True)]
        free.step()
    for p, q in zip(params, expected, strict=True):
        if p.ndim > 1:
            assert torch.equal(p.detach(), q)
            assert not {"exp_avg", "indices"} & free.state[p].keys()


@both
@every_selection
@pytest.mark.parametrize("inner", ["adamw", "lion", "sgdm"])
@pytest.mark.parametrize("state_free", ["sign", "sgd", "none"])
def test_first_steps_after_a_switch(selection: str, backend: str, inner: str, state_free: str) -> None:
    p = Parameter(torch.zeros(6, 10, dtype=torch.float64))
    p.grad = torch.where(torch.arange(60).reshape(6, 10) % 7 == 0, 0.0, torch.randn(6, 10, dtype=torch.float64))
    scales = {"projected_lr_scale": 0.5, "state_free_lr_scale": 0.25}
    own: Any = {"selection": selection, "inner": inner, "state_free": state_free, "update_gap": 1, **scales}
    optimizer = FRUGAL([p], lr=0.1, eps=1e-200, backend=backend, **own)
    for _ in range(3):
        before = p.detach().clone()
        optimizer.step()
        moved = before - p.detach()
        sizes = p.grad.sign() * 0.05
        averaged = {"adamw": sizes, "lion": sizes, "sgdm": p.grad * 0.05 * (1 - 0.9)}[inner]
        rest = {"sign": sizes * 0.25, "sgd": p.grad * 0.05 * 0.25, "none": torch.zeros_like(sizes)}[state_free]
        is_selected = mask_of(p, optimizer)
        assert is_selected.sum() == {"columns": 12, "rows": 20, "randk": 15}[selection]
        torch.testing.assert_close(moved, torch.where(is_selected, averaged, rest), rtol=1e-10, atol=1e-15)


def mask_of(p: Tensor, optimizer: FRUGAL) -> Tensor:
    """Which elements are selected."""
    indices, mask = optimizer.state[p]["indices"], torch.zeros(p.shape, dtype=torch.bool)
    selection = optimizer.param_groups[0]["selection"]
    if selection == "randk":
        bits = indices[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return bits.reshape(-1)[: p.numel()].bool().reshape(p.shape)
    if selection == "rows":
        mask[indices.long()] = True
    else:
        mask.reshape(p.shape[0], -1)[:, indices.long()] = True
    return mask


@every_choice
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "kahan", "split"])
def test_the_reference_agrees(selection: str, dtype: torch.dtype, rounding: str) -> None:
    if rounding == "split" and dtype == torch.float16:
        pytest.skip("split masters are for bfloat16")
    own: Any = {"rounding": rounding} if rounding != "split" else {"master_weights": "split"}
    own |= {"lr": 1e-2, "weight_decay": 0.1, "update_gap": 2, "selection": selection}
    results = []
    for backend in ("rust", "reference"):
        params = parameters(SHAPES, dtype)
        optimizer = FRUGAL(params, backend=backend, **own)
        train(optimizer, params, 5)
        results.append(copies(optimizer))
    assert results[0].keys() == results[1].keys()
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 1e-2)
    for name, expected in results[1].items():
        found = results[0][name]
        if found.dtype != torch.int16 and "comp" not in name:
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 1e-1)


@every_choice
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_save_at_any_step_changes_no_bit(selection: str, rounding: str) -> None:
    own: Any = {"lr": 1e-2, "update_gap": 3, "selection": selection, "rounding": rounding}
    params = parameters(SHAPES, torch.bfloat16)
    optimizer = FRUGAL(params, **own)
    saves = []
    for step in range(7):
        file = io.BytesIO()
        torch.save([[p.detach().clone() for p in params], optimizer.state_dict()], file)
        saves.append(file)
        set_gradients(params, step)
        optimizer.step()
    for step, file in enumerate(saves):
        file.seek(0)
        values, state = torch.load(file, weights_only=True)
        others = [Parameter(value) for value in values]
        resumed = FRUGAL(others, **own)
        resumed.load_state_dict(state)
        train(resumed, others, 7 - step, start=step)
        assert_same_bits(resumed, optimizer)
        assert resumed.param_groups[0]["refreshes"] == 3


@every_choice
def test_neither_threads_nor_the_users_random_numbers_play_a_part(selection: str) -> None:
    results = []
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            params = parameters(SHAPES, torch.bfloat16)
            optimizer = FRUGAL(params, selection=selection, update_gap=2, rounding="stochastic", seed=3)
            train(optimizer, params, 5)
            results.append(copies(optimizer))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(results[0], results[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("selection", ["columns", "rows", "randk"])
def test_choices_change_with_seed_refresh_and_place(selection: str) -> None:
    def chosen(seed: int) -> list[Tensor]:
        params = [Parameter(torch.zeros(40, 40)) for _ in range(2)]
        optimizer = FRUGAL(params, selection=selection, update_gap=1, seed=seed)
        found = []
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            found += [mask_of(p, optimizer) for p in params]
        return found

    one, again, other = chosen(1), chosen(1), chosen(2)
    assert all(map(torch.equal, one, again))
    different = [*one, *other]
    assert not any(torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    assert all(mask.sum() == 400 for mask in different)


def test_every_choice_is_as_likely() -> None:
    p = torch.zeros(1, 20)
    group = {"selection": "columns", "density": 0.25}
    counts = torch.zeros(20)
    for number in range(4000):
        indices = selections.choose(p, p, {**group, "seed": 7}, number)
        assert indices.numel() == 5
        counts[indices.long()] += 1
    # Each is binomial with mean 1000 and deviation 27.4.
    assert (counts - 1000).abs().max() < 5 * 27.4


@both
def test_gradients_that_are_none(backend: str) -> None:
    p, q = (Parameter(torch.zeros(4, 8)) for _ in range(2))
    optimizer = FRUGAL([p, q], lr=0.1, update_gap=2, backend=backend)
    q.grad = torch.ones_like(q)
    optimizer.step()  # a switch without p
    assert p not in optimizer.state
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["refresh"] == optimizer.state[q]["refresh"] == 1
    assert optimizer.state[p]["step"] == 1
    p.grad = None
    optimizer.step()
    assert (optimizer.state[p]["refresh"], optimizer.state[q]["refresh"]) == (1, 2)
    q.grad = None
    optimizer.step()
    assert optimizer.param_groups[0]["steps_left"] == 1  # a step without any gradient is none


def test_refresh_and_a_density_that_changes() -> None:
    p = Parameter(torch.zeros(4, 8))
    p.grad = torch.ones_like(p)
    optimizer = FRUGAL([p], update_gap=100)
    optimizer.step()
    first = optimizer.state[p]["indices"]
    optimizer.step()
    assert optimizer.state[p]["indices"] is first
    optimizer.refresh()
    optimizer.step()
    assert optimizer.state[p]["refresh"] == 2
    for density, shape in ((0.5, (4, 4)), (1.0, (4, 8)), (0.125, (4, 1))):
        optimizer.param_groups[0]["density"] = density
        optimizer.step()
        assert tuple(optimizer.state[p]["exp_avg"].shape) == shape
    optimizer.param_groups[0]["density"] = 0.0
    optimizer.step()
    assert "exp_avg" not in optimizer.state[p]


@pytest.mark.parametrize("reset", [True, False])
def test_a_selection_that_changes(reset: bool) -> None:
    """It is made anew at once, in square matrices, too, where as many rows as columns are selected."""
    p, q = Parameter(torch.zeros(8, 8)), Parameter(torch.zeros(8, 4))
    optimizer = FRUGAL([p, q], update_gap=100, reset_state=reset)
    for selection in ("columns", "rows", "randk", "svd", "columns", "randk", "rows", "block", "columns"):
        optimizer.param_groups[0]["selection"] = selection
        for each in (p, q):
            each.grad = torch.ones_like(each)
        optimizer.step()
        for each in (p, q) if selection != "block" else ():
            shape = selections.state_shape(each, selection, 0.25, "std")
            assert optimizer.state[each]["exp_avg"].shape == shape
            assert optimizer.state[each]["refresh"] == 1


def test_states_go_on_where_they_are_not_reset() -> None:
    p = Parameter(torch.zeros(4, 8))
    optimizer = FRUGAL([p], update_gap=1, reset_state=False)
    for step in range(1, 4):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.state[p]["step"] == step
    assert (optimizer.state[p]["exp_avg"] > 0.2).all()


def test_what_is_not_projectable_is_adamw_and_loads_from_torch() -> None:
    params, others = parameters(SHAPES), parameters(SHAPES)
    plain = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1)
    train(plain, others, 3)
    frugal = FRUGAL([{"params": params, "is_proj_params": False}], lr=1e-2, weight_decay=0.1)
    frugal.load_state_dict(plain.state_dict())
    for p, q in zip(params, others, strict=True):
        p.data.copy_(q)
    frugal.param_groups[0]["projectable"] = False
    train(frugal, params, 3, start=3)
    train(plain, others, 3, start=3)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
    plain.load_state_dict(frugal.state_dict())


@pytest.mark.parametrize("selection", ["columns", "svd"])
def test_a_failing_step_changes_nothing(selection: str) -> None:
    params = parameters(((4, 8), (3, 4)))
    optimizer = FRUGAL(params, update_gap=2, selection=selection)
    train(optimizer, params, 2)
    before, counters = copies(optimizer), dict(optimizer.param_groups[0], params=None)
    set_gradients(params, 2)
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="grad of parameter 1 in group 0 has layout"):
        optimizer.step()
    assert_same_bits(copies(optimizer), before)
    assert dict(optimizer.param_groups[0], params=None) == counters


def indices(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    def apply(state: dict[str, Any]) -> None:
        state["indices"] = change(state["indices"])

    return apply


@pytest.mark.parametrize("selection", ["columns", "rows", "randk"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (indices(lambda x: x + 8), "indices of parameter 0 in group 0 is of shape|exp_avg"),
        (indices(lambda x: x.flip(0) | 1), "indices of parameter 0 in group 0 is of shape|exp_avg"),
        (indices(torch.Tensor.long), "indices of parameter 0 in group 0 has dtype (torch.)?int64"),
        (lambda state: state.update(exp_avg=torch.zeros(4, 8)), "exp_avg of parameter 0 in group 0 has shape"),
    ],
    ids=["beyond", "falling", "int64", "shape"],
)
def test_states_that_do_not_fit(selection: str, change: Callable[[dict[str, Any]], None], message: str) -> None:
    p = Parameter(torch.zeros(6, 8))
    p.grad = torch.ones_like(p)
    optimizer = FRUGAL([p], selection=selection, density=0.3)
    optimizer.step()
    if selection == "randk":
        optimizer.state[p]["indices"][-1] |= 15  # so that every change is one of their number
    before = p.detach().clone()
    change(optimizer.state[p])
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"density": 1.5}, ValueError, "Invalid density: 1.5; expected a number from 0 to 1"),
        ({"density": -0.1}, ValueError, "Invalid density"),
        ({"density": float("nan")}, ValueError, "Invalid density"),
        ({"density": "a"}, TypeError, "density is a str, expected a number"),
        ({"update_gap": 0}, ValueError, "update_gap"),
        ({"update_gap": 1.5}, TypeError, "update_gap"),
        ({"selection": "column"}, ValueError, "selection"),
        ({"state_free": "same"}, ValueError, "state_free"),
        ({"projected_lr_scale": 0.0}, ValueError, "projected_lr_scale"),
        ({"state_free_lr_scale": -1.0}, ValueError, "state_free_lr_scale"),
        ({"block_order": "up"}, ValueError, "block_order"),
        ({"proj_side": "full"}, ValueError, "proj_side"),
        ({"densty": 0.1}, TypeError, "density"),
    ],
    ids=str,
)
def test_impossible_arguments(own: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FRUGAL(parameters(((2, 3),)), **own)


@pytest.mark.parametrize(
    "own", [{"density": 2.0}, {"update_gap": 0}, {"block_order": "up"}, {"proj_side": "full"}], ids=str
)
@pytest.mark.parametrize("selection", ["columns", "random", "block"])
def test_arguments_that_have_become_impossible(selection: str, own: dict[str, Any]) -> None:
    params = parameters(((4, 8),))
    optimizer = FRUGAL(params, selection=selection)
    train(optimizer, params, 1)
    before, counters = copies(optimizer), dict(optimizer.param_groups[0], params=None)
    optimizer.param_groups[0].update(own)
    set_gradients(params, 1)
    with pytest.raises(ValueError, match=next(iter(own))):
        optimizer.step()
    assert_same_bits(copies(optimizer), before)
    assert dict(optimizer.param_groups[0], params=None) == {**counters, **own}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_basis_of_a_gradient_that_is_to_be_skipped(value: float) -> None:
    p = Parameter(torch.ones(4, 6))
    p.grad = torch.randn(4, 6)
    p.grad[1, 2] = value
    FRUGAL([p], selection="svd", skip_nonfinite=True).step()
    assert torch.equal(p, torch.ones(4, 6))


def test_groups_may_come_as_iterators() -> None:
    p, q = parameters(((4, 8), (8,)))
    optimizer = FRUGAL({"params": iter([x]), "projectable": x.ndim > 1} for x in (p, q))
    train(optimizer, [p, q], 2)
    assert optimizer.state[p]["exp_avg"].shape == (4, 2)
    with pytest.raises(RuntimeError, match="complex"):
        FRUGAL([torch.zeros(2, 2, dtype=torch.complex64)])


def test_lion_is_the_inner_rule_of_what_is_whole() -> None:
    params, others = parameters(((9,), (5,))), parameters(((9,), (5,)))
    frugal = FRUGAL(params, lr=1e-2, betas=(0.9, 0.99), inner="lion", weight_decay=0.1)
    lion = Lion(others, lr=1e-2, weight_decay=0.1)
    train(frugal, params, 3)
    train(lion, others, 3)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("ascending", [{0, 1}, {2, 3}, {4, 0}]),
        ("descending", [{4, 3}, {2, 1}, {0, 4}]),
        ("mirror", [{0, 4}, {1, 3}, {2, 0}]),
    ],
)
def test_blocks_take_turns(order: str, expected: list[set[int]]) -> None:
    group = {"density": 0.4, "block_order": order, "seed": 0}
    assert [selections.active_tensors(5, {**group, "refreshes": n}) for n in (1, 2, 3)] == expected


def test_state_is_as_small_as_it_says() -> None:
    p = Parameter(torch.zeros(64, 96))
    p.grad = torch.ones_like(p)
    for selection, more in (("columns", 4 * 24), ("rows", 4 * 16), ("randk", 64 * 96 // 8)):
        optimizer = FRUGAL([p], selection=selection)
        optimizer.step()
        tensors = [x for x in optimizer.state[p].values() if isinstance(x, Tensor)]
        assert sum(x.nbytes for x in tensors) == 64 * 96 * 2 + more + 4


def test_a_subspace_by_hand() -> None:
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for grad in (g, g.mT.contiguous()):
        p = Parameter(torch.zeros_like(grad))
        p.grad = grad
        FRUGAL([p], lr=0.1, eps=0.0, selection="svd", density=0.34).step()
        b = torch.linalg.svd(g).Vh[:1]
        expected = -0.1 * ((g @ b.mT).sign() @ b + (g - g @ b.mT @ b).sign())
        close(p if grad is g else p.mT, expected, 1e-10)


@pytest.mark.parametrize("selection", ["svd", "random"])
def test_a_subspace_that_holds_all_leaves_no_rest(selection: str) -> None:
    g = torch.outer(torch.arange(1.0, 7.0), torch.tensor([1.0, -2.0, 0.5, 3.0]))
    p = Parameter(torch.zeros(6, 4))
    p.grad = g.clone()
    FRUGAL([p], lr=1e-30, selection=selection, density=0.5, state_free_lr_scale=1e30).step()
    assert torch.equal(p.grad, g)
    assert p.abs().max() < 1e-20 if selection == "svd" else p.abs().max() == 1


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
def test_the_subspace_holds_as_much_as_the_exact_one(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(96, 200, generator=generator)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    g = u * (s * torch.exp(-decay * torch.arange(96.0))) @ v
    for is_right in (False, True):
        basis = top_directions(g, 24, generator, is_right)
        captured = down(g, basis, is_right).square().sum()
        exact = torch.linalg.svdvals(g)[:24].square().sum()
        assert captured >= 0.99 * exact
        square = basis @ basis.mT if is_right else basis.mT @ basis
        torch.testing.assert_close(square, torch.eye(24), atol=1e-5, rtol=0)


@pytest.mark.parametrize("selection", ["svd", "random"])
@pytest.mark.parametrize(
    ("side", "on_right"),
    [("std", (False, True)), ("reverse_std", (True, False)), ("right", (True, True)), ("left", (False, False))],
)
def test_sides_of_a_matrix(selection: str, side: str, on_right: tuple[bool, bool]) -> None:
    """Of a matrix wider than high, and of one higher than wide."""
    params = parameters(((4, 12), (12, 4)))
    own: Any = {"selection": selection, "proj_side": side, "density": 0.5, "update_gap": 2}
    optimizer = FRUGAL(params, lr=0.1, **own)
    train(optimizer, params, 3)
    for p, is_right in zip(params, on_right, strict=True):
        rows, columns = p.shape
        state = optimizer.state[p]
        assert state["basis"].shape == ((2, columns) if is_right else (rows, 2))
        assert state["exp_avg"].shape == ((rows, 2) if is_right else (2, columns))


@pytest.mark.parametrize("selection", ["svd", "random"])
def test_subspaces_are_saved_and_change(selection: str) -> None:
    params, others = parameters(SHAPES), parameters(SHAPES)
    own: Any = {"selection": selection, "update_gap": 2, "lr": 1e-2, "density": 0.3}
    one, other = FRUGAL(params, **own), FRUGAL(others, **own)
    train(one, params, 3)
    first = one.state[params[0]]["basis"].clone()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    train(one, params, 3, start=3)
    train(other, others, 3, start=3)
    assert_same_bits(one, other)
    assert not torch.equal(first, one.state[params[0]]["basis"])
    with pytest.raises(RuntimeError, match="runs in plain torch and excludes backend='rust'"):
        FRUGAL(params, backend="rust", **own)


def test_galore_is_a_setting() -> None:
    """Adam in the subspace of the first singular directions, moments kept (arXiv 2403.03507, Algorithm 2)."""
    p = Parameter(torch.zeros(8, 5, dtype=torch.float64))
    setting: Any = {"selection": "svd", "state_free": "none", "reset_state": False, "projected_lr_scale": 0.25}
    optimizer = FRUGAL([p], lr=0.01, density=0.4, update_gap=2, **setting)
    expected, m, v = torch.zeros_like(p), 0.0, 0.0
    for t in range(1, 6):
        g = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        p.grad = g
        optimizer.step()
        if t % 2 == 1:
            b = torch.linalg.svd(g).Vh[:2]
            # Signs of singular vectors are anyone's: those that were chosen.
            b = b * (b * optimizer.state[p]["basis"]).sum(1, keepdim=True).sign()
        low = g @ b.mT
        m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        expected = expected - 0.25 * 0.01 * step @ b
        close(p, expected, 1e-6)
