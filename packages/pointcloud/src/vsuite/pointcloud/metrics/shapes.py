"""Accuracy of shape classification, and IoU of part segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsuite.core.errors import InputError

DEFINITIONS = {
    "oa": "overall accuracy: correct shapes / all shapes, without voting",
    "macc": "mean class accuracy: mean over the classes that occur of correct shapes of the class / shapes of the class",
    "instance_miou": (
        "mean over shapes of the shape's IoU, the mean over the parts of its category of |prediction and truth| / |prediction or truth|,"
        " where a part absent from both counts 1; predictions limited to the category's parts"
    ),
    "class_miou": "mean over the categories that occur of the mean IoU of their shapes, shapes as in instance_miou",
}


def confusion(prediction: ArrayLike, target: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts of shapes, true class by predicted class: K, K.

    Args:
        prediction, target: integers 0 to num_classes - 1, of one shape.
    """
    predicted, true = _integers(prediction, "predictions"), _integers(target, "labels")
    if predicted.shape != true.shape:
        raise InputError(f"there are {predicted.size} predictions and {true.size} labels")
    for name, values in (("predictions", predicted), ("labels", true)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise InputError(f"{name} must be 0 to {num_classes - 1}; they reach from {values.min()} to {values.max()}")
    counts = np.bincount(num_classes * true.ravel() + predicted.ravel(), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def classification_scores(prediction: ArrayLike, target: ArrayLike, num_classes: int) -> dict[str, Any]:
    """Overall and mean class accuracy, see `DEFINITIONS`.

    Returns:
        oa, macc: 0 to 1, NaN without shapes. recall: K values, NaN for classes that do not occur. absent: how many do not.
    """
    counts = confusion(prediction, target, num_classes)
    total = counts.sum(axis=1)
    recall = np.divide(counts.diagonal(), total, out=np.full(num_classes, np.nan), where=total > 0)
    occurs = total > 0
    return {
        "oa": float(counts.trace() / total.sum()) if occurs.any() else float("nan"),
        "macc": float(recall[occurs].mean()) if occurs.any() else float("nan"),
        "recall": recall,
        "absent": int((~occurs).sum()),
    }


def limit_to_parts(logits: ArrayLike, category: ArrayLike, parts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The best part of each point among those of the shape's category.

    Args:
        logits: S, N, all parts.
        category: S, integers that index `parts`.
        parts: the parts of each category.

    Returns:
        S, N, parts.
    """
    scores, kinds = np.asarray(logits), _categories(category, parts)
    if scores.ndim != 3 or len(scores) != len(kinds):
        raise InputError(f"logits must be shapes, points, parts for {len(kinds)} categories; got {scores.shape}")
    found = np.empty(scores.shape[:2], np.int64)
    for i, kind in enumerate(kinds):
        own = np.asarray(parts[kind])
        found[i] = own[scores[i][:, own].argmax(axis=1)]
    return found


def shape_ious(
    prediction: ArrayLike,
    target: ArrayLike,
    category: ArrayLike,
    parts: Sequence[Sequence[int]],
    *,
    absent_parts: Literal["count 1", "left out"] = "count 1",
) -> NDArray[np.float64]:
    """The IoU of each shape: mean over the parts of its category.

    Args:
        prediction, target: parts of each point, S, N.
        category: S, integers that index `parts`.
        parts: the parts of each category.
        absent_parts: "count 1": a part absent from prediction and truth counts 1, as PointNet++ defines it (the one to
            report). "left out": only parts that occur in the truth count, as PointMLP's code does.

    Returns:
        S values, 0 to 1; with "left out" NaN where no part of the category occurs.
    """
    predicted, true, kinds = _integers(prediction, "predictions"), _integers(target, "labels"), _categories(category, parts)
    if predicted.ndim != 2 or predicted.shape != true.shape or len(predicted) != len(kinds):
        raise InputError(f"predictions, labels and categories do not fit: {predicted.shape}, {true.shape} and {kinds.shape}")
    ious = np.empty(len(kinds))
    for i, kind in enumerate(kinds):
        own = np.asarray(parts[kind])[:, None]
        found, wanted = predicted[i] == own, true[i] == own  # parts, points
        both, either = (found & wanted).sum(axis=1), (found | wanted).sum(axis=1)
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        iou = iou[wanted.any(axis=1)] if absent_parts == "left out" else iou
        ious[i] = iou.mean() if iou.size else np.nan
    return ious


def mean_ious(ious: ArrayLike, category: ArrayLike) -> dict[str, Any]:
    """instance_miou and class_miou (see `DEFINITIONS`) of what `shape_ious` returns, and `categories`: category -> its mean."""
    values, kinds = np.asarray(ious, np.float64), _integers(category, "categories")
    if not values.size:
        return {"instance_miou": float("nan"), "class_miou": float("nan"), "categories": {}}
    means = {int(kind): float(np.nanmean(values[kinds == kind])) for kind in np.unique(kinds)}
    return {"instance_miou": float(np.nanmean(values)), "class_miou": float(np.mean(list(means.values()))), "categories": means}


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be integers; got {array.dtype}")
    return array.astype(np.int64)


def _categories(category: ArrayLike, parts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    kinds = _integers(category, "categories")
    if kinds.size and not 0 <= kinds.min() <= kinds.max() < len(parts):
        raise InputError(f"categories must be 0 to {len(parts) - 1}; they reach from {kinds.min()} to {kinds.max()}")
    return kinds
