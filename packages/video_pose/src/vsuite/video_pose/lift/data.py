"""The data sets that lifters learn from and are judged by: which files they are, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingDataset
from vsuite.video_pose.lift.h36m import FPS as H36M_FPS
from vsuite.video_pose.lift.h36m import POSITIONS, read_h36m
from vsuite.video_pose.lift.mocap import FPS as MOCAP_FPS
from vsuite.video_pose.lift.mocap import MocapSamples, make_videos, read_mocap, split_mocap
from vsuite.video_pose.lift.note import Note
from vsuite.video_pose.lift.settings import LiftSettings
from vsuite.video_pose.lift.videos import Video, VideoSamples
from vsuite.video_pose.skeletons import H36M17


@dataclass(frozen=True)
class LiftData:
    """What a run learns from.

    Attributes:
        training: the samples. validation: held-out videos.
        note: what the weights will say. about: a line about the data.
    """

    training: TrainingDataset
    validation: list[Video]
    note: Note
    about: str


def is_h36m(path: str | Path) -> bool:
    """Whether a path is a folder with VideoPose3D's files, rather than a file of motion capture."""
    path = Path(path)
    if path.is_dir() and not (path / POSITIONS).is_file():
        raise InputError(f"{path}: has no {POSITIONS}; give VideoPose3D's data folder, or an .npz of motion capture")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return path.is_dir()


def read_training(path: str | Path, settings: LiftSettings, fraction: float, num_frames: int) -> LiftData:
    """Samples to train on, and videos to validate on.

    Args:
        path: a file of motion capture, or a folder with Human3.6M in VideoPose3D's layout.
        fraction: of the sequences of each action that is held out; Human3.6M's subjects decide instead.
        num_frames: of a window.

    Raises:
        InputError: for what is wrong with the data, and where nothing is left to train or to validate on.
    """
    if is_h36m(path):
        videos = read_h36m(path, settings.detections, settings.train_subjects)
        held_out = read_h36m(path, settings.detections, settings.test_subjects)
        samples = VideoSamples(videos, H36M17, num_frames, settings.noise, flip=settings.flip)
        note = Note(fps=H36M_FPS, trained_on=[video.name for video in videos])
        return LiftData(samples, held_out, note, f"{len(samples)} frames of {len(videos)} videos, {len(held_out)} to validate on")
    training, rest = split_mocap(read_mocap(path), fraction)
    if not training or not rest:
        raise InputError(f"{path}: nothing can be held out: no action has two or more sequences")
    note = Note(fps=MOCAP_FPS, field_of_view=settings.cameras.field_of_view, trained_on=[sequence.name for sequence in training])
    frames = MocapSamples(training, settings, num_frames)
    about = f"{len(training)} sequences with {len(frames)} frames to train on; held out: {', '.join(s.name.split('/')[-1] for s in rest)}"
    return LiftData(frames, make_videos(rest, settings), note, about)
