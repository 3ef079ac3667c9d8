"""Motion capture under virtual cameras, and Human3.6M in VideoPose3D's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vsuite.core import InputError
from vsuite.core.training.settings import check_settings
from vsuite.video_pose.cameras import Camera
from vsuite.video_pose.lift.data import read_training
from vsuite.video_pose.lift.h36m import JOINTS, read_cameras, read_h36m
from vsuite.video_pose.lift.mocap import MocapSamples, Sequence3D, View, make_videos, place_cameras, read_mocap, split_mocap
from vsuite.video_pose.lift.settings import CameraSettings, LiftSettings
from vsuite.video_pose.lift.videos import Video, VideoSamples, window_rows
from vsuite.video_pose.lift.walk import make_walk
from vsuite.video_pose.skeletons import H36M17

DATA = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[3] / ".." / "shared" / "data")) / "pose" / "cmu_mocap_h36m17.npz"


def sequences(count: int = 3, seconds: float = 1.5) -> list[Sequence3D]:
    return [Sequence3D(f"{'walking' if i % 2 else 'running'}/walk_{i}", make_walk(seconds, seed=i)) for i in range(count)]


def batch(samples: MocapSamples, count: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return samples.collate([samples.sample(i, rng) for i in range(count)])


def test_cameras_are_rotations_that_see_the_person_upright() -> None:
    draws = np.random.default_rng(0).random((500, 7), np.float32)
    view = place_cameras(draws, np.zeros((500, 3), np.float32), CameraSettings(aim=0, roll=0))
    np.testing.assert_allclose(view.rotation @ view.rotation.transpose(0, 2, 1), np.tile(np.eye(3), (500, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(view.rotation.astype(np.float64)), 1, atol=1e-6)
    assert (view.rotation[:, 1, 1] < -0.9).all()  # the world's up is the picture's up: y down
    assert 3 <= view.distance.min() < 3.1
    assert 5.9 < view.distance.max() <= 6
    assert np.histogram(np.arctan2(view.rotation[:, 2, 0], view.rotation[:, 2, 2]), 4)[0].min() > 90  # all round
    looked_at = view.from_world(np.zeros((500, 1, 1, 3), np.float32))[:, 0, 0]
    np.testing.assert_allclose(looked_at, np.stack([0 * view.distance, 0 * view.distance, view.distance], 1), atol=1e-6)


def test_a_camera_stands_back() -> None:
    view = View(np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32), np.array([3.0], np.float32))
    points = np.array([[[[0, 0, -5.0], [0, 0, 1.0]]]], np.float32)
    np.testing.assert_allclose(view.from_world(points)[0, 0, :, 2], [1, 7])


def test_samples_are_what_a_pinhole_sees() -> None:
    """Without error and with one size of bodies, the root can be found at which the 3D pose projects onto the 2D one."""
    from vsuite.video_pose.cameras import locate_root

    settings = LiftSettings(noise=(0, 0))
    found = batch(MocapSamples(sequences(), settings, 9))
    seen, truth = found["poses_2d"][:, 4].numpy(), found["pose_3d"][:, 0].numpy()
    assert found["poses_2d"].shape == (16, 9, 17, 2)
    assert found["pose_3d"].shape == (16, 1, 17, 3)
    np.testing.assert_array_equal(truth[:, 0], 0)
    focal = 1 / np.tan(np.radians(25))
    root = locate_root(seen, truth, [focal, focal, 0, 0, 0, 0, 0, 0, 0])
    placed = truth + root[:, None]
    np.testing.assert_allclose(focal * placed[..., :2] / placed[..., 2:], seen, atol=1e-4)
    assert (root[:, 2] > 1).all()


def test_bones_scale_with_the_body_and_mirrors_exchange_sides() -> None:
    bone = lambda found, a, b: np.linalg.norm((found["pose_3d"][:, 0, a] - found["pose_3d"][:, 0, b]).numpy(), axis=1)  # noqa: E731
    fixed = batch(MocapSamples(sequences(), LiftSettings(body_scale=0), 3), 200)
    np.testing.assert_allclose(bone(fixed, 1, 2), 0.43, atol=1e-4)
    scaled = bone(batch(MocapSamples(sequences(), LiftSettings(body_scale=0.1), 3), 200), 1, 2) / 0.43
    assert 0.9 - 1e-4 <= scaled.min() < 0.92
    assert 1.08 < scaled.max() <= 1.1 + 1e-4


def test_noise_is_in_pixels() -> None:
    clean = batch(MocapSamples(sequences(), LiftSettings(noise=(0, 0)), 27), 100)["poses_2d"]
    noisy = batch(MocapSamples(sequences(), LiftSettings(noise=(5, 5)), 27), 100)["poses_2d"]
    assert float((noisy - clean).std()) == pytest.approx(5 * 2 / 1000, rel=0.02)
    video = make_videos(sequences(1), LiftSettings())[0]
    assert (video.with_noise(5, 1).poses_2d - video.poses_2d).std() == pytest.approx(0.01, rel=0.05)
    np.testing.assert_array_equal(video.with_noise(5, 1).poses_2d, video.with_noise(5, 1).poses_2d)


def test_actions_are_balanced() -> None:
    long, short = Sequence3D("a/long", make_walk(8.0)), Sequence3D("b/short", make_walk(1.0))
    for balance, share in ((0.0, 1 / 9), (1.0, 0.5)):
        samples = MocapSamples([long, short], LiftSettings(balance=balance), 3)
        drawn = np.searchsorted(samples.cumulative, np.random.default_rng(0).random(5000), side="right")
        assert (drawn >= len(long.poses)).mean() == pytest.approx(share, abs=0.03)


def test_windows_repeat_the_ends() -> None:
    rows = window_rows(np.array([0, 3, 4]), np.array([0, 0, 4]), np.array([4, 4, 9]), 5)
    np.testing.assert_array_equal(rows, [[0, 0, 0, 1, 2], [1, 2, 3, 4, 4], [4, 4, 4, 5, 6]])


def test_the_split_depends_on_names_alone_and_holds_out_of_each_action() -> None:
    many = [Sequence3D(f"{action}/s{i}", np.zeros((2, 17, 3), np.float32)) for action in "abc" for i in range(10)]
    many.append(Sequence3D("d/alone", many[0].poses))
    training, held_out = split_mocap(many, 0.2)
    assert {s.name for s in split_mocap(many[::-1], 0.2)[1]} == {s.name for s in held_out}
    assert [sum(s.action == action for s in held_out) for action in "abcd"] == [2, 2, 2, 0]
    assert len(training) + len(held_out) == 31


def test_validation_videos_are_fixed_and_cut_into_shots() -> None:
    settings = LiftSettings(validation_shot=40, cameras_per_shot=4)
    videos, again = make_videos(sequences(1, 1.5), settings), make_videos(sequences(2, 1.5)[:1], settings)
    assert [v.name for v in videos] == [f"running walk_0.{shot}.{camera}" for shot in range(3) for camera in range(4)]
    assert [len(v.poses_2d) for v in videos] == [30] * 12
    for a, b in zip(videos, again, strict=True):
        np.testing.assert_array_equal(a.poses_2d, b.poses_2d)
    assert all(np.abs(v.poses_2d).max() < 1.5 for v in videos)


@pytest.mark.skipif(not DATA.is_file(), reason=f"no motion capture at {DATA}; VSUITE_DATA names the folder of the data")
def test_the_recorded_motions() -> None:
    found = read_mocap(DATA)
    assert len(found) == 70
    training, held_out = split_mocap(found, 0.15)
    assert (len(training), len(held_out)) == (58, 12)
    poses = np.concatenate([s.poses for s in found])
    assert np.median(poses[:, 10, 1]) > 1.2 > 0.3 > np.median(poses[:, [3, 6], 1])  # y up, metres


def test_bad_motion_capture(tmp_path: Path) -> None:
    cases = {
        "float": ({"a/b": np.zeros((4, 17, 3))}, "'a/b' must be int16"),
        "joints": ({"a/b": np.zeros((4, 16, 3), np.int16)}, "'a/b' must be int16"),
        "empty": ({"a/b": np.zeros((0, 17, 3), np.int16)}, "'a/b' must be int16"),
        "objects": ({"a/b": np.array({}, dtype=object)}, "cannot be read as arrays"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(InputError, match=message):
            read_mocap(tmp_path / f"{name}.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read_mocap(tmp_path / "junk.npz")
    np.savez(tmp_path / "one.npz", **{"a/b": np.zeros((4, 17, 3), np.int16)})
    with pytest.raises(InputError, match="nothing can be held out"):
        read_training(tmp_path / "one.npz", LiftSettings(), 0.1, 9)
    with pytest.raises(InputError, match="no such file or folder"):
        read_training(tmp_path / "absent.npz", LiftSettings(), 0.1, 9)
    with pytest.raises(InputError, match=r"has no data_3d_h36m\.npz"):
        read_training(tmp_path, LiftSettings(), 0.1, 9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": (5, 1)}, "two rising numbers"),
        ({"shot": (0, 1)}, "two rising numbers"),
        ({"cameras": {"distance": (0.5, 2)}}, "rising numbers from 1 m on"),
        ({"camera": {}}, "did you mean 'cameras'"),
    ],
)
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(LiftSettings, values)


# --- Human3.6M ---

INNER = {"center": [512.5, 515.4], "focal_length": [1145.0, 1143.8], "res_w": 1000, "res_h": 1002}
INNER |= {"radial_distortion": [-0.2, 0.24, -0.002], "tangential_distortion": [-0.0009, -0.0016]}
OUTER = {"orientation": [0.5**0.5, -(0.5**0.5), 0.0, 0.0], "translation": [0.0, -5000.0, 1000.0]}  # made up: looks along y; z is up


def write_h36m(folder: Path, detector: str = "gt", layout: str = "h36m") -> Camera:
    """Two subjects, one action, two cameras; the world's z is up."""
    (folder / "h36m_cameras.json").write_text(json.dumps({"intrinsics": [INNER] * 2, "extrinsics": {s: [OUTER] * 2 for s in ("S1", "S9")}}))
    camera = read_cameras(folder)["S1"][0]
    walk = make_walk(0.3)[..., [2, 0, 1]]
    recorded = np.zeros((len(walk), 32, 3), np.float32)
    recorded[:, JOINTS] = walk
    positions = {subject: {"Walking 1": recorded} for subject in ("S1", "S9")}
    seen = camera.project(camera.from_world(walk))
    longer = np.concatenate([seen, seen[-1:]])  # the video goes on for a frame
    keypoints = {subject: {"Walking 1": [longer, longer]} for subject in ("S1", "S9")}
    metadata = {"layout_name": layout, "num_joints": 17, "keypoints_symmetry": [[4, 5, 6], [1, 2, 3]]}
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=np.array(positions, dtype=object))
    np.savez_compressed(
        folder / f"data_2d_h36m_{detector}.npz",
        positions_2d=np.array(keypoints, dtype=object),
        metadata=np.array(metadata, dtype=object),
    )
    return camera


