"""Reading videos of people, with what they do: pyskl's files, NTU's skeletons, motion capture, and folders of keypoint files."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.video_pose.action.clips import Video
from vsuite.video_pose.action.settings import ActionSettings, ClipSettings
from vsuite.video_pose.data.arrays import names_of, read_npy, read_npz
from vsuite.video_pose.data.detection_files import Detections, UnknownLayout
from vsuite.video_pose.data.detections import is_openpose, read_detections
from vsuite.video_pose.data.ntu import parse_name, read_skeleton
from vsuite.video_pose.data.pyskl import Annotation, read_annotations
from vsuite.video_pose.data.tracks import follow
from vsuite.video_pose.data.videos import VIDEO_SUFFIXES as FILMS
from vsuite.video_pose.data.videos import video_facts
from vsuite.video_pose.skeletons import H36M17, NTU25, Skeleton, convert

POSES = (".json", ".npz", ".npy", ".csv")
SPLIT_ENDS = (("train", "val"), ("train", "test"))


@dataclass(frozen=True)
class VideoSet:
    """Videos, and what is known of them.

    Attributes:
        classes: names in the order of the labels; empty where the files have none.
        splits: name -> names of videos; empty where the data have none.
    """

    source: str
    videos: list[Video]
    classes: list[str] = field(default_factory=list)
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Divided:
    """Videos to train on and held-out ones, the classes in order, and a line about how they were divided."""

    training: list[Video]
    held_out: list[Video]
    classes: list[str]
    about: str


def read_videos(path: str | Path, layout: Skeleton, clip: ClipSettings, *, films: str | Path | None = None) -> VideoSet:
    """Reads videos from a file or folder.

    Args:
        path: annotations (.pkl of pyskl or mmaction2; .npz, .json of `write_annotations`), motion capture (.npz, see
            `lift.mocap.read_mocap`), a `.skeleton` file of NTU or a folder of them, 2D poses (files and OpenPose's folders; see
            `data.detections`), 3D poses (.npz that lifting wrote; .npy, M, T, J, 3 or T, J, 3 in metres), a video with a file of 2D poses
            of the same name beside it, or a folder with a folder of such files for each class (below train, val and test where it is
            divided).
        layout: of the joints. 2D poses that say another are converted; files that do not say theirs must be in this one.
        clip: what the videos are for: whether joints are 2D or 3D, and which axis is up.
        films: folder with the videos of a file of annotations.

    Raises:
        InputError: for what does not exist or is damaged, and joints of another number than the layout has.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if is_openpose(path):
        found = VideoSet(str(path), _poses_of(path, layout, clip))
    elif path.is_dir():
        found = _ntu_folder(path, layout) if any(path.glob("*.skeleton")) else _class_folders(path, layout, clip)
    elif path.suffix == ".skeleton":
        found = VideoSet(str(path), [_ntu_video(path, layout)])
    elif path.suffix in FILMS:
        found = VideoSet(str(path), [_with_keypoints(path, layout, clip)])
    elif _is_mocap(path):
        found = _mocap(path, layout)
    elif _is_annotations(path):
        annotations = read_annotations(path, num_joints=layout.num_joints)
        found = VideoSet(str(path), [_annotated(video) for video in annotations.videos], splits=annotations.splits)
    elif path.suffix in POSES:
        found = VideoSet(str(path), _poses_of(path, layout, clip))
    else:
        raise InputError(f"{path}: poses end in .pkl, .npz, .json, .npy, .csv or .skeleton, and videos in {', '.join(FILMS)}")
    return found if films is None else replace(found, videos=[_with_film(video, Path(films)) for video in found.videos])


