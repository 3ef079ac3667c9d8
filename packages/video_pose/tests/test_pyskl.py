"""Annotations: pickles that are data, pickles that are programs, files of our own, and everything that can be wrong in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsuite.core import InputError
from vsuite.video_pose.data.pyskl import read_annotations, write_annotations


def entry(name: str = "a", frames: int = 4, joints: int = 17, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    return {
        "frame_dir": name,
        "label": 3,
        "total_frames": frames,
        "img_shape": (1080, 1920),
        "original_shape": (1080, 1920),
        "keypoint": (1000 * rng.random((2, frames, joints, 2))).astype(np.float16),
        "keypoint_score": rng.random((2, frames, joints)).astype(np.float16),
    } | changes


def content(**changes: Any) -> dict[str, Any]:
    return {"split": {"xsub_train": ["a"], "xsub_val": ["bb"]}, "annotations": [entry("a", **changes), entry("bb", frames=6)]}


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_both_forms(tmp_path: Path, protocol: int) -> None:
    found = read_annotations(dump(tmp_path / "ntu60_hrnet.pkl", content(), protocol), num_joints=17, num_classes=60)
    assert [video.name for video in found.split("xsub_val")] == ["bb"]
    (video,) = found.split("xsub_train")
    assert (video.label, video.num_frames, video.image_shape) == (3, 4, (1080, 1920))
    assert video.keypoint.dtype == np.float16
    assert np.array_equal(video.keypoint, entry("a")["keypoint"])
    assert np.array_equal(video.score, entry("a")["keypoint_score"])
    old = read_annotations(dump(tmp_path / "old.pkl", content()["annotations"], protocol))
    assert [video.name for video in old.videos] == ["a", "bb"]
    with pytest.raises(InputError, match="did you mean 'xsub_train'"):
        found.split("xsub_trian")


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_own_files(tmp_path: Path, suffix: str) -> None:
    changed = content() | {"annotations": [entry("a"), entry("bb", keypoint_score=None, img_shape=None, label=-1)]}
    found = read_annotations(dump(tmp_path / "x.pkl", changed))
    write_annotations(found, tmp_path / f"x{suffix}")
    again = read_annotations(tmp_path / f"x{suffix}")
    assert again.splits == found.splits
    for video, want in zip(again.videos, found.videos, strict=True):
        assert (video.name, video.label, video.image_shape) == (want.name, want.label, want.image_shape)
        assert np.array_equal(video.keypoint, want.keypoint)
        assert (video.score is None) == (want.score is None)
        assert video.score is None or np.array_equal(video.score, want.score)
        assert suffix == ".json" or video.keypoint.dtype == want.keypoint.dtype
    with pytest.raises(InputError, match=r"written as \.npz or \.json"):
        write_annotations(found, tmp_path / "x.pkl")


class Program:
    """What runs a command when it is unpickled in the ordinary way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


def test_programs_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for place in (content(extra=Program(f"touch {trace}")), Program(f"touch {trace}"), content(keypoint=Program(f"touch {trace}"))):
        with pytest.raises(InputError, match="system; annotations hold arrays and plain containers alone, nothing was run"):
            read_annotations(dump(tmp_path / "x.pkl", place))
    hidden = np.array([Program(f"touch {trace}")], dtype=object)
    for place in (content(keypoint=hidden), content() | {"more": {"deep": [(hidden,)]}}, content(extra=Path("x")), content(extra=print)):
        with pytest.raises(InputError, match="nothing was run"):
            read_annotations(dump(tmp_path / "x.pkl", place))
    assert not trace.exists()


def test_containers_that_hold_themselves(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert read_annotations(dump(tmp_path / "x.pkl", content(extra=endless))).videos
    with pytest.raises(InputError):
        read_annotations(dump(tmp_path / "y.pkl", endless))


WRONG: dict[str, dict[str, Any]] = {
    "needs a text as 'frame_dir'": {"frame_dir": 3},
    "must be people, frames, joints, 2 or 3": {"keypoint": np.zeros((2, 4, 17))},
    "'keypoint' must be an array of numbers": {"keypoint": "none"},
    "'keypoint' is NaN everywhere": {"keypoint": np.full((2, 4, 17, 2), np.nan)},
    "'total_frames' is 5, but 'keypoint' has 4 frames": {"total_frames": 5},
    "'keypoint_score' must be": {"keypoint_score": np.zeros((2, 4, 16))},
    "'label' must be a whole number": {"label": "walking"},
    "'label' must be a whole number from 0, or -1": {"label": -2},
    r"'img_shape' must be \(height, width\)": {"img_shape": (1080,)},
    "must have 13 joints; got 17": {"keypoint": np.ones((1, 4, 13, 2)), "keypoint_score": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_annotations(tmp_path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotations(dump(tmp_path / "x.pkl", content(**WRONG[message])))


def test_wrong_files(tmp_path: Path) -> None:
    good = dump(tmp_path / "good.pkl", content())
    with pytest.raises(InputError, match="must have 25 joints; got 17"):
        read_annotations(good, num_joints=25)
    with pytest.raises(InputError, match="a: label must be from 0 to 2; got 3"):
        read_annotations(good, num_classes=3)
    broken = {
        "lists 1 videos that are not there, such as 'c'": content() | {"split": {"train": ["c"]}},
        "'split' must be a dictionary": content() | {"split": [1]},
        "occur more than once": [entry("a"), entry("a")],
        "holds no annotations": [],
        "must be a list of annotations, or a dictionary": {"annotations": 3},
        "must be a dictionary; got int": [1],
        "a compressed form, as of Kinetics": [{"frame_dir": "a", "raw_file": "x"}],
    }
    for message, value in broken.items():
        with pytest.raises(InputError, match=message):
            read_annotations(dump(tmp_path / "x.pkl", value))
    (tmp_path / "x.npz").write_bytes(good.read_bytes())
    (tmp_path / "x.json").write_text("[1,")
    (tmp_path / "cut.pkl").write_bytes(good.read_bytes()[:200])
    for name in ("x.npz", "x.json", "cut.pkl", "absent.pkl", "x.txt"):
        with pytest.raises(InputError):
            read_annotations(tmp_path / name)
    np.savez(tmp_path / "objects.npz", shapes=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="is no file of annotations"):
        read_annotations(tmp_path / "objects.npz")


def test_single_nan_joints_are_missing(tmp_path: Path) -> None:
    changed = entry("a")
    changed["keypoint"][0, 1, 2, 0] = np.nan
    (video,) = read_annotations(dump(tmp_path / "x.pkl", [changed])).videos
    assert not video.keypoint[0, 1, 2].any()
    assert video.score[0, 1, 2] == 0
    assert np.count_nonzero(video.score) == video.score.size - 1
