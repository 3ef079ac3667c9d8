"""Samples in a reproducible order.

The samples of a run form one endless stream: the permutation of epoch 0, then that of epoch 1, and so on. Batches are
cut from the stream without regard to the ends of epochs, so that no batch is short, every sample is seen exactly once
an epoch, and the position of a run is one number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vsuite.core.errors import InputError
from vsuite.core.training.heap import no_longer_reused
from vsuite.core.training.task import TrainingDataset

Key = tuple[int, int]  # index, epoch


class StreamSampler(Sampler[list[Key]]):
    """Batches of (index, epoch), one process's share of the stream: every `world_size`-th of a common batch.

    Args:
        num_samples: in the training set.
        batch_size: of one process.
        stop: position in the stream after which no batch begins; keeps workers from loading past the end of the run.

    Attributes:
        start: position in the stream (samples of all processes) of the next batch; skipping to it loads nothing.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, *, stop: int, rank: int = 0, world_size: int = 1) -> None:
        if num_samples < 1:
            raise InputError("the training set is empty")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.stop = stop
        self.rank = rank
        self.world_size = world_size
        self.start = 0
        # Two epochs at most meet in a batch, unless batches are larger than the training set.
        self._permutation = functools.lru_cache(maxsize=2)(functools.partial(_permutation, num_samples, seed))

    def __len__(self) -> int:
        common = self.batch_size * self.world_size
        return -(-(self.stop - self.start) // common)

    def __iter__(self) -> Iterator[list[Key]]:
        common = self.batch_size * self.world_size
        for position in range(self.start, self.stop, common):
            yield [self._key(position + self.rank + i * self.world_size) for i in range(self.batch_size)]

    def _key(self, position: int) -> Key:
        epoch, offset = divmod(position, self.num_samples)
        return int(self._permutation(epoch)[offset]), epoch


def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(num_samples)


class KeyedSamples(Dataset[dict[str, Tensor]]):
    """The task's samples by (index, epoch); the randomness of each depends on these and the seed alone."""

    def __init__(self, data: TrainingDataset, seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        index, epoch = key
        return self.data.sample(index, np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, index))))


def make_loader(data: TrainingDataset, sampler: StreamSampler, seed: int, *, workers: int, pin_memory: bool) -> DataLoader[Any]:
    """Batches as dictionaries of stacked tensors, or as the data set collates them."""
    return DataLoader(
        KeyedSamples(data, seed),
        collate_fn=getattr(data, "collate", None),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=no_longer_reused,
        generator=torch.Generator(),  # else each new iterator would draw from the global one, and a resumed run would differ
    )


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors, and those in its lists, on the device."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {name: moved(value) for name, value in batch.items()}
