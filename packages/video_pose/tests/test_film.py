"""Films of poses: what the pixels show, that files are whole or absent, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vsuite.core.errors import InputError
from vsuite.video_pose.render import writer
from vsuite.video_pose.render.film import HEIGHT, render_lift
from vsuite.video_pose.render.stage import LEFT, RIGHT, grid_step, set_stage
from vsuite.video_pose.skeletons import COCO17, H36M17

FRAMES = 6
SIZE = (320, 240)


def poses(frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Somebody who stands 4 m before a camera (y down, in metres) and lifts the arms; in pixels, and in the camera's frame."""
    pose = np.zeros((17, 3))
    for joint, name in enumerate(H36M17.names):
        side = 1 if "left" in name else -1 if "right" in name else 0  # the left side is at larger x: seen from the front
        heights = {"knee": 0.5, "ankle": 0.9, "spine": -0.2, "thorax": -0.5, "neck": -0.6, "head": -0.7, "shoulder": -0.5}
        height = next((value for part, value in heights.items() if part in name), 0.0)
        pose[joint] = 0.2 * side, height, 4
        if "elbow" in name or "wrist" in name:
            pose[joint] = side * (0.4 if "elbow" in name else 0.6), -0.3, 4
    video = np.repeat(pose[None], frames, axis=0)
    for joint in (12, 13, 15, 16):
        video[:, joint, 1] -= np.linspace(0, 0.5, frames)
    return video[..., :2] / video[..., 2:] * 200 + np.array(SIZE) / 2, video


def render(path: Path, **changes: object) -> Path:
    flat, deep = poses()
    given = {"size": SIZE, "fps": 10, "skeleton2d": H36M17, "skeleton3d": H36M17} | changes
    return render_lift(given.pop("poses_2d", flat), given.pop("poses_3d", deep), path, **given)


def read(path: Path) -> np.ndarray:
    """Frames, RGB."""
    if path.suffix == ".gif":
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    import cv2

    video, frames = cv2.VideoCapture(str(path)), []
    while (found := video.read())[0]:
        frames.append(found[1][..., ::-1])
    return np.stack(frames)


