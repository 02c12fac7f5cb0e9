"""The O-DICE agent: its losses, every choice trained for real, exact resumption, imitation, and bad data."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferrostep.optim import AdamW, Muon
from ferrostep.rl import ODICE, Transitions
from ferrostep.rl.odice import conjugate, weight

SMALL: dict[str, Any] = {"value_hidden": (32, 32), "policy_hidden": (32, 32)}


def walk(rows: int = 400, seed: int = 0) -> Transitions:
    """A point on a line: the action moves it, the reward is high near 0."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(rows, 1, generator=generator) - 1
    action = 2 * torch.rand(rows, 1, generator=generator) - 1
    following = (x + 0.3 * action).clamp(-1, 1)
    return Transitions(x, action, -following[:, 0].abs(), following, torch.zeros(rows))


def arrays(rows: int = 10) -> dict[str, Any]:
    data = walk(rows)
    return {
        "observations": data.observations.numpy().copy(),
        "actions": data.actions.numpy().copy(),
        "rewards": data.rewards.numpy().copy(),
        "next_observations": data.next_observations.numpy().copy(),
        "terminals": np.zeros(rows, bool),
    }


@pytest.mark.smoke
def test_conjugates_and_weights() -> None:
    x = torch.tensor([-3.0, -2, -1, 0, 2], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        conjugate("pearson_chi2", x).detach(), torch.tensor([-1, -1, -0.75, 0, 3], dtype=torch.float64)
    )
    # The weight of the paper is the slope of the conjugate.
    for divergence in ("pearson_chi2", "reverse_kl"):
        (slope,) = torch.autograd.grad(conjugate(divergence, x).sum(), x)
        torch.testing.assert_close(weight(divergence, x.detach(), form="paper"), slope)
    assert torch.equal(weight("pearson_chi2", x.detach()), x.detach().clamp(min=0))


def official_step(
    agent: ODICE,
    value: nn.Module,
    target: nn.Module,
    policy: Any,
    adams: list[torch.optim.Optimizer],
    batch: Transitions,
) -> tuple[Tensor, float]:
    """One update by the formulas of the paper and its code, on flat vectors: the weights and eta * kappa."""
    s, a, r, s2, terminal = vars(batch).values()
    chi2 = agent.divergence == "pearson_chi2"

    def conjugate_of(x: Tensor) -> Tensor:
        return torch.where(x < -2, -torch.ones_like(x), x + x * x / 4) if chi2 else torch.exp(x - 1)

    def flat_gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])

    params, discount = list(value.parameters()), (1 - terminal) * 0.9
    v, v2 = value(s), value(s2)
    with torch.no_grad():
        least, least2 = torch.minimum(*target(s)), torch.minimum(*target(s2))
    e_forward, e_backward = 3 * r + discount * least2 - v, 3 * r + discount * v2 - least
    kept = flat_gradient(0.3 * v.mean())
    forward, backward = (flat_gradient(0.7 * conjugate_of(e).mean()) for e in (e_forward, e_backward))
    backward = 0.8 * backward
    kappa = forward @ backward / (forward @ forward).clamp(min=1e-10)
    gradient = {
        "orthogonal": kept + forward + backward - kappa * forward,
        "semi": kept + forward,
        "true": kept + flat_gradient(0.7 * conjugate_of(3 * r + discount * v2 - v).mean()),
    }[agent.gradient]
    for p, part in zip(params, gradient.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p)
    adams[0].step()
    with torch.no_grad():
        for t, p in zip(target.parameters(), params, strict=True):
            t.mul_(0.98).add_(p, alpha=0.02)
    advantage = (e_forward[0] + e_forward[1]).detach() / 2
    official = agent.weights == "official"
    omega = (
        (advantage.clamp(min=0) if official else (advantage / 2 + 1).clamp(min=0)) if chi2 else (advantage - 1).exp()
    )
    weights = omega.clamp(max=1.5)
    deviation = policy.log_std.exp()
    score = (a - policy.net(s).tanh()) / deviation
    log_prob = (-score.square() / 2 - deviation.log() - math.log(2 * math.pi) / 2).sum(1)
    adams[1].zero_grad()
    (-(weights * log_prob).mean()).backward()
    adams[1].step()
    return weights, float(kappa)


