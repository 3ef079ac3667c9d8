"""Cutting a channels-last map into windows and putting it together again."""

from __future__ import annotations

from torch import Tensor


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """B, H, W, C -> B * windows, h * w, C; windows and the tokens in them are in row-major order.

    Args:
        window: h, w; they divide H and W.
    """
    batch, height, width, channels = x.shape
    h, w = window
    x = x.reshape(batch, height // h, h, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, h * w, channels)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `window_partition`: B * windows, h * w, C -> B, H, W, C with `size` = H, W."""
    (h, w), (height, width) = window, size
    x = windows.reshape(-1, height // h, width // w, h, w, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])
