"""How well actions are told apart: top-k and mean class accuracy, confusion, and several clips of one video."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError


def top_k_accuracy(scores: NDArray, labels: NDArray, k: int = 1) -> float:
    """The share of samples whose label is among the k highest scores.

    Args:
        scores: N, K.
        labels: N, integers from 0 to K - 1.
    """
    scores, labels = _checked(scores, labels)
    if k < 1:
        raise InputError(f"k must be 1 or more; got {k}")
    best = np.argsort(scores, axis=1)[:, ::-1][:, :k]
    return float((best == labels[:, None]).any(1).mean())


def confusion(scores: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """K, K: how many samples of each class (rows) were taken for each (columns)."""
    scores, labels = _checked(scores, labels)
    table = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(table, (labels, scores.argmax(1)), 1)
    return table


def mean_class_accuracy(scores: NDArray, labels: NDArray, *, absent: Literal["zero", "skip"] = "zero") -> float:
    """The mean over classes of the share of their samples that was found.

    Args:
        scores: N, K.
        labels: N, integers.
        absent: what becomes of a class without samples. "zero": as pyskl, it counts 0 if it was predicted, else it is left out;
            "skip": it is left out, which is the balanced accuracy.
    """
    if absent not in ("zero", "skip"):
        raise InputError(f"absent must be 'zero' or 'skip'; got {absent!r}")
    table = confusion(scores, labels)
    counts = table.sum(1)
    counted = (counts > 0) | (table.sum(0) > 0) if absent == "zero" else counts > 0
    return float((np.diag(table)[counted] / np.maximum(counts[counted], 1)).mean())


def average_clips(scores: NDArray, num_clips: int, *, average: Literal["probability", "score"] = "probability") -> NDArray:
    """Scores of clips -> scores of videos.

    Args:
        scores: N * num_clips, K; the clips of a video one after the other.
        average: "probability": the mean of the softmax, "score": of the scores.

    Returns:
        N, K.
    """
    if average not in ("probability", "score"):
        raise InputError(f"average must be 'probability' or 'score'; got {average!r}")
    if scores.ndim != 2 or num_clips < 1 or len(scores) % num_clips:
        raise InputError(f"scores must be videos * {num_clips} clips, classes; got {scores.shape}")
    if average == "probability":
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores = scores / scores.sum(1, keepdims=True)
    return scores.reshape(-1, num_clips, scores.shape[1]).mean(1)


def _checked(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise InputError(f"scores and labels must be N, K and N with N from 1; got {scores.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise InputError(
            f"labels must be integers from 0 to {scores.shape[1] - 1}; got {labels.dtype} from {labels.min()} to {labels.max()}"
        )
    if not np.isfinite(scores).all():
        raise InputError("scores hold NaN or infinite values")
    return scores, labels
