"""How good a lifter is: errors per action and per joint, from true 2D poses and from disturbed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path, write_csv, write_text
from vsuite.core.terminal import console, new_table
from vsuite.video_pose.cameras import denormalize_screen
from vsuite.video_pose.lift.data import is_h36m
from vsuite.video_pose.lift.h36m import read_h36m
from vsuite.video_pose.lift.mocap import make_videos, read_mocap
from vsuite.video_pose.lift.note import Note
from vsuite.video_pose.lift.pictures import Row, draw_sheet
from vsuite.video_pose.lift.predict import SHIPPED, Predictor
from vsuite.video_pose.lift.settings import LiftSettings
from vsuite.video_pose.lift.videos import Video
from vsuite.video_pose.metrics.pose import DEFINITIONS, UNITS, PoseReport, evaluate_poses
from vsuite.video_pose.outcome import evenly

Split = Literal["unseen", "all"]
PICTURES = 4


def read_test_videos(data: str | Path, note: Note, settings: LiftSettings, split: Split = "unseen") -> tuple[list[Video], str]:
    """The videos to judge by, and a line on what they are.

    Args:
        data: a file of motion capture, which virtual cameras look at (see `make_videos`), or a folder of Human3.6M.
        split: "unseen" leaves out sequences of motion capture that the model has learnt from; of Human3.6M the subjects decide.

    Raises:
        InputError: for what is wrong with the data, and where the model has learnt from all of it.
    """
    if is_h36m(data):
        videos = read_h36m(data, settings.detections, settings.test_subjects)
        return videos, f"subjects {', '.join(settings.test_subjects)}, 2D poses {settings.detections}, every camera and frame"
    sequences = read_mocap(data)
    kept = [sequence for sequence in sequences if split == "all" or sequence.name not in note.trained_on]
    if not kept:
        raise InputError(f"{data}: the model has learnt from all {len(sequences)} sequences; --split all judges by them nevertheless")
    cameras, which = settings.cameras, "all" if split == "all" else "those that the model has not learnt from"
    about = (
        f"{len(kept)} of {len(sequences)} sequences ({which}), in shots of {settings.validation_shot} frames at the most, each seen by"
        f" {settings.cameras_per_shot} fixed virtual cameras all round, {cameras.distance[0]:g} to {cameras.distance[1]:g} m away,"
        f" {cameras.field_of_view:g} degrees, {cameras.width} x {cameras.height} pixels"
    )
    return make_videos(kept, settings), about


def judge(predictor: Predictor, videos: Sequence[Video], pixels: float, *, flip: bool = True) -> PoseReport:
    """Errors of a lifter, from 2D poses with a Gaussian error of this standard deviation."""
    disturbed = (video.with_noise(pixels, seed) for seed, video in enumerate(videos))
    return evaluate_poses((video.name, lift_video(predictor, video, flip), video.poses_3d) for video in disturbed)


def lift_video(predictor: Predictor, video: Video, flip: bool = True) -> Any:
    """The 3D poses (T, J, 3) that a lifter gives for a video's 2D poses."""
    size = (video.width, video.width)  # the height cancels out
    return predictor.lift(denormalize_screen(video.poses_2d, *size), size, fps=video.fps, flip=flip).poses


def evaluate(
    weights: str | Path | None,
    data: str | Path,
    out: str | Path,
    *,
    noise: Sequence[float] = (0.0, 5.0),
    split: Split = "unseen",
    detections: str = "gt",
    flip: bool = True,
    device: str = "auto",
) -> dict[str, PoseReport]:
    """Judges a lifter; prints a table for each noise, and writes `metrics.json`, `actions.csv`, `joints.csv` and `poses.png`.

    Args:
        weights: file, run folder or name of shipped weights; None takes those that the package ships.
        data, split: see `read_test_videos`. detections: of Human3.6M, whose 2D poses.
        noise: standard deviations of the error that is added to the 2D poses, pixels.
        flip: average with the mirrored video.

    Returns:
        Reports by noise, such as "5 px".
    """
    predictor = Predictor(weights or SHIPPED, device=device)
    settings = LiftSettings(detections=detections)
    videos, about = read_test_videos(data, predictor.note, settings, split)
    console().print(about, style="dim")
    reports = {f"{pixels:g} px": judge(predictor, videos, pixels, flip=flip) for pixels in noise}
    for name, report in reports.items():
        print_report(report, f"noise {name}, {report.num_frames} poses")
    _print_joints(reports, predictor.layout.names)
    console().print("\n".join(f"{name} ({UNITS[name]}): {text}" for name, text in DEFINITIONS.items()), style="dim")
    facts = {"data": str(data), "weights": str(weights or SHIPPED), "about": about, "flip": flip}
    _write(reports, Path(out), predictor.layout.names, facts)
    _write_pictures(predictor, videos, noise[-1], Path(out) / "poses.png")
    return reports


def print_report(report: PoseReport, title: str) -> None:
    """Prints the figures of each action and their mean, with their units."""
    heads = [f"{name}\n{unit.replace(' per ', '/')}" for name, unit in UNITS.items()]
    table = new_table("action", *heads, right=heads, title=title)
    for action, figures in sorted(report.actions.items()):
        table.add_row(action, *(f"{figures[name]:.1f}" for name in UNITS))
    table.add_row("mean of actions", *(f"{report.average[name]:.1f}" for name in UNITS))
    console().print(table)


def _print_joints(reports: Mapping[str, PoseReport], names: Sequence[str]) -> None:
    table = new_table("joint", *reports, right=list(reports), title="MPJPE, mm")
    for number, name in enumerate(names):
        table.add_row(name, *(f"{report.joints[number]:.1f}" for report in reports.values()))
    console().print(table)


def _write(reports: Mapping[str, PoseReport], out: Path, names: Sequence[str], facts: Mapping[str, Any]) -> None:
    content = {**facts, "units": UNITS, "definitions": DEFINITIONS, "noise": {name: asdict(report) for name, report in reports.items()}}
    write_text(out / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    actions = [["noise", "action", *UNITS]]
    joints = [["noise", "joint", "mpjpe"]]
    for noise, report in reports.items():
        rows = [*sorted(report.actions.items()), ("mean of actions", report.average)]
        actions += [[noise, action, *(f"{figures[name]:.4f}" for name in UNITS)] for action, figures in rows]
        joints += [[noise, name, f"{error:.4f}"] for name, error in zip(names, report.joints, strict=True)]
    write_csv(out / "actions.csv", actions)
    write_csv(out / "joints.csv", joints)


def _write_pictures(predictor: Predictor, videos: Sequence[Video], pixels: float, path: Path) -> None:
    rows: list[Row] = []
    for place in evenly(len(videos), PICTURES):
        video, middle = videos[place].with_noise(pixels, place), len(videos[place].poses_2d) // 2
        rows.append((video.name, video.poses_2d[middle], lift_video(predictor, video)[middle], video.poses_3d[middle]))
    with atomic_path(path) as temporary:
        draw_sheet(rows, predictor.layout, temporary)
