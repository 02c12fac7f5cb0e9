"""Batches of indices whose size may change in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from ferrostep.errors import Problem
from ferrostep.numpy.arrays import truth, whole
from ferrostep.suggestions import suggesting

SEEDS = 2**63
"""The seed of an epoch, the sum of two numbers below this, is one of torch's."""


@suggesting
class ResizableBatchSampler(Sampler[list[int]]):
    """Batches of indices, one permutation for each epoch, of a size that may change at any batch.

    A new size neither repeats nor drops a sample: the epoch goes on where it is. So it does after a loop that was
    broken off, and after :meth:`load_state_dict`, which gives the same indices as if nothing had happened. For
    ``DataLoader(batch_sampler=...)``; batches that workers have fetched ahead keep their size, so that the step is to
    look at what it gets, and count as given: after a loop that was broken off, go back to those that it has had with
    ``load_state_dict(state_dict(batches=...))``.

    Args:
        n: number of samples, such as ``len(dataset)``.
        size: samples of a batch, over all ranks.
        shuffle: permute them, anew in each epoch. Default True.
        seed: of the permutations. Default 0.
        drop_last: leave out the last batch of an epoch where it is smaller. Default False.
        num_replicas, rank: each of so many ranks gets its part of each batch, every ``num_replicas``-th index. Sizes
            are multiples of it; what is left over at the end of an epoch, less than one for each rank, is left out.
            Default 1 and 0.

    Attributes:
        size: of the next batch.
        epoch: number of the epoch that is under way, or was last, from 0.

    Raises:
        TypeError, ValueError: no whole numbers, ``size`` is no multiple of ``num_replicas``, as where it is less, or
            there are fewer samples than ranks.

    Example:
        >>> sampler = ResizableBatchSampler(8, size=2, shuffle=False)
        >>> for batch in sampler:
        ...     print(batch)
        ...     sampler.resize(3)
        [0, 1]
        [2, 3, 4]
        [5, 6, 7]
    """

    def __init__(
        self,
        n: int,
        size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.num_replicas = whole("num_replicas", num_replicas, 1)
        self.n = whole("n", n, self.num_replicas)
        self.shuffle = truth("shuffle", shuffle)
        self.seed = whole("seed", seed, 0, SEEDS)
        self.drop_last = truth("drop_last", drop_last)
        self.rank = whole("rank", rank, 0, self.num_replicas)
        self.epoch = 0
        self._ends = [0]
        self.resize(size)

    def resize(self, size: int) -> None:
        """Change the size, from the next batch on.

        Args:
            size: samples of a batch, over all ranks.

        Raises:
            TypeError, ValueError: no whole number of at least 1, or no multiple of ``num_replicas``. The size is as it
                was then.
        """
        number = whole("size", size, 1)
        if number % self.num_replicas:
            raise Problem.NUMBER.of("size", size, f"a multiple of num_replicas={self.num_replicas}")
        self.size = number

    def __iter__(self) -> Iterator[list[int]]:
        """The batches that are left of the epoch, on this rank; of the next one where none is left.

        Raises:
            RuntimeError: in an iteration that goes on though another has begun since, or a state was loaded.
        """
        at = self._ends[-1]
        if self._count(at) == 0:
            self.epoch, at = self.epoch + 1, 0
        ends = self._ends = [at]
        order = self._order()
        while (count := self._count(at := ends[-1])) > 0:
            ends.append(at + count)
            yield order[at + self.rank : at + count : self.num_replicas]
            if ends is not self._ends:
                raise RuntimeError("the sampler has begun another iteration or loaded a state: this one has ended")
        ends.append(self.n)

    def __len__(self) -> int:
        """How many batches the next iteration has at the present size."""
        at = self._ends[-1] if self._count(self._ends[-1]) else 0
        left = (self.n - at) // self.num_replicas * self.num_replicas
        return left // self.size if self.drop_last else -(-left // self.size)

    def _count(self, at: int) -> int:
        """How many samples the batch from this place on has; 0 where the epoch is over."""
        left = self.n - at
        if left >= self.size:
            return self.size
        return 0 if self.drop_last else left // self.num_replicas * self.num_replicas

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.n))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.n, generator=generator).tolist()

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """The size, the seed, the epoch and the place in it.

        Args:
            batches: how many batches the present loop has had, where workers fetch ahead of it. Default None: all that
                the sampler has given.

        Returns:
            Plain numbers.

        Raises:
            TypeError, ValueError: ``batches`` is no whole number, or more than there were.
        """
        at = len(self._ends) - 1 if batches is None else whole("batches", batches, 0, len(self._ends))
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self._ends[at]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, with the next iteration.

        Args:
            state_dict: what :meth:`state_dict` gave, of a sampler with as many samples.

        Raises:
            KeyError: something is missing.
            TypeError, ValueError: the numbers do not fit. Nothing has been changed then.
        """
        seed, epoch = (whole(f"state_dict[{name!r}]", state_dict[name], 0, SEEDS) for name in ("seed", "epoch"))
        position = whole("state_dict['position']", state_dict["position"], 0, self.n + 1)
        self.resize(state_dict["size"])
        self.seed, self.epoch, self._ends = seed, epoch, [position]
