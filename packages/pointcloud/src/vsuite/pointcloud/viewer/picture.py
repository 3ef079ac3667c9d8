"""Pictures of scenes without a display, a browser or a graphics driver: points through a depth buffer, boxes as lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.viewer.colours import (
    BACKGROUNDS,
    COLOUR_MAP,
    ERRORS,
    TRUTH_COLOURS,
    ClassColours,
    Colour,
    colour_range,
    point_categories,
    point_colours,
    point_values,
)
from vsuite.pointcloud.viewer.geometry import FIELD_OF_VIEW, SEGMENTS, box_lines, first_camera
from vsuite.pointcloud.viewer.scene import NO_BOXES, NO_SCORES, PICTURES, Scene, box_text, check_ending

Image = np.ndarray  # H, W, 3 uint8, red green blue
View = Literal["orbit", "top"]

NEAR = 0.05  # metres; of lines, what is nearer to the camera is cut off
MARGIN = 12  # pixels


@dataclass(frozen=True)
class Projection:
    """Maps points onto a picture: `matrix @ (point - position)` is right, down and away from the camera.

    Attributes:
        position, matrix: (3,), (3, 3).
        scale: pixels to a metre (flat), or pixels to a unit of tangent.
        middle: the pixel that the view looks at.
        flat: parallel, not perspective.
    """

    position: np.ndarray
    matrix: np.ndarray
    scale: float
    middle: tuple[float, float]
    flat: bool = False

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 3) as pixels (..., 2) and depths (...) in metres."""
        local = (points - self.position) @ self.matrix.T
        depth = local[..., 2]
        unit = 1.0 if self.flat else np.maximum(depth, NEAR)[..., None]
        return local[..., :2] / unit * self.scale + np.array(self.middle), depth


def look_at(position: np.ndarray, target: np.ndarray, size: tuple[int, int]) -> Projection:
    """The perspective view from one place to another, up at the top; `size` is width, height in pixels."""
    away = (target - position) / np.linalg.norm(target - position)
    right = np.cross(away, (0.0, 0.0, 1.0))
    right = right / np.linalg.norm(right) if np.linalg.norm(right) > 1e-6 else np.array([0.0, -1.0, 0.0])
    scale = size[1] / 2 / math.tan(FIELD_OF_VIEW / 2)
    return Projection(position, np.stack([right, np.cross(away, right), away]), scale, (size[0] / 2, size[1] / 2))


def from_above(
    low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, size: tuple[int, int], margin: float = MARGIN
) -> Projection:
    """The view from above in which x runs up, y runs left and x, y from `low` to `high` just fit."""
    depth, breadth = max(high[0] - low[0], 1e-3), max(high[1] - low[1], 1e-3)
    scale = min((size[1] - 2 * margin) / depth, (size[0] - 2 * margin) / breadth)
    position = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, 0.0])
    matrix = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])
    return Projection(position, matrix, scale, (size[0] / 2, size[1] / 2), flat=True)


def draw_points(image: Image, projection: Projection, points: np.ndarray, colours: np.ndarray, size: int = 2) -> None:
    """Draws points as squares of `size` pixels, the nearer over the farther."""
    height, width = image.shape[:2]
    pixels, depth = projection(points)
    inside = ((pixels > -size) & (pixels < (width + size, height + size))).all(1)
    inside &= projection.flat | (depth > NEAR)
    rows = np.flatnonzero(inside)
    rows = rows[np.argsort(-depth[rows], kind="stable")]
    corner = np.floor(pixels[rows] - (size - 1) / 2).astype(np.int64)
    x = (corner[:, :1] + np.tile(np.arange(size), size)).ravel()
    y = (corner[:, 1:] + np.repeat(np.arange(size), size)).ravel()
    visible = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cells = y[visible] * width + x[visible]
    order = np.repeat(rows, size * size)[visible]
    # The depth buffer: of the points of a pixel, the last and so the nearest. Assigning with repeated indices would leave which one open.
    nearest = np.full(height * width, -1, np.int64)
    np.maximum.at(nearest, cells, np.arange(len(cells)))
    filled = nearest >= 0
    image.reshape(-1, 3)[filled] = colours[order[nearest[filled]]]


