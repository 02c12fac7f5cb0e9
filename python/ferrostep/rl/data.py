"""Offline data sets: transitions, checked before anything is trained on them."""

from __future__ import annotations

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
    """What was observed and done, all float32 on the CPU.

    Attributes:
        observations, next_observations: shape (N, observation size).
        actions: shape (N, action size).
        rewards: shape (N,).
        terminals: shape (N,), 1 where the episode ended for good and nothing follows, 0 elsewhere (time limits too).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminals: Tensor

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Transitions:
        """Of arrays by D4RL's names, checked.

        Without ``next_observations`` the next row's observation is taken, and the last row of every episode left out
        whose end (``terminals`` or ``timeouts``) does not tell what followed.

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
            if array.ndim == _DIMENSIONS[name] + 1 and array.shape[-1] == 1 and _DIMENSIONS[name] == 1:
                given[name] = array = array[:, 0]
            if array.ndim != _DIMENSIONS[name]:
                raise ValueError(f"{name} has shape {list(array.shape)}, expected {_DIMENSIONS[name]} dimension(s)")
            if len(array) != len(given["observations"]):
                raise ValueError(f"{name} has length {len(array)}, expected {len(given['observations'])}")
            bad = np.flatnonzero(~np.isfinite(array).all(tuple(range(1, array.ndim))))
            if len(bad):
                raise ValueError(f"{name} has NaN or infinity, first in row {bad[0]}")
        if "next_observations" not in given:
            given = _with_next(given)
        elif given["next_observations"].shape != given["observations"].shape:
            shapes = [list(given[name].shape) for name in ("next_observations", "observations")]
            raise ValueError(f"next_observations has shape {shapes[0]}, expected {shapes[1]}, as observations")
        if len(given["observations"]) == 0:
            raise ValueError("the data set has no transition")
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
        return Transitions(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


_DIMENSIONS = {
    "observations": 2,
    "actions": 2,
    "rewards": 1,
    "next_observations": 2,
    "terminals": 1,
    "timeouts": 1,
}


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
        missing = [name for name in ("observations", "actions", "rewards", "terminations") if name not in episode]
        if missing:
            raise ValueError(f"{episode.name} lacks {', '.join(missing)}")
        observations = episode["observations"][()]
        parts["observations"].append(observations[:-1])
        parts["next_observations"].append(observations[1:])
        parts["actions"].append(episode["actions"][()])
        parts["rewards"].append(episode["rewards"][()])
        parts["terminals"].append(episode["terminations"][()])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _is_array(item: Any) -> bool:
    return hasattr(item, "dtype") and item.dtype.kind in "fiub"


def _number(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0), name
