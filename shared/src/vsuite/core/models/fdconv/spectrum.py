"""The weight of a convolution in the Fourier domain, and its coefficients in groups of like frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from vsuite.core.nn import memoise


def to_spectrum(weight: Tensor, copies: int = 1) -> Tensor:
    """The weight of a convolution -> that of a frequency dynamic one, as published.

    Args:
        weight: out, in, k, k (or out, in: a linear layer's).
        copies: how often it is repeated.

    Returns:
        copies, out * k, in * k // 2 + 1, 2 (real, imaginary).
    """
    out_channels, in_channels, k, _ = weight.shape if weight.ndim == 4 else (*weight.shape, 1, 1)
    matrix = weight.reshape(out_channels, in_channels, k, k).permute(0, 2, 1, 3).reshape(out_channels * k, in_channels * k)
    spectrum = torch.fft.rfft2(matrix.float()) / (min(out_channels, in_channels) // 2)
    return torch.view_as_real(spectrum).repeat(copies, 1, 1, 1)


def from_spectrum(spectrum: Tensor, kernel_size: int) -> Tensor:
    """The other way: copies, out * k, in * k // 2 + 1, 2 -> out, in, k, k, the sum of the copies."""
    _, rows, half, _ = spectrum.shape
    out_channels, in_channels = rows // kernel_size, 2 * (half - 1) // kernel_size
    matrix = torch.fft.irfft2(torch.view_as_complex(spectrum.float().sum(0))) * (min(out_channels, in_channels) // 2)
    return matrix.view(out_channels, kernel_size, in_channels, kernel_size).transpose(1, 2).contiguous()


@memoise
def frequency_groups(rows: int, columns: int, groups: int, device: torch.device) -> Tensor:
    """The group of each coefficient of a real transform of `rows` x `columns` numbers; group 0 has the lowest frequencies.

    The distances are float32 and the sort is stable, so that equally far coefficients fall alike everywhere.

    Returns:
        rows, columns // 2 + 1; int16.
    """
    u, v = torch.fft.fftfreq(rows, device=device), torch.fft.rfftfreq(columns, device=device)
    order = (u[:, None] ** 2 + v**2).sqrt().flatten().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(order.numel(), device=device)
    return (ranks // (order.numel() // groups)).to(torch.int16).view(rows, -1)
