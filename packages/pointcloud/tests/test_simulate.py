from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.simulate import PROFILES, Profile, Randomisation, simulate_frame, simulate_sweep, write_frames
from vsuite.pointcloud.simulate.frames import BOX_MARGIN
from vsuite.pointcloud.simulate.lidar import Sensor, find_profile, in_camera_view, ray_directions, scan
from vsuite.pointcloud.simulate.meshes import boxes, ellipsoid, merge, sheet
from vsuite.pointcloud.simulate.objects import BUILDERS, CLASSES
from vsuite.pointcloud.simulate.streets import make_street

seeds = st.integers(0, 2**32 - 1)
DATA = Path(os.environ.get("VSUITE_DATA", Path(__file__).resolve().parents[3].parent / "shared" / "data"))
EXACT = {"range_noise": 0.0, "angle_noise": 0.0, "dropout": 0.0, "power": 1e12}


def local(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points in the frame of a box: x along its length."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return (points[:, :3] - box[:3]) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def excess(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far points lie outside a box, in metres; negative inside."""
    return (np.abs(local(points, box)) - box[3:6] / 2).max(axis=1, initial=-np.inf)


@pytest.fixture(scope="module")
def sweeps() -> list:
    return [simulate_sweep(np.random.default_rng([3, i]), "hdl32") for i in range(3)]


# --- sensor ---


@pytest.mark.parametrize(("name", "beams", "steps"), [("hdl64", 64, 2004), ("hdl32", 32, 1084), ("vlp16", 16, 1800)])
def test_number_and_angles_of_the_rays_of_a_profile(name: str, beams: int, steps: int) -> None:
    sensor = replace(PROFILES[name].sensor, roof=None, angle_noise=0.0)
    directions, beam = ray_directions(sensor, np.random.default_rng(0))
    assert directions.shape == (beams * steps, 3)
    np.testing.assert_array_equal(np.bincount(beam), np.full(beams, steps))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    elevation = np.degrees(np.arcsin(directions[:, 2]))
    np.testing.assert_allclose(elevation, np.array(sensor.elevations)[beam], atol=1e-3)
    azimuth = np.degrees(np.unwrap(np.arctan2(directions[beam == 5, 1], directions[beam == 5, 0]).astype(np.float64)))
    np.testing.assert_allclose(np.diff(azimuth), -sensor.azimuth_step, atol=1e-3)


def test_a_roof_hides_the_lowest_beams_at_the_sides_and_not_ahead_far() -> None:
    directions, beam = ray_directions(PROFILES["hdl32"].sensor, np.random.default_rng(0))
    counts = np.bincount(beam)
    assert counts[-1] < 300
    assert (counts[:18] == 1084).all()
    assert (np.diff(counts[18:]) <= 20).all()
    assert directions[:, 2].max() > 0


def test_camera_view_is_that_of_the_image() -> None:
    points = np.array([[10.0, 0, 0], [-10, 0, 0], [10, 9, 0], [10, 7, 0], [10, 0, 3], [10, 0, 2], [10, 0, -3.5]], dtype=np.float32)
    assert in_camera_view(points).tolist() == [True, False, False, True, False, True, False]


def test_exact_ranges_on_a_plane_and_a_ball() -> None:
    """Without noise, points lie on the ground plane at the sensor's height and on the ball, which hides what is behind it."""
    ground = sheet([-200, 200], [-200, 200], np.full((2, 2), -2.0), 0.5)
    ball = ellipsoid((1, 1, 1), (8, 0, 0), level=4)
    sensor = Sensor((0.0, -5.0, -20.0), azimuth_step=0.5, height=2.0, max_range=60.0, **EXACT)
    returns = scan(merge([ground, ball]), sensor, np.random.default_rng(0))
    on_ball = returns.triangle >= 2
    np.testing.assert_allclose(returns.points[~on_ball, 2], -2, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(returns.points[on_ball, :3] - [8, 0, 0], axis=1), 1, atol=5e-3)
    distance = np.linalg.norm(returns.points[~on_ball, :3], axis=1)
    elevation = np.array([0, -5, -20])[returns.beam[~on_ball]]
    np.testing.assert_allclose(distance, 2 / np.sin(np.radians(-elevation)), rtol=1e-4)
    assert set(returns.beam[on_ball].tolist()) == {0, 1}
    assert (np.bincount(returns.beam, minlength=3)[1:] == 720).all()  # ball or ground, each ray of the lower beams comes back
    behind = (np.abs(returns.points[:, 1]) < 0.5) & (returns.points[:, 0] > 9.1) & (returns.beam == 1)
    assert not behind.any()


def test_range_noise_has_its_standard_deviation() -> None:
    wall = boxes((0.1, 100, 100), (20.05, 0, 0))
    sensor = Sensor((0.0, 1.0), azimuth_step=0.1, height=2.0, **(EXACT | {"range_noise": 0.05}))
    points = scan(wall, sensor, np.random.default_rng(0)).points.astype(np.float64)
    distance = np.linalg.norm(points[:, :3], axis=1)
    true = 20 * distance / points[:, 0]
    assert (distance - true).std() == pytest.approx(0.05, rel=0.1)
    assert (distance - true).mean() == pytest.approx(0, abs=0.01)


def test_returns_grow_rare_with_distance_and_grazing_angle() -> None:
    ground = sheet(np.linspace(-100, 100, 2), np.linspace(-100, 100, 2), np.full((2, 2), -2.0), 0.3)
    sensor = replace(PROFILES["hdl64"].sensor, elevations=(-20.0, -5.0, -3.0, -1.6), angle_noise=0.0)
    counts = np.bincount(scan(ground, sensor, np.random.default_rng(0)).beam, minlength=4) / 2004
    assert counts[0] == pytest.approx(1 - sensor.dropout, abs=0.03)
    assert counts[0] > counts[1] > counts[2] + 0.03
    assert counts[2] > counts[3] + 0.03


def test_intensity_follows_the_material() -> None:
    walls = [boxes((0.1, 8, 8), (10, 0, 0), 0.1), boxes((0.1, 8, 8), (-10, 0, 0), 0.9)]
    for name, top in (("hdl64", 1.0), ("hdl32", 255.0)):
        points = scan(merge(walls), PROFILES[name].sensor, np.random.default_rng(0)).points
        dark, bright = points[points[:, 0] > 0, 3], points[points[:, 0] < 0, 3]
        assert np.median(bright) > 4 * np.median(dark)
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= top
        assert len(np.unique(points[:, 3])) <= 256


def test_rays_pass_what_is_not_opaque() -> None:
    """A third of the rays stops at the fence, the others at the wall behind it."""
    scene = merge([boxes((0.01, 50, 50), (5, 0, 0), 0.5, 1 / 3), boxes((0.01, 99, 99), (9, 0, 0), 0.5)])
    sensor = Sensor((0.0,), azimuth_step=0.05, height=1.0, **EXACT)
    x = scan(scene, sensor, np.random.default_rng(0)).points
    ahead = x[np.abs(x[:, 1]) < 0.2 * x[:, 0], 0]
    near = ahead < 5.1
    assert near.mean() == pytest.approx(1 / 3, abs=0.08)
    assert ((ahead > 8.9) | near).all()


def test_tilt_lifts_the_rays_and_not_the_world() -> None:
    ground = sheet([-200, 200], [-200, 200], np.full((2, 2), -2.0), 0.5)
    sensor = Sensor((-5.0,), azimuth_step=0.5, height=2.0, **EXACT)
    points = scan(ground, sensor, np.random.default_rng(0), pitch=np.radians(2)).points
    np.testing.assert_allclose(points[:, 2], -2, atol=1e-4)
    assert points[:, 0].max() == pytest.approx(2 / np.tan(np.radians(7)), rel=1e-2)  # nose down: ahead the ground is nearer
    assert -points[:, 0].min() == pytest.approx(2 / np.tan(np.radians(3)), rel=1e-2)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_randomisation_stays_in_its_bounds(seed: int) -> None:
    sensor = PROFILES["hdl64"].sensor
    varied, _ = Randomisation(height=0.1, tilt=1, noise=0.5, dropout=0.5, halved_beams=0.5).apply(sensor, np.random.default_rng(seed))
    assert abs(varied.height - sensor.height) <= 0.1
    assert 0.5 <= varied.range_noise / sensor.range_noise <= 1.5
    assert 0.5 <= varied.dropout / sensor.dropout <= 1.5
    assert len(varied.elevations) in (32, 64)
    same, tilt = Randomisation(0, 0, 0, 0, 0).apply(sensor, np.random.default_rng(seed))
    assert same == sensor
    assert tilt == (0, 0)


# --- objects and streets ---


@given(seed=seeds, name=st.sampled_from(CLASSES))
@settings(max_examples=40, deadline=None)
def test_objects_stand_on_the_ground_in_the_middle_with_sizes_of_their_class(seed: int, name: str) -> None:
    mesh = BUILDERS[name](np.random.default_rng(seed))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low[:2], -high[:2], atol=1e-4)
    assert low[2] == pytest.approx(0, abs=1e-4)
    bounds = {
        "Car": ((3.1, 1.4, 1.3), (5.3, 2.1, 2.0)), "Van": ((3.9, 1.6, 1.7), (6.9, 2.3, 2.9)), "Truck": ((5.4, 2.0, 2.4), (13.1, 2.9, 4.1)),
        "Pedestrian": ((0.2, 0.2, 1.0), (1.5, 1.2, 2.05)), "Cyclist": ((1.5, 0.45, 1.3), (2.0, 0.9, 2.1)),
    }[name]  # fmt: skip
    assert (high - low >= bounds[0]).all()
    assert (high - low <= bounds[1]).all()
    assert ((mesh.reflectance >= 0) & (mesh.reflectance <= 1)).all()


