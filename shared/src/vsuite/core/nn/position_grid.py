"""Tables with one row a token of a square or rectangular grid: the fixed sine-cosine table, and resizing a learnt one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.errors import InputError


def sincos_position_grid(dim: int, side: int, *, num_extra: int = 0) -> Tensor:
    """The fixed table of a square grid: num_extra + side * side, dim, in float32; tokens are row-major.

    The first half of the channels encodes the column, the second the row; each half holds the sines of all frequencies, then
    the cosines. Frequencies fall from 1 to 1/10000 (not reached) in dim / 4 steps.

    Args:
        num_extra: rows of zeros in front, for tokens without a place (a class token).
    """
    if dim < 4 or dim % 4:
        raise InputError(f"a sine-cosine table of two axes needs a width that is a multiple of 4; got {dim}")
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # side, dim / 2
    column, row = axis.expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    table = torch.cat([column, row], 2).flatten(0, 1)
    return torch.cat([torch.zeros(num_extra, dim, dtype=torch.float64), table]).float()


def resize_position_grid(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], *, num_extra: int = 0) -> Tensor:
    """A table for another grid, by bicubic interpolation: 1, num_extra + h * w, C -> 1, num_extra + h' * w', C.

    Args:
        num_extra: rows in front that belong to no place (a class token's) and stay as they are.
    """
    extra, places = table[:, :num_extra], table[:, num_extra:]
    places = places.unflatten(1, grid).permute(0, 3, 1, 2)
    places = F.interpolate(places, new_grid, mode="bicubic", align_corners=False)
    return torch.cat([extra, places.flatten(2).transpose(1, 2)], 1)
