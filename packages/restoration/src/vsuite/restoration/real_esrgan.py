"""Draws the degradations of Real-ESRGAN: blur, resize, noise and JPEG, twice, with all their random strengths."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vsuite.restoration.degradations import Kernel, Shape, blur_kernel, filter_pictures, simulate_jpeg, sinc_kernel, usm_sharpen

Range = tuple[float, float]

SIZES = range(7, 22, 2)
LARGEST = max(SIZES)
KERNELS: tuple[tuple[Shape, bool, float], ...] = (
    ("gaussian", True, 0.45),
    ("gaussian", False, 0.25),
    ("generalized", True, 0.12),
    ("generalized", False, 0.03),
    ("plateau", True, 0.12),
    ("plateau", False, 0.03),
)
"""Shape, whether it is round, and how often it is drawn."""


class StageSettings(BaseModel):
    """How strongly one of the two stages degrades.

    Attributes:
        blur_probability, sinc_probability: of blurring at all, and of a sinc kernel instead of the six others.
        sigma: of the blur, pixels. generalized_beta, plateau_beta: of its shape.
        resize_probabilities: to enlarge, to shrink, to keep. resize: smallest and largest factor.
        gaussian_probability: of Gaussian noise, else Poisson noise. gaussian: its sigma of 255. poisson: its strength.
        grey_probability: of one noise for the three channels.
        jpeg: quality.
    """

    model_config = ConfigDict(extra="forbid")

    blur_probability: float = 1.0
    sinc_probability: float = 0.1
    sigma: Range = (0.2, 3.0)
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize: Range = (0.15, 1.5)
    gaussian_probability: float = 0.5
    gaussian: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    grey_probability: float = 0.4
    jpeg: Range = (30.0, 95.0)


class SecondStageSettings(StageSettings):
    """The second stage, which is milder."""

    blur_probability: float = 0.8
    sigma: Range = (0.2, 1.5)
    resize_probabilities: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize: Range = (0.3, 1.2)
    gaussian: Range = (1.0, 25.0)
    poisson: Range = (0.05, 2.5)


class DegradationSettings(BaseModel):
    """The published recipe, which these defaults are.

    Attributes:
        side: of the square of high resolution that is degraded as a whole.
        final_sinc_probability: of the last sinc filter.
    """

    model_config = ConfigDict(extra="forbid")

    side: int = 400
    first: StageSettings = StageSettings()
    second: SecondStageSettings = SecondStageSettings()
    final_sinc_probability: float = 0.8


class RealEsrganDegradation:
    """Low resolution as the web has it, from high resolution.

    Each picture is degraded on its own. (The official code degrades a batch alike, and therefore mixes batches in a queue.)
    """

    def __init__(self, scale: int, settings: DegradationSettings) -> None:
        self.scale, self.settings = scale, settings

    def __call__(self, high: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        """High resolution (1, 3, H, W) -> "low" (1, 3, H / scale, W / scale), "high", and "sharpened", which `low` was made of."""
        sharpened = usm_sharpen(high)
        height, width = high.shape[2] // self.scale, high.shape[3] // self.scale
        first, second = self.settings.first, self.settings.second
        x = _blur(sharpened, first, rng)
        x = resize(x, *_sides(high.shape[2], high.shape[3], first, rng), rng)
        x = _jpeg(add_noise(x, first, rng), first, rng)
        x = _blur(x, second, rng)
        x = add_noise(resize(x, *_sides(height, width, second, rng), rng), second, rng)
        filtered = rng.random() < self.settings.final_sinc_probability
        kernel = draw_sinc(rng, math.pi / 3) if filtered else _pulse()
        if rng.random() < 0.5:
            x = _jpeg(_filter(resize(x, height, width, rng), kernel), second, rng)
        else:
            x = _filter(resize(_jpeg(x, second, rng), height, width, rng), kernel)
        return {"low": (x.clamp(0, 1) * 255).round() / 255, "high": high, "sharpened": sharpened}


def draw_kernel(settings: StageSettings, rng: np.random.Generator) -> Kernel:
    """A blur kernel as a stage draws it, padded to 21 x 21."""
    size = int(rng.choice(SIZES))
    if rng.random() < settings.sinc_probability:
        return draw_sinc(rng, math.pi / 3 if size < 13 else math.pi / 5, size)
    shape, is_round, _ = KERNELS[rng.choice(len(KERNELS), p=[kind[2] for kind in KERNELS])]
    sigma_x = float(rng.uniform(*settings.sigma))
    sigma_y, angle = (sigma_x, 0.0) if is_round else (float(rng.uniform(*settings.sigma)), float(rng.uniform(-math.pi, math.pi)))
    low, high = settings.plateau_beta if shape == "plateau" else settings.generalized_beta
    beta = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))
    return np.pad(blur_kernel(size, sigma_x, sigma_y, angle, shape, beta), (LARGEST - size) // 2)


def draw_sinc(rng: np.random.Generator, lowest: float, size: int | None = None) -> Kernel:
    """A sinc kernel of random cutoff (and size), padded to 21 x 21."""
    return sinc_kernel(float(rng.uniform(lowest, math.pi)), size or int(rng.choice(SIZES)), LARGEST)


def _pulse() -> Kernel:
    kernel = np.zeros((LARGEST, LARGEST))
    kernel[LARGEST // 2, LARGEST // 2] = 1
    return kernel


def _filter(x: Tensor, kernel: Kernel) -> Tensor:
    return filter_pictures(x, torch.from_numpy(kernel))


def _blur(x: Tensor, settings: StageSettings, rng: np.random.Generator) -> Tensor:
    if rng.random() >= settings.blur_probability:
        return x
    return _filter(x, draw_kernel(settings, rng))


def _sides(height: int, width: int, settings: StageSettings, rng: np.random.Generator) -> tuple[int, int]:
    """The sides after a stage's random resize of what would be (height, width)."""
    low, high = settings.resize
    kind = rng.choice(3, p=settings.resize_probabilities)
    factor = float((rng.uniform(1, high), rng.uniform(low, 1), 1.0)[kind])
    return max(1, int(height * factor)), max(1, int(width * factor))


