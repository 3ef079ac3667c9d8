"""A picture of one case: three planes, with the contours of the reference and of the prediction.

Planes are drawn in radiological orientation: the patient's right is on the left of the axial and the coronal plane,
anterior is up in the axial plane and on the left of the sagittal one. Letters at the edges say so in each plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.medical.data.geometry import ras_affine, ras_view, spacing_of
from vsuite.medical.metrics import Label, Labels, Mask, count_voxels, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct on grey and to colour-blind eyes (after Okabe and Ito); repeated where there are more classes.
COLOURS = ("#ff8c1a", "#38bdf8", "#2dd48b", "#f4e04d", "#e879b9", "#ff5449", "#9a8cff", "#c8f169")
WINDOW = (0.5, 99.8)  # percentiles of the intensities drawn black and white
_BACKGROUND, _TEXT = "#101214", "#e6e6e6"
_WIDTH, _MARGIN, _GAP = 12.0, 0.55, 0.12  # inches: of the picture, above and below the planes, between them
# plane: (axis cut, axis drawn from left to right, axis drawn upwards, letters at left, right, top, bottom)
_PLANES = {"axial": (2, 0, 1, "RLAP"), "coronal": (1, 0, 2, "RLSI"), "sagittal": (0, 1, 2, "APSI")}


class _Structure(NamedTuple):
    """What is drawn of one structure."""

    name: str
    colour: str
    reference: Mask | None
    prediction: Mask | None


def case_picture(
    image: npt.NDArray[Any] | None,
    reference: Label | None,
    prediction: Label | None,
    affine: npt.NDArray[np.float64],
    path: str | Path,
    title: str = "",
    *,
    labels: Labels | None = None,
) -> None:
    """Writes a PNG of the axial, coronal and sagittal plane that show most of the case, at one scale.

    The reference is drawn dashed, the prediction solid; the legend gives each structure's Dice.

    Args:
        image: X, Y, Z intensities, windowed between the percentiles `WINDOW`; None draws on black.
        reference, prediction: X, Y, Z of integer ids on the same grid; either may be None.
        affine: voxel indices to RAS+ mm, of any orientation.
        path: ends in .png.
        labels: name -> id or ids of a region, without the background; None takes the ids that occur.

    Raises:
        InputError: where there is nothing to draw or the arrays differ in shape.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    given = [volume for volume in (image, reference, prediction) if volume is not None]
    if not given or len({volume.shape for volume in given}) != 1 or given[0].ndim != 3:
        raise InputError(f"a picture needs arrays X, Y, Z of one shape; got {[volume.shape for volume in given]}")
    spacing = spacing_of(ras_affine(given[0].shape, affine))
    grey, wanted, found = (None if volume is None else ras_view(volume, affine) for volume in (image, reference, prediction))
    shape = ras_view(given[0], affine).shape
    labels = _occurring(wanted, found) if labels is None else labels
    structures = [
        _Structure(name, COLOURS[i % len(COLOURS)], _select(wanted, ids), _select(found, ids))
        for i, (name, ids) in enumerate(labels.items())
    ]
    slices = chosen_slices(wanted, found, labels, shape)

    extents = np.array(shape) * spacing
    scale = (_WIDTH - 4 * _GAP) / (2 * extents[0] + extents[1])  # inches a mm, the same in the three planes
    height = scale * max(extents[1], extents[2])
    window = (0.0, 1.0) if grey is None else _window(grey)
    figure = Figure(figsize=(_WIDTH, height + 2 * _MARGIN), dpi=100, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    left = _GAP
    for plane, (cut, across, up, letters) in _PLANES.items():
        width, tall = scale * extents[across], scale * extents[up]
        box = (left / _WIDTH, (_MARGIN + (height - tall) / 2) / (height + 2 * _MARGIN), width / _WIDTH, tall / (height + 2 * _MARGIN))
        axes = figure.add_axes(box)
        left += width + _GAP
        _draw_plane(axes, grey, structures, window, (shape[up], shape[across]), cut, slices[cut], spacing[across], spacing[up])
        _write_letters(axes, letters, f"{plane} {slices[cut] + 1}/{shape[cut]}")
    _write_legend(figure, structures, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=_BACKGROUND)


def chosen_slices(reference: Label | None, prediction: Label | None, labels: Labels, shape: Sequence[int]) -> tuple[int, ...]:
    """The index along each axis at which the planes are cut.

    Through the deepest voxel of the largest error, if that is more than a rim; else where the structures show the
    largest areas, each weighing the same; the middle where there are none.
    """
    if reference is not None and prediction is not None and (voxel := _deepest_error(reference != prediction)):
        return voxel
    maps = [label for label in (reference, prediction) if label is not None]
    chosen = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        areas = [select(label, ids).sum(axis=others) for label in maps for ids in labels.values()]
        shares = sum((area / area.max() for area in areas if area.any()), np.zeros(shape[axis]))
        best = np.flatnonzero(shares >= shares.max() - 1e-9)
        chosen.append(int(best[len(best) // 2]))
    return tuple(chosen)


def _deepest_error(error: Mask) -> tuple[int, ...] | None:
    """The voxel that lies deepest in the largest connected error; None where no error is three voxels thick."""
    from scipy import ndimage

    core = ndimage.binary_erosion(error, np.ones((3, 3, 3)))
    parts, count = ndimage.label(core)
    if not count:
        return None
    largest = parts == 1 + int(np.bincount(parts.reshape(-1))[1:].argmax())
    depth = ndimage.distance_transform_cdt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    return tuple(int(i) for i in np.unravel_index(int(depth.argmax()), depth.shape))


def _occurring(*maps: Label | None) -> dict[str, int]:
    ids = {int(i) for label in maps if label is not None for i in np.unique(label)} - {0}
    return {str(i): i for i in sorted(ids)}


def _select(label: Label | None, ids: int | Sequence[int]) -> Mask | None:
    return None if label is None else select(label, ids)


def _window(grey: npt.NDArray[Any]) -> tuple[float, float]:
    lower, upper = (float(value) for value in np.percentile(grey, WINDOW))
    return lower, max(upper, lower + 1e-6)


def _draw_plane(
    axes: Axes,
    grey: npt.NDArray[Any] | None,
    structures: Sequence[_Structure],
    window: tuple[float, float],
    shape: tuple[int, int],
    cut: int,
    index: int,
    width: float,
    height: float,
) -> None:
    """One plane of `shape` (rows, columns); `width` and `height` are a voxel's drawn sides. Arrays run R, A, S."""
    from matplotlib.patheffects import withStroke

    axes.set_axis_off()
    plane = np.zeros(shape) if grey is None else grey.take(index, cut).T
    axes.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", interpolation="bilinear", aspect=height / width)
    for _, colour, reference, prediction in structures:
        tint = colour if prediction is None else _pale(colour)
        for mask, style, shade, line in ((prediction, "solid", colour, 1.8), (reference, (0, (4, 2)), tint, 1.3)):
            outline = None if mask is None else mask.take(index, cut).T
            if outline is None or not outline.any():
                continue
            lines = axes.contour(
                np.arange(-1, shape[1] + 1),
                np.arange(-1, shape[0] + 1),
                np.pad(outline, 1).astype(np.float32),  # closes outlines at the volume's border
                levels=[0.5],
                colors=[shade],
                linewidths=line,
                linestyles=[style],
            )
            lines.set_path_effects([withStroke(linewidth=line + 1.2, foreground="#000000a0")])
    # the right and the anterior end of an axis lie at its upper indices and are drawn on the left
    axes.set_xlim(shape[1] - 0.5, -0.5)
    axes.set_ylim(-0.5, shape[0] - 0.5)


def _pale(colour: str) -> tuple[float, ...]:
    """A tint of the colour, towards white."""
    from matplotlib.colors import to_rgb

    return tuple(0.35 * part + 0.65 for part in to_rgb(colour))


def _write_letters(axes: Axes, letters: str, caption: str) -> None:
    from matplotlib.patheffects import withStroke

    casing = [withStroke(linewidth=2, foreground="#000000c0")]
    style: dict[str, Any] = {"transform": axes.transAxes, "color": _TEXT, "path_effects": casing}
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.985, "center", "top"),
        (0.5, 0.015, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(letters, places, strict=True):
        axes.text(x, y, letter, fontsize=10, weight="bold", ha=horizontal, va=vertical, **style)
    axes.text(0.02, 0.985, caption, fontsize=8, ha="left", va="top", **style)


def _write_legend(figure: Figure, structures: Sequence[_Structure], title: str) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, colour, reference, prediction in structures:
        dice = ""
        if reference is not None and prediction is not None:
            counts = count_voxels(prediction, reference)
            dice = f"  {counts.dice:.3f}" if counts.status == "ok" else f"  {counts.status}"
        handles.append(Line2D([], [], color=colour, linewidth=3, label=name + dice))
    if any(s.prediction is not None for s in structures):
        handles.append(Line2D([], [], color=_TEXT, linestyle="solid", label="prediction"))
    if any(s.reference is not None for s in structures):
        handles.append(Line2D([], [], color=_TEXT, linestyle="dashed", label="reference"))
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 8), frameon=False, labelcolor=_TEXT, fontsize=9)
    figure.suptitle(title, color=_TEXT, fontsize=11, y=0.99, va="top")
