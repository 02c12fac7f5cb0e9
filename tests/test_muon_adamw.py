"""MuonAdamW: both rules from one learning rate, the caller's groups, what it is given, and its errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import lr_scheduler

from ferrostep.optim import AdamW, Muon, MuonAdamW
from tests.contract.snapshot import Snapshot


class Model(nn.Module):
    """An embedding, a convolution, hidden matrices, experts, a norm and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.experts = Parameter(torch.randn(2, 8, 8))
        self.second = nn.Linear(8, 8, bias=False)
        self.score = nn.Linear(8, 5)


MUON = {"first.weight": "error", "conv.weight": "flatten", "experts": "batch", "second.weight": "error"}


def set_gradients(model: nn.Module, step: int) -> None:
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def layouts(optimizer: MuonAdamW) -> dict[str, str]:
    return {route.name: route.layout for route in optimizer.routes if route.layout is not None}


@pytest.mark.smoke
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_muon_and_adamw_with_one_learning_rate(backend: str) -> None:
    together, apart = Model(), Model()
    train(together, MuonAdamW(together, lr=1e-2, eps=1e-7, backend=backend), range(4))
    named = dict(apart.named_parameters())
    common = {"lr": 1e-2, "weight_decay": 0.1, "backend": backend}
    groups = [{"params": [named.pop(name)], "ndim_policy": layout} for name, layout in MUON.items()]
    muon = Muon(groups, momentum=0.95, adjust_lr_fn="match_rms_adamw", **common)
    adamw = AdamW(named.values(), betas=(0.95, 0.95), eps=1e-7, **common)
    for step in range(4):
        set_gradients(apart, step)
        muon.step()
        adamw.step()
    assert same(together, apart)


GIVEN: dict[str, Callable[[nn.Module], Any]] = {
    "the model": lambda model: model,
    "its parameters": lambda model: model.parameters(),
    "its named parameters": lambda model: model.named_parameters(),
    "pairs": lambda model: list(model.named_parameters()),
    "groups of pairs": lambda model: [{"params": list(model.named_parameters()), "lr": 0.1}],
    "a group of the model": lambda model: [{"params": model}],
    "a group of its parameters": lambda model: [{"params": model.parameters()}],
    "names in a group": lambda model: [
        {"params": list(model.parameters()), "param_names": [name for name, _ in model.named_parameters()]}
    ],
}


@pytest.mark.parametrize("given", GIVEN)
def test_what_has_names_is_routed_by_them(given: str) -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = MuonAdamW(GIVEN[given](model))
    assert layouts(optimizer) == MUON
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    before = weights(model)
    train(model, optimizer, range(1))
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_a_generator_that_has_begun_is_a_list() -> None:
    params = Model().parameters()
    next(params)
    with pytest.warns(UserWarning, match="without names"):
        MuonAdamW(params)


def unnamed(*shapes: tuple[int, ...]) -> list[Parameter]:
    return [Parameter(torch.ones(shape)) for shape in shapes]


UNNAMED = (
    # shapes, and which of them go to Muon
    (((8, 4), (8,), (8, 8), (8,), (2, 8)), [2]),
    (((8, 4), (8,), (2, 8)), [0]),
    (((4, 4),), [0]),
    (((8, 8), (50_000, 4000), (4000, 50_000), (8, 8)), [2]),
    (((8, 8), (64, 2), (2, 64), (8, 8), (8, 8)), [3]),
    (((8, 3, 3, 3), (8, 8, 3, 3), (8, 1, 3, 3), (8, 8, 3), (2, 8)), [1]),
)