def test_sizes_of_cars_have_the_distribution_of_real_ones() -> None:
    sizes = np.array([np.ptp(BUILDERS["Car"](np.random.default_rng(i)).vertices, axis=0) for i in range(200)])
    assert (np.abs(sizes.mean(axis=0) - [4.25, 1.77, 1.53]) < [0.12, 0.06, 0.06]).all()
    assert 0.25 < sizes[:, 0].std() < 0.5


def test_cars_are_driven_forwards() -> None:
    """The bonnet, which is lower than the roof, lies ahead."""
    for i in range(10):
        vertices = BUILDERS["Car"](np.random.default_rng(i)).vertices
        roof = vertices[vertices[:, 2] > 0.9 * vertices[:, 2].max()]
        assert roof[:, 0].mean() < -0.05


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_labels_of_streets_are_the_extents_of_their_objects_and_do_not_overlap(seed: int) -> None:
    street = make_street(np.random.default_rng(seed), height=1.8)
    assert len(street.boxes) == len(street.names) == street.owner.max() + 1
    assert len(street.owner) == len(street.mesh.triangles)
    assert ((street.boxes[:, 6] >= -np.pi) & (street.boxes[:, 6] < np.pi)).all()
    for index, box in enumerate(street.boxes):
        vertices = street.mesh.vertices[street.mesh.triangles[street.owner == index].reshape(-1)]
        np.testing.assert_allclose(np.ptp(local(vertices, box), axis=0), box[3:6], atol=2e-3)
        np.testing.assert_allclose(local(vertices, box).max(axis=0), box[3:6] / 2, atol=2e-3)
    gap = np.linalg.norm(street.boxes[:, None, :2] - street.boxes[None, :, :2], axis=2) + 99 * np.eye(len(street.boxes))
    assert (gap > np.minimum(street.boxes[:, None, 4], street.boxes[None, :, 4]) / 2).all()
    assert (np.hypot(street.boxes[:, 0], street.boxes[:, 1]) > 1).all()  # nothing stands where the sensor's vehicle is


