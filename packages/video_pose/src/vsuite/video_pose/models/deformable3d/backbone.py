"""The convolutions that turn a clip, or poses drawn as heatmaps, into a volume of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm

Sizes = tuple[int, int, int]


class ConvNorm(nn.Sequential):
    """A convolution without bias, its batch norm, and ReLU unless `activation` is false; the names are torchvision's."""

    def __init__(self, in_dim: int, out_dim: int, kernel: Sizes, stride: Sizes = (1, 1, 1), *, activation: bool = True) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        conv = nn.Conv3d(in_dim, out_dim, kernel, stride, padding, bias=False)
        super().__init__(conv, nn.BatchNorm3d(out_dim), *[nn.ReLU()] * activation)

    def fold(self) -> None:
        """Folds the batch norm into the convolution."""
        conv, norm = self[0], self[1]
        if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            fold_batch_norm(conv, norm)
            self[1] = nn.Identity()


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut.

    Args:
        in_dim, out_dim: channels.
        stride: of the first convolution in height and width.
        temporal: kernels of 3 x 3 x 3, else of 1 x 3 x 3.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: int, *, temporal: bool) -> None:
        super().__init__()
        kernel, steps = (3 if temporal else 1, 3, 3), (1, stride, stride)
        self.conv1 = ConvNorm(in_dim, out_dim, kernel, steps)
        self.conv2 = ConvNorm(out_dim, out_dim, kernel, activation=False)
        same = stride == 1 and in_dim == out_dim
        self.downsample = nn.Identity() if same else ConvNorm(in_dim, out_dim, (1, 1, 1), steps, activation=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.downsample(x) + self.conv2(self.conv1(x)))


class MixedConvolutions(nn.Module):
    """A residual network that convolves over time in its stem and first stage alone; with the defaults torchvision's `mc3_18`.

    Time keeps its length; the stem and each stage but the first halve height and width. The names are torchvision's, so its
    weights load.

    Args:
        in_channels: of a frame.
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        stem_kernel: odd sizes (t, h, w) of the first convolution.
    """

    def __init__(
        self, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 2, stem_kernel: Sizes = (3, 7, 7)
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if len(widths) < 2 or min(widths) < 1 or blocks < 1 or in_channels < 1:
            raise InputError(f"a backbone has two stages or more, of one channel and block or more; got widths {widths}, {blocks} blocks")
        self.in_channels = in_channels
        self.widths = widths
        self.stem = ConvNorm(in_channels, widths[0], stem_kernel, (1, 2, 2))
        before = widths[0]
        for number, width in enumerate(widths, start=1):
            stride, temporal = (1, True) if number == 1 else (2, False)
            first = ResidualBlock(before, width, stride, temporal=temporal)
            others = [ResidualBlock(width, width, 1, temporal=temporal) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *others))
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: B, in_channels, T, H, W -> the maps of the last stage but one, and of the last: B, widths[i], T, H', W'."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))  # a third faster on a CPU, and what the tokens want
        for number in range(1, len(self.widths)):
            x = getattr(self, f"layer{number}")(x)
        return x, getattr(self, f"layer{len(self.widths)}")(x)
