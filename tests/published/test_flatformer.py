"""FlatFormer against what the official code computes, its checkpoint, and what its page says must not change its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vsuite.core import create_model, optimize_for_inference
from vsuite.pointcloud.bench.plain.flatformer import build as build_plain
from vsuite.pointcloud.models.flatformer import (
    ORDERS,
    FlatFormer,
    FlatFormerLayer,
    group_indices,
    window_orders,
)
from vsuite.pointcloud.models.vfe import DynamicVFE
from vsuite.pointcloud.voxels import voxel_coordinates, voxels_per_sample

LoadCase = Callable[[str], Any]


@pytest.mark.parametrize("name", ["mapping_published", "mapping_w9_g69"])
def test_mapping(load_case: LoadCase, name: str) -> None:
    case = load_case(f"flatformer/{name}")
    config, coordinates = case.meta["config"], case.tensors()["coords"]
    win2flat, flat2win = group_indices(voxels_per_sample(coordinates, config["batch_size"]), config["group_size"])
    orders = window_orders(coordinates, config["window_shape"][:2], config["sparse_shape"][:2])
    case.check({"win2flat": win2flat, "flat2win": flat2win, **dict(zip(ORDERS, orders, strict=True))})


def test_position_embedding(load_case: LoadCase) -> None:
    case = load_case("flatformer/pos_embed")
    case.check({"pe": FlatFormer(in_channels=128).position_embedding(case.tensors()["coords"])})


@torch.inference_mode()
def test_layer(load_case: LoadCase) -> None:
    case = load_case("flatformer/layer")
    inputs = case.tensors()
    layer = case.fill(FlatFormerLayer(group_size=case.meta["config"]["group_size"]))
    case.check({"out": layer(inputs["x"], inputs["pe"], [len(inputs["x"])])})


@torch.inference_mode()
def test_block(load_case: LoadCase) -> None:
    case = load_case("flatformer/block")
    inputs = case.tensors()
    encoder = FlatFormer(num_blocks=1)
    case.fill(encoder.block_list[0])
    case.check({"out": encoder.forward_voxels(inputs["x"], inputs["coords"], 2)})


@torch.inference_mode()
def test_encoder(load_case: LoadCase) -> None:
    case = load_case("flatformer/encoder_published")
    inputs = case.tensors()
    encoder = case.fill(FlatFormer())
    bev = encoder(inputs["x"], inputs["coords"], 2)
    voxels = encoder.forward_voxels(inputs["x"], inputs["coords"], 2)
    case.check({"voxels": voxels, "bev_sum": bev.sum((2, 3)), "bev_row": bev[:, :4].sum(3)})


@torch.inference_mode()
@pytest.mark.parametrize("folded", [False, True])
def test_voxel_features(load_case: LoadCase, folded: bool) -> None:
    case = load_case("flatformer/vfe")
    points = list(case.tensors().values())
    encoder = case.fill(DynamicVFE())
    if folded:
        encoder = optimize_for_inference(encoder)
    voxels, coordinates = encoder(points)
    cells = [voxel_coordinates(p, encoder.voxel_size, encoder.point_cloud_range) for p in points]
    numbered = torch.cat([nn.functional.pad(c, (1, 0), value=i) for i, c in enumerate(cells)])
    case.check({"voxels": voxels, "voxel_coords": coordinates, "point_coords": numbered})


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("form", ["fast", "optimized", "plain"])
def test_detector(load_case: LoadCase, form: str) -> None:
    case = load_case("flatformer/detector_published")
    points = list(case.tensors().values())
    model = case.fill(build_plain() if form == "plain" else create_model("flatformer"))
    if form == "optimized":
        model = optimize_for_inference(model)
    neck = model.features(points)
    maps = model.bbox_head(neck)
    _, coordinates = model.voxel_encoder(points)
    b, _, y, x = coordinates.T
    joined = torch.cat([maps[name] for name in ("reg", "height", "dim", "rot", "vel", "iou", "heatmap")], dim=1)
    case.check({"maps": joined, "at_voxels": joined[b, :, y, x], "neck_at_voxels": neck[b, ::16, y, x]})
