"""CenterPoint on voxels: a sparse-convolutional encoder, SECOND's network on its map, boxes from centres (Yin et al., CVPR 2021).

The names and settings of the nuScenes models, whose ten classes six task heads share, are those of mmdetection3d's public configurations
(`centerpoint_01voxel_second_secfpn_*_nus` and `_0075voxel_`); no published weights were at hand to try. Ours differs in that a voxel is
the mean of all of its points, not of ten at most, and that their number has no limit. Tensors tell neither the size of voxels nor the
convention of boxes: mmdetection3d before 1.0 codes width before length and turns yaw clockwise, 1.0 and later (all that its lists offer
today) length first and counter-clockwise. `predict` reads both from what its training scripts note beside the tensors (`options_of_meta`);
`load_published` assumes the later convention, and older weights need `box_coding="mmdet3d_0"`, as our own models have by default. Heads
with deformable convolutions (`dcn`), pillars, and the names of the authors' own repository (det3d's) are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vsuite.core import InputError, PublishedLayout
from vsuite.core.errors import unknown
from vsuite.core.registry import OtherNames, Variant, register_variants
from vsuite.pointcloud.models.center_decode import DecodeSettings
from vsuite.pointcloud.models.center_head import BoxCoding, CenterHead
from vsuite.pointcloud.models.detector import LidarDetector
from vsuite.pointcloud.models.second import SECOND, SECONDFPN
from vsuite.pointcloud.models.sparse_encoder import DynamicSimpleVFE, SparseEncoder
from vsuite.pointcloud.voxels import PointCloudRange, VoxelSize, grid_size

NUSCENES_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
WAYMO_CLASSES = ("Car", "Pedestrian", "Cyclist")
NUSCENES_GRID = {"voxel_size": (0.1, 0.1, 0.2), "point_cloud_range": (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)}
NUSCENES_FINE_GRID = {"voxel_size": (0.075, 0.075, 0.2), "point_cloud_range": (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)}
NUSCENES_TASKS = (1, 2, 2, 1, 2, 2)  # in the order of the classes: car; truck, construction vehicle; bus, trailer; ...
BEYOND_NUSCENES = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
# Without an IoU branch scores say little about fit, so overlaps are cut early; published for nuScenes, there task by task.
DECODE = {
    "class": DecodeSettings(nms_threshold=0.2, pre_max=1000, post_max=83),
    "task": DecodeSettings(max_candidates=500, centre_range=BEYOND_NUSCENES, within="task", nms_threshold=0.2, pre_max=1000, post_max=83),
    "circle": DecodeSettings(
        max_candidates=500,
        centre_range=BEYOND_NUSCENES,
        within="task",
        nms="circle",
        nms_threshold=(4.0, 12.0, 10.0, 1.0, 0.85, 0.175),
        pre_max=500,
        post_max=83,
    ),
}
# What mmdetection3d's nuScenes models have otherwise than those whose classes share one head.
SEVERAL_TASKS: dict[str, Any] = {"nms": "task", "shared_norm": (1e-5, 0.1), "box_weight": 0.25}


def build(
    *,
    in_channels: int = 5,
    num_classes: int = 10,
    class_names: Sequence[str] = (),
    voxel_size: VoxelSize = NUSCENES_GRID["voxel_size"],
    point_cloud_range: PointCloudRange = NUSCENES_GRID["point_cloud_range"],
    encoder_channels: Sequence[int] = (16, 32, 64, 128),
    encoder_blocks: int = 2,
    output_channels: int = 128,
    backbone_channels: Sequence[int] = (128, 256),
    layer_nums: Sequence[int] = (5, 5),
    upsample_strides: Sequence[int] = (1, 2),
    neck_channels: Sequence[int] = (256, 256),
    share_channels: int = 64,
    with_velocity: bool = True,
    with_iou: bool = False,
    tasks: Sequence[int] = (),
    nms: Literal["class", "task", "circle"] = "class",
    shared_norm: tuple[float, float] = (1e-3, 0.01),
    box_weight: float = 2.0,
    box_coding: BoxCoding = "mmdet3d_0",
) -> LidarDetector:
    """CenterPoint, the whole detector.

    Args:
        in_channels: columns of a point: x, y, z in metres first.
        num_classes, class_names: names of the classes; those of nuScenes (10) or Waymo (3) where none are given.
        voxel_size, point_cloud_range: metres. Along z the range must hold 24 voxels or more for four stages, 12 for three.
        encoder_channels, encoder_blocks, output_channels: see `SparseEncoder`; the boxes' map has stride 2^(stages - 1).
        backbone_channels, layer_nums: see `SECOND`.
        upsample_strides, neck_channels: see `SECONDFPN`; the strides of the backbone follow.
        share_channels: width of the head's maps.
        with_velocity, with_iou, tasks, shared_norm, box_weight, box_coding: see `CenterHead`.
        nms: boxes suppress those of their class that overlap, those of their task, or those of their task whose centres are near
            ("circle", with the radii published for the six tasks of nuScenes).
    """
    if nms not in DECODE:
        raise unknown("nms", str(nms), DECODE)
    if class_names and len(class_names) != num_classes:
        raise InputError(f"num_classes is {num_classes}, but there are {len(class_names)} class_names")
    published = {len(names): names for names in (NUSCENES_CLASSES, WAYMO_CLASSES)}
    names = tuple(class_names) or published.get(num_classes) or tuple(f"class {i}" for i in range(num_classes))
    strides = [1, *upsample_strides]
    if min(strides) < 1 or any(after % before for before, after in pairwise(strides)):
        raise InputError(f"each of upsample_strides must be a multiple of the one before; got {list(upsample_strides)}")
    nx, ny, nz = grid_size(voxel_size, point_cloud_range)
    encoder = SparseEncoder(
        in_channels=in_channels,
        sparse_shape=(nz + 1, ny, nx),
        encoder_channels=encoder_channels,
        blocks=encoder_blocks,
        output_channels=output_channels,
    )
    return LidarDetector(
        voxel_encoder=DynamicSimpleVFE(voxel_size, point_cloud_range),
        middle_encoder=encoder,
        backbone=SECOND(
            in_channels=encoder.out_channels,
            out_channels=backbone_channels,
            layer_nums=layer_nums,
            layer_strides=[after // before for before, after in pairwise(strides)],
            residual=False,
        ),
        neck=SECONDFPN(
            in_channels=backbone_channels, out_channels=neck_channels, upsample_strides=upsample_strides, use_conv_for_no_stride=True
        ),
        bbox_head=CenterHead(
            in_channels=sum(neck_channels),
            share_channels=share_channels,
            num_classes=num_classes,
            with_velocity=with_velocity,
            with_iou=with_iou,
            point_cloud_range=point_cloud_range,
            voxel_size=voxel_size,
            out_size_factor=encoder.stride,
            min_radius=2,
            velocity_weight=0.2,
            tasks=tasks,
            shared_norm=shared_norm,
            box_weight=box_weight,
            box_coding=box_coding,
            decode=DECODE[nms],
        ),
        in_channels=in_channels,
        class_names=names,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
    )


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the names and shapes of a checkpoint tell."""

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".", 1)[0] for name in state if name.startswith(prefix)})

    encoder, head = "middle_encoder.encoder_layers.encoder_layer", "bbox_head.task_heads.0"
    tasks = [state[f"bbox_head.task_heads.{i}.heatmap.1.weight"].shape[0] for i in range(count("bbox_head.task_heads."))]
    stages = range(1, count("middle_encoder.encoder_layers.") + 1)
    necks = range(count("neck.deblocks."))
    first = state["middle_encoder.conv_input.0.weight"].shape
    return {
        "in_channels": first[-2] if _before_spconv_2(first) else first[-1],
        "num_classes": sum(tasks),
        "encoder_channels": [state[f"{encoder}{i}.0.bn1.weight"].shape[0] for i in stages],
        "encoder_blocks": count(f"{encoder}1.") - 1,
        "output_channels": state["middle_encoder.conv_out.1.weight"].shape[0],
        "backbone_channels": [state[f"backbone.blocks.{i}.0.1.weight"].shape[0] for i in range(count("backbone.blocks."))],
        "layer_nums": [count(f"backbone.blocks.{i}.") - 1 for i in range(count("backbone.blocks."))],
        "upsample_strides": [state[f"neck.deblocks.{i}.0.weight"].shape[2] for i in necks],
        "neck_channels": [state[f"neck.deblocks.{i}.1.weight"].shape[0] for i in necks],
        "share_channels": state["bbox_head.shared_conv.conv.weight"].shape[0],
        "with_velocity": f"{head}.vel.1.weight" in state,
        "with_iou": f"{head}.iou.1.weight" in state,
    } | ({"tasks": tasks, **SEVERAL_TASKS} if len(tasks) > 1 else {})


