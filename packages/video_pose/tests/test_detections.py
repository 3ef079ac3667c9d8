"""2D poses in the forms that pose estimators write: one person on a straight way, read back from each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vsuite.core import InputError
from vsuite.video_pose.data.detections import find_detections, read_detections
from vsuite.video_pose.data.tracks import filled, follow
from vsuite.video_pose.skeletons import BODY25, COCO17, H36M17, HALPE26, OPENPOSE18, Skeleton, convert

FRAMES = 6


def person(layout: Skeleton, start: float = 100.0, seed: int = 0) -> np.ndarray:
    """(T, J, 3): pixels and scores."""
    rng = np.random.default_rng(seed)
    body = rng.uniform(0, 200, (layout.num_joints, 2)) + start
    way = body + 4.0 * np.arange(FRAMES)[:, None, None]
    return np.concatenate([way, np.full((FRAMES, layout.num_joints, 1), 0.9)], axis=2).astype(np.float32)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def openpose(folder: Path, poses: np.ndarray, frames: list[int] | None = None) -> Path:
    folder.mkdir()
    for frame, pose in zip(frames or range(len(poses)), poses, strict=True):
        content = {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": pose.ravel().tolist()}]}
        write(folder / f"clip_{frame:012d}_keypoints.json", content)
    return folder


def results(poses: np.ndarray, *, track: str | None = None, name: str = "{}.jpg") -> list[dict]:
    """As AlphaPose writes them."""
    entries = [
        {"image_id": name.format(t), "category_id": 1, "keypoints": pose.ravel().tolist(), "score": 2.5} for t, pose in enumerate(poses)
    ]
    return [entry | ({track: 7} if track else {}) for entry in entries]


def mmpose(poses: np.ndarray) -> list[dict]:
    return [
        {"frame_id": t, "instances": [{"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist(), "bbox": [[0, 0, 9, 9]]}]}
        for t, p in enumerate(poses)
    ]


def read_one(path: Path, layout: str | None = None, **options: bool) -> tuple[np.ndarray, Skeleton]:
    (video,) = read_detections(path, layout=layout, **options)
    (track,) = follow(video)
    return track.points, track.layout


@pytest.mark.parametrize("layout", [BODY25, OPENPOSE18], ids=lambda layout: layout.name)
def test_openpose_folders(tmp_path: Path, layout: Skeleton) -> None:
    poses = person(layout)
    points, found = read_one(openpose(tmp_path / "clip", poses))
    assert found == layout
    np.testing.assert_allclose(points, poses[..., :2])


def test_openpose_without_somebody_in_a_frame(tmp_path: Path) -> None:
    poses = person(BODY25)
    folder = openpose(tmp_path / "clip", poses)
    write(folder / "clip_000000000002_keypoints.json", {"people": []})
    points, _ = read_one(folder)
    assert np.isnan(points[2]).all()
    np.testing.assert_allclose(np.delete(points, 2, 0), np.delete(poses[..., :2], 2, 0))


@pytest.mark.parametrize("layout", [COCO17, HALPE26], ids=lambda layout: layout.name)
@pytest.mark.parametrize("track", [None, "idx", "track_id"])
def test_alphapose_and_coco_results(tmp_path: Path, layout: Skeleton, track: str | None) -> None:
    poses = person(layout)
    points, found = read_one(write(tmp_path / "a.json", results(poses, track=track)))
    assert found == layout
    np.testing.assert_allclose(points, poses[..., :2])


def test_mmpose_says_its_layout_or_it_must_be_named(tmp_path: Path) -> None:
    poses = person(COCO17)
    said = {"meta_info": {"dataset_name": "coco"}, "instance_info": mmpose(poses)}
    points, found = read_one(write(tmp_path / "said.json", said))
    assert found == COCO17
    np.testing.assert_allclose(points, poses[..., :2])
    bare = write(tmp_path / "bare.json", mmpose(poses))
    with pytest.raises(InputError, match=r"name the layout \(--layout\): coco17, h36m17"):
        read_detections(bare)
    assert read_one(bare, "h36m17")[1] == H36M17
    with pytest.raises(InputError, match="layout coco17, and h36m17 was asked for"):
        read_detections(tmp_path / "said.json", layout="h36m17")
    with pytest.raises(InputError, match="17 joints, and the layout halpe26 26"):
        read_detections(bare, layout="halpe26")
    with pytest.raises(InputError, match="unknown joint layout 'coco'"):
        read_detections(bare, layout="coco")


def test_videopose3d_and_its_detectron2(tmp_path: Path) -> None:
    poses = person(COCO17)
    metadata = {"layout_name": "coco", "num_joints": 17, "video_metadata": {"a.mp4": {"w": 640, "h": 480}}}
    positions = np.array({"a.mp4": {"custom": [poses[..., :2]]}}, dtype=object)
    np.savez_compressed(tmp_path / "data_2d_custom.npz", positions_2d=positions, metadata=np.array(metadata, dtype=object))
    (video,) = read_detections(tmp_path / "data_2d_custom.npz")
    assert (video.name, video.size, video.layout) == ("a.mp4", (640, 480), COCO17)
    np.testing.assert_allclose(follow(video)[0].points, poses[..., :2])

    frames = np.empty(FRAMES, dtype=object)
    for t, pose in enumerate(poses):
        frames[t] = [[], np.stack([pose[:, 0], pose[:, 1], np.zeros(17), pose[:, 2]])[None]]
    boxes = np.empty(FRAMES, dtype=object)
    boxes[:] = [[[], np.zeros((1, 5))]] * FRAMES
    np.savez_compressed(tmp_path / "b.mp4.npz", boxes=boxes, keypoints=frames, metadata=np.array({"w": 320, "h": 240}, dtype=object))
    (video,) = read_detections(tmp_path / "b.mp4.npz")
    assert video.size == (320, 240)
    np.testing.assert_allclose(follow(video)[0].points, poses[..., :2])


def test_an_npz_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "evil.npz", positions_2d=np.array(Evil(), dtype=object), metadata=np.array({}, dtype=object))
    with pytest.raises(InputError):
        read_detections(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_plain_arrays_and_tables(tmp_path: Path) -> None:
    poses = person(H36M17)
    np.save(tmp_path / "a.npy", poses[..., :2])
    np.testing.assert_allclose(read_one(tmp_path / "a.npy", "h36m17")[0], poses[..., :2])
    with pytest.raises(InputError, match="in which order its joints are"):
        read_detections(tmp_path / "a.npy")
    two = np.stack([poses, person(H36M17, 900.0, 1)])
    np.savez(tmp_path / "b.npz", poses_2d=two, layout="h36m17", size=(1920, 1080), fps=25.0)
    (video,) = read_detections(tmp_path / "b.npz")
    assert (video.size, video.fps) == ((1920, 1080), 25.0)
    for track, truth in zip(sorted(follow(video), key=lambda t: t.number), two, strict=True):
        np.testing.assert_allclose(track.points, truth[..., :2])
    header = ["frame", *(f"{joint}_{part}" for joint in reversed(H36M17.names) for part in ("x", "y", "score"))]
    lines = [",".join(map(str, [t, *pose[::-1].ravel().tolist()])) for t, pose in enumerate(poses)]
    (tmp_path / "c.csv").write_text("\n".join([",".join(header), *lines]))
    points, layout = read_one(tmp_path / "c.csv")
    assert layout == H36M17  # by the joints' names, in whatever order the columns are
    np.testing.assert_allclose(points, poses[..., :2], rtol=1e-6)


def test_people_are_told_apart_by_place(tmp_path: Path) -> None:
    """Two people change places in the file from frame to frame; one is away for two frames."""
    first, second = person(COCO17, 100.0), person(COCO17, 700.0, seed=1)
    frames = mmpose(first)
    for t, (frame, other) in enumerate(zip(frames, mmpose(second), strict=True)):
        if t not in (2, 3):
            frame["instances"].insert(t % 2, other["instances"][0])
    (video,) = read_detections(write(tmp_path / "two.json", frames), layout="coco17")
    a, b = follow(video)
    np.testing.assert_allclose(a.points, first[..., :2])
    np.testing.assert_allclose(b.points[[0, 1, 4, 5]], second[[0, 1, 4, 5], :, :2])
    assert np.isnan(b.points[2:4]).all()
    assert len(follow(video, most=1)) == 1


def test_missing_joints_are_interpolated_in_time(tmp_path: Path) -> None:
    poses = person(H36M17)  # on a straight way: linear interpolation is exact
    broken = poses.copy()
    broken[2, 5], broken[3, 5, 2] = np.nan, 0.0  # NaN, and a score of 0
    broken[0, 9] = np.nan  # held at the ends
    np.savez(tmp_path / "a.npz", poses_2d=broken, layout="h36m17")
    (video,) = read_detections(tmp_path / "a.npz")
    points, made = filled(follow(video)[0], H36M17)
    poses[0, 9] = poses[1, 9]
    np.testing.assert_allclose(points, poses[..., :2], rtol=1e-5)
    assert sorted(zip(*map(list, np.nonzero(made)), strict=True)) == [(0, 9), (2, 5), (3, 5)]


def test_what_a_layout_does_not_need_may_be_missing(tmp_path: Path) -> None:
    poses = person(COCO17)
    poses[:, COCO17.names.index("left_ear"), 2] = 0
    points, _ = filled(follow(read_detections(write(tmp_path / "a.json", results(poses)))[0])[0], H36M17)
    np.testing.assert_allclose(points, convert(poses[..., :2], COCO17, H36M17), rtol=1e-5)
    poses[:, COCO17.names.index("left_knee"), 2] = 0
    with pytest.raises(InputError, match="no frame shows what left_knee is made from"):
        filled(follow(read_detections(write(tmp_path / "a.json", results(poses)))[0])[0], H36M17)


def test_frames_out_of_order_are_refused_or_sorted(tmp_path: Path) -> None:
    poses = person(COCO17)
    entries = results(poses)
    path = write(tmp_path / "a.json", [entries[0], entries[3], *entries[1:3], *entries[4:]])
    with pytest.raises(InputError, match="not in order: 1 comes after 3; --sort"):
        read_detections(path)
    np.testing.assert_allclose(read_one(path, sort=True)[0], poses[..., :2])
    # Names of files are no order: OpenPose's come sorted by their numbers, whatever the zeros.
    folder = tmp_path / "clip"
    folder.mkdir()
    body = person(BODY25)
    for t in range(FRAMES):
        write(folder / f"c_{t + 8}_keypoints.json", {"people": [{"pose_keypoints_2d": body[t].ravel().tolist()}]})
    np.testing.assert_allclose(read_one(folder)[0], body[..., :2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is no JSON"),
        ("{}", "is no 2D poses"),
        ("[]", "is no 2D poses"),
        (json.dumps([{"image_id": 1, "keypoints": [1.0] * 45}]), "15 joints; known are 17, 26"),
        (json.dumps([{"image_id": 1, "keypoints": [1.0] * 50}]), "x, y, score of each joint"),
        (json.dumps([{"image_id": 1, "keypoints": ["a"] * 51}]), "must be numbers"),
        (json.dumps([{"image_id": "no number.jpg", "keypoints": [1.0] * 51}]), "has no frame's number"),
        (json.dumps([{"image_id": 3, "keypoints": [1.0] * 51}]), "has one frame"),
        (json.dumps([{"image_id": i, "keypoints": [1.0] * 51} for i in (1, 400_000)]), "they number no video"),
        (json.dumps([{"frame_id": 0, "instances": []}] * 2), "in which order"),
        (json.dumps({"people": [{"pose_keypoints_2d": []}]}), "give the folder"),
    ],
)
def test_bad_json_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_detections(tmp_path / "bad.json")
    assert "bad.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_arrays_are_one_clear_line(tmp_path: Path) -> None:
    cases = {
        "nan": (np.full((5, 17, 2), np.nan), "every joint of .* is missing"),
        "zeros": (np.zeros((5, 17, 2)), "every joint of .* is missing"),
        "one": (np.ones((1, 17, 2)), "has one frame"),
        "joints": (np.ones((5, 16, 2)), "16 joints, and the layout h36m17 17"),
        "flat": (np.ones((5, 34)), r"must be \(T, J, 2 or 3\)"),
        "text": (np.array(["a"]), "no array of numbers"),
    }
    for name, (array, message) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=message):
            read_detections(tmp_path / f"{name}.npy", layout="h36m17")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read_detections(tmp_path / "cut.npz")
    (tmp_path / "table.csv").write_text("frame,a_x,a_y\n0,1,2\n")
    with pytest.raises(InputError, match="of no known layout"):
        read_detections(tmp_path / "table.csv")
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="2D poses are read from"):
        read_detections(tmp_path / "film.mp4")


def test_two_people_with_one_number(tmp_path: Path) -> None:
    entries = results(person(COCO17), track="idx")
    (video,) = read_detections(write(tmp_path / "a.json", [entry for entry in entries for _ in range(2)]))
    with pytest.raises(InputError, match="frame 0 has two people with the number 7"):
        follow(video)


def test_inputs_are_found(tmp_path: Path) -> None:
    folder = openpose(tmp_path / "clip", person(BODY25))
    path = write(tmp_path / "a.json", results(person(COCO17)))
    assert find_detections([tmp_path]) == ([path, folder], [])
    assert find_detections([folder]) == ([folder], [])
    assert find_detections([str(tmp_path / "*.json"), path]) == ([path], [])
    with pytest.raises(InputError, match="no such file"):
        find_detections([tmp_path / "absent.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no 2D poses"):
        find_detections([tmp_path / "empty"])
