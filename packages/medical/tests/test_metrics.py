"""Metrics on masks that can be computed by hand, their invariants, and the table of conventions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from vsuite.core.errors import InputError
from vsuite.core.evaluation import Evaluator, create_metric
from vsuite.medical.metrics import CONVENTIONS, bounding_box, compare_label_maps, compare_masks, count_voxels, surface, surface_distances

NAN, INF = math.nan, math.inf
SPACING = (0.8, 1.2, 2.5)
mask_pairs = st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def box(shape: tuple[int, ...], *sides: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[sides] = True
    return mask


def test_shifted_cubes_by_hand() -> None:
    reference = box((10, 10, 10), slice(2, 6), slice(2, 6), slice(2, 6))
    prediction = np.roll(reference, 1, axis=2)
    scores = compare_masks(prediction, reference, (1.0, 1.0, 2.0), nsd_tolerance_mm=1.9)
    assert scores.status == "ok"
    assert (scores.counts.tp, scores.counts.fp, scores.counts.fn, scores.counts.tn) == (48, 16, 16, 920)
    assert scores.dice == 0.75
    assert scores.iou == 0.6
    assert scores.volume_pred_ml == scores.volume_ref_ml == pytest.approx(0.128)
    assert scores.hd == scores.hd95 == 2.0  # a whole face of 16 of the 56 surface voxels lies one voxel of 2 mm away
    # of 56 surface voxels the far face (16) is 2 mm off, the inner 4 of the near face 1 mm, and the rest touch
    assert scores.assd == pytest.approx((16 * 2 + 4 * 1) / 56)
    assert scores.nsd == pytest.approx(40 / 56)


def test_two_voxels_by_hand() -> None:
    prediction, reference = box((9, 9, 9), *[slice(1, 2)] * 3), box((9, 9, 9), *[slice(4, 5)] * 3)
    want = math.sqrt(sum((3 * s) ** 2 for s in SPACING))
    scores = compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=want)
    assert (scores.dice, scores.iou, scores.nsd) == (0, 0, 1)
    assert scores.hd == scores.hd95 == scores.assd == pytest.approx(want)
    assert compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=want - 0.01).nsd == 0


def test_a_stray_voxel_moves_the_maximum_but_not_the_percentile() -> None:
    reference = box((40, 20, 20), slice(2, 12), slice(2, 12), slice(2, 12))
    prediction = reference.copy()
    prediction[35, 5, 5] = True
    scores = compare_masks(prediction, reference, (1, 1, 1))
    assert scores.hd == 24
    assert scores.hd95 == 0
    distances = surface_distances(reference, prediction, (1, 1, 1))
    assert distances.hausdorff(directed=True) == 0  # every voxel of the reference's surface is also the prediction's


def test_directed_percentiles_and_the_pooled_one_differ() -> None:
    reference = box((30, 1, 1), slice(0, 1))  # one voxel against a line of twenty
    prediction = box((30, 1, 1), slice(0, 20))
    distances = surface_distances(prediction, reference, (1, 1, 1))
    assert np.array_equal(distances.to_reference, np.arange(20))
    assert np.array_equal(distances.to_prediction, [0])
    assert distances.hausdorff(95) == pytest.approx(np.percentile(np.arange(20), 95))
    assert distances.pooled_hausdorff(95) == pytest.approx(np.percentile([0, *range(20)], 95))


@given(mask_pairs)
@settings(max_examples=60, deadline=None)
def test_distances_are_those_of_the_distance_transform(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, reference = pair
    assume(prediction.any() and reference.any())
    ours, theirs = (mask & ~ndimage.binary_erosion(mask) for mask in pair)
    got = surface_distances(prediction, reference, SPACING)
    assert np.allclose(got.to_reference, ndimage.distance_transform_edt(~theirs, sampling=SPACING)[ours])
    assert np.allclose(got.to_prediction, ndimage.distance_transform_edt(~ours, sampling=SPACING)[theirs])


@given(st.tuples(*[st.integers(1, 7)] * 3).flatmap(lambda shape: arrays(bool, shape)))
@settings(max_examples=60, deadline=None)
def test_surface_is_the_mask_minus_its_erosion(mask: np.ndarray) -> None:
    assert np.array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))
    inside = mask[bounding_box(mask)]
    assert inside.sum() == mask.sum()
    if mask.any():
        assert all(inside.any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))


def numbers(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], **options: float) -> list[float]:
    s = compare_masks(prediction, reference, spacing, **options)
    return [s.dice, s.iou, s.hd, s.hd95, s.assd, s.nsd]


@given(mask_pairs)
@settings(max_examples=40, deadline=None)
def test_invariants(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, reference = pair
    want = numbers(prediction, reference, SPACING)
    assert numbers(reference, prediction, SPACING) == pytest.approx(want, nan_ok=True)  # nnunet's convention is symmetric too
    assert numbers(prediction[::-1, :, ::-1], reference[::-1, :, ::-1], SPACING) == pytest.approx(want, nan_ok=True)
    turned = [m.transpose(2, 0, 1) for m in pair]
    assert numbers(*turned, (SPACING[2], SPACING[0], SPACING[1])) == pytest.approx(want, nan_ok=True)
    padded = [np.pad(m, 2) for m in pair]
    assert numbers(*padded, SPACING) == pytest.approx(want, nan_ok=True)
    scaled = numbers(prediction, reference, tuple(3 * s for s in SPACING), nsd_tolerance_mm=3.0)
    assert scaled == pytest.approx([*want[:2], *(3 * v for v in want[2:5]), want[5]], nan_ok=True)


@given(mask_pairs, st.floats(0, 5), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_bounds(pair: tuple[np.ndarray, np.ndarray], first: float, second: float) -> None:
    prediction, reference = pair
    scores = compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=first)
    counts = scores.counts
    assert counts.tp + counts.fp + counts.fn + counts.tn == prediction.size
    assert (counts.n_pred, counts.n_ref) == (prediction.sum(), reference.sum())
    if scores.status != "ok":
        return
    assert scores.iou == pytest.approx(scores.dice / (2 - scores.dice))
    assert 0 <= scores.hd95 <= scores.hd
    assert scores.assd <= scores.hd
    low, high = sorted((first, second))
    assert (
        compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=low).nsd
        <= compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=high).nsd
    )
    assert compare_masks(prediction, reference, SPACING, nsd_tolerance_mm=scores.hd + 1e-9).nsd == 1


# convention -> (Dice, HD95, HD, ASSD, NSD) where both are empty, the reference is, the prediction is
TABLE = {
    "monai": [(NAN, NAN, NAN, NAN, NAN), (NAN, NAN, INF, INF, 0), (0, NAN, INF, INF, 0)],
    "nnunet": [(NAN, NAN, NAN, NAN, NAN), (0, NAN, NAN, NAN, 0), (0, NAN, NAN, NAN, 0)],
    "brats": [(1, 0, 0, 0, 1), (0, 373.13, 373.13, 373.13, 0), (0, 373.13, 373.13, 373.13, 0)],
    "paper:transunet": [(0, 0, NAN, NAN, NAN), (1, 0, NAN, NAN, 0), (0, 0, NAN, NAN, 0)],
    "paper:segformer3d": [(0, NAN, NAN, NAN, 0), (0, NAN, NAN, NAN, 0), (0, NAN, NAN, NAN, 0)],
}


def test_every_convention_is_in_the_table() -> None:
    assert CONVENTIONS.keys() == TABLE.keys()


@pytest.mark.parametrize("convention", list(TABLE))
@pytest.mark.parametrize(("case", "status"), list(enumerate(["both empty", "false alarm", "missed"])))
def test_empty_masks(convention: str, case: int, status: str) -> None:
    empty, full = np.zeros((4, 4, 4), bool), box((4, 4, 4), slice(1, 3))
    prediction, reference = [(empty, empty), (full, empty), (empty, full)][case]
    scores = compare_masks(prediction, reference, (1, 1, 1), convention=convention)
    assert scores.status == status
    assert [scores.dice, scores.hd95, scores.hd, scores.assd, scores.nsd] == pytest.approx(list(TABLE[convention][case]), nan_ok=True)
    assert scores.iou == pytest.approx(scores.dice, nan_ok=True)
    assert scores.volume_pred_ml == pytest.approx(prediction.sum() / 1000)


def test_transunet_measures_in_voxels_and_over_both_lists() -> None:
    prediction, reference = box((30, 3, 3), slice(0, 20), slice(1, 2), slice(1, 2)), box((30, 3, 3), slice(0, 1), slice(1, 2), slice(1, 2))
    scores = compare_masks(prediction, reference, (2.5, 1, 1), convention="paper:transunet")
    assert scores.hd95 == pytest.approx(np.percentile([0, *range(20)], 95))
    assert scores.hd == pytest.approx(19 * 2.5)
    assert CONVENTIONS["paper:transunet"].distance_unit == "voxels"
    assert CONVENTIONS["nnunet"].distance_unit == "mm"


def test_label_maps_with_regions_and_ignored_voxels() -> None:
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[1:3, 1:3, 1:3], reference[3:5, 1:3, 1:3] = 1, 2
    prediction = np.where(reference == 2, 1, reference).astype(np.uint8)  # all of 2 is called 1
    scores = compare_label_maps(prediction, reference, {"one": 1, "two": 2, "both": [1, 2]}, (1, 1, 1))
    assert scores["one"].dice == pytest.approx(2 * 8 / (16 + 8))
    assert scores["two"].status == "missed"
    assert scores["both"].dice == 1
    assert scores["one"].counts.tn == 216 - 16
    ignoring = compare_label_maps(prediction, reference, {"one": 1}, (1, 1, 1), ignore=2)
    assert ignoring["one"].dice == 1
    assert ignoring["one"].counts.tn == 216 - 8 - 8


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_label_maps_agree_with_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (np.pad(rng.integers(0, 4, (4, 5, 3)).astype(np.uint8), ((0, 2), (1, 0), (3, 1))) for _ in range(2))
    scores = compare_label_maps(prediction, reference, {"a": 1, "b": 2, "c": 3}, SPACING)
    assert scores == {name: compare_masks(prediction == i, reference == i, SPACING) for name, i in (("a", 1), ("b", 2), ("c", 3))}


def test_dice_in_the_evaluator() -> None:
    reference = np.array([[[0, 1, 1, 2]]])
    evaluator = Evaluator([create_metric("dice", labels={"a": 1, "b": 2})])
    evaluator.update(0, "first", prediction=reference, reference=reference)
    evaluator.update(1, "second", prediction=np.array([[[0, 1, 0, 0]]]), reference=np.array([[[0, 1, 1, 0]]]))
    result = evaluator.compute()
    assert result.rows[1].values["dice/a"] == pytest.approx(2 / 3)
    assert math.isnan(result.rows[1].values["dice/b"])
    assert result.rows[1].values["dice"] == pytest.approx(2 / 3)
    assert result.summary == pytest.approx({"dice": (5 / 6 + 1) / 2, "dice/a": 5 / 6, "dice/b": 1.0})
    assert result.counts["dice/b"] == 1


def test_counts() -> None:
    counts = count_voxels(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool))
    assert (counts.tp, counts.fp, counts.fn, counts.tn, counts.dice, counts.iou) == (1, 1, 1, 1, 0.5, 1 / 3)


def test_wrong_input_is_named() -> None:
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="did you mean 'nnunet'"):
        compare_masks(mask, mask, (1, 1, 1), convention="nnUnet")
    with pytest.raises(InputError, match="do not fit together"):
        compare_masks(mask, mask[:1], (1, 1, 1))
    with pytest.raises(InputError, match="not empty"):
        surface_distances(mask, ~mask, (1, 1, 1))
