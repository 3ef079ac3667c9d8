"""CenterHead: the fast path equals the plain one, it learns, and its corrected IoU target is the IoU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import from_mmdet, iou_3d, to_mmdet
from vsuite.pointcloud.models.center_decode import DecodeSettings
from vsuite.pointcloud.models.center_head import CenterHead
from vsuite.pointcloud.models.center_targets import BevGrid, center_targets

EVERYTHING = DecodeSettings(score_threshold=0.0, nms_threshold=1.0, pre_max=10_000, post_max=10_000, centre_range=(-1e6,) * 3 + (1e6,) * 3)


def small_head(**options: Any) -> CenterHead:
    options = {"point_cloud_range": (-5.0, -5.0, -2.0, 5.0, 5.0, 4.0), "voxel_size": (0.5, 0.5, 6.0), "max_objects": 20} | options
    return CenterHead(6, 4, options.pop("num_classes", 3), **options)


def shuffled(head: CenterHead, seed: int) -> CenterHead:
    """Norms with statistics of their own, so that folding matters."""
    torch.manual_seed(seed)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.normal_(0, 0.3)
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5)
    return head.eval()


def truth() -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(
        [
            [1.1, 2.3, 0.4, 4.2, 1.8, 1.6, 0.3, 1.0, -2.0],
            [-3.0, -2.2, 0.9, 0.8, 0.6, 1.8, 2.0, 0.5, 0.1],
            [3.3, -4.0, 0.5, 1.9, 0.7, 1.7, -2.5, 0.0, 0.0],
        ]
    )
    return boxes, torch.tensor([0, 1, 2])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 2),
    velocity=st.booleans(),
    iou=st.booleans(),
    candidates=st.sampled_from([1, 7, 10_000]),
    tasks=st.sampled_from([(), (1, 2), (1, 1, 1)]),
    coding=st.sampled_from(["mmdet3d_0", "mmdet3d_1"]),
)
def test_predict_equals_decode_of_forward(
    seed: int, size: tuple[int, int], batch: int, velocity: bool, iou: bool, candidates: int, tasks: tuple[int, ...], coding: Any
) -> None:
    head = shuffled(small_head(with_velocity=velocity, with_iou=iou, tasks=tasks, box_coding=coding), seed)
    x = torch.randn(batch, 6, *size)
    chosen = dataclasses.replace(EVERYTHING, max_candidates=candidates)
    with torch.no_grad():
        plain = head.decode(head(x), chosen)
    for fast, slow in zip(head.predict(x, chosen), plain, strict=True):
        assert torch.equal(fast.labels, slow.labels)
        torch.testing.assert_close(fast.scores, slow.scores, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(fast.boxes, slow.boxes, atol=1e-4, rtol=1e-4)
        if not iou:
            assert len(fast) == sum(min(candidates, classes * size[0] * size[1]) for classes in head.tasks)


def test_predict_and_decode_agree_with_suppression() -> None:
    torch.manual_seed(0)
    head = shuffled(small_head(), 3)
    head.branches["iou"][1].bias.data.fill_(0.9)  # else its clamp leaves no score above the threshold
    x = torch.randn(2, 6, 20, 20)
    plain = head.decode(head(x))
    fast = head.predict(x)
    assert [len(found) for found in fast] == [len(found) for found in plain]
    assert all(len(found) > 0 for found in fast)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, atol=1e-4, rtol=1e-4)
        assert (a.scores > 0.1).all()
        assert a.labels.tolist() == sorted(a.labels.tolist())


def test_targets_decode_to_the_boxes() -> None:
    """Maps that say exactly what the targets say give back the objects, in our convention."""
    boxes, labels = truth()
    head = small_head()
    (targets,) = head.targets((20, 20), [to_mmdet(boxes)], [labels])
    maps = maps_of(targets.boxes[0, :3], targets.cells[0, :3])
    maps["heatmap"] = (targets.heatmap * 20) - 10
    maps["iou"] = torch.ones(1, 1, 20, 20)
    (found,) = head.decode(maps, dataclasses.replace(EVERYTHING, score_threshold=0.99))
    assert found.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.boxes, boxes, atol=1e-5, rtol=1e-5)


def maps_of(vectors: Tensor, cells: Tensor, size: int = 20) -> dict[str, Tensor]:
    """Branch maps that hold the box vectors (N, 10) at their cells."""
    full = torch.zeros(10, size * size)
    full[:, cells] = vectors.T
    names = ("reg", "height", "dim", "rot", "vel")
    return dict(zip(names, full.view(1, 10, size, size).split([2, 1, 3, 2, 2], 1), strict=True))


def test_heat_map_peaks_and_slots() -> None:
    boxes, labels = truth()
    targets = center_targets([to_mmdet(boxes), to_mmdet(boxes[:0])], [labels, labels[:0]], BevGrid((-5.0, -5.0), (0.5, 0.5), (20, 20)), 3)
    assert (targets.heatmap[0] == 1).flatten(1).sum(1).tolist() == [1, 1, 1]
    assert targets.heatmap[1].count_nonzero() == 0
    assert targets.mask.sum(1).tolist() == [3, 0]
    row, column = divmod(int(targets.cells[0, 0]), 20)
    assert (row, column) == (14, 12)
    assert targets.heatmap[0, 0, row, column] == 1


@pytest.mark.parametrize("height", ["centre", "bottom"])
def test_target_of_the_iou_branch(height: Any) -> None:
    """Corrected, it is the 3D IoU; as published, z counts as the bottom, which differs once heights differ."""
    boxes, labels = truth()
    head = small_head(iou_height=height)
    theirs = to_mmdet(boxes)
    (targets,) = head.targets((20, 20), [theirs], [labels])
    predicted = targets.boxes[0, :3].clone()
    predicted[:, 2] += 0.2
    predicted[:, 5] += 0.5  # 1.6 times as high
    maps = maps_of(predicted, targets.cells[0, :3]) | {"iou": torch.zeros(1, 1, 20, 20), "heatmap": torch.zeros(1, 3, 20, 20)}
    moved = boxes.clone()
    moved[:, 2] += 0.2
    moved[:, 5] *= math.exp(0.5)
    if height == "bottom":
        boxes[:, 2] += boxes[:, 5] / 2
        moved[:, 2] += moved[:, 5] / 2
    expected = iou_3d(boxes, moved).diagonal().mean()
    assert head.loss(maps, [theirs], [labels])["loss_iou"].item() == pytest.approx(expected.item(), abs=1e-3)


def test_it_learns() -> None:
    torch.manual_seed(0)
    boxes, labels = truth()
    head = small_head(velocity_weight=1.0)
    x = torch.randn(1, 6, 20, 20)
    optimiser = torch.optim.Adam(head.parameters(), 2e-2)
    history = []
    for step in range(40):
        losses = head.loss(head(x), [to_mmdet(boxes)], [labels])
        total = sum(losses.values(), torch.zeros(()))
        optimiser.zero_grad()
        total.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters())
        optimiser.step()
        history.append(total.item())
    assert history[-1] < history[0] / 4


def test_loss_without_objects_and_with_unknown_velocities() -> None:
    head = small_head(velocity_weight=1.0)
    maps = head(torch.randn(1, 6, 20, 20))
    empty = head.loss(maps, [torch.zeros(0, 9)], [torch.zeros(0, dtype=torch.int64)])
    assert empty["loss_bbox"] == 0
    assert empty["loss_iou"] == 0
    assert empty["loss_heatmap"] > 0
    boxes, labels = truth()
    boxes[:, 7:] = math.nan
    unknown = head.loss(maps, [to_mmdet(boxes)], [labels])["loss_bbox"]
    still = small_head(velocity_weight=0.0).loss(maps, [to_mmdet(boxes)], [labels])["loss_bbox"]
    torch.testing.assert_close(unknown, still)


def test_wild_maps_give_no_boxes() -> None:
    head = small_head()
    maps = {name: torch.full_like(value, 200.0) for name, value in head(torch.randn(1, 6, 8, 8)).items()}  # sizes overflow
    assert len(head.decode(maps)[0]) == 0
    assert len(head.decode({name: value * math.nan for name, value in maps.items()})[0]) == 0


def test_half_precision() -> None:
    head = shuffled(small_head(), 1)
    x = torch.randn(1, 6, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        maps = head.train()(x)
        losses = head.loss(maps, [to_mmdet(truth()[0])], [truth()[1]])
        (found,) = head.eval().predict(x)
    assert all(value.isfinite() for value in losses.values())
    assert found.boxes.dtype == torch.float32


def test_bad_arguments() -> None:
    boxes, labels = truth()
    with pytest.raises(InputError, match="nms_threshold: 2 numbers for 3 classes"):
        small_head(decode=DecodeSettings(nms_threshold=(0.5, 0.5)))
    with pytest.raises(InputError, match="label 2 in a head of 2 classes"):
        small_head(num_classes=2).targets((20, 20), [to_mmdet(boxes)], [labels])
    with pytest.raises(InputError, match="3 boxes with 2 labels"):
        small_head().targets((20, 20), [to_mmdet(boxes)], [labels[:2]])
    with pytest.raises(InputError, match="iou_height"):
        small_head(iou_height="top")
    with pytest.raises(InputError, match="box_coding"):
        small_head(box_coding="mmdet3d_2")
    assert from_mmdet(to_mmdet(boxes)).shape == (3, 9)
