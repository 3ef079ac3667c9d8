"""Random changes of training images. All randomness comes from the generator that is passed in.

Images are H, W, C float32 from 0 to 1 once they are cropped. RandAugment: Cubuk et al., 2020, with strengths that all rise
with the magnitude, as in the recipes of DeiT, Swin and ConvNeXt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from vsuite.core.images.files import Pixels
from vsuite.core.images.preprocessing import GREY, PreprocessingSettings, normalise, to_unit

Image = NDArray[np.float32]
Generator = np.random.Generator

FILL = 0.5  # of what a shift or rotation brings in


class RandAugmentSettings(BaseModel):
    """Attributes:
    operations: drawn for an image, each applied with `probability`.
    magnitude: from 0 to 10, the mean; magnitude_std: of the normal distribution that each operation's is drawn from.
    """

    model_config = ConfigDict(extra="forbid")

    operations: int = Field(default=2, ge=1)
    magnitude: float = Field(default=9.0, ge=0, le=10)
    magnitude_std: float = Field(default=0.5, ge=0)
    probability: float = Field(default=0.5, ge=0, le=1)


class AugmentationSettings(BaseModel):
    """What happens to a training image, in this order, and then to a batch.

    Attributes:
        crop_scale, crop_ratio: share of the image's area and ratio of the sides of a random crop, which is resized.
        flip, flip_vertical: probability of mirroring left and right, up and down.
        rand_augment: None leaves it out.
        colour_jitter: largest relative change of brightness, contrast and saturation.
        erasing: probability that a rectangle (2 % to a third of the area) is replaced by noise.
        mixup, cutmix: alpha of the beta distribution of the share of the other image; 0 leaves it out. Where both are
            given, one of the two is drawn for a batch, each as often.
        mix_probability: of mixing a batch at all.
    """

    model_config = ConfigDict(extra="forbid")

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    rand_augment: RandAugmentSettings | None = None
    colour_jitter: float = Field(default=0.0, ge=0, le=1)
    erasing: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    mix_probability: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ranges(self) -> AugmentationSettings:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be a range within 0 to 1; got {list(self.crop_scale)}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be a range of positive ratios; got {list(self.crop_ratio)}")
        return self


def augment(pixels: Pixels, settings: AugmentationSettings, preprocessing: PreprocessingSettings, rng: Generator) -> Tensor:
    """An image as `read_image` gives it -> a network's input C, H, W, changed at random."""
    assert preprocessing.size is not None
    if preprocessing.intensity == "image":  # the whole image's range, not the part's
        pixels = to_unit(pixels, preprocessing)
    image = random_crop(pixels, settings.crop_scale, settings.crop_ratio, rng)
    image = resize(image if preprocessing.intensity == "image" else to_unit(image, preprocessing), preprocessing.size)
    if rng.random() < settings.flip:
        image = image[:, ::-1]
    if rng.random() < settings.flip_vertical:
        image = image[::-1]
    if settings.rand_augment is not None:
        image = rand_augment(image, settings.rand_augment, rng)
    if settings.colour_jitter:
        image = colour_jitter(image, settings.colour_jitter, rng)
    normalised = normalise(image, preprocessing)
    if rng.random() < settings.erasing:
        erase(normalised, rng)
    return normalised


def random_crop(image: Pixels, scale: tuple[float, float], ratio: tuple[float, float], rng: Generator) -> Pixels:
    """A part of the image of random area, ratio and place; where ten draws do not fit into it, the largest part that does."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return image[top : top + h, left : left + w]
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    top, left = (height - h) // 2, (width - w) // 2
    return image[top : top + h, left : left + w]


def resize(image: Image, size: tuple[int, int]) -> Image:
    """H, W, C -> `size`: averaging areas where it shrinks, cubic where it grows."""
    import cv2

    if image.shape[:2] == size:
        return image
    shrinks = image.shape[0] * image.shape[1] > size[0] * size[1]
    resized = cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized.reshape(*size, -1).clip(0, 1)


def colour_jitter(image: Image, strength: float, rng: Generator) -> Image:
    """Brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength, in random order."""
    factors = rng.uniform(1 - strength, 1 + strength, size=3)
    for index in rng.permutation(3):
        image = (_brightness, _contrast, _colour)[index](image, float(factors[index]))
    return image


def erase(image: Tensor, rng: Generator) -> None:
    """Replaces a rectangle of a normalised C, H, W by noise of mean 0 and standard deviation 1, in place."""
    channels, height, width = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            image[:, top : top + h, left : left + w] = torch.from_numpy(rng.standard_normal((channels, h, w), np.float32))
            return


# --- RandAugment ---


def rand_augment(image: Image, settings: RandAugmentSettings, rng: Generator) -> Image:
    """Some operations out of `OPERATIONS`, one after the other."""
    for index in rng.integers(0, len(OPERATIONS), settings.operations):
        applied = rng.random() < settings.probability
        strength = min(max(rng.normal(settings.magnitude, settings.magnitude_std), 0.0), 10.0) / 10
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            image = OPERATIONS[index](image, strength, sign)
    return image


def _blend(image: Image, other: Image | float, factor: float) -> Image:
    """The other image at factor 0, the image at 1, beyond it above."""
    return np.clip(other + (image - other) * np.float32(factor), 0, 1, dtype=np.float32)


def _brightness(image: Image, factor: float) -> Image:
    return _blend(image, 0.0, factor)


def _contrast(image: Image, factor: float) -> Image:
    return _blend(image, float(np.mean(_grey(image))), factor)


def _colour(image: Image, factor: float) -> Image:
    return _blend(image, _grey(image), factor)


def _grey(image: Image) -> Image:
    return image if image.shape[2] == 1 else np.asarray(image @ GREY, np.float32)[..., None]


def _sharpness(image: Image, factor: float) -> Image:
    import cv2

    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(np.ascontiguousarray(image), -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return _blend(image, np.asarray(smooth, np.float32).reshape(image.shape), factor)


def _autocontrast(image: Image) -> Image:
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    return np.where(high > low, (image - low) / np.maximum(high - low, 1e-6), image).astype(np.float32)


def _equalize(image: Image) -> Image:
    """Each channel's values by their rank among 256 levels."""
    levels = np.rint(image * 255).astype(np.uint8)
    found = np.empty_like(image)
    for channel in range(image.shape[2]):
        counts = np.bincount(levels[..., channel].reshape(-1), minlength=256)
        ranks = counts.cumsum()
        least = ranks[np.flatnonzero(counts)[0]]
        span = ranks[-1] - least
        table = (ranks - least) / span if span else np.arange(256) / 255  # one value only: nothing to equalise
        found[..., channel] = table.clip(0, 1)[levels[..., channel]]
    return found


