from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.simulate.meshes import Mesh, boxes, ellipsoid, lathe, leaves, loft, merge, sheet, tubes
from vsuite.pointcloud.simulate.solids import (
    CLASSES,
    DIFFICULTIES,
    SOLIDS,
    Difficulty,
    _hide,
    _visible,
    make_solid,
    make_solids,
    write_solids,
)

seeds = st.integers(0, 2**32 - 1)


def area(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.triangles].transpose(1, 0, 2).astype(np.float64)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def distance_to_surface(points: np.ndarray, mesh: Mesh) -> np.ndarray:
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(o3d.core.Tensor(mesh.vertices), o3d.core.Tensor(mesh.triangles.astype(np.uint32)))
    return scene.compute_distance(o3d.core.Tensor(points.astype(np.float32)), nthreads=1).numpy()


# --- meshes ---


def test_areas_of_known_bodies() -> None:
    assert area(boxes((1, 2, 3), (5, 5, 5))) == pytest.approx(22, rel=1e-6)
    assert area(ellipsoid((2, 2, 2), level=4)) == pytest.approx(16 * np.pi, rel=5e-3)
    assert area(tubes((0, 0, 0), (0, 3, 0), 0.5, sides=64)) == pytest.approx(2 * np.pi * 0.5 * 3 + 2 * np.pi * 0.25, rel=5e-3)
    assert area(lathe([(1, 0), (0, 2)], sides=64)) == pytest.approx(np.pi * np.sqrt(5), rel=5e-3)
    assert area(sheet([0, 1, 4], [0, 2], np.zeros((3, 2)), 0.3)) == pytest.approx(8, rel=1e-6)


@given(radii=st.tuples(*[st.floats(0.1, 5)] * 3))
@settings(max_examples=15, deadline=None)
def test_ellipsoids_vertices_satisfy_its_equation(radii: tuple[float, float, float]) -> None:
    vertices = ellipsoid(radii, (1, 2, 3)).vertices
    np.testing.assert_allclose((((vertices - [1, 2, 3]) / radii) ** 2).sum(axis=1), 1, rtol=1e-4)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_tubes_corners_lie_at_the_radius_from_the_axis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, end = rng.normal(size=(2, 3))
    vertices = tubes(start, end, (0.3, 0.7), sides=8).vertices
    axis = (end - start) / np.linalg.norm(end - start)
    offset = vertices - start
    across = np.linalg.norm(offset - np.outer(offset @ axis, axis), axis=1)
    np.testing.assert_allclose(across, np.repeat([0.3, 0.7], 8), rtol=1e-3, atol=1e-4)


def test_merged_meshes_keep_their_triangles_and_facts() -> None:
    parts = [
        boxes((1, 1, 1), (0, 0, 0), 0.1, 0.5),
        ellipsoid((1, 1, 1), reflectance=0.9),
        leaves(np.random.default_rng(0), [(0, 0, 0)], [(1, 1, 1)], 5, size=0.1),
    ]
    whole = merge(parts)
    assert area(whole) == pytest.approx(sum(map(area, parts)), rel=1e-5)
    assert whole.reflectance[:12].tolist() == pytest.approx([0.1] * 12)
    assert whole.opacity[:12].tolist() == [0.5] * 12
    assert whole.reflectance[12:92].tolist() == pytest.approx([0.9] * 80)
    assert len(whole.triangles) == 12 + 80 + 5


def test_lofts_quads_carry_their_own_reflectance() -> None:
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=float)
    skin = loft([square, square + np.array([0, 0, 1]), square + np.array([0, 0, 2])], reflectance=np.arange(8).reshape(2, 4) / 10)
    assert skin.reflectance[:16].tolist() == pytest.approx(np.repeat(np.arange(8) / 10, 2).tolist())
    assert len(skin.triangles) == 16 + 4
    assert area(skin) == pytest.approx(2 * 4 + 16, rel=1e-6)


def test_moving_turns_then_shifts() -> None:
    moved = boxes((2, 0, 0), (1, 0, 0)).moved((10, 20, 30), np.pi / 2)
    np.testing.assert_allclose(moved.vertices.max(axis=0), [10, 22, 30], atol=1e-5)
    np.testing.assert_allclose(moved.vertices.min(axis=0), [10, 20, 30], atol=1e-5)


def test_samples_are_uniform_over_the_area() -> None:
    """A box of 1 x 1 x 4: each long side holds 4 of 18 parts of the area, each end one; and halves of a side are alike."""
    points, normals = boxes((1, 1, 4), (0, 0, 0)).sample(36_000, np.random.default_rng(0))
    for axis, share in ((0, 4 / 18), (1, 4 / 18), (2, 1 / 18)):
        for sign in (-1, 1):
            on_side = np.abs(points[:, axis] - sign * (2 if axis == 2 else 0.5)) < 1e-5
            assert on_side.mean() == pytest.approx(share, rel=0.08)
            np.testing.assert_allclose(np.abs(normals[on_side, axis]).mean(), 1, rtol=1e-2)
    assert (points[:, 2] > 0).mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-5)


