"""Cutting a channels-last map into windows and putting it together again, and what keeps shifted windows apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core.nn.memoise import memoise

# While a graph with free sizes is being made, a reshape that may or may not be a view, or a slice that may or may not reach
# the end, would tie the graph to sizes for which the answer is the same. Hence the flat views and the negative padding.


def pad_to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Pads B, H, W, C with zeros at the bottom and right, to sides that the window (h, w) divides."""
    height, width = ((side + extent - 1) // extent * extent for side, extent in zip(x.shape[1:3], window, strict=True))
    if torch.compiler.is_compiling() or (height, width) != x.shape[1:3]:
        return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    return x


def crop_to_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undoes `pad_to_windows`: the first H rows and W columns of B, H or more, W or more, C with `size` = H, W."""
    if torch.compiler.is_compiling():
        return F.pad(x, (0, 0, 0, size[1] - x.shape[2], 0, size[0] - x.shape[1]))
    return x[:, : size[0], : size[1]]


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """B, H, W, C -> B * windows, h * w, C; windows and the tokens in them are in row-major order.

    Args:
        window: h, w; they divide H and W.
    """
    h, w = window
    x = x.unflatten(2, (-1, w)).unflatten(1, (-1, h)).transpose(2, 3)  # B, H / h, W / w, h, w, C
    return x.contiguous().view(-1).view(-1, h * w, x.shape[-1])


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `window_partition`: B * windows, h * w, C -> B, H, W, C with `size` = H, W."""
    (h, w), (height, width) = window, size
    x = windows.unflatten(1, (h, w)).unflatten(0, (-1, height // h, width // w)).transpose(2, 3)
    return x.contiguous().view(-1).view(-1, height, width, x.shape[-1])


@memoise
def shifted_window_masks(window: tuple[int, int], shift: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The four masks that the windows of a rolled map need: 4, h * w, h * w; which window needs which says `shifted_window_kinds`.

    A map that was rolled by minus the shift has at its end rows and columns that come from its start. They share the
    last windows with tokens that are no neighbours of theirs: such pairs get -100, added to the scores; others 0.
    """
    (h, w), (down, right) = window, shift
    token = torch.arange(h * w, device=device)
    wrapped_row, wrapped_column = token // w >= h - down, token % w >= w - right
    rows_apart = wrapped_row[:, None] ^ wrapped_row  # not !=, which torch.compile fails on for booleans of known range
    columns_apart = wrapped_column[:, None] ^ wrapped_column
    apart = torch.stack([torch.zeros_like(rows_apart), columns_apart, rows_apart, rows_apart | columns_apart])
    return apart.to(dtype) * -100.0


@memoise
def shifted_window_kinds(rows: int, columns: int, device: torch.device) -> Tensor:
    """rows * columns: for each window which of the `shifted_window_masks` it needs, by whether it is in the last row and column."""
    last_row = torch.arange(rows, device=device) == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (2 * last_row[:, None] + last_column).flatten()