def resize(x: Tensor, height: int, width: int, rng: np.random.Generator) -> Tensor:
    """Resizes by area, bilinear or bicubic at random, without antialiasing."""
    mode = ("area", "bilinear", "bicubic")[rng.integers(3)]
    return F.interpolate(x, size=(height, width), mode=mode)


def add_noise(x: Tensor, settings: StageSettings, rng: np.random.Generator) -> Tensor:
    """Adds Gaussian or Poisson noise of random strength, in colour or grey; the result is clipped to [0, 1]."""
    gaussian, grey = rng.random() < settings.gaussian_probability, rng.random() < settings.grey_probability
    if gaussian:
        noise = gaussian_noise(x, float(rng.uniform(*settings.gaussian)), rng, grey)
    else:
        noise = float(rng.uniform(*settings.poisson)) * poisson_noise(x, rng, grey)
    return (x + noise).clamp(0, 1)


def gaussian_noise(x: Tensor, sigma: float, rng: np.random.Generator, grey: bool) -> Tensor:
    """Noise of the given sigma (of 255) for pictures (B, 3, H, W); (B, 1, H, W) where it is grey."""
    shape = (x.shape[0], 1 if grey else x.shape[1], *x.shape[2:])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * (sigma / 255)


def poisson_noise(x: Tensor, rng: np.random.Generator, grey: bool) -> Tensor:
    """The noise of counting photons in one picture (1, 3, H, W): brighter parts get more; (1, 1, H, W) where it is grey."""
    if grey:
        x = (x * x.new_tensor([0.2989, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    x = (x * 255).round().clamp(0, 255)
    levels = 2 ** math.ceil(math.log2(int(x.long().flatten().bincount().count_nonzero())))
    x = x / 255
    counts = rng.poisson((x * levels).numpy()).astype(np.float32)
    return torch.from_numpy(counts) / levels - x


def _jpeg(x: Tensor, settings: StageSettings, rng: np.random.Generator) -> Tensor:
    return simulate_jpeg(x.clamp(0, 1), float(rng.uniform(*settings.jpeg)))
