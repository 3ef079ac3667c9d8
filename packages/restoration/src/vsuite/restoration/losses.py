"""Losses of restoration: of pixels, of features, and of a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsuite.core import load_weights
from vsuite.core.errors import InputError


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 1e-6) -> Tensor:
    """The mean of sqrt(difference^2 + epsilon^2): L1 without the kink at zero."""
    return ((output - target) ** 2 + epsilon**2).sqrt().mean()


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss, "charbonnier": charbonnier}
"""Name -> mean loss of two pictures (B, C, H, W)."""


def gan_loss(logits: Tensor, *, real: bool) -> Tensor:
    """The vanilla GAN's cross entropy: how far the discriminator's logits are from "all of it is real" (or "nothing is")."""
    return F.softplus(-logits if real else logits).mean()


VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Channels of the convolutions; 0 halves the size."""

PERCEPTUAL_LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
"""The published features, and the weight of each."""


class Vgg19Features(nn.Module):
    """The convolutions of VGG19 under torchvision's names ("features.0", "features.2", ...), as a measure of likeness."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1), persistent=False)
        self.features = nn.ModuleDict()
        self.names: dict[str, str] = {}  # of the convolutions, such as conv3_4
        index, block, number, channels = 0, 1, 0, 3
        for width in VGG19:
            if width == 0:
                index, block, number = index + 1, block + 1, 0
                continue
            number += 1
            self.features[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
            self.names[str(index)] = f"conv{block}_{number}"
            index, channels = index + 2, width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """RGB (B, 3, H, W) in [0, 1] -> the outputs of all convolutions, before their activations."""
        x = (x - self.mean) / self.std
        outputs: dict[str, Tensor] = {}
        for index, conv in self.features.items():
            name = self.names[index]
            if name.endswith("_1") and outputs:
                x = F.max_pool2d(x, 2)
            outputs[name] = conv(x)
            x = outputs[name].relu()
        return outputs


def load_vgg19(path: str | Path | None) -> Vgg19Features:
    """VGG19 with weights from a file in torchvision's layout (its classifier is not needed), not to be trained.

    Raises:
        InputError: where there is no file, or it is of another network.
    """
    if path is None:
        raise InputError(
            "loss.perceptual_weights: the perceptual loss needs a file of VGG19's weights (torchvision's vgg19, .pth or .safetensors); "
            "or leave the term out with loss.perceptual_weight=0"
        )
    features = Vgg19Features()
    missing = load_weights(features, path, strict=False).missing
    if missing:
        raise InputError(f"{path}: holds no VGG19 in torchvision's layout: {missing[0]} is missing")
    return features.eval().requires_grad_(False)


class PerceptualLoss(nn.Module):
    """The weighted L1 distance of features.

    Args:
        features: any module from a picture to features by name.
        layers: name -> weight.
    """

    def __init__(self, features: nn.Module, layers: Mapping[str, float] = PERCEPTUAL_LAYERS) -> None:
        super().__init__()
        self.features, self.layers = features, dict(layers)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The distance of two pictures (B, 3, H, W) in [0, 1]; gradients flow to the first."""
        found = self.features(output)
        with torch.no_grad():
            wanted = self.features(target)
        distances = [weight * F.l1_loss(found[name], wanted[name]) for name, weight in self.layers.items()]
        return torch.stack(distances).sum()
