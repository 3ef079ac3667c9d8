"""Training targets of CenterPoint-style heads: Gaussian heat maps and box vectors at the centres of the objects.

Boxes here are in the convention of mmdet3d before 1.0 (`boxes.to_mmdet`): `x y z_bottom width length height yaw [vx vy]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsuite.core.errors import InputError


@dataclass(frozen=True)
class BevGrid:
    """The cells of a head's maps: cell (row, column) covers y and x from `origin` on, in metres.

    Attributes:
        origin: x and y of the corner of cell (0, 0). cell: size of a cell along x and y.
        shape: rows (along y) and columns (along x).
    """

    origin: tuple[float, float]
    cell: tuple[float, float]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Targets:
    """What the head should say of a batch.

    Attributes:
        heatmap: (B, K, H, W) float32 in [0, 1], exactly 1 at the cell of an object's centre.
        boxes: (B, M, 8 or 10): the centre within its cell (2, in cells), z of the centre, logarithms of width, length,
            height, sine and cosine of the yaw, and with velocity vx vy. A row for each slot, zeros in empty ones.
        cells: (B, M) int64, row * W + column. mask: (B, M) int64, 1 for slots that hold an object.
    """

    heatmap: Tensor
    boxes: Tensor
    cells: Tensor
    mask: Tensor


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """The radius in cells within which a centre may lie and its box still overlap the true one so much, as CenterNet computes it.

    CenterNet divides the roots by 2 and not by 2a; published weights were trained with these radii, so they stay.
    """
    cases = (
        (1.0, length + width, width * length * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * (length + width), (1 - overlap) * width * length),
        (4 * overlap, -2 * overlap * (length + width), (overlap - 1) * width * length),
    )
    roots = [(b + torch.sqrt(b**2 - 4 * a * c)) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0)


def center_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    grid: BevGrid,
    num_classes: int,
    *,
    with_velocity: bool = True,
    overlap: float = 0.1,
    min_radius: int = 1,
    max_objects: int = 500,
) -> Targets:
    """Targets of a batch.

    Args:
        boxes: for each sample (M_i, 7 or 9), convention of mmdet3d before 1.0. Velocities that are missing count as zero,
            those that are NaN stay NaN (the loss leaves them out).
        labels: for each sample (M_i,) integers below `num_classes` (see `check_labels`); objects with a negative one are left out.
        overlap, min_radius: of the Gaussians (see `gaussian_radius`).
        max_objects: slots; objects beyond, counted class by class, are left out. Also left out, with their slot empty: boxes
            without width or length, and centres outside the grid.
    """
    samples = [_prepare(*sample) for sample in zip(boxes, labels, strict=True)]
    slots = max_objects
    device = boxes[0].device if boxes else torch.device("cpu")
    heatmap = torch.zeros(len(samples), num_classes, *grid.shape, device=device)
    vectors = torch.zeros(len(samples), slots, 10 if with_velocity else 8, device=device)
    cells = torch.zeros(len(samples), slots, dtype=torch.int64, device=device)
    mask = torch.zeros_like(cells)
    for index, (box, label) in enumerate(samples):
        box, label = box[:slots], label[:slots]
        size = box[:, 3:5] / box.new_tensor(grid.cell)  # width and length in cells
        centre = (box[:, :2] - box.new_tensor(grid.origin)) / box.new_tensor(grid.cell)
        cell = centre.int()  # truncation as published: centres up to one cell outside the lower borders fall into cell 0
        limit = cell.new_tensor([grid.shape[1], grid.shape[0]])
        row = ((size > 0).all(1) & (cell >= 0).all(1) & (cell < limit).all(1)).nonzero()[:, 0]
        box, label, centre, cell = box[row], label[row], centre[row], cell[row].long()
        radius = gaussian_radius(size[row, 1], size[row, 0], overlap).int().clamp(min=min_radius).long()
        _draw(heatmap[index], label, cell, radius)
        yaw, height = box[:, 6:7], box[:, 5:6]
        vector = [centre - cell, box[:, 2:3] + height / 2, box[:, 3:6].log(), yaw.sin(), yaw.cos(), box[:, 7:9]]
        filled = torch.cat(vector, 1)[:, : vectors.shape[2]]
        vectors[index, row, : filled.shape[1]] = filled
        cells[index, row] = cell[:, 1] * grid.shape[1] + cell[:, 0]
        mask[index, row] = 1
    return Targets(heatmap, vectors, cells, mask)


def check_labels(boxes: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int) -> None:
    """Raises `InputError` for labels too large, or numbers of boxes and labels of a sample that differ."""
    for box, label in zip(boxes, labels, strict=True):
        if len(box) != len(label):
            raise InputError(f"{len(box)} boxes with {len(label)} labels; each box needs one label")
        if len(label) and int(label.max()) >= num_classes:
            raise InputError(f"label {int(label.max())} in a head of {num_classes} classes; labels are 0 to {num_classes - 1}")


def _prepare(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and labels ordered by class, those without a class removed."""
    order = labels.argsort(stable=True)
    order = order[labels[order] >= 0]
    return boxes[order].float(), labels[order].long()


def _draw(heatmap: Tensor, label: Tensor, cell: Tensor, radius: Tensor) -> None:
    """Raises (K, H, W) in place to a Gaussian around each cell (x, y), cut at its radius and at the borders."""
    if len(cell) == 0:
        return
    height, width = heatmap.shape[1:]
    side = 2 * radius + 1
    which = torch.repeat_interleave(torch.arange(len(cell), device=cell.device), side**2)  # an entry for each drawn cell
    ends = (side**2).cumsum(0)
    place = torch.arange(len(which), device=cell.device) - (ends - side**2)[which]
    dx, dy = place % side[which] - radius[which], place // side[which] - radius[which]
    sigma = side[which].double() / 6
    value = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)).float()
    x, y = cell[which, 0] + dx, cell[which, 1] + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (label[which] * height + y) * width + x
    heatmap.view(-1).scatter_reduce_(0, index[inside], value[inside], "amax")