@pytest.mark.parametrize(
    ("gradient", "divergence", "weights"),
    [
        ("orthogonal", "pearson_chi2", "official"),
        ("orthogonal", "reverse_kl", "official"),
        ("semi", "pearson_chi2", "paper"),
        ("true", "pearson_chi2", "official"),
        ("true", "reverse_kl", "official"),
    ],
)
def test_the_official_update_for_a_hundred_steps(gradient: str, divergence: str, weights: str) -> None:
    agent = ODICE(
        5, 2, gradient=gradient, divergence=divergence, weights=weights, lam=0.7, eta=0.8, discount=0.9, tau=0.02,
        reward_scale=3.0, weight_limit=1.5, policy_hidden=(32, 32),
    )  # fmt: skip
    parts = [agent.value.double(), agent.target.double(), agent.policy.double()]
    value, target, policy = theirs = [copy.deepcopy(part) for part in parts]
    adams: list[torch.optim.Optimizer] = [
        torch.optim.Adam(value.parameters(), lr=2e-4),
        torch.optim.Adam(policy.parameters(), lr=2e-4, weight_decay=1e-4),
    ]
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(100):
        s, s2, r, terminal = (torch.randn(64, n, generator=generator).double() for n in (5, 5, 1, 1))
        a = torch.rand(64, 2, generator=generator).double() * 2 - 1
        batch = Transitions(s, a, r[:, 0] / 3, s2, (terminal[:, 0] > 1).double())
        metrics = agent.update(batch)
        expected, kappa = official_step(agent, value, target, policy, adams, batch)
        seen.append(expected)
        assert metrics["weight"] == pytest.approx(float(expected.mean()), rel=1e-9)
        if gradient == "orthogonal":
            assert 0.8 * metrics["kappa"] == pytest.approx(kappa, rel=1e-6, abs=1e-9)
    for ours, other in zip(parts, theirs, strict=True):
        for p, q in zip(ours.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    all_weights = torch.cat(seen)
    assert (all_weights == 1.5).any() and (all_weights < 1.5).any()  # the limit was reached, and not by all
    assert divergence == "reverse_kl" or (all_weights == 0).any()


def test_without_an_advantage_the_policy_stays() -> None:
    agent = fast(policy_optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    before = copy.deepcopy(agent.policy.state_dict())
    data = walk(50)
    poor = replace(data, rewards=torch.full((50,), -1e3))
    agent.update(poor)
    assert all(torch.equal(x, before[name]) for name, x in agent.policy.state_dict().items())
    rich = agent.update(replace(data, rewards=torch.full((50,), 1e4)))
    assert rich["weight"] == 100.0  # the limit


def fast(**arguments: Any) -> ODICE:
    optimizer = functools.partial(AdamW, lr=3e-3)
    optimizers = {"value_optimizer": optimizer, "policy_optimizer": optimizer}
    return ODICE(1, 1, **{"discount": 0.8, "reward_scale": 10.0, **optimizers, **SMALL, **arguments})


@pytest.mark.parametrize(("gradient", "least"), [("orthogonal", 0.5), ("semi", 0.5), ("true", 0.1)])
@pytest.mark.parametrize("divergence", ["pearson_chi2", "reverse_kl"])
def test_it_learns_to_walk_to_the_goal(gradient: str, least: float, divergence: str) -> None:
    agent = fast(gradient=gradient, divergence=divergence)
    seen: list[dict[str, float]] = []
    agent.fit(walk(), 400, batch_size=64, callback=lambda _, metrics: seen.append(metrics))
    assert len(seen) == 400 and all(np.isfinite(list(metrics.values())).all() for metrics in seen)
    assert ("kappa" in seen[0]) == (gradient == "orthogonal")
    right, left = agent.act(torch.tensor([[-0.8], [0.8]]))
    assert right > least and left < -least
    values = agent.value(torch.tensor([[0.0], [0.9]])).mean(0)
    assert values[0] > values[1]


def test_imitation_prefers_what_the_expert_saw() -> None:
    agent = fast(mode="imitation", weights="paper")
    for group in agent.discriminator_optimizer.param_groups:  # type: ignore[union-attr]
        group["lr"] = 3e-3
    expert = 0.5 + 0.1 * torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    agent.fit(walk(), 600, batch_size=64, expert=expert)
    assert agent.discriminator is not None
    there, away = agent.discriminator(torch.tensor([[0.5], [-0.5]]))
    assert there > away
    right, left = agent.act(torch.tensor([[-0.5], [1.0]]))
    assert right > 0.2 and left < right - 0.3
    with pytest.raises(ValueError, match="expert is None"):
        agent.fit(walk(), 1)


@pytest.mark.parametrize("mode", ["rl", "imitation"])
def test_training_resumes_exactly(mode: str, tmp_path: Path) -> None:
    def make(seed: int) -> ODICE:
        return ODICE(1, 1, mode=mode, seed=seed, value_optimizer=functools.partial(AdamW, lr=1e-3), **SMALL)

    expert = torch.zeros(20, 1) if mode == "imitation" else None
    agent, resumed = make(0), make(1)
    agent.fit(walk(), 5, batch_size=16, expert=expert)
    agent.save(tmp_path / "agent.pt")
    agent.fit(walk(), 5, batch_size=16, expert=expert)
    resumed.load(tmp_path / "agent.pt")
    resumed.fit(walk(), 5, batch_size=16, expert=expert)
    for name in ("value", "target", "policy"):
        ours, theirs = getattr(agent, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    x = torch.zeros(3, 1)
    assert torch.equal(agent.act(x, deterministic=False), resumed.act(x, deterministic=False))
    with pytest.raises(ValueError, match="the state lacks target"):
        state = agent.state_dict()
        del state["target"]
        resumed.load_state_dict(state)


def test_any_optimizer_may_be_passed() -> None:
    def muon(params: Any) -> torch.optim.Optimizer:
        return Muon([p for p in params if p.ndim == 2], lr=0.01)

    agent = ODICE(1, 1, value_optimizer=muon, policy_optimizer=functools.partial(torch.optim.SGD, lr=0.01), **SMALL)
    before = [p.detach().clone() for p in agent.value.parameters()]
    agent.fit(walk(), 3, batch_size=16)
    changed = [not torch.equal(p, was) for p, was in zip(agent.value.parameters(), before, strict=True)]
    assert changed == [p.ndim == 2 for p in agent.value.parameters()]


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, other = ODICE(1, 1, seed=3, **SMALL), ODICE(1, 1, seed=3, **SMALL)
    for agent in (one, other):
        agent.fit(walk(), 3, batch_size=16)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "online"),
        ("gradient", "half"),
        ("divergence", "kl"),
        ("weights", "mine"),
        ("lam", 1.0),
        ("eta", -1.0),
        ("eta", float("nan")),
        ("eps", -1.0),
        ("reward_scale", 0.0),
        ("discount", 1.5),
        ("tau", -0.1),
        ("weight_limit", 0.0),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        ODICE(1, 1, **{name: value})


def test_data_of_arrays_and_files(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "data.npz", **given)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name, array in given.items():
            file[name] = array
        file.create_group("metadata")["algorithm"] = "none"
    with h5py.File(tmp_path / "minari.hdf5", "w") as file:
        for i in range(11):  # by number, not by name
            group = file.create_group(f"episode_{i}")
            group["observations"] = np.full((3, 1), i) + np.arange(3)[:, None] / 10
            group["actions"], group["rewards"] = np.zeros((2, 1)), np.zeros(2)
            group["terminations"], group["truncations"] = np.array([0, 1]), np.zeros(2)
    for name in ("data.npz", "data.hdf5"):
        data = Transitions.load(tmp_path / name)
        assert torch.equal(data.observations, walk(10).observations) and len(data) == 10
        assert data.terminals.dtype == torch.float32
    minari = Transitions.load(tmp_path / "minari.hdf5")
    assert torch.equal(minari.observations[::2, 0], torch.arange(11.0))
    torch.testing.assert_close(minari.next_observations - minari.observations, torch.full((22, 1), 0.1))
    assert minari.terminals.tolist() == 11 * [0, 1]


def test_next_observations_are_found() -> None:
    given = arrays()
    del given["next_observations"]
    given["terminals"][3] = True
    given["timeouts"] = np.arange(10) == 6
    data = Transitions.of(given)
    rows = [0, 1, 2, 3, 4, 5, 7, 8]  # not the timeout, nor the last
    observations = walk(10).observations
    assert torch.equal(data.observations, observations[rows])
    assert torch.equal(data.next_observations, observations[[row + 1 for row in rows]])


def of_d3rlpy() -> dict[str, Any]:
    """The arrays of d3rlpy 1: three episodes, of which the first ended for good, the others at a time limit."""
    given = without("next_observations")
    return {
        **given,
        "terminals": np.arange(10) == 3,
        "episode_terminals": np.isin(np.arange(10), (3, 6, 9)),
        "discrete_action": False,
        "version": "1.0",
    }


def fill(group: Any, given: Mapping[str, Any]) -> None:
    """Put arrays into a group of an HDF5 file, dicts as groups."""
    for name, value in given.items():
        if isinstance(value, dict):
            fill(group.create_group(name), value)
        else:
            group[name] = value


def write(path: Path, given: Mapping[str, Any]) -> None:
    """An NPZ or HDF5 file."""
    if path.suffix == ".npz":
        np.savez(path, **given)
        return
    with h5py.File(path, "w") as file:
        fill(file, given)


@pytest.mark.parametrize("name", ["data.npz", "data.h5"])
def test_the_first_format_of_d3rlpy(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, of_d3rlpy())
    data = Transitions.load(tmp_path / name)
    rows = [0, 1, 2, 3, 4, 5, 7, 8]  # not those after which a time limit ended an episode
    given = of_d3rlpy()
    assert data.observations.tolist() == given["observations"][rows].tolist()
    assert data.rewards.tolist() == given["rewards"][rows].tolist()
    assert data.next_observations.tolist() == given["observations"][[row + 1 for row in rows]].tolist()
    assert data.terminals.nonzero().tolist() == [[3]]


@pytest.mark.parametrize("name", ["data.npz", "data.h5"])
def test_what_is_not_needed_is_not_read(name: str, tmp_path: Path) -> None:
    more = {"infos": {"goal": "none"}, "episode_0": np.zeros(3), "algorithm": "none"}
    if name.endswith("npz"):
        more["episode_ids"] = np.array([{"a": 1}, None], dtype=object)  # pickled
    write(tmp_path / name, {**arrays(), **more})
    assert torch.equal(Transitions.load(tmp_path / name).observations, walk(10).observations)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("data.csv", None, r"^data.csv is neither .npz nor .hdf5 nor .h5$"),
        ("data.npz", None, "^data.npz is not an NPZ file$"),
        ("data.h5", None, "^data.h5 is not an HDF5 file$"),
        ("data.hdf5", None, "^data.hdf5 is not an HDF5 file$"),
        ("data.npz", {}, "lacks observations, actions, rewards, terminals; it has nothing$"),
        ("data.h5", {}, "lacks observations, actions, rewards, terminals; it has nothing$"),
        ("data.h5", {f"rewards_{i}": np.zeros(1) for i in range(30)}, "it has rewards_0, .*, rewards_19 and 18 more$"),
        (
            "data.npz",
            {"rewards": np.array([1, None], dtype=object)},
            "^rewards is not one array of numbers: .*allow_pickle",
        ),
        ("data.npz", {"rewards": np.array(["1"] * 10)}, "^rewards is not one array of numbers: Cannot cast"),
        ("data.npz", {"rewards": np.ones(10, complex)}, "^rewards is not one array of numbers: Cannot cast"),
        ("data.npz", {"actions": np.array(1.0)}, "^actions is not one array of numbers: it is 1.0$"),
        ("data.h5", {"rewards": ["1"] * 10}, "^rewards is not one array of numbers: Cannot cast"),
        ("data.h5", {"observations": {"position": 1.0}}, "^observations is not one array of numbers: it is a dict"),
        ("data.h5", {"rewards": h5py.Empty("f")}, "^rewards is not one array of numbers"),
        ("data.npz", {"discrete_action": True, "version": "1.0"}, "^discrete_action is true, expected actions that"),
        ("data.h5", {"discrete_action": True, "version": "1.0"}, "^discrete_action is true, expected actions that"),
        ("data.h5", {"discrete_action": False}, "^data.h5 has no version: it is of d3rlpy before 1.0"),
        ("data.h5", {"episode_terminals": np.zeros(9)}, "^episode_terminals has length 9, expected 10$"),
    ],
)
def test_malformed_files(name: str, given: Mapping[str, Any] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if given is None:
        path.write_text("observations")
    else:
        whole = bool(given) and not any(key.startswith("rewards_") for key in given)
        write(path, {**(arrays() if whole else {}), **given})
    with pytest.raises(ValueError, match=message):
        Transitions.load(path)


@pytest.mark.parametrize("name", ["data.npz", "data.h5"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        Transitions.load(tmp_path / name)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in arrays().items() if key != name}


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**arrays(), name: value}


def with_nan(name: str) -> dict[str, Any]:
    given = arrays()
    given[name][4] = np.nan
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (without("rewards"), "the data set lacks rewards; it has actions"),
        (changed("rewards", np.zeros(9)), "rewards has length 9, expected 10"),
        (changed("actions", np.zeros(10)), r"actions has shape \[10\], expected 2 dimension"),
        (changed("rewards", np.zeros((10, 2))), r"rewards has shape \[10, 2\], expected 1 dimension"),
        (changed("next_observations", np.zeros((10, 2))), r"next_observations has shape \[10, 2\]"),
        (with_nan("rewards"), "rewards has NaN or infinity, first in row 4"),
        (with_nan("observations"), "observations has NaN or infinity, first in row 4"),
        ({name: array[:0] for name, array in arrays().items()}, "no transition"),
    ],
)
def test_malformed_data(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transitions.of(given)


def test_data_that_do_not_fit_the_agent() -> None:
    agent = ODICE(1, 1, **SMALL)
    before = [p.detach().clone() for p in agent.value.parameters()]
    data = walk(10)

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)

    states = {"observations": wide(data.observations), "next_observations": wide(data.next_observations)}
    for bad, message in (
        (replace(data, **states), r"observations has shape \[10, 2\]"),
        (replace(data, actions=wide(data.actions)), "actions has shape"),
        (replace(data, actions=2 * data.actions), "beyond -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.fit(bad, 1)
    assert all(torch.equal(p, was) for p, was in zip(agent.value.parameters(), before, strict=True))
    imitator = ODICE(1, 1, mode="imitation", **SMALL)
    for expert in (torch.zeros(0, 1), torch.full((3, 1), torch.nan)):
        with pytest.raises(ValueError, match="expert is empty or has NaN"):
            imitator.fit(data, 1, expert=expert)
    with pytest.raises(ValueError, match=r"expert has shape \[3\]"):
        imitator.fit(data, 1, expert=torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", torch.full((10,), torch.nan), "rewards has NaN"),
        ("rewards", torch.zeros(9), "rewards has length 9, expected 10"),
        ("actions", torch.zeros(10), "actions has shape"),
        ("next_observations", torch.zeros(10, 2), r"next_observations has shape \[10, 2\]"),
    ],
)
def test_transitions_are_checked_however_they_are_made(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(walk(10), **{name: value})
    drawn = walk(10).sample(4, torch.Generator().manual_seed(0))
    assert isinstance(drawn, Transitions) and len(drawn) == 4 and drawn.actions.shape == (4, 1)


EPISODE: dict[str, Any] = {
    "observations": np.zeros((4, 1)),
    "actions": np.zeros((3, 1)),
    "rewards": np.zeros(3),
    "terminations": np.zeros(3, bool),
    "truncations": np.zeros(3, bool),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "episode_1 lacks rewards; it has actions"),
        (
            {"observations": {"position": np.zeros((4, 1))}},
            "episode_1/observations is not one array of numbers: it is a dict or a tuple",
        ),
        (
            {"actions": {"_index_0": np.zeros((3, 1))}},
            "episode_1/actions is not one array of numbers: it is a dict or a tuple",
        ),
        ({"rewards": np.array(1.0)}, "episode_1/rewards is not one array of numbers: it is 1.0"),
        ({"observations": np.zeros((3, 1))}, "episode_1/observations has length 3, expected 4"),
        ({"actions": np.zeros((4, 1))}, "episode_1/actions has length 4, expected 3"),
        ({"observations": np.zeros((4, 2))}, "do not fit together"),
        ({"rewards": np.array([0, np.nan, 0])}, "rewards has NaN or infinity, first in row 4"),
    ],
)
def test_malformed_files_of_minari(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    changed = {name: value for name, value in {**EPISODE, **change}.items() if value is not None}
    write(tmp_path / "main_data.hdf5", {"episode_0": EPISODE, "episode_1": changed})
    with pytest.raises(ValueError, match=message):
        Transitions.load(tmp_path / "main_data.hdf5")
