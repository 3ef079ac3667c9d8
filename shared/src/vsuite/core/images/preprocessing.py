"""What is done to an image before a network sees it. It is kept inside the weights file, so that prediction does the same."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.images.files import Pixels

Size = tuple[int, int]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B in luminance (ITU-R BT.601)


class PreprocessingSettings(BaseModel):
    """How an image of any size and kind becomes the network's input.

    Attributes:
        size: H, W in pixels; None lets training choose: as large as the images are (median of the shorter sides, in steps of
            32), 224 at the most.
        channels: 1 turns colours into grey, 3 repeats grey.
        crop: the image is scaled so that `size` covers this share of its shorter side, and cut in the middle.
        fit: "crop" does that; "stretch" scales both sides to `size` whatever their ratio, and cuts nothing.
        interpolation: "bicubic" or "bilinear", both antialiased as in Pillow, or "nearest".
        intensity: "type" divides by the largest value of the number type (255, 65535); "image" stretches each image from its
            own least to its greatest value, for 12-bit data in 16-bit files, say.
        mean, std: subtracted and divided by, for each channel, on the scale from 0 to 1; None is ImageNet's.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 3
    crop: float = Field(default=1.0, gt=0, le=1)
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    intensity: Literal["type", "image"] = "type"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_side(cls, values: Any) -> Any:
        """A single number is a square."""
        if isinstance(values, dict) and isinstance(values.get("size"), int) and not isinstance(values["size"], bool):
            return values | {"size": (values["size"], values["size"])}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> PreprocessingSettings:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be positive; got {list(self.size)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} needs {self.channels} values, one a channel; got {len(values)}")
        if self.std is not None and not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"std must be positive; got {list(self.std)}")
        return self


def to_unit(pixels: Pixels, settings: PreprocessingSettings) -> NDArray[np.float32]:
    """H, W, C of any number type -> H, W, `channels`, float32 from 0 to 1."""
    if settings.intensity == "image":
        low, high = float(pixels.min()), float(pixels.max())
        unit = (pixels.astype(np.float32) - low) / max(high - low, 1e-12)
    elif pixels.dtype.kind == "f":
        unit = pixels.astype(np.float32)
    else:
        unit = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if unit.shape[2] == settings.channels:
        return unit
    return np.repeat(unit, 3, axis=2) if settings.channels == 3 else np.asarray(unit @ GREY, np.float32)[..., None]


def normalise(unit: NDArray[np.float32], settings: PreprocessingSettings) -> Tensor:
    """H, W, C from 0 to 1 -> C, H, W with mean and standard deviation taken off."""
    mean, std = mean_and_std(settings)
    return torch.from_numpy(np.ascontiguousarray(((unit - mean) / std).transpose(2, 0, 1), np.float32))


def restore(image: Tensor, settings: PreprocessingSettings) -> NDArray[np.uint8]:
    """The inverse of `normalise` as H, W, 3 bytes, for pictures."""
    mean, std = mean_and_std(settings)
    unit = image.float().cpu().numpy().transpose(1, 2, 0) * std + mean
    grey = np.repeat(unit, 3, axis=2) if unit.shape[2] == 1 else unit
    return np.rint(grey.clip(0, 1) * 255).astype(np.uint8)


def mean_and_std(settings: PreprocessingSettings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One value a channel; for grey, ImageNet's averaged over the colours."""
    found = []
    for given, published in ((settings.mean, IMAGENET_MEAN), (settings.std, IMAGENET_STD)):
        values = given if given is not None else published if settings.channels == 3 else (sum(published) / 3,)
        found.append(np.asarray(values, np.float32))
    return found[0], found[1]


def preprocess(pixels: Pixels, settings: PreprocessingSettings) -> Tensor:
    """An image as `read_image` gives it -> the network's input, C, H, W float32."""
    assert settings.size is not None
    height, width = settings.size
    if settings.intensity == "image":  # the whole image's range, not the middle's
        pixels = to_unit(pixels, settings)
    if settings.fit == "crop":  # the part of the image that has the size's ratio, cut out before scaling: less to scale
        pixels = _middle(pixels, settings.size, settings.crop)
    image = pixels if settings.intensity == "image" else to_unit(pixels, settings)
    unit = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if unit.shape[2:] != (height, width):
        smooth = {"antialias": True, "align_corners": False} if settings.interpolation != "nearest" else {}
        unit = F.interpolate(unit, (height, width), mode=settings.interpolation.replace("nearest", "nearest-exact"), **smooth).clamp_(0, 1)
    return normalise(unit[0].permute(1, 2, 0).numpy(), settings)


def _middle(image: Pixels, size: Size, share: float) -> Pixels:
    """The middle of H, W, C that has the ratio of `size` and covers `share` of the largest such part."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1]) * share
    cut = [max(1, min(side, round(wanted * scale))) for side, wanted in zip((height, width), size, strict=True)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    return image[top : top + cut[0], left : left + cut[1]]
