"""Colours of points and boxes: maps for numbers, a palette for classes, fixed colours for right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsuite.core.errors import unknown
from vsuite.pointcloud.viewer.scene import Scene

Colour = tuple[int, int, int]

NOTHING: Colour = (120, 124, 132)  # points without a class, and numbers that are not finite; seen on dark and light
BACKGROUNDS: dict[bool, Colour] = {True: (16, 18, 22), False: (246, 247, 249)}  # of dark or not
TRUTH_COLOURS: dict[bool, Colour] = {True: (255, 255, 255), False: (20, 20, 24)}
# A rainbow without the ends that vanish on black or white.
_RAINBOW = [[62, 84, 214], [44, 140, 250], [26, 200, 210], [52, 232, 132], [170, 240, 60], [240, 205, 52], [252, 140, 38], [226, 62, 18]]
COLOUR_MAP = np.stack([np.interp(np.linspace(0, 7, 256), np.arange(8), np.array(_RAINBOW)[:, k]) for k in range(3)], 1).astype(np.uint8)
_KNOWN: dict[str, Colour] = {
    "car": (255, 158, 27),
    "vehicle": (255, 158, 27),
    "van": (255, 214, 92),
    "truck": (255, 99, 71),
    "bus": (255, 127, 180),
    "pedestrian": (90, 170, 255),
    "person": (90, 170, 255),
    "cyclist": (235, 70, 200),
    "bicycle": (235, 70, 200),
    "motorcycle": (190, 110, 255),
}
_PALETTE: list[Colour] = [
    (230, 90, 80), (80, 190, 120), (100, 140, 250), (240, 190, 50), (180, 100, 230), (60, 195, 205), (245, 130, 190), (160, 190, 60),
    (200, 130, 80), (130, 120, 255), (40, 160, 130), (255, 150, 120), (150, 90, 150), (120, 200, 255), (190, 160, 110), (220, 60, 130),
]  # fmt: skip
ERRORS: dict[str, Colour] = {
    "right": (64, 150, 110),
    "wrong": (255, 64, 64),
    "found": (60, 215, 120),
    "missed": (255, 64, 64),
    "false alarm": (255, 190, 40),
    "wrong class": (220, 90, 255),
}


class ClassColours(dict[str, Colour]):
    """Class name -> colour: known names have theirs in every view, others the next of the palette as they appear."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self._others = 0
        for name in dict.fromkeys(names):
            self.__missing__(name)

    def __missing__(self, name: str) -> Colour:
        colour = _KNOWN.get(name.lower())
        if colour is None:
            colour = _PALETTE[self._others % len(_PALETTE)]
            self._others += 1
        self[name] = colour
        return colour


@dataclass(frozen=True)
class Categories:
    """A category of each point: codes (N,), indices of names, -1 for none."""

    codes: np.ndarray
    names: list[str]


def colour_choices(scene: Scene) -> list[str]:
    """What the points of a scene can be coloured by: height, its columns, rgb, label, prediction and error."""
    names = [name for name in scene.columns if name not in ("red", "green", "blue", "height")]
    choices = ["height", *names]
    if {"red", "green", "blue"} <= scene.columns.keys():
        choices.append("rgb")
    label = scene.point_labels is not None or len(scene.truth_boxes) > 0
    prediction = scene.point_predictions is not None or len(scene.boxes) > 0
    choices += ["label"] * label + ["prediction"] * prediction + ["error"] * (_comparable(scene))
    return choices


def _comparable(scene: Scene) -> bool:
    if scene.point_labels is not None or scene.point_predictions is not None:
        return scene.point_labels is not None and scene.point_predictions is not None
    return len(scene.truth_boxes) > 0  # where nothing was found, all is missed


def check_choice(scene: Scene, by: str) -> None:
    """Raises an InputError that names what a scene can be coloured by, where `by` is not among it."""
    choices = colour_choices(scene)
    if by not in choices:
        raise unknown(f"colour of {scene.name}", by, choices)


def point_values(scene: Scene, by: str) -> np.ndarray | None:
    """The number of each point that a colour map shows, (N,) float32; None where `by` is no number."""
    if by == "height":
        return scene.points[:, 2]
    return scene.columns[by].astype(np.float32) if by in scene.columns else None


