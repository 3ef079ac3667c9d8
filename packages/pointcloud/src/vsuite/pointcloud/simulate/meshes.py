"""Triangle meshes of simple bodies: what streets and solids are put together from. Arrays only, no files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]


@dataclass
class Mesh:
    """Triangles with the facts a lidar needs.

    Attributes:
        vertices: V, 3 float32, metres.
        triangles: T, 3 int64, rows of `vertices`.
        reflectance: T float32, 0 (black) to 1 (retroreflector).
        opacity: T float32, the share of rays that stop here; the others pass on (glass, wire fences).
    """

    vertices: Floats
    triangles: NDArray[np.int64]
    reflectance: Floats
    opacity: Floats

    def moved(self, position: ArrayLike, yaw: float = 0.0) -> Mesh:
        """This mesh turned by `yaw` about z, then shifted."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=np.float32)
        return Mesh(self.vertices @ turn + np.asarray(position, dtype=np.float32), self.triangles, self.reflectance, self.opacity)

    def fitted(self, size: ArrayLike) -> Mesh:
        """This mesh stretched to the extents `size`, centred in x and y, standing on z = 0."""
        low, high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        vertices = (self.vertices - origin) * (np.asarray(size) / (high - low))
        return Mesh(vertices.astype(np.float32), self.triangles, self.reflectance, self.opacity)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """`count` points uniform over the area, and their unit normals (count, 3 each)."""
        corners = self.vertices[self.triangles]  # T 3 3
        normals = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas = np.linalg.norm(normals, axis=1)
        cumulative = np.cumsum(areas, dtype=np.float64)
        chosen = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right").clip(max=len(areas) - 1)
        u, v = rng.random((2, count, 1), dtype=np.float32)
        over = u + v > 1
        u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
        a, b, c = corners[chosen].transpose(1, 0, 2)
        return a + u * (b - a) + v * (c - a), normals[chosen] / areas[chosen, None]


def mesh(vertices: ArrayLike, triangles: ArrayLike, reflectance: ArrayLike = 0.3, opacity: ArrayLike = 1.0) -> Mesh:
    """A `Mesh` from arrays; one value of reflectance or opacity counts for all triangles."""
    triangles = np.asarray(triangles, dtype=np.int64).reshape(-1, 3)
    shape = (len(triangles),)
    return Mesh(
        np.asarray(vertices, dtype=np.float32).reshape(-1, 3),
        triangles,
        np.broadcast_to(np.asarray(reflectance, dtype=np.float32), shape),
        np.broadcast_to(np.asarray(opacity, dtype=np.float32), shape),
    )


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several (at least one)."""
    starts = np.cumsum([0] + [len(part.vertices) for part in meshes[:-1]])
    return Mesh(
        np.concatenate([part.vertices for part in meshes]),
        np.concatenate([part.triangles + start for part, start in zip(meshes, starts, strict=True)]),
        np.concatenate([part.reflectance for part in meshes]),
        np.concatenate([part.opacity for part in meshes]),
    )


_BOX_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], dtype=np.float32)
_BOX_TRIANGLES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)


def boxes(sizes: ArrayLike, centres: ArrayLike, reflectance: ArrayLike = 0.3, opacity: ArrayLike = 1.0) -> Mesh:
    """Boxes along the axes; `sizes` and `centres` are K, 3; reflectance and opacity one value or K."""
    sizes, centres = np.atleast_2d(np.asarray(sizes, dtype=np.float32)), np.atleast_2d(np.asarray(centres, dtype=np.float32))
    vertices = centres[:, None] + sizes[:, None] * _BOX_CORNERS  # K 8 3
    triangles = _BOX_TRIANGLES + 8 * np.arange(len(vertices))[:, None, None]
    return mesh(vertices, triangles, _each(reflectance, len(vertices), 12), _each(opacity, len(vertices), 12))


def _each(values: ArrayLike, bodies: int, triangles: int) -> Floats:
    return np.repeat(np.broadcast_to(np.asarray(values, dtype=np.float32), (bodies,)), triangles)


def tubes(starts: ArrayLike, ends: ArrayLike, radii: ArrayLike, *, sides: int = 6, reflectance: ArrayLike = 0.3) -> Mesh:
    """Closed tapered cylinders between points.

    Args:
        starts, ends: K, 3.
        radii: K, 2, at the start and at the end (or anything that broadcasts to that).
        sides: of the polygon that stands for the circle; its corners lie on the circle.
        reflectance: one value or K.
    """
    starts, ends = np.atleast_2d(np.asarray(starts, dtype=np.float32)), np.atleast_2d(np.asarray(ends, dtype=np.float32))
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float32), (len(starts), 2))
    axis = ends - starts
    axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-9)
    helper = np.where(np.abs(axis[:, 2:]) > 0.9, np.eye(3, dtype=np.float32)[0], np.eye(3, dtype=np.float32)[2])
    across = _cross(axis, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angles = 2 * np.pi * np.arange(sides, dtype=np.float32)[:, None] / sides
    circle = np.cos(angles) * across[:, None] + np.sin(angles) * _cross(axis, across)[:, None]  # K sides 3
    vertices = np.stack([starts, ends], axis=1)[:, :, None] + radii[:, :, None, None] * circle[:, None]
    triangles = _loft_triangles(2, sides, True) + 2 * sides * np.arange(len(starts))[:, None, None]
    return mesh(vertices, triangles, _each(reflectance, len(starts), triangles.shape[1]))


def _cross(a: Floats, b: Floats) -> Floats:
    """Cross products of rows (K, 3): numpy's own costs several times as much for the few rows of a mesh."""
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