# --- frames ---


def test_sweeps_have_the_promised_form(sweeps: list) -> None:
    for sweep in sweeps:
        assert sweep.points.dtype == sweep.boxes.dtype == np.float32
        assert sweep.points.shape[1:] == (4,)
        assert sweep.boxes.shape == (len(sweep.names), 7)
        assert set(sweep.names) <= set(CLASSES)
        assert 10_000 < len(sweep.points) < 32 * 1084
        assert np.isfinite(sweep.points).all()
        distance = np.linalg.norm(sweep.points[:, :3], axis=1)
        assert distance.min() >= 1 - 1e-4
        assert distance.max() <= 100 + 1e-4


def test_boxes_hold_the_points_of_their_objects(sweeps: list) -> None:
    for sweep in sweeps:
        assert (sweep.num_points >= 1).all()
        np.testing.assert_array_equal(sweep.num_points, np.bincount(sweep.owner[sweep.owner >= 0], minlength=len(sweep.boxes)))
        outside = np.concatenate([excess(sweep.points[sweep.owner == i], box) for i, box in enumerate(sweep.boxes)])
        assert outside.max() < 6 * 0.02 * 1.4
        assert (outside > 0).mean() < 0.06  # the margin holds what the noise moves


def test_without_noise_every_point_is_inside_and_on_the_sides(sweeps: list) -> None:
    sensor = replace(PROFILES["vlp16"].sensor, range_noise=0.0)
    sweep = simulate_sweep(np.random.default_rng(0), Profile(sensor, Randomisation(0, 0, 0, 0)))
    for i, box in enumerate(sweep.boxes):
        assert (excess(sweep.points[sweep.owner == i], box) < -BOX_MARGIN + 1e-3).all()