def draw_boxes(image: Image, projection: Projection, boxes: np.ndarray, colours: Sequence[Colour], thickness: int = 2) -> None:
    """Draws boxes as lines on top of the points, far boxes first and small ones thinly."""
    import cv2

    lines = box_lines(boxes)
    pixels, depth = projection(lines.reshape(len(boxes), 2 * SEGMENTS, 3))
    spans = np.ptp(pixels, axis=1).max(1)
    for row in np.argsort(-depth.mean(1), kind="stable").tolist():
        width = thickness if spans[row] > 24 else 1
        for start, end in lines[row].reshape(SEGMENTS, 2, 3).astype(np.float64):
            segment = _clip(projection, start, end)
            if segment is None:
                continue
            (x0, y0), (x1, y1) = np.clip(np.round(segment * 8), -(2**20), 2**20).astype(int).tolist()
            cv2.line(image, (x0, y0), (x1, y1), colours[row], width, cv2.LINE_AA, shift=3)


def _clip(projection: Projection, start: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """A segment as two pixels, cut at the near plane; None where it lies behind the camera."""
    ends = np.stack([start, end])
    depth = projection(ends)[1]
    if not projection.flat and (depth < NEAR).any():
        if (depth < NEAR).all():
            return None
        behind, share = int(depth.argmin()), (NEAR - depth.min()) / (depth.max() - depth.min())
        ends[behind] += (ends[1 - behind] - ends[behind]) * share
    return projection(ends)[0]


def bird_eye(
    points: np.ndarray,
    truth: np.ndarray | None = None,
    found: np.ndarray | None = None,
    *,
    truth_labels: Sequence[str] = (),
    found_labels: Sequence[str] = (),
    scores: np.ndarray | None = None,
    threshold: float = 0.0,
    extent: tuple[float, float, float, float] | None = None,
    size: tuple[int, int] = (640, 640),
    dark: bool = True,
) -> Image:
    """A sweep from above, x (ahead) up and y (left) to the left: points by height, true boxes white, found ones in class colours.

    A legend names the colours of the classes, and a bar shows how long some metres are.

    Args:
        points: (N, 3 or more). truth, found: (M, 7 or 9) boxes in our convention. scores: (M,) of the found ones.
        threshold: found boxes below it are left out.
        extent: x from, y from, x to, y to in metres; without it, what holds most points and all boxes.
        size: width and height in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    scene = Scene(
        "the sweep",
        np.asarray(points)[:, :3],
        boxes=NO_BOXES if found is None else found,
        box_labels=found_labels,
        box_scores=NO_SCORES if scores is None else scores,
        truth_boxes=NO_BOXES if truth is None else truth,
        truth_labels=truth_labels,
    )
    image = _blank(size, dark)
    low, high = (np.array(extent[:2]), np.array(extent[2:])) if extent else _extent(scene)
    projection, classes = from_above(low, high, size), ClassColours()
    _draw(image, projection, scene, "height", classes, threshold, dark, point_size=1)
    shown = [scene.box_labels[row] for row in np.flatnonzero(scene.shown_boxes(threshold)).tolist()]
    names = shown if len(scene.boxes) else list(scene.truth_labels)
    picture, draw = _drawable(image)
    _legend(draw, [(name, classes[name]) for name in dict.fromkeys(names)], 0, dark)
    _scale_bar(draw, projection, dark)
    return np.asarray(picture)


def _extent(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The rectangle in x, y of most points and the boxes' centres: its low and high corners."""
    corners = [np.percentile(scene.points[:, :2], (2, 98), axis=0)] if len(scene.points) else []
    corners += [boxes[:, :2] + side * boxes[:, 3:4] for boxes in (scene.boxes, scene.truth_boxes) for side in (-0.6, 0.6) if len(boxes)]
    if not corners:
        return np.full(2, -10.0), np.full(2, 10.0)
    everything = np.concatenate(corners)
    return everything.min(0), everything.max(0)


def _blank(size: tuple[int, int], dark: bool) -> Image:
    return np.full((size[1], size[0], 3), BACKGROUNDS[dark], np.uint8)


def _draw(
    image: Image, projection: Projection, scene: Scene, by: str, classes: ClassColours, threshold: float, dark: bool, point_size: int
) -> None:
    draw_points(image, projection, scene.points, point_colours(scene, by, classes, threshold=threshold), point_size)
    both = len(scene.boxes) > 0
    truth = [TRUTH_COLOURS[dark] if both else classes[name] for name in scene.truth_labels]
    draw_boxes(image, projection, scene.truth_boxes, truth, 1 if both else 2)
    shown = np.flatnonzero(scene.shown_boxes(threshold)).tolist()
    draw_boxes(image, projection, scene.boxes[shown], [classes[scene.box_labels[row]] for row in shown])


def render(
    scene: Scene,
    *,
    colour: str = "height",
    threshold: float = 0.0,
    view: View = "orbit",
    size: tuple[int, int] = (1280, 800),
    dark: bool = True,
    labels: bool = True,
) -> Image:
    """A picture of a scene with the boxes' classes and scores, a legend and what the colours mean: (height, width, 3) uint8.

    Args:
        colour: one of `colour_choices`. threshold: found boxes of a lower score are left out.
        view: "orbit", from behind and above, or "top".
        size: width and height in pixels. labels: write beside each box what it is.

    Raises:
        InputError: for a colour that the scene does not have, or a size under 64 pixels.
    """
    if min(size) < 64 or max(size) > 8192:
        raise InputError(f"picture size {size[0]} x {size[1]}: each side is from 64 to 8192 pixels")
    classes = ClassColours(scene.class_names)
    image = _blank(size, dark)
    projection = from_above(*_extent(scene), size, 40) if view == "top" else look_at(*first_camera(scene), size)
    _draw(image, projection, scene, colour, classes, threshold, dark, point_size=2 if len(scene.points) > 20_000 else 3)
    return _annotate(image, projection, scene, colour, classes, threshold, dark, labels)


def _annotate(
    image: Image, projection: Projection, scene: Scene, by: str, classes: ClassColours, threshold: float, dark: bool, labels: bool
) -> Image:
    """The picture with text: the boxes' labels, the scene's name and counts, the classes and the colour scale."""
    from PIL import Image as Pillow

    picture, draw = _drawable(image)
    small, normal = _font(12), _font(15)
    ink, width, height = TRUTH_COLOURS[dark], picture.width, picture.height
    shown = np.flatnonzero(scene.shown_boxes(threshold)).tolist()
    tagged = [(scene.boxes[i], scene.box_labels[i], float(scene.box_scores[i])) for i in shown]
    if not len(scene.boxes):
        tagged = [(box, name, math.nan) for box, name in zip(scene.truth_boxes, scene.truth_labels, strict=True)]
    for position, text, colour in _tags(projection, tagged if labels else [], classes):
        draw.text(position, text, colour, small, "mb", stroke_width=2, stroke_fill=BACKGROUNDS[dark])
    counts = f"{len(scene.points):,} points"
    if len(scene.boxes):
        counts += f", {len(shown)} of {len(scene.boxes)} boxes" + (f" at {threshold:.2f} and above" if threshold else "")
    if len(scene.truth_boxes):
        counts += f", {len(scene.truth_boxes)} true boxes" + (f" ({'white' if dark else 'black'})" if len(scene.boxes) else "")
    draw.text((MARGIN, MARGIN), _plain(scene.name, 80), ink, normal)
    draw.text((MARGIN, MARGIN + 22), counts, ink, small)
    names = list(dict.fromkeys(name for _, name, _ in tagged))
    categories = point_categories(scene, by, threshold)
    if categories is not None:
        names += [name for name in categories.names if name not in names]
    _legend(draw, [(name, _colour(by, name, classes)) for name in names], MARGIN + 44, dark)
    if projection.flat:
        _scale_bar(draw, projection, dark)
    values = point_values(scene, by)
    if values is not None and len(values):
        low, high = colour_range(values)
        scale = Pillow.fromarray(np.ascontiguousarray(np.broadcast_to(COLOUR_MAP[None], (10, 256, 3)))).resize((180, 10))
        picture.paste(scale, (MARGIN, height - MARGIN - 10))
        unit = " m" if by == "height" else ""
        draw.text((MARGIN, height - MARGIN - 30), f"{_plain(by, 24)}  {low:.4g} to {high:.4g}{unit}", ink, small)
    elif by == "rgb":
        draw.text((width - MARGIN, height - MARGIN - 20), "own colours", ink, small, "rd")
    return np.asarray(picture)


def _drawable(image: Image) -> tuple[Any, Any]:
    """A picture of Pillow's, and what draws on it."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.fromarray(image)
    return picture, ImageDraw.Draw(picture)


def _legend(draw: Any, rows: Sequence[tuple[str, Colour]], top: int, dark: bool) -> None:
    """Names beside squares of their colours, from `top` pixels on; as many as leave the bottom to the colour scale."""
    most = max(0, (draw.im.size[1] - top - 84) // 18)
    for row, (name, colour) in enumerate(rows[:most]):
        start = top + 4 + 18 * row
        draw.rectangle((MARGIN, start + 2, MARGIN + 11, start + 13), colour)
        draw.text((MARGIN + 18, start), _plain(name, 30), TRUTH_COLOURS[dark], _font(12), stroke_width=2, stroke_fill=BACKGROUNDS[dark])


def bar_length(projection: Projection, width: int) -> float:
    """Metres of a scale bar: the largest of 1, 2, 5, 10, 20, ... that takes no more than a quarter of the width in pixels."""
    most = width / 4 / projection.scale
    power = 10.0 ** math.floor(math.log10(most))
    return power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


def _scale_bar(draw: Any, projection: Projection, dark: bool) -> None:
    """A bar at the bottom right with its length in metres; only for parallel views, and none in a picture too small for its margins."""
    if projection.scale <= 0:
        return
    width, height = draw.im.size
    metres = bar_length(projection, width)
    right, bottom, ink = width - MARGIN, height - MARGIN, TRUTH_COLOURS[dark]
    left = right - round(metres * projection.scale)
    draw.rectangle((left, bottom - 3, right, bottom), ink)
    draw.text((right, bottom - 6), f"{metres:g} m", ink, _font(12), "rd", stroke_width=2, stroke_fill=BACKGROUNDS[dark])


def _tags(
    projection: Projection, boxes: list[tuple[np.ndarray, str, float]], classes: ClassColours
) -> Iterator[tuple[tuple[float, float], str, Colour]]:
    """Where to write what above the boxes; what would cover the text of an earlier box, of a higher score, is left out."""
    taken: list[tuple[float, float, float]] = []
    for box, name, score in boxes:
        (x, y), depth = projection(box[:3] + np.array([0, 0, box[5] / 2 + 0.2]))
        if not projection.flat and depth < NEAR:
            continue
        text = box_text(_plain(name, 24), score)
        half = 3.6 * len(text)
        if any(abs(x - other_x) < half + other_half and abs(y - other_y) < 13 for other_x, other_y, other_half in taken):
            continue
        taken.append((x, y, half))
        yield (float(x), float(y)), text, classes[name]


def _colour(by: str, name: str, classes: ClassColours) -> Colour:
    return ERRORS[name] if by == "error" and name in ERRORS else classes[name]


def _plain(text: str, most: int) -> str:
    """One line of text, cut to `most` characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _font(size: int):  # type: ignore[no-untyped-def]
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def save_picture(
    scene: Scene,
    path: str | Path,
    *,
    colour: str = "height",
    threshold: float = 0.0,
    view: View = "orbit",
    size: tuple[int, int] = (1280, 800),
    dark: bool = True,
) -> None:
    """Writes `render`'s picture as a PNG, whole or not at all. The arguments and errors are those of `render`.

    Raises:
        InputError: also for a name that does not end in .png, and where the file cannot be written.
    """
    from PIL import Image as Pillow

    check_ending(path, PICTURES)
    image = render(scene, colour=colour, threshold=threshold, view=view, size=size, dark=dark)
    with atomic_path(path) as temporary:
        Pillow.fromarray(image).save(temporary, format="PNG")
