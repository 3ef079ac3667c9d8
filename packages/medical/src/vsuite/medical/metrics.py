"""Segmentation metrics of one structure: overlap, surface distances in mm, volumes, and what empty masks count as.

Surfaces are the mask's voxels with a face neighbour outside it (mask minus its erosion; beyond the array counts as
outside); distances are between voxel centres. DeepMind's area-weighted variants differ slightly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError, unknown
from vsuite.core.evaluation.metrics import Metric, mean, register_metric

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.integer]
Labels = Mapping[str, int | Sequence[int]]
Status = Literal["ok", "both empty", "missed", "false alarm"]


@dataclass(frozen=True)
class Counts:
    """Voxels of the prediction against the reference; `status` says which of the two is empty."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_pred(self) -> int:
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); nan where both masks are empty."""
        return _ratio(2 * self.tp, self.n_pred + self.n_ref)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); nan where both masks are empty."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def status(self) -> Status:
        if self.n_pred and self.n_ref:
            return "ok"
        if self.n_ref:
            return "missed"
        return "false alarm" if self.n_pred else "both empty"


def count_voxels(prediction: Mask, reference: Mask) -> Counts:
    """True and false positives and negatives of two boolean masks of one shape."""
    tp, n_pred, n_ref = (int(np.count_nonzero(m)) for m in (prediction & reference, prediction, reference))
    return Counts(tp, n_pred - tp, n_ref - tp, prediction.size - n_pred - n_ref + tp)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance from each surface voxel of one mask to the other's surface, both ways; both masks hold something.

    Attributes:
        to_reference: of the prediction's surface voxels, in the unit of the spacing.
        to_prediction: of the reference's surface voxels.
    """

    to_reference: npt.NDArray[np.float64]
    to_prediction: npt.NDArray[np.float64]

    def hausdorff(self, percentile: float = 100, *, directed: bool = False) -> float:
        """The larger of the two directed percentiles (100: the maximum); `directed`: prediction to reference alone."""
        forward = float(np.percentile(self.to_reference, percentile))
        return forward if directed else max(forward, float(np.percentile(self.to_prediction, percentile)))

    def pooled_hausdorff(self, percentile: float = 95) -> float:
        """The percentile of both lists together, as medpy (and so the TransUNet family) computes it."""
        return float(np.percentile(np.concatenate([self.to_reference, self.to_prediction]), percentile))

    def normalised_surface_dice(self, tolerance: float) -> float:
        """The share of all surface voxels that lie within `tolerance` of the other surface."""
        within = np.count_nonzero(self.to_reference <= tolerance) + np.count_nonzero(self.to_prediction <= tolerance)
        return _ratio(int(within), self.to_reference.size + self.to_prediction.size)

    def average(self) -> float:
        """Average symmetric surface distance: the mean of both lists together."""
        return float(np.concatenate([self.to_reference, self.to_prediction]).mean())


