"""Stable-Baselines3's policies with our optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ferrostep import optim

from .pages import OURS, THEIRS, assert_same_weights, run

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO, SAC

pytestmark = pytest.mark.frameworks


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("stable_baselines3")["model"], run("stable_baselines3", OURS, THEIRS)["model"]
    optimizer = ours.policy.optimizer
    assert type(optimizer) is optim.AdamW and optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert int(next(iter(optimizer.state.values()))["step"]) == 160
    assert_same_weights(ours.policy, theirs.policy)


def test_a_model_is_saved_with_its_optimizer(tmp_path: Path) -> None:
    arguments = {"optimizer_class": optim.Lion, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu", policy_kwargs=arguments)
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu").policy.optimizer
    assert type(loaded) is optim.Lion
    states = [list(each.state_dict()["state"].values()) for each in (loaded, model.policy.optimizer)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_each_network_of_sac_has_one() -> None:
    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=8,
        seed=0,
        device="cpu",
        policy_kwargs={"optimizer_class": optim.AdamW},
    )
    model.learn(12)
    assert {type(model.actor.optimizer), type(model.critic.optimizer)} == {optim.AdamW}
    assert model.critic.optimizer.state
