"""The whole FlatFormer detector: training, prediction, checkpoints, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, list_models, load_published, model_info, optimize_for_inference, save_weights
from vsuite.pointcloud.bench.plain.flatformer import build as build_plain
from vsuite.pointcloud.models.detector import LidarDetector
from vsuite.pointcloud.models.flatformer import FlatFormer
from vsuite.pointcloud.models.second import SECOND, SECONDFPN

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "voxel_size": (0.5, 0.5, 4.0),
    "point_cloud_range": (-8.0, -6.0, -2.0, 8.0, 6.0, 2.0),
    "vfe_channels": (8,),
    "embed_dim": 16,
    "num_heads": 2,
    "num_blocks": 1,
    "window": (4, 4),
    "group_size": 12,
    "backbone_channels": (8, 16),
    "layer_nums": (1, 1),
    "neck_channels": (8, 8),
    "share_channels": 8,
}


def small(**options: Any) -> LidarDetector:
    torch.manual_seed(0)
    model = create_model("flatformer", **{**SMALL, **options})
    assert isinstance(model, LidarDetector)
    return model


def sweep(seed: int, count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor([15.9, 11.9, 3.9, 1.0])


def stirred(model: nn.Module) -> nn.Module:
    """Weights and statistics large enough for every part to show in the output."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.3 if value.ndim < 2 else value[0].numel() ** -0.5, generator=generator)
    if isinstance(model, LidarDetector):
        model.bbox_head.branches["iou"][1].bias.data.fill_(1.0)  # type: ignore[index, union-attr, operator]
    return model.eval()


def car(x: float, y: float, yaw: float) -> tuple[Tensor, Tensor]:
    """A box and points on it."""
    generator = torch.Generator().manual_seed(5)
    box = torch.tensor([[x, y, -0.5, 4.0, 1.8, 1.6, yaw]])
    within = (torch.rand(200, 3, generator=generator) - 0.5) * box[0, 3:6]
    turned = torch.stack(
        [
            within[:, 0] * math.cos(yaw) - within[:, 1] * math.sin(yaw),
            within[:, 0] * math.sin(yaw) + within[:, 1] * math.cos(yaw),
            within[:, 2],
        ],
        1,
    )
    return box, torch.cat([turned + box[0, :3], torch.full((200, 1), 0.5)], dim=1)


def trained(steps: int) -> tuple[LidarDetector, list[Tensor], Tensor, list[float]]:
    """A detector after some steps on one frame of two boxes; the frame, its boxes and the losses."""
    model = small(num_classes=2)
    near, on_near = car(-3.2, 1.3, 0.4)
    far, on_far = car(4.1, -2.6, -1.2)
    points = [torch.cat([on_near, on_far, sweep(0, 100) * torch.tensor([1, 1, 0.1, 1]) - torch.tensor([0, 0, 1.6, 0])])]
    boxes, labels = [torch.cat([near, far])], [torch.tensor([0, 1])]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum(model.loss(points, boxes, labels).values())
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
        losses.append(float(loss.detach()))  # type: ignore[union-attr]
    return model, points, boxes[0], losses


def test_it_learns() -> None:
    *_, losses = trained(20)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_it_finds_the_boxes_it_has_learnt() -> None:
    model, points, boxes, losses = trained(120)
    assert losses[-1] < 0.1 * losses[0]
    for module in model.modules():  # the statistics of so few steps still move
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(10):
            model(points)
    found = model.eval().predict(points, 0.3)[0]
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.boxes[:, :6], boxes[:, :6], atol=0.25, rtol=0)
    assert float((found.boxes[:, 6] - boxes[:, 6]).abs().max()) < 0.15


def test_gradients_reach_every_parameter() -> None:
    model = stirred(small()).train()
    box, on_box = car(1, 1, 0.3)
    sum(
        model.loss(
            [torch.cat([on_box, sweep(1)]), sweep(2)], [box, box[:0]], [torch.tensor([0]), torch.tensor([], dtype=torch.int64)]
        ).values()
    ).backward()  # type: ignore[operator, union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("options", [{}, {"out_size_factor": 2}, {"point_cloud_range": (-8.0, -6.0, -2.0, 8.5, 6.5, 2.0)}])
@torch.inference_mode()
def test_folded_and_plain_forms_agree(options: dict[str, Any]) -> None:
    model = stirred(small(**options))
    plain = build_plain(**{**SMALL, **options}).eval()
    plain.load_state_dict(model.state_dict())
    points = [sweep(0), sweep(1, 700)]
    fast = optimize_for_inference(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in [*fast.backbone.modules(), *fast.neck.modules()]) == 0
    want = plain(points)
    for form in (model, fast):
        for name, got in form(points).items():
            torch.testing.assert_close(got, want[name], atol=1e-3, rtol=1e-4)
    for mine, theirs in zip(fast.predict(points, 0.3), plain.predict(points, 0.3), strict=True):
        assert len(mine) > 0
        assert torch.equal(mine.labels, theirs.labels)
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-3, rtol=0)
        moved = (mine.boxes - theirs.boxes).abs().amax(1) > 1e-2
        assert float(moved.float().mean()) < 0.05  # boxes of nearly equal scores may change places


