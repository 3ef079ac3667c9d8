"""Cameras: from the world to the picture and back, as the data of VideoPose3D have it.

Camera space: x to the right, y down, z along the line of sight, metres. Screen coordinates: x from -1 to 1 over the width of
the picture, y with the same scale (half the width), 0 in the middle. Quaternions are (w, x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsuite.core.errors import InputError

Points = NDArray[np.floating]


def rotate(quaternion: ArrayLike, points: Points) -> Points:
    """Points (..., 3) turned by a unit quaternion (4,)."""
    q = _vector(quaternion, 4, "a quaternion").astype(points.dtype)
    cross = np.cross(q[1:], points)
    return points + 2 * (q[0] * cross + np.cross(q[1:], cross))


def world_to_camera(points: Points, orientation: ArrayLike, translation: ArrayLike) -> Points:
    """World (..., 3) -> camera space. `orientation` turns the camera into the world, `translation` is its place there, metres."""
    conjugate = _vector(orientation, 4, "a quaternion") * [1, -1, -1, -1]
    return rotate(conjugate, points - _vector(translation, 3, "a translation").astype(points.dtype))


def camera_to_world(points: Points, orientation: ArrayLike, translation: ArrayLike) -> Points:
    """The inverse of `world_to_camera`."""
    return rotate(orientation, points) + _vector(translation, 3, "a translation").astype(points.dtype)


def normalize_screen(pixels: Points, width: float, height: float) -> Points:
    """Pixels (..., 2) -> screen coordinates. Both axes are scaled by the width."""
    _check_size(width, height)
    return pixels / np.asarray(width / 2, pixels.dtype) - np.asarray([1, height / width], pixels.dtype)


def denormalize_screen(points: Points, width: float, height: float) -> Points:
    """Screen coordinates (..., 2) -> pixels."""
    _check_size(width, height)
    return (points + np.asarray([1, height / width], points.dtype)) * np.asarray(width / 2, points.dtype)


def project(points: Points, intrinsics: ArrayLike, *, distortion: bool = True) -> Points:
    """Camera space (..., 3) -> screen coordinates (..., 2).

    Args:
        points: in front of the camera; what lies beyond 45 degrees from the line of sight is moved to there.
        intrinsics: fx, fy, cx, cy, k1, k2, k3, p1, p2 in screen coordinates; see `Camera.intrinsics`.
        distortion: of the lens: radial (k) and tangential (p). Without it only the first four count.
    """
    focal, centre, radial, tangential = np.split(_vector(intrinsics, 9, "intrinsics").astype(points.dtype), [2, 4, 7])
    flat = np.clip(points[..., :2] / points[..., 2:], -1, 1)
    if not distortion:
        return focal * flat + centre
    r2 = (flat**2).sum(-1, keepdims=True)
    factor = 1 + radial[0] * r2 + radial[1] * r2**2 + radial[2] * r2**3 + (tangential * flat).sum(-1, keepdims=True)
    return focal * (flat * factor + tangential * r2) + centre


def unproject(points: Points, depth: Points, intrinsics: ArrayLike) -> Points:
    """Screen coordinates (..., 2) at known depths (...), metres -> camera space (..., 3), for a lens without distortion."""
    focal, centre, _ = np.split(_vector(intrinsics, 9, "intrinsics").astype(points.dtype), [2, 4])
    return np.concatenate([(points - centre) / focal * depth[..., None], depth[..., None]], axis=-1)


def flip_intrinsics(intrinsics: ArrayLike) -> NDArray[np.float64]:
    """Of the camera that sees the mirror image: what it projects is what `Skeleton.flip` makes of the first one's pictures."""
    return _vector(intrinsics, 9, "intrinsics") * [1, 1, -1, 1, 1, 1, 1, -1, 1]


def locate_root(poses_2d: Points, poses_3d: Points, intrinsics: ArrayLike) -> Points:
    """Where root-relative poses stand in camera space, from where their joints are seen: linear least squares per frame.

    Args:
        poses_2d: (T, J, 2) screen coordinates.
        poses_3d: (T, J, 3) metres, relative to the root.
        intrinsics: see `project`; distortion is left out.

    Returns:
        (T, 3): what to add to each pose so that it projects onto its picture.
    """
    if poses_2d.ndim != 3 or poses_2d.shape != (*poses_3d.shape[:-1], 2) or poses_3d.shape[-1] != 3:
        raise InputError(f"poses must be (T, J, 2) and (T, J, 3); got {poses_2d.shape} and {poses_3d.shape}")
    ray = unproject(poses_2d, np.ones(poses_2d.shape[:-1], poses_2d.dtype), intrinsics)[..., :2].astype(np.float64)  # x / z, y / z
    # (X + t_x) / (Z + t_z) = ray_x  <=>  t_x - ray_x t_z = ray_x Z - X, and the same for y.
    left = np.zeros((*ray.shape, 3))
    left[..., 0, 0] = left[..., 1, 1] = 1
    left[..., 2] = -ray
    right = ray * poses_3d[..., 2:] - poses_3d[..., :2]
    left, right = left.reshape(len(ray), -1, 3), right.reshape(len(ray), -1, 1)
    return (np.linalg.pinv(left) @ right)[..., 0].astype(poses_3d.dtype)


@dataclass(frozen=True)
class Camera:
    """A calibrated camera, in pixels and metres.

    Attributes:
        orientation: quaternion that turns the camera into the world.
        translation: place of the camera in the world, metres.
        focal_length, center: of x and y, pixels.
        width, height: of the picture, pixels.
        radial_distortion, tangential_distortion: k1, k2, k3 and p1, p2.
    """

    orientation: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    focal_length: tuple[float, float]
    center: tuple[float, float]
    width: int
    height: int
    radial_distortion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tangential_distortion: tuple[float, float] = (0.0, 0.0)

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """fx, fy, cx, cy, k1, k2, k3, p1, p2 in screen coordinates; both focal lengths are divided by half the width."""
        focal = np.asarray(self.focal_length) / self.width * 2
        center = normalize_screen(np.asarray(self.center, np.float64), self.width, self.height)
        return np.concatenate([focal, center, self.radial_distortion, self.tangential_distortion])

    def from_world(self, points: Points) -> Points:
        """World (..., 3) -> camera space (..., 3)."""
        return world_to_camera(points, self.orientation, self.translation)

    def to_world(self, points: Points) -> Points:
        """Camera space (..., 3) -> world (..., 3)."""
        return camera_to_world(points, self.orientation, self.translation)

    def project(self, points: Points, *, distortion: bool = True) -> Points:
        """Camera space (..., 3) -> pixels (..., 2)."""
        return denormalize_screen(project(points, self.intrinsics, distortion=distortion), self.width, self.height)


def _vector(value: ArrayLike, length: int, name: str) -> NDArray[np.float64]:
    vector = np.asarray(value, np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise InputError(f"{name} has {length} finite numbers; got {vector.tolist()}")
    return vector


def _check_size(width: float, height: float) -> None:
    if not (width > 0 and height > 0):
        raise InputError(f"the picture's width and height must be above 0 pixels; got {width} x {height}")