def divide(found: VideoSet, settings: ActionSettings, fraction: float) -> Divided:
    """What trains and what is held out.

    Where the data have splits, `settings.split` names one. Else, of each class with two videos or more, `fraction` of them are held
    out, one at least, chosen by their names alone; the only video of a class is divided in time, and its last part is held out.

    Raises:
        InputError: for unknown splits, labels without a name, and data without labels.
    """
    labelled = [video for video in found.videos if video.label >= 0]
    if not labelled:
        raise InputError(f"{found.source}: no video has a label to learn")
    classes = list(found.classes or settings.classes)
    highest = max(video.label for video in labelled)
    if settings.classes and found.classes and settings.classes != found.classes:
        raise InputError(f"{found.source}: its classes are {', '.join(found.classes)}; the settings name {', '.join(settings.classes)}")
    if classes and highest >= len(classes):
        worst = next(video for video in labelled if video.label == highest)
        raise InputError(
            f"{found.source}: {worst.name}: label must be from 0 to {len(classes) - 1}, as {len(classes)} classes are named; got {highest}"
        )
    classes = classes or [str(label) for label in range(highest + 1)]
    if len({video.label for video in labelled}) < 2:
        raise InputError(f"{found.source}: all videos are of one class; there is nothing to tell apart")
    if found.splits:
        training, held_out, about = _by_split(found, labelled, settings.split)
    else:
        training, held_out, about = _by_video(labelled, classes, fraction, settings.fold)
    for part, what in ((training, "train on"), (held_out, "validate on")):
        if not part:
            raise InputError(f"{found.source}: has no videos to {what}")
    return Divided(training, held_out, classes, about)


def _by_split(found: VideoSet, labelled: Sequence[Video], split: str | None) -> tuple[list[Video], list[Video], str]:
    pairs = {}
    for train in found.splits:
        for first, second in SPLIT_ENDS:
            if first in train and (held_out := train.replace(first, second)) in found.splits:
                pairs[train.replace(first, "").strip("_")] = (train, held_out)
    if split is None and len(pairs) != 1:
        raise InputError(
            f"{found.source}: has several splits; action.split chooses one: {', '.join(sorted(pairs)) or ', '.join(found.splits)}"
        )
    if split is not None and split not in pairs:
        raise unknown(f"split of {found.source}", split, pairs)
    train, held_out = pairs[split] if split is not None else next(iter(pairs.values()))
    parts = [[video for video in labelled if video.name in names] for names in (set(found.splits[train]), set(found.splits[held_out]))]
    return parts[0], parts[1], f"split {train} / {held_out}"


def _by_video(labelled: Sequence[Video], classes: Sequence[str], fraction: float, fold: int) -> tuple[list[Video], list[Video], str]:
    by_class = defaultdict(list)
    for video in labelled:
        by_class[video.label].append(video)
    training, held_out, cut_in_time = [], [], []
    for label, videos in sorted(by_class.items()):
        if len(videos) == 1:
            border = round(videos[0].num_frames * (1 - fraction))
            training.append(videos[0].part(0, border, videos[0].name))
            held_out.append(videos[0].part(border, videos[0].num_frames, f"{videos[0].name} from frame {border}"))
            cut_in_time.append(classes[label])
            continue
        videos = sorted(videos, key=lambda video: zlib.crc32(video.name.encode()))
        count = min(len(videos) - 1, max(1, round(fraction * len(videos))))
        chosen = {(fold * count + i) % len(videos) for i in range(count)}
        held_out += [video for i, video in enumerate(videos) if i in chosen]
        training += [video for i, video in enumerate(videos) if i not in chosen]
    about = f"{fraction:.0%} of each class's videos held out, by name"
    if cut_in_time:
        about += f"; a single video, so that its last {fraction:.0%} are held out: {', '.join(cut_in_time)}"
    return training, held_out, about


# --- formats ---


def _annotated(found: Annotation) -> Video:
    joints = found.keypoint
    score = found.score
    if score is None and found.image_shape is not None and joints.shape[-1] == 3:  # x, y and score in one array
        joints, score = joints[..., :2], joints[..., 2]
    there = (joints != 0).any(-1)
    score = there.astype(np.float16) if score is None else np.where(there, np.clip(score, 0, 1), 0).astype(score.dtype)
    return Video(found.name, joints, score, found.label, found.image_shape)