def point_categories(scene: Scene, by: str, threshold: float = 0.0, hidden: Sequence[str] = ()) -> Categories | None:
    """The category of each point for label, prediction and error; None for other choices.

    Where the points have no labels of their own, those in a box are of the box's class. `error` of boxes says which points of
    true boxes were found (in a found box of the class), missed, or given a wrong class, and which lie in a false alarm.
    """
    if by not in ("label", "prediction", "error"):
        return None
    label, prediction = scene.point_labels, scene.point_predictions
    if by == "error" and label is not None and prediction is not None:
        return Categories(np.where(label < 0, -1, (label != prediction).astype(np.int64)), ["right", "wrong"])
    values = {"label": label, "prediction": prediction}.get(by)
    if values is not None:
        present = np.unique(values[values >= 0])
        codes = np.where(values < 0, -1, np.searchsorted(present, values))
        return Categories(codes, [scene.label_name(int(value)) for value in present])
    names = list(dict.fromkeys([*scene.truth_labels, *scene.box_labels]))
    truth, found = _box_classes(scene, names, True, threshold, hidden), _box_classes(scene, names, False, threshold, hidden)
    if by != "error":
        return Categories(truth if by == "label" else found, names)
    states = np.select([(truth < 0) & (found < 0), found < 0, truth < 0, truth == found], [-1, 1, 2, 0], 3)
    return Categories(states, ["found", "missed", "false alarm", "wrong class"])


def hidden_points(scene: Scene, by: str, hidden: Sequence[str]) -> np.ndarray:
    """(N,) bool: the points that are not drawn, since `by` is their own label or prediction and of a hidden class."""
    values = {"label": scene.point_labels, "prediction": scene.point_predictions}.get(by)
    if values is None:
        return np.zeros(len(scene.points), bool)
    return np.isin(values, [value for value in np.unique(values).tolist() if value >= 0 and scene.label_name(value) in hidden])


def _box_classes(scene: Scene, names: list[str], truth: bool, threshold: float, hidden: Sequence[str]) -> np.ndarray:
    """Index in `names` of the class of the box that each point lies in, -1 outside all that are shown."""
    labels = scene.truth_labels if truth else scene.box_labels
    shown = np.array([name not in hidden for name in labels], bool) if truth else scene.shown_boxes(threshold, hidden)
    codes = np.array([*(names.index(name) if show else -1 for name, show in zip(labels, shown, strict=True)), -1], np.int64)
    return codes[scene.box_of_points(truth)]


def point_colours(
    scene: Scene,
    by: str,
    classes: ClassColours,
    *,
    threshold: float = 0.0,
    hidden: Sequence[str] = (),
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """Colours of the points, (N, 3) uint8.

    Args:
        by: one of `colour_choices`.
        classes: colours of classes, which grows by new names.
        threshold: found boxes below this score count for nothing. hidden: classes whose boxes count for nothing.
        span: the numbers at the ends of the colour map; without it `colour_range`.

    Raises:
        InputError: where the scene cannot be coloured by that.
    """
    check_choice(scene, by)
    if by == "rgb":
        return np.stack([scene.columns[name] for name in ("red", "green", "blue")], 1).clip(0, 255).astype(np.uint8)
    categories = point_categories(scene, by, threshold, hidden)
    if categories is not None:
        table = [*(ERRORS[name] if by == "error" else classes[name] for name in categories.names), NOTHING]
        return np.array(table, np.uint8)[categories.codes]
    values = point_values(scene, by)
    assert values is not None
    low, high = span or colour_range(values)
    finite = np.isfinite(values)
    steps = np.clip((np.where(finite, values, low) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return np.where(finite[:, None], COLOUR_MAP[steps], np.array(NOTHING, np.uint8))


def colour_range(values: np.ndarray) -> tuple[float, float]:
    """The span of values that a colour map covers: from the 1st to the 99th percentile of what is finite, never empty."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, (1, 99)).tolist()
    if high <= low:
        low, high = finite.min().item(), finite.max().item()
    return (low, high) if high > low else (low, low + 1.0)