def near(frame: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    return (np.abs(frame.astype(int) - colour).max(axis=-1) < tolerance).nonzero()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_both_panels_show_left_and_right_where_they_are(tmp_path: Path, suffix: str) -> None:
    seen: list[tuple[int, int]] = []
    frames = read(render(tmp_path / f"film{suffix}", progress=lambda done, total: seen.append((done, total))))
    width = SIZE[0] * HEIGHT // SIZE[1]
    assert frames.shape == (FRAMES, HEIGHT, width + HEIGHT, 3)
    assert seen == [(number + 1, FRAMES) for number in range(FRAMES)]
    for panel in (frames[0][:, :width], frames[0][:, width:]):
        left, right = near(panel, LEFT), near(panel, RIGHT)
        assert min(len(left[0]), len(right[0])) > 100
        assert left[1].mean() > right[1].mean() + 20, "the left side is at the right of somebody who faces the camera"
    assert near(frames[-1][:, :width], LEFT)[0].min() < near(frames[0][:, :width], LEFT)[0].min() - 20, "the arm rises"
    assert not list(tmp_path.glob(".*"))


def test_the_detection_lies_over_the_video(tmp_path: Path) -> None:
    video = np.full((FRAMES, 240, 320, 3), (20, 120, 40), np.uint8)
    frames = read(render(tmp_path / "film.gif", frames=iter(video)))
    assert len(near(frames[0][:, :640], (20, 120, 40))[0]) > 0.8 * HEIGHT * 640
    assert len(near(frames[0][:, :640], RIGHT)[0]) > 100


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_are_taken_one_by_one(tmp_path: Path, suffix: str) -> None:
    taken = 0

    def video() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(FRAMES):
            taken += 1
            yield np.zeros((24, 32, 3), np.uint8)

    ahead: list[int] = []
    render(tmp_path / f"film{suffix}", frames=video(), progress=lambda done, total: ahead.append(taken - done))
    assert ahead == [0] * FRAMES


def test_a_gif_loops_and_keeps_the_pace(tmp_path: Path) -> None:
    from PIL import Image, ImageSequence

    flat, deep = poses(20)
    with Image.open(render(tmp_path / "film.gif", poses_2d=flat, poses_3d=deep, fps=60)) as image:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert len(times) == 7, "every third frame"
    assert sum(times) == pytest.approx(1000 * 21 / 60, abs=10)


def test_what_is_absent_is_not_drawn_and_two_people_are(tmp_path: Path) -> None:
    flat, deep = poses()
    deep[:, H36M17.left] = np.nan
    flat = np.concatenate([flat, np.ones((*flat.shape[:2], 1))], axis=-1)
    flat[:, H36M17.left, 2] = 0
    frame = read(render(tmp_path / "one.gif", poses_2d=flat, poses_3d=deep))[0]
    assert len(near(frame, LEFT)[0]) == 0
    assert len(near(frame, RIGHT)[0]) > 200
    two = read(render(tmp_path / "two.gif", poses_2d=[flat, flat + np.array([60, 0, 0])], poses_3d=[deep, deep + np.array([1, 0, 0])]))[0]
    assert len(near(two[:, :640], RIGHT)[0]) > 1.7 * len(near(frame[:, :640], RIGHT)[0])


def test_still_films_stand_still_and_others_turn(tmp_path: Path) -> None:
    flat, deep = poses(1)
    same = {"poses_2d": np.repeat(flat, 5, axis=0), "poses_3d": np.repeat(deep, 5, axis=0)}
    still, turning = read(render(tmp_path / "a.gif", turn=0, **same)), read(render(tmp_path / "b.gif", turn=90, **same))
    number = np.s_[:, 440:, 640:700]  # the number of the frame counts on
    still[number] = 0
    assert (still == still[0]).all()
    assert (turning[4, :, 640:] != turning[0, :, 640:]).any(axis=-1).mean() > 0.01


def test_a_wide_picture_keeps_its_shape(tmp_path: Path) -> None:
    flat, _ = poses()
    frame = read(render(tmp_path / "film.gif", poses_2d=flat * (5, 1), size=(1600, 240)))[0]
    assert frame.shape == (HEIGHT, 2 * HEIGHT + HEIGHT, 3)
    picture = frame[:, : 2 * HEIGHT]
    rows = near(picture, LEFT)[0]
    assert HEIGHT / 2 - 72 <= rows.min() < rows.max() <= HEIGHT / 2 + 72, "it lies in the middle, 144 pixels high"


def test_without_ffmpeg_opencv_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(writer.importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else found(name))
    assert len(read(render(tmp_path / "film.mp4"))) == FRAMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poses_3d": poses()[1][:3]}, "same frames; got 6 and 3"),
        ({"poses_3d": poses()[1][:, :16]}, r"h36m17 are \(..., 17, C\)"),
        ({"poses_3d": np.full((FRAMES, 17, 3), np.nan)}, "no joint has a finite place"),
        ({"poses_2d": np.full((FRAMES, 17, 2), np.inf)}, "no joint has a finite place"),
        ({"poses_2d": np.zeros((0, 17, 2))}, "one frame or more"),
        ({"poses_2d": []}, "nobody"),
        ({"poses_3d": [poses()[1], poses()[1][:2]]}, "one number of frames"),
        ({"poses_3d": poses()[0]}, "T, J, 3"),
        ({"skeleton2d": COCO17, "poses_2d": np.ones((FRAMES, 18, 2))}, "coco17"),
        ({"frames": iter(np.zeros((3, 24, 32, 3), np.uint8))}, "has 3 frames and there are poses of 6"),
        ({"frames": iter(np.zeros((9, 24, 32, 3)))}, "uint8"),
        ({"fps": 0}, "rate"),
        ({"fps": float("nan")}, "rate"),
        ({"size": (0, 240)}, "size"),
        ({"up": "x"}, "axis"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_leaves_no_file(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(tmp_path / "film.gif", **changes)
    assert not list(tmp_path.iterdir())


def test_other_endings_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.mp4 or \.gif"):
        render(tmp_path / "film.webm")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        render(tmp_path / "file" / "film.gif")


def test_the_stage_has_z_up_and_its_ground_at_the_lowest_joint() -> None:
    _, deep = poses()
    for up, turned in (("-y", deep), ("y", deep * [1, -1, -1]), ("z", deep[..., [0, 2, 1]] * [1, 1, -1])):
        stage = set_stage(turned, H36M17, up)
        person = stage.people[0]
        assert person[..., 2].min() == pytest.approx(0, abs=1e-6)
        assert person[0, H36M17.names.index("head"), 2] == pytest.approx(1.6, abs=1e-5)
        np.testing.assert_allclose(person[..., 0], deep[..., 0], atol=1e-6)
        np.testing.assert_allclose(person[..., 1], deep[..., 2], atol=1e-6)
        inside = np.linalg.norm(person.reshape(-1, 3) - stage.centre, axis=1)
        assert inside.max() <= stage.radius * (1 + 1e-6)


@pytest.mark.parametrize("radius", [1e-3, 0.9, 4.0, 1234.0])
def test_grid_lines_are_round_numbers_apart(radius: float) -> None:
    step = grid_step(radius)
    assert radius / 4 <= step * (1 + 1e-9) <= radius / 4 * 2.5 * (1 + 1e-6)
    assert round(step / 10 ** np.floor(np.log10(step)), 6) in (1, 2, 5)