@functools.cache
def _loft_triangles(rings: int, sides: int, caps: bool) -> NDArray[np.int64]:
    """Triangles between consecutive rings, quads in order (ring, side), two triangles each; then the caps as fans."""
    ring, side = np.meshgrid(np.arange(rings - 1), np.arange(sides), indexing="ij")
    a, b = ring * sides + side, ring * sides + (side + 1) % sides
    quads = np.stack([a, b, b + sides, a, b + sides, a + sides], axis=-1).reshape(-1, 3)
    if not caps:
        return quads
    fan = np.stack([np.zeros(sides - 2, dtype=np.int64), np.arange(2, sides), np.arange(1, sides - 1)], axis=1)
    return np.concatenate([quads, fan, fan[:, ::-1] + (rings - 1) * sides])


def loft(rings: ArrayLike, *, caps: bool = True, reflectance: ArrayLike = 0.3, opacity: ArrayLike = 1.0) -> Mesh:
    """A skin over rings of points (R, N, 3), each a closed loop; the first and last ring are closed by convex caps.

    Reflectance and opacity are one value, or one a quad (R - 1, N), where caps then take the value of the nearest quads.
    """
    rings = np.asarray(rings, dtype=np.float32)
    count, sides = rings.shape[:2]
    triangles = _loft_triangles(count, sides, caps)
    return mesh(rings, triangles, _on_quads(reflectance, count, sides, caps), _on_quads(opacity, count, sides, caps))


def _on_quads(values: ArrayLike, rings: int, sides: int, caps: bool) -> ArrayLike:
    values = np.asarray(values, dtype=np.float32)
    if values.ndim == 0:
        return values
    ends = [np.repeat(values[0, 0], sides - 2), np.repeat(values[-1, 0], sides - 2)] if caps else []
    return np.concatenate([np.repeat(values.reshape(-1), 2), *ends])


def lathe(profile: ArrayLike, *, sides: int = 24, caps: bool = False, reflectance: float = 0.3) -> Mesh:
    """The surface of revolution about z of a profile (M, 2) of radius and height."""
    profile = np.asarray(profile, dtype=np.float32)
    angles = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1)
    rings = profile[:, :1, None] * circle + profile[:, 1:, None] * np.array([0, 0, 1])
    return loft(rings, caps=caps, reflectance=reflectance)


