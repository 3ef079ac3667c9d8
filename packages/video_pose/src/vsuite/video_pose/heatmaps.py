"""Joints and limbs drawn as heatmaps, on any device: the form in which convolutions take poses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FAINTEST = 1e-3  # what is fainter is not drawn


def joint_heatmaps(points: Tensor, peaks: Tensor, size: tuple[int, int], sigma: float = 0.6) -> Tensor:
    """A Gaussian a joint, cut off at three sigmas; the two axes are drawn apart, so that it costs little more than the result.

    Args:
        points: ..., 2; x and y in cells, the middle of the first cell being 0.
        peaks: ...; the value in the middle. Joints below 0.001 are not drawn.
        size: height and width in cells.
        sigma: in cells.

    Returns:
        ..., height, width.
    """
    x, y = (_gaussian(points[..., axis], length, sigma) for axis, length in ((0, size[1]), (1, size[0])))
    return (torch.where(peaks >= FAINTEST, peaks, 0)[..., None] * y)[..., :, None] * x[..., None, :]


def _gaussian(centre: Tensor, length: int, sigma: float) -> Tensor:
    """..., length: zero outside the window of cells that the published code draws in."""
    cell = torch.arange(length, device=centre.device, dtype=centre.dtype)
    centre = centre[..., None]
    inside = (cell >= (centre - 3 * sigma).trunc()) & (cell <= (centre + 3 * sigma).trunc())
    return torch.where(inside, torch.exp(-((cell - centre) ** 2) / (2 * sigma**2)), 0)


def limb_heatmaps(points: Tensor, peaks: Tensor, limbs: Sequence[tuple[int, int]], size: tuple[int, int], sigma: float = 0.6) -> Tensor:
    """Limbs as ridges: Gaussians of the distance to the segment between two joints; shorter than a cell, their first joint.

    Args:
        points: ..., J, 2; peaks: ..., J; see `joint_heatmaps`. The lower of the two is a limb's.
        limbs: pairs of joints.

    Returns:
        ..., limbs, height, width.
    """
    first, second = (list(ends) for ends in zip(*limbs, strict=True))
    start, end = points[..., first, :, None, None], points[..., second, :, None, None]  # ..., limbs, 2, 1, 1
    peak = torch.minimum(peaks[..., first], peaks[..., second])
    rows, columns = (torch.arange(length, device=points.device, dtype=points.dtype) for length in size)
    cells = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]))  # 2, height, width
    direction = end - start
    length = (direction**2).sum(-3)
    share = (((cells - start) * direction).sum(-3) / length.clamp_min(1e-12)).clamp(0, 1)  # along the limb
    distance = ((cells - start - share[..., None, :, :] * direction) ** 2).sum(-3)
    low, high = (torch.minimum(start, end) - 3 * sigma).trunc(), (torch.maximum(start, end) + 3 * sigma).trunc()
    inside = ((cells >= low) & (cells <= high)).all(-3)
    ridge = torch.where(inside & (peak >= FAINTEST)[..., None, None], torch.exp(-distance / (2 * sigma**2)) * peak[..., None, None], 0)
    short = joint_heatmaps(points[..., first, :], peaks[..., first].where(peak >= FAINTEST, 0), size, sigma)
    return torch.where(length < 1, short, ridge)
