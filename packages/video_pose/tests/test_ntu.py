"""NTU RGB+D's files: what is kept of them, their names and splits, and files that are broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from vsuite.core import InputError
from vsuite.video_pose.data.ntu import parse_name, read_bodies, read_skeleton

Bodies = Mapping[str, Callable[[int], np.ndarray]]


def person(x: float = 0.0, *, wide: bool = False, sway: float = 0.01) -> Callable[[int], np.ndarray]:
    """A body that sways around x: frame -> 25, 3."""
    spread = np.linspace(0, 1, 25)

    def at(frame: int) -> np.ndarray:
        across, up = (spread, 0.5 * spread) if wide else (0.3 * spread, spread)
        return np.stack([x + across + sway * frame, up, np.full(25, 3.0)], axis=1)

    return at


def write(path: Path, frames: list[Bodies]) -> Path:
    """A file of these frames: name of the body -> where it is."""
    lines = [str(len(frames))]
    for number, bodies in enumerate(frames):
        lines.append(str(len(bodies)))
        for name, at in bodies.items():
            lines += [f"{name} 0 1 1 1 1 0 0 0 2", "25", *(" ".join(map(str, [*joint, *[0] * 9])) for joint in at(number).tolist())]
    path.write_text("\n".join(lines))
    return path


def test_two_people_and_frames_without_anyone(tmp_path: Path) -> None:
    slow, quick = person(1.0), person(5.0, sway=0.1)
    frames: list[Bodies] = [{"a": slow, "b": quick} if f % 5 else {} for f in range(20)]
    poses = read_skeleton(write(tmp_path / "x.skeleton", frames))
    assert poses.shape == (2, 16, 25, 3)
    assert poses.dtype == np.float16
    want = np.stack([at(1) for at in (quick, slow)])  # who moves most comes first
    np.testing.assert_allclose(poses[:, 0], want, rtol=2e-3, atol=1e-3)


def test_bodies_that_follow_each_other_share_a_track(tmp_path: Path) -> None:
    frames: list[Bodies] = [{"a": person(1.0)} if f < 15 else {"b": person(2.0)} for f in range(30)]
    poses = read_skeleton(write(tmp_path / "x.skeleton", frames))
    assert poses.shape == (1, 30, 25, 3)
    np.testing.assert_allclose(poses[0, :, 0, 0], [(1 if f < 15 else 2) + 0.01 * f for f in range(30)], rtol=2e-3)


def test_a_body_lost_for_a_while_keeps_its_places(tmp_path: Path) -> None:
    frames: list[Bodies] = [{"a": person(1.0)} | ({} if 5 <= f < 10 else {"b": person(2.0, sway=0.1)}) for f in range(20)]
    poses = read_skeleton(write(tmp_path / "x.skeleton", frames))
    np.testing.assert_allclose(poses[0, 12, 0, 0], 3.2, rtol=2e-3)
    assert not poses[0, 5:10].any()


def test_short_and_wide_bodies_are_dropped(tmp_path: Path) -> None:
    frames: list[Bodies] = [{"a": person(1.0), "chair": person(2.0, wide=True)} | ({"b": person(3.0)} if f < 11 else {}) for f in range(20)]
    path = write(tmp_path / "x.skeleton", frames)
    assert len(read_bodies(path)[0]) == 3
    assert read_skeleton(path).shape[0] == 1
    with pytest.raises(InputError, match="no body has more than 11 frames"):
        read_skeleton(write(tmp_path / "y.skeleton", [{"a": person()}] * 11))


def test_names_and_splits() -> None:
    name = parse_name("folder/S001C002P003R002A013.skeleton")
    assert (name.setup, name.camera, name.performer, name.repetition, name.label) == (1, 2, 3, 2, 12)
    assert [name.trains(split) for split in ("xsub60", "xview", "xsub120", "xset")] == [False, True, False, False]
    other = parse_name("S018C001P103R001A120")
    assert [other.trains(split) for split in ("xsub60", "xview", "xsub120", "xset")] == [False, False, True, True]
    with pytest.raises(InputError, match="SsssCcccPpppRrrrAaaa"):
        parse_name("walking.skeleton")
    with pytest.raises(InputError, match="unknown split 'xsub'"):
        name.trains("xsub")  # type: ignore[arg-type]


def test_broken_files(tmp_path: Path) -> None:
    path = write(tmp_path / "good.skeleton", [{"a": person()}] * 12)
    lines = path.read_text().splitlines()
    cases = {
        "breaks off": lines[:40],
        "whole number": ["many", *lines[1:]],
        "must have 25 joints; got 20": [*lines[:3], "20", *lines[4:]],
        "a joint must be": [*lines[:4], "x y z", *lines[5:]],
        "finite numbers": [*lines[:4], "nan nan nan 0", *lines[5:]],
        "has no body": ["2", "0", "0"],
    }
    for message, content in cases.items():
        broken = tmp_path / "broken.skeleton"
        broken.write_text("\n".join(content))
        with pytest.raises(InputError, match=message):
            read_skeleton(broken)
    with pytest.raises(InputError, match="no such file"):
        read_skeleton(tmp_path / "absent.skeleton")
    (tmp_path / "binary.skeleton").write_bytes(bytes(range(256)))
    with pytest.raises(InputError):
        read_skeleton(tmp_path / "binary.skeleton")
