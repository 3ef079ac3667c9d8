"""Metrics and losses of shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vsuite.core import InputError
from vsuite.pointcloud.losses import smooth_loss
from vsuite.pointcloud.metrics.shapes import (
    classification_scores,
    confusion,
    limit_to_parts,
    mean_ious,
    shape_ious,
)

PARTS = [[0, 1, 2], [3, 4]]


def test_accuracies() -> None:
    scores = classification_scores([0, 0, 1, 2, 2], [0, 1, 1, 2, 2], 4)
    assert scores["oa"] == pytest.approx(4 / 5)
    assert scores["macc"] == pytest.approx((1 + 0.5 + 1) / 3)  # class 3 does not occur and is left out
    assert scores["recall"].tolist()[:3] == [1, 0.5, 1]
    assert math.isnan(scores["recall"][3])
    assert scores["absent"] == 1
    assert math.isnan(classification_scores([], [], 4)["oa"])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_accuracies_by_counting(pairs: list[tuple[int, int]]) -> None:
    predicted, true = zip(*pairs, strict=True)
    scores = classification_scores(predicted, true, 5)
    assert scores["oa"] == pytest.approx(np.mean([p == t for p, t in pairs]))
    assert scores["macc"] == pytest.approx(np.mean([np.mean([p == t for p, t in pairs if t == kind]) for kind in set(true)]))
    assert confusion(predicted, true, 5)[true[0], predicted[0]] == pairs.count(pairs[0])


def test_part_iou_by_hand() -> None:
    target = np.array([[0, 0, 1, 1], [3, 3, 3, 3]])
    predicted = np.array([[0, 1, 1, 1], [3, 3, 3, 3]])
    first = (1 / 2 + 2 / 3 + 1) / 3  # part 2 is in neither: 1
    assert shape_ious(predicted, target, [0, 1], PARTS).tolist() == pytest.approx([first, 1.0])
    assert shape_ious(predicted, target, [0, 1], PARTS, absent_parts="left out").tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])
    means = mean_ious([0.5, 0.7, 0.9], [0, 0, 1])
    assert means["instance_miou"] == pytest.approx(0.7)
    assert means["class_miou"] == pytest.approx((0.6 + 0.9) / 2)
    assert means["categories"] == pytest.approx({0: 0.6, 1: 0.9})


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_part_iou_properties(shapes: int, points: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    category = generator.integers(0, 2, shapes)
    target = np.stack([generator.choice(PARTS[kind], points) for kind in category])
    predicted = np.stack([generator.choice(PARTS[kind], points) for kind in category])
    assert shape_ious(target, target, category, PARTS).tolist() == [1.0] * shapes
    ious = shape_ious(predicted, target, category, PARTS)
    assert np.all((ious >= 0) & (ious <= 1))
    order = generator.permutation(points)
    assert shape_ious(predicted[:, order], target[:, order], category, PARTS).tolist() == ious.tolist()


def test_predictions_are_limited_to_the_category() -> None:
    logits = np.zeros((2, 3, 5))
    logits[:, :, 4] = 9  # the best of all
    logits[0, 1, 2] = 1
    assert limit_to_parts(logits, [0, 1], PARTS).tolist() == [[0, 2, 0], [4, 4, 4]]


def test_wrong_arguments() -> None:
    for call, message in (
        (lambda: classification_scores([0, 5], [0, 1], 4), "predictions must be 0 to 3"),
        (lambda: classification_scores([0], [0, 1], 4), "1 predictions and 2 labels"),
        (lambda: classification_scores([0.5], [0], 4), "must be integers"),
        (lambda: shape_ious([[0]], [[0]], [2], PARTS), "categories must be 0 to 1"),
        (lambda: shape_ious([[0, 1]], [[0]], [0], PARTS), "do not fit"),
        (lambda: limit_to_parts(np.zeros((2, 3)), [0, 1], PARTS), "shapes, points, parts"),
        (lambda: smooth_loss(torch.zeros(2, 1), torch.zeros(2).long()), "2 or more classes"),
        (lambda: smooth_loss(torch.zeros(2, 3), torch.zeros(3).long()), r"labels must be \(2,\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@given(st.integers(2, 12), st.floats(0, 0.9), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_smooth_loss_is_cross_entropy_with_its_own_target(classes: int, eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, classes, generator=generator)
    label = torch.randint(0, classes, (4, 3), generator=generator)
    target = torch.full((4, 3, classes), eps / (classes - 1)).scatter(-1, label.unsqueeze(-1), 1 - eps)
    want = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(smooth_loss(logits, label, eps), want)
    torch.testing.assert_close(smooth_loss(logits, label, 0.0), F.cross_entropy(logits.flatten(0, 1), label.flatten()))