def _posterize(image: Image, strength: float) -> Image:
    keep = 1 << (8 - max(1, 4 - int(4 * strength)))
    return (np.floor(np.rint(image * 255) / keep) * keep / 255).astype(np.float32)


def _solarize(image: Image, strength: float) -> Image:
    return np.where(image >= 1 - strength, 1 - image, image)


def _solarize_add(image: Image, strength: float) -> Image:
    return np.where(image < 0.5, np.clip(image + np.float32(strength * 110 / 255), 0, 1, dtype=np.float32), image)


def _affine(image: Image, matrix: list[list[float]]) -> Image:
    """The image under a 2x2 matrix about its centre and a shift (columns x, y, shift in pixels)."""
    import cv2

    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    linear, shift = np.array(matrix)[:, :2], np.array(matrix)[:, 2]
    full = np.column_stack([linear, centre - linear @ centre + shift])
    moved = cv2.warpAffine(
        np.ascontiguousarray(image), full, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL,) * 4
    )
    return np.asarray(moved, np.float32).reshape(image.shape)


def _rotate(image: Image, degrees: float) -> Image:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(image, [[cosine, -sine, 0], [sine, cosine, 0]])


# Image, strength from 0 to 1, sign -> image. What has two directions takes the sign.
OPERATIONS: tuple[Callable[[Image, float, float], Image], ...] = (
    lambda image, strength, sign: _autocontrast(image),
    lambda image, strength, sign: _equalize(image),
    lambda image, strength, sign: 1 - image,
    lambda image, strength, sign: _rotate(image, sign * 30 * strength),
    lambda image, strength, sign: _posterize(image, strength),
    lambda image, strength, sign: _solarize(image, strength),
    lambda image, strength, sign: _solarize_add(image, strength),
    lambda image, strength, sign: _colour(image, 1 + sign * 0.9 * strength),
    lambda image, strength, sign: _contrast(image, 1 + sign * 0.9 * strength),
    lambda image, strength, sign: _brightness(image, 1 + sign * 0.9 * strength),
    lambda image, strength, sign: _sharpness(image, 1 + sign * 0.9 * strength),
    lambda image, strength, sign: _affine(image, [[1, sign * 0.3 * strength, 0], [0, 1, 0]]),
    lambda image, strength, sign: _affine(image, [[1, 0, 0], [sign * 0.3 * strength, 1, 0]]),
    lambda image, strength, sign: _affine(image, [[1, 0, sign * 0.45 * strength * image.shape[1]], [0, 1, 0]]),
    lambda image, strength, sign: _affine(image, [[1, 0, 0], [0, 1, sign * 0.45 * strength * image.shape[0]]]),
)


# --- batches ---


def mix(images: Tensor, targets: Tensor, settings: AugmentationSettings) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of a batch with itself in reverse order.

    Drawn from torch's global generator of the CPU, whose state a run's checkpoints keep.

    Args:
        images: B, C, H, W. targets: B, K, from 0 to 1.
    """
    chosen = [(name, alpha) for name, alpha in (("mixup", settings.mixup), ("cutmix", settings.cutmix)) if alpha > 0]
    if not chosen or float(torch.rand(())) >= settings.mix_probability:
        return images, targets
    name, alpha = chosen[int(torch.randint(len(chosen), ()))]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if name == "mixup":
        images = images * share + images.flip(0) * (1 - share)
    else:
        top, bottom, left, right = _box(images.shape[2], images.shape[3], share)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return images, targets * share + targets.flip(0) * (1 - share)


def _box(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """A random rectangle of 1 - share of the area, cut off at the borders."""
    h, w = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    return max(0, y - h // 2), min(height, y - h // 2 + h), max(0, x - w // 2), min(width, x - w // 2 + w)
