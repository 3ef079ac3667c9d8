"""Training patches: pairs of low and high resolution cut from pictures that were read, cropped and shrunk once.

Prepared pictures are plain arrays on disk that are mapped into memory, so that all loader processes share them and a data
set larger than memory still works.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.restoration.data.pictures import Picture, read_rgb
from vsuite.restoration.resize import Convention, crop_to_multiple, imresize


class PictureStore:
    """The high-resolution pictures of a training set in 8 bits, beside their low-resolution versions.

    Args:
        folder: where they are kept as arrays (3 bytes a pixel); one that is there already is not made again, unless the file or
            what follows here has changed. None keeps nothing, and reads each picture anew whenever it is needed: for data sets too
            large to be kept.
        pictures: files of the high-resolution pictures.
        scale: of the pairs.
        smallest: shortest side (high resolution) that can be trained on.
        convention: of the bicubic resize; None makes no low resolution.
        enlarge: enlarge smaller pictures (bilinear) instead of refusing them.
    """

    def __init__(
        self,
        folder: Path | None,
        pictures: Sequence[Path],
        scale: int,
        smallest: int,
        convention: Convention | None = "A",
        *,
        enlarge: bool = False,
    ) -> None:
        self.folder, self.pictures, self.scale = folder, list(pictures), scale
        self.smallest, self.convention, self.enlarge = smallest, convention, enlarge
        made_as = (scale, convention, smallest if enlarge else 0)
        self.kept = [] if folder is None else [folder / _digest(path, made_as) for path in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def prepare(self) -> None:
        """Reads, crops, shrinks and keeps all pictures.

        Raises:
            InputError: for a file that cannot be read, and a picture smaller than a patch.
        """
        for index, kept in enumerate(self.kept):
            if _file(kept, "high").exists():
                continue
            low, high = self._make(index)
            if low is not None:
                _write(_file(kept, "low"), low)
            _write(_file(kept, "high"), high)  # last: it stands for both

    def high(self, index: int) -> Picture:
        """A picture in high resolution."""
        return self._make(index)[1] if self.folder is None else _mapped(_file(self.kept[index], "high"))

    def pair(self, index: int) -> tuple[Picture, Picture]:
        """A picture in low and high resolution."""
        if self.folder is not None:
            return _mapped(_file(self.kept[index], "low")), self.high(index)
        low, high = self._make(index)
        assert low is not None
        return low, high

    def _make(self, index: int) -> tuple[Picture | None, Picture]:
        path = self.pictures[index]
        high = crop_to_multiple(self._at_least_a_patch(read_rgb(path), path), self.scale)
        return None if self.convention is None else imresize(high, 1 / self.scale, convention=self.convention), high

    def _at_least_a_patch(self, image: Picture, path: Path) -> Picture:
        height, width = image.shape[:2]
        if min(height, width) >= self.smallest:
            return image
        if not self.enlarge:
            raise InputError(f"{path}: {width} x {height} pixels are too few for patches of {self.smallest}")
        factor = self.smallest / min(height, width)
        size = max(self.smallest, round(height * factor)), max(self.smallest, round(width * factor))
        return to_picture(F.interpolate(to_tensor(image)[None], size=size, mode="bilinear", align_corners=False)[0])


def _digest(picture: Path, made_as: object) -> str:
    """Stands for a picture file as it is now, and for what is made of it."""
    state = picture.stat()
    return hashlib.sha1(repr((str(picture.resolve()), state.st_size, state.st_mtime_ns, made_as)).encode()).hexdigest()[:20]


def _file(kept: Path, kind: str) -> Path:
    return kept.with_name(f"{kept.name}-{kind}.npy")


def _write(path: Path, image: Picture) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(image), allow_pickle=False)


@functools.lru_cache(maxsize=8192)  # opening takes longer than cutting; not kept in the store, which travels to other processes
def _mapped(path: Path) -> Picture:
    return np.load(path, mmap_mode="r", allow_pickle=False)


class _Patches:
    """Larger pictures give more patches of an epoch, as many as fit side by side, where their sizes are known beforehand."""

    def __init__(self, store: PictureStore, side: int) -> None:
        self.store = store
        self.owners = np.arange(len(store))
        if store.folder is not None:
            areas = [high.shape[0] * high.shape[1] for high in map(store.high, range(len(store)))]
            self.owners = self.owners.repeat([max(1, area // side**2) for area in areas])

    def __len__(self) -> int:
        return len(self.owners)


class BicubicPatches(_Patches):
    """Pairs "low" (3, patch, patch) and "high" (3, patch * scale, patch * scale) in [0, 1], flipped and turned at random.

    Args:
        patch: side in low resolution.
    """

    def __init__(self, store: PictureStore, patch: int) -> None:
        super().__init__(store, patch * store.scale)
        self.patch = patch

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `vsuite.core.training.TrainingDataset`."""
        picture, scale = int(self.owners[index]), self.store.scale
        low, high = self.store.pair(picture)
        top, left = (int(rng.integers(side - self.patch + 1)) for side in low.shape[:2])
        pair = cut(low, top, left, self.patch), cut(high, top * scale, left * scale, self.patch * scale)
        turned = turn_alike(pair, rng)
        return {"low": to_tensor(turned[0]), "high": to_tensor(turned[1])}


