"""Films of lifted poses: the 2D detection beside the 3D skeleton, drawn frame by frame."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.render.stage import PERSON_COLOURS, People, Stage, Up, grid_step, people_of, set_stage, side_colours
from vsuite.video_pose.render.writer import Frame, Progress, check_film, film_writer, quiet
from vsuite.video_pose.skeletons import Skeleton

Colour = tuple[int, int, int]

HEIGHT = 480  # pixels of the film
GROUND, LINES, SHADOW, TEXT = (16, 18, 22), (51, 57, 68), (38, 42, 50), (200, 205, 214)
FIELD_OF_VIEW = np.deg2rad(35)
ELEVATION = np.deg2rad(15)
FIRST_TURN = 25.0  # degrees off the camera's own view, so that depth shows


def render_lift(
    poses_2d: People,
    poses_3d: People,
    path: str | Path,
    *,
    size: tuple[int, int],
    fps: float,
    skeleton2d: Skeleton,
    skeleton3d: Skeleton,
    frames: Iterable[Frame] | None = None,
    up: Up = "-y",
    turn: float = 12.0,
    progress: Progress = quiet,
) -> Path:
    """Writes a film: on the left the 2D poses, over the video where it is given, on the right the 3D ones on a ground.

    Frame after frame is drawn and written, so memory does not grow with the film. The left side of the body is blue, the right one orange.

    Args:
        poses_2d: (T, J, 2) in pixels, or with a confidence (T, J, 3), which counts as absent where it is 0; several people as a sequence.
        poses_3d: (T, J', 3), of the same people. NaN where a joint is absent.
        path: ends in .mp4 or .gif.
        size: width and height of the picture that `poses_2d` lie in.
        fps: frames a second.
        frames: of the video, (height, width, 3) uint8 RGB each, as many as poses at least.
        up: the axis of `poses_3d` that points up: "-y" in a camera's frame.
        turn: degrees a second by which the view goes round the 3D poses; 0 stands still.
        progress: told how many frames are done, and of how many.

    Raises:
        InputError: for poses of other shapes or lengths, poses without one finite joint, fewer frames than poses, and an unknown ending.
    """
    path = check_film(path, fps)
    if min(size) < 1:
        raise InputError(f"size is the width and the height of the picture in pixels; got {tuple(size)}")
    flat, stage = _flat(poses_2d, skeleton2d), set_stage(poses_3d, skeleton3d, up)
    total = len(flat[0])
    if total != len(stage.people[0]):
        raise InputError(f"2D and 3D poses must be of the same frames; got {total} and {len(stage.people[0])}")
    scale = min(HEIGHT / size[1], 2 * HEIGHT / size[0])
    shown = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    width = shown[0] + shown[0] % 2
    left = _Picture(flat, skeleton2d, (width, HEIGHT), shown, scale)
    right = _View(stage, skeleton3d, (HEIGHT, HEIGHT))
    video = _given(frames, total)
    with film_writer(path, fps, (width + HEIGHT, HEIGHT)) as write:
        for number in range(total):
            angle = FIRST_TURN + turn * number / fps
            write(np.concatenate([left.draw(number, next(video)), right.draw(number, angle)], axis=1))
            progress(number + 1, total)
    return path


def _flat(poses: People, skeleton: Skeleton) -> list[NDArray[np.float32]]:
    people = people_of(poses, skeleton, (2, 3))
    return [np.where(person[..., 2:] > 0, person[..., :2], np.nan) if person.shape[2] == 3 else person for person in people]


def _given(frames: Iterable[Frame] | None, total: int) -> Iterator[Frame | None]:
    if frames is None:
        while True:
            yield None
    count = 0
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(f"frames of a video are (height, width, 3) uint8; got {frame.shape} {frame.dtype}")
        yield frame
        count += 1
    raise InputError(f"the video has {count} frames and there are poses of {total}")


@dataclass(frozen=True)
class _Picture:
    """The 2D poses on a picture of size `shown`, in the middle of a panel of `size`."""

    people: Sequence[NDArray[np.float32]]
    skeleton: Skeleton
    size: tuple[int, int]
    shown: tuple[int, int]
    scale: float

    def draw(self, number: int, frame: Frame | None) -> Frame:
        import cv2

        width, height = self.shown
        if frame is None:
            picture = np.full((height, width, 3), GROUND, np.uint8)
            cv2.rectangle(picture, (0, 0), (width - 1, height - 1), LINES, 1)
        else:
            picture = np.ascontiguousarray(cv2.resize(frame, self.shown, interpolation=cv2.INTER_AREA))
        for person, colours in zip(self.people, _colours(self.skeleton, len(self.people)), strict=True):
            places = person[number] * self.scale
            _draw_skeleton(picture, places, self.skeleton, colours, np.full(len(places), 3.0))
        canvas = np.full((self.size[1], self.size[0], 3), GROUND, np.uint8)
        top = (self.size[1] - height) // 2
        canvas[top : top + height, :width] = picture
        return canvas


@dataclass(frozen=True)
class _View:
    """The 3D poses, seen by a camera that looks at the middle of the stage."""

    stage: Stage
    skeleton: Skeleton
    size: tuple[int, int]

    def draw(self, number: int, degrees: float) -> Frame:
        import cv2

        width, height = self.size
        canvas = np.full((height, width, 3), GROUND, np.uint8)
        self._lines(canvas, self._grid, degrees, LINES)
        poses = [person[number] for person in self.stage.people]
        shadows = np.stack(poses)[:, self.skeleton.bones].reshape(-1, 2, 3) * (1, 1, 0)
        self._lines(canvas, shadows, degrees, SHADOW, 4)
        seen = [self._project(pose, degrees) for pose in poses]
        colours = _colours(self.skeleton, len(poses))
        distances = np.array([np.nanmean(depth) if np.isfinite(depth).any() else np.inf for _, depth in seen])
        for person in np.argsort(distances)[::-1]:  # the farthest first
            places, depth = seen[person]
            _draw_skeleton(canvas, places, self.skeleton, colours[person], 4.0 * self._distance / depth)
        cv2.putText(canvas, str(number), (10, height - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.45, TEXT, 1, cv2.LINE_AA)
        return canvas

    @property
    def _distance(self) -> float:
        return self.stage.radius / np.sin(FIELD_OF_VIEW / 2)

    @functools.cached_property
    def _grid(self) -> NDArray[np.float64]:
        """Segments (N, 2, 3) of the ground's lines, short enough for each to lie before the camera or behind it."""
        step, (x, y, _) = grid_step(self.stage.radius), self.stage.centre
        reach = np.arange(-5, 6) * step
        middle = np.round(np.array([x, y]) / step) * step
        along = [[[offset, a, 0], [offset, b, 0]] for offset in reach for a, b in itertools.pairwise(reach)]
        lines = np.array([*along, *np.array(along)[..., [1, 0, 2]]])
        return np.asarray(lines + np.array([*middle, 0]))

    def _project(self, points: NDArray, degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """N, 3 -> pixels (N, 2) and depth (N); NaN for what is absent or behind the camera. At 0 degrees the view is along +y."""
        angle = np.deg2rad(degrees)
        away = np.array([np.sin(angle) * np.cos(ELEVATION), np.cos(angle) * np.cos(ELEVATION), -np.sin(ELEVATION)])
        right = np.array([np.cos(angle), -np.sin(angle), 0])
        axes = np.stack([right, np.cross(away, right), away])  # right, down, away
        x, y, depth = axes @ (points - self.stage.centre).T
        depth = depth + self._distance
        depth = np.where(depth > 0.05 * self._distance, depth, np.nan)
        focal = self.size[1] / 2 / np.tan(FIELD_OF_VIEW / 2)
        return np.stack([self.size[0] / 2 + focal * x / depth, self.size[1] / 2 + focal * y / depth], axis=-1), depth

    def _lines(self, canvas: Frame, segments: NDArray, degrees: float, colour: Colour, thickness: int = 1) -> None:
        """segments: N, 2, 3; those with an end that is absent or behind the camera are left out."""
        places, _ = self._project(segments.reshape(-1, 3), degrees)
        _segments(canvas, places.reshape(-1, 2, 2), [colour] * len(segments), [thickness] * len(segments))


def _colours(skeleton: Skeleton, count: int) -> list[list[Colour]]:
    """Of each person the colour of every joint: by side of the body; of several people the middles have colours of their own."""
    if count == 1:
        return [side_colours(skeleton)]
    return [side_colours(skeleton, PERSON_COLOURS[(2 + person) % len(PERSON_COLOURS)]) for person in range(count)]


def _draw_skeleton(canvas: Frame, places: NDArray, skeleton: Skeleton, colours: Sequence[Colour], widths: NDArray) -> None:
    """Bones and joints at places (J, 2), in pixels; NaN is left out."""
    thickness = np.maximum(1, np.nan_to_num(widths, nan=1).round()).astype(int).tolist()
    joints = [joint for joint, _ in skeleton.bones]
    _segments(canvas, places[np.array(skeleton.bones)], [colours[joint] for joint in joints], [thickness[joint] for joint in joints])
    for place, colour, width in zip(places, colours, widths, strict=True):
        if np.isfinite(place).all():
            _dot(canvas, place, colour, max(1.0, 1.1 * float(width)))


FAR = 1 << 14  # pixels; opencv's fixed point overflows not far beyond
SHIFT = 4  # bits of a pixel that opencv's drawing takes


def _segments(canvas: Frame, places: NDArray, colours: Sequence[Colour], thickness: Sequence[int]) -> None:
    """places: N, 2 ends, 2; in pixels. Segments with NaN are left out."""
    import cv2

    whole = np.isfinite(places).all(axis=(1, 2)).tolist()
    ends = np.round(np.clip(np.nan_to_num(places), -FAR, FAR) * (1 << SHIFT)).astype(int).tolist()
    for (start, end), colour, width, there in zip(ends, colours, thickness, whole, strict=True):
        if there:
            cv2.line(canvas, start, end, colour, width, cv2.LINE_AA, SHIFT)


def _dot(canvas: Frame, place: NDArray, colour: Colour, radius: float) -> None:
    import cv2

    x, y = (int(v) for v in np.round(np.clip(place, -FAR, FAR) * (1 << SHIFT)))
    cv2.circle(canvas, (x, y), round(radius * (1 << SHIFT)), colour, -1, cv2.LINE_AA, SHIFT)