def test_same_seed_same_frame_and_another_seed_another() -> None:
    one, two, three = (simulate_frame(np.random.default_rng(seed), "vlp16") for seed in (5, 5, 6))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert one[2] == two[2]
    assert one[0].shape != three[0].shape or not np.array_equal(one[0], three[0])


def test_hidden_objects_are_labelled_on_demand_and_classes_renamed() -> None:
    def sweep(**options):
        return simulate_sweep(np.random.default_rng(8), "vlp16", **options)

    usual, everything, dense = sweep(), sweep(min_points=0), sweep(min_points=20)
    assert len(everything.names) > len(usual.names) > len(dense.names)
    assert dense.num_points.min() >= 20
    assert (everything.num_points == 0).any()
    renamed = sweep(classes={"Van": "Car", "Truck": None, "Pedestrian": None})
    counts = {name: usual.names.count(name) for name in CLASSES}
    assert renamed.names.count("Car") == counts["Car"] + counts["Van"]
    assert len(renamed.names) == len(usual.names) - counts["Truck"] - counts["Pedestrian"]
    np.testing.assert_array_equal(renamed.points, usual.points)


def test_front_view_keeps_to_the_camera() -> None:
    points, boxes_, _ = simulate_frame(np.random.default_rng(1), "hdl64_front")
    assert in_camera_view(points).all()
    assert (boxes_[:, 0] > -3).all()
    assert points[:, 3].max() <= 1


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_written_frames_are_the_simulated_ones_and_resume(tmp_path: Path) -> None:
    whole = write_frames(tmp_path / "whole", 3, seed=2, profile="vlp16", split=0.34, progress=False)
    files = read(whole)
    assert sorted(files) == sorted(
        [f"{kind}/{i:06d}.{suffix}" for i in range(3) for kind, suffix in (("points", "bin"), ("labels", "txt"))]
        + ["ImageSets/train.txt", "ImageSets/val.txt", "dataset.json"]
    )
    assert files["ImageSets/val.txt"].decode().split() == ["000002"]
    assert files["ImageSets/train.txt"].decode().split() == ["000000", "000001"]
    points, boxes_, names = simulate_frame(np.random.default_rng([2, 1]), "vlp16")
    np.testing.assert_array_equal(np.frombuffer(files["points/000001.bin"], dtype=np.float32).reshape(-1, 4), points)
    rows = [line.split() for line in files["labels/000001.txt"].decode().splitlines()]
    assert [row[7] for row in rows] == names
    np.testing.assert_allclose(np.array([row[:7] for row in rows], dtype=float), boxes_, atol=1e-4)
    description = json.loads(files["dataset.json"])
    assert description["classes"] == list(CLASSES)
    assert description["columns"] == ["x", "y", "z", "intensity"]

    parts = write_frames(tmp_path / "parts", 2, seed=2, profile="vlp16", split=0.34, progress=False)
    (parts / "labels" / "000001.txt").unlink()  # as if killed between points and labels
    write_frames(parts, 3, seed=2, profile="vlp16", split=0.34, progress=False)
    assert read(parts) == files


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same(tmp_path: Path) -> None:
    one = write_frames(tmp_path / "one", 4, profile="vlp16", progress=False)
    two = write_frames(tmp_path / "two", 4, profile="vlp16", workers=2, progress=True)
    assert read(one) == read(two)