@torch.inference_mode()
def test_a_batch_equals_its_samples_alone() -> None:
    model = stirred(small())
    points = [sweep(0), sweep(1, 0), sweep(2, 5), sweep(3, 300)]
    together = model(points)
    for i, sample in enumerate(points):
        for name, alone in model([sample]).items():
            torch.testing.assert_close(together[name][i], alone[0], atol=1e-3, rtol=1e-4)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999))
@torch.inference_mode()
def test_the_order_of_the_points_does_not_matter(seed: int) -> None:
    model, points = stirred(small()), sweep(seed)
    shuffled = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
    first, second = model([points]), model([shuffled])
    for name, got in first.items():
        torch.testing.assert_close(second[name], got, atol=2e-3, rtol=1e-3)


@torch.inference_mode()
def test_empty_frames() -> None:
    model = optimize_for_inference(stirred(small()))
    assert [len(found) >= 0 for found in model.predict([sweep(0, 0)])] == [True]
    maps = model([sweep(0, 0), sweep(1, 0)])
    assert maps["heatmap"].shape == (2, 3, 24, 32)
    assert maps["heatmap"].isfinite().all()


@torch.inference_mode()
def test_points_beyond_the_range_change_nothing_in_predictions() -> None:
    model, points = stirred(small()), sweep(0)
    outside = torch.tensor([[100.0, 0, 0, 0], [0, 0, 5, 0], [8.0, 0, 0, 0], [0, -6.1, 0, 0]])
    (want,), (got,) = model.predict([points], 0.3), model.predict([torch.cat([outside, points])], 0.3)
    assert len(want) > 0
    assert torch.equal(got.boxes, want.boxes)
    clamped = model([torch.cat([outside, points])])
    assert not torch.equal(clamped["heatmap"], model([points])["heatmap"])


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([], "got none"),
        ([sweep(0)[:, :3]], "rows of 4"),
        ([sweep(0), sweep(0) * float("nan")], "sample 1: 400 of 400"),
        ([sweep(0).long()], "floating"),
    ],
)
def test_bad_points(points: list[Tensor], word: str) -> None:
    model = small().eval()
    for method in (model, model.predict):
        with pytest.raises(InputError, match=word):
            method(points)


@pytest.mark.parametrize(
    ("boxes", "labels", "word"),
    [
        ([], [], "1 sweeps, 0 lists"),
        ([torch.zeros(2, 6)], [torch.tensor([0, 1])], "length"),
        ([torch.tensor([[0.0, 0, 0, -1, 1, 1, 0]])], [torch.tensor([0])], "negative"),
        ([torch.ones(1, 7)], [torch.tensor([3])], "0 to 2"),
        ([torch.ones(1, 7)], [torch.tensor([-1])], "0 to 2"),
        ([torch.ones(2, 7)], [torch.tensor([0])], "2 boxes"),
    ],
)
def test_bad_targets(boxes: list[Tensor], labels: list[Tensor], word: str) -> None:
    with pytest.raises(InputError, match=word):
        small().loss([sweep(0)], boxes, labels)


def test_a_single_point_and_an_empty_batch_train() -> None:
    model = small()
    none = [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.int64)]
    for points in (sweep(0, 1), sweep(0, 0), sweep(0) + 100):
        loss = sum(model.loss([points], *none).values())
        assert loss.isfinite()  # type: ignore[union-attr]
        loss.backward()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options",
    [
        {"voxel_size": (0.5, 0.5, 1.0)},
        {"class_names": ("Car",)},
        {"in_channels": 2},
        {"upsample_strides": (2, 3)},
        {"out_size_factor": 0},
        {"backbone_channels": (8,)},
        {"num_heads": 3},
    ],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        small(**options)


@torch.inference_mode()
def test_bfloat16() -> None:
    model = stirred(small())
    with torch.autocast("cpu", torch.bfloat16):
        half = model([sweep(0)])
    for name, want in model([sweep(0)]).items():
        assert float((half[name].float() - want).std()) < 0.1 * float(want.std()), name


def test_bfloat16_trains() -> None:
    model = small()
    box, on_box = car(1, 1, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model.loss([on_box], [box], [torch.tensor([0])]).values())
    loss.backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.inference_mode()
def test_compiled() -> None:
    model = stirred(small())
    compiled = torch.compile(model, dynamic=False)  # one graph for each number of points and voxels
    for name, want in model([sweep(0)]).items():
        torch.testing.assert_close(compiled([sweep(0)])[name], want, atol=2e-3, rtol=1e-3)


