"""The U-Net discriminator with spectral norm of Real-ESRGAN (Wang et al., ICCV Workshops 2021): a judgement for each pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class UNetDiscriminator(nn.Module):
    """Tells pictures of high resolution from restored ones.

    Args:
        in_channels: of the pictures.
        features: of the first level; the deepest has eight times as many.
    """

    def __init__(self, in_channels: int = 3, features: int = 64) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, *, down: bool = False) -> nn.Module:
            size, stride = (4, 2) if down else (3, 1)
            return spectral_norm(nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False))

        n = features
        self.conv0 = nn.Conv2d(in_channels, n, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = (conv(n * i, n * 2 * i, down=True) for i in (1, 2, 4))
        self.conv4, self.conv5, self.conv6 = (conv(n * 2 * i, n * i) for i in (4, 2, 1))
        self.conv7, self.conv8 = conv(n, n), conv(n, n)
        self.conv9 = nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) with sides that are multiples of 8 -> logits (B, 1, H, W), above 0 where a picture looks real."""
        x0 = _activate(self.conv0(x))
        x1 = _activate(self.conv1(x0))
        x2 = _activate(self.conv2(x1))
        x3 = _activate(self.conv3(x2))
        x = _activate(self.conv4(_twice(x3))) + x2
        x = _activate(self.conv5(_twice(x))) + x1
        x = _activate(self.conv6(_twice(x))) + x0
        return self.conv9(_activate(self.conv8(_activate(self.conv7(x)))))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