def _ntu_video(path: Path, layout: Skeleton) -> Video:
    if layout != NTU25:
        raise InputError(f"{path}: is in the layout {NTU25.name}; the model or recipe takes {layout.name}")
    joints = read_skeleton(path)
    try:
        label = parse_name(path).label
    except InputError:
        label = -1
    return Video(path.stem, joints, (joints != 0).any(-1).astype(np.float16), label)


def _ntu_folder(folder: Path, layout: Skeleton) -> VideoSet:
    """All `.skeleton` files of a folder. Files without a usable body are left out, as the published lists of bad samples have it."""
    videos = []
    for path in sorted(folder.glob("*.skeleton")):
        name = parse_name(path)
        try:
            videos.append(replace(_ntu_video(path, layout), label=name.label))
        except InputError as error:
            if "body" not in str(error):
                raise
    if not videos:
        raise InputError(f"{folder}: no .skeleton file has a usable body")
    splits: dict[str, list[str]] = {}
    for split in ("xsub60", "xview", "xsub120", "xset"):
        for video in videos:
            side = "train" if parse_name(video.name).trains(split) else "val"
            splits.setdefault(f"{split}_{side}", []).append(video.name)
    classes = [f"A{number:03d}" for number in range(1, max(video.label for video in videos) + 2)]
    return VideoSet(str(folder), videos, classes, splits)


def _is_mocap(path: Path) -> bool:
    return path.suffix == ".npz" and any("/" in name for name in names_of(path))


def _is_annotations(path: Path) -> bool:
    if path.suffix in (".pkl", ".pickle"):
        return True
    if path.suffix == ".npz":
        return {"shapes", "names", "splits"} <= set(names_of(path))
    if path.suffix == ".json":
        with path.open(encoding="utf-8", errors="replace") as file:
            return '"frame_dir"' in file.read(100_000)
    return False


def _mocap(path: Path, layout: Skeleton) -> VideoSet:
    from vsuite.video_pose.lift.mocap import read_mocap

    if layout != H36M17:
        raise InputError(f"{path}: is in the layout {H36M17.name}; the model or recipe takes {layout.name}")
    sequences = read_mocap(path)
    classes = sorted({sequence.action for sequence in sequences})
    videos = [
        Video(sequence.name, sequence.poses[None], np.ones((1, *sequence.poses.shape[:2]), np.float16), classes.index(sequence.action))
        for sequence in sequences
    ]
    return VideoSet(str(path), videos, classes)


def _class_folders(root: Path, layout: Skeleton, clip: ClipSettings) -> VideoSet:
    parts = [folder for name in ("train", "val", "test") if (folder := root / name).is_dir()]
    folders = [
        folder
        for part in (parts or [root])
        for folder in sorted(part.iterdir())
        if folder.is_dir() and not folder.name.startswith((".", "_")) and not is_openpose(folder) and _files_of_poses(folder)
    ]
    if not folders:
        return _loose_files(root, layout, clip)
    classes = sorted({folder.name for folder in folders})
    videos: list[Video] = []
    splits: dict[str, list[str]] = {part.name: [] for part in parts}
    for folder in folders:
        for file in _files_of_poses(folder):
            film = next((path for suffix in FILMS if (path := file.with_suffix(suffix)).is_file()), None)
            name = file.relative_to(root).with_suffix("").as_posix()
            videos.append(replace(_only(_poses_of(file, layout, clip), file), name=name, label=classes.index(folder.name), film=film))
            if parts:
                splits[folder.parent.name].append(name)
    return VideoSet(str(root), videos, classes, splits)


def _files_of_poses(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in POSES or is_openpose(path)]


