"""The builders of the cross-modal transformer, how its weights are read, and its variants.

The paper names no variants and publishes no weights: there is one a data set, in the default size, and a small one for a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.video_pose.models.deformable3d.backbone import MixedConvolutions
from vsuite.video_pose.models.deformable3d.model import PoseTransformer, RGBPoseTransformer, default_planes
from vsuite.video_pose.models.deformable3d.transformer import CrossModalTransformer


def deformable3d(
    *,
    num_classes: int = 60,
    num_joints: int = 17,
    in_channels: int = 3,
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: int = 2,
    sigma: float = 0.7,
    embed_dim: int = 256,
    depth: int = 4,
    num_heads: int = 8,
    offset_groups: int = 2,
    kernel: tuple[int, int, int] = (3, 3, 3),
    stride: tuple[int, int, int] = (2, 2, 2),
    offset_factor: float = 1.0,
    frame_stride: int = 2,
    joint_window: int = 5,
    joint_step: int = 2,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    drop_path_rate: float = 0.0,
) -> RGBPoseTransformer:
    """RGB and poses. The options are those of `MixedConvolutions`, `CrossModalTransformer` and `RGBPoseTransformer`."""
    backbone = MixedConvolutions(in_channels, widths, blocks)
    transformer = CrossModalTransformer(
        num_classes=num_classes,
        num_joints=num_joints,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        offset_groups=offset_groups,
        kernel=kernel,
        stride=stride,
        offset_factor=offset_factor,
        frame_stride=frame_stride,
        joint_window=joint_window,
        joint_step=joint_step,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        drop_path_rate=drop_path_rate,
    )
    return RGBPoseTransformer(backbone, transformer, sigma=sigma)


def deformable3d_pose(
    *,
    num_classes: int = 60,
    num_joints: int = 17,
    in_channels: int = 2,
    planes: Sequence[tuple[int, int]] | None = None,
    extent: float = 1.0,
    heatmap_size: int = 56,
    widths: Sequence[int] = (64, 128, 256),
    blocks: int = 1,
    sigma: float = 0.6,
    embed_dim: int = 256,
    depth: int = 4,
    num_heads: int = 8,
    offset_groups: int = 2,
    kernel: tuple[int, int, int] = (3, 3, 3),
    stride: tuple[int, int, int] = (2, 2, 2),
    offset_factor: float = 1.0,
    frame_stride: int = 2,
    joint_window: int = 5,
    joint_step: int = 2,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    drop_path_rate: float = 0.0,
) -> PoseTransformer:
    """Poses alone. The options are those of the parts, as in `deformable3d`; `planes` None: see `default_planes`."""
    planes = default_planes(in_channels) if planes is None else planes
    transformer = CrossModalTransformer(
        num_classes=num_classes,
        num_joints=num_joints,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        offset_groups=offset_groups,
        kernel=kernel,
        stride=stride,
        offset_factor=offset_factor,
        frame_stride=frame_stride,
        joint_window=joint_window,
        joint_step=joint_step,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        drop_path_rate=drop_path_rate,
    )
    backbone = MixedConvolutions(num_joints * len(planes), widths, blocks, stem_kernel=(3, 3, 3))  # drawings have no fine texture
    return PoseTransformer(
        backbone, transformer, in_channels=in_channels, planes=planes, extent=extent, heatmap_size=heatmap_size, sigma=sigma
    )


def windows_for(num_joints: int) -> dict[str, int]:
    """Windows of joints that suit a layout: 7 in steps of 3 from 25 joints on, else 5 in steps of 2."""
    return {"joint_window": 7, "joint_step": 3} if num_joints >= 25 else {"joint_window": 5, "joint_step": 2}


# --- weights ---


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    classes, features = state["transformer.head.weight"].shape
    joints, dim = len(state["transformer.joint_position"]), features // 2
    dw = state["transformer.blocks.0.attention.search.dw.weight"]
    stages = itertools.takewhile(lambda name: name in state, (f"backbone.layer{i}.0.conv1.0.weight" for i in itertools.count(1)))
    return {
        "num_classes": classes,
        "num_joints": joints,
        "embed_dim": dim,
        "depth": 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.blocks.")),
        "offset_groups": dim // len(dw),
        "kernel": tuple(dw.shape[2:]),
        "mlp_ratio": len(state["transformer.blocks.0.mlp.fc1.weight"]) // dim,
        "widths": tuple(len(state[name]) for name in stages),
        "blocks": 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.layer1.")),
        **windows_for(joints),
    }


def _infer_rgb(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return _infer(state) | {"in_channels": state["backbone.stem.0.weight"].shape[1]}


def _infer_pose(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Which planes are drawn cannot be told; their number can."""
    found = _infer(state) | {"in_channels": state["embed_joints.weight"].shape[1] - 1}
    planes = default_planes(found["in_channels"])
    if len(planes) * found["num_joints"] != state["backbone.stem.0.weight"].shape[1]:
        planes = ((0, 1),) * (state["backbone.stem.0.weight"].shape[1] // found["num_joints"])
    return found | {"planes": planes}


ASSUMED = {"num_heads": 8, "stride": (2, 2, 2), "offset_factor": 1.0, "frame_stride": 2}
KEYS = ("transformer.modal_tokens", "transformer.joint_position", "backbone.stem.0.weight")
HEAD = "transformer.head."
LAYOUT = PublishedLayout(build=deformable3d, infer=_infer_rgb, keys=(*KEYS, "embed_features.weight"), assumed=ASSUMED, head=HEAD)
POSE_LAYOUT = PublishedLayout(build=deformable3d_pose, infer=_infer_pose, keys=(*KEYS, "embed_joints.weight"), assumed=ASSUMED, head=HEAD)


# --- variants ---


PAPER = "Cross-Modal Learning with 3D Deformable Attention for Action Recognition, Kim, Ahn, Ko, ICCV 2023, arXiv 2212.05638"
LICENCE = "no official code or weights; this reconstruction is Apache-2.0"
DATA = {  # name, classes, joints
    "ntu60": ("NTU RGB+D 60", 60, 25),
    "ntu120": ("NTU RGB+D 120", 120, 25),
    "gym99": ("FineGYM-99", 99, 17),
    "penn": ("Penn Action", 15, 13),
}
# Of the paper's own model, and quoted from memory of its tables: for orientation alone.
PUBLISHED: dict[str, tuple[PublishedResult, ...]] = {
    "ntu60": (PublishedResult("NTU RGB+D 60 X-Sub", "top-1", 94.3, "%"), PublishedResult("NTU RGB+D 60 X-View", "top-1", 97.9, "%")),
    "ntu120": (PublishedResult("NTU RGB+D 120 X-Sub", "top-1", 90.5, "%"), PublishedResult("NTU RGB+D 120 X-Set", "top-1", 91.4, "%")),
    "penn": (PublishedResult("Penn Action", "top-1", 99.7, "%"),),
}
SMALL = {"num_classes": 7, "widths": (16, 32, 64), "embed_dim": 64, "num_heads": 4, "heatmap_size": 24}


def _options(data: str) -> dict[str, Any]:
    _, classes, joints = DATA[data]
    return {"num_classes": classes, "num_joints": joints, **windows_for(joints)}


def _summary(data: str, what: str, end: str) -> str:
    name, classes, joints = DATA[data]
    return f"{name}, {classes} classes, {joints} joints, {what}: a reconstruction, {end}"


register_variants(
    deformable3d,
    {
        f"deformable3d_{data}": Variant(
            _options(data),
            _summary(data, "RGB and poses", "the published figures are those of the paper's own model"),
            PUBLISHED.get(data, ()),
            (16, 3, 224, 224),
        )
        for data in DATA
    },
    system="deformable3d",
    task="action",
    paper=PAPER,
    licence=LICENCE,
    layout=LAYOUT,
)
register_variants(
    deformable3d_pose,
    {
        f"deformable3d_pose_{data}": Variant(
            _options(data),
            _summary(data, "poses alone", "and a form that the paper does not have"),
            (),
            (2, 32, DATA[data][2], 2),
        )
        for data in DATA
    }
    | {
        "deformable3d_pose_small": Variant(
            SMALL,
            "poses alone, small enough to train on a CPU: a reconstruction, and a form that the paper does not have",
            (),
            (1, 32, 17, 2),
        )
    },
    system="deformable3d_pose",
    task="action",
    paper=PAPER,
    licence=LICENCE,
    layout=POSE_LAYOUT,
)
