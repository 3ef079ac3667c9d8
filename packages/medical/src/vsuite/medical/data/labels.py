"""Label files <-> what the network is trained on and puts out, as the plan's labels say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.medical.data.geometry import label_to_regions
from vsuite.medical.plan import Plan

Labels = Mapping[str, int | Sequence[int]]

IGNORE_INDEX = -100
"""The target of voxels that carry no label (the plan's id "ignore"); the value that torch's cross-entropy leaves out."""

BACKGROUND_NAMES = {"background", "bg", "unlabeled", "unlabelled", "clear label", "none"}


def first_items(items: Iterable[object], count: int = 3) -> str:
    """The first few items and how many more there are, such as "a, b, c and 12 more"."""
    names = [str(item) for item in items]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def labels_by_name(given: Mapping[Any, Any]) -> tuple[dict[str, int | list[int]], list[str]]:
    """Labels as name -> id or ids, from that or from Decathlon's id -> name; the background first and called "background".

    Returns:
        The labels, and what is wrong with those that were given.
    """
    labels: dict[str, int | list[int]] = {}
    problems: list[str] = []
    for key, value in given.items():
        by_id = str(key).isdigit() and isinstance(value, str)
        name, ids = (value, int(key)) if by_id else (str(key), value)
        if isinstance(ids, str) and ids.isdigit():
            ids = int(ids)
        values = list(ids) if isinstance(ids, list | tuple) else [ids]
        if not values or not all(isinstance(i, int) and i >= 0 for i in values):
            problems.append(f"label {name!r} has the id {ids!r}; ids are whole numbers from 0 up, or lists of them for a region")
            continue
        if ids == 0:
            if name.strip().lower() not in BACKGROUND_NAMES:
                problems.append(f"label id 0 is named {name!r}; 0 is the background, so give {name!r} another id")
            name = "background"
        if name in labels:
            problems.append(f"two labels are named {name!r}")
        labels[name] = values if isinstance(ids, list | tuple) else values[0]
    labels = {"background": 0, **labels}
    plain = Counter(ids for name, ids in labels.items() if isinstance(ids, int) and name != "ignore")
    if twice := sorted(i for i, n in plain.items() if n > 1):
        problems.append(f"ids with two names: {first_items(twice)}")
    return labels, problems


def ids_in(label: np.ndarray) -> set[int]:
    """The ids in a label map; counting is ten times as quick as sorting, plane by plane since it copies to 64 bits."""
    if label.dtype.itemsize > 2:
        return {int(i) for i in np.unique(label)}
    found: set[int] = set()
    for plane in np.moveaxis(label, -1, 0):
        found.update(np.flatnonzero(np.bincount(plane.reshape(-1))).tolist())
    return found


def check_ids(label: np.ndarray, labels: Labels, path: Path) -> None:
    """Raises `InputError`, naming the file, where a label map holds ids that the labels do not name."""
    allowed = ids_of(labels)
    if strange := sorted(ids_in(label) - allowed):
        raise InputError(f"{path}: label ids {first_items(strange, 8)} are not in the label map, which has {sorted(allowed)}")


def ids_of(labels: Labels) -> set[int]:
    """Every id that a label file may hold: the background, the ids of all labels and regions, and the one to ignore."""
    return {0}.union(*({ids} if isinstance(ids, int) else set(ids) for ids in labels.values()))


def encode(label: np.ndarray, plan: Plan) -> np.ndarray:
    """The training target of a label map.

    Args:
        label: integer ids of any shape S.

    Returns:
        int16 of shape 1, *S: the index of the softmax output, 0 for the background; or with regions int16 of
        shape K, *S: 1 inside each region. Voxels of the id "ignore" are `IGNORE_INDEX` in every channel. Ids that the
        plan does not name are background.
    """
    foreground = list(plan.foreground.values())
    if plan.has_regions:
        target = label_to_regions(label, [[ids] if isinstance(ids, int) else ids for ids in foreground]).astype(np.int16)
    else:
        target = np.zeros((1, *label.shape), np.int16)
        for index, identifier in enumerate(foreground, 1):
            target[0][label == identifier] = index
    if "ignore" in plan.labels:
        target[:, label == plan.labels["ignore"]] = IGNORE_INDEX
    return target


def classes_to_ids(classes: np.ndarray, plan: Plan) -> np.ndarray:
    """Indices of softmax outputs (argmax) -> ids of the label file; uint8 where the ids fit."""
    ids = [0, *plan.foreground.values()]
    return np.array(ids, dtype=_dtype(plan))[classes]


def regions_to_ids(masks: np.ndarray, plan: Plan) -> np.ndarray:
    """Masks K, *S, one a region, of regions that may overlap -> one label map S by the plan's `regions_class_order`."""
    label = np.zeros(masks.shape[1:], dtype=_dtype(plan))
    for region in writing_order(plan):
        label[masks[region].astype(bool)] = (plan.regions_class_order or [])[region]
    return label


def writing_order(plan: Plan) -> list[int]:
    """The order in which regions are written, later ones over earlier ones: as listed, but a region never before one that holds it.

    nnU-Net's data sets list large regions first, which this keeps. The published BraTS weights put out tumour core before
    whole tumour; written as listed, the whole would hide the core.
    """
    regions = [{ids} if isinstance(ids, int) else set(ids) for ids in plan.foreground.values()]
    left, order = list(range(len(regions))), []
    while left:
        region = next(r for r in left if not any(regions[r] < regions[other] for other in left))
        left.remove(region)
        order.append(region)
    return order


def _dtype(plan: Plan) -> type[np.integer]:
    largest = max([*ids_of(plan.labels), *(plan.regions_class_order or [])])
    return np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32
