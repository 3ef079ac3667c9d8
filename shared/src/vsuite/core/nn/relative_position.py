"""Biases of attention scores that depend on how far query and key lie apart within a window."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.nn.memoise import memoise


@memoise
def relative_position_index(window: tuple[int, int], device: torch.device) -> Tensor:
    """h * w, h * w: for each query (first axis) and key of a window, the row of a table with one row an offset.

    The table has (2h - 1)(2w - 1) rows; offsets are query minus key, rows of the window before columns. Tokens are row-major.
    """
    h, w = window
    token = torch.arange(h * w, device=device)
    row, column = token // w, token % w
    return (row[:, None] - row + h - 1) * (2 * w - 1) + column[:, None] - column + w - 1


def gather_position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """The biases of all pairs of a window: (2h - 1)(2w - 1), heads -> heads, h * w, h * w; see `relative_position_index`."""
    index = relative_position_index(window, table.device)
    # Three times as fast as indexing, forwards and backwards.
    return table.t().contiguous().index_select(1, index.flatten()).unflatten(1, index.shape)


def resize_position_table(table: Tensor, window: tuple[int, int], new_window: tuple[int, int]) -> Tensor:
    """A table for another window, by bicubic interpolation of its grid of offsets: (2h - 1)(2w - 1), heads -> the new rows, heads."""
    (rows, columns), (new_rows, new_columns) = ((2 * h - 1, 2 * w - 1) for h, w in (window, new_window))
    grid = table.t().reshape(1, -1, rows, columns)
    return F.interpolate(grid, (new_rows, new_columns), mode="bicubic").reshape(-1, new_rows * new_columns).t().contiguous()


def square_window_of(rows: int) -> int | None:
    """The side of the square window whose table has so many rows; None if there is no such window."""
    side = math.isqrt(rows)
    return (side + 1) // 2 if side * side == rows and side % 2 else None
