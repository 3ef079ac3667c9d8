"""Files that are damaged, hostile or ambiguous: one clear error each, and nothing read in another sense than was meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vsuite.core import InputError
from vsuite.core.weights import save_weights
from vsuite.video_pose.data.arrays import read_npy, read_npz
from vsuite.video_pose.data.detections import read_detections
from vsuite.video_pose.data.digits import read_digits
from vsuite.video_pose.notes import task_of


def poses(frames: int = 4, joints: int = 17) -> np.ndarray:
    return np.random.default_rng(0).uniform(10, 200, (frames, joints, 2)).astype(np.float32)


def openpose_frame(path: Path) -> None:
    points = np.concatenate([poses(1, 25)[0], np.ones((25, 1))], axis=1)
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}))


def results(*frames: object) -> str:
    values = np.concatenate([poses(1)[0], np.ones((17, 1))], axis=1).ravel().tolist()
    return json.dumps([{"image_id": frame, "keypoints": values} for frame in frames])


def table(frames: list[float]) -> str:
    header = ["frame", *(f"{axis}{joint}" for joint in range(17) for axis in "xy")]
    return "\n".join([",".join(header), *(",".join(map(str, [frame, *poses(1).ravel()])) for frame in frames)])


def videopose3d(path: Path, positions: object, **metadata: object) -> Path:
    content = {"layout_name": "coco", "num_joints": 17, **metadata}
    np.savez(path, positions_2d=np.array(positions, dtype=object), metadata=np.array(content, dtype=object))
    return path


@pytest.mark.parametrize("subject", ["../../evil", "/tmp/evil", "a/b", "..\\evil", ""])
def test_names_in_a_file_do_not_lead_out_of_a_folder(tmp_path: Path, subject: str) -> None:
    (video,) = read_detections(videopose3d(tmp_path / "d.npz", {subject: {"custom": [poses()]}}))
    assert (tmp_path / "out" / f"{video.name}.npz").resolve().parent == (tmp_path / "out").resolve()
    assert video.name


@pytest.mark.parametrize(
    ("positions", "metadata"),
    [
        ({"S1": [poses()]}, {}),
        ({"S1": {"walk": 3}}, {}),
        ({"S1": {"walk": [poses()]}}, {"video_metadata": "none"}),
        ({"S1": {"walk": [poses()]}}, {"video_metadata": {"S1": {"w": 9, "h": 9, "fps": "fast"}}}),
    ],
)
def test_videopose3d_of_other_forms(tmp_path: Path, positions: object, metadata: dict) -> None:
    with pytest.raises(InputError, match=r"d\.npz"):
        read_detections(videopose3d(tmp_path / "d.npz", positions, **metadata))


@pytest.mark.parametrize("fps", [0.0, -25.0, np.nan, np.inf, 1e-9, 1e9])
def test_rates_that_no_video_has(tmp_path: Path, fps: float) -> None:
    np.savez(tmp_path / "a.npz", poses_2d=poses(), layout="coco17", fps=fps)
    with pytest.raises(InputError, match="frames a second"):
        read_detections(tmp_path / "a.npz")


def test_rates_that_are_no_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", poses_2d=poses(), layout="coco17", fps="fast")
    with pytest.raises(InputError, match="frames a second"):
        read_detections(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table([0, 0.5, 1]), "whole numbers"),
        (table([0, 1, 2_000_000_000]), "number no video"),
        (table([0, 1]) + "\n\x00", "a.csv"),
        ('"' + "1" * 200_000, "a.csv"),
    ],
    ids=["half frames", "far frames", "zero bytes", "endless field"],
)
def test_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / "a.csv", layout="coco17")


def test_two_videos_in_one_folder_of_openpose(tmp_path: Path) -> None:
    for name in ("first", "second"):
        for frame in range(3):
            openpose_frame(tmp_path / f"{name}_{frame:03d}_keypoints.json")
    with pytest.raises(InputError, match="frames of two videos"):
        read_detections(tmp_path)


def test_openpose_frames_far_apart(tmp_path: Path) -> None:
    for frame in (0, 1, 2_000_000_000):
        openpose_frame(tmp_path / f"clip_{frame:012d}_keypoints.json")
    with pytest.raises(InputError, match="number no video"):
        read_detections(tmp_path)


def test_frames_numbered_by_floats(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(results(3.0, 4.0, 6.0))
    (video,) = read_detections(tmp_path / "a.json")
    assert [person.frame for person in video.people] == [0, 1, 3]
    assert video.start == 3


@pytest.mark.parametrize("frame", [None, True, "none", 0.5, [1]])
def test_frames_without_a_number(tmp_path: Path, frame: object) -> None:
    (tmp_path / "a.json").write_text(results(1, frame))
    with pytest.raises(InputError, match=r"a\.json"):
        read_detections(tmp_path / "a.json")


@pytest.mark.parametrize("frame", ["first", None, [1]])
def test_mmpose_frames_without_a_number(tmp_path: Path, frame: object) -> None:
    instance = {"keypoints": poses(1)[0].tolist(), "keypoint_scores": [1.0] * 17}
    frames = [{"frame_id": number, "instances": [instance]} for number in (0, frame)]
    (tmp_path / "a.json").write_text(json.dumps(frames))
    with pytest.raises(InputError, match=r"a\.json"):
        read_detections(tmp_path / "a.json", layout="coco17")


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    entry = {"image_id": 0, "keypoints": [10**400] * 51}
    (tmp_path / "a.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(InputError, match="must be numbers"):
        read_detections(tmp_path / "a.json")


def test_archives_that_are_cut_off(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, digits=np.arange(28 * 28 * 200, dtype=np.uint8).reshape(-1, 28, 28))
    content = whole.read_bytes()
    (tmp_path / "short.npz").write_bytes(content[: len(content) // 2])
    middle = len(content) // 2
    (tmp_path / "bad.npz").write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    for name in ("short.npz", "bad.npz"):
        for read in (read_npz, read_digits):
            with pytest.raises(InputError, match=name):
                read(tmp_path / name)


def test_compressed_digits_that_are_damaged(tmp_path: Path) -> None:
    import gzip

    content = bytearray(gzip.compress(np.random.default_rng(0).bytes(4000)))
    content[300:310] = bytes(10)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match="train-images"):
        read_digits(tmp_path / "train-images-idx3-ubyte.gz")


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "a.npz", a=np.array([{"a": 1}], dtype=object))
    (tmp_path / "b.npz").write_bytes(b"no archive")
    for read, name in ((read_npy, "a.npy"), (read_npz, "a.npz"), (read_npz, "b.npz"), (read_npy, "absent.npy")):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


def test_weights_for_no_task(tmp_path: Path) -> None:
    import torch

    save_weights(torch.nn.Linear(1, 1), tmp_path / "w.safetensors", metadata={"video_pose": {"task": "lift.evil"}})
    with pytest.raises(InputError, match=r"lift\.evil"):
        task_of(tmp_path / "w.safetensors")


def test_the_root_of_lifted_poses_is_not_missing(tmp_path: Path) -> None:
    from vsuite.video_pose.action.data import read_videos
    from vsuite.video_pose.action.settings import ClipSettings
    from vsuite.video_pose.skeletons import H36M17

    poses = np.random.default_rng(0).uniform(-1, 1, (5, 17, 3)).astype(np.float32)
    poses -= poses[:, :1]
    np.savez(tmp_path / "walk.npz", poses_3d=poses, layout="h36m17")
    (video,) = read_videos(tmp_path / "walk.npz", H36M17, ClipSettings(frames=5, coordinates="body")).videos
    assert (video.scores == 1).all()
    np.testing.assert_allclose(video.joints[0], poses * [1, -1, -1])


@pytest.mark.parametrize("shape", [(4,), (4, 16), (1, 4), (4, 17, 2)])
def test_scores_of_other_shapes(shape: tuple[int, ...]) -> None:
    from vsuite.video_pose.action.clips import Video

    with pytest.raises(InputError, match="scores must be one for each joint"):
        Video.of(poses(), np.ones(shape))


def test_the_first_error_of_a_file_is_told(tmp_path: Path) -> None:
    from vsuite.video_pose.action.data import read_videos
    from vsuite.video_pose.action.settings import ClipSettings
    from vsuite.video_pose.skeletons import H36M17

    (tmp_path / "a.json").write_text(results(0, 2, 1))
    with pytest.raises(InputError, match="not in order"):
        read_videos(tmp_path / "a.json", H36M17, ClipSettings())


def test_something_of_each_action_is_left_to_learn_from() -> None:
    from vsuite.video_pose.lift.mocap import Sequence3D, split_mocap

    training, held_out = split_mocap([Sequence3D(f"walk/{i}", np.zeros((2, 17, 3), np.float32)) for i in range(2)], 0.9)
    assert (len(training), len(held_out)) == (1, 1)
