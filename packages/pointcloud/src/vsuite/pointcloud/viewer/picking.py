"""What lies under the pointer, and what is known of it."""

from __future__ import annotations

import math

import numpy as np

from vsuite.pointcloud.data.frames import in_box
from vsuite.pointcloud.viewer.scene import Scene

Facts = list[tuple[str, str]]  # names and values, ready to be shown


def point_facts(scene: Scene, index: int) -> Facts:
    """What is known of a point, as names and values: its row, coordinates, columns, label and prediction."""
    x, y, z = scene.points[index].tolist()
    facts = [("point", str(index)), ("x y z", f"{x:.2f} {y:.2f} {z:.2f} m"), ("distance", f"{math.hypot(x, y):.2f} m")]
    facts += [(name, f"{values[index].item():.6g}") for name, values in scene.columns.items()]
    for what, values in (("label", scene.point_labels), ("prediction", scene.point_predictions)):
        if values is not None:
            facts.append((what, scene.label_name(int(values[index])) or "none"))
    return facts


def box_facts(scene: Scene, index: int, truth: bool = False) -> Facts:
    """What is known of a found (or true) box: class, score, centre, size, heading, speed and the points inside."""
    box = (scene.truth_boxes if truth else scene.boxes)[index]
    facts: Facts = [("true box" if truth else "box", (scene.truth_labels if truth else scene.box_labels)[index])]
    if not truth and not math.isnan(scene.box_scores[index]):
        facts.append(("score", f"{scene.box_scores[index]:.3f}"))
    facts.append(("centre", "{:.2f} {:.2f} {:.2f} m".format(*box[:3])))
    facts.append(("length width height", "{:.2f} {:.2f} {:.2f} m".format(*box[3:6])))
    facts.append(("heading", f"{math.degrees(box[6]):.1f}°"))
    if len(box) >= 9 and np.isfinite(box[7:9]).all():
        facts.append(("speed", f"{math.hypot(*box[7:9]):.2f} m/s"))
    facts.append(("points inside", str(points_inside(scene.points, box))))
    return facts


def points_inside(points: np.ndarray, box: np.ndarray) -> int:
    """How many points lie in one box."""
    return int(in_box(points, box).sum())


def in_box_frame(vectors: np.ndarray, box: np.ndarray, *, directions: bool = False) -> np.ndarray:
    """Points (or directions) (N, 3) in a box's own frame: its centre at 0, x along the heading."""
    offset = vectors if directions else vectors - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]], 1)


def pick_point(points: np.ndarray, origin: np.ndarray, direction: np.ndarray, angle: float = 0.006) -> int | None:
    """The point that a ray meets first, within `angle` radians of it: an index, or None."""
    if not len(points):
        return None
    offset = points - np.asarray(origin, np.float32)
    along = offset @ (np.asarray(direction, np.float32) / np.linalg.norm(direction).astype(np.float32))
    across = np.sqrt(np.maximum((offset**2).sum(1) - along**2, 0))
    near = np.flatnonzero((along > 0) & (across < angle * along))
    if not len(near):
        return None
    front = near[along[near] <= 1.05 * along[near].min() + 0.05]  # of one surface, the one closest to the pointer
    return int(front[np.argmin(across[front] / along[front])])


def pick_box(boxes: np.ndarray, shown: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> tuple[int, float] | None:
    """The shown box that a ray enters first, and the distance along the direction's length; None where it meets none."""
    best: tuple[int, float] | None = None
    for index in np.flatnonzero(shown).tolist():
        box = boxes[index]
        start = in_box_frame(np.asarray(origin, np.float64)[None], box)[0]
        along = in_box_frame(np.asarray(direction, np.float64)[None], box, directions=True)[0]
        along = np.where(np.abs(along) < 1e-12, 1e-12, along)
        bounds = np.stack([(-box[3:6] / 2 - start) / along, (box[3:6] / 2 - start) / along])
        enter, leave = float(bounds.min(0).max()), float(bounds.max(0).min())
        if leave >= max(enter, 0) and (best is None or max(enter, 0) < best[1]):
            best = index, max(enter, 0.0)
    return best
