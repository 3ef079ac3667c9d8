"""People followed through a video: by their numbers, else by where they are; missing joints filled in over time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.data.detection_files import Array, Detections, Found
from vsuite.video_pose.skeletons import Skeleton, convert

MOST_GAP = 30  # frames that a person may be lost for
FARTHEST = 0.5  # of the person's size: mean distance of the joints from one frame to the next; more is another person


@dataclass(frozen=True)
class Track:
    """One person from the first to the last frame that shows them.

    Attributes:
        number: of the person. first: frame. layout: the joints' order.
        points: T, J, 2, pixels; NaN where a joint is missing. scores: T, J; 0 where it is missing.
    """

    number: int
    first: int
    layout: Skeleton
    points: Array
    scores: Array

    @property
    def frames_seen(self) -> int:
        """Frames with at least one joint."""
        return int(np.isfinite(self.points).any(axis=(1, 2)).sum())


def follow(detections: Detections, *, most: int | None = None) -> list[Track]:
    """The people of a video, those seen most often first.

    Where the file numbers people, its numbers decide, and a number that stands twice in one frame is an error. Elsewhere people of
    successive frames are matched so that their joints move least (Hungarian assignment on the mean distance of the joints, in
    units of the person's size); someone may be lost for up to `MOST_GAP` frames.

    Args:
        most: people to keep; None keeps everybody who is seen in two or more frames.

    Raises:
        InputError: for a number that stands twice in a frame, and where nobody is seen in two frames or more.
    """
    people = [person for person in detections.people if np.isfinite(person.visible()).any()]
    if not people:
        raise InputError(f"{detections.name}: every joint is missing (NaN, or a score of 0)")
    numbers = [person.track for person in people]
    groups = _by_number(detections.name, people) if all(number is not None for number in numbers) else _by_place(people)
    tracks = [_track(number, group, detections.layout) for number, group in groups.items()]
    kept = sorted((track for track in tracks if track.frames_seen > 1), key=lambda track: -track.frames_seen)
    if not kept:
        raise InputError(f"{detections.name}: nobody is seen in two or more frames")
    return kept[:most]


def _by_number(name: str, people: list[Found]) -> dict[int, list[Found]]:
    groups: dict[int, list[Found]] = defaultdict(list)
    for person in people:
        assert person.track is not None
        if groups[person.track] and groups[person.track][-1].frame == person.frame:
            raise InputError(f"{name}: frame {person.frame} has two people with the number {person.track}")
        groups[person.track].append(person)
    return groups


def _by_place(people: list[Found]) -> dict[int, list[Found]]:
    from scipy.optimize import linear_sum_assignment

    by_frame: dict[int, list[Found]] = defaultdict(list)
    for person in people:
        by_frame[person.frame].append(person)
    groups: dict[int, list[Found]] = {}
    for frame in sorted(by_frame):
        alive = [number for number, group in groups.items() if frame - group[-1].frame <= MOST_GAP]
        new = by_frame[frame]
        cost = np.array([[_distance(groups[number][-1], person) for person in new] for number in alive]).reshape(len(alive), len(new))
        matched = {int(j): alive[i] for i, j in zip(*linear_sum_assignment(cost), strict=True) if cost[i, j] <= FARTHEST}
        for place, person in enumerate(new):
            groups.setdefault(matched.get(place, len(groups)), []).append(person)
    return groups


def _distance(before: Found, after: Found) -> float:
    """Mean distance of the joints that both show, over the size of the person, which allows more the longer they were lost."""
    a, b = before.visible(), after.visible()
    both = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if not both.any():
        return 1e6  # an assignment needs finite numbers
    extent = np.nanmax(np.concatenate([a, b]), axis=0) - np.nanmin(np.concatenate([a, b]), axis=0)
    lost = max(1, after.frame - before.frame)
    return float(np.linalg.norm(a[both] - b[both], axis=1).mean() / max(1.0, np.linalg.norm(extent)) / np.sqrt(lost))


def _track(number: int, group: list[Found], layout: Skeleton) -> Track:
    first, last = group[0].frame, group[-1].frame
    points = np.full((last - first + 1, layout.num_joints, 2), np.nan, np.float32)
    scores = np.zeros(points.shape[:2], np.float32)
    for person in group:
        place = person.frame - first
        points[place] = person.visible()
        scores[place] = np.where(np.isfinite(points[place]).all(axis=1), person.scores, 0)
    return Track(number, first, layout, points, scores)


def filled(track: Track, target: Skeleton) -> tuple[Array, NDArray[np.bool_]]:
    """The whole track in another layout, with nothing missing.

    Each joint is interpolated linearly over time between the frames that show it, and held before the first and after the last.

    Returns:
        Points (T, J', 2), and (T, J') whether anything of a joint was filled in.

    Raises:
        InputError: where a joint that is needed is never seen, naming it, and where there is no such conversion.
    """
    missing = np.isnan(track.points[..., 0])
    points = track.points.copy()
    time = np.arange(len(points))
    for joint in range(points.shape[1]):
        seen = ~missing[:, joint]
        if seen.any() and not seen.all():
            for axis in range(2):
                points[~seen, joint, axis] = np.interp(time[~seen], time[seen], points[seen, joint, axis])
    found = convert(points, track.layout, target)
    made = convert(missing[..., None].astype(np.float32), track.layout, target)[..., 0] > 0
    never = [target.names[joint] for joint in range(target.num_joints) if np.isnan(found[:, joint]).any()]
    if never:
        raise InputError(f"person {track.number}: no frame shows what {', '.join(never)} {'is' if len(never) == 1 else 'are'} made from")
    return found.astype(np.float32), made
