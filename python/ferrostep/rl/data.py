"""Offline data sets: transitions, checked before anything is trained on them."""

from __future__ import annotations

import copy
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ferrostep.errors import Problem
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

    Example:
        >>> rows = {"observations": [[0.0], [1.0]], "actions": [[0.5], [0.5]], "rewards": [0, 1], "terminals": [0, 1]}
        >>> Transitions.of(rows).next_observations[0]
        tensor([1.])
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
        that ended at a time limit, as what followed is not there. ``timeouts`` say which these are, or d3rlpy's
        ``episode_terminals``, which stand at every end. Without both, such an episode seems to go on with the first
        observation of the next one.

        Args:
            arrays: by their names, each an array of numbers, or nested lists.

        Raises:
            ValueError: a name is missing, an array is not one of numbers, lengths or dimensions do not fit, a number is
                not finite, or ``discrete_action`` (d3rlpy's) says that actions are indices.
        """
        missing = [name for name in ("observations", "actions", "rewards", "terminals") if name not in arrays]
        if missing:
            raise ValueError(f"the data set lacks {', '.join(missing)}; it has {_listed(arrays)}")
        if "discrete_action" in arrays and np.any(arrays["discrete_action"]):
            raise ValueError("discrete_action is true, expected actions that are vectors, not indices")
        given = {name: _numbers(arrays, name) for name in arrays if name in _DIMENSIONS}
        for name, array in given.items():
            if array.ndim == 2 and array.shape[1] == 1 and _DIMENSIONS[name] == 1:
                given[name] = array[:, 0]
        _check(given)
        if "next_observations" not in given:
            given = _with_next(given)
        return cls(**{field.name: torch.from_numpy(given[field.name].copy()) for field in fields(cls)})

    @classmethod
    def load(cls, path: str | Path) -> Transitions:
        """Of a file: NPZ or HDF5 with D4RL's names or d3rlpy 1's, or Minari's HDF5 (a group for each episode).

        HDF5 needs h5py. Arrays of other names are not read.

        Args:
            path: a file ending in .npz, .hdf5 or .h5.

        Raises:
            ValueError: the file is of another kind, or as of :meth:`of`.
            OSError: there is no such file, or it cannot be read.
        """
        path = Path(path)
        if path.suffix not in (".npz", ".hdf5", ".h5"):
            raise ValueError(f"{path.name} is neither .npz nor .hdf5 nor .h5")
        path.stat()  # no file is not one of another kind
        if path.suffix == ".npz":
            if not zipfile.is_zipfile(path):
                raise ValueError(f"{path.name} is not an NPZ file")
            with np.load(path) as arrays:
                return cls.of(arrays)
        import h5py

        if not h5py.is_hdf5(path):
            raise ValueError(f"{path.name} is not an HDF5 file")
        with h5py.File(path) as file:
            if "discrete_action" in file and "version" not in file:
                # Their rewards lie a row later: github.com/takuseno/d3rlpy/issues/135.
                raise ValueError(f"{path.name} has no version: it is of d3rlpy before 1.0, expected 1.0 or newer")
            groups = {name: item for name, item in file.items() if isinstance(item, Mapping)}
            episodes = [groups[name] for name in sorted(filter(_EPISODE.fullmatch, groups), key=_number)]
            return cls.of(_joined(episodes) if episodes else file)

    def __len__(self) -> int:
        return len(self.rewards)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Transitions:
        """As many transitions, drawn with replacement.

        Args:
            size: how many.
            generator: for the draw; default torch's global one.

        Raises:
            RuntimeError: ``size`` is negative, as torch.
        """
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
    "episode_terminals": 1,
}
_ENDS = ("timeouts", "episode_terminals")
_EPISODE = re.compile(r"episode_\d+")
"""Minari's name of a group."""
_MOST_LISTED = 12
"""Some files have thousands of arrays."""


def _check(given: Mapping[str, Array]) -> None:
    observations = given["observations"]
    for name, array in given.items():
        if array.ndim != _DIMENSIONS[name]:
            raise Problem.SHAPE.of(name, list(array.shape), f"{_DIMENSIONS[name]} dimension(s)")
        if len(array) != len(observations):
            raise ValueError(f"{name} has length {len(array)}, expected {len(observations)}")
        if name == "next_observations" and array.shape != observations.shape:
            raise Problem.SHAPE.of(name, list(array.shape), f"{list(observations.shape)}, as observations")
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
    for name in _ENDS:
        if name in given:
            last |= given[name] > 0
    known = (given["terminals"] > 0) | ~last
    return {name: array[known] for name, array in {**given, "next_observations": following}.items()}


def _joined(episodes: list[Any]) -> dict[str, Array]:
    """Minari's episodes, which have an observation more than actions."""
    parts: dict[str, list[Array]] = {name: [] for name in _DIMENSIONS if name not in _ENDS}
    for episode in episodes:
        given = {}
        for name in ("observations", "actions", "rewards", "terminations"):
            if name not in episode:
                raise ValueError(f"{episode.name} lacks {name}; it has {_listed(episode)}")
            given[name] = _numbers(episode, name, f"{episode.name}/")
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


def _numbers(arrays: Mapping[str, Any], name: str, place: str = "") -> Array:
    """One of the arrays, float32; ValueError for what is no array of numbers, a pickled one included."""
    try:
        found = arrays[name]
        if isinstance(found, Mapping):
            raise TypeError("it is a dict or a tuple")
        array = np.asarray(found)
        if array.ndim == 0:
            raise TypeError(f"it is {array}")
        return array.astype(np.float32, casting="same_kind", copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}{name} is not one array of numbers: {error}") from error


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_LISTED} more" if len(ordered) > _MOST_LISTED else ""
    return (", ".join(ordered[:_MOST_LISTED]) or "nothing") + more


def _number(name: str) -> int:
    return int(name.removeprefix("episode_"))
