"""What is done to skeletons before a model sees them: facts that hold for any input, and inputs that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.video_pose.data import skeleton_ops as ops
from vsuite.video_pose.metrics.actions import average_clips, confusion, mean_class_accuracy, top_k_accuracy
from vsuite.video_pose.skeletons import COCO17, NTU25, OPENPOSE18


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 4), st.integers(0, 9))
@settings(deadline=None)
def test_sampled_frames_are_of_the_video_and_in_order(frames: int, length: int, clips: int, seed: int) -> None:
    several = [*ops.uniform_sample_test(frames, length, clips, seed), ops.uniform_sample(frames, length, np.random.default_rng(seed))]
    for clip in several:
        assert clip.shape == (length,)
        assert clip.min() >= 0
        assert clip.max() < frames
        if frames >= length:
            assert (np.diff(clip) > 0).all()
        else:
            assert (np.diff(clip) % frames == 1 % frames).all()
    if frames == length:
        assert np.array_equal(several[0], np.arange(length))
    for wrong in ((0, 3, 1), (3, 0, 1), (3, 3, 0)):
        with pytest.raises(InputError, match="or more"):
            ops.uniform_sample_test(*wrong)


def test_training_uses_every_frame_of_a_long_video() -> None:
    rng = np.random.default_rng(0)
    assert set(np.concatenate([ops.uniform_sample(40, 10, rng) for _ in range(200)])) == set(range(40))


@given(st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_normalised_skeletons_stand_upright(seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses = rng.standard_normal((2, 5, 25, 3))
    poses[0, 3:] = 0  # the second person is in more frames: the main one
    got = ops.normalise_3d(poses)
    assert got.shape == (2, 5, 25, 3)
    np.testing.assert_allclose(got[0, 0, 1], 0, atol=1e-6)
    across = got[0, 0, 8] - got[0, 0, 4]
    np.testing.assert_allclose(across / np.linalg.norm(across), [1, 0, 0], atol=1e-5)
    lengths = [np.linalg.norm(x[..., 7, :] - x[..., 6, :], axis=-1) for x in (got[0], poses[1])]
    np.testing.assert_allclose(*lengths, rtol=1e-4)  # a rigid motion
    assert not got[1, 3:].any()
    moved = ops.normalise_3d(np.where(poses != 0, poses + 3.0, 0))
    np.testing.assert_allclose(moved, got, atol=1e-4)


def test_normalising_in_the_picture() -> None:
    keypoint = np.array([[0, 0], [1920, 1080], [960, 540], [50, 60]], np.float32).reshape(1, 1, 4, 2)
    score = np.array([1, 0.5, 0.9, 0.01], np.float32).reshape(1, 1, 4)
    want = [[-1, -1, 1], [1, 1, 0.5], [0, 0, 0.9], [0, 0, 0.01]]
    np.testing.assert_allclose(ops.normalise_2d(keypoint, score, (1080, 1920))[0, 0], want)
    box = ops.normalise_2d(keypoint / 2 + 100, score, (1080, 1920), mode="auto")
    np.testing.assert_allclose(box[0, 0], want, atol=1e-6)
    tiny = ops.normalise_2d(keypoint / 1000, score, (1080, 1920), mode="auto")
    np.testing.assert_allclose(tiny, ops.normalise_2d(keypoint / 1000, score, (1080, 1920)))


def test_streams_of_known_poses() -> None:
    poses = np.arange(2 * 3 * 25 * 3, dtype=float).reshape(2, 3, 25, 3)
    found = ops.streams(poses, NTU25)
    assert list(found) == ["joint", "bone", "joint_motion", "bone_motion"]
    np.testing.assert_array_equal(found["bone"][0, 0, 3], poses[0, 0, 3] - poses[0, 0, 2])  # head from neck
    assert not found["bone"][:, :, NTU25.root].any()
    assert (found["joint_motion"][:, :2] == 75).all()
    assert not found["joint_motion"][:, 2].any()
    assert not found["bone_motion"].any()
    scored = np.random.default_rng(0).random((1, 2, 17, 3))
    bones, motion = ops.to_bones(scored, COCO17, scored=True), ops.to_motion(scored, scored=True)
    np.testing.assert_allclose(bones[0, 0, 9, 2], scored[0, 0, [9, 7], 2].mean())
    np.testing.assert_allclose(bones[0, 0, 11, :2], scored[0, 0, 11, :2] - scored[0, 0, 0, :2])  # as pyskl: hips from the nose
    np.testing.assert_allclose(motion[0, 0, 4, 2], scored[0, :, 4, 2].mean())
    for layout in (COCO17, OPENPOSE18, NTU25):
        root = ops.to_bones(np.random.default_rng(1).random((1, 1, layout.num_joints, 2)), layout)
        assert (np.abs(root).sum(-1) == 0).sum() == 1
    with pytest.raises(InputError, match="ntu25"):
        ops.to_bones(scored, NTU25)


def test_people_are_filled_up_and_cut_off() -> None:
    poses = np.random.default_rng(0).random((3, 2, 17, 2))
    assert np.array_equal(ops.with_people(poses, 2), poses[:2])
    more = ops.with_people(poses, 5)
    assert more.shape == (5, 2, 17, 2)
    assert not more[3:].any()


def test_heatmaps_have_their_peaks_at_the_joints() -> None:
    keypoint, score = np.zeros((2, 1, 2, 2), np.float32), np.zeros((2, 1, 2), np.float32)
    keypoint[0, 0, 0], score[0, 0, 0] = (5, 3), 0.8
    keypoint[1, 0, 0], score[1, 0, 0] = (9, 6), 0.6
    volume = ops.heatmap_volume(keypoint, score, (10, 12))
    assert volume.shape == (1, 2, 10, 12)
    assert volume[0, 0, 3, 5] == pytest.approx(0.8)
    assert volume[0, 0, 6, 9] == pytest.approx(0.6)
    assert volume[0, 0, 3, 6] == pytest.approx(0.8 * np.exp(-1 / (2 * 0.6**2)), rel=1e-5)
    assert not volume[0, 1].any()
    limb = ops.heatmap_volume(np.array([[[[2, 4], [8, 4]]]], np.float32), None, (10, 12), limbs=((0, 1),))
    torch.testing.assert_close(limb[0, 0, 4, 2:9], torch.ones(7))
    assert limb[0, 0, 5, 5] == pytest.approx(np.exp(-1 / (2 * 0.6**2)), rel=1e-5)


def test_mirrored_volumes() -> None:
    volume = torch.rand(2, 17, 4, 6)
    double = ops.with_mirrored(volume, COCO17)
    assert torch.equal(double[:2], volume)
    assert torch.equal(double[2:, 5], volume[:, 6].flip(-1))
    assert torch.equal(ops.with_mirrored(double[2:], COCO17)[2:], volume)
    limbs = ops.with_mirrored(volume, COCO17, ops.COCO_LIMBS)
    assert torch.equal(limbs[2:, 6], volume[:, 9].flip(-1))  # forearms
    assert torch.equal(limbs[2:, 16], volume[:, 16].flip(-1))  # between the hips
    with pytest.raises(InputError, match="no mirror images"):
        ops.with_mirrored(volume[:, :1], COCO17, ((5, 7),))


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=10)
def test_cropped_people_fill_the_square(seed: int) -> None:
    keypoint = (np.random.default_rng(seed).random((1, 3, 17, 2)) * [400, 200] + 50).astype(np.float32)
    keypoint[0, 0, 0] = 0
    got = ops.crop_to_people(keypoint, (1080, 1920), 64)
    assert not got[0, 0, 0].any()
    there = got[(keypoint != 0).any(-1)]
    np.testing.assert_allclose(there[:, 0].max() - there[:, 0].min(), 64 / 1.25, rtol=1e-4)
    np.testing.assert_allclose((there.max(0) + there.min(0)) / 2, 32, rtol=1e-4)
    assert not ops.crop_to_people(keypoint * 0, (1080, 1920)).any()


def test_wrong_poses() -> None:
    nothing = np.full((1, 2, 17, 2), np.nan)
    with pytest.raises(InputError, match="NaN everywhere"):
        ops.normalise_2d(nothing, np.ones((1, 2, 17)), (10, 10))
    with pytest.raises(InputError, match="NaN everywhere"):
        ops.heatmap_volume(nothing, None, (10, 10))
    with pytest.raises(InputError, match="people, frames, joints, 2"):
        ops.normalise_2d(np.ones((2, 17, 2)), np.ones((2, 17)), (10, 10))
    with pytest.raises(InputError, match="one for each joint"):
        ops.normalise_2d(np.ones((1, 2, 17, 2)), np.ones((1, 2, 16)), (10, 10))
    with pytest.raises(InputError, match="mode must be"):
        ops.normalise_2d(np.ones((1, 2, 17, 2)), np.ones((1, 2, 17)), (10, 10), mode="box")  # type: ignore[arg-type]
    for wrong in (np.ones((3, 2, 25, 3)), np.ones((1, 2, 7, 3))):
        with pytest.raises(InputError, match="one or two people with the joints"):
            ops.normalise_3d(wrong)
    with pytest.raises(InputError, match="no one in any frame"):
        ops.normalise_3d(np.zeros((2, 3, 25, 3)))


# --- accuracy ---


def test_accuracies_of_known_scores() -> None:
    scores = np.eye(4)[[0, 1, 1, 3]] + np.array([0, 0, 0.1, 0])
    labels = np.array([0, 1, 2, 2])
    assert top_k_accuracy(scores, labels) == 0.5
    assert top_k_accuracy(scores, labels, 2) == 1
    assert confusion(scores, labels).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert mean_class_accuracy(scores, labels) == 0.5  # class 3 was predicted, and counts 0
    assert mean_class_accuracy(scores, labels, absent="skip") == pytest.approx(2 / 3)
    np.testing.assert_allclose(average_clips(scores, 2, average="score"), scores.reshape(2, 2, 4).mean(1))
    np.testing.assert_allclose(average_clips(scores * 500, 1).sum(1), 1)


def test_wrong_scores() -> None:
    good, labels = np.zeros((3, 4)), np.array([0, 1, 2])
    shapes = (good, labels[:2]), (good[0], labels), (good[:0], labels[:0])
    for wrong in (*shapes, (good, labels + 2), (good, labels / 2), (good * np.nan, labels)):
        with pytest.raises(InputError):
            top_k_accuracy(*wrong)
    with pytest.raises(InputError, match="k must be"):
        top_k_accuracy(good, labels, 0)
    with pytest.raises(InputError, match=r"videos \* 2 clips"):
        average_clips(good, 2)
    with pytest.raises(InputError, match="average must be"):
        average_clips(good, 1, average="vote")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="absent must be"):
        mean_class_accuracy(good, labels, absent="no")  # type: ignore[arg-type]
