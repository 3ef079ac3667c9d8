"""3D poses from 2D detections: the model kept in memory, and batches of files."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.batch import Summary, check_names, check_results, complaint
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path, write_text
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.terminal import console
from vsuite.video_pose.cameras import locate_root, normalize_screen
from vsuite.video_pose.data.detection_files import Detections
from vsuite.video_pose.data.detections import find_detections, read_detections
from vsuite.video_pose.data.tracks import filled, follow
from vsuite.video_pose.data.videos import Facts, stream_frames, video_facts
from vsuite.video_pose.lift.bvh import write_bvh
from vsuite.video_pose.lift.note import Note
from vsuite.video_pose.notes import load_model
from vsuite.video_pose.skeletons import Skeleton, skeleton

Array = NDArray[np.float32]

SHIPPED = "convformer_mocap"
FORMATS = ("npz", "json", "bvh")
SAME_RATE = 0.05  # rates that differ by less are one
MOST_OUTSIDE = 0.2  # share of the joints that detectors put outside of a picture, where people are cut off


@dataclass(frozen=True)
class Lifted:
    """The 3D poses of one person.

    Attributes:
        poses: T, J, 3, camera space (x right, y down, z ahead), metres, relative to the root.
        root: T, 3: where the root is in camera space, metres; None where no camera is known.
        field_of_view: that `root` was found with, degrees.
    """

    poses: Array
    root: Array | None
    field_of_view: float | None

    @property
    def placed(self) -> Array:
        """The poses where they stand, or about the origin where that is not known."""
        return self.poses if self.root is None else self.poses + self.root[:, None]


class Predictor:
    """A lifter kept in memory for any number of videos.

    Args:
        source: weights that `vsuite-pose train` saved, a run folder, or the name of shipped weights.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Raises:
        InputError: for files that are no weights of a lifter.
    """

    def __init__(self, source: str | Path = SHIPPED, *, device: str | torch.device | None = None, precision: Precision = "fp32") -> None:
        check_precision(precision)
        network, self.note = load_model(source, "lift", Note)
        self.layout = skeleton(self.note.layout)
        self.device, self.precision = pick_device(device), precision
        self.model: Any = optimize_for_inference(network, precision=precision).to(self.device)

    def lift(
        self, points: Array, size: tuple[int, int], *, fps: float | None = None, flip: bool = True, field_of_view: float | None = None
    ) -> Lifted:
        """The 3D poses of a video; each frame is looked at once.

        Args:
            points: (T, J, 2) pixels, in the model's layout (`self.layout`), nothing missing.
            size: width and height of the picture, pixels.
            fps: frames a second; another rate than the one that the model knows is brought to that in time, and back. None: the same.
            flip: lift the mirrored video too, and average.
            field_of_view: of the camera over the width, degrees; None assumes that of the cameras that the model learnt from.

        Raises:
            InputError: for other shapes, fewer than 2 frames, NaN, coordinates that are no pixels, and impossible rates and angles.
        """
        self.layout.check(points)
        if points.ndim != 3 or points.shape[2] != 2 or len(points) < 2:
            raise InputError(f"poses must be (T, {self.layout.num_joints}, 2) with 2 or more frames; got {points.shape}")
        if not np.isfinite(points).all():
            raise InputError("poses hold NaN or infinite coordinates")
        if float(np.ptp(points, axis=(0, 1)).max()) < 4:
            raise InputError("all joints lie within 4 pixels: the coordinates must be pixels, not shares of the picture")
        if fps is not None and not 1 <= fps <= 1000:
            raise InputError(f"fps must be from 1 to 1000 frames a second; got {fps:g}")
        if field_of_view is not None and not 0 < field_of_view < 180:
            raise InputError(f"field_of_view must be between 0 and 180 degrees; got {field_of_view:g}")
        screen = normalize_screen(points.astype(np.float32), *size)
        rate = None if fps is None or abs(fps / self.note.fps - 1) < SAME_RATE else fps
        seen = screen if rate is None else _at_rate(screen, rate, self.note.fps)
        with torch.inference_mode(), autocast(self.device, self.precision):
            found = self.model.lift(torch.from_numpy(seen).to(self.device), flip=self.layout if flip else None, batch_size=256)
        poses = found.float().cpu().numpy()
        if rate is not None:
            poses = _at_times(poses, np.arange(len(points)) * self.note.fps / rate)
        poses = poses - poses[:, self.layout.root :][:, :1]
        view = field_of_view or self.note.field_of_view
        root = None
        if view is not None:
            focal = 1 / np.tan(np.radians(view) / 2)
            root = locate_root(screen, poses, [focal, focal, 0, 0, 0, 0, 0, 0, 0])
        return Lifted(poses, root, view)


def _at_rate(values: Array, before: float, after: float) -> Array:
    count = max(2, round((len(values) - 1) * after / before) + 1)
    return _at_times(values, np.arange(count) * before / after)


def _at_times(values: Array, times: NDArray[np.floating]) -> Array:
    """Values (T, ...) at other times, in frames, between the nearest two."""
    times = times.clip(0, len(values) - 1)
    before = np.minimum(times.astype(int), len(values) - 2) if len(values) > 1 else times.astype(int)
    share = (times - before).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    return values[before] * (1 - share) + values[np.minimum(before + 1, len(values) - 1)] * share


@dataclass(frozen=True)
class Options:
    """How files are read, lifted and written.

    Attributes:
        formats: of `FORMATS`. render: "mp4" or "gif", a film of 2D beside 3D. page: write NAME.html, which shows the 3D poses.
        video: file that the 2D poses are from, for one input: they are drawn over it, and it says size and rate where nothing else does.
        layout, sort: see `read_detections`. most: people of a video, at the most.
        size: width and height of the picture, where the file does not say. fps: frames a second, where it does not.
        flip, field_of_view: see `Predictor.lift`.
        overwrite: replace results that are there.
    """

    formats: tuple[str, ...] = ("npz", "json")
    render: str | None = None
    page: bool = False
    video: Path | None = None
    layout: str | None = None
    sort: bool = False
    most: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    flip: bool = True
    field_of_view: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise unknown("format", name, FORMATS)
        if self.layout is not None:
            skeleton(self.layout)

    def endings(self) -> list[str]:
        """What results are called behind the video's name; poses of several people stand in one JSON, and else in a file each."""
        return [*self.formats, *([self.render] if self.render else []), *(["html"] if self.page else [])]


