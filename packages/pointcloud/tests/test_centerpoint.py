"""The sparse encoder and CenterPoint: names, shapes, checkpoints, training, prediction."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vsuite.core import create_model, load_published, optimize_for_inference, save_weights
from vsuite.core.errors import InputError
from vsuite.pointcloud.models.detector import LidarDetector
from vsuite.pointcloud.models.sparse_encoder import DynamicSimpleVFE, SparseEncoder

sys.path.insert(0, str(Path(__file__).parent))
import centerpoint_cases
from centerpoint_cases import as_mmdet3d

SMALL: dict[str, Any] = centerpoint_cases.SMALL | {"in_channels": 4, "num_classes": 3, "share_channels": 16, "with_velocity": False}
CAR = torch.tensor([3.0, 2.0, 0.2, 4.0, 1.8, 1.6, 0.5])
WALKER = torch.tensor([-4.0, 5.0, 0.1, 0.8, 0.7, 1.8, 0.0])


def sweep(seed: int = 0) -> Tensor:
    """Ground and two solid objects: P, 4."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(count: int) -> Tensor:
        return 2 * torch.rand(count, 3, generator=generator) - 1

    ground = uniform(600) * torch.tensor([9.5, 9.5, 0.05]) - torch.tensor([0, 0, 0.7])
    parts = [ground]
    for box in (CAR, WALKER):
        cos, sin = box[6].cos(), box[6].sin()
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        parts.append((uniform(150) * box[3:6] / 2) @ turn.T + box[:3])
    xyz = torch.cat(parts)
    return torch.cat([xyz, torch.rand(len(xyz), 1, generator=generator)], dim=1)


def small(**options: Any) -> LidarDetector:
    torch.manual_seed(0)
    return create_model("centerpoint_waymo", **(SMALL | options))  # type: ignore[return-value]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_published_structure() -> None:
    with torch.device("meta"):
        detector = create_model("centerpoint_voxel01")
    shapes = {name: tuple(value.shape) for name, value in detector.state_dict().items() if "running" not in name}
    assert sum(p.numel() for p in detector.middle_encoder.parameters()) == 2_694_352
    assert detector.middle_encoder.sparse_shape == (41, 1024, 1024)
    assert detector.middle_encoder.out_channels == 256
    for name, shape in {
        "middle_encoder.conv_input.0.weight": (16, 3, 3, 3, 5),
        "middle_encoder.encoder_layers.encoder_layer1.1.conv2.weight": (16, 3, 3, 3, 16),
        "middle_encoder.encoder_layers.encoder_layer1.1.bn2.weight": (16,),
        "middle_encoder.encoder_layers.encoder_layer1.2.0.weight": (32, 3, 3, 3, 16),
        "middle_encoder.encoder_layers.encoder_layer3.2.1.bias": (128,),
        "middle_encoder.encoder_layers.encoder_layer4.1.conv1.weight": (128, 3, 3, 3, 128),
        "middle_encoder.conv_out.0.weight": (128, 3, 1, 1, 128),
        "backbone.blocks.0.0.0.weight": (128, 256, 3, 3),
        "neck.deblocks.0.0.weight": (256, 128, 1, 1),
        "neck.deblocks.1.0.weight": (256, 256, 2, 2),
        "bbox_head.task_heads.0.heatmap.1.weight": (10, 64, 3, 3),
    }.items():
        assert shapes[name] == shape
    assert not any(name.startswith("middle_encoder.encoder_layers.encoder_layer4.2") for name in shapes)


@pytest.mark.parametrize("name", ["centerpoint_voxel0075", "centerpoint_waymo"])
def test_other_grids(name: str) -> None:
    with torch.device("meta"):
        detector = create_model(name)
    assert detector.middle_encoder.sparse_shape == {"centerpoint_voxel0075": (41, 1440, 1440), "centerpoint_waymo": (41, 1504, 1504)}[name]
    assert len(detector.class_names) == detector.bbox_head.num_classes


def test_height_becomes_channels_in_the_published_order() -> None:
    torch.manual_seed(0)
    encoder = SparseEncoder(in_channels=2, sparse_shape=(41, 20, 24), encoder_channels=(4, 4, 4, 4), blocks=1, output_channels=3).eval()
    seen: list[Any] = []
    encoder.conv_out.register_forward_hook(lambda module, inputs, output: seen.append(output))
    generator = torch.Generator().manual_seed(0)
    coordinates = (torch.rand(2, 41, 20, 24, generator=generator) < 0.02).nonzero()
    bev = encoder(torch.randn(len(coordinates), 2, generator=generator), coordinates, 2)
    dense = seen[0].dense()
    assert dense.shape == (2, 3, 2, 3, 3)
    assert bev.shape == (2, 6, 3, 3)
    assert torch.equal(bev, dense.flatten(1, 2))
    assert bool((bev != 0).any())


def test_mean_of_the_points_of_a_voxel() -> None:
    encoder = DynamicSimpleVFE((1, 1, 1), (0, 0, 0, 4, 4, 4))
    first = torch.tensor([[3.5, 0.5, 0.5, 2.0], [0.2, 0.5, 0.5, 1.0], [0.4, 0.1, 0.3, 5.0]])
    features, coordinates = encoder([first, torch.tensor([[0.5, 2.5, 1.5, 7.0]])])
    assert coordinates.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3], [1, 1, 2, 0]]
    torch.testing.assert_close(features, torch.tensor([[0.3, 0.3, 0.4, 3.0], [3.5, 0.5, 0.5, 2.0], [0.5, 2.5, 1.5, 7.0]]))


