"""Between tokens (B, N, C) and maps (B, C, *grid); the tokens of a grid are in row-major order."""

from __future__ import annotations

from torch import Tensor


def map_to_tokens(x: Tensor) -> Tensor:
    """B, C, *grid -> B, N, C; a view where the map is channels-last in memory."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_map(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """B, N, C -> B, C, *grid; a view, so the map is channels-last in memory."""
    # Splitting the tokens first keeps the strides of a batch of one such that torch sees the map as channels-last.
    return x.unflatten(1, grid).movedim(-1, 1)
