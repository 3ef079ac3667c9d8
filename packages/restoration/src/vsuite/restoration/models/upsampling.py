"""Convolutions and pixel shuffles with no activation between them: in bands of rows, or joined into one convolution."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REACH = 2  # coarse pixels: 1 of the first convolution, 1/2 of the second, 1/4 of the third, ...
SMALLEST = 24  # coarse pixels a side, below which the frame is most of the map
AT_ONCE = 8  # channels, while the kernel is found
BAND, FEWEST_ROWS = 2048, 16  # coarse pixels of a band, and rows


def upsample_in_bands(upsampler: Callable[[Tensor], Tensor], x: Tensor, scale: int) -> Tensor:
    """What `upsampler`, as in `JoinedUpsampler`, makes of x, in bands of rows, as its finer maps are the largest of a model.

    B, channels, H, W -> B, C, scale * H, scale * W.
    """
    height, width = x.shape[2:]
    rows = max(BAND // width, FEWEST_ROWS)
    bands = []
    for top in range(0, height, rows):
        first = max(top - REACH, 0)
        band = upsampler(x[:, :, first : top + rows + REACH])
        bands.append(band[:, :, scale * (top - first) :][:, :, : scale * min(rows, height - top)])
    return torch.cat(bands, 2)


class JoinedUpsampler(nn.Module):
    """What `upsampler` does, as one convolution of 5 x 5 coarse pixels.

    Of DRCT x4 that is, with the frame, 0.48, 0.29 and 0.15 of the work on maps of 32 x 32, 64 x 64 and 256 x 256.

    The outermost coarse row or column on each side goes the long way: the zeros around the finer maps count there.

    Args:
        upsampler: 3 x 3 convolutions with zeros around their maps, and pixel shuffles, linear as a whole. Is kept.
        channels: of its input.
        scale: its whole factor.
    """

    kernel: Tensor
    bias: Tensor

    def __init__(self, upsampler: nn.Sequential, channels: int, scale: int) -> None:
        super().__init__()
        self.upsampler = upsampler
        self.scale = scale
        kernel, bias = _response(upsampler, channels, scale)
        like = next(upsampler.parameters())
        self.register_buffer("kernel", kernel.to(like).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(like))

    def forward(self, x: Tensor) -> Tensor:
        """B, channels, H, W -> B, C, scale * H, scale * W."""
        if min(x.shape[2:]) < SMALLEST:
            return self.upsampler(x)
        edge, known = self.scale, REACH + 1
        out = F.pixel_shuffle(F.conv2d(x, self.kernel, self.bias, padding=REACH), self.scale)
        first, last = self.upsampler(torch.cat([x[:, :, :known], x[:, :, -known:]])).chunk(2)
        out[:, :, :edge], out[:, :, -edge:] = first[:, :, :edge], last[:, :, -edge:]
        first, last = self.upsampler(torch.cat([x[..., :known], x[..., -known:]])).chunk(2)
        out[..., :edge], out[..., -edge:] = first[..., :edge], last[..., -edge:]
        return out


@torch.no_grad()
def _response(upsampler: nn.Sequential, channels: int, scale: int) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that gives each coarse pixel its scale * scale fine ones, as channels.

    Found by sending single bright pixels through, in double precision, on a map so large that its edge is out of reach.
    """
    exact = copy.deepcopy(upsampler).to("cpu", torch.float64)
    constant = exact(torch.zeros(1, channels, 2 * REACH + 3, 2 * REACH + 3, dtype=torch.float64))
    bright = F.pad(torch.eye(channels, dtype=torch.float64)[:, :, None, None], (REACH + 1,) * 4)
    answers = torch.cat([F.pixel_unshuffle(exact(some) - constant, scale) for some in bright.split(AT_ONCE)])
    kernel = answers[..., 1:-1, 1:-1].flip(2, 3).transpose(0, 1)
    return kernel, F.pixel_unshuffle(constant, scale)[0, :, REACH + 1, REACH + 1]