def test_readers_of_the_package_read_what_is_written(tmp_path: Path) -> None:
    detection = pytest.importorskip("vsuite.pointcloud.data.detection")
    write_frames(tmp_path, 2, profile="vlp16", split=0.5, classes={"Van": "Car", "Truck": None}, progress=False)
    data = detection.read_detection(tmp_path, "train")
    assert list(data.class_names) == ["Car", "Pedestrian", "Cyclist"]
    _, boxes_, names = simulate_frame(np.random.default_rng([0, 0]), "vlp16", classes={"Van": "Car", "Truck": None})
    assert list(data.frames[0].labels) == names
    np.testing.assert_allclose(data.frames[0].boxes, boxes_, atol=1e-4)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for wrong in ({"count": 0}, {"workers": 0}, {"split": 1.5}, {"profile": "hdl46"}, {"classes": {"Vann": "Car"}}, {"min_points": -1}):
        with pytest.raises(InputError):
            write_frames(tmp_path / "new", **({"count": 1} | wrong))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="hdl64"):
        find_profile("hdl46")
    write_frames(tmp_path / "old", 1, profile="vlp16", progress=False)
    with pytest.raises(InputError, match="other settings"):
        write_frames(tmp_path / "old", 1, profile="vlp16", seed=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_frames(tmp_path / "full", 1)
    for sensor in ({"elevations": ()}, {"azimuth_step": 0.0}, {"dropout": 1.0}, {"max_range": 0.5}, {"height": -1.0}):
        with pytest.raises(InputError):
            replace(PROFILES["hdl64"].sensor, **sensor)
    with pytest.raises(InputError):
        Randomisation(noise=1.0)


# --- against real sweeps ---


@pytest.mark.parametrize(
    ("profile", "name", "columns", "closest"),
    [("hdl64_front", "kitti/000008.bin", 4, 0.0), ("hdl32", "nuscenes/lidar_top_0.pcd.bin", 5, 2.5)],
)
def test_sweeps_resemble_real_ones(profile: str, name: str, columns: int, closest: float) -> None:
    """Number of returns, their distances and their intensities, over a few streets; one real sweep is one street only.

    The lowest quarter of the intensities is left out: it tells how many dark cars stand near, which differs from street to street.
    """
    path = DATA / "lidar" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    real = np.fromfile(path, dtype=np.float32).reshape(-1, columns)
    real = real[np.hypot(real[:, 0], real[:, 1]) > closest]  # without the returns of the vehicle itself
    made = [simulate_frame(np.random.default_rng([4, i]), profile)[0] for i in range(6)]
    assert np.mean([len(points) for points in made]) == pytest.approx(len(real), rel=0.25)
    together = np.concatenate(made)
    edges = [0, 5, 10, 20, 30, 50, 120]
    shares = [np.histogram(np.hypot(p[:, 0], p[:, 1]), edges)[0] / len(p) for p in (together, real)]
    assert np.abs(shares[0] - shares[1]).sum() < 0.4
    quantiles = [np.quantile(p[:, 3], [0.5, 0.75, 0.9]) for p in (together, real)]
    np.testing.assert_allclose(quantiles[0], quantiles[1], rtol=0.35)
