"""KITTI's calibration: lidar, rectified camera and picture, and boxes in the camera's frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vsuite.core.errors import InputError

_SHAPES = {12: (3, 4), 9: (3, 3)}
IMAGE_SIZE = (1242, 375)
"""Width and height of KITTI's pictures, for frames without one."""


@dataclass(frozen=True)
class Calibration:
    """How a lidar and a camera stand to each other.

    Attributes:
        projection: (3, 4), from the rectified camera frame (x right, y down, z forward) to pixels; KITTI's P2.
        lidar_to_camera: (4, 4), R0_rect times Tr_velo_to_cam.
        image_size: width and height in pixels.
        bottom: along which frame's vertical axis a box's bottom lies below its centre. KITTI's labels mean the camera's; Waymo
            converted to KITTI's form lowered the centre in the lidar's frame before moving it.
    """

    projection: np.ndarray
    lidar_to_camera: np.ndarray
    image_size: tuple[int, int] = IMAGE_SIZE
    bottom: Literal["camera", "lidar"] = "camera"

    @classmethod
    def nominal(cls) -> Calibration:
        """A camera at the lidar, looking forward, with the focal length of KITTI's: for results of files without calibration."""
        projection = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1.0, 0]])
        return cls(projection, np.array([[0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]]))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lidar points (N, 3) in the picture: pixels (N, 2), and depth (N,) in metres, negative behind the camera."""
        camera = move(points, self.lidar_to_camera)
        pixels = camera @ self.projection[:, :3].T + self.projection[:, 3]
        depth = pixels[:, 2]
        return pixels[:, :2] / np.where(depth == 0, 1e-9, depth)[:, None], depth

    def in_view(self, points: np.ndarray) -> np.ndarray:
        """Mask (N,) of the lidar points (N, 3) that the camera sees: before it, and within the picture."""
        pixels, depth = self.project(points)
        return (depth > 0) & (pixels >= 0).all(1) & (pixels < self.image_size).all(1)

    def boxes_to_lidar(self, locations: np.ndarray, dimensions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
        """Camera boxes in the lidar frame.

        Args:
            locations: (M, 3), middle of the bottom face in the camera's frame.
            dimensions: (M, 3) height, width, length. rotations: (M,) rotation_y.

        Returns:
            (M, 7) float64 rows x y z length width height yaw; z is the centre.
        """
        height, width, length = dimensions.T
        raised = locations - np.outer(height / 2, [0, 1, 0]) if self.bottom == "camera" else locations
        centres = move(raised, np.linalg.inv(self.lidar_to_camera))
        if self.bottom == "lidar":
            centres = centres + np.outer(height / 2, [0, 0, 1])
        return np.column_stack([centres, length, width, height, wrap(-rotations - np.pi / 2)])

    def boxes_to_camera(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The exact reverse of `boxes_to_lidar`: locations, dimensions, rotations."""
        length, width, height = boxes[:, 3:6].astype(np.float64).T
        centres = boxes[:, :3].astype(np.float64)
        if self.bottom == "lidar":
            centres = centres - np.outer(height / 2, [0, 0, 1])
        locations = move(centres, self.lidar_to_camera)
        if self.bottom == "camera":
            locations = locations + np.outer(height / 2, [0, 1, 0])
        return locations, np.column_stack([height, width, length]), wrap(-boxes[:, 6].astype(np.float64) - np.pi / 2)

    def image_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Rectangles around boxes (M, 7) in the picture: (M, 4) left top right bottom, cut at its borders.

        A box that is wholly behind the camera or beside the picture gets zeros.
        """
        rectangles = np.zeros((len(boxes), 4))
        limits = np.array(self.image_size, np.float64) - 1
        for row, box in zip(rectangles, boxes, strict=True):
            pixels, depth = self.project(box_corners(box))
            if not (depth > 0.1).any():
                continue
            pixels = pixels[depth > 0.1]
            low, high = np.clip(pixels.min(0), 0, limits), np.clip(pixels.max(0), 0, limits)
            if (high > low).all():
                row[:] = [*low, *high]
        return rectangles


def read_calibration(path: Path, *, camera: int = 2, transform: str = "Tr_velo_to_cam") -> Calibration:
    """Reads a file of KITTI's calib folder.

    Args:
        camera: which projection to take, P2 by default.
        transform: name of the entry from the lidar to the camera; Waymo in KITTI's form has Tr_velo_to_cam_0.

    Raises:
        InputError: for a missing file or entry, or one of the wrong size.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: calibration cannot be read: {error}") from error
    entries: dict[str, np.ndarray] = {}
    for line in lines:
        key, _, numbers = line.partition(":") if ":" in line else line.partition(" ")
        try:
            values = np.array(numbers.split(), np.float64)
        except ValueError as error:
            raise InputError(f"{path}: damaged calibration: the entry {key} is not made of numbers") from error
        if len(values) in _SHAPES:
            entries[key.strip()] = values.reshape(_SHAPES[len(values)])
    needed = {f"P{camera}": (3, 4), "R0_rect": (3, 3), transform: (3, 4)}
    for key, shape in needed.items():
        if key not in entries or entries[key].shape != shape:
            raise InputError(
                f"{path}: calibration has no {key} with {shape[0] * shape[1]} numbers; it has: {', '.join(entries) or 'nothing'}"
            )
    return Calibration(entries[f"P{camera}"], _square(entries["R0_rect"]) @ _square(entries[transform]))


def box_corners(box: np.ndarray) -> np.ndarray:
    """The eight corners (8, 3) of one box x y z length width height yaw."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    x, y, z = (signs * box[3:6]).T
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    return np.column_stack([cosine * x - sine * y, sine * x + cosine * y, z]) + box[:3]


def move(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Points (N, 3) by a transform (4, 4), in double precision."""
    return points.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]


def wrap(angles: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def _square(matrix: np.ndarray) -> np.ndarray:
    full = np.eye(4)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full