def options_of_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What mmdetection3d's training scripts note in a checkpoint's `meta`, as options of `build`; what they leave out is missing.

    The convention of boxes follows from the version (any that mmengine trained is later than 1.0); the grid stands in the text of the
    configuration, as assignments of its own.
    """
    options: dict[str, Any] = {}
    version = meta.get("mmdet3d_version") or ("1.1" if "mmengine_version" in meta else "")
    if isinstance(version, str) and re.match(r"\d+\.", version):
        options["box_coding"] = "mmdet3d_0" if version.startswith("0.") else "mmdet3d_1"
    config = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    number = r"-?\d+(?:\.\d*)?"
    for name, count in (("voxel_size", 3), ("point_cloud_range", 6)):
        found = re.search(rf"^{name} = [\[(]({number}(?:,\s*{number}){{{count - 1}}}),?\s*[\])]", config, re.MULTILINE)
        if found:
            options[name] = tuple(float(value) for value in found[1].split(","))
    return options


def _before_spconv_2(shape: Sequence[int]) -> bool:
    """Whether a 3 x 3 x 3 weight is laid out (kernel, in, out) as before spconv 2, rather than (out, kernel, in)."""
    return tuple(shape[:3]) == (3, 3, 3)


def _relaid(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A sparse convolution's weight from before spconv 2 in the layout of today."""
    if not name.startswith("middle_encoder.") or value.ndim != 5:
        return None
    moved = value.movedim(-1, 0)
    return moved if tuple(moved.shape) == tuple(shape) else None


