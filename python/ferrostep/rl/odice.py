"""O-DICE (arXiv 2402.00348): a value function by an orthogonal-gradient update, a policy by weighted cloning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from ferrostep.errors import Problem, wrong_choice
from ferrostep.gradients import OrthogonalGradient, ema_
from ferrostep.rl.data import Transitions
from ferrostep.rl.networks import GaussianPolicy, TwinValue, mlp

Mode: TypeAlias = Literal["rl", "imitation"]
ValueUpdate: TypeAlias = Literal["orthogonal", "semi", "true"]
Divergence: TypeAlias = Literal["pearson_chi2", "reverse_kl"]
Weights: TypeAlias = Literal["official", "paper"]
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def _adam(params: Iterable[Tensor]) -> Optimizer:
    return torch.optim.Adam(params, lr=2e-4)


def _adam_with_decay(params: Iterable[Tensor]) -> Optimizer:
    return torch.optim.Adam(params, lr=2e-4, weight_decay=1e-4)


def conjugate(divergence: str, x: Tensor) -> Tensor:
    """f* of a divergence f: ``"pearson_chi2"`` (with weights of at least 0) or ``"reverse_kl"``."""
    if divergence == "reverse_kl":
        return (x - 1).exp()
    w = (x / 2 + 1).clamp(min=0)
    return x * w - (w - 1).square()


def weight(divergence: str, x: Tensor, *, form: str = "official") -> Tensor:
    """How much a transition counts for the policy, from its advantage x.

    With ``form="paper"`` the inverse of f', ``max(x / 2 + 1, 0)`` for Pearson's chi^2; the official code has
    ``max(x, 0)`` there (``form="official"``). For the reverse KL both have ``exp(x - 1)``.
    """
    if divergence == "reverse_kl":
        return (x - 1).exp()
    return x.clamp(min=0) if form == "official" else (x / 2 + 1).clamp(min=0)


class ODICE:
    """Offline RL, or offline imitation, from transitions alone.

    With ``e(s, s') = r + discount * V(s') - V(s)``, V has the loss ``mean((1 - lam) * V(s) + lam * f*(e))``, of whose
    gradient the part through ``V(s')`` is projected on the normal plane of the part through ``V(s)`` over the whole
    network, and weighed by ``eta``; either part takes the other's value from a target network, the least of its two
    heads. The policy maximizes the log-likelihood of actions, weighed by ``omega(e)``, with the heads' mean of e, in
    which V(s') is the target network's. Where all weights of a batch are 0 (as the official ones for Pearson's chi^2
    are without a positive e), only the optimizer's momentum and weight decay still move the policy.

    Args:
        observation_size, action_size: of the data.
        mode: ``"rl"``: rewards are the data's. ``"imitation"``: they are an estimate of log(d_expert / d_data) by a
            network that is trained to tell both apart; ``update`` then takes experts' observations as well.
        gradient: ``"orthogonal"``, or as ablations ``"semi"`` (without the part through V(s')) and ``"true"`` (the
            loss's own gradient; the target network then serves the policy's weights only).
        divergence: ``"pearson_chi2"`` or ``"reverse_kl"``.
        weights: ``"official"`` or ``"paper"``, see :func:`weight`.
        lam: from 0 to 1, without both. The paper has it for each data set; default 0.6.
        eta: weight of the projected part; default 1.
        eps: of :func:`ferrostep.gradients.orthogonal_`.
        reward_scale: factor of rewards, or of their estimate; default 1. f* is not linear, so it matters: the paper
            scales MuJoCo's rewards so that the returns of the data's best and worst episode lie 1000 apart.
        discount: default 0.99.
        tau: share by which the target network moves to the network each step; default 0.005.
        weight_limit: greatest weight; default 100.
        value_hidden, policy_hidden: sizes of hidden layers; default 2 x 256. (The paper's policy has 2 x 1024.)
        layer_norm: LayerNorm in V; the paper has it for MuJoCo.
        value_optimizer, policy_optimizer: make an optimizer of parameters, such as a class with ``functools.partial``.
            Default: Adam with lr 2e-4, for the policy with weight decay 1e-4, as in the paper.
        seed: of the networks and of the batches.

    Raises:
        ValueError: an argument is none of these.

    Example:
        >>> rows = {"observations": [[0.0], [1.0]], "actions": [[0.5], [0.5]], "rewards": [0, 1], "terminals": [0, 1]}
        >>> agent = ODICE(observation_size=1, action_size=1)
        >>> agent.fit(Transitions.of(rows), steps=1, batch_size=4)
        >>> agent.act(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        mode: Mode = "rl",
        gradient: ValueUpdate = "orthogonal",
        divergence: Divergence = "pearson_chi2",
        weights: Weights = "official",
        lam: float = 0.6,
        eta: float = 1.0,
        eps: float = 1e-10,
        reward_scale: float = 1.0,
        discount: float = 0.99,
        tau: float = 0.005,
        weight_limit: float = 100.0,
        value_hidden: Sequence[int] = (256, 256),
        policy_hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        value_optimizer: MakeOptimizer = _adam,
        policy_optimizer: MakeOptimizer = _adam_with_decay,
        seed: int = 0,
    ) -> None:
        for name, value, known in (
            ("mode", mode, get_args(Mode)),
            ("gradient", gradient, get_args(ValueUpdate)),
            ("divergence", divergence, get_args(Divergence)),
            ("weights", weights, get_args(Weights)),
        ):
            if value not in known:
                raise wrong_choice(name, value, *known)
        for name, number, fits in (
            ("lam", lam, 0 < lam < 1),
            ("eta", eta, 0 <= eta < math.inf),
            ("eps", eps, 0 <= eps < math.inf),
            ("reward_scale", reward_scale, 0 < reward_scale < math.inf),
            ("discount", discount, 0 <= discount <= 1),
            ("tau", tau, 0 <= tau <= 1),
            ("weight_limit", weight_limit, weight_limit > 0),
        ):
            if not fits:
                raise ValueError(f"Invalid {name}: {number}")
        self.mode, self.gradient, self.divergence, self.weights = mode, gradient, divergence, weights
        self.lam, self.discount, self.tau, self.weight_limit = lam, discount, tau, weight_limit
        self.reward_scale = reward_scale
        self.observation_size, self.action_size = observation_size, action_size
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value = TwinValue(observation_size, value_hidden, layer_norm=layer_norm)
            self.policy = GaussianPolicy(observation_size, action_size, policy_hidden)
            self.discriminator = mlp([observation_size, *value_hidden, 1]) if mode == "imitation" else None
        self.target = copy.deepcopy(self.value).requires_grad_(False)
        self.value_optimizer = value_optimizer(self.value.parameters())
        self.policy_optimizer = policy_optimizer(self.policy.parameters())
        self.discriminator_optimizer = None if self.discriminator is None else _adam(self.discriminator.parameters())
        self.orthogonal = OrthogonalGradient(self.value_optimizer, eta=eta, eps=eps)

    def fit(
        self,
        data: Transitions,
        steps: int,
        *,
        batch_size: int = 256,
        expert: Tensor | None = None,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Update on batches of the data.

        Args:
            data: the transitions.
            steps: number of updates.
            batch_size: transitions, and in imitation expert observations, for each.
            expert: observations of experts, shape (N, observation size), for imitation.
            callback: called after each update with its number and what :meth:`update` returned.

        Raises:
            ValueError: the data do not fit the agent.
        """
        self._check(data, expert)
        for step in range(steps):
            batch = data.sample(batch_size, self.generator)
            chosen = None
            if expert is not None:
                chosen = expert[torch.randint(len(expert), (batch_size,), generator=self.generator)]
            metrics = self.update(batch, chosen)
            if callback is not None:
                callback(step, metrics)

    def update(self, batch: Transitions, expert: Tensor | None = None) -> dict[str, float]:
        """One step of value, target network and policy (and before them, in imitation, of the discriminator).

        Args:
            batch: transitions.
            expert: observations of experts, shape (N, observation size), for imitation. Default None.

        Returns:
            ``value`` (its mean), ``weight`` (mean), ``policy_loss``, and with the orthogonal gradient ``kappa``.

        Raises:
            ValueError: ``expert`` is None in imitation.
            RuntimeError: sizes are not the agent's, as torch.
        """
        rewards = batch.rewards
        if self.discriminator is not None:
            if expert is None:
                raise ValueError("expert is None, expected observations: mode is 'imitation'")
            self._discriminate(self.discriminator, batch.observations, expert)
            with torch.no_grad():
                rewards = self.discriminator(batch.observations).squeeze(-1)
        values, advantage, kappa = self._value_step(batch, self.reward_scale * rewards)
        ema_(self.target.parameters(), self.value.parameters(), self.tau)
        weights = weight(self.divergence, advantage, form=self.weights).clamp(max=self.weight_limit)
        loss = -(weights * self.policy.log_prob(batch.observations, batch.actions)).mean()
        self.policy_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.policy_optimizer.step()
        metrics = {"value": float(values.mean()), "weight": float(weights.mean()), "policy_loss": float(loss.detach())}
        return metrics if kappa is None else {**metrics, "kappa": kappa}

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = True) -> Tensor:
        """Actions from -1 to 1, shape (..., action size), for observations (..., observation size).

        Args:
            observations: float32.
            deterministic: take the policy's mean (True, default), or draw.

        Raises:
            RuntimeError: observations of another size or dtype, as torch.
        """
        distribution = self.policy(observations)
        actions: Tensor = distribution.mean
        if not deterministic:
            noise = torch.randn(actions.shape, generator=self.generator)
            actions = actions + distribution.stddev * noise
        return actions.clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, exactly: networks, optimizers, and the generator of batches."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, of an agent that was made with the same arguments.

        Args:
            state_dict: by the names of the parts.

        Raises:
            ValueError: a part is missing, of which the message tells the name.
        """
        missing = [name for name in (*self._parts(), "generator") if name not in state_dict]
        if missing:
            raise ValueError(f"the state lacks {', '.join(missing)}")
        for name, part in self._parts().items():
            part.load_state_dict(state_dict[name])
        self.generator.set_state(state_dict["generator"])

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to a file.

        Args:
            path: of the file.

        Raises:
            OSError, RuntimeError: it cannot be written, as torch.save.
        """
        torch.save(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Go on from what :meth:`save` wrote.

        Args:
            path: of the file.

        Raises:
            OSError: it cannot be read.
            ValueError: as of :meth:`load_state_dict`.
        """
        self.load_state_dict(torch.load(path, weights_only=True))

    def _parts(self) -> dict[str, nn.Module | Optimizer]:
        parts: dict[str, nn.Module | Optimizer | None] = {
            "value": self.value,
            "target": self.target,
            "policy": self.policy,
            "discriminator": self.discriminator,
            "value_optimizer": self.value_optimizer,
            "policy_optimizer": self.policy_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _value_step(self, batch: Transitions, rewards: Tensor) -> tuple[Tensor, Tensor, float | None]:
        """The values before the step, the advantages, and kappa."""
        discount = self.discount * (1 - batch.terminals)
        values = self.value(batch.observations)
        extra = (1 - self.lam) * values.mean()
        with torch.no_grad():
            following = self.target(batch.next_observations).amin(0)
        forward_errors = rewards + discount * following - values
        advantage = forward_errors.detach().mean(0)
        if self.gradient == "true":
            errors = rewards + discount * self.value(batch.next_observations) - values
            self._plain_step(extra + self.lam * conjugate(self.divergence, errors).mean())
            return values.detach(), advantage, None
        forward = self.lam * conjugate(self.divergence, forward_errors).mean()
        if self.gradient == "semi":
            self._plain_step(extra + forward)
            return values.detach(), advantage, None
        with torch.no_grad():
            now = self.target(batch.observations).amin(0)
        errors = rewards + discount * self.value(batch.next_observations) - now
        backward = self.lam * conjugate(self.divergence, errors).mean()
        kappa = self.orthogonal.step(forward, backward, extra)
        assert isinstance(kappa, float)
        return values.detach(), advantage, kappa

    def _plain_step(self, loss: Tensor) -> None:
        self.value_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.value_optimizer.step()

    def _discriminate(self, net: nn.Module, data: Tensor, expert: Tensor) -> None:
        """Logistic regression with a penalty on the slope between both (weight 10)."""
        share = torch.rand(len(data), 1, generator=self.generator)
        between = (share * expert + (1 - share) * data).requires_grad_()
        (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
        loss = functional.softplus(-net(expert)).mean() + functional.softplus(net(data)).mean()
        loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
        assert self.discriminator_optimizer is not None
        self.discriminator_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.discriminator_optimizer.step()

    def _check(self, data: Transitions, expert: Tensor | None) -> None:
        sizes = {
            "observations": (data.observations, self.observation_size),
            "actions": (data.actions, self.action_size),
        }
        if self.mode == "imitation":
            if expert is None:
                raise ValueError("expert is None, expected observations: mode is 'imitation'")
            sizes["expert"] = (expert, self.observation_size)
        for name, (tensor, size) in sizes.items():
            if tensor.ndim != 2 or tensor.shape[1] != size:
                raise Problem.SHAPE.of(name, list(tensor.shape), f"(N, {size})")
        if expert is not None and not (len(expert) > 0 and bool(expert.isfinite().all())):
            raise ValueError("expert is empty or has NaN or infinity, expected finite observations")
        if not bool((data.actions.abs() <= 1 + 1e-6).all()):
            raise ValueError("actions go beyond -1 to 1: scale them by the environment's limits first")
