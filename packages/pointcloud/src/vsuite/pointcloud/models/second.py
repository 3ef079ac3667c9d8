"""SECOND's convolutional backbone and feature pyramid on bird's-eye-view maps (Yan et al., 2018), as mmdetection3d names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class ConvUnit(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU, and (residual, where the shape stays) the input added after the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, residual: bool) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), _norm(out_channels), nn.ReLU(inplace=True))
        self.residual = residual and stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.residual:
            return out
        return out + x if torch.is_grad_enabled() else out.add_(x)  # a fresh map costs more than the addition

    def fold(self) -> None:
        conv, norm = self[0], self[1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_batch_norm(conv, norm)
            self[1] = nn.Identity()


class SECOND(nn.Module):
    """Stages of convolutions; each stage's map goes to the neck.

    Args:
        in_channels: of the bird's-eye-view map.
        out_channels: of each stage.
        layer_nums: convolutions of each stage after its first one.
        layer_strides: of each stage's first convolution.
        residual: shortcuts as FlatFormer has them.
    """

    def __init__(
        self,
        *,
        in_channels: int = 128,
        out_channels: Sequence[int] = (64, 128),
        layer_nums: Sequence[int] = (3, 3),
        layer_strides: Sequence[int] = (1, 2),
        residual: bool = True,
    ) -> None:
        super().__init__()
        if not len(out_channels) == len(layer_nums) == len(layer_strides) > 0:
            raise InputError(
                f"SECOND takes one entry a stage; got {len(out_channels)} out_channels, {len(layer_nums)} layer_nums,"
                f" {len(layer_strides)} layer_strides"
            )
        if min(in_channels, *out_channels, *layer_strides) < 1 or min(layer_nums) < 0:
            raise InputError("SECOND takes positive channels and strides")
        widths = [in_channels, *out_channels]
        stages = []
        for i, count in enumerate(layer_nums):
            units = [ConvUnit(widths[i], widths[i + 1], layer_strides[i], residual)]
            units += [ConvUnit(widths[i + 1], widths[i + 1], 1, residual) for _ in range(count)]
            stages.append(nn.Sequential(*units))
        self.blocks = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """B, C, H, W -> one map a stage, B, C_i, H_i, W_i with H_i = ceil(H / strides so far)."""
        maps = []
        for stage in self.blocks:
            x = stage(x)
            maps.append(x)
        return maps


class UpUnit(nn.Sequential):
    """Transposed convolution whose kernel is its stride (a plain strided one for strides below 1), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: float, use_conv_for_no_stride: bool) -> None:
        up = stride > 1 or (stride == 1 and not use_conv_for_no_stride)
        step = round(stride if up else 1 / stride)
        kind = nn.ConvTranspose2d if up else nn.Conv2d
        super().__init__(kind(in_channels, out_channels, step, step, bias=False), _norm(out_channels), nn.ReLU(inplace=True))

    def fold(self) -> None:
        conv, norm = self[0], self[1]
        if isinstance(norm, nn.Identity):
            return
        assert isinstance(norm, nn.BatchNorm2d)
        if isinstance(conv, nn.ConvTranspose2d):  # its weight has the output channels second
            weight = conv.weight.data.transpose(0, 1)
            proxy = nn.Conv2d(conv.out_channels, 1, 1, bias=False)
            proxy.weight = nn.Parameter(weight, requires_grad=False)
            fold_batch_norm(proxy, norm)
            conv.weight = nn.Parameter(proxy.weight.transpose(0, 1).contiguous(), requires_grad=False)
            conv.bias = proxy.bias
        elif isinstance(conv, nn.Conv2d):
            fold_batch_norm(conv, norm)
        self[1] = nn.Identity()


class SECONDFPN(nn.Module):
    """Brings the stages' maps to one size and concatenates them.

    Args:
        in_channels, out_channels: of each stage's map, before and after.
        upsample_strides: factor of each stage, such as 2; below 1 shrinks (0.5: by two).
        use_conv_for_no_stride: for factor 1, a convolution in place of a transposed one (the weight's axes differ).
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int] = (64, 128),
        out_channels: Sequence[int] = (128, 128),
        upsample_strides: Sequence[float] = (1, 2),
        use_conv_for_no_stride: bool = False,
    ) -> None:
        super().__init__()
        if not len(in_channels) == len(out_channels) == len(upsample_strides) > 0:
            raise InputError(
                f"SECONDFPN takes one entry a stage; got {len(in_channels)} in_channels, {len(out_channels)} out_channels,"
                f" {len(upsample_strides)} upsample_strides"
            )
        if min(*in_channels, *out_channels) < 1 or min(upsample_strides) <= 0:
            raise InputError("SECONDFPN takes positive channels and strides")
        self.deblocks = nn.ModuleList(
            UpUnit(i, o, s, use_conv_for_no_stride) for i, o, s in zip(in_channels, out_channels, upsample_strides, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One B, C_i, H_i, W_i a stage -> B, sum of out_channels, H, W, cropped to the smallest where sizes are not multiples."""
        raised = [unit(x) for unit, x in zip(self.deblocks, maps, strict=True)]
        height, width = min(x.shape[2] for x in raised), min(x.shape[3] for x in raised)
        return torch.cat([x[:, :, :height, :width] for x in raised], dim=1)
