"""BVH files, read back by a small reader of their own: hierarchy, channels, forward kinematics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.video_pose.lift.bvh import write_bvh
from vsuite.video_pose.lift.walk import make_walk
from vsuite.video_pose.skeletons import H36M17

TURNS = {
    "X": lambda c, s: np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
    "Y": lambda c, s: np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
    "Z": lambda c, s: np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
}


def read_bvh(path: Path) -> tuple[dict[str, np.ndarray], float]:
    """Places of all joints, name -> (T, 3), by forward kinematics as the format defines it, and the time of a frame."""
    words = path.read_text().split()
    joints: list[tuple[str, str | None, list[float], list[str]]] = []
    place, stack = 1, []
    while words[place] != "MOTION":
        word = words[place]
        if word in ("ROOT", "JOINT", "End"):
            name = words[place + 1] if word != "End" else f"{stack[-1]}_end"
            joints.append((name, stack[-1] if stack else None, [], []))
            stack.append(name)
            place += 2
        elif word == "}":
            stack.pop()
            place += 1
        elif word == "OFFSET":
            joints[-1][2].extend(map(float, words[place + 1 : place + 4]))
            place += 4
        elif word == "CHANNELS":
            count = int(words[place + 1])
            joints[-1][3].extend(words[place + 2 : place + 2 + count])
            place += 2 + count
        else:
            place += 1  # {
    assert words[place + 1] == "Frames:"
    count, seconds = int(words[place + 2]), float(words[place + 5])
    values = np.array(words[place + 6 :], float).reshape(count, -1)
    assert values.shape[1] == sum(len(channels) for *_, channels in joints)
    places = {name: np.zeros((count, 3)) for name, *_ in joints}
    for frame, line in enumerate(values):
        numbers, turns, spots = iter(line), {}, {}
        for name, parent, offset, channels in joints:
            shift, turn = np.array(offset), np.eye(3)
            for channel in channels:
                value = next(numbers)
                if channel.endswith("position"):
                    shift = shift + value * np.eye(3)["XYZ".index(channel[0])]
                else:
                    turn = turn @ TURNS[channel[0]](np.cos(np.radians(value)), np.sin(np.radians(value)))
            above = (np.eye(3), np.zeros(3)) if parent is None else (turns[parent], spots[parent])
            turns[name], spots[name] = above[0] @ turn, above[1] + above[0] @ shift
            places[name][frame] = spots[name]
    return places, seconds


def came_back(poses: np.ndarray, path: Path, fps: float = 60.0) -> np.ndarray:
    write_bvh(poses, path, skeleton=H36M17, fps=fps)
    places, seconds = read_bvh(path)
    assert seconds == pytest.approx(1 / fps, abs=1e-8)
    return np.stack([places[name] for name in H36M17.names], axis=1) / 100 * [1, -1, -1]


def in_camera(walk: np.ndarray) -> np.ndarray:
    return walk * [1, -1, -1] + [0, 1, 4]


def test_bones_of_fixed_length_come_back_exactly(tmp_path: Path) -> None:
    poses = in_camera(make_walk(0.5, seed=1))
    np.testing.assert_allclose(came_back(poses, tmp_path / "a.bvh"), poses, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_pose_of_fixed_bones_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Directions at random, so that limbs bend in ways that no body can."""
    rng = np.random.default_rng(seed)
    poses = np.zeros((3, 17, 3))
    poses[:, 0] = rng.normal(size=(3, 3))
    for joint, parent in sorted(H36M17.bones, key=lambda bone: bone[0]):
        direction = rng.normal(size=(3, 3))
        poses[:, joint] = poses[:, parent] + (0.1 + 0.02 * joint) * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    path = tmp_path_factory.mktemp("bvh") / "a.bvh"
    np.testing.assert_allclose(came_back(poses, path), poses, atol=2e-5)


def test_bones_that_change_their_length_take_the_mean(tmp_path: Path) -> None:
    poses = in_camera(make_walk(0.2)).astype(np.float64)
    poses += np.random.default_rng(0).normal(scale=0.01, size=poses.shape)
    back = came_back(poses, tmp_path / "a.bvh")
    for joint, parent in H36M17.bones:
        bone = poses[:, joint] - poses[:, parent]
        found = back[:, joint] - back[:, parent]
        lengths = np.linalg.norm(bone, axis=1)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths.mean(), atol=2e-5)
        np.testing.assert_allclose(found / lengths.mean(), bone / lengths[:, None], atol=5e-4)  # directions stay


def test_the_body_turns_with_hips_and_shoulders(tmp_path: Path) -> None:
    """The root's own rotation follows the walker's heading: half a circle turns it by half a turn."""
    poses = in_camera(make_walk(5.2, radius=2.0))  # 6.24 m on a circle of 12.6 m
    write_bvh(poses, tmp_path / "a.bvh", skeleton=H36M17, fps=60)
    motion = np.array([line.split() for line in (tmp_path / "a.bvh").read_text().splitlines()[-len(poses) :]], float)
    heading = np.unwrap(np.radians(motion[:, 5]))
    assert abs(heading[-1] - heading[0]) == pytest.approx(np.pi, abs=0.1)


def test_bad_motions(tmp_path: Path) -> None:
    for poses, fps, message in (
        (np.zeros((2, 16, 3)), 60.0, "layout h36m17"),
        (np.full((2, 17, 3), np.nan), 60.0, "finite"),
        (np.zeros((2, 17, 3)), 0.0, "fps must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            write_bvh(poses, tmp_path / "a.bvh", skeleton=H36M17, fps=fps)
    assert not list(tmp_path.iterdir())