@dataclass(frozen=True)
class Person:
    """Who was lifted: number, first frame as the file numbers it, 2D poses in the model's layout (T, J, 2), which of it was filled in
    (T, J), 3D poses."""

    number: int
    first: int
    points: Array
    made: NDArray[np.bool_]
    lifted: Lifted


def predict_files(predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, options: Options | None = None) -> Summary:
    """Lifts every person in every file. Files that cannot be used do not stop the others.

    Args:
        inputs: files, folders (of OpenPose's, or with such files in them) and patterns.
        out: folder of the results, NAME.npz and so on.

    Raises:
        InputError: where nothing that was given is there, two inputs have one name, or results are there: before anything is computed.
    """
    options, out = options or Options(), Path(out)
    paths, missing = find_detections(inputs)
    names = [path.stem if path.is_file() else path.name for path in paths]
    check_names(names)
    if options.video is not None and len(paths) > 1:
        raise InputError(f"{options.video}: is one video, and there are {len(paths)} inputs; lift its poses alone")
    for name in names:
        _refuse_existing(out, name, options)
    summary, taken = Summary(failed=missing), set(names)
    with console(stderr=True).status("") as status:
        for number, path in enumerate(paths, 1):
            status.update(f"{number} of {len(paths)}: {path.name}")
            try:
                videos = read_detections(path, layout=options.layout, sort=options.sort)
                if options.video is not None and len(videos) > 1:
                    raise InputError(f"holds poses of {len(videos)} videos, and {options.video} is one")
            except InputError as error:
                summary.failed.append(complaint(error, path))
                continue
            for video in videos:
                try:
                    if video.name != names[number - 1]:  # a file may name its videos
                        check_names([*taken, video.name])
                        _refuse_existing(out, video.name, options)
                        taken.add(video.name)
                    summary.lines.append(_lift_video(predictor, video, out, options))
                except InputError as error:
                    summary.failed.append(complaint(error, path))
    return summary