@pytest.mark.parametrize(("shapes", "expected"), UNNAMED, ids=str)
def test_what_has_no_names_is_routed_by_shape_and_order(
    shapes: tuple[tuple[int, ...], ...], expected: list[int]
) -> None:
    params = [Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    with pytest.warns(UserWarning, match=r"without names.*the model or its named_parameters\(\)"):
        optimizer = MuonAdamW(params)
    assert [i for i, route in enumerate(optimizer.routes) if route.optimizer == "Muon"] == expected


def test_groups_stay_as_they_are_with_arguments_of_their_own() -> None:
    model, expected = Model(), Model()
    names = [name for name, _ in model.named_parameters()]
    parts = names[:3], names[3:6], names[6:]
    extra = {"lr": 0.05, "name": "mine"}, {"weight_decay": 0.0, "use_muon": False}, {"rounding": "stochastic"}

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        named = dict(model.named_parameters())
        return [{"params": [(n, named[n]) for n in part], **own} for part, own in zip(parts, extra, strict=True)]

    optimizer = MuonAdamW(groups(model), lr=1e-2)
    assert [(g["lr"], g["weight_decay"], g["use_muon"]) for g in optimizer.param_groups] == [
        (0.05, 0.1, None),
        (1e-2, 0.0, False),
        (1e-2, 0.1, None),
    ]
    assert optimizer.param_groups[0]["name"] == "mine"
    train(model, optimizer, range(3))
    routes = {route.name: route for route in optimizer.routes}
    assert routes["conv.weight"].reason == "the group says use_muon=False"
    by_hand = [
        {
            "params": [(n, p)],
            **own,
            "use_muon": routes[n].layout is not None,
            "ndim_policy": routes[n].layout and "batch" if p.ndim == 3 else None,
        }
        for part, own in zip(parts, extra, strict=True)
        for n, p in ((n, dict(expected.named_parameters())[n]) for n in part)
    ]
    train(expected, MuonAdamW(by_hand, lr=1e-2), range(3))
    assert same(model, expected)


@pytest.mark.filterwarnings("ignore:MuonAdamW got parameters without names")
def test_groups_added_later_are_routed_by_themselves() -> None:
    model = Model()
    optimizer = MuonAdamW(model.first.named_parameters())
    optimizer.add_param_group({"params": model.embed.named_parameters(), "lr": 0.5})
    optimizer.add_param_group({"params": list(model.second.named_parameters())})
    assert [route.optimizer for route in optimizer.routes] == ["Muon", "AdamW", "AdamW", "Muon"]
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"param 0 of group 3 \(bias\) has shape \[8\]"):
        optimizer.add_param_group({"params": [("bias", model.norm.bias)], "use_muon": True})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model.second.named_parameters()})
    before.assert_unchanged()
    assert len(optimizer.routes) == 4
    optimizer.add_param_group({"params": model.score.named_parameters(), "use_muon": False})
    set_gradients(model, 0)
    optimizer.step()


def test_one_cycle_reaches_muons_momentum_and_adamws_first_beta() -> None:
    model, expected = Model(), Model()
    optimizer, by_hand = MuonAdamW(model), MuonAdamW(expected)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.01, 6)
    momenta = set()
    for step in range(5):
        (group,) = optimizer.param_groups
        by_hand.param_groups[0].update(lr=group["lr"], betas=(group["betas"][0], 0.95))
        momenta.add(group["betas"][0])
        set_gradients(model, step)
        set_gradients(expected, step)
        optimizer.step()
        by_hand.step()
        scheduler.step()
    assert len(momenta) > 2
    assert same(model, expected)


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_to_the_bit(how: str) -> None:
    model = Model()
    optimizer = MuonAdamW(model, normalize="normuon")
    train(model, optimizer, range(2))
    if how == "state_dict":
        resumed = copy.deepcopy(model)
        again = MuonAdamW(resumed, lr=1.0, normalize="normuon")
        again.load_state_dict(optimizer.state_dict())
    elif how == "pickle":
        resumed, again = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        resumed, again = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(2, 4))
    train(resumed, again, range(2, 4))
    assert same(model, resumed)
    assert again.routes == optimizer.routes


