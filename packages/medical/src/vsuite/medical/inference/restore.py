"""From the network's logits back to a label map in the file's own grid, plane by plane.

The logits are interpolated linearly and the decision (argmax, or a threshold for regions) is taken in the file's grid, for
smooth edges. Grids are parallel, so a plane of the file's grid needs at most two planes of the network's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.medical.data.geometry import grid_positions, ras_view
from vsuite.medical.data.labels import classes_to_ids, regions_to_ids
from vsuite.medical.plan import Plan
from vsuite.medical.preprocess import Prepared

Interpolation = Literal["linear", "nearest"]


class _Sampler:
    """Where along one axis each index of the file's grid lies between two of the network's."""

    def __init__(self, positions: NDArray[np.float64], size: int, interpolation: Interpolation) -> None:
        if interpolation == "nearest":
            positions = np.rint(positions)
        self.lower = np.floor(positions).astype(np.int64)
        self.share = (positions - self.lower).astype(np.float32)
        self.upper = np.minimum(self.lower + (self.share > 0), size - 1)
        self.unchanged = len(positions) == size and np.array_equal(positions, np.arange(size))

    def __call__(self, plane: Tensor, axis: int) -> Tensor:
        """Samples a whole axis."""
        if self.unchanged:
            return plane
        values = plane.index_select(axis, torch.from_numpy(self.lower).to(plane.device))
        if not self.share.any():
            return values
        upper = plane.index_select(axis, torch.from_numpy(self.upper).to(plane.device))
        share = torch.from_numpy(self.share).to(plane.device)
        return values.lerp_(upper, share if axis == plane.ndim - 1 else share[:, None])


def restore_label(
    slabs: Iterable[Tensor],
    axis: int,
    prepared: Prepared,
    plan: Plan,
    *,
    interpolation: Interpolation = "linear",
    probabilities: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The label map of a volume in its file's own grid.

    Args:
        slabs: logits K, D, H, W in the network's grid, consecutive along `axis` (see `stream_slabs`).
        axis: of D, H, W.
        prepared: what the network saw.
        plan: says what the K outputs mean and which ids are written.
        interpolation: "linear" interpolates logits; "nearest" takes the nearest voxel's label, which is cheaper for
            many classes.
        probabilities: filled if given; K, X, Y, Z in the file's grid. Softmax, or a sigmoid for regions.

    Returns:
        X, Y, Z ids as the plan's labels name them, in the smallest unsigned type.
    """
    decide = _decide_regions if plan.has_regions else _decide_classes
    kind = decide(torch.zeros(plan.num_outputs, 1, 1), plan).dtype
    label = np.zeros(prepared.file_shape, kind, order="F")  # as NIfTI files lie: writing one of another order takes ten times as long
    # Views whose first axis runs along `axis` of the network: writing a plane to them fills the file's grid.
    label_planes = _network_view(label, prepared, axis)
    probability_planes = None if probabilities is None else _network_view(probabilities, prepared, axis)
    positions = grid_positions(prepared.affine, prepared.shape, prepared.ras_file_affine, prepared.ras_file_shape)
    samplers = [_Sampler(positions[a], prepared.shape[a], interpolation) for a in prepared.axes]
    along = samplers.pop(axis)

    def finish(index: int, plane: Tensor) -> None:
        if interpolation == "nearest" and probability_planes is None:
            decided = torch.from_numpy(decide(plane, plan))[None]
            label_planes[index] = samplers[1](samplers[0](decided, 1), 2)[0].numpy()
            return
        plane = samplers[1](samplers[0](plane, 1), 2)
        label_planes[index] = decide(plane, plan)
        if probability_planes is not None:
            scores = torch.sigmoid(plane) if plan.has_regions else torch.softmax(plane, 0)
            probability_planes[:, index] = scores.cpu().numpy()

    _walk(slabs, axis, along, finish)
    return label


def _walk(slabs: Iterable[Tensor], axis: int, along: _Sampler, finish: Callable[[int, Tensor], None]) -> None:
    """Calls `finish` with every plane of the file's grid as soon as the slabs hold what it lies between."""
    index = first = 0
    last: Tensor | None = None  # the final plane of the slab before
    for slab in slabs:
        planes = slab.movedim(axis + 1, 0)
        while index < len(along.lower) and along.upper[index] < first + len(planes):
            lower, upper = int(along.lower[index]), int(along.upper[index])
            plane = last if lower < first else planes[lower - first]
            assert plane is not None
            if upper > lower:
                plane = torch.lerp(plane, planes[upper - first], float(along.share[index]))
            finish(index, plane)
            index += 1
        first += len(planes)
        last = planes[-1].clone()


def _network_view(array: NDArray[Any], prepared: Prepared, axis: int) -> NDArray[Any]:
    """A view of an array (..., X, Y, Z) in the file's grid with the network's axes, `axis` first among them."""
    leading = array.ndim - 3
    view = ras_view(array, prepared.file_affine).transpose(*range(leading), *(a + leading for a in prepared.axes))
    return np.moveaxis(view, axis + leading, leading)


def _decide_classes(plane: Tensor, plan: Plan) -> NDArray[Any]:
    return classes_to_ids(plane.max(0).indices.cpu().numpy(), plan)  # the same as argmax, four times as fast on CPU


def _decide_regions(plane: Tensor, plan: Plan) -> NDArray[Any]:
    return regions_to_ids((plane > 0).cpu().numpy(), plan)  # sigmoid > 0.5
