"""Cameras: inverses, mirrors and known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vsuite.core import InputError
from vsuite.video_pose.cameras import (
    Camera,
    camera_to_world,
    denormalize_screen,
    flip_intrinsics,
    locate_root,
    normalize_screen,
    project,
    rotate,
    unproject,
    world_to_camera,
)
from vsuite.video_pose.skeletons import H36M17

INTRINSICS = np.array([2.3, 2.2, 0.02, -0.01, -0.2, 0.24, -0.003, -0.001, 0.002])
seeds = st.integers(0, 999)


def quaternion(rng: np.random.Generator) -> np.ndarray:
    q = rng.normal(size=4)
    return q / np.linalg.norm(q)


@given(seed=seeds)
def test_world_and_camera(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, place, points = quaternion(rng), rng.normal(size=3), rng.normal(size=(4, 5, 3))
    turned = Rotation.from_quat(np.roll(q, -1)).apply(points.reshape(-1, 3)).reshape(points.shape)
    np.testing.assert_allclose(rotate(q, points), turned, atol=1e-12)
    seen = world_to_camera(points, q, place)
    np.testing.assert_allclose(camera_to_world(seen, q, place), points, atol=1e-12)
    np.testing.assert_allclose(world_to_camera(place[None], q, place), 0, atol=1e-12)
    assert rotate(q, points.astype(np.float32)).dtype == np.float32


@given(seed=seeds, width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_screen(seed: int, width: int, height: int) -> None:
    corners = np.array([[0, 0], [width, height], [width / 2, height / 2]])
    found = normalize_screen(corners, width, height)
    np.testing.assert_allclose(found, [[-1, -height / width], [1, height / width], [0, 0]], atol=1e-12)
    pixels = np.random.default_rng(seed).uniform(0, width, (7, 2))
    np.testing.assert_allclose(denormalize_screen(normalize_screen(pixels, width, height), width, height), pixels, atol=1e-9)


@given(seed=seeds)
def test_projection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(3, 17, 3)) * 0.4 + [0, 0, 4]
    flat = project(points, INTRINSICS, distortion=False)
    np.testing.assert_allclose(unproject(flat, points[..., 2], INTRINSICS), points, atol=1e-12)
    without = np.concatenate([INTRINSICS[:4], np.zeros(5)])
    np.testing.assert_allclose(project(points, without), flat, atol=1e-12)
    mirrored = project(H36M17.flip(points), flip_intrinsics(INTRINSICS))
    np.testing.assert_allclose(mirrored, H36M17.flip(project(points, INTRINSICS)), atol=1e-12)
    np.testing.assert_array_equal(flip_intrinsics(flip_intrinsics(INTRINSICS)), INTRINSICS)


@given(seed=seeds)
def test_the_root_is_found_from_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = rng.normal(size=(4, 17, 3)) * 0.4
    pose -= pose[:, :1]
    root = rng.normal(size=(4, 3)) * 0.5 + [0, 0, 5]
    seen = project(pose + root[:, None], INTRINSICS, distortion=False)
    np.testing.assert_allclose(locate_root(seen, pose, INTRINSICS), root, atol=1e-8)


def test_a_camera_in_pixels() -> None:
    camera = Camera((1, 0, 0, 0), (0, 0, -2), (1000, 1000), (500, 400), 1000, 800)
    point = camera.from_world(np.array([[0.5, -0.25, 0.0]]))
    np.testing.assert_allclose(point, [[0.5, -0.25, 2]])
    np.testing.assert_allclose(camera.project(point), [[750, 275]])
    np.testing.assert_allclose(camera.intrinsics, [2, 2, 0, 0, 0, 0, 0, 0, 0])


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="a quaternion has 4 finite numbers"):
        rotate([1, 0, 0], np.zeros((1, 3)))
    with pytest.raises(InputError, match="intrinsics has 9 finite numbers"):
        project(np.ones((1, 3)), [1, 1, 0, 0])
    with pytest.raises(InputError, match="width and height must be above 0 pixels; got 0 x 5"):
        normalize_screen(np.zeros((1, 2)), 0, 5)
    with pytest.raises(InputError, match=r"\(T, J, 2\) and \(T, J, 3\)"):
        locate_root(np.zeros((2, 17, 2)), np.zeros((3, 17, 3)), INTRINSICS)
