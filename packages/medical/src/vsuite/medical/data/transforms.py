"""Augmentation: random views of a training volume.

Crop, rotation, scaling and elastic deformation are one resampling, straight from the volume into the patch: nothing is
computed outside the patch, and corners hold real tissue. Intensity, noise and dropout are MONAI's transforms. All
randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vsuite.medical.data.zoom import zoom_labels, zoom_slice

Range = tuple[float, float]
Probability = float
Size = tuple[int, int, int]
Interpolation = Literal["nearest", "linear"]


class AugmentationSettings(BaseModel):
    """What is done to a training patch, how often (probabilities, 0 to 1) and how strongly; axes are the network's D, H, W.

    Attributes:
        crops_per_case: patches that one pass over the data takes from each case.
        foreground_share: share of patches centred on a voxel of a class drawn evenly among those present; the others lie
            anywhere in the volume.
        mirror_probability: for each of the plan's `mirror_axes`.
        rotation_probability, rotation: largest angle in radians about D, H and W.
        turn_probability: of quarter turns and a flip of 2D patches; one that is turned is not rotated.
        scale_probability, scale: zoom factors, above 1 enlarges; one draw for all axes.
        elastic_probability, elastic_magnitude, elastic_spacing: standard deviation in mm and spacing in voxels of random
            displacements, interpolated in between.
        label_interpolation: "nearest", or "linear": soft masks for regions; for classes the one that prevails after
            interpolating each one's mask (time grows with their number).
        outside_crop: what rotation brings in: "volume" takes the voxels that are there, "edge" repeats the patch's border.
        smooth_probability, smooth_sigma: Gaussian, in voxels.
        low_resolution_probability, low_resolution: zoom of a coarser grid that the patch passes through.
        gain_probability, gain: factor for every voxel, 1 - gain to 1 + gain, each channel its own.
        shift_probability, shift: addend, in units of the normalised image, each channel its own.
        contrast_probability, contrast: factors for the distance from the patch's mean.
        gamma_probability, gamma: exponents on the values scaled to 0..1; mean and deviation are kept.
        noise_probability, noise: largest standard deviation of Gaussian noise.
        gibbs_probability, gibbs: range of MONAI's alpha, 0 none to 1 all; cuts high frequencies, which rings at edges.
        dropout_probability, dropout_holes, dropout_size, dropout_label: boxes set to 0 (a size of 0 is the whole axis), in
            the label too if wanted.
    """

    model_config = ConfigDict(extra="forbid")

    crops_per_case: int = Field(default=1, ge=1)
    foreground_share: Probability = Field(default=0.5, ge=0, le=1)
    mirror_probability: Probability = Field(default=0.0, ge=0, le=1)
    rotation_probability: Probability = Field(default=0.0, ge=0, le=1)
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_probability: Probability = Field(default=0.0, ge=0, le=1)
    scale_probability: Probability = Field(default=0.0, ge=0, le=1)
    scale: Range = (1.0, 1.0)
    elastic_probability: Probability = Field(default=0.0, ge=0, le=1)
    elastic_magnitude: float = Field(default=0.0, ge=0)
    elastic_spacing: int = Field(default=12, ge=2)
    label_interpolation: Interpolation = "nearest"
    outside_crop: Literal["volume", "edge"] = "volume"
    smooth_probability: Probability = Field(default=0.0, ge=0, le=1)
    smooth_sigma: Range = (0.5, 1.0)
    low_resolution_probability: Probability = Field(default=0.0, ge=0, le=1)
    low_resolution: Range = (0.5, 1.0)
    gain_probability: Probability = Field(default=0.0, ge=0, le=1)
    gain: float = Field(default=0.0, ge=0, lt=1)
    shift_probability: Probability = Field(default=0.0, ge=0, le=1)
    shift: float = Field(default=0.0, ge=0)
    contrast_probability: Probability = Field(default=0.0, ge=0, le=1)
    contrast: Range = (0.75, 1.25)
    gamma_probability: Probability = Field(default=0.0, ge=0, le=1)
    gamma: Range = (0.7, 1.5)
    noise_probability: Probability = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)
    gibbs_probability: Probability = Field(default=0.0, ge=0, le=1)
    gibbs: Range = (0.0, 0.5)
    dropout_probability: Probability = Field(default=0.0, ge=0, le=1)
    dropout_holes: int = Field(default=0, ge=0)
    dropout_size: tuple[int, int, int] = (0, 0, 0)
    dropout_label: bool = False

    @model_validator(mode="after")
    def _ranges(self) -> AugmentationSettings:
        for name in ("scale", "smooth_sigma", "low_resolution", "contrast", "gamma", "gibbs"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is a range from low to high, 0 or more; got {low} to {high}")
        if self.scale[0] <= 0 or self.low_resolution[0] <= 0:
            raise ValueError("scale and low_resolution must be above 0")
        if max(self.gibbs[1], self.low_resolution[1]) > 1:
            raise ValueError("gibbs and low_resolution go up to 1")
        if min(self.dropout_size) < 0:
            raise ValueError(f"dropout_size must be 0 (the whole axis) or more; got {self.dropout_size}")
        return self


@dataclass(frozen=True)
class Placement:
    """Where a patch is taken from a volume.

    Attributes:
        start: voxel of the volume where the patch begins while nothing is rotated, scaled or deformed; D H W. These turn
            about the patch's centre.
        size: of the patch, D H W.
        matrix: 3x3, steps in the volume (voxels) for steps in the patch; None is the identity.
        displacement: 3, d, h, w coarse displacements in voxels of the volume, None for none.
    """

    start: Size
    size: Size
    matrix: np.ndarray | None = None
    displacement: np.ndarray | None = None

    @property
    def centre(self) -> tuple[float, ...]:
        """Of the patch, in voxels of the volume, D H W."""
        return tuple(first + (size - 1) / 2 for first, size in zip(self.start, self.size, strict=True))


def random_placement(
    start: Size, size: Size, spacing: Sequence[float], settings: AugmentationSettings, rng: np.random.Generator
) -> Placement:
    """Draws rotation, scale and deformation for a patch.

    Args:
        spacing: voxel sides in mm along D, H, W: on anisotropic grids rotation is one of the body, not of the array.
    """
    sides = np.asarray(spacing, np.float64)
    rotate, zoom, bend = rng.random(3) < (settings.rotation_probability, settings.scale_probability, settings.elastic_probability)
    matrix, displacement, flat = None, None, size[0] == 1  # a slice moves in its own plane
    if rotate:
        angles = [rng.uniform(-limit, limit) * (axis == 0 or not flat) for axis, limit in enumerate(settings.rotation)]
        matrix = rotation_matrix(angles) * sides / sides[:, None]
    if zoom:
        matrix = (np.eye(3) if matrix is None else matrix) / rng.uniform(*settings.scale)
        if flat:
            matrix[0, 0] = 1.0
    if bend:
        grid = [max(2, round(s / settings.elastic_spacing) + 1) for s in size]
        displacement = settings.elastic_magnitude / sides[:, None, None, None] * rng.standard_normal((3, *grid))
        if flat:
            displacement[0] = 0
    return Placement(start, size, matrix, displacement)


def turn(image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Quarter turns, 0 to 3, in the plane H, W, and a flip of one of its axes, of an image and a label C, 1, S, S."""
    quarters, axis = int(rng.integers(4)), 2 + int(rng.integers(2))
    image, label = (one.rot90(quarters, (2, 3)).flip(axis) for one in (image, label))
    return image, label


