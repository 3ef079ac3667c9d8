"""How videos of people become clips: frames, coordinates, random changes, files and splits."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.video_pose.action.clips import (
    Video,
    augmented,
    back_and_forth,
    check_video,
    draw_frames,
    placed,
    surest,
    to_body,
)
from vsuite.video_pose.action.clips import test_frames as frames_for_testing
from vsuite.video_pose.action.data import divide, read_videos
from vsuite.video_pose.action.film import cut, square_of
from vsuite.video_pose.action.samples import TrainingClips
from vsuite.video_pose.action.settings import ActionSettings, AugmentSettings, ClipSettings
from vsuite.video_pose.data.videos import read_frames, video_facts
from vsuite.video_pose.skeletons import COCO17, H36M17, NTU25

sys.path.insert(0, str(Path(__file__).parent))
from action_data import CLASSES, annotated_videos, keypoints, motion, write_film, write_mocap, write_pickle

BODY = ClipSettings(frames=8, window=16, coordinates="body")
FLAT = ClipSettings(frames=8)


# --- frames ---


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 50))
def test_back_and_forth_moves_by_the_step_and_stays_inside(frames: int, extra: int, length: int) -> None:
    span = frames + extra
    index = back_and_forth(frames, span, length)
    assert len(index) == frames
    assert index[0] == 0
    assert ((index >= 0) & (index < length)).all()
    if span <= length:  # no turn: an even thinning
        assert np.array_equal(index, np.arange(frames) * span // frames)


@given(st.integers(2, 100))
def test_windows_for_testing_reach_both_ends_half_a_window_apart(num_frames: int) -> None:
    frames = frames_for_testing(num_frames, BODY, 1)
    assert frames.min() == 0
    assert frames.shape[1] == BODY.frames
    if num_frames >= 16:
        assert frames[-1, 0] == num_frames - 16
        assert (np.diff(frames[:, 0]) <= 8).all()


@given(st.integers(2, 60), st.integers(0, 10_000))
def test_drawn_frames_lie_in_the_video(num_frames: int, seed: int) -> None:
    change = AugmentSettings(speed=0.3, shorten=0.5)
    for clip in (BODY, FLAT):
        frames = draw_frames(num_frames, clip, change, np.random.default_rng(seed))
        assert frames.shape == (8,)
        assert ((frames >= 0) & (frames < num_frames)).all()


# --- coordinates ---


@given(st.floats(-10, 10), st.floats(-5, 5), st.floats(-5, 5))
def test_body_coordinates_know_neither_place_nor_heading(angle: float, x: float, z: float) -> None:
    poses = motion("kicking", 3, np.random.default_rng(0))[None]
    c, s = np.cos(angle), np.sin(angle)
    moved = (poses @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + [x, 0.3, z]).astype(np.float32)
    ones = np.ones(poses.shape[:3], np.float32)
    want, got = to_body(poses, ones, H36M17)[0], to_body(moved, ones, H36M17)[0]
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(want[..., H36M17.names.index("left_hip"), 2], 0, atol=1e-5)
    assert (want[..., H36M17.names.index("left_hip"), 0] > 0).all()
    assert (want[..., H36M17.names.index("head"), 1] > 0.5).all()


@pytest.mark.parametrize("up", ["x", "z"])
def test_the_upward_axis_is_a_turn_and_no_reflection(up: str) -> None:
    poses = motion("waving", 4, np.random.default_rng(0))[None]
    turned = {"x": poses[..., [1, 0, 2]] * [1, 1, -1], "z": poses[..., [0, 2, 1]] * [1, -1, 1]}[up].astype(np.float32)
    ones = np.ones(poses.shape[:3], np.float32)
    np.testing.assert_allclose(to_body(turned, ones, H36M17, up)[0], to_body(poses, ones, H36M17)[0], atol=1e-5)


def test_without_hips_a_frame_has_no_one() -> None:
    video = Video.of(motion("kicking", 20, np.random.default_rng(0)))
    scores = video.scores.copy()
    scores[0, 0, H36M17.names.index("left_hip")] = 0
    joints, found = placed(dataclasses.replace(video, scores=scores), np.arange(8), BODY, H36M17)
    assert not joints[0, 0].any()
    assert not found[0, 0].any()
    assert found[0, 1:].all()


def test_people_fill_the_square_and_missing_joints_stay_zero() -> None:
    pixels = keypoints("waving", 8, np.random.default_rng(0))[None] + 100
    scores = np.ones(pixels.shape[:3])
    scores[0, :, 3] = 0
    joints, _ = placed(Video("x", pixels, scores, image_shape=(480, 640)), np.arange(8), FLAT, COCO17)
    assert not joints[0, :, 3].any()
    assert np.abs(joints).max() == pytest.approx(0.8, abs=1e-5)  # the box is a quarter wider than people are
    picture = placed(Video("x", pixels, scores, image_shape=(480, 640)), np.arange(8), ClipSettings(coordinates="picture"), COCO17)[0]
    np.testing.assert_allclose(picture[0, :, 0], (pixels[0, :, 0] - [320, 240]) / 320, rtol=1e-5)


def test_the_surest_people_come_first_and_missing_ones_are_empty() -> None:
    joints = np.stack([keypoints("waving", 4, np.random.default_rng(i)) for i in range(3)])
    scores = np.ones(joints.shape[:3]) * np.array([0.2, 0.9, 0.5])[:, None, None]
    video = Video("x", joints, scores, image_shape=(48, 64))
    assert np.array_equal(surest(video, 2).joints, joints[[1, 2]])
    four = surest(video, 4)
    assert four.joints.shape[0] == 4
    assert not four.scores[3].any()


def test_a_mirror_image_is_the_mirrored_body() -> None:
    clip = ClipSettings(frames=8, window=8, coordinates="body")
    joints, scores = placed(Video.of(motion("waving", 8, np.random.default_rng(0))), np.arange(8), clip, H36M17)

    class Always:
        def random(self) -> float:
            return 0.0

        def uniform(self, low: float, high: float) -> float:
            return (low + high) / 2

    found, _ = augmented(joints, scores, clip, AugmentSettings(mirror=True), H36M17, Always())  # type: ignore[arg-type]
    np.testing.assert_allclose(found, H36M17.flip(joints))


@pytest.mark.parametrize(
    ("video", "match"),
    [
        (Video.of(np.ones((4, 16, 3))), "layout h36m17 have 17 joints; got 16"),
        (Video.of(np.ones((1, 17, 3))), "has 1 frame; an action takes 2 or more"),
        (Video.of(np.ones((4, 17, 2)) * 50), "for 3D joints in metres; got 2"),
        (Video("x", np.zeros((1, 4, 17, 3)), np.zeros((1, 4, 17))), "no one in any frame"),
    ],
)
def test_videos_that_cannot_be_used(video: Video, match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_video(video, H36M17, BODY)


def test_more_videos_that_cannot_be_used() -> None:
    with pytest.raises(InputError, match="NaN everywhere"):
        Video.of(np.full((4, 17, 3), np.nan))
    with pytest.raises(InputError, match="must be in pixels"):
        check_video(Video.of(np.random.default_rng(0).random((4, 17, 2))), COCO17, FLAT)
    with pytest.raises(InputError, match="does not say how large"):
        check_video(Video.of(np.ones((4, 17, 2)) * 50), COCO17, ClipSettings(coordinates="picture"))
    with pytest.raises(InputError, match="'start' are for the layout ntu25; got h36m17"):
        check_video(Video.of(np.ones((4, 17, 3))), H36M17, ClipSettings(coordinates="start"))
    with pytest.raises(InputError, match="poses are people, frames"):
        Video.of(np.ones((17, 3)))


# --- files and splits ---


def test_motion_capture_is_divided_by_sequence_and_a_single_one_in_time(tmp_path: Path) -> None:
    found = read_videos(write_mocap(tmp_path / "m.npz"), H36M17, BODY)
    assert found.classes == CLASSES
    assert found.videos[0].joints.shape == (1, 40, 17, 3)
    assert np.abs(found.videos[0].joints).max() < 5  # metres
    divided = divide(found, ActionSettings(layout="h36m17"), 0.25)
    train, held_out = {video.name for video in divided.training}, {video.name for video in divided.held_out}
    assert len(train & {v.name for v in found.videos}) == 3 + 3 + 1
    assert not train & held_out
    assert {video.label for video in divided.held_out} == {0, 1, 2}
    assert "waving" in divided.about
    assert next(v for v in divided.held_out if v.label == 2).num_frames == 30
    folds = [frozenset(v.name for v in divide(found, ActionSettings(fold=fold), 0.25).held_out if v.label < 2) for fold in range(4)]
    assert len(set(folds)) == 4
    with pytest.raises(InputError, match="is in the layout h36m17; the model or recipe takes coco17"):
        read_videos(tmp_path / "m.npz", COCO17, FLAT)


def test_pickles_with_splits_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    content = annotated_videos()
    found = read_videos(write_pickle(tmp_path / "a.pkl", content), COCO17, FLAT)
    divided = divide(found, ActionSettings(classes=CLASSES), 0.1)
    assert (len(divided.training), len(divided.held_out)) == (12, 6)
    assert divided.classes == CLASSES
    with pytest.raises(InputError, match=r"label must be from 0 to 1, as 2 classes are named; got 2"):
        divide(found, ActionSettings(classes=CLASSES[:2]), 0.1)
    with pytest.raises(InputError, match="unknown split"):
        divide(found, ActionSettings(split="xsub"), 0.1)
    content["split"] |= {"other_train": [], "other_val": []}
    with pytest.raises(InputError, match=r"several splits; action\.split chooses one: other, own"):
        divide(read_videos(write_pickle(tmp_path / "b.pkl", content), COCO17, FLAT), ActionSettings(), 0.1)
    with pytest.raises(InputError, match="joints"):
        read_videos(tmp_path / "a.pkl", NTU25, BODY)


def test_folders_by_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for action in CLASSES:
        (tmp_path / action).mkdir()
        for number in range(3):
            np.save(tmp_path / action / f"{number}.npy", keypoints(action, 10, rng))
    found = read_videos(tmp_path, COCO17, FLAT)
    assert found.classes == CLASSES
    assert [video.label for video in found.videos] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.videos[0].joints.shape == (1, 10, 17, 2)
    assert len(divide(found, ActionSettings(), 0.3).held_out) == 3


def test_balanced_training_takes_classes_in_turn(tmp_path: Path) -> None:
    settings = ActionSettings(layout="h36m17", clip=BODY)
    divided = divide(read_videos(write_mocap(tmp_path / "m.npz"), H36M17, BODY), settings, 0.25)
    samples = TrainingClips(divided.training, settings, "poses", H36M17)
    drawn = [samples.sample(i, np.random.default_rng(i)) for i in range(6)]
    assert [int(sample["label"]) for sample in drawn] == [0, 1, 2, 0, 1, 2]
    assert drawn[0]["joints"].shape == (1, 8, 17, 3)
    assert drawn[0]["scores"].shape == (1, 8, 17)
    again = samples.sample(3, np.random.default_rng(3))
    assert all(bool((again[name] == drawn[3][name]).all()) for name in again)


# --- films ---


def test_frames_come_as_asked_and_joints_stay_on_their_pixels(tmp_path: Path) -> None:
    joints = keypoints("waving", 12, np.random.default_rng(0))
    film = write_film(tmp_path / "x.mp4", joints)
    assert (video_facts(film).num_frames, video_facts(film).size) == (12, (64, 48))
    pictures = read_frames(film, [7, 2, 2])
    assert pictures.shape == (3, 48, 64, 3)
    assert np.array_equal(pictures[1], pictures[2])
    square = square_of(joints[None, [7, 2, 2]], np.ones((1, 3, 17)), (48, 64))
    clip, moved = cut(pictures, joints[None, [7, 2, 2]], square, 96)
    assert clip.shape == (3, 3, 96, 96)
    assert 0 <= clip.min() < clip.max() <= 1
    places = moved[0].round().astype(int)
    drawn = np.array([[clip[t, 1, y, x] for x, y in places[t]] for t in range(3)])
    assert (drawn > 0.5).all()  # every joint lies on its white square
    with pytest.raises(InputError, match="ends after 12 frames"):
        read_frames(film, [12])


def test_films_that_do_not_decode(tmp_path: Path) -> None:
    broken = tmp_path / "x.mp4"
    broken.write_bytes(b"no film at all" * 100)
    for read in (video_facts, lambda path: read_frames(path, [0])):
        with pytest.raises(InputError, match=r"x\.mp4: does not decode as a video"):
            read(broken)
    with pytest.raises(InputError, match="no such file"):
        video_facts(tmp_path / "y.mp4")
    with pytest.raises(InputError, match="has no poses beside it"):
        read_videos(broken, COCO17, FLAT)
