"""Label files <-> what the network is trained on and puts out, as the plan's labels say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vsuite.medical.data.geometry import label_to_regions
from vsuite.medical.plan import Plan

Labels = Mapping[str, int | Sequence[int]]

IGNORE_INDEX = -100
"""The target of voxels that carry no label (the plan's id "ignore"); the value that torch's cross-entropy leaves out."""


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
