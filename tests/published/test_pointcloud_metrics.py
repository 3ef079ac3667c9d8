"""KITTI's average precision against the published evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vsuite.pointcloud.metrics.kitti import kitti_curve


@pytest.mark.parametrize("name", ["kitti_ap", "kitti_ap_few"])
def test_kitti_curve(load_case: Callable[[str], Any], name: str) -> None:
    case = load_case(f"pointcloud_metrics/{name}")
    inputs = case.inputs()
    curve = kitti_curve(
        list(inputs["overlaps"]),
        list(inputs["gt_ignored"]),
        list(inputs["dt_ignored"]),
        list(inputs["scores"]),
        case.meta["config"]["min_overlap"],
    )
    averages = [curve.average(curve.precision, 11), curve.average(curve.precision, 40)]
    case.check({"thresholds": curve.thresholds, "precision": curve.precision, "ap11_ap40": np.array(averages)})
