"""Where voxels lie: orientation, spacing, resampling, and comparing grids. Arrays and affines only, no files.

Arrays are C, X, Y, Z in nibabel's axis order; an affine is the 4x4 float64 matrix from voxel indices to RAS+ millimetres.
The axes of a grid are orthogonal (files with sheared axes are refused when read), so that resampling a grid to another
spacing is one linear interpolation an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

Order = Literal["linear", "nearest"]
FloatArray = NDArray[np.float64]
Array = NDArray[Any]

SPACING_TOLERANCE = 1e-3  # mm below which a volume counts as having the spacing already
# Two grids are the same within: a relative difference in spacing, a share of a voxel in origin, a cosine in direction.
SAME_SPACING, SAME_ORIGIN, SAME_DIRECTION = 1e-3, 1e-2, 1e-3


def spacing_of(affine: FloatArray) -> FloatArray:
    """Voxel sides in mm along the three array axes."""
    return np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)


def orientation_of(affine: FloatArray) -> str:
    """Towards which side of the body each array axis runs, by the closest anatomical axes: "RAS", "LPS", "LSA", ..."""
    return "".join(nib.aff2axcodes(affine))


def shear_angle(affine: FloatArray) -> float:
    """By how many degrees the array axes fail to be orthogonal (the worst pair)."""
    directions = np.asarray(affine, np.float64)[:3, :3] / spacing_of(affine)
    cosines = np.abs(np.triu(directions.T @ directions, k=1))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def ras_view(array: Array, affine: FloatArray) -> Array:
    """A view of `array` (..., X, Y, Z) with its last three axes permuted and flipped to run right, anterior, superior.

    Writing to the view writes to `array`: filling a RAS view fills the file's own grid.
    """
    orientation = nib.io_orientation(affine)
    leading = array.ndim - 3
    source = np.argsort(orientation[:, 0])  # the array axis that becomes x, y, z
    array = array.transpose(*range(leading), *(source + leading))
    # An axis of one voxel is not flipped: its stride would be negative, which torch refuses.
    steps = [int(orientation[axis, 1]) if array.shape[leading + i] > 1 else 1 for i, axis in enumerate(source)]
    flips: list[Any] = [slice(None, None, step) for step in steps]
    return array[(..., *flips)]


def ras_affine(shape: Sequence[int], affine: FloatArray) -> FloatArray:
    """The affine that belongs to `ras_view` of a grid of this shape (X, Y, Z)."""
    return affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(affine), tuple(shape))


def reorient_to_ras(array: Array, affine: FloatArray) -> tuple[Array, FloatArray]:
    """Permutes and flips the axes to the closest right, anterior, superior; the affine follows. No voxel changes its value.

    Args:
        array: C, X, Y, Z.

    Returns:
        A view of the array, and its affine.
    """
    return ras_view(array, affine), ras_affine(array.shape[-3:], affine)


def resampled_grid(shape: Sequence[int], affine: FloatArray, spacing: Sequence[float]) -> tuple[tuple[int, int, int], FloatArray]:
    """Shape and affine of a grid after `resample`: the first voxel keeps its place, the last is the nearest that fits."""
    current, wanted = spacing_of(affine), np.asarray(spacing, np.float64)
    if wanted.shape != (3,) or not np.all(np.isfinite(wanted)) or wanted.min() <= 0:
        raise InputError(f"spacing must be three positive sides in mm; got {tuple(spacing)}")
    sizes = np.round((np.asarray(shape) - 1) * current / wanted + 1).astype(int)
    target = np.array(affine, np.float64)
    target[:3, :3] *= wanted / current
    return (int(sizes[0]), int(sizes[1]), int(sizes[2])), target


def resample(array: Array, affine: FloatArray, spacing: Sequence[float], order: Order = "linear") -> tuple[Array, FloatArray]:
    """Brings a volume to another spacing, along its own axes. Beyond the border the border's values are kept.

    Args:
        array: C, X, Y, Z; floating-point for "linear".
        spacing: mm along the array's axes. Where it is the volume's already (to 0.001 mm), nothing is changed.
        order: "linear" for images, "nearest" for label maps.

    Returns:
        The array (C, X', Y', Z' in the type given) and its affine.
    """
    shape, target = resampled_grid(array.shape[1:], affine, spacing)
    if shape == array.shape[1:] and np.allclose(spacing_of(affine), spacing, rtol=0, atol=SPACING_TOLERANCE):
        return array, affine
    return resample_to(array, affine, shape, target, order), target


def resample_to(array: Array, affine: FloatArray, shape: Sequence[int], target: FloatArray, order: Order = "linear") -> Array:
    """Samples a volume on another grid with parallel axes: the way of `resample`, and the way back.

    Args:
        array: C, X, Y, Z with its affine.
        shape, target: the wanted grid.
    """
    if order == "linear" and not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"label maps are never interpolated linearly: got {array.dtype}, use order 'nearest'")
    steps, offsets = _steps_and_offsets(affine, target)
    # The axes that shrink most come first, so that what lies between stays small.
    for axis in sorted(range(3), key=lambda a: shape[a] / array.shape[a + 1]):
        size, count = array.shape[axis + 1], shape[axis]
        if size == count and np.allclose(linear_positions(steps[axis], offsets[axis], size, count), np.arange(count), rtol=0):
            continue
        if order == "nearest":
            array = np.take(array, nearest_indices(steps[axis], offsets[axis], size, count), axis=axis + 1)
        else:
            array = _interpolate(array, axis + 1, linear_positions(steps[axis], offsets[axis], size, count))
    return array


def grid_positions(affine: FloatArray, shape: Sequence[int], target: FloatArray, target_shape: Sequence[int]) -> list[FloatArray]:
    """For every index along each axis of the target grid, its position in voxels along the same axis of the source grid.

    Both grids have parallel axes. Positions are clamped to the source grid, and whole where they are so but for rounding.
    """
    steps, offsets = _steps_and_offsets(affine, target)
    return [linear_positions(*numbers) for numbers in zip(steps, offsets, shape, target_shape, strict=True)]


def _steps_and_offsets(affine: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """From index i of the target to the position step * i + offset of the source, an axis each."""
    transform: FloatArray = np.linalg.solve(affine, target).astype(np.float64)
    return transform.diagonal()[:3], transform[:3, 3]


def linear_positions(step: float, offset: float, size: int, count: int) -> FloatArray:
    """step * i + offset for i < count, clamped to 0 .. size - 1."""
    exact = step * np.arange(count) + offset
    whole = np.round(exact)
    return np.where(np.abs(exact - whole) < 1e-6, whole, exact).clip(0, size - 1)


def nearest_indices(step: float, offset: float, size: int, count: int) -> NDArray[np.int64]:
    """The index nearest to step * i + offset for i < count.

    Computed through coordinates from -1 to 1 as `grid_sample` has them: a position midway between two voxels then falls
    to the same side as in MONAI.
    """
    scale = step * count / size
    shift = scale + (1 + 2 * offset - step) / size - 1
    coordinates = np.linspace(-1, 1, count) * (count - 1) / count * scale + shift
    return np.rint((((coordinates + 1) * size - 1) / 2).clip(0, size - 1)).astype(np.int64)


def _interpolate(array: Array, axis: int, positions: FloatArray) -> Array:
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, array.shape[axis] - 1)
    share = (positions - lower).astype(array.dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    array = np.ascontiguousarray(array)  # else each `take` makes this copy for itself
    result = np.take(array, lower, axis=axis)
    step = np.take(array, upper, axis=axis)
    step -= result
    step *= share
    result += step
    return result


def difference(shape_a: Sequence[int], affine_a: FloatArray, shape_b: Sequence[int], affine_b: FloatArray) -> str:
    """What tells two grids apart, and by how much; empty where they are the same but for rounding.

    Same means: equal shapes; spacings within 0.1 %, origins within 1 % of a voxel, direction cosines within 0.001.

    Returns:
        Text such as "spacing differs by 0.5 mm (1 x 1 x 1 against 1 x 1 x 1.5)".
    """
    found = []
    if tuple(shape_a) != tuple(shape_b):
        found.append(f"shape differs ({_by(shape_a)} against {_by(shape_b)})")
    spacing_a, spacing_b = spacing_of(affine_a), spacing_of(affine_b)
    if not np.allclose(spacing_a, spacing_b, rtol=SAME_SPACING, atol=0):
        worst = np.abs(spacing_a - spacing_b).max()
        found.append(f"spacing differs by {worst:.4g} mm ({_by(spacing_a)} against {_by(spacing_b)})")
    origin_a, origin_b = affine_a[:3, 3], affine_b[:3, 3]
    gap = np.abs(origin_a - origin_b).max()
    if gap > SAME_ORIGIN * min(spacing_a.min(), spacing_b.min()):
        found.append(f"origin differs by {gap:.4g} mm ({_by(origin_a)} against {_by(origin_b)})")
    direction_a, direction_b = affine_a[:3, :3] / spacing_a, affine_b[:3, :3] / spacing_b
    gap = np.abs(direction_a - direction_b).max()
    if gap > SAME_DIRECTION:
        angle = np.degrees(np.arccos(np.clip((direction_a * direction_b).sum(0), -1, 1))).max()
        names = f"{orientation_of(affine_a)} against {orientation_of(affine_b)}"
        found.append(f"direction differs by up to {angle:.4g} degrees ({names})")
    return "; ".join(found)


def _by(values: Sequence[float] | FloatArray) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def label_to_regions(label: Array, regions: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Overlapping masks from a label map: 1 where the voxel's id belongs to the region.

    Args:
        label: X, Y, Z of integer ids.
        regions: the ids of each region, such as [[2, 3], [1, 2, 3], [3]] for tumour core, whole and enhancing tumour.

    Returns:
        uint8, regions, X, Y, Z.
    """
    return np.stack([np.isin(label, ids) for ids in regions]).astype(np.uint8)
