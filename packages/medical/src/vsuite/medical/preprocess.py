"""From a volume as its file holds it to the tensor that the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.medical.data.geometry import FloatArray, ras_affine, ras_view, resample, spacing_of
from vsuite.medical.data.nifti import Volume
from vsuite.medical.plan import Normalisation, Plan


@dataclass(frozen=True)
class Prepared:
    """A volume ready for the network, and what leads back to the file's own grid.

    Attributes:
        tensor: C, D, H, W float32, normalised; D, H, W are the RAS axes in the order `axes`.
        affine: of the grid X, Y, Z (RAS, before the axes are put in the network's order).
        axes: the plan's order of axes.
        file_shape, file_affine: the grid of the file (X, Y, Z), in which results are given back.
    """

    tensor: Tensor
    affine: FloatArray
    axes: tuple[int, int, int]
    file_shape: tuple[int, int, int]
    file_affine: FloatArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """The prepared grid, X, Y, Z in RAS order."""
        sizes = dict(zip(self.axes, self.tensor.shape[1:], strict=True))
        return sizes[0], sizes[1], sizes[2]

    @property
    def ras_file_shape(self) -> tuple[int, int, int]:
        """The shape of the file's grid with its axes in RAS order."""
        x, y, z = ras_view(np.broadcast_to(np.uint8(0), self.file_shape), self.file_affine).shape
        return x, y, z

    @property
    def ras_file_affine(self) -> FloatArray:
        """The affine of the file's grid with its axes in RAS order."""
        return ras_affine(self.file_shape, self.file_affine)


def preprocess(volume: Volume, plan: Plan) -> Prepared:
    """Normalises, turns to RAS, resamples to the plan's spacing and puts the axes in the network's order.

    Args:
        volume: C, X, Y, Z as read from its file, with the plan's channels in the plan's order. It is left as it is.

    Raises:
        InputError: for another number of channels.
    """
    if volume.array.shape[0] != len(plan.channels):
        wanted = f"{len(plan.channels)} ({', '.join(plan.channels)})"
        raise InputError(f"{volume.path or 'image'}: has {volume.array.shape[0]} channels, expected are {wanted}")
    # Normalising comes first: "slice_minmax" means the file's own last axis, and the rest does not depend on the axes' order.
    array = normalise(volume.array, plan.normalisation)
    affine = ras_affine(array.shape[1:], volume.affine)
    array = ras_view(array, volume.affine)
    spacing = plan.target_spacing(spacing_of(affine).tolist())
    if spacing is not None:
        array, affine = resample(array, affine, spacing)
    array = np.ascontiguousarray(array.transpose(0, *(axis + 1 for axis in plan.axes)))
    x, y, z = volume.array.shape[1:]
    return Prepared(torch.from_numpy(array), affine, plan.axes, (x, y, z), volume.affine)


def preprocess_label(volume: Volume, plan: Plan) -> NDArray[Any]:
    """The label map that belongs to `preprocess` of its image: D, H, W integers, resampled by nearest neighbours."""
    array, affine = volume.array, volume.affine
    array, affine = ras_view(array, affine), ras_affine(array.shape[1:], affine)
    spacing = plan.target_spacing(spacing_of(affine).tolist())
    if spacing is not None:
        array, affine = resample(array, affine, spacing, "nearest")
    return np.ascontiguousarray(array[0].transpose(plan.axes))


def normalise(array: NDArray[Any], normalisation: Sequence[Normalisation]) -> NDArray[np.float32]:
    """Brings each channel's values to its common scale; see `Normalisation`. Constant voxels become 0.

    Args:
        array: C, X, Y, Z in the file's own axis order.
        normalisation: one a channel.

    Returns:
        A new float32 array.
    """
    result = np.empty_like(array, dtype=np.float32)  # in the file's memory order: the one transposition comes at the end
    for channel, output, rule in zip(array, result, normalisation, strict=True):
        _normalise_channel(channel, output, rule)
    return result


def _normalise_channel(channel: NDArray[Any], output: NDArray[np.float32], rule: Normalisation) -> None:
    if rule.kind == "slice_minmax":
        for z in range(channel.shape[-1]):
            plane = channel[..., z].astype(np.float64)
            low, high = plane.min(), plane.max()
            output[..., z] = (plane - low) / (high - low) if high > low else 0
        return
    output[...] = channel
    if rule.kind == "zscore":
        mean, std = _mean_and_std(channel)
        _scale(output, mean, std)
    elif rule.kind == "rescale_to_0_1":
        low, high = float(channel.min()), float(channel.max())
        _scale(output, low, high - low)
    elif rule.kind == "ct":
        assert rule.lower is not None
        assert rule.upper is not None
        assert rule.mean is not None
        assert rule.std is not None
        np.clip(output, rule.lower, rule.upper, out=output)
        _scale(output, rule.mean, rule.std)


def _scale(output: NDArray[np.float32], centre: float, width: float) -> None:
    output -= np.float32(centre)
    output /= np.float32(width or 1.0)


def _mean_and_std(channel: NDArray[Any]) -> tuple[float, float]:
    """In float64, plane by plane: a large volume is never copied to double precision."""
    planes = np.moveaxis(channel, -1, 0)
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in planes) / channel.size
    squares = sum(float(np.square(plane.astype(np.float64) - mean).sum()) for plane in planes)
    return mean, float(np.sqrt(squares / channel.size))
