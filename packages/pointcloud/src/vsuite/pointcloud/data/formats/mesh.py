"""Meshes as point clouds: points drawn evenly over the surface."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.columns import Table
from vsuite.pointcloud.data.formats import by_open3d


def read(path: Path, samples: int, seed: int) -> Table:
    """Draws points from a mesh file (.off; .obj and .stl by open3d), with the normals of their triangles."""
    if samples < 1:
        raise InputError(f"{path}: {samples} points are to be drawn from the mesh; it must be 1 or more")
    vertices, triangles = _read_off(path) if path.suffix.lower() == ".off" else by_open3d.read_triangles(path)
    if not len(triangles):
        raise InputError(f"{path}: holds no faces to draw points from, or cannot be read")
    if not np.isfinite(vertices).all():
        raise InputError(f"{path}: {np.sum(~np.isfinite(vertices).all(1))} of {len(vertices)} vertices have NaN or infinite coordinates")
    points, normals = sample_surface(vertices, triangles, samples, np.random.default_rng(seed), path)
    values = np.column_stack([points, normals])
    return {name: values[:, i] for i, name in enumerate(("x", "y", "z", "nx", "ny", "nz"))}


def sample_surface(
    vertices: np.ndarray, triangles: np.ndarray, count: int, rng: np.random.Generator, path: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points drawn evenly by area, and the unit normals of their triangles.

    Args:
        vertices: (V, 3). triangles: (F, 3) indices of vertices.

    Returns:
        two arrays (count, 3) float32.
    """
    first, second, third = (vertices[triangles[:, i]] for i in range(3))
    normals = np.cross(second - first, third - first)
    areas = np.linalg.norm(normals, axis=1)
    if not areas.sum() > 0:
        raise InputError(f"{path or 'mesh'}: all of its {len(triangles)} faces have no area")
    chosen = rng.choice(len(triangles), count, p=areas / areas.sum())
    u, v = rng.random((2, count, 1))
    outside = u + v > 1  # the other half of the parallelogram is folded back
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    points = first[chosen] + u * (second - first)[chosen] + v * (third - first)[chosen]
    return points.astype(np.float32), (normals[chosen] / areas[chosen, None]).astype(np.float32)


def _read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """OFF, also with the counts on the first line behind the word, as in some files of ModelNet40; polygons become fans of triangles.

    Vertices may have texture coordinates, colours and normals behind x, y and z (STOFF, COFF, NOFF, CNOFF, ...), which are left out.
    """
    try:
        text = path.read_text("ascii")
        lines = [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]
        word = re.match("(ST)?C?N?OFF", lines[0], re.IGNORECASE) if lines else None
        if word is None:
            raise InputError(f"{path}: damaged OFF header: the file does not begin with 'OFF'")
        lines[0] = lines[0][word.end() :]
        lines = lines if lines[0] else lines[1:]
        num_vertices, num_faces = map(int, lines[0].split()[:2])
        vertices = np.array([line.split()[:3] for line in lines[1 : 1 + num_vertices]], np.float64).reshape(num_vertices, 3)
        triangles: list[tuple[int, int, int]] = []
        for line in lines[1 + num_vertices : 1 + num_vertices + num_faces]:
            size, *corners = map(int, line.split()[: 1 + int(line.split()[0])])
            if len(corners) != size or not 0 <= min(corners) <= max(corners) < num_vertices:
                raise ValueError(f"the face {line!r} names a vertex that does not exist")
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, size - 1)]
    except InputError:
        raise
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: damaged OFF file: {str(error).splitlines()[0]}") from error
    if len(lines) < 1 + num_vertices + num_faces:
        raise InputError(f"{path}: cut off: the header says {num_vertices} vertices and {num_faces} faces")
    return vertices, np.array(triangles, np.int64).reshape(-1, 3)