def test_it_learns_and_finds_what_it_learnt() -> None:
    detector = small().train()
    for module in detector.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.2  # a few steps must do for the running statistics
    points, boxes, labels = [sweep()], [torch.stack([CAR, WALKER])], [torch.tensor([0, 1])]
    optimizer = torch.optim.AdamW(detector.parameters(), 5e-3)
    first = None
    for _ in range(50):
        loss = total(detector.loss(points, boxes, labels))
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first / 8
    (found,) = detector.eval().predict(points, score_threshold=0.3)
    assert found.labels.tolist().count(0) == 1
    assert found.labels.tolist().count(1) == 1
    for label, truth in ((0, CAR), (1, WALKER)):
        box = found.boxes[found.labels == label][0]
        torch.testing.assert_close(box[:3], truth[:3], rtol=0, atol=0.4)
        torch.testing.assert_close(box[3:6].log(), truth[3:6].log(), rtol=0, atol=0.4)


@pytest.mark.parametrize("iou", [False, True])
def test_gradients_reach_every_parameter(iou: bool) -> None:
    detector = small(with_iou=iou, with_velocity=True).train()
    boxes = torch.cat([torch.stack([CAR, WALKER]), torch.tensor([[1.0, 0.5], [0.2, -0.1]])], dim=1)
    total(detector.loss([sweep(), sweep(1)], [boxes, boxes], [torch.tensor([0, 1])] * 2)).backward()
    missing = [name for name, p in detector.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all()) or not p.grad.any()]
    assert missing == []


def test_bfloat16() -> None:
    detector = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(detector.loss([sweep()], [torch.stack([CAR, WALKER])], [torch.tensor([0, 1])]))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in detector.parameters())
    want = detector.eval()([sweep()])["heatmap"]
    with torch.autocast("cpu", torch.bfloat16):
        got = detector([sweep()])["heatmap"].float()
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


def test_empty_sweeps() -> None:
    detector = small().eval()
    nothing = torch.zeros(0, 4)
    maps = detector([nothing, sweep(), nothing])
    alone = detector([sweep()])
    torch.testing.assert_close(maps["heatmap"][1], alone["heatmap"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detector([nothing])["heatmap"][0], maps["heatmap"][0], rtol=1e-4, atol=1e-5)
    assert [len(found.scores) for found in detector.predict([nothing], score_threshold=0.99)] == [0]
    loss = total(detector.train().loss([nothing], [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.long)]))
    loss.backward()
    assert bool(loss.isfinite())


def test_order_of_the_points_changes_nothing() -> None:
    detector, points = small().eval(), sweep()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(detector([points[order]])["heatmap"], detector([points])["heatmap"], rtol=1e-4, atol=1e-5)


def test_folding_keeps_the_maps() -> None:
    detector = small().train()
    for seed in range(3):
        detector([sweep(seed)])
    detector.eval()
    fast = optimize_for_inference(detector)
    assert not any("bn1" in name or "bn2" in name for name, _ in fast.middle_encoder.named_parameters())
    torch.testing.assert_close(fast([sweep()])["heatmap"], detector([sweep()])["heatmap"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("before_spconv_2", [False, True])
def test_checkpoint_of_mmdetection3d(tmp_path: Path, before_spconv_2: bool) -> None:
    detector = small(with_iou=True, box_coding="mmdet3d_1").eval()
    path = tmp_path / "centerpoint.pth"
    torch.save({"meta": {}, "state_dict": as_mmdet3d(detector, before_spconv_2=before_spconv_2)}, path)
    grid = {key: SMALL[key] for key in ("voxel_size", "point_cloud_range")}
    loaded = load_published(path, **grid).eval()
    assert loaded.middle_encoder.sparse_shape == detector.middle_encoder.sparse_shape
    for name, want in detector([sweep()]).items():
        assert torch.equal(loaded([sweep()])[name], want)


def test_own_checkpoint_and_wrong_ones(tmp_path: Path) -> None:
    detector = small().eval()
    save_weights(detector, tmp_path / "a.safetensors")
    assert torch.equal(load_published(tmp_path / "a.safetensors").eval()([sweep()])["heatmap"], detector([sweep()])["heatmap"])
    state = as_mmdet3d(detector, before_spconv_2=False)
    with pytest.raises(InputError, match=r"missing: bbox_head\.task_heads\.1"):
        load_published(
            state | {"pts_bbox_head.task_heads.1.heatmap.1.weight": torch.zeros(2, 16, 3, 3)},
            voxel_size=SMALL["voxel_size"],
            point_cloud_range=SMALL["point_cloud_range"],
        )
    del state["pts_middle_encoder.conv_out.0.weight"]
    with pytest.raises(InputError, match=r"1 missing: middle_encoder\.conv_out\.0\.weight"):
        load_published(state, voxel_size=SMALL["voxel_size"], point_cloud_range=SMALL["point_cloud_range"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": (0.4, 0.4, 1.0)}, "3 stages need 13 cells or more along z .* got 7"),
        ({"encoder_channels": (8,)}, "2 stages or more"),
        ({"class_names": ("car",)}, "num_classes is 3, but there are 1 class_names"),
        ({"upsample_strides": (2, 3)}, "multiple of the one before"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options)
