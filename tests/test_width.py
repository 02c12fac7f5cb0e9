"""Width rules: who gets what; singular values against torch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ferrostep import optim, reference
from ferrostep.demo.model import GPT, Shape
from ferrostep.optim import gain_invariance, top_singular_values, width_scaled_param_groups

BASE: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def gpt(width: int) -> GPT:
    return GPT(Shape(context=8, width=width, heads=2, layers=2))


def kinds(groups: optim.WidthScaledParamGroups) -> dict[str, str]:
    return {route.name: route.optimizer for route in groups.routes}


@pytest.mark.parametrize(
    ("rule", "weight_decay"), [("sqrt", 0.2), ("linear", 0.4), ("none", 0.1)], ids=["sqrt", "linear", "none"]
)
def test_the_papers_example(rule: Any, weight_decay: float) -> None:
    with torch.device("meta"):
        model = nn.Linear(1024, 1024)
    matrix, bias = width_scaled_param_groups(model, 256, **BASE, rule=rule)
    assert (matrix["lr"], matrix["weight_decay"]) == (2.5e-3, weight_decay)
    assert (bias["lr"], bias["weight_decay"]) == (1e-2, 0.0)
    if rule == "sqrt":  # what the rule keeps
        for lr, decay, width in ((1e-2, 0.1, 256), (matrix["lr"], matrix["weight_decay"], 1024)):
            assert math.isclose(math.sqrt(lr / decay) * width**0.75, 20.23857702507763, rel_tol=1e-14)


@pytest.mark.parametrize("by", ["width", "shapes", "names and shapes"])
@pytest.mark.parametrize("make", [mlp, gpt])
def test_widths_and_shapes_tell_the_same(make: Any, by: str) -> None:
    model, base = make(64), make(16)
    shapes: Any = base if by == "shapes" else {name: list(p.shape) for name, p in base.named_parameters()}
    how: Any = {"base_width": 16} if by == "width" else {"base_shapes": shapes}
    found = kinds(width_scaled_param_groups(model, **how, **BASE))
    hidden = {"2.weight"} if make is mlp else {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attention.qkv", "attention.out", "up", "down")
    }  # fmt: skip
    assert {name for name, kind in found.items() if kind == "matrix x4"} == hidden
    assert {kind for name, kind in found.items() if name not in hidden} == {"vector-like"}


def test_a_model_as_wide_as_the_narrow_one_has_its_rates() -> None:
    ways: list[dict[str, Any]] = [{"base_width": 16}, {"base_shapes": gpt(16)}]
    for how in ways:
        groups = width_scaled_param_groups(gpt(16), **how, **BASE, vector_weight_decay=0.01)
        assert {(group["name"], group["lr"], group["weight_decay"]) for group in groups} == {
            ("matrix x1", 1e-2, 0.1),
            ("vector-like", 1e-2, 0.01),
        }


def test_fan_in_is_where_the_layer_has_it() -> None:
    def model(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, a, 3), nn.Conv2d(a, b, 3), nn.ConvTranspose2d(b, a, 3), nn.Conv2d(a, 3, 3))

    found = kinds(width_scaled_param_groups(model(8, 12), base_shapes=model(4, 4), **BASE))
    weights = [found[f"{i}.weight"] for i in range(4)]
    assert weights == ["vector-like", "matrix x2", "matrix x3", "vector-like"]


def test_tied_weights_come_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    found = kinds(width_scaled_param_groups(model, 4, **BASE))
    assert found == {"embed.weight": "vector-like", "body.weight": "matrix x2", "body.bias": "vector-like"}


def test_optimizers_take_the_groups() -> None:
    for make in (torch.optim.AdamW, optim.AdamW, optim.Lion):
        optimizer = make(width_scaled_param_groups(mlp(32), 8, **BASE))
        assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-2, 0.0), (2.5e-3, 0.2)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        assert scheduler.get_last_lr() == [5e-3, 1.25e-3]


@pytest.mark.parametrize(
    ("adjust", "expected"), [(None, (0.02, 0.3)), ("original", (0.02, 0.3)), ("match_rms_adamw", (0.01, 0.6))]
)
def test_muon_keeps_its_rates_where_its_steps_do_not_grow(adjust: Any, expected: tuple[float, float]) -> None:
    muon = {"lr": 0.02, "weight_decay": 0.3, "adjust_lr_fn": adjust}
    groups = width_scaled_param_groups(gpt(64), 16, **BASE, muon=muon)
    optimizer = optim.MuonWithAuxAdamW(groups)
    found = {g["use_muon"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {True: expected, False: (1e-2, 0.0)}


@pytest.mark.parametrize("width", [16, 48])
def test_orthogonal_steps_settle_at_the_same_gain_at_any_width(width: int) -> None:
    """What Muon's factors are derived from."""
    generator = torch.Generator().manual_seed(0)
    w, lr, weight_decay = torch.zeros(width, width), 0.02, 0.5
    for _ in range(4 * int(1 / (lr * weight_decay))):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator))
        w = w * (1 - lr * weight_decay) - lr * q * r.diagonal().sign()  # without which signs are not random
    assert 0.85 < torch.linalg.matrix_norm(w, 2).item() / math.sqrt(2 * lr / weight_decay) < 1.05


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Invalid base_width and base_shapes: neither; expected one of them"),
        ({"base_width": 4, "base_shapes": {}}, ValueError, "Invalid base_width and base_shapes: both"),
        ({"base_width": 0}, ValueError, "Invalid base_width: 0"),
        ({"base_width": 4.0}, TypeError, "base_width is a float, expected an integer"),
        ({"base_width": 4, "rule": "root"}, ValueError, "Invalid rule: 'root'; expected 'sqrt', 'linear' or 'none'"),
        ({"base_width": 4, "lr": -1.0}, ValueError, "Invalid lr: -1.0"),
        ({"base_width": 4, "weight_decay": math.nan}, ValueError, "Invalid weight_decay: nan"),
        ({"base_width": 4, "width": 0}, ValueError, "Invalid width: 0"),
        ({"base_shapes": {}}, ValueError, "base_shapes has no '0.weight', which the model has"),
        ({"base_shapes": {"0.weight": [3]}}, ValueError, r"\['0.weight'\] has shape \[3\], expected 2 dimensions"),
        ({"base_shapes": [3]}, TypeError, "base_shapes is a list, expected a module, or a dict"),
        ({"base_shapes": {}, "width": 3}, ValueError, "Invalid width: 3; expected None with base_shapes"),
        ({"base_shapes": {"0.weight": [4, 3], "0.bias": [4], "2.weight": [0, 0]}}, ValueError, "no side of length 0"),
        ({"base_width": 4, "muon": True}, TypeError, "muon is a bool, expected a dict"),
        ({"base_widht": 3}, TypeError, "did you mean 'base_width'"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        width_scaled_param_groups(mlp(8), **{**BASE, **arguments})


def test_sides_that_tell_no_width() -> None:
    two = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 2))
    with pytest.raises(ValueError, match="the most frequent sides of its matrices are 64 and 256"):
        width_scaled_param_groups(two, 16, **BASE)
    assert kinds(width_scaled_param_groups(two, 16, **BASE, width=64))["1.weight"] == "matrix x4"
    with pytest.raises(ValueError, match="got no parameters"):
        width_scaled_param_groups(nn.ReLU(), 16, **BASE)