# Sizes and checkpoints


def test_published_variants() -> None:
    names = list_models(system="flatformer")
    assert names == ["flatformer", "flatformer_2sweeps", "flatformer_3sweeps"]
    for name in names:
        model = create_model(name)
        assert sum(p.numel() for p in model.parameters()) == 2_268_110
        counts = {
            part: sum(p.numel() for p in getattr(model, part).parameters())
            for part in ("voxel_encoder", "middle_encoder", "backbone", "neck", "bbox_head")
        }
        assert counts == {"voxel_encoder": 17472, "middle_encoder": 1059840, "backbone": 701952, "neck": 74240, "bbox_head": 414606}
        assert model_info(name).published
    assert next(r.value for r in model_info("flatformer_3sweeps").published if r.metric == "mAPH L2") == 72.0
    assert create_model("flatformer").class_names == ("car", "pedestrian", "cyclist")
    assert create_model("flatformer", num_classes=1).class_names == ("class 0",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.inference_mode()
def test_published_layout(tmp_path: Path, suffix: str) -> None:
    options = {
        **SMALL,
        "embed_dim": 24,
        "num_heads": 8,
        "num_blocks": 3,
        "vfe_channels": (8, 12),
        "layer_nums": (2, 1),
        "num_classes": 4,
        "upsample_strides": (2, 4),
    }
    model = stirred(create_model("flatformer", **options))
    path = tmp_path / f"epoch_24{suffix}"
    if suffix == ".pth":
        state = {
            "meta": {"epoch": 24, "CLASSES": ["a"]},
            "state_dict": model.state_dict(),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        torch.save(state, path)
    else:
        save_weights(model, path, published=True)
    rest = {key: SMALL[key] for key in ("window", "group_size", "voxel_size", "point_cloud_range")}
    loaded = load_published(path, **rest).eval()
    assert loaded.built_from["system"] == "flatformer"
    assert set(loaded.built_from["assumed"]) == {"num_heads", "out_size_factor"}
    for name, want in model([sweep(0)]).items():
        assert torch.equal(loaded([sweep(0)])[name], want), name


def test_weights_of_ours_bring_their_options(tmp_path: Path) -> None:
    model = small(class_names=("Car", "Pedestrian", "Cyclist"))
    save_weights(model, tmp_path / "own.safetensors")
    loaded = load_published(tmp_path / "own.safetensors")
    assert loaded.class_names == ("Car", "Pedestrian", "Cyclist")
    assert isinstance(loaded.middle_encoder, FlatFormer)
    assert loaded.middle_encoder.grid == (32, 24)


def test_a_wrong_checkpoint_names_what_is_missing() -> None:
    state = create_model("flatformer", **SMALL).state_dict()
    del state["bbox_head.task_heads.0.rot.1.bias"]
    with pytest.raises(InputError, match=r"rot\.1\.bias"):
        load_published(state, num_heads=2)


# The bird's-eye-view network


@given(height=st.integers(1, 9), width=st.integers(1, 9))
@settings(deadline=None, max_examples=15)
@torch.inference_mode()
def test_any_size_of_map(height: int, width: int) -> None:
    backbone = SECOND(in_channels=4, out_channels=(4, 6), layer_nums=(1, 0), layer_strides=(1, 2)).eval()
    neck = SECONDFPN(in_channels=(4, 6), out_channels=(3, 5)).eval()
    maps = backbone(torch.randn(1, 4, height, width))
    assert [m.shape[1:] for m in maps] == [(4, height, width), (6, -(-height // 2), -(-width // 2))]
    assert neck(maps).shape == (1, 8, height, width)


@pytest.mark.parametrize("strides", [(0.5, 1), (1, 2)])
@torch.inference_mode()
def test_necks_that_shrink_or_keep_their_size_by_a_convolution(strides: tuple[float, float]) -> None:
    neck = stirred(SECONDFPN(in_channels=(4, 6), out_channels=(3, 5), upsample_strides=strides, use_conv_for_no_stride=True))
    kinds = [type(unit[0]) for unit in neck.deblocks]
    assert kinds == [nn.Conv2d, nn.ConvTranspose2d if strides[1] > 1 else nn.Conv2d]
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    torch.testing.assert_close(optimize_for_inference(neck)(maps), neck(maps), atol=1e-5, rtol=1e-4)


def test_shortcuts_are_added_after_the_relu() -> None:
    backbone = stirred(SECOND(in_channels=4, out_channels=(4,), layer_nums=(0,), layer_strides=(1,)))
    x = torch.randn(1, 4, 5, 5)
    conv, norm, _ = backbone.blocks[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(backbone(x)[0], torch.relu(norm(conv(x))) + x)
