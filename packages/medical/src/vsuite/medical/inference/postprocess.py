"""Cleaning a label map, only where it is asked for: what helps one organ deletes another's lesions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def keep_largest_component(label: NDArray[Any], ids: Iterable[int] | None = None) -> NDArray[Any]:
    """Keeps the largest connected component (faces, edges or corners touch) of each id; the rest becomes background.

    Args:
        label: X, Y, Z.
        ids: which ids; all but 0 if None.
    """
    return _filter(label, ids, lambda sizes: sizes == sizes.max())


def remove_small_components(
    label: NDArray[Any], smallest: float, spacing: Sequence[float], ids: Iterable[int] | None = None
) -> NDArray[Any]:
    """Turns connected components of less than `smallest` mm^3 into background.

    Args:
        label: X, Y, Z.
        smallest: volume in mm^3.
        spacing: voxel sides in mm.
        ids: which ids; all but 0 if None.
    """
    voxel = float(np.prod(spacing))
    return _filter(label, ids, lambda sizes: sizes * voxel >= smallest)


def _filter(label: NDArray[Any], ids: Iterable[int] | None, keeps: Any) -> NDArray[Any]:
    result = label.copy()
    for identifier in np.unique(label) if ids is None else ids:
        if identifier == 0:
            continue
        components, count = ndimage.label(label == identifier, np.ones((3, 3, 3)))
        if count:
            kept = np.array([True, *keeps(np.bincount(components.reshape(-1))[1:])])
            result[~kept[components]] = 0
    return result
