"""The two-stage degradation of Real-ESRGAN: what happens to a picture between the scene and the web.

Pictures are torch (B, 3, H, W), float32 in [0, 1]. The operators are deterministic; `RealEsrganDegradation` draws.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = npt.NDArray[np.float64]
Shape = Literal["gaussian", "generalized", "plateau"]


def blur_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, shape: Shape = "gaussian", beta: float = 1.0) -> Kernel:
    """A blur kernel (size, size) that sums to 1.

    Args:
        size: odd.
        sigma_x, sigma_y: pixels along the kernel's own axes; angle: of these, radians.
        shape: with q the squared distance in units of sigma: exp(-q / 2), exp(-q^beta / 2) or 1 / (1 + q^beta).
    """
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    precision = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    line = np.arange(size) - size // 2
    grid = np.stack(np.meshgrid(line, line), axis=-1).astype(np.float64)
    q = np.einsum("yxi,ij,yxj->yx", grid, precision, grid)
    q = q if shape == "gaussian" else q**beta
    kernel = 1 / (1 + q) if shape == "plateau" else np.exp(-q / 2)
    return kernel / kernel.sum()


def sinc_kernel(cutoff: float, size: int, padded_size: int | None = None) -> Kernel:
    """A circular low-pass filter that rings, as sharpening and compression do; sums to 1.

    Args:
        cutoff: radians a pixel, up to pi. size: odd. padded_size: pad with zeros to this size.
    """
    line = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(line, line))
    safe = np.where(radius == 0, 1.0, radius)
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * safe)).numpy()
    kernel = np.where(radius == 0, cutoff**2 / (4 * math.pi), cutoff * bessel / (2 * math.pi * safe))
    return _padded(kernel / kernel.sum(), padded_size or size)


def _padded(kernel: Kernel, size: int) -> Kernel:
    return np.pad(kernel, (size - len(kernel)) // 2)


def filter_pictures(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlates each picture with its own kernel (B, K, K), or all with one (K, K); mirrored at the edges (edge not repeated)."""
    half = kernels.shape[-1] // 2
    batch, channels, height, width = x.shape
    kernels = kernels.to(x).expand(batch, *kernels.shape[-2:])
    padded = _mirrored(x, half).reshape(1, batch * channels, height + 2 * half, width + 2 * half)
    weight = kernels.repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded, weight, groups=batch * channels).reshape(x.shape)


def _mirrored(x: Tensor, margin: int) -> Tensor:
    """The pictures with margins of their mirror image (edge not repeated), which may be wider than the pictures."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        turn = torch.arange(-margin, last + margin + 1, device=x.device) % max(2 * last, 1)
        x = x.index_select(axis, torch.where(turn > last, 2 * last - turn, turn))
    return x


def usm_sharpen(x: Tensor, weight: float = 0.5, radius: int = 50, threshold: float = 10.0) -> Tensor:
    """Unsharp masking where the picture differs from its blur by more than the threshold (of 255), with a soft mask."""
    size = radius + 1 - radius % 2
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    line = torch.arange(size, dtype=torch.float64) - size // 2
    window = torch.exp(-(line**2) / (2 * sigma**2)).to(x.dtype)
    window = (window / window.sum()).to(x.device)
    residual = x - _separable(x, window)
    mask = _separable((residual.abs() * 255 > threshold).to(x.dtype), window)
    return mask * (x + weight * residual).clamp(0, 1) + (1 - mask) * x


def _separable(x: Tensor, window: Tensor) -> Tensor:
    """Blurs with the same window along both axes."""
    half, channels = len(window) // 2, x.shape[1]
    x = _mirrored(x, half)
    x = F.conv2d(x, window.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, window[:, None].expand(channels, 1, -1, 1), groups=channels)


# The luma table as the official simulation uses it: transposed with respect to the standard.
_LUMA = torch.tensor(
    [
        [16, 12, 14, 14, 18, 24, 49, 72],
        [11, 12, 13, 17, 22, 35, 64, 92],
        [10, 14, 16, 22, 37, 55, 78, 95],
        [16, 19, 24, 29, 56, 64, 87, 98],
        [24, 26, 40, 51, 68, 81, 103, 112],
        [40, 58, 57, 87, 109, 104, 121, 100],
        [51, 60, 69, 80, 103, 113, 120, 103],
        [61, 55, 56, 62, 77, 92, 101, 99],
    ],
    dtype=torch.float32,
)
_CHROMA = torch.full((8, 8), 99.0)
_CHROMA[:4, :4] = torch.tensor([[17.0, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
_JPEG = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_JPEG_BACK = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])


@functools.cache
def _dct() -> Tensor:
    """The orthonormal DCT-II of 8 samples, (frequency, sample)."""
    frequency, sample = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = torch.cos((2 * sample + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def simulate_jpeg(x: Tensor, quality: float | Tensor) -> Tensor:
    """What JPEG compression (4:2:0) leaves of pictures; computed in floats, without writing a file.

    Args:
        quality: 1 to 100, one for all or (B,).
    """
    batch, _, height, width = x.shape
    quality = torch.as_tensor(quality, dtype=x.dtype, device=x.device).expand(batch)
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50).reshape(-1, 1, 1, 1, 1)
    padded = F.pad(x, (0, -width % 16, 0, -height % 16)) * 255  # with zeros, as the official simulation does
    ycc = torch.einsum("ij,bjhw->bihw", _JPEG.to(x), padded)
    chroma = F.avg_pool2d(ycc[:, 1:] + 128, 2)
    y = _quantised(ycc[:, :1], _LUMA.to(x), factor)
    chroma = _quantised(chroma, _CHROMA.to(x), factor).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    rgb = torch.einsum("ij,bjhw->bihw", _JPEG_BACK.to(x), torch.cat([y, chroma - 128], dim=1))
    return (rgb.clamp(0, 255) / 255)[..., :height, :width]


def _quantised(planes: Tensor, table: Tensor, factor: Tensor) -> Tensor:
    """Planes (B, C, H, W) in 0..255 after the DCT of 8 x 8 blocks was rounded to multiples of table * factor."""
    dct = _dct().to(planes)
    blocks = planes.unfold(2, 8, 8).unfold(3, 8, 8) - 128  # B, C, rows, columns, 8, 8
    steps = (table * factor)[:, None]
    coefficients = (dct @ blocks @ dct.T / steps).round() * steps
    restored = dct.T @ coefficients @ dct + 128
    return restored.transpose(3, 4).reshape(planes.shape)
