"""A model small enough to be trained in a test, and pictures to train it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vsuite.core.registry import register_model


class Toy(nn.Module):
    """Repeats each pixel, and learns what to add."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.inner = nn.Conv2d(3, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 3 * scale**2, 3, padding=1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        details = self.outer(torch.relu(self.inner(x)))
        return nn.functional.pixel_shuffle(x.repeat_interleave(self.scale**2, dim=1) + details, self.scale)


@register_model(system="toy", task="restoration", paper="none", licence="none")
def restoration_toy(*, scale: int = 2) -> nn.Module:
    """A toy for tests."""
    return Toy(scale)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of six smooth pictures, 48 x 40 and 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(6):
        height, width = (40, 48) if number % 2 else (48, 40)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"picture_{number}.png")
    return folder