def test_a_checkpoint_of_another_routing_is_refused() -> None:
    model = Model()
    optimizer = MuonAdamW(model)
    train(model, optimizer, range(1))
    other = MuonAdamW(model, exclude=("first",))
    with pytest.raises(KeyError, match="state of parameter 2 in group 0 has momentum_buffer, but no exp_avg"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    with pytest.raises(ValueError, match="parameter group"):
        MuonAdamW([{"params": [each]} for each in model.named_parameters()]).load_state_dict(optimizer.state_dict())


def test_patterns_move_parameters() -> None:
    optimizer = MuonAdamW(Model().parameters(), exclude=("sec*",), include=("score",))
    assert layouts(optimizer).keys() == {"first.weight", "conv.weight", "experts", "score.weight"}
    with pytest.raises(ValueError, match="exclude and include are patterns of names"):
        MuonAdamW(list(Model().parameters()), exclude=("first",))


def test_state_dtypes_of_both_rules() -> None:
    model = Model()
    optimizer = MuonAdamW(model, state_dtype={"momentum_buffer": torch.bfloat16, "exp_avg": torch.bfloat16})
    train(model, optimizer, range(1))
    assert {n: t.dtype for state in optimizer.state.values() for n, t in state.items()} == {
        "momentum_buffer": torch.bfloat16,
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.float32,
        "step": torch.float32,
    }


def test_an_error_in_one_part_changes_neither() -> None:
    model = Model()
    optimizer = MuonAdamW(model)
    train(model, optimizer, range(1))
    set_gradients(model, 1)
    optimizer.state[model.score.weight]["exp_avg"] = torch.zeros(3)
    position = [name for name, _ in model.named_parameters()].index("score.weight")
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=f"exp_avg of parameter {position} in group 0"):
        optimizer.step()
    before.assert_unchanged()


