"""Small networks for agents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], *, layer_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, after LayerNorm if asked for."""
    layers: list[nn.Module] = []
    for i, (size, following) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(size, following))
        if i + 2 < len(sizes):
            layers += [nn.LayerNorm(following), nn.ReLU()] if layer_norm else [nn.ReLU()]
    return nn.Sequential(*layers)


class TwinValue(nn.Module):
    """Two networks that estimate the value of an observation.

    Args:
        observation_size: number of inputs.
        hidden: sizes of the hidden layers.
        layer_norm: LayerNorm in the hidden layers.
    """

    def __init__(self, observation_size: int, hidden: Sequence[int], *, layer_norm: bool = False) -> None:
        super().__init__()
        sizes = [observation_size, *hidden, 1]
        self.heads = nn.ModuleList(mlp(sizes, layer_norm=layer_norm) for _ in range(2))

    def forward(self, observations: Tensor) -> Tensor:
        """Values of shape (2, N) of observations (N, observation size)."""
        return torch.stack([head(observations).squeeze(-1) for head in self.heads])


class GaussianPolicy(nn.Module):
    """Actions around a mean from -1 to 1, with a deviation that the observation does not change.

    Args:
        observation_size, action_size: numbers of inputs and outputs.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp([observation_size, *hidden, action_size])
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def forward(self, observations: Tensor) -> torch.distributions.Normal:
        """The distribution of actions (N, action size) from -1 to 1, not clipped."""
        mean = self.net(observations).tanh()
        return torch.distributions.Normal(mean, self.log_std.clamp(-5, 2).exp())

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Of shape (N,)."""
        result: Tensor = self(observations).log_prob(actions).sum(-1)
        return result
