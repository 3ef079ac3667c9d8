"""Images from disk to batches: read and prepared by some threads, a few batches ahead of the network."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vsuite.core.errors import InputError
from vsuite.core.images.augmentation import AugmentationSettings, augment
from vsuite.core.images.datasets import Sample
from vsuite.core.images.files import read_image
from vsuite.core.images.preprocessing import PreprocessingSettings, preprocess

AHEAD = 3  # batches


class TrainingData:
    """The training images, changed at random; see `vsuite.core.training.task.TrainingDataset`."""

    def __init__(
        self, samples: Sequence[Sample], num_classes: int, augmentation: AugmentationSettings, preprocessing: PreprocessingSettings
    ) -> None:
        self.samples, self.num_classes = list(samples), num_classes
        self.augmentation, self.preprocessing = augmentation, preprocessing

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`image` C, H, W and `target` K, 1 for each class of the image."""
        if get_worker_info() is not None:
            _one_thread()
        sample = self.samples[index]
        target = torch.zeros(self.num_classes)
        target[list(sample.labels)] = 1.0
        return {"image": augment(read_image(sample.image), self.augmentation, self.preprocessing, rng), "target": target}


@functools.cache
def _one_thread() -> None:
    """Workers are processes: threads within each would only get into each other's way."""
    import cv2

    cv2.setNumThreads(0)


def load_batches(
    samples: Sequence[Sample], preprocessing: PreprocessingSettings, batch_size: int
) -> Iterator[list[tuple[int, Tensor | InputError]]]:
    """Batches of (index, input C, H, W), or of the error where an image cannot be used, in order."""

    def load(index: int) -> tuple[int, Tensor | InputError]:
        try:
            return index, preprocess(read_image(samples[index].image), preprocessing)
        except InputError as error:
            return index, error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[list[Future[tuple[int, Tensor | InputError]]]] = deque()
        for start in range(0, len(samples), batch_size):
            waiting.append([pool.submit(load, index) for index in range(start, min(start + batch_size, len(samples)))])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