def _from_mmdet3d(name: str) -> str:
    """The names of mmdetection3d's CenterPoint, whose backbone lists convolution, norm and ReLU of all units in one row."""
    name = name.removeprefix("pts_")
    found = re.match(r"backbone\.blocks\.(\d+)\.(\d+)\.(.*)", name)
    if not found:
        return name
    stage, layer, rest = found.groups()
    return f"backbone.blocks.{stage}.{int(layer) // 3}.{int(layer) % 3}.{rest}"


LAYOUT = PublishedLayout(
    build=build,
    infer=_infer,
    keys=(
        "middle_encoder.conv_input.0.weight",
        "middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight",
        "bbox_head.task_heads.0.heatmap.1.weight",
    ),
    assumed=NUSCENES_GRID | {"box_coding": "mmdet3d_1"},
    others=(OtherNames("mmdetection3d", ("pts_middle_encoder.conv_input.0.weight", "pts_backbone.blocks.0.0.weight"), _from_mmdet3d),),
    resize=_relaid,
)

# Trained on simulated streets; see the card beside it.
SHIPPED = {"centerpoint_streets": Path(__file__).parents[1] / "weights" / "centerpoint_streets.safetensors"}
VARIANTS = {
    "centerpoint_voxel01": Variant(
        options={},
        summary="CenterPoint for ten sweeps of nuScenes in voxels of 0.1 m; all ten classes in one head (centerpoint_nuscenes has six).",
        input_size=(20000, 5),
    ),
    "centerpoint_voxel0075": Variant(
        options=NUSCENES_FINE_GRID,
        summary="CenterPoint for ten sweeps of nuScenes in voxels of 0.075 m; all ten classes in one head (centerpoint_nuscenes has six).",
        input_size=(20000, 5),
    ),
    "centerpoint_nuscenes": Variant(
        options={"tasks": NUSCENES_TASKS, **SEVERAL_TASKS},
        summary="CenterPoint for ten sweeps of nuScenes in voxels of 0.1 m, the classes split over six heads as published.",
        input_size=(20000, 5),
    ),
    "centerpoint_nuscenes_voxel0075": Variant(
        options={"tasks": NUSCENES_TASKS, **SEVERAL_TASKS, **NUSCENES_FINE_GRID},
        summary="CenterPoint for ten sweeps of nuScenes in voxels of 0.075 m, the classes split over six heads as published.",
        input_size=(20000, 5),
    ),
    "centerpoint_waymo": Variant(
        options={
            "num_classes": 3,
            "voxel_size": (0.1, 0.1, 0.15),
            "point_cloud_range": (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0),
            "with_velocity": False,
        },
        summary="CenterPoint for one sweep of Waymo in voxels of 0.1 x 0.1 x 0.15 m, first stage.",
        input_size=(20000, 5),
        weights=SHIPPED,
    ),
}

register_variants(
    build,
    VARIANTS,
    system="centerpoint",
    task="3d detection",
    layout=LAYOUT,
    paper="Center-based 3D Object Detection and Tracking, Yin et al., CVPR 2021, arXiv 2006.11275",
    licence="MIT (official code), Apache-2.0 (mmdetection3d's); the published weights carry their data sets' terms",
)
