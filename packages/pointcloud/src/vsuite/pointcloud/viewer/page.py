"""A stand-alone page of scenes: one HTML file that draws, plays, filters and picks by itself, without a network or a server."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.files import write_text
from vsuite.pointcloud.viewer.colours import (
    BACKGROUNDS,
    COLOUR_MAP,
    ERRORS,
    NOTHING,
    TRUTH_COLOURS,
    ClassColours,
    check_choice,
    colour_choices,
    colour_range,
    point_categories,
    point_values,
)
from vsuite.pointcloud.viewer.geometry import first_camera, thinning_order
from vsuite.pointcloud.viewer.scene import PAGES, Scene, check_ending, check_scenes

MOST_POINTS = 2_000_000  # of all frames together: some 45 MB of page


def save_page(
    scenes: Sequence[Scene],
    path: str | Path,
    *,
    colour: str = "height",
    threshold: float = 0.0,
    title: str | None = None,
    dark: bool = True,
    most_points: int = MOST_POINTS,
) -> None:
    """Writes scenes as one HTML file with all controls of the viewer, whole or not at all. It asks for nothing from any network.

    Args:
        scenes: the frames, in the order in which they play.
        colour: what the points are coloured by first, one of the first frame's `colour_choices`.
        threshold: where the score slider stands first.
        title: of the browser's tab; without it the first frame's name.
        most_points: of all frames together; beyond it each cloud is thinned evenly, and the page says so.

    Raises:
        InputError: without frames, for a name that does not end in .html, for a colour the first frame does not have, and where the
            file cannot be written.
    """
    check_ending(path, PAGES)
    check_scenes(scenes)
    check_choice(scenes[0], colour)
    data = _data(scenes, colour, threshold, dark, most_points)
    here = resources.files("vsuite.pointcloud.viewer")
    parts = {
        "title": html.escape(title or scenes[0].name),
        "data": _json(data),
        "renderer": here.joinpath("page_renderer.js").read_text("utf-8"),
        "controls": "\n".join(here.joinpath(name).read_text("utf-8") for name in ("page_controls.js", "page_start.js")),
    }
    template = here.joinpath("page.html").read_text("utf-8")
    # In one pass, so that a name which looks like a placeholder stays a name.
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


def _json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever names it holds."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(scenes: Sequence[Scene], colour: str, threshold: float, dark: bool, most_points: int) -> dict[str, Any]:
    classes = ClassColours()
    choices: dict[str, None] = {}
    seen: dict[str, list[np.ndarray]] = {}
    frames = []
    share = max(1, most_points // len(scenes))
    for scene in scenes:
        choices |= dict.fromkeys(colour_choices(scene))
        for name in scene.class_names:
            classes[name]
        for name in ("height", *scene.columns):
            seen.setdefault(name, []).append(_sample(point_values(scene, name)))
        frames.append(_frame(scene, share))
    position, target = first_camera(scenes[0])
    return {
        "colour": colour,
        "threshold": threshold,
        "dark": dark,
        "choices": list(choices),
        "classes": classes,
        "errors": ERRORS,
        "nothing": NOTHING,
        "backgrounds": {"dark": BACKGROUNDS[True], "light": BACKGROUNDS[False]},
        "truth_colours": {"dark": TRUTH_COLOURS[True], "light": TRUTH_COLOURS[False]},
        "map": _base64(COLOUR_MAP),
        "spans": {name: colour_range(np.concatenate(values)) for name, values in seen.items()},
        "camera": {"position": position.tolist(), "target": target.tolist()},
        "frames": frames,
    }


def _sample(values: np.ndarray | None) -> np.ndarray:
    """Up to 20,000 of the values, which is enough to know their range."""
    assert values is not None
    return values[thinning_order(len(values), 20_000)]


def _frame(scene: Scene, most_points: int) -> dict[str, Any]:
    """One frame. Its points are in the order of `thinning_order`, so that the page can draw the first few while the camera moves."""
    order = thinning_order(len(scene.points), most_points)
    arrays = {"points": scene.points[order], "rows": order.astype(np.int32)}
    names: dict[str, list[str]] = {}
    columns = [name for name in scene.columns if name not in ("red", "green", "blue")]
    for name in columns:
        arrays[f"column {name}"] = scene.columns[name][order].astype(np.float32)
    choices = colour_choices(scene)
    if "rgb" in choices:
        colours = np.stack([scene.columns[name][order] for name in ("red", "green", "blue")], 1)
        arrays["rgb"] = colours.clip(0, 255).astype(np.uint8)
    own = {"label": scene.point_labels is not None, "prediction": scene.point_predictions is not None}
    for by in ("label", "prediction", "error"):
        if not (all(own.values()) if by == "error" else own[by]):
            continue
        categories = point_categories(scene, by)
        assert categories is not None
        arrays[by], names[by] = categories.codes[order].astype(np.int16), categories.names
    if len(scene.boxes) or len(scene.truth_boxes):
        arrays["found_of"], arrays["truth_of"] = scene.box_of_points()[order], scene.box_of_points(truth=True)[order]
    return {
        "name": scene.name,
        "total": len(scene.points),
        "shown": len(order),
        "columns": columns,
        "arrays": {name: [values.dtype.name, _base64(values)] for name, values in arrays.items()},
        "names": names,
        "boxes": _numbers(scene.boxes),
        "labels": list(scene.box_labels),
        "scores": [None if math.isnan(score) else round(score, 6) for score in scene.box_scores.tolist()],
        "truth": _numbers(scene.truth_boxes),
        "truth_labels": list(scene.truth_labels),
    }


def _numbers(boxes: np.ndarray) -> list[list[float | None]]:
    """Rows of a box as JSON has them: an unknown velocity is null."""
    return [[round(value, 5) if math.isfinite(value) else None for value in row] for row in boxes.tolist()]


def _base64(values: np.ndarray) -> str:
    """Little-endian bytes, which is what browsers' typed arrays read on every machine in use."""
    return base64.b64encode(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
