"""Cleaning a label map, only where it is asked for: what helps one organ deletes another's lesions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vsuite.medical.data.labels import ids_in
from vsuite.medical.metrics import bounding_box, select

Structure = int | Sequence[int]  # an id, or ids that count as one


def keep_largest_component(label: NDArray[Any], ids: Iterable[Structure] | None = None) -> NDArray[Any]:
    """Keeps the largest connected component (faces, edges or corners touch) of each id; the rest becomes background.

    Args:
        label: X, Y, Z.
        ids: which ids, or groups of ids that count as one structure; each but 0 by itself if None.
    """
    return _filter(label, ids, lambda sizes: np.arange(len(sizes)) == sizes.argmax())


def remove_small_components(
    label: NDArray[Any], smallest: float, spacing: Sequence[float], ids: Iterable[Structure] | None = None
) -> NDArray[Any]:
    """Turns connected components of less than `smallest` mm^3 into background.

    Args:
        label: X, Y, Z.
        smallest: volume in mm^3.
        spacing: voxel sides in mm.
        ids: which ids, or groups of ids that count as one structure; each but 0 by itself if None.
    """
    voxel = float(np.prod(spacing))
    return _filter(label, ids, lambda sizes: sizes * voxel >= smallest)


def _filter(label: NDArray[Any], ids: Iterable[Structure] | None, keeps: Callable[[NDArray[Any]], Any]) -> NDArray[Any]:
    result = label.copy(order="K")
    for structure in sorted(ids_in(label) - {0}) if ids is None else ids:
        mask = select(label, structure)
        box = bounding_box(mask)
        components, count = ndimage.label(mask[box], np.ones((3, 3, 3)))
        if count:
            kept = np.array([True, *keeps(np.bincount(components.reshape(-1))[1:])])
            result[box][~kept[components]] = 0
    return result
