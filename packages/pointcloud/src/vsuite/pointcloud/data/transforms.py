"""Augmentations of point clouds, by name: each takes a sample, a numpy Generator and options, and returns a new sample.

Whatever moves the points moves boxes, their velocities and the normals with them. Movements that boxes can follow are a `Placement`,
which can be undone, as test-time augmentation needs. Angles are degrees in options, radians elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.data.calibration import wrap

_NORMALS = ("nx", "ny", "nz")
_COLOURS = ("red", "green", "blue")
_AXES = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True)
class Sample:
    """A cloud in training.

    Attributes:
        points: (N, 3) float32. columns: name -> (N,).
        boxes: (M, 7) or (M, 9) float32, or None. labels: of the boxes, (M,) int64, or of the whole cloud, ().
    """

    points: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    def select(self, index: np.ndarray) -> Sample:
        """The points that an index or a mask chooses, with their columns; boxes stay."""
        return replace(self, points=self.points[index], columns={name: values[index] for name, values in self.columns.items()})


@dataclass(frozen=True)
class Placement:
    """A movement that boxes can follow: mirrored, turned about z, scaled, shifted; in this order.

    Attributes:
        angle: radians, counter-clockwise seen from above. scale: factor. shift: metres.
        flip_x: x becomes -x. flip_y: y becomes -y.
    """

    angle: float = 0.0
    scale: float = 1.0
    flip_x: bool = False
    flip_y: bool = False
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 without the shift."""
        mirror = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0])
        return self.scale * rotation_matrix("z", self.angle) @ mirror

    def apply(self, sample: Sample) -> Sample:
        """The sample moved."""
        moved = _linear(sample, self.matrix, np.array(self.shift))
        return moved if sample.boxes is None else replace(moved, boxes=self.apply_boxes(sample.boxes))

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (M, 7 or 9) moved."""
        moved = self._turned(boxes, self.matrix, self.scale)
        moved[:, :3] += self.shift
        return moved.astype(np.float32)

    def undo_points(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) back where they were."""
        return ((points - np.array(self.shift)) @ np.linalg.inv(self.matrix).T).astype(np.float32)

    def undo_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (M, 7 or 9) back where they were."""
        back = boxes.astype(np.float64)
        back[:, :3] -= self.shift
        return self._turned(back, np.linalg.inv(self.matrix), 1 / self.scale).astype(np.float32)

    def _turned(self, boxes: np.ndarray, matrix: np.ndarray, scale: float) -> np.ndarray:
        moved = boxes.astype(np.float64)
        moved[:, :3] = moved[:, :3] @ matrix.T
        moved[:, 3:6] *= scale
        heading = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])]) @ matrix[:2, :2].T
        moved[:, 6] = wrap(np.arctan2(heading[:, 1], heading[:, 0]))
        if boxes.shape[1] >= 9:
            moved[:, 7:9] = moved[:, 7:9] @ matrix[:2, :2].T
        return moved


def views(*, turns: Sequence[float] = (0.0,), scales: Sequence[float] = (1.0,), flips: bool = False) -> list[Placement]:
    """The views of test-time augmentation: every turn (degrees) at every scale, and with `flips` all four mirror images of each."""
    mirrors = list(product((False, True), repeat=2)) if flips else [(False, False)]
    return [
        Placement(angle=float(np.radians(turn)), scale=scale, flip_x=x, flip_y=y) for turn, scale, (x, y) in product(turns, scales, mirrors)
    ]


def rotation_matrix(axis: str, angle: float) -> np.ndarray:
    """(3, 3) float64: right-handed about "x", "y" or "z", by radians."""
    if axis not in _AXES:
        raise unknown("axis", axis, _AXES)
    first, second = (_AXES[axis] + 1) % 3, (_AXES[axis] + 2) % 3
    matrix = np.eye(3)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[second, first], matrix[first, second] = sine, -sine
    return matrix


# --- placement ---


def centre_shift(sample: Sample, rng: np.random.Generator) -> Sample:
    """Moves the middle of the bounds in x and y, and the lowest z, to the origin."""
    if not len(sample):
        return sample
    low, high = sample.points.min(0), sample.points.max(0)
    middle = (low + high) / 2
    return Placement(shift=(-float(middle[0]), -float(middle[1]), -float(low[2]))).apply(sample)


def unit_sphere(sample: Sample, rng: np.random.Generator) -> Sample:
    """Subtracts the mean and divides by the largest radius, for shapes; a cloud of equal points ends at the origin."""
    _refuse_boxes(sample, "unit_sphere")
    if not len(sample):
        return sample
    centred = sample.points.astype(np.float64) - sample.points.mean(0, dtype=np.float64)
    radius = np.linalg.norm(centred, axis=1).max()
    return replace(sample, points=(centred / (radius if radius > 0 else 1)).astype(np.float32))


def random_rotation(sample: Sample, rng: np.random.Generator, *, degrees: float = 180.0, axis: str = "z", about: str = "bounds") -> Sample:
    """Turns by an angle within +-`degrees` about an axis through the middle of the bounds, or through the "origin" (the sensor)."""
    return _turn(sample, float(np.radians(rng.uniform(-degrees, degrees))), axis, about)


def quarter_turns(sample: Sample, rng: np.random.Generator, *, axis: str = "z", about: str = "bounds") -> Sample:
    """Turns by 0, 90, 180 or 270 degrees."""
    return _turn(sample, float(rng.integers(4)) * np.pi / 2, axis, about)


def random_scale(sample: Sample, rng: np.random.Generator, *, low: float = 0.9, high: float = 1.1, per_axis: bool = False) -> Sample:
    """Scales by a factor between `low` and `high`; with `per_axis` by one for each axis, which boxes cannot follow."""
    if not per_axis:
        return Placement(scale=float(rng.uniform(low, high))).apply(sample)
    _refuse_boxes(sample, "random_scale with per_axis")
    return _linear(sample, np.diag(rng.uniform(low, high, 3)), np.zeros(3))


def random_shift(sample: Sample, rng: np.random.Generator, *, limit: float = 0.2) -> Sample:
    """Shifts each axis within +-`limit`."""
    x, y, z = rng.uniform(-limit, limit, 3)
    return Placement(shift=(float(x), float(y), float(z))).apply(sample)


def random_flip(sample: Sample, rng: np.random.Generator, *, probability: float = 0.5) -> Sample:
    """Mirrors x, and separately y, each with this probability."""
    flip_x, flip_y = rng.random(2) < probability
    return Placement(flip_x=bool(flip_x), flip_y=bool(flip_y)).apply(sample)


# --- points ---


def jitter(sample: Sample, rng: np.random.Generator, *, sigma: float = 0.01, clip: float = 0.05) -> Sample:
    """Adds normal noise to each coordinate, cut at +-`clip`."""
    noise = np.clip(rng.normal(0, sigma, sample.points.shape), -clip, clip)
    return replace(sample, points=(sample.points + noise).astype(np.float32))


def random_dropout(sample: Sample, rng: np.random.Generator, *, ratio: float = 0.2, probability: float = 0.5) -> Sample:
    """With this probability leaves out a share `ratio` of the points; at least one stays."""
    if rng.random() >= probability:
        return sample
    kept = max(1, round(len(sample) * (1 - ratio)))
    return sample.select(np.sort(rng.permutation(len(sample))[:kept]))


def dropout_to_first(sample: Sample, rng: np.random.Generator, *, most: float = 0.875) -> Sample:
    """Replaces a share of up to `most` of the points by copies of the first, so that their number stays (as for DGCNN)."""
    if not len(sample):
        return sample
    dropped = rng.random(len(sample)) < rng.uniform(0, most)
    return sample.select(np.where(dropped, 0, np.arange(len(sample))))


def elastic_distortion(
    sample: Sample, rng: np.random.Generator, *, granularity: Sequence[float] = (0.2, 0.8), magnitude: Sequence[float] = (0.4, 1.6)
) -> Sample:
    """Bends space by smooth noise: normal offsets on a grid of cells of `granularity`, smoothed and times `magnitude`.

    Two rounds by default, a fine and a coarse one.
    """
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import uniform_filter

    _refuse_boxes(sample, "elastic_distortion")
    if not len(sample):
        return sample
    points = sample.points.astype(np.float64)
    for cell, strength in zip(granularity, magnitude, strict=True):
        low = points.min(0)
        counts = np.floor((points.max(0) - low) / cell).astype(int) + 3
        if np.prod(counts) > 1 << 24:
            raise InputError(f"elastic_distortion: cells of {cell} are too small for a cloud of {np.prod(counts)} cells")
        noise = rng.normal(size=(3, *counts))
        for _ in range(2):
            noise = uniform_filter(noise, size=(0, 3, 3, 3), mode="constant")
        axes = [start + cell * (np.arange(count) - 1) for start, count in zip(low, counts, strict=True)]
        points = points + strength * RegularGridInterpolator(axes, np.moveaxis(noise, 0, -1), bounds_error=False, fill_value=0.0)(points)
    return replace(sample, points=points.astype(np.float32))


def sphere_crop(sample: Sample, rng: np.random.Generator, *, most: int = 80_000) -> Sample:
    """The `most` points nearest to a random one of them, in their order; smaller clouds stay whole."""
    if len(sample) <= most:
        return sample
    distances = ((sample.points - sample.points[rng.integers(len(sample))]) ** 2).sum(1)
    return sample.select(np.sort(np.argpartition(distances, most)[:most]))


def grid_sampling(sample: Sample, rng: np.random.Generator, *, size: float = 0.02) -> Sample:
    """One random point of each cell of a grid (see `grid`)."""
    from vsuite.pointcloud.data.grid import grid_sample

    return sample.select(grid_sample(sample.points, size, rng))


def shuffle(sample: Sample, rng: np.random.Generator) -> Sample:
    """The points in random order."""
    return sample.select(rng.permutation(len(sample)))


def range_crop(sample: Sample, rng: np.random.Generator, *, bounds: Sequence[float]) -> Sample:
    """Points and boxes (by their centre) within x y z (low) x y z (high); the upper bounds lie outside."""
    low, high = np.array(bounds[:3]), np.array(bounds[3:])
    cropped = sample.select(np.all((sample.points >= low) & (sample.points < high), axis=1))
    if sample.boxes is None:
        return cropped
    centres = sample.boxes[:, :3]
    inside = np.all((centres >= low) & (centres < high), axis=1)
    return replace(cropped, boxes=sample.boxes[inside], labels=None if sample.labels is None else sample.labels[inside])


# --- colours ---


def colour_contrast(sample: Sample, rng: np.random.Generator, *, probability: float = 0.2) -> Sample:
    """With this probability stretches each colour over 0 to 255, and blends that with the original by a random share."""
    if rng.random() >= probability:
        return sample
    colours = _colours(sample)
    low, high = colours.min(0), colours.max(0)
    stretched = (colours - low) / np.where(high > low, high - low, 1) * 255
    share = rng.random()
    return _recoloured(sample, share * stretched + (1 - share) * colours)


def colour_translation(sample: Sample, rng: np.random.Generator, *, probability: float = 0.95, ratio: float = 0.05) -> Sample:
    """With this probability adds to each of the colours one number within +-`ratio` of 255."""
    if rng.random() >= probability:
        return sample
    return _recoloured(sample, _colours(sample) + rng.uniform(-1, 1, 3) * 255 * ratio)


def colour_jitter(sample: Sample, rng: np.random.Generator, *, probability: float = 0.95, sigma: float = 0.01) -> Sample:
    """With this probability adds normal noise of `sigma` times 255 to each colour of each point."""
    if rng.random() >= probability:
        return sample
    return _recoloured(sample, _colours(sample) + rng.normal(0, 255 * sigma, (len(sample), 3)))


def colour_drop(sample: Sample, rng: np.random.Generator, *, probability: float = 0.2) -> Sample:
    """With this probability sets all colours to 0."""
    return sample if rng.random() >= probability else _recoloured(sample, 0 * _colours(sample))


# --- several samples ---


def mix(first: Sample, second: Sample) -> Sample:
    """Two scenes laid over each other: all points, the columns that both have, all boxes."""
    columns = {name: np.concatenate([values, second.columns[name]]) for name, values in first.columns.items() if name in second.columns}
    points = np.concatenate([first.points, second.points])
    if first.boxes is None or second.boxes is None:
        return Sample(points, columns)
    labels = None if first.labels is None or second.labels is None else np.concatenate([first.labels, second.labels])
    return Sample(points, columns, np.concatenate([first.boxes, second.boxes]), labels)


# --- by name ---

Transform = Callable[[Sample, np.random.Generator], Sample]

TRANSFORMS: dict[str, Callable[..., Sample]] = {
    function.__name__: function
    for function in (
        centre_shift, unit_sphere, random_rotation, quarter_turns, random_scale, random_shift, random_flip, jitter, random_dropout,
        dropout_to_first, elastic_distortion, sphere_crop, grid_sampling, shuffle, range_crop, colour_contrast, colour_translation,
        colour_jitter, colour_drop,
    )
}  # fmt: skip
"""Every augmentation by its name."""


def compose(steps: Sequence[str | Mapping[str, Any]]) -> Transform:
    """One transform of several.

    Args:
        steps: names, or mappings with `name` and its options, such as {"name": "random_scale", "low": 0.9}.

    Raises:
        InputError: for an unknown name or option.
    """
    chosen = [_step(step) for step in steps]

    def run(sample: Sample, rng: np.random.Generator) -> Sample:
        for function, options in chosen:
            sample = function(sample, rng, **options)
        return sample

    return run


def _step(step: str | Mapping[str, Any]) -> tuple[Callable[..., Sample], dict[str, Any]]:
    options = {} if isinstance(step, str) else {key: value for key, value in step.items() if key != "name"}
    name = step if isinstance(step, str) else str(step.get("name"))
    if name not in TRANSFORMS:
        raise unknown("transform", name, TRANSFORMS)
    allowed = list(inspect.signature(TRANSFORMS[name]).parameters)[2:]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {name}", option, allowed)
    return TRANSFORMS[name], options


# --- parts ---


def _linear(sample: Sample, matrix: np.ndarray, shift: np.ndarray) -> Sample:
    """Points and normals by a matrix; normals keep their length also where axes are scaled differently."""
    points = (sample.points.astype(np.float64) @ matrix.T + shift).astype(np.float32)
    if not all(name in sample.columns for name in _NORMALS):
        return replace(sample, points=points)
    old = np.column_stack([sample.columns[name] for name in _NORMALS]).astype(np.float64)
    new = old @ np.linalg.inv(matrix)
    lengths = np.linalg.norm(new, axis=1, keepdims=True)
    new *= np.linalg.norm(old, axis=1, keepdims=True) / np.where(lengths > 0, lengths, 1)
    return replace(sample, points=points, columns=sample.columns | {name: new[:, i].astype(np.float32) for i, name in enumerate(_NORMALS)})


def _turn(sample: Sample, angle: float, axis: str, about: str) -> Sample:
    if about not in ("bounds", "origin"):
        raise unknown("place to turn about", about, ["bounds", "origin"])
    matrix = rotation_matrix(axis, angle)
    centre = np.zeros(3)
    if about == "bounds" and len(sample):
        centre = (sample.points.min(0).astype(np.float64) + sample.points.max(0)) / 2
    shift = centre - matrix @ centre
    if axis == "z":
        return Placement(angle=angle, shift=(float(shift[0]), float(shift[1]), float(shift[2]))).apply(sample)
    _refuse_boxes(sample, f"a rotation about {axis}")
    return _linear(sample, matrix, shift)


def _refuse_boxes(sample: Sample, what: str) -> None:
    if sample.boxes is not None and len(sample.boxes):
        raise InputError(f"{what}: boxes cannot follow; they stay upright and rectangular")


def _colours(sample: Sample) -> np.ndarray:
    missing = [name for name in _COLOURS if name not in sample.columns]
    if missing:
        raise InputError(f"the cloud has no column {', '.join(missing)}, which a transform of colours needs")
    return np.column_stack([sample.columns[name] for name in _COLOURS]).astype(np.float64)


def _recoloured(sample: Sample, colours: np.ndarray) -> Sample:
    clipped = np.clip(colours, 0, 255).astype(np.float32)
    return replace(sample, columns=sample.columns | {name: clipped[:, i] for i, name in enumerate(_COLOURS)})
