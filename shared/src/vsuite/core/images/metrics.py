"""Metrics of classifiers, from the probabilities of all images: accuracy, AUC, average precision, the confusion matrix.

What is not defined (the AUC of a class that no image, or every image, has) is NaN and enters no mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.evaluation.metrics import mean

Scores = NDArray[np.floating]  # N, K
Truth = NDArray[np.bool_]  # N, K


def truth_table(labels: Sequence[Sequence[int]], num_classes: int) -> Truth:
    """Class indices of each image -> N, K."""
    truth = np.zeros((len(labels), num_classes), bool)
    for row, found in enumerate(labels):
        truth[row, list(found)] = True
    return truth


def classification_metrics(scores: Scores, truth: Truth, classes: Sequence[str], *, multi_label: bool) -> dict[str, float]:
    """All metrics by name; those of single classes end in "/class".

    Args:
        scores: N, K probabilities. truth: N, K; one class an image unless multi-label.

    Returns:
        Single-label: top1, top5 (with more than five classes), mean_class_accuracy, auc (macro, one against the rest),
        accuracy/CLASS, auc/CLASS. Multi-label: mean_average_precision, auc, f1 and exact_match at 0.5,
        average_precision/CLASS, auc/CLASS.
    """
    if scores.shape != truth.shape or not len(scores):
        raise InputError(f"metrics need scores and truth of one shape N, K; got {scores.shape} and {truth.shape}")
    aucs = [roc_auc(scores[:, k], truth[:, k]) for k in range(len(classes))]
    by_class = {f"auc/{name}": value for name, value in zip(classes, aucs, strict=True)}
    if multi_label:
        precisions = [average_precision(scores[:, k], truth[:, k]) for k in range(len(classes))]
        found = scores >= 0.5
        hits = 2 * (found & truth).sum(axis=0)
        f1 = hits / np.where(found.sum(axis=0) + truth.sum(axis=0), found.sum(axis=0) + truth.sum(axis=0), np.nan)
        overall = {
            "mean_average_precision": mean(precisions),
            "auc": mean(aucs),
            "f1": mean(f1.tolist()),
            "exact_match": float((found == truth).all(axis=1).mean()),
        }
        return overall | {f"average_precision/{n}": v for n, v in zip(classes, precisions, strict=True)} | by_class
    wanted = truth.argmax(axis=1)
    right = scores.argmax(axis=1) == wanted
    accuracies = [float(right[wanted == k].mean()) if (wanted == k).any() else float("nan") for k in range(len(classes))]
    overall = {"top1": float(right.mean())}
    if len(classes) > 5:
        overall["top5"] = float((ranks(scores, wanted) < 5).mean())
    overall |= {"mean_class_accuracy": mean(accuracies), "auc": mean(aucs)}
    return overall | {f"accuracy/{n}": v for n, v in zip(classes, accuracies, strict=True)} | by_class


def ranks(scores: Scores, wanted: NDArray[np.integer]) -> NDArray[np.integer]:
    """How many classes an image's own comes after, from 0; of equal scores the first class comes first. N."""
    own = np.take_along_axis(scores, wanted[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < wanted[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def roc_auc(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half. NaN without both kinds."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    places = counts.cumsum() - (counts - 1) / 2  # mean rank, from 1, of equal scores
    total = float(places[group][truth].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


@dataclass(frozen=True)
class Interval:
    """Ends of a confidence interval; NaN where the value itself is not defined."""

    low: float
    high: float


def auc_intervals(
    scores: Scores,
    truth: Truth,
    classes: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals (percentiles) of the AUCs, under the names that `classification_metrics` gives them: auc, auc/CLASS.

    All classes are drawn together, so that the interval of their mean knows how they hang together. In a draw without both
    kinds of a class this class is not defined, and is left out as anywhere.

    Args:
        scores: N, K. truth: N, K.
        groups: of each image what it belongs to (its patient): whole groups are drawn, since their images resemble one
            another and single draws would give too narrow intervals. None draws single images.
        level: share of the draws that lie within, in (0, 1).
        resamples: number of draws, 1 or more.
    """
    if scores.shape != truth.shape or scores.ndim != 2 or not len(scores) or len(classes) != scores.shape[1]:
        raise InputError(f"intervals need scores and truth of one shape N, {len(classes)}; got {scores.shape} and {truth.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level must lie in (0, 1) and resamples be 1 or more; got {level} and {resamples}")
    number = len(scores)
    if groups is not None and len(groups) != number:
        raise InputError(f"groups needs one entry an image: {number}; got {len(groups)}")
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))} if groups is not None else {}
    member = np.array([index[group] for group in groups]) if groups is not None else np.arange(number)
    units = len(index) or number
    draws = np.random.default_rng(seed)
    found = np.empty((resamples, len(classes)))
    sorted_by = [_score_order(scores[:, k]) for k in range(len(classes))]
    for row in found:
        times = np.bincount(draws.integers(0, units, units), minlength=units)[member]  # how often each image was drawn
        row[:] = [_weighted_auc(*sorted_by[k], truth[:, k], times) for k in range(len(classes))]
    means = np.array([mean(row.tolist()) for row in found])
    intervals = {"auc": _percentiles(means, level)}
    return intervals | {f"auc/{name}": _percentiles(found[:, k], level) for k, name in enumerate(classes)}


def _percentiles(values: NDArray[np.floating], level: float) -> Interval:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _score_order(scores: NDArray[np.floating]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The images by rising score, and where each group of equal scores begins among them."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))


def _weighted_auc(order: NDArray[np.integer], starts: NDArray[np.integer], truth: NDArray[np.bool_], times: NDArray[np.integer]) -> float:
    """`roc_auc` where each image counts as often as `times` says."""
    positive = np.where(truth, times, 0)[order]
    positives = np.add.reduceat(positive, starts)
    negatives = np.add.reduceat(times[order] - positive, starts)
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return float("nan")
    below = negatives.cumsum() - negatives / 2
    return float((positives * below).sum() / pairs)


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve as a sum of steps; equal scores are one step. NaN without positives."""
    positives = int(truth.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last place of each group of equal scores
    hits = truth[order].cumsum()[ends]
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (ends + 1)).sum() / positives)


def confusion_matrix(wanted: NDArray[np.integer], found: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """K, K counts: rows are true classes, columns predicted ones."""
    return np.bincount(wanted * num_classes + found, minlength=num_classes**2).reshape(num_classes, num_classes)