EDITS: dict[str, Callable[[list[Tensor]], Any]] = {
    "taken out": lambda params: params.pop(0),
    "in another order": lambda params: params.reverse(),
    "in another's place": lambda params: params.__setitem__(1, Parameter(params[1].detach().clone())),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_parameter_keeps_its_route_when_its_group_is_edited(
    edit: Callable[[list[Tensor]], Any], steps_before: int
) -> None:
    """As whoever freezes a layer does, or a trainer that replaces parameters to shard them."""
    model = Model()
    optimizer = MuonAdamW(model)
    train(model, optimizer, range(steps_before))
    expected = {p: route.name for p, route in zip(model.parameters(), optimizer.routes, strict=True)}
    before = list(model.parameters())
    params = optimizer.param_groups[0]["params"]
    edit(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, route in zip(params, optimizer.routes, strict=True):
        assert route.name == expected.get(p, expected[before[1]])
        assert ("momentum_buffer" in optimizer.state[p]) == (route.name in MUON)


def test_parameters_keep_their_routes_when_a_group_before_them_goes() -> None:
    model = Model()
    groups = [{"params": [each]} for each in model.named_parameters()]
    optimizer = MuonAdamW(groups)
    names = [route.name for route in optimizer.routes]
    optimizer.param_groups.pop(0)
    assert [route.name for route in optimizer.routes] == names[1:]
    train(model, optimizer, range(1))
    for name, p in list(model.named_parameters())[1:]:
        assert ("momentum_buffer" in optimizer.state[p]) == (name in MUON)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda groups: groups[0]["params"].append(Parameter(torch.ones(3, 3))),
            r"parameter 11 in group 0 has come",
        ),
        (
            lambda groups: groups[0]["params"].__setitem__(0, Parameter(torch.ones(1))),
            r"parameter 0 in group 0 has come",
        ),
        (
            lambda groups: groups.append({**groups[0], "params": [Parameter(torch.ones(3))]}),
            r"parameter 0 in group 1 has",
        ),
        (lambda groups: groups[0].update(use_muon=False), r"group 0 says use_muon=False since the optimizer routed"),
    ],
    ids=["appended", "another shape", "another group", "use_muon"],
)
def test_what_was_not_routed_is_refused(edit: Callable[[list[dict[str, Any]]], Any], message: str) -> None:
    model = Model()
    optimizer = MuonAdamW(model)
    edit(optimizer.param_groups)
    set_gradients(model, 0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


BAD: tuple[tuple[str, Callable[[], Any], dict[str, Any], type[Exception], str], ...] = (
    ("no matrix", lambda: unnamed((3,), (4,)), {}, ValueError, r"nothing for Muon among 2 parameters \(1 dimension\)"),
    ("a model without matrices", lambda: nn.LayerNorm(3), {}, ValueError, r"nothing for Muon .*\(norm\)"),
    ("only an embedding", lambda: nn.Embedding(3, 4), {}, ValueError, r"nothing for Muon .*\(embedding\)"),
    ("no parameters", list, {}, ValueError, "empty parameter list"),
    ("a model without parameters", nn.Tanh, {}, ValueError, "empty parameter list"),
    ("a tensor", lambda: torch.ones(3, 3), {}, TypeError, "params is a Tensor, expected a module"),
    ("a set", lambda: set(unnamed((3, 3))), {}, TypeError, "params of group 0 is a set"),
    ("no tensor", lambda: [3.0], {}, TypeError, "can only optimize Tensors, but param 0 of group 0 is float"),
    ("no group", lambda: [{"params": unnamed((3, 3))}, 3], {}, TypeError, "param group 1 is a int, expected a dict"),
    ("no params", lambda: [{"lr": 0.1}], {}, KeyError, "param group 0 has no 'params'"),
    (
        "half of the names",
        lambda: [{"params": unnamed((3, 3), (3, 3)), "param_names": ["a"]}],
        {},
        ValueError,
        "group 0 has 1 names, expected one for each of 2 params",
    ),
    (
        "a vector for Muon",
        lambda: [{"params": unnamed((3, 3))}, {"params": unnamed((3, 3), (3,)), "use_muon": True}],
        {},
        ValueError,
        r"param 1 of group 1 \(1\.1\) has shape \[3\], expected a matrix, as the group says use_muon=True$",
    ),
    (
        "a cube for Muon",
        lambda: [{"params": [("cube", Parameter(torch.ones(2, 3, 3)))], "use_muon": True}],
        {},
        ValueError,
        r"param 0 of group 0 \(cube\) has shape \[2, 3, 3\].*use_muon=True and no ndim_policy",
    ),
    ("use_muon", lambda: unnamed((3, 3)), {"use_muon": 1}, TypeError, "use_muon of group 0 is a int, expected a bool"),
    (
        "ndim_policy",
        lambda: [{"params": unnamed((3, 3)), "ndim_policy": "error"}],
        {},
        ValueError,
        "Invalid ndim_policy of group 0: 'error'; expected None, 'flatten' or 'batch'",
    ),
    ("lr", lambda: unnamed((3, 3)), {"lr": "1e-3"}, TypeError, "str"),
    ("a group's lr", lambda: [{"params": unnamed((3, 3)), "lr": "1e-3"}], {}, TypeError, "str"),
    ("negative lr", lambda: unnamed((3, 3)), {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    ("momentum", lambda: unnamed((3, 3)), {"momentum": 0.9}, TypeError, "unexpected keyword argument 'momentum'"),
    (
        "a group's momentum",
        lambda: [{"params": unnamed((3, 3))}, {"params": unnamed((3, 3)), "momentum": 0.9}],
        {},
        TypeError,
        "param group 1 got an unexpected argument 'momentum'; there are lr, betas",
    ),
    ("a pattern", lambda: nn.Linear(3, 3), {"exclude": "head"}, TypeError, "exclude is the str 'head'"),
    (
        "no patterns",
        lambda: nn.Linear(3, 3),
        {"include": None},
        TypeError,
        "include is a NoneType, expected a sequence",
    ),
    ("no pattern", lambda: nn.Linear(3, 3), {"exclude": ["a", 1]}, TypeError, r"exclude\[1\] is a int, expected a str"),
    ("nothing", lambda: None, {}, TypeError, "params is a NoneType, expected a module"),
    ("no name", lambda: [(None, *unnamed((3, 3)))], {}, TypeError, "name of param 0 of group 0 is a NoneType"),
    ("a lazy module", lambda: nn.LazyLinear(3), {}, RuntimeError, "param 0 of group 0 is of a lazy module .* run the"),
    (
        "complex",
        lambda: [{"params": [Parameter(torch.ones(3, 3, dtype=torch.complex64))], "use_muon": True}],
        {},
        RuntimeError,
        "MuonAdamW does not support complex parameters",
    ),
    ("adjust_lr_fn", lambda: unnamed((3, 3)), {"adjust_lr_fn": "no"}, ValueError, "Adjust learning rate function no"),
)


@pytest.mark.filterwarnings("ignore:MuonAdamW got parameters without names")
@pytest.mark.parametrize(("make", "arguments", "error", "message"), [each[1:] for each in BAD], ids=[e[0] for e in BAD])
def test_bad_input(make: Callable[[], Any], arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MuonAdamW(make(), **arguments)


def test_a_group_may_have_no_parameters() -> None:
    """As the share of a process may be that ``ZeroRedundancyOptimizer`` gives parameters to."""
    MuonAdamW([{"params": [], "lr": 0.1}]).step()
