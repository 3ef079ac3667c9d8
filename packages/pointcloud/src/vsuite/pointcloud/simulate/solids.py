"""Parametric solids as clouds for classification, with what makes real scans hard: noise, hidden sides, floor and neighbours.

The classes are chosen so that local shape (a round or a flat side) does not tell them apart without the whole: a tube, a mug
and a cylinder; a table and a chair; a bowl and an ellipsoid; a bottle and a lamp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path, write_text
from vsuite.pointcloud.simulate.meshes import Mesh, boxes, ellipsoid, lathe, loft, merge, mesh, tubes

_SURPLUS = 4  # points sampled for each one asked for: occlusion takes many


@dataclass(frozen=True)
class Difficulty:
    """What happens to a solid. All lengths are shares of its largest radius.

    Attributes:
        noise: largest standard deviation of the points' positions; each solid draws its own.
        hidden: probability that the solid is seen from one side only, and that a plane cuts a part off.
        background: largest share of points that belong to the floor, a wall or a neighbour.
        tilt: standard deviation of roll and pitch, degrees.
        full_rotation: any rotation instead of one about the up axis.
    """

    noise: float = 0.0
    hidden: float = 0.0
    background: float = 0.0
    tilt: float = 0.0
    full_rotation: bool = False

    def __post_init__(self) -> None:
        if min(self.noise, self.tilt) < 0 or not 0 <= self.hidden <= 1 or not 0 <= self.background < 1:
            raise InputError(f"{self}: noise and tilt must not be negative, hidden lies in [0, 1], background in [0, 1)")


DIFFICULTIES = {
    "clean": Difficulty(),
    "scanned": Difficulty(noise=0.02, hidden=0.6, tilt=3.0),
    "cluttered": Difficulty(noise=0.03, hidden=0.8, background=0.4, tilt=5.0),
}
"""Whole solids; solids as a scanner sees them, cut out; the same with floor and neighbours (as ScanObjectNN's hardest variant)."""


def make_solids(
    count: int, points: int = 1024, seed: int = 0, *, difficulty: str | Difficulty = "cluttered", up: str = "y"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clouds of random solids; cloud i depends on `seed`, `points` and i alone, and its class is i modulo the number of classes.

    Args:
        difficulty: a name of `DIFFICULTIES` or a `Difficulty`.
        up: axis that points up: "y" as in ModelNet40 and ScanObjectNN, or "z".

    Returns:
        clouds (count, points, 3) float32, each with mean zero and largest radius one, points in random order; labels (count,)
        int64, rows of `CLASSES`.
    """
    clouds, labels, _ = _make(range(_checked(count, points)), points, seed, difficulty, up)
    return clouds, labels


def write_solids(
    path: str | Path, count: int, *, points: int = 2048, seed: int = 0, difficulty: str | Difficulty = "cluttered", up: str = "y"
) -> None:
    """Writes random solids as an h5 file in ScanObjectNN's layout.

    It holds `data` (count, points, 3) float32, `label` (count,) int64 and `mask` (count, points) int64, -1 for background; the
    attribute `class_names` of the file lists `CLASSES`. Arguments as of `make_solids`.
    """
    import h5py

    clouds, labels, foreground = _make(range(_checked(count, points)), points, seed, difficulty, up)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("data", data=clouds)
        file.create_dataset("label", data=labels)
        file.create_dataset("mask", data=np.where(foreground, labels[:, None], -1))
        file.attrs["class_names"] = list(CLASSES)


def write_solid_dataset(folder: str | Path, count: int, *, points: int = 2048, seed: int = 0, split: float = 0.2, **options: Any) -> Path:
    """Writes random solids as a data set in ModelNet40's layout: ply_data_train0.h5, ply_data_test0.h5 and shape_names.txt.

    Args:
        split: share of the shapes to test on; they are drawn from a seed of their own.
        options: `difficulty` and `up` of `make_solids`.

    Raises:
        InputError: for a folder that holds something, and numbers out of range.
    """
    folder = Path(folder)
    held_out = round(count * split)
    if not 0 < held_out < count:
        raise InputError(f"split: {split} of {count} shapes leaves none to train on, or none to test on")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists; give a new folder")
    write_solids(folder / "ply_data_test0.h5", held_out, points=points, seed=seed + 1_000_003, **options)
    write_solids(folder / "ply_data_train0.h5", count - held_out, points=points, seed=seed, **options)
    write_text(folder / "shape_names.txt", "".join(f"{name}\n" for name in CLASSES))
    return folder


def _checked(count: int, points: int) -> int:
    if count < 1 or points < 8:
        raise InputError(f"count {count} and points {points} given; at least 1 cloud of 8 points is needed")
    return count


def _make(
    indices: range, points: int, seed: int, difficulty: str | Difficulty, up: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    if up not in ("y", "z"):
        raise unknown("up axis", up, ("y", "z"))
    if isinstance(difficulty, str):
        if difficulty not in DIFFICULTIES:
            raise unknown("difficulty", difficulty, DIFFICULTIES)
        difficulty = DIFFICULTIES[difficulty]
    labels = np.array(indices) % len(CLASSES)
    clouds = np.empty((len(indices), points, 3), dtype=np.float32)
    foreground = np.empty((len(indices), points), dtype=bool)
    for row, index in enumerate(indices):
        clouds[row], foreground[row] = make_solid(np.random.default_rng([seed, index]), CLASSES[labels[row]], points, difficulty)
    if up == "y":
        clouds = np.ascontiguousarray(clouds[..., [1, 2, 0]])  # a rotation: x, y, z -> z, x, y
    return clouds, labels, foreground


def make_solid(rng: np.random.Generator, name: str, points: int, difficulty: Difficulty) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One cloud (points, 3), z up, in the unit sphere, and which of its points belong to the solid."""
    whole, _ = _stretched(rng, SOLIDS[name](rng)).sample(_SURPLUS * points, rng)
    whole = _posed(rng, _in_unit_sphere(whole), difficulty)
    seen = _hide(rng, whole, difficulty.hidden)
    around = _background(rng, whole, round(rng.random() * difficulty.background * points))
    cloud = np.concatenate([_draw(rng, seen, points - len(around)), around])
    foreground = np.arange(points) < points - len(around)
    cloud = cloud + difficulty.noise * rng.uniform(0.2, 1) * rng.standard_normal(cloud.shape)
    order = rng.permutation(points)
    return _in_unit_sphere(cloud[order]).astype(np.float32), foreground[order]


def _in_unit_sphere(cloud: NDArray[np.floating]) -> NDArray[np.floating]:
    centred = cloud - cloud.mean(axis=0)
    return centred / max(float(np.linalg.norm(centred, axis=1).max()), 1e-9)


def _draw(rng: np.random.Generator, cloud: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """`count` points of a cloud, repeated only where it has fewer."""
    return cloud[rng.permutation(max(count, len(cloud)))[:count] % len(cloud)]


def _stretched(rng: np.random.Generator, solid: Mesh) -> Mesh:
    return mesh(solid.vertices * rng.uniform(0.85, 1.15, 3), solid.triangles)


def _posed(rng: np.random.Generator, cloud: NDArray[np.floating], difficulty: Difficulty) -> NDArray[np.floating]:
    """The cloud turned about z and tilted a little, or turned at random."""
    from scipy.spatial.transform import Rotation

    yaw, (roll, pitch) = rng.uniform(0, 360), difficulty.tilt * rng.standard_normal(2)
    turn = Rotation.from_euler("zyx", [yaw, pitch, roll], degrees=True)
    if difficulty.full_rotation:
        turn = Rotation.from_quat(rng.standard_normal(4))
    return cloud @ turn.as_matrix().T


def _hide(rng: np.random.Generator, cloud: NDArray[np.floating], probability: float) -> NDArray[np.floating]:
    """Drops what a scanner on one side does not see (some of it stays, as if from a second view), then what lies behind a plane."""
    if rng.random() < probability:
        azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-5, 50))
        seen = _visible(cloud, azimuth, elevation) | (rng.random(len(cloud)) < rng.uniform(0, 0.4))
        cloud = cloud[seen]
    if rng.random() < probability:
        direction = rng.standard_normal(3)
        along = cloud @ (direction / np.linalg.norm(direction))
        cloud = cloud[along <= np.quantile(along, 1 - rng.uniform(0, 0.3))]
    return cloud


def _visible(cloud: NDArray[np.floating], azimuth: float, elevation: float, cell: float = 0.07, depth: float = 0.09) -> NDArray[np.bool_]:
    """Which points are within `depth` of the nearest one in their cell of a grid across the view."""
    sight = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])  # to the viewer
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    columns, rows = (np.floor((cloud @ axis) / cell).astype(np.int64) for axis in (right, np.cross(sight, right)))
    near = cloud @ sight
    width = int(columns.max() - columns.min()) + 1
    index = (rows - rows.min()) * width + columns - columns.min()
    nearest = np.full(int(index.max()) + 1, -np.inf)
    np.maximum.at(nearest, index, near)
    return near >= nearest[index] - depth


