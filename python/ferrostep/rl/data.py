"""Offline data sets: transitions, checked before anything is trained on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ferrostep.numpy.arrays import Array


@dataclass(frozen=True)
class Transitions:
    """What was observed and done, on the CPU, float32 by :meth:`of` and :meth:`load`.

    Attributes:
        observations, next_observations: shape (N, observation size).
        actions: shape (N, action size).
        rewards: shape (N,).
        terminals: shape (N,), 1 where the episode ended for good and nothing follows, 0 elsewhere (time limits too).

    Raises:
        ValueError: there is no transition, lengths or dimensions do not fit, or a number is not finite.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminals: Tensor

    def __post_init__(self) -> None:
        _check({name: x.detach().numpy() for name, x in vars(self).items()})

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Transitions:
        """Of arrays by D4RL's names, checked.

        Without ``next_observations`` the next row's observation is taken, and the last row of every episode left out
        whose end (``terminals`` or ``timeouts``) does not tell what followed. Without ``timeouts`` either, an episode
        that a time limit ended seems to go on with the first observation of the next one.

        Raises:
            ValueError: a name is missing, lengths or dimensions do not fit, or a number is not finite.
        """
        missing = [name for name in ("observations", "actions", "rewards", "terminals") if name not in arrays]
        if missing:
            raise ValueError(
                f"the data set lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}"
            )
        given = {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays if name in _DIMENSIONS}
        for name, array in given.items():
            if array.ndim == 2 and array.shape[1] == 1 and _DIMENSIONS[name] == 1:
                given[name] = array[:, 0]
        _check(given)
        if "next_observations" not in given:
            given = _with_next(given)
        return cls(**{field.name: torch.from_numpy(given[field.name].copy()) for field in fields(cls)})

    @classmethod
    def load(cls, path: str | Path) -> Transitions:
        """Of a file: NPZ or HDF5 with D4RL's names, or Minari's HDF5 (a group for each episode; needs h5py).

        Raises:
            ValueError: the file is of another kind, or as of :meth:`of`.
        """
        path = Path(path)
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return cls.of(dict(arrays))
        if path.suffix not in (".hdf5", ".h5"):
            raise ValueError(f"{path.name} is neither .npz nor .hdf5 nor .h5")
        import h5py

        with h5py.File(path) as file:
            episodes = [file[name] for name in sorted(file, key=_number) if name.startswith("episode_")]
            return cls.of(
                _joined(episodes) if episodes else {name: file[name][()] for name in file if _is_array(file[name])}
            )

    def __len__(self) -> int:
        return len(self.rewards)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Transitions:
        """As many transitions, drawn with replacement."""
        chosen = torch.randint(len(self), (size,), generator=generator)
        drawn = copy.copy(self)  # without another check
        vars(drawn).update({name: x[chosen] for name, x in vars(self).items()})
        return drawn


_DIMENSIONS = {
    "observations": 2,
    "actions": 2,
    "rewards": 1,
    "next_observations": 2,
    "terminals": 1,
    "timeouts": 1,
}


def _check(given: Mapping[str, Array]) -> None:
    observations = given["observations"]
    for name, array in given.items():
        if array.ndim != _DIMENSIONS[name]:
            raise ValueError(f"{name} has shape {list(array.shape)}, expected {_DIMENSIONS[name]} dimension(s)")
        if len(array) != len(observations):
            raise ValueError(f"{name} has length {len(array)}, expected {len(observations)}")
        if name == "next_observations" and array.shape != observations.shape:
            shapes = [list(x.shape) for x in (array, observations)]
            raise ValueError(f"next_observations has shape {shapes[0]}, expected {shapes[1]}, as observations")
        bad = np.flatnonzero(~np.isfinite(array).all(tuple(range(1, array.ndim))))
        if len(bad):
            raise ValueError(f"{name} has NaN or infinity, first in row {bad[0]}")
    if len(observations) == 0:
        raise ValueError("the data set has no transition")


def _with_next(given: dict[str, Array]) -> dict[str, Array]:
    """Rows whose next observation is the next row's. What follows a terminal does not matter."""
    following = np.concatenate([given["observations"][1:], given["observations"][-1:]])
    last = np.zeros(len(following), bool)
    last[-1:] = True
    ended = given["timeouts"] > 0 if "timeouts" in given else np.zeros(len(following), bool)
    known = (given["terminals"] > 0) | ~(ended | last)
    return {name: array[known] for name, array in {**given, "next_observations": following}.items()}


def _joined(episodes: list[Any]) -> dict[str, Array]:
    """Minari's episodes, which have an observation more than actions."""
    parts: dict[str, list[Array]] = {name: [] for name in _DIMENSIONS if name != "timeouts"}
    for episode in episodes:
        given = {}
        for name in ("observations", "actions", "rewards", "terminations"):
            if name not in episode:
                raise ValueError(f"{episode.name} lacks {name}; it has {', '.join(sorted(episode)) or 'nothing'}")
            if not _is_array(episode[name]):
                raise ValueError(f"{episode.name}/{name} is a dict or a tuple, expected one array of numbers")
            given[name] = episode[name][()]
        for name, array in given.items():
            expected = len(given["rewards"]) + (name == "observations")
            if len(array) != expected:
                raise ValueError(f"{episode.name}/{name} has length {len(array)}, expected {expected}")
        parts["observations"].append(given["observations"][:-1])
        parts["next_observations"].append(given["observations"][1:])
        parts["actions"].append(given["actions"])
        parts["rewards"].append(given["rewards"])
        parts["terminals"].append(given["terminations"])
    try:
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
    except ValueError as error:
        raise ValueError(f"the episodes' arrays do not fit together: {error}") from error


def _is_array(item: Any) -> bool:
    return hasattr(item, "dtype") and item.dtype.kind in "fiub"


def _number(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0), name
