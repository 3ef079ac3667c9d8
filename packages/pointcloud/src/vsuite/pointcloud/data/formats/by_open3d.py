"""Files that open3d reads for us; it is imported here only, since that takes over a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.columns import Table, expand_groups


def read_points(path: Path, count: int) -> Table:
    """All columns of a point cloud file with `count` points; open3d's empty or short answers become `InputError`."""
    import open3d

    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        cloud = open3d.t.io.read_point_cloud(path)
    arrays = {name: cloud.point[name].numpy() for name in cloud.point}
    if "positions" not in arrays or len(arrays["positions"]) != count:
        raise InputError(f"{path}: cannot be read: it should hold {count} points, but the reader finds {len(arrays.get('positions', ()))}")
    return expand_groups({name: np.array(values) for name, values in arrays.items()}, path)


def read_triangles(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and triangles (F, 3) int64 of a mesh file."""
    import open3d

    try:
        with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
            mesh = open3d.t.io.read_triangle_mesh(path)
    except (IndexError, RuntimeError, ValueError) as error:  # an .obj without faces is an IndexError
        raise InputError(f"{path}: holds no faces to draw points from, or cannot be read") from error
    vertices: Any = mesh.vertex.positions.numpy() if "positions" in mesh.vertex else np.empty((0, 3))
    triangles: Any = mesh.triangle.indices.numpy() if "indices" in mesh.triangle else np.empty((0, 3), np.int64)
    return np.array(vertices, np.float64), np.array(triangles, np.int64)