def _loose_files(root: Path, layout: Skeleton, clip: ClipSettings) -> VideoSet:
    """Files that lie in the folder itself, to predict on."""
    files = [*_files_of_poses(root), *sorted(path for path in root.iterdir() if path.suffix in (".pkl", ".pickle"))]
    if not files:
        raise InputError(f"{root}: holds no .skeleton files, no files of poses, and no folders of them by class")
    return VideoSet(str(root), [video for file in files for video in read_videos(file, layout, clip).videos])


def _with_keypoints(film: Path, layout: Skeleton, clip: ClipSettings) -> Video:
    """A video, and the people in it from the file of the same name beside it."""
    file = next((path for suffix in POSES if (path := film.with_suffix(suffix)).is_file()), None)
    if file is None:
        beside = f"{film.stem}.json, .npz, .npy or .csv"
        raise InputError(f"{film}: has no poses beside it ({beside}); a detector of people is not part of vsuite")
    width, height = video_facts(film).size
    return replace(_only(_poses_of(file, layout, clip), file), name=film.stem, film=film, image_shape=(height, width))


def _only(videos: Sequence[Video], file: Path) -> Video:
    if len(videos) != 1:
        raise InputError(f"{file}: holds {len(videos)} videos; one a file is needed here")
    return videos[0]


def _with_film(video: Video, folder: Path) -> Video:
    name = Path(video.name).name
    film = next((path for suffix in FILMS if (path := folder / f"{name}{suffix}").is_file()), None)
    if film is None:
        raise InputError(f"{folder}: has no video called {name}{FILMS[0]} (or {', '.join(FILMS[1:3])}, ...)")
    return replace(video, film=film)


def _poses_of(path: Path, layout: Skeleton, clip: ClipSettings) -> list[Video]:
    """The videos of a file of poses, or of a folder of OpenPose."""
    if clip.dimensions == 3:
        return [_poses_3d(path, layout, clip)]
    try:
        found = read_detections(path)
    except UnknownLayout:  # a file that does not say its layout is in the one that was named
        found = read_detections(path, layout=layout.name)
    return [_followed(video, layout) for video in found]


def _followed(found: Detections, layout: Skeleton) -> Video:
    """People by track, in the layout that is wanted."""
    tracks = follow(found)
    joints = np.full((len(tracks), found.num_frames, layout.num_joints, 2), np.nan, np.float32)
    scores = np.zeros(joints.shape[:3], np.float32)
    for number, track in enumerate(tracks):
        part = slice(track.first, track.first + len(track.points))
        joints[number, part] = convert(track.points, track.layout, layout)
        scores[number, part] = convert(track.scores[..., None], track.layout, layout)[..., 0]
    size = None if found.size is None else (found.size[1], found.size[0])
    return Video.of(joints, np.clip(scores, 0, 1), name=found.name, image_shape=size)


def _poses_3d(path: Path, layout: Skeleton, clip: ClipSettings) -> Video:
    if path.suffix == ".npz":
        content = read_npz(path, "poses_3d", "layout")
        return _lifted(path, content["poses_3d"], str(content["layout"]), layout, clip)
    if path.suffix != ".npy":
        raise InputError(f"{path}: the model takes 3D poses, and they are read from .npz (as lifting writes them) and .npy")
    return Video.of(read_npy(path), name=path.stem)


def _lifted(path: Path, poses: NDArray[np.floating], name: str, layout: Skeleton, clip: ClipSettings) -> Video:
    """What lifting wrote, in camera space with y down, turned upright."""
    if name != layout.name:
        raise InputError(f"{path}: is in the layout {name}; the model or recipe takes {layout.name}")
    if clip.up != "y":
        raise InputError(f"{path}: lifted poses are turned so that y is up; these weights take {clip.up} as up")
    if poses.ndim != 3 or poses.shape[-1] != 3 or poses.dtype.kind != "f":
        raise InputError(f"{path}: poses_3d must be frames, joints, 3, floating-point; got {poses.dtype} {poses.shape}")
    # The root is at 0 there, which means no joint is missing.
    return Video.of(poses * np.array([1, -1, -1], poses.dtype), np.ones(poses.shape[:2], np.float32), name=path.stem)