# --- solids ---


@pytest.mark.parametrize("name", CLASSES)
def test_samples_lie_on_the_surface_of_every_solid(name: str) -> None:
    rng = np.random.default_rng(1)
    solid = SOLIDS[name](rng)
    points, _ = solid.sample(500, rng)
    assert distance_to_surface(points, solid).max() < 2e-3  # open3d's own rounding at the slivers of an apex
    assert np.median(distance_to_surface(points, solid)) < 1e-6
    assert 0.3 < np.ptp(solid.vertices, axis=0).max() < 4


def test_there_are_many_classes_and_the_labels_go_round() -> None:
    assert len(CLASSES) == 16
    _, labels = make_solids(40, 16)
    assert labels.dtype == np.int64
    assert labels.tolist() == [i % 16 for i in range(40)]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_clouds_are_centred_in_the_unit_sphere(difficulty: str) -> None:
    clouds, _ = make_solids(32, 256, seed=3, difficulty=difficulty)
    assert clouds.shape == (32, 256, 3)
    assert clouds.dtype == np.float32
    np.testing.assert_allclose(clouds.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(clouds, axis=2).max(axis=1), 1, rtol=1e-5)


@given(seed=seeds, count=st.integers(1, 6), points=st.integers(8, 64), difficulty=st.sampled_from(sorted(DIFFICULTIES)))
@settings(max_examples=20, deadline=None)
def test_clouds_depend_on_seed_and_index_alone(seed: int, count: int, points: int, difficulty: str) -> None:
    few, _ = make_solids(count, points, seed, difficulty=difficulty)
    more, _ = make_solids(count + 2, points, seed, difficulty=difficulty)
    np.testing.assert_array_equal(few, more[:count])
    other, _ = make_solids(count, points, seed + 1, difficulty=difficulty)
    assert not np.array_equal(few, other)
    assert np.isfinite(more).all()


def test_up_is_y_or_z() -> None:
    clouds_y, _ = make_solids(4, 64, 5)
    clouds_z, _ = make_solids(4, 64, 5, up="z")
    np.testing.assert_array_equal(clouds_y[..., 1], clouds_z[..., 2])
    np.testing.assert_array_equal(clouds_y[..., [2, 0, 1]], clouds_z)  # a rotation: no mirror image
    tops, _ = make_solids(16, 512, 6, difficulty="clean", up="z")
    lamp = tops[CLASSES.index("lamp")]
    axis_offset = np.hypot(lamp[:, 0], lamp[:, 1])
    middle = np.abs(lamp[:, 2] - np.quantile(lamp[:, 2], 0.4)) < 0.05
    assert axis_offset[middle].min() < 0.2


def test_a_scanner_sees_the_near_side() -> None:
    ball, _ = ellipsoid((1, 1, 1), level=4).sample(8000, np.random.default_rng(0))
    seen = _visible(ball, azimuth=0.0, elevation=0.0)
    assert seen[ball[:, 0] > 0.6].mean() > 0.95
    assert seen[ball[:, 0] < -0.3].mean() < 0.02


def test_occlusion_takes_points_away() -> None:
    cloud, _ = ellipsoid((1, 1, 1), level=3).sample(2000, np.random.default_rng(0))
    assert len(_hide(np.random.default_rng(1), cloud, 0.0)) == 2000
    left = [len(_hide(np.random.default_rng(i), cloud, 1.0)) / 2000 for i in range(30)]
    assert max(left) < 0.85
    assert min(left) > 0.2


def test_background_is_marked_and_bounded() -> None:
    shares = []
    for i in range(30):
        _, foreground = make_solid(np.random.default_rng([2, i]), "mug", 200, Difficulty(background=0.4))
        shares.append(1 - foreground.mean())
    assert max(shares) <= 0.4
    assert np.mean(shares) == pytest.approx(0.2, abs=0.06)
    _, foreground = make_solid(np.random.default_rng(0), "mug", 200, DIFFICULTIES["scanned"])
    assert foreground.all()


def test_h5_file_has_scanobjectnns_layout(tmp_path) -> None:
    path = tmp_path / "training_objectdataset.h5"
    write_solids(path, 18, points=64, seed=4)
    clouds, labels = make_solids(18, 64, seed=4)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data"][:], clouds)
        np.testing.assert_array_equal(file["label"][:], labels)
        mask = file["mask"][:]
        assert list(file.attrs["class_names"]) == list(CLASSES)
    assert mask.shape == (18, 64)
    assert ((mask == -1) | (mask == labels[:, None])).all()
    assert (mask == -1).any()


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"count": 2, "points": 3}, {"count": 2, "difficulty": "clutered"}, {"count": 2, "up": "x"}],
)
def test_wrong_arguments_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        make_solids(**wrong)


def test_wrong_difficulties_are_refused() -> None:
    for wrong in ({"noise": -1}, {"hidden": 2}, {"background": 1}):
        with pytest.raises(InputError, match="must not be negative"):
            Difficulty(**wrong)
