"""FlatFormer's head against the published implementation: targets, losses, rotated overlap, decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vsuite.pointcloud.boxes import from_mmdet, iou_3d, iou_bev, overlap_bev, to_mmdet
from vsuite.pointcloud.models.center_decode import DecodeSettings
from vsuite.pointcloud.models.center_head import CenterHead

Loader = Callable[[str], Any]


def head_of(config: dict[str, Any]) -> CenterHead:
    """The head with the settings of a case."""
    train, test, coder = config["train_cfg"], config["test_cfg"], config["bbox_coder"]
    return CenterHead(
        16,
        8,
        len(config["class_names"]),
        point_cloud_range=train["point_cloud_range"],
        voxel_size=train["voxel_size"],
        out_size_factor=train["out_size_factor"],
        overlap=train["gaussian_overlap"],
        min_radius=train["min_radius"],
        max_objects=train["max_objs"],
        velocity_weight=train["code_weights"][8],
        decode=DecodeSettings(
            max_candidates=coder["max_num"],
            score_threshold=coder["score_threshold"],
            iou_power=test["iou_pow"],
            centre_range=tuple(coder["post_center_range"]),
            nms_threshold=tuple(test["nms_thr"]),
            pre_max=tuple(test["pre_max_size"]),
            post_max=tuple(test["post_max_size"]),
        ),
    )


def test_targets(load_case: Loader) -> None:
    case = load_case("flatformer/targets")
    inputs = case.tensors()
    width, height, _ = case.meta["config"]["train_cfg"]["grid_size"]
    (found,) = head_of(case.meta["config"]).targets((height, width), [inputs["gt_boxes"]], [inputs["gt_labels"]])
    rows = len(inputs["gt_boxes"]) + 2
    case.check(
        {
            "heatmap": found.heatmap,
            "anno_box": found.boxes[:, :rows],
            "ind": found.cells[:, :rows],
            "mask": found.mask[:, :rows],
        }
    )
    assert not found.mask[:, rows:].any()


def test_loss(load_case: Loader) -> None:
    case = load_case("flatformer/loss")
    inputs = case.tensors()
    boxes, labels = inputs.pop("gt_boxes"), inputs.pop("gt_labels")
    half = len(boxes) // 2
    losses = head_of(case.meta["config"]).loss(inputs, [boxes, boxes[:half]], [labels, labels[:half]])
    case.check({name: np.array([float(value), 0.0]) for name, value in losses.items()})


def test_rotated_iou(load_case: Loader) -> None:
    case = load_case("flatformer/rotated_iou")
    inputs = case.tensors()
    a, b = from_mmdet(inputs["boxes_a"]), from_mmdet(inputs["boxes_b"])
    case.check({"bev_overlap": overlap_bev(a, b), "bev_iou": iou_bev(a, b), "iou3d": iou_3d(a, b)})


def test_decode(load_case: Loader) -> None:
    case = load_case("flatformer/decode")
    outputs = {}
    for index, found in enumerate(head_of(case.meta["config"]).decode(case.tensors())):
        outputs |= {f"boxes{index}": to_mmdet(found.boxes), f"scores{index}": found.scores, f"labels{index}": found.labels}
    case.check(outputs)


def test_names_and_sizes(load_case: Loader) -> None:
    """The published head: parameter names, shapes and 414,606 parameters."""
    published = load_case("flatformer/detector_published").meta["state_dict"]
    expected = {name.removeprefix("bbox_head."): shape for name, shape in published.items() if name.startswith("bbox_head.")}
    head = CenterHead()
    ours = {name: list(value.shape) for name, value in head.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert ours == {name: shape for name, shape in expected.items() if not name.endswith("num_batches_tracked")}
    assert sum(parameter.numel() for parameter in head.parameters()) == 414_606
