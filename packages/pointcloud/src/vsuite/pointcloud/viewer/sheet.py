"""A sheet of small pictures of shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TILE = 220


def shape_sheet(clouds: Sequence[NDArray[np.floating]], titles: Sequence[str], *, columns: int = 4) -> NDArray[np.uint8]:
    """Shapes in rows, each seen from the front and above, farther points darker, its title below.

    Args:
        clouds: (N, 3) each, in the unit sphere, y up.

    Returns:
        (height, width, 3) uint8.
    """
    from PIL import Image, ImageDraw

    rows = -(-len(clouds) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + 20)), (24, 26, 30))
    pen = ImageDraw.Draw(sheet)
    for number, (cloud, title) in enumerate(zip(clouds, titles, strict=True)):
        left, top = number % columns * TILE, number // columns * (TILE + 20)
        across, up, depth = _seen(np.asarray(cloud, np.float64))
        shade = np.interp(depth, (-1, 1), (90, 255))
        for i in np.argsort(depth):  # the nearest last
            x, y = left + TILE / 2 + across[i] * TILE * 0.46, top + TILE / 2 - up[i] * TILE * 0.46
            level = int(shade[i])
            pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(level // 3, level * 3 // 4, level))
        pen.text((left + 6, top + TILE), title, fill=(235, 235, 235))
    return np.asarray(sheet)


def _seen(cloud: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Across, up and towards the viewer: turned by 30 degrees about y, tilted by 25."""
    turn, tilt = np.radians(30), np.radians(25)
    x, y, z = cloud.T
    across, depth = np.cos(turn) * x + np.sin(turn) * z, np.cos(turn) * z - np.sin(turn) * x
    return across, np.cos(tilt) * y - np.sin(tilt) * depth, np.sin(tilt) * y + np.cos(tilt) * depth