def _background(rng: np.random.Generator, cloud: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """`count` points of the floor below, and perhaps of a wall behind or of a neighbour beside the solid."""
    if count == 0:
        return np.empty((0, 3))
    low, high = cloud.min(axis=0), cloud.max(axis=0)
    middle, reach = (low + high) / 2, (high - low) / 2
    parts = [np.column_stack([middle[:2] + rng.uniform(-1.15, 1.15, (count, 2)) * reach[:2], np.full(count, low[2])])]
    azimuth = rng.uniform(0, 2 * np.pi)
    outward, across = np.array([np.cos(azimuth), np.sin(azimuth), 0]), np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    edge = float((cloud @ outward).max())
    foot = middle + outward * (edge - middle @ outward)
    foot[2] = low[2]
    if rng.random() < 0.3:
        tall = rng.uniform(0, high[2] - low[2], (count, 1)) * np.array([0, 0, 1])
        parts.append(foot + 0.05 * outward + rng.uniform(-1, 1, (count, 1)) * across + tall)
    if rng.random() < 0.5:
        other, _ = SOLIDS[str(rng.choice(CLASSES))](rng).sample(4 * count, rng)
        other = _in_unit_sphere(other)
        away = other @ outward - (other @ outward).min()
        beside = foot + other - (other @ outward)[:, None] * outward + (away[:, None] + rng.uniform(0, 0.1)) * outward
        beside[:, 2] += -other[:, 2].min()
        parts.append(beside[away < 0.35])  # a fragment: what the box that was cut out of the scan still holds
    weights = rng.dirichlet(np.full(len(parts), 2.0))
    shares = np.diff(np.round(np.cumsum([0, *weights]) * count).astype(int))
    return np.concatenate([_draw(rng, part, share) for part, share in zip(parts, shares, strict=True)])


# The solids: meshes with z up; sizes are relative, since every cloud is scaled to the unit sphere.


def _ring(radius: float, tube: float, sides: int = 24, arc: float = 2 * np.pi) -> Mesh:
    """A torus about z, or an arc of one."""
    angles = np.linspace(0, arc, sides + 1)
    circle = np.linspace(0, 2 * np.pi, 13)[:-1]
    across = radius + tube * np.cos(circle)
    rings = np.stack(
        [np.outer(np.cos(angles), across), np.outer(np.sin(angles), across), np.tile(tube * np.sin(circle), (sides + 1, 1))], axis=-1
    )
    return loft(rings, caps=arc < 2 * np.pi)


def _quads(corners: ArrayLike) -> Mesh:
    """Flat quadrilaterals (K, 4, 3)."""
    corners = np.asarray(corners, dtype=np.float32)
    return mesh(corners, [[4 * k + i for i in t] for k in range(len(corners)) for t in ((0, 1, 2), (0, 2, 3))])


def _ellipsoid(rng: np.random.Generator) -> Mesh:
    return ellipsoid(rng.uniform(0.5, 1.0, 3), level=3)


def _box(rng: np.random.Generator) -> Mesh:
    return boxes(rng.uniform(0.5, 1.4, 3), (0, 0, 0))


def _cylinder(rng: np.random.Generator) -> Mesh:
    return tubes((0, 0, 0), (0, 0, rng.uniform(0.6, 2.0)), rng.uniform(0.3, 0.6), sides=32)


def _cone(rng: np.random.Generator) -> Mesh:
    return tubes((0, 0, 0), (0, 0, rng.uniform(0.8, 1.8)), (rng.uniform(0.4, 0.8), rng.uniform(0, 0.08)), sides=32)


def _torus(rng: np.random.Generator) -> Mesh:
    return _ring(1.0, rng.uniform(0.15, 0.45), sides=32)


def _pyramid(rng: np.random.Generator) -> Mesh:
    base = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [*rng.uniform(0.5, 0.9, 2), 0]
    return loft([base, base * rng.uniform(0, 0.1) + [0, 0, rng.uniform(0.8, 1.6)]])


def _prism(rng: np.random.Generator) -> Mesh:
    """Of three, five or six sides, standing or lying."""
    sides, height = int(rng.choice([3, 5, 6])), rng.uniform(0.8, 1.8)
    standing = tubes((0, 0, 0), (0, 0, height), rng.uniform(0.5, 0.8), sides=sides)
    if rng.random() < 0.5:
        return standing
    return mesh(standing.vertices[:, [2, 0, 1]], standing.triangles)


def _tube(rng: np.random.Generator) -> Mesh:
    """A pipe with open ends."""
    radius, height = rng.uniform(0.3, 0.7), rng.uniform(0.6, 2.0)
    inner = radius * rng.uniform(0.75, 0.92)
    return lathe([(inner, 0), (radius, 0), (radius, height), (inner, height), (inner, 0)], sides=32)


def _bowl(rng: np.random.Generator) -> Mesh:
    """The lower part of a sphere with a thin wall."""
    depth, wall = rng.uniform(0.5, 1.1), rng.uniform(0.85, 0.95)
    angles = np.linspace(-np.pi / 2, rng.uniform(-0.3, 0.2), 10)
    outer = np.stack([np.cos(angles), depth * np.sin(angles)], axis=1)
    return lathe(np.concatenate([outer, wall * outer[::-1]]), sides=32)


def _mug(rng: np.random.Generator) -> Mesh:
    """A cup with a floor and a handle."""
    radius, height = rng.uniform(0.4, 0.65), rng.uniform(0.8, 1.5)
    inner = 0.9 * radius
    cup = lathe([(0, 0), (radius, 0), (radius, height), (inner, height), (inner, 0.08), (0, 0.08)], sides=32)
    handle = _ring(rng.uniform(0.28, 0.4) * height, 0.06, sides=12, arc=np.pi)
    upright = handle.vertices[:, [1, 2, 0]] + np.array([0.95 * radius, 0, height / 2])
    return merge([cup, mesh(upright, handle.triangles)])


def _bottle(rng: np.random.Generator) -> Mesh:
    radius, neck = rng.uniform(0.3, 0.5), rng.uniform(0.08, 0.16)
    shoulder, top = rng.uniform(0.9, 1.3), rng.uniform(1.6, 2.1)
    throat = shoulder + rng.uniform(0.1, 0.4)
    bend = [(radius + (neck - radius) * (1 - np.cos(t)) / 2, shoulder + (throat - shoulder) * t / np.pi) for t in np.linspace(0, np.pi, 6)]
    return lathe([(0, 0), (radius, 0), *bend, (neck, top), (0, top)], sides=28)


def _lamp(rng: np.random.Generator) -> Mesh:
    """A foot, a thin stem and a shade that is open below."""
    height, shade = rng.uniform(1.2, 2.2), rng.uniform(0.4, 0.7)
    low, high = rng.uniform(0.4, 0.7), rng.uniform(0.15, 0.4)
    foot = tubes((0, 0, 0), (0, 0, 0.08), (rng.uniform(0.25, 0.5), 0.2), sides=20)
    stem = tubes((0, 0, 0.08), (0, 0, height), rng.uniform(0.03, 0.07))
    return merge([foot, stem, lathe([(low, height - shade), (high, height), (0.02, height)], sides=24)])


def _table(rng: np.random.Generator) -> Mesh:
    """A plate, angular or round, on four legs or one."""
    half, height = rng.uniform(0.4, 1.0, 2), rng.uniform(0.6, 1.1)
    round_plate = rng.random() < 0.3
    plate = boxes((*(2 * half), 0.07), (0, 0, height + 0.035))
    if round_plate:
        plate = tubes((0, 0, height), (0, 0, height + 0.07), half[0], sides=28)
    if rng.random() < 0.25:
        legs = merge([tubes((0, 0, 0), (0, 0, height), 0.08), tubes((0, 0, 0), (0, 0, 0.06), 0.5 * half.min(), sides=16)])
    else:
        legs = _legs(np.full(2, 0.62 * half[0]) if round_plate else 0.9 * half, height, rng.uniform(0.035, 0.07))
    return merge([plate, legs])


def _legs(half: NDArray[np.float64], height: float, thickness: float) -> Mesh:
    feet = np.array([[x, y, 0] for x in (-1, 1) for y in (-1, 1)]) * [*half, 0]
    return tubes(feet, feet + np.array([0, 0, height]), thickness)


def _chair(rng: np.random.Generator) -> Mesh:
    """A seat on legs (or on a foot) with a back, sometimes with arms."""
    half, height = rng.uniform(0.38, 0.55, 2), rng.uniform(0.6, 0.9)
    back = rng.uniform(0.6, 1.1)
    parts = [
        boxes([(*(2 * half), 0.09), (0.08, 2 * half[1], back)], [(0, 0, height + 0.045), (-half[0] + 0.04, 0, height + 0.09 + back / 2)])
    ]
    if rng.random() < 0.25:
        parts += [tubes((0, 0, 0), (0, 0, height), 0.06), tubes((0, 0, 0), (0, 0, 0.06), 0.4, sides=10)]
    else:
        parts.append(_legs(half * 0.88, height, rng.uniform(0.035, 0.06)))
    if rng.random() < 0.3:
        parts.append(boxes([(2 * half[0], 0.07, 0.06)] * 2, [(0, s * half[1], height + 0.4) for s in (-1, 1)]))
        parts.append(boxes([(0.06, 0.07, 0.35)] * 2, [(half[0] - 0.05, s * half[1], height + 0.2) for s in (-1, 1)]))
    return merge(parts)


def _stairs(rng: np.random.Generator) -> Mesh:
    """Three to six steps, solid below."""
    steps, half = int(rng.integers(3, 7)), rng.uniform(0.3, 0.7)
    x, z = np.arange(steps + 1) * rng.uniform(0.9, 1.3) / steps, np.arange(steps + 1) * rng.uniform(0.7, 1.3) / steps
    a, b = -half, half
    faces = [
        [(x[0], a, 0), (x[-1], a, 0), (x[-1], b, 0), (x[0], b, 0)],
        [(x[-1], a, 0), (x[-1], b, 0), (x[-1], b, z[-1]), (x[-1], a, z[-1])],
    ]
    for i in range(steps):
        faces.append([(x[i], a, z[i]), (x[i], b, z[i]), (x[i], b, z[i + 1]), (x[i], a, z[i + 1])])
        faces.append([(x[i], a, z[i + 1]), (x[i], b, z[i + 1]), (x[i + 1], b, z[i + 1]), (x[i + 1], a, z[i + 1])])
        faces += [[(x[i], y, 0), (x[i + 1], y, 0), (x[i + 1], y, z[i + 1]), (x[i], y, z[i + 1])] for y in (a, b)]
    return _quads(faces)


def _cross(rng: np.random.Generator) -> Mesh:
    """A post with arms, two or four of them; upright."""
    height, arm, at = rng.uniform(1.4, 2.2), rng.uniform(0.4, 0.8), rng.uniform(0.45, 0.75)
    thick = rng.uniform(0.2, 0.4)
    post = boxes((thick, thick, height), (0, 0, height / 2))
    offset = (thick + arm) / 2
    sides = [(offset, 0), (-offset, 0), (0, offset), (0, -offset)][: int(rng.choice([2, 4]))]
    arms = [boxes((arm if x else thick, arm if y else thick, thick), (x, y, at * height)) for x, y in sides]
    return merge([post, *arms])


SOLIDS: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "ellipsoid": _ellipsoid, "box": _box, "cylinder": _cylinder, "cone": _cone, "torus": _torus, "pyramid": _pyramid,
    "prism": _prism, "tube": _tube, "bowl": _bowl, "mug": _mug, "bottle": _bottle, "lamp": _lamp, "table": _table,
    "chair": _chair, "stairs": _stairs, "cross": _cross,
}  # fmt: skip
"""A builder a class; all take a generator and give a mesh with z up."""

CLASSES = tuple(SOLIDS)
"""The classes in the order of their labels."""