def surface_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Distances between the surfaces of two masks of one shape, neither empty; `spacing` is the voxel's size an axis."""
    from scipy.spatial import KDTree

    sides = np.asarray(spacing, np.float64)
    box = bounding_box(prediction | reference)
    ours, theirs = (np.argwhere(surface(mask[box])) for mask in (prediction, reference))
    if not len(ours) or not len(theirs):
        raise InputError("surface distances need two masks that are not empty")

    def distances(points: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        # a tree of the surface points is exact and, for masks that resemble each other, faster than a distance transform
        nearest = KDTree(others * sides).query(points * sides)[1]
        return np.sqrt(np.square((points - others[nearest]) * sides).sum(1))  # from whole voxels: 3 x 0.8 mm is 2.4 anywhere

    return SurfaceDistances(distances(ours, theirs), distances(theirs, ours))


def surface(mask: Mask) -> Mask:
    """The voxels of `mask` with a face neighbour outside it."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        here, there = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[[0, -1]] = False
    return mask & ~inside


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds all of `mask`; empty slices where it is empty."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0))
    return tuple(box)


@dataclass(frozen=True)
class EmptyScores:
    """What a convention gives where a mask is empty; nan leaves the case out of the mean."""

    dice: float
    hd95: float
    hd: float
    assd: float
    nsd: float


@dataclass(frozen=True)
class Convention:
    """How empty masks count and how HD95 is measured.

    Attributes:
        empty: status -> scores; the IoU follows the Dice.
        pooled_voxels: HD95 as medpy's default: the percentile of both lists together, in voxels instead of mm.
    """

    name: str
    empty: Mapping[Status, EmptyScores]
    pooled_voxels: bool = False

    @property
    def distance_unit(self) -> str:
        """Unit of the HD95: "mm" or "voxels"."""
        return "voxels" if self.pooled_voxels else "mm"

    def describe(self) -> str:
        """What empty masks count as, in one line."""
        texts = (f"{status}: Dice {scores.dice:g}, HD95 {scores.hd95:g}" for status, scores in self.empty.items())
        return "; ".join(texts).replace("nan", "left out") + f"; HD95 in {self.distance_unit}"


_NAN, _INF = math.nan, math.inf
_UNDEFINED = EmptyScores(dice=_NAN, hd95=_NAN, hd=_NAN, assd=_NAN, nsd=_NAN)
_WRONG = EmptyScores(dice=0, hd95=_NAN, hd=_NAN, assd=_NAN, nsd=0)
_BRATS_PENALTY = 373.13  # mm, the diagonal of the 240 x 240 x 155 volume

CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "monai",
            {
                "both empty": _UNDEFINED,
                "false alarm": EmptyScores(dice=_NAN, hd95=_NAN, hd=_INF, assd=_INF, nsd=0),
                "missed": EmptyScores(dice=0, hd95=_NAN, hd=_INF, assd=_INF, nsd=0),
            },
        ),
        Convention("nnunet", {"both empty": _UNDEFINED, "false alarm": _WRONG, "missed": _WRONG}),
        Convention(
            "brats",
            {
                "both empty": EmptyScores(dice=1, hd95=0, hd=0, assd=0, nsd=1),
                "false alarm": EmptyScores(dice=0, hd95=_BRATS_PENALTY, hd=_BRATS_PENALTY, assd=_BRATS_PENALTY, nsd=0),
                "missed": EmptyScores(dice=0, hd95=_BRATS_PENALTY, hd=_BRATS_PENALTY, assd=_BRATS_PENALTY, nsd=0),
            },
        ),
        Convention(
            "paper:transunet",
            {
                "both empty": EmptyScores(dice=0, hd95=0, hd=_NAN, assd=_NAN, nsd=_NAN),
                "false alarm": EmptyScores(dice=1, hd95=0, hd=_NAN, assd=_NAN, nsd=0),
                "missed": EmptyScores(dice=0, hd95=0, hd=_NAN, assd=_NAN, nsd=0),
            },
            pooled_voxels=True,
        ),
        Convention("paper:segformer3d", {"both empty": _WRONG, "false alarm": _WRONG, "missed": _WRONG}),
    )
}
"""What the conventions give for empty masks (both empty / reference empty / prediction empty).

=================  ================  ==================  ==================  =========================
                   Dice              HD95                NSD                 HD and ASSD
=================  ================  ==================  ==================  =========================
monai              nan / nan / 0     nan / nan / nan     nan / 0 / 0         nan / inf / inf
nnunet             nan / 0 / 0       nan / nan / nan     nan / 0 / 0         nan / nan / nan
brats              1 / 0 / 0         0 / 373.13 / 373.13 1 / 0 / 0           0 / 373.13 / 373.13
paper:transunet    0 / 1 / 0         0 / 0 / 0           nan / 0 / 0         nan / nan / nan
paper:segformer3d  0 / 0 / 0         nan / nan / nan     0 / 0 / 0           nan / nan / nan
=================  ================  ==================  ==================  =========================

nnU-Net itself computes no distances, the TransUNet papers no NSD, SegFormer3D's nothing but Dice: those entries are ours.
Where the HD95 leaves a miss out of its mean, read it beside the numbers of misses and false alarms.
"""


def find_convention(name: str) -> Convention:
    """The convention of that name; an unknown one raises `InputError`."""
    if name not in CONVENTIONS:
        raise unknown("convention", name, CONVENTIONS)
    return CONVENTIONS[name]


@dataclass(frozen=True)
class Scores:
    """All metrics of one structure in one case.

    Distances are in mm; only `hd95` is in `Convention.distance_unit`. Dice, IoU and NSD are in 0..1.
    """

    dice: float
    iou: float
    hd95: float
    hd: float
    nsd: float
    assd: float
    volume_pred_ml: float
    volume_ref_ml: float
    counts: Counts
    status: Status


def compare_masks(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, convention: str = "nnunet", nsd_tolerance_mm: float = 1.0
) -> Scores:
    """Every metric of a predicted mask against a reference mask.

    Args:
        prediction, reference: boolean, the same shape X, Y, Z.
        spacing: voxel size in mm, one an axis.
        convention: a name of `CONVENTIONS`: what empty masks count as.
        nsd_tolerance_mm: surface voxels that close to the other surface count as right in the NSD.
    """
    rules = find_convention(convention)
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise InputError(f"masks of shape {prediction.shape} and {reference.shape} with spacing {tuple(spacing)} do not fit together")
    counts = count_voxels(prediction, reference)
    ml = math.prod(map(float, spacing)) / 1000
    volumes = {"volume_pred_ml": counts.n_pred * ml, "volume_ref_ml": counts.n_ref * ml}
    if counts.status != "ok":
        e = rules.empty[counts.status]
        return Scores(e.dice, e.dice, e.hd95, e.hd, e.nsd, e.assd, **volumes, counts=counts, status=counts.status)
    distances = surface_distances(prediction, reference, spacing)
    if rules.pooled_voxels:
        hd95 = surface_distances(prediction, reference, [1.0] * prediction.ndim).pooled_hausdorff(95)
    else:
        hd95 = distances.hausdorff(95)
    return Scores(
        dice=counts.dice,
        iou=counts.iou,
        hd95=hd95,
        hd=distances.hausdorff(),
        nsd=distances.normalised_surface_dice(nsd_tolerance_mm),
        assd=distances.average(),
        **volumes,
        counts=counts,
        status="ok",
    )


def compare_label_maps(
    prediction: Label,
    reference: Label,
    labels: Labels,
    spacing: Sequence[float],
    *,
    convention: str = "nnunet",
    nsd_tolerance_mm: float = 1.0,
    ignore: int | None = None,
) -> dict[str, Scores]:
    """`compare_masks` for every structure of two label maps of one shape.

    Args:
        labels: name -> id, or name -> ids for a region; without the background.
        ignore: voxels where the reference has this id count in no metric.
    """
    voxels = prediction.size
    if ignore is not None:
        left_out = reference == ignore
        voxels -= int(np.count_nonzero(left_out))
        prediction, reference = np.where(left_out, 0, prediction), np.where(left_out, 0, reference)
    box = bounding_box((prediction != 0) | (reference != 0))  # all that follows works inside it
    scores = {}
    for name, ids in labels.items():
        found = compare_masks(
            select(prediction[box], ids), select(reference[box], ids), spacing, convention=convention, nsd_tolerance_mm=nsd_tolerance_mm
        )
        c = found.counts
        scores[name] = replace(found, counts=Counts(c.tp, c.fp, c.fn, voxels - c.tp - c.fp - c.fn))
    return scores


def select(label: Label, ids: int | Sequence[int]) -> Mask:
    """Where a label map holds the id, or any of the ids."""
    return label == ids if isinstance(ids, int) else np.isin(label, list(ids))


@register_metric("dice")
class DiceMetric(Metric):
    """Dice for the evaluator (in a validation, say): columns "dice" and one a structure, such as "dice/liver".

    "dice" is the mean over structures: of a case's own in its row, of the structures' means over cases in the summary.

    Args:
        labels, convention, ignore: see `compare_label_maps`.
    """

    def __init__(self, labels: Labels, *, convention: str = "nnunet", ignore: int | None = None) -> None:
        self.rules = find_convention(convention)
        self.labels, self.ignore = dict(labels), ignore

    def measure(self, *, prediction: Label, reference: Label, **_: Any) -> dict[str, float]:
        """prediction, reference: label maps of ids, of one shape."""
        counted = np.True_ if self.ignore is None else reference != self.ignore
        row = {}
        for name, ids in self.labels.items():
            counts = count_voxels(select(prediction, ids) & counted, select(reference, ids) & counted)
            row[f"dice/{name}"] = counts.dice if counts.status == "ok" else self.rules.empty[counts.status].dice
        return {"dice": mean(list(row.values())), **row}

    def summarise(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        summary = super().summarise(rows)
        return summary | ({"dice": mean([summary[f"dice/{name}"] for name in self.labels])} if rows else {})


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