class DegradedPatches(_Patches):
    """Pairs made by a degradation on the fly, as `vsuite.restoration.degradations` offers them.

    Args:
        side: of the high-resolution part that is degraded, cut at random; smaller pictures are mirrored to this size.
        patch: side of the training patch in low resolution, cut from the middle of what was degraded at random.
        degrade: (high (1, 3, side, side), rng) -> tensors (1, 3, ...) by name: "low", and any others at high resolution.
    """

    def __init__(
        self, store: PictureStore, side: int, patch: int, degrade: Callable[[Tensor, np.random.Generator], dict[str, Tensor]]
    ) -> None:
        super().__init__(store, side)
        self.side, self.patch, self.degrade = side, patch, degrade

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `vsuite.core.training.TrainingDataset`."""
        picture = self.store.high(int(self.owners[index]))
        below, right = (max(0, self.side - length) for length in picture.shape[:2])
        top, left = (int(rng.integers(max(length - self.side, 0) + 1)) for length in picture.shape[:2])
        high = np.pad(cut(picture, top, left, self.side), ((0, below), (0, right), (0, 0)), mode="reflect")
        high = high[:, ::-1] if rng.random() < 0.5 else high  # no quarter turns: gravity is part of real pictures
        made = self.degrade(to_tensor(high)[None], rng)
        rows, columns = made["low"].shape[2:]
        top, left = int(rng.integers(rows - self.patch + 1)), int(rng.integers(columns - self.patch + 1))
        patches = {}
        for name, value in made.items():
            scale = 1 if name == "low" else self.store.scale
            patches[name] = value[0, :, top * scale : (top + self.patch) * scale, left * scale : (left + self.patch) * scale].contiguous()
        return patches


def cut(image: npt.NDArray[np.uint8], top: int, left: int, side: int) -> npt.NDArray[np.uint8]:
    """The square part of a picture (H, W, C)."""
    return image[top : top + side, left : left + side]


def turn_alike(images: Sequence[npt.NDArray[np.uint8]], rng: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
    """The pictures (H, W, C), all mirrored and turned by quarters in the same random way: one of eight."""
    mirrored, quarters = bool(rng.integers(2)), int(rng.integers(4))
    return [np.rot90(image[:, ::-1] if mirrored else image, quarters) for image in images]


def to_tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    """(H, W, C) in 0..255 -> float32 (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)


def to_picture(image: Tensor) -> Picture:
    """(3, H, W) on any device -> 8-bit (H, W, 3): clipped to [0, 1] and rounded."""
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
