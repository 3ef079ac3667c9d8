"""Geometry that every view draws from: boxes as lines, the order of thinning, and where the camera stands at first."""

from __future__ import annotations

import math

import numpy as np

from vsuite.pointcloud.viewer.scene import Scene

FIELD_OF_VIEW = math.radians(55)  # vertical, of all views
_EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])
SEGMENTS = len(_EDGES) + 1  # lines of a box


def box_lines(boxes: np.ndarray) -> np.ndarray:
    """Boxes (M, 7+) as line segments (M, 13, 2, 3): twelve edges, and a tick from the centre out through the front face."""
    import torch

    from vsuite.pointcloud.boxes import corners

    if not len(boxes):
        return np.zeros((0, SEGMENTS, 2, 3), np.float32)
    edges = corners(torch.from_numpy(np.ascontiguousarray(boxes, np.float32))).numpy()[:, _EDGES]  # M, 12, 2, 3
    ahead = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], 1) * boxes[:, 3:4] * 0.7
    tick = np.stack([boxes[:, :3], boxes[:, :3] + ahead], 1)[:, None]
    return np.concatenate([edges, tick], 1).astype(np.float32)


def thinning_order(count: int, most: int | None = None) -> np.ndarray:
    """The first `most` rows of a random order of `count`, the same one each time: (min(count, most),) int64.

    Any beginning of it is an evenly thinned cloud. A regular step would thin the beams of a lidar in stripes.
    """
    return np.random.default_rng(0).permutation(count)[:most]


def first_camera(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera stands and where it looks at first, (3,) each: from behind and above, most of the points in view."""
    if not len(scene.points):
        return np.array([-20.0, -5.0, 14.0]), np.zeros(3)
    low, high = np.percentile(scene.points, (4, 96), axis=0)
    target = (low + high) / 2
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3 * max(1.0, float(np.abs(target).max())))
    direction = np.array([-0.80, -0.22, 0.56])
    return target + direction / np.linalg.norm(direction) * radius / math.tan(FIELD_OF_VIEW / 2), target