def _refuse_existing(out: Path, name: str, options: Options) -> None:
    for ending in options.endings():
        of_people = [path.name for path in out.glob(f"{glob.escape(name)}_person*.{ending}")]
        check_results(out, [f"{name}.{ending}", *of_people], overwrite=options.overwrite)


def _lift_video(predictor: Predictor, video: Detections, out: Path, options: Options) -> str:
    film = None if options.video is None else video_facts(options.video)
    size = options.size or video.size or (film.size if film else None)
    if size is None:
        raise InputError(f"{video.name}: does not say how large the picture is; give --size WIDTHxHEIGHT")
    if options.size is not None and video.size not in (None, options.size):
        raise InputError(f"{video.name}: its picture is {video.size[0]}x{video.size[1]}, and --size says {size[0]}x{size[1]}")
    if film is not None:
        _check_film(film, video, size, options)
    fps = options.fps or video.fps or (film.fps if film else None)
    people, left_out = lift_people(predictor, video, size, fps, options)
    _write(people, video, out, options, predictor, size, fps or predictor.note.fps)
    made = sum(int(person.made.any(axis=1).sum()) for person in people)
    frames = sum(len(person.points) for person in people)
    told = [f"{video.name}: {len(people)} {'person' if len(people) == 1 else 'people'}, {frames} poses"]
    if made:
        told.append(f"{made} of {frames} with joints interpolated")
    if fps is None:
        told.append(f"taken as {predictor.note.fps:g} frames a second (--fps)")
    view = people[0].lifted.field_of_view
    source = "as given" if options.field_of_view else "assumed"
    told.append(f"placed by a field of view of {view:g} degrees, {source}" if view else "root-relative: no camera is known (--fov)")
    told += [*_doubts(people, predictor.layout, size), *left_out]
    return "; ".join(told)


def _check_film(film: Facts, video: Detections, size: tuple[int, int], options: Options) -> None:
    """Raises `InputError` where poses cannot be drawn over a film."""
    if film.size != size:
        raise InputError(f"{options.video}: is {film.size[0]}x{film.size[1]}, and the poses of {video.name} lie in {size[0]}x{size[1]}")
    last = _first_of(film, video) + video.num_frames
    if last > film.num_frames:
        raise InputError(f"{options.video}: has {film.num_frames} frames, and the poses of {video.name} go up to frame {last}")


def _first_of(film: Facts, video: Detections) -> int:
    """The film's frame that the first poses belong to: its first where it has as many frames as there are poses."""
    return 0 if film.num_frames == video.num_frames else video.start


def lift_people(
    predictor: Predictor, video: Detections, size: tuple[int, int], fps: float | None, options: Options
) -> tuple[list[Person], list[str]]:
    """Every person of a video, with 2D poses in the model's layout; and why others are left out, such as those half out of the picture.

    Raises:
        InputError: where nobody is left.
    """
    found, left_out = [], []
    for track in follow(video, most=options.most):
        try:
            points, made = filled(track, predictor.layout)
            lifted = predictor.lift(points, size, fps=fps, flip=options.flip, field_of_view=options.field_of_view)
        except InputError as error:
            left_out.append(f"left out: {error}")
            continue
        found.append(Person(track.number, track.first + video.start, points, made, lifted))
    if not found:
        raise InputError(f"{video.name}: {left_out[0].removeprefix('left out: ')}")
    return found, left_out