def test_h36m_in_camera_space(tmp_path: Path) -> None:
    camera = write_h36m(tmp_path)
    videos = read_h36m(tmp_path, "gt", ["S9"])
    assert [v.name for v in videos] == ["Walking 1 S9.0", "Walking 1 S9.1"]
    truth = camera.from_world(make_walk(0.3)[..., [2, 0, 1]])
    np.testing.assert_allclose(videos[0].poses_3d, truth - truth[:, :1], atol=1e-5)
    assert (truth[..., 2] > 1).all()
    # Screen coordinates project back onto the placed pose.
    from vsuite.video_pose.cameras import project

    np.testing.assert_allclose(project(truth.astype(np.float64), camera.intrinsics), videos[0].poses_2d, atol=1e-4)


def test_h36m_trains_by_subjects_and_reads_the_calibration_of_videopose3d(tmp_path: Path) -> None:
    write_h36m(tmp_path, "cpn_ft_h36m_dbb")
    settings = LiftSettings(detections="cpn_ft_h36m_dbb", train_subjects=["S1"], test_subjects=["S9"], noise=(0, 0))
    data = read_training(tmp_path, settings, 0.1, 9)
    assert data.note.fps == 50
    assert data.note.field_of_view is None
    sample = data.training.sample(0, np.random.default_rng(0))
    assert sample["poses_2d"].shape == (9, 17, 2)
    assert sample["pose_3d"].shape == (1, 17, 3)
    tables = json.loads((tmp_path / "h36m_cameras.json").read_text())
    text = f"import os\nh36m_cameras_intrinsic_params = {tables['intrinsics']}\nh36m_cameras_extrinsic_params = {tables['extrinsics']}\n"
    (tmp_path / "h36m_dataset.py").write_text(text + "raise SystemExit('must not run')\n")
    before = read_cameras(tmp_path)
    (tmp_path / "h36m_cameras.json").unlink()
    assert read_cameras(tmp_path) == before