def of(matrix: Tensor) -> list[tuple[str, Tensor]]:
    return [("w", matrix)]


def test_singular_values_of_two_by_two() -> None:
    found = top_singular_values(of(torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)))["w"]
    assert math.isclose(found.value, 6.708203932499369, rel_tol=1e-14) and found.steps <= 2
    assert math.isclose(found.stable_rank, 50 / 45, rel_tol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["rows", "columns", "convolution"])
def test_singular_values_are_those_of_torch(dtype: torch.dtype, layout: str) -> None:
    matrix = torch.randn(64, 36, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = torch.linalg.svdvals(matrix.double())
    given = {"rows": matrix, "columns": matrix.T, "convolution": matrix.view(64, 4, 3, 3)}[layout]
    found = top_singular_values(of(given), iters=200, tol=0.0)["w"]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert math.isclose(found.value, exact[0].item(), rel_tol=tolerance)
    assert math.isclose(found.stable_rank, (exact.square().sum() / exact[0] ** 2).item(), rel_tol=10 * tolerance)


def test_the_kernel_does_what_the_reference_does() -> None:
    matrix = torch.randn(50, 70, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.ones(70, dtype=torch.float64)
    for steps, tolerance in ((1, 0.0), (7, 0.0), (50, 1e-2)):
        ours, theirs = start.clone(), start.clone()
        found = optim.singular.largest(matrix, ours, steps, tolerance)
        expected = reference.top_singular_value(matrix, theirs, steps=steps, tolerance=tolerance)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close((ours @ theirs).abs().item(), 1.0)


def test_what_was_found_before_is_where_the_next_call_begins() -> None:
    model = mlp(64)
    first = top_singular_values(model, iters=60, tol=1e-6)
    again = top_singular_values(model, initial=first)
    assert again["2.weight"].steps < first["2.weight"].steps
    assert all(math.isclose(again[name].value, first[name].value, rel_tol=1e-4) for name in first)
    once = top_singular_values(model, iters=1, initial=first)  # then without more
    assert all(math.isclose(once[name].value, first[name].value, rel_tol=1e-6) for name in first)


@pytest.mark.parametrize("columns", [1, 2, 500])
def test_a_vector_that_is_no_longer_the_first_does_not_hold_the_search(columns: int) -> None:
    values = torch.linspace(0.0, 0.5, columns)
    values[0] = 1.0
    before = top_singular_values(of(torch.diag(values)), iters=60)
    assert math.isclose(before["w"].value, 1.0, rel_tol=1e-6)
    values[-1] = 1.2
    found = top_singular_values(of(torch.diag(values)), iters=60, initial=before)["w"]
    assert math.isclose(found.value, 1.2, rel_tol=1e-5)
    turned = optim.SingularValues(before, {"w": -before.vectors["w"]})
    assert math.isclose(top_singular_values(of(torch.diag(values)), 60, initial=turned)["w"].value, 1.2, rel_tol=1e-5)


def test_gains_and_ratios() -> None:
    base, wide = mlp(16), mlp(16)
    with torch.no_grad():
        for p, q in zip(wide.parameters(), base.parameters(), strict=True):
            p.copy_(q * 2)
    groups = width_scaled_param_groups(base, 16, lr=0.4, weight_decay=0.1)
    narrow = top_singular_values(base, 50, param_groups=groups)
    assert narrow["2.weight"].gain == narrow["2.weight"].value / 2
    assert math.isnan(narrow["0.weight"].gain)  # of a group without weight decay
    table = gain_invariance(narrow, top_singular_values(wide, 50))
    assert all(math.isclose(each.ratio, 2.0, rel_tol=1e-5) for each in table)
    assert table.outside() == ["0.weight", "2.weight", "4.weight"] and table.outside(1.1) == []
    assert str(table).splitlines()[1].endswith("2.000")


def known(element: complex, dtype: torch.dtype = torch.float32) -> optim.SingularValues:
    return optim.SingularValues({}, {"w": torch.full((2,), element, dtype=dtype)})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: top_singular_values(nn.ReLU()), ValueError, "got no matrices"),
        (lambda: top_singular_values(mlp(4), iters=0), ValueError, "Invalid iters: 0"),
        (lambda: top_singular_values(mlp(4), tol=-1.0), ValueError, "Invalid tol: -1.0"),
        (lambda: top_singular_values(mlp(4), initial={}), TypeError, "initial is a dict, expected what top_sing"),  # type: ignore[arg-type]
        (lambda: top_singular_values(mlp(4), param_groups=[{}]), TypeError, r"param_groups\[0\] is a dict, expected a"),
        (lambda: top_singular_values(of(torch.eye(2).to_sparse())), RuntimeError, "parameter 'w' has layout torch.sp"),
        (lambda: top_singular_values(of(torch.full((2, 2), math.nan))), ValueError, "squared norm of .* is nan"),
        (lambda: top_singular_values(of(torch.eye(2).double() * 1e200)), ValueError, "squared norm of .* is inf"),
        (lambda: top_singular_values(of(torch.eye(2)), initial=known(0.0)), ValueError, "initial's vector of 'w'"),
        (lambda: top_singular_values(of(torch.eye(2)), initial=known(math.nan)), ValueError, "initial's vector of 'w'"),
        (
            lambda: top_singular_values(of(torch.eye(2)), initial=known(1j, torch.complex64)),
            ValueError,
            "initial's vector of 'w' has dtype torch.complex64",
        ),
        (
            lambda: gain_invariance(top_singular_values(mlp(4)), top_singular_values(nn.Linear(2, 2))),
            ValueError,
            "only one of both has '0.weight'",
        ),
    ],
)  # fmt: skip
def test_bad_singular_values(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_matrix_of_zeros_has_none() -> None:
    found = top_singular_values(of(torch.zeros(3, 4)))["w"]
    assert (found.value, found.residual, found.stable_rank) == (0.0, 0.0, 0.0)