@functools.cache
def _icosphere(level: int) -> tuple[Floats, NDArray[np.int64]]:
    golden = (1 + 5**0.5) / 2
    corners = [[a, b * golden, 0] for a in (-1, 1) for b in (-1, 1)]
    vertices = np.array(corners + [[0, a, b] for a, b, _ in corners] + [[b, 0, a] for a, b, _ in corners], dtype=np.float64)
    vertices /= np.linalg.norm(vertices[0])
    edge = 2 / np.hypot(1, golden)
    near = np.abs(np.linalg.norm(vertices[:, None] - vertices, axis=2) - edge) < 1e-6
    triangles = np.array([(a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]])
    for _ in range(level):
        pairs = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, index = np.unique(pairs, axis=0, return_inverse=True)
        middles = vertices[unique].mean(axis=1)
        ab, bc, ca = (index.reshape(-1, 3) + len(vertices)).T
        a, b, c = triangles.T
        vertices = np.concatenate([vertices, middles / np.linalg.norm(middles, axis=1, keepdims=True)])
        triangles = np.concatenate([np.stack(t, axis=1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return vertices.astype(np.float32), triangles


def ellipsoid(radii: ArrayLike, centre: ArrayLike = (0, 0, 0), *, level: int = 1, reflectance: ArrayLike = 0.3) -> Mesh:
    """An ellipsoid along the axes; `level` 0, 1, 2, ... gives 20, 80, 320, ... triangles."""
    vertices, triangles = _icosphere(level)
    return mesh(vertices * np.asarray(radii, dtype=np.float32) + np.asarray(centre, dtype=np.float32), triangles, reflectance)


def lump(
    rng: np.random.Generator, radii: ArrayLike, centre: ArrayLike, *, roughness: float, level: int = 2, reflectance: float = 0.45
) -> Mesh:
    """An ellipsoid whose radius varies from vertex to vertex by `roughness` (relative standard deviation): a bush."""
    vertices, triangles = _icosphere(level)
    scale = 1 + roughness * rng.standard_normal((len(vertices), 1), dtype=np.float32).clip(-2, 2)
    return mesh(vertices * scale * np.asarray(radii, dtype=np.float32) + np.asarray(centre, dtype=np.float32), triangles, reflectance)


def leaves(rng: np.random.Generator, centres: ArrayLike, radii: ArrayLike, count: int, *, size: float, reflectance: float = 0.45) -> Mesh:
    """Loose triangles in ellipsoids (`centres` and `radii` K, 3), denser towards their surface: a canopy that rays get through."""
    centres, radii = np.asarray(centres, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    which = rng.integers(len(centres), size=count)
    direction = rng.standard_normal((count, 3), dtype=np.float32)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    middle = centres[which] + radii[which] * direction * np.sqrt(rng.uniform(0.1, 1, (count, 1))).astype(np.float32)
    corners = middle[:, None] + size * rng.standard_normal((count, 3, 3), dtype=np.float32)
    return mesh(corners, np.arange(3 * count), reflectance)


def sheet(xs: ArrayLike, ys: ArrayLike, heights: ArrayLike, reflectance: ArrayLike) -> Mesh:
    """A height field on a grid: `xs` (M), `ys` (N), `heights` M, N, `reflectance` a cell (M - 1, N - 1) or one value."""
    xs, ys, heights = np.asarray(xs), np.asarray(ys), np.asarray(heights)
    vertices = np.stack([*np.meshgrid(xs, ys, indexing="ij"), heights], axis=-1)
    i, j = np.meshgrid(np.arange(len(xs) - 1), np.arange(len(ys) - 1), indexing="ij")
    a = i * len(ys) + j
    triangles = np.stack([a, a + len(ys), a + len(ys) + 1, a, a + len(ys) + 1, a + 1], axis=-1)
    cells = np.broadcast_to(np.asarray(reflectance, dtype=np.float32), i.shape)
    return mesh(vertices, triangles, np.repeat(cells.reshape(-1), 2))