def test_bad_h36m(tmp_path: Path) -> None:
    write_h36m(tmp_path)
    with pytest.raises(InputError, match=r"unknown 2D poses .* 'cpn'"):
        read_h36m(tmp_path, "cpn", ["S1"])
    with pytest.raises(InputError, match=r"lacks the subject S5; it has S1, S9"):
        read_h36m(tmp_path, "gt", ["S5"])
    write_h36m(tmp_path, "coco", layout="coco")
    with pytest.raises(InputError, match="in the layout coco and not in h36m"):
        read_h36m(tmp_path, "coco", ["S1"])
    (tmp_path / "h36m_cameras.json").write_text("{}")
    with pytest.raises(InputError, match="is no calibration"):
        read_h36m(tmp_path, "gt", ["S1"])
    (tmp_path / "h36m_cameras.json").unlink()
    with pytest.raises(InputError, match="has no calibration of the cameras"):
        read_h36m(tmp_path, "gt", ["S1"])


def test_samples_of_videos_mirror_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    videos = [Video(f"a {i}", rng.random((7, 17, 2), np.float32), rng.random((7, 17, 3), np.float32), 50, 1000) for i in range(2)]
    samples = VideoSamples(videos, H36M17, 5, (0, 0), flip=True)
    assert len(samples) == 14
    plain = videos[1].poses_2d[[0, 0, 0, 1, 2]]
    for seed in range(6):
        found = samples.sample(7, np.random.default_rng(seed))["poses_2d"].numpy()
        assert any(np.allclose(found, wanted) for wanted in (plain, H36M17.flip(plain)))