def zoomed_slice(
    image: np.ndarray, target: np.ndarray, index: int, size: int, settings: AugmentationSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A whole slice of a volume C, D, H, W and of its target, at another size: splines and the nearest pixel, as predictions are made.

    A rotation (by an angle within `settings.rotation[0]`) takes the nearest pixel of both and keeps the size.

    Returns:
        float32 C, 1, size, size and K, 1, size, size.
    """
    parts = np.array(image[:, index]), np.array(target[:, index])
    if rng.random() < settings.rotation_probability:
        angle = np.rad2deg(rng.uniform(-settings.rotation[0], settings.rotation[0]))
        parts = tuple(ndimage.rotate(part, angle, (1, 2), reshape=False, order=0) for part in parts)
    pixels = np.stack([zoom_slice(channel, (size, size)) for channel in parts[0]]).astype(np.float32)
    labels = zoom_labels(parts[1], (size, size)).astype(np.float32)
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(labels)[:, None]


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Rotations about D, then H, then W by the given angles in radians, as one 3x3 matrix on D H W coordinates."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def take_patch(
    image: np.ndarray,
    target: np.ndarray,
    placement: Placement,
    *,
    label_interpolation: Interpolation = "nearest",
    num_classes: int | None = None,
    edge: bool = False,
) -> tuple[Tensor, Tensor]:
    """Takes one patch from an image and its target; only the voxels that it needs are read, so memory-mapped arrays are fine.

    Beyond the volume both are 0, as in prediction: the mean of a z-scored image, of the foreground under "ct", the minimum
    under the other rules; and background.

    Args:
        image, target: C, D, H, W and K, D, H, W.
        label_interpolation: of the target; the image's is linear.
        num_classes: where the target is a map of class indices. "linear" then interpolates each class's mask and takes the
            largest, which follows a turned border more closely than the nearest voxel does.
        edge: repeat the border of the unrotated patch instead of reading the volume beyond it.

    Returns:
        float32 C, *placement.size and K, *placement.size.
    """
    if placement.matrix is None and placement.displacement is None:
        box = placement.start, placement.size
        return _box(image, *box), _box(target, *box)
    points = _sampled_points(placement)  # 3, D, H, W in voxels of the volume
    if edge:
        first = _column(placement.start)
        points = points.maximum(first).minimum(first + _column(placement.size) - 1)
    lower = [int(p.min().floor()) for p in points]
    size = [int(p.max().ceil()) - low + 1 for p, low in zip(points, lower, strict=True)]
    lower, size = _trimmed(lower, size, image.shape[1:])
    grid = 2 * (points - _column(lower)) / _column([max(s - 1, 1) for s in size]) - 1
    grid = grid.flip(0).permute(1, 2, 3, 0)[None]  # grid_sample takes W, H, D from -1 to 1

    def sample(box: Tensor, mode: str) -> Tensor:
        return F.grid_sample(box[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]

    patch, labels = sample(_box(image, lower, size), "bilinear"), _box(target, lower, size)
    if label_interpolation == "nearest":
        return patch, sample(labels, "nearest")
    if num_classes is None:
        return patch, sample(labels, "bilinear")
    masks = torch.cat([labels == index for index in range(num_classes)]).float()
    return patch, sample(masks, "bilinear").argmax(0, keepdim=True).float()


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1, 1)


def _sampled_points(placement: Placement) -> Tensor:
    """3, D, H, W: the volume's coordinates of every voxel of the patch."""
    axes = [torch.arange(s, dtype=torch.float32) - (s - 1) / 2 for s in placement.size]
    matrix = torch.from_numpy(np.eye(3) if placement.matrix is None else placement.matrix).float()
    columns = [matrix[:, a].reshape(3, 1, 1, 1) * axes[a].reshape([-1 if b == a else 1 for b in range(3)]) for a in range(3)]
    points = columns[0] + columns[1] + columns[2] + _column(placement.centre)
    if placement.displacement is not None:
        coarse = torch.from_numpy(placement.displacement).float()[None]
        points = points + F.interpolate(coarse, size=placement.size, mode="trilinear", align_corners=True)[0]
    return points


def _trimmed(lower: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cuts a box to the volume and a margin of one voxel, which stands for all that is outside."""
    start = [min(max(low, -1), extent) for low, extent in zip(lower, shape, strict=True)]
    stop = [max(min(low + s, extent + 1), first + 1) for low, s, extent, first in zip(lower, size, shape, start, strict=True)]
    return start, [b - a for a, b in zip(start, stop, strict=True)]


def _box(volume: np.ndarray, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """float32 copy of a box of the volume; 0 where it reaches beyond."""
    result = np.zeros((len(volume), *size), np.float32)
    inner, outer = [], []
    for low, s, extent in zip(start, size, volume.shape[1:], strict=True):
        first, last = max(low, 0), min(low + s, extent)
        if first >= last:
            return torch.from_numpy(result)
        inner.append(slice(first, last))
        outer.append(slice(first - low, last - low))
    result[(slice(None), *outer)] = volume[(slice(None), *inner)]
    return torch.from_numpy(result)


class VoxelAugmentation:
    """Changes voxel values: MONAI's transforms in the order smooth, low resolution, gain, shift, contrast, gamma, noise, Gibbs.

    Built once; importing MONAI takes seconds.

    Args:
        flat: patches are one voxel thick and changed as pictures: nothing reaches beyond the slice.
    """

    def __init__(self, settings: AugmentationSettings, *, flat: bool = False) -> None:
        s, self._flat = settings, flat
        import monai.transforms as mt

        candidates: list[tuple[float, Any]] = [
            (s.smooth_probability, mt.RandGaussianSmooth(s.smooth_sigma, s.smooth_sigma, s.smooth_sigma, prob=1.0)),
            (
                s.low_resolution_probability,
                mt.RandSimulateLowResolution(prob=1.0, zoom_range=s.low_resolution, upsample_mode="bilinear" if flat else "trilinear"),
            ),
            (s.gain_probability, mt.RandScaleIntensity(factors=s.gain, prob=1.0, channel_wise=True)),
            (s.shift_probability, mt.RandShiftIntensity(offsets=s.shift, prob=1.0, channel_wise=True)),
            (
                s.contrast_probability,
                mt.RandScaleIntensityFixedMean(factors=(s.contrast[0] - 1, s.contrast[1] - 1), prob=1.0, channel_wise=True),
            ),
            (s.gamma_probability, mt.RandAdjustContrast(gamma=s.gamma, retain_stats=True, prob=1.0)),
            (s.noise_probability, mt.RandGaussianNoise(std=s.noise, prob=1.0)),
            (s.gibbs_probability, mt.RandGibbsNoise(alpha=s.gibbs, prob=1.0)),
        ]
        self._steps = [(probability, transform) for probability, transform in candidates if probability > 0]

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """image: C, D, H, W float32 -> the same shape."""
        import monai.data

        if self._flat:
            image = image[:, 0]
        meta = monai.data.get_track_meta()
        monai.data.set_track_meta(False)
        try:
            for probability, transform in self._steps:
                if rng.random() < probability:
                    transform.set_random_state(seed=int(rng.integers(2**32)))
                    image = transform(image)
        finally:
            monai.data.set_track_meta(meta)
        return image[:, None].float() if self._flat else image.float()


def drop_boxes(image: Tensor, label: Tensor, settings: AugmentationSettings, rng: np.random.Generator) -> None:
    """Sets random boxes to 0, in place, with the settings' probability; in the label too where the settings say so."""
    if not settings.dropout_holes or rng.random() >= settings.dropout_probability:
        return
    shape = image.shape[1:]
    sizes = [min(wanted or extent, extent) for wanted, extent in zip(settings.dropout_size, shape, strict=True)]
    for _ in range(settings.dropout_holes):
        corner = [int(rng.integers(extent - size + 1)) for extent, size in zip(shape, sizes, strict=True)]
        box = (slice(None), *(slice(c, c + size) for c, size in zip(corner, sizes, strict=True)))
        image[box] = 0
        if settings.dropout_label:
            label[box] = 0
