"""The ResNet of Big Transfer as R50-ViT and TransUNet use it: standardised weights, group norm, three stages.

It is called pre-activation in the published code and ends each unit with the activation all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError

NUM_GROUPS = 32


class StandardisedConv2d(nn.Conv2d):
    """Convolution without bias whose kernels are brought to mean 0 and variance 1, a filter each, before they are applied.

    `fold()` does that once and for all; until then it happens in each forward pass, as training needs it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight if self.folded else self.standardised_weight(), None, self.stride, self.padding)

    def standardised_weight(self) -> Tensor:
        """(w - mean) / sqrt(variance + 1e-5) over input channels and kernel, as one fused operation: a layer norm of the filters."""
        return F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-5)

    @torch.no_grad()
    def fold(self) -> None:
        if self.folded:
            return
        self.weight.data = self.standardised_weight().contiguous(memory_format=torch.channels_last)
        self.folded = True


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NUM_GROUPS, channels, eps=1e-6)


class BottleneckUnit(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution with group norms, and a shortcut.

    B, in_channels, H, W -> B, out_channels, ceil(H / stride), ceil(W / stride). The norm of a projected shortcut
    differs from the others: one group a channel, eps 1e-5.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = StandardisedConv2d(in_channels, width, 1)
        self.gn1 = group_norm(width)
        self.conv2 = StandardisedConv2d(width, width, 3, stride)
        self.gn2 = group_norm(width)
        self.conv3 = StandardisedConv2d(width, out_channels, 1)
        self.gn3 = group_norm(out_channels)
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.downsample = StandardisedConv2d(in_channels, out_channels, 1, stride)
            self.gn_proj = nn.GroupNorm(out_channels, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gn1(self.conv1(x)), inplace=True)
        y = F.relu(self.gn2(self.conv2(y)), inplace=True)
        y = self.gn3(self.conv3(y))
        y = y + (self.gn_proj(self.downsample(x)) if self.projects else x)
        return F.relu(y, inplace=True)


class ResNetV2(nn.Module):
    """Root and three stages at strides 4, 8, 16. B, in_channels, H, W with sides that are multiples of 16.

    Args:
        in_channels: of the image.
        depths: units of each of the three stages.
        width: channels of the root, a multiple of 32; the stages return 4, 8 and 16 times as many.
    """

    def __init__(self, in_channels: int = 3, depths: Sequence[int] = (3, 4, 9), width: int = 64) -> None:
        super().__init__()
        if len(depths) != 3 or min(depths) < 1:
            raise InputError(f"resnet_depths must be three numbers from 1 up; got {list(depths)}")
        if width < NUM_GROUPS or width % NUM_GROUPS:
            raise InputError(f"resnet_width must be a multiple of {NUM_GROUPS}; got {width}")
        self.out_channels = 16 * width
        self.skip_channels = (8 * width, 4 * width, width)
        self.root = nn.Sequential(
            OrderedDict(conv=StandardisedConv2d(in_channels, width, 7, 2), gn=group_norm(width), relu=nn.ReLU(inplace=True))
        )
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        before = width
        for i, depth in enumerate(depths):
            out = width << (2 + i)
            units = [BottleneckUnit(before, out, stride=1 if i == 0 else 2), *(BottleneckUnit(out, out) for _ in range(depth - 1))]
            stages[f"block{i + 1}"] = nn.Sequential(OrderedDict((f"unit{j}", unit) for j, unit in enumerate(units, 1)))
            before = out
        self.body = nn.Sequential(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map (stride 16), and the maps at strides 8, 4 and 2 for a decoder."""
        height, width = x.shape[2:]
        root = self.root(x)
        block1, block2, block3 = self.body
        first = block1(F.max_pool2d(root, 3, 2))  # without padding: a row and a column short of stride 4
        second = block2(first)
        padded = F.pad(first, (0, width // 4 - first.shape[3], 0, height // 4 - first.shape[2]))
        return block3(second), [second, padded, root]
