"""The metrics against MONAI's numbers, empty masks included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from vsuite.medical.metrics import compare_masks, surface_distances


def _masks(case: Any) -> dict[str, np.ndarray]:
    config, noise = case.meta["config"], case.inputs()
    masks = {}
    for name in "ab":
        smooth = ndimage.gaussian_filter(noise[f"noise_{name}"].astype(np.float64), config["sigma"])
        masks[name] = smooth > np.quantile(smooth, config["quantile"])
    shape = masks["a"].shape
    masks |= {name: np.zeros(shape, bool) for name in ("one", "two", "core", "empty")}
    masks["one"][tuple(s // 3 for s in shape)] = True
    masks["two"][tuple(2 * s // 3 for s in shape)] = True
    masks["core"][1:-1, 1:-1, 1:-1] = True
    return masks


def _row(prediction: np.ndarray, reference: np.ndarray, spacing: list[float], tolerances: list[float]) -> list[float]:
    """The case's columns; the three that MONAI computes by other settings come from the parts."""
    fine, coarse = (compare_masks(prediction, reference, spacing, convention="monai", nsd_tolerance_mm=t) for t in tolerances)
    counts_empty = compare_masks(prediction, reference, spacing, convention="brats")
    directed = voxels = np.nan
    if fine.status == "ok":
        directed = surface_distances(prediction, reference, spacing).hausdorff(95, directed=True)
        voxels = surface_distances(prediction, reference, [1, 1, 1]).hausdorff(95)
    return [fine.dice, counts_empty.dice, fine.hd, fine.hd95, directed, voxels, fine.nsd, coarse.nsd, fine.assd]


def test_metrics(load_case: Callable[[str], Any]) -> None:
    case = load_case("medical_user_needs/metrics")
    config, masks = case.meta["config"], _masks(case)
    pairs = [pair.split(",") for pair in config["pairs"]]
    rows = np.array([_row(masks[p], masks[r], config["spacing"], config["thresholds"]) for p, r in pairs])
    stored = np.where(np.isnan(rows), -1, np.where(np.isinf(rows), -2, rows))  # as the case writes them
    case.check({"metrics": stored, "mask_a": masks["a"].astype(np.uint8), "mask_b": masks["b"].astype(np.uint8)})
