"""Metrics of 3D poses: what they must not see, and what they must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vsuite.core import InputError
from vsuite.video_pose.metrics.pose import (
    DEFINITIONS,
    METRICS,
    UNITS,
    auc,
    evaluate_poses,
    joint_errors,
    mpjpe,
    mpjve,
    n_mpjpe,
    p_mpjpe,
    pck,
)

seeds = st.integers(0, 999)


def poses(seed: int, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 17, 3)) * 0.4


@given(seed=seeds)
def test_what_each_metric_does_not_see(seed: int) -> None:
    rng, truth = np.random.default_rng(seed), poses(seed)
    scale = rng.uniform(0.2, 3, (6, 1, 1))
    turned = np.stack([Rotation.random(random_state=rng).apply(pose) for pose in truth])
    similar = scale * turned + rng.normal(size=(6, 1, 3))
    assert p_mpjpe(similar, truth) < 1e-12
    assert p_mpjpe(similar * [1, 1, -1], truth) > 0.05  # no mirror
    assert n_mpjpe(scale * truth, truth) < 1e-12
    assert mpjve(truth + rng.normal(size=3), truth) < 1e-12
    assert min(mpjpe(similar, truth), n_mpjpe(similar, truth), mpjve(similar, truth)) > 0.01
    assert mpjpe(truth, truth) == 0


@given(seed=seeds)
def test_alignment_is_the_best_one_in_squares(seed: int) -> None:
    """No similarity near the one that was found does better."""
    from vsuite.video_pose.metrics.pose import align

    rng, truth, found = np.random.default_rng(seed), poses(seed, 1), poses(seed + 1, 1)
    aligned = align(found, truth)
    best = ((aligned - truth) ** 2).sum()
    for _ in range(20):
        turn = Rotation.from_rotvec(0.05 * rng.normal(size=3))
        other = turn.apply(aligned[0]) * rng.uniform(0.95, 1.05) + 0.02 * rng.normal(size=3)
        assert ((other - truth[0]) ** 2).sum() >= best


def test_known_values() -> None:
    truth = np.zeros((2, 4, 3))
    found = truth.copy()
    found[:, :, 0] = [0.0, 0.1, 0.15, 0.3]  # metres
    np.testing.assert_allclose(joint_errors(found, truth), [[0, 0.1, 0.15, 0.3]] * 2)
    assert mpjpe(found, truth) == pytest.approx(0.1375)
    assert mpjpe(found, truth, np.array([1.0, 0, 0, 0])) == 0
    assert pck(found, truth) == 50  # 150 mm is not below 150 mm
    assert auc(found, truth) == pytest.approx(100 * (30 + 10) / 4 / 31)
    assert mpjve(np.stack([found[0], 2 * found[0]]), truth) == pytest.approx(0.1375)


def test_degenerate_poses_have_a_defined_error() -> None:
    truth = poses(0)
    centre = truth.mean(1, keepdims=True)
    want = float(np.linalg.norm(truth - centre, axis=-1).mean())
    assert p_mpjpe(np.ones_like(truth), truth) == pytest.approx(want)
    assert p_mpjpe(truth, np.ones_like(truth)) == pytest.approx(0)
    assert n_mpjpe(np.zeros_like(truth), truth) == pytest.approx(mpjpe(np.zeros_like(truth), truth))


def test_actions_count_alike_and_videos_by_their_frames() -> None:
    def video(name: str, frames: int, error: float) -> tuple[str, np.ndarray, np.ndarray]:
        truth = poses(frames, frames)
        found = truth.copy()
        found[:, 3, 1] += 17 * error
        return name, found, truth

    report = evaluate_poses([video("Walking 1", 4, 0.01), video("Walking", 8, 0.04), video("Sitting", 3, 0.02)])
    assert report.actions["Walking"]["mpjpe"] == pytest.approx(30)
    assert report.actions["Sitting"]["mpjpe"] == pytest.approx(20)
    assert report.average["mpjpe"] == pytest.approx(25)
    assert report.average["mpjve"] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(report.joints, [17 * 25 if joint == 3 else 0 for joint in range(17)], atol=1e-9)
    assert report.num_frames == 15
    assert set(report.average) == set(METRICS) == set(UNITS) == set(DEFINITIONS)


def test_what_is_refused() -> None:
    truth = poses(0)
    with pytest.raises(InputError, match=r"\(T, J, 3\) of one shape; got \(6, 17, 3\) and \(5, 17, 3\)"):
        mpjpe(truth, truth[:5])
    with pytest.raises(InputError, match="of one shape"):
        mpjpe(truth[:0], truth[:0])
    with pytest.raises(InputError, match="NaN or infinite"):
        p_mpjpe(np.full_like(truth, np.nan), truth)
    with pytest.raises(InputError, match="2 or more successive frames"):
        mpjve(truth[:1], truth[:1])
    with pytest.raises(InputError, match="video 'Eating 1': predicted and true"):
        evaluate_poses([("Eating 1", truth, truth[:, :16])])
    with pytest.raises(InputError, match="same number of joints"):
        evaluate_poses([("Eating", truth, truth), ("Eating 1", truth[:, :16], truth[:, :16])])
    with pytest.raises(InputError, match="one or more videos"):
        evaluate_poses([])
