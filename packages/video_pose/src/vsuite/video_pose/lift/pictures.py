"""Sheets of poses: 2D in, 3D out, 3D truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsuite.video_pose.lift.videos import Poses
from vsuite.video_pose.skeletons import Skeleton

Row = tuple[str, Poses, Poses, Poses]
SIDES = ("#3b7dd8", "#e07b28", "#555555")  # left, right, middle of the body


def draw_sheet(rows: Sequence[Row], layout: Skeleton, path: str | Path) -> None:
    """Draws a PNG with a row for each pose.

    Args:
        rows: title, 2D pose (J, 2) in screen coordinates, predicted and true 3D pose (J, 3) in camera space. The 3D ones are shown
            from the front, as the camera saw them, and from the side.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (title, seen, found, truth) in zip(axes, rows, strict=True):
        _draw(row[0], seen[:, :2], layout)
        error = 1000 * np.linalg.norm(found - truth, axis=-1).mean()
        for axis, part, name in ((row[1], [0, 1], "front"), (row[2], [2, 1], "side: depth to the right")):
            _draw(axis, truth[:, part], layout, faint=True)
            _draw(axis, found[:, part], layout)
            axis.set_title(f"{name}; truth is faint", fontsize=8)
        row[0].set_title(f"{title}: in (error {error:.0f} mm)", fontsize=8)
    figure.savefig(path, dpi=90, format="png")


def _draw(axis: object, points: Poses, layout: Skeleton, *, faint: bool = False) -> None:
    for joint, parent in layout.bones:
        colour = SIDES[0] if joint in layout.left else SIDES[1] if joint in layout.right else SIDES[2]
        axis.plot(*points[[joint, parent]].T, color=colour, linewidth=5 if faint else 1.8, alpha=0.3 if faint else 1)  # type: ignore[attr-defined]
    axis.set_aspect("equal")  # type: ignore[attr-defined]
    axis.invert_yaxis()  # type: ignore[attr-defined]
    axis.tick_params(labelsize=6)  # type: ignore[attr-defined]