def _doubts(people: Sequence[Person], layout: Skeleton, size: tuple[int, int]) -> list[str]:
    """What looks like a picture of another size, or upside down."""
    points = np.concatenate([person.points.reshape(-1, 2) for person in people])
    outside = float(((points < 0) | (points > size)).any(axis=1).mean())
    doubts = []
    if outside > MOST_OUTSIDE:
        doubts.append(f"{100 * outside:.0f} % of the joints lie outside of the picture of {size[0]}x{size[1]}: is that its size?")
    head, *ankles = (layout.names.index(name) for name in ("head", "left_ankle", "right_ankle"))
    turned = [p.number for p in people if np.median(p.points[:, head, 1] - p.points[:, ankles, 1].mean(axis=1)) > 0]
    if turned:
        doubts.append(f"the head of person {turned[0]} is below the feet: is the picture upside down, or the layout another?")
    return doubts


def _write(
    people: list[Person], video: Detections, out: Path, options: Options, predictor: Predictor, size: tuple[int, int], fps: float
) -> None:
    names = {person.number: video.name if len(people) == 1 else f"{video.name}_person{person.number}" for person in people}
    for person in people:
        if "npz" in options.formats:
            _write_npz(out / f"{names[person.number]}.npz", person, predictor.layout.name, size, fps)
        if "bvh" in options.formats:
            write_bvh(person.lifted.placed, out / f"{names[person.number]}.bvh", skeleton=predictor.layout, fps=fps)
    if "json" in options.formats:
        _write_json(out / f"{video.name}.json", people, predictor.layout.name, size, fps)
    if options.render or options.page:
        _show(people, video, out, options, predictor, size, fps)


def _write_npz(path: Path, person: Person, layout: str, size: tuple[int, int], fps: float) -> None:
    lifted = person.lifted
    root = np.full((len(lifted.poses), 3), np.nan, np.float32) if lifted.root is None else lifted.root
    arrays: dict[str, Any] = {"poses_3d": lifted.poses, "root": root, "poses_2d": person.points, "interpolated": person.made}
    arrays |= {"layout": layout, "fps": fps, "size": size, "first_frame": person.first, "person": person.number, "units": "m"}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _write_json(path: Path, people: Sequence[Person], layout: str, size: tuple[int, int], fps: float) -> None:
    names = list(skeleton(layout).names)
    entries = [
        {
            "person": person.number,
            "first_frame": person.first,
            "poses_3d": _rounded(person.lifted.poses),
            "root": None if person.lifted.root is None else _rounded(person.lifted.root),
            "interpolated_frames": (np.flatnonzero(person.made.any(axis=1)) + person.first).tolist(),
        }
        for person in people
    ]
    view = people[0].lifted.field_of_view
    facts = {"layout": layout, "joints": names, "units": "m", "space": "camera: x right, y down, z ahead; poses relative to the root"}
    content = {**facts, "fps": fps, "size": list(size), "assumed_field_of_view": view, "people": entries}
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def _rounded(values: Array) -> list[Any]:
    return np.round(values.astype(np.float64), 5).tolist()  # hundredths of a millimetre


def _show(
    people: list[Person], video: Detections, out: Path, options: Options, predictor: Predictor, size: tuple[int, int], fps: float
) -> None:
    """The film and the page; people are absent, NaN, before and after their frames."""
    total = max(person.first + len(person.points) for person in people) - video.start

    def whole(values: Array, first: int) -> Array:
        frames = np.full((total, *values.shape[1:]), np.nan, np.float32)
        frames[first : first + len(values)] = values
        return frames

    flat = [whole(person.points, person.first - video.start) for person in people]
    deep = [whole(person.lifted.placed, person.first - video.start) for person in people]
    if options.render:
        from vsuite.video_pose.render.film import render_lift

        path = out / f"{video.name}.{options.render}"
        frames = None
        if options.video is not None:
            frames = itertools.islice(stream_frames(options.video), _first_of(video_facts(options.video), video), None)
        layout = predictor.layout
        render_lift(flat, deep, path, size=size, fps=fps, skeleton2d=layout, skeleton3d=layout, frames=frames)
    if options.page:
        from vsuite.video_pose.render.page import write_player

        names = [f"person {person.number}" for person in people]
        write_player(deep, out / f"{video.name}.html", skeleton=predictor.layout, fps=fps, title=video.name, names=names)
