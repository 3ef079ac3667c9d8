"""CenterPoint with several task heads, as nuScenes' published models have them: the head, suppression, checkpoints, results."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vsuite.core import InputError, create_model, load_published, save_weights
from vsuite.core.cli.app import run
from vsuite.pointcloud.boxes import circle_nms, to_mmdet
from vsuite.pointcloud.cli import app
from vsuite.pointcloud.data.boxes_io import read_json, read_nuscenes
from vsuite.pointcloud.data.clouds import PointCloud, write_cloud
from vsuite.pointcloud.data.nuscenes import CLASSES
from vsuite.pointcloud.export import export_published
from vsuite.pointcloud.inference import NOTE, ModelNote, load_model
from vsuite.pointcloud.models.center_decode import DecodeSettings, suppress
from vsuite.pointcloud.models.center_head import CenterHead
from vsuite.pointcloud.models.center_targets import BevGrid
from vsuite.pointcloud.models.centerpoint import DECODE, NUSCENES_GRID, options_of_meta
from vsuite.pointcloud.models.detector import LidarDetector

sys.path.insert(0, str(Path(__file__).parent))
import centerpoint_cases
from centerpoint_cases import as_mmdet3d

GRID = BevGrid((-5.0, -5.0), (0.5, 0.5), (20, 20))
TINY: dict[str, Any] = centerpoint_cases.SMALL | {"share_channels": 8}
KEEP_ALL = DecodeSettings(score_threshold=0.99, nms_threshold=1.0, pre_max=10_000, post_max=10_000)


def head_of(tasks: tuple[int, ...], **options: Any) -> CenterHead:
    torch.manual_seed(0)
    grid = {"point_cloud_range": (-5.0, -5.0, -2.0, 5.0, 5.0, 4.0), "voxel_size": (0.5, 0.5, 6.0), "max_objects": 20}
    return CenterHead(6, 4, sum(tasks), tasks=tasks, with_iou=False, velocity_weight=1.0, **(grid | options))


def truth() -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(
        [
            [1.1, 2.3, 0.4, 4.2, 1.8, 1.6, 0.3, 1.0, -2.0],
            [-3.0, -2.2, 0.9, 0.8, 0.6, 1.8, 2.0, 0.5, 0.1],
            [3.3, -4.0, 0.5, 1.9, 0.7, 1.7, -2.5, 0.0, 0.3],
            [1.2, 2.4, 0.4, 6.0, 2.4, 2.6, 0.3, 3.0, 4.0],  # over the first, of another task
        ]
    )
    return boxes, torch.tensor([0, 1, 2, 2])


def tiny(name: str = "centerpoint_nuscenes", **options: Any) -> LidarDetector:
    torch.manual_seed(0)
    return create_model(name, **(TINY | options))  # type: ignore[return-value]


def sweep(count: int = 800, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    xyz = (2 * torch.rand(count, 3, generator=generator) - 1) * torch.tensor([9.0, 9.0, 1.0])
    return torch.cat([xyz, torch.rand(count, columns - 3, generator=generator)], 1)


def test_each_task_has_its_own_branches() -> None:
    head = head_of((1, 2))
    assert {name.split(".")[1] for name, _ in head.named_parameters() if name.startswith("task_heads")} == {"0", "1"}
    shapes = {name: tuple(values.shape) for name, values in head(torch.randn(2, 6, 5, 7)).items()}
    assert shapes == {
        "reg": (2, 4, 5, 7),
        "height": (2, 2, 5, 7),
        "dim": (2, 6, 5, 7),
        "rot": (2, 4, 5, 7),
        "vel": (2, 4, 5, 7),
        "heatmap": (2, 3, 5, 7),
    }
    for wrong in ((1, 1), (3, 0)):
        with pytest.raises(InputError, match="do not split 3 classes"):
            CenterHead(6, 4, 3, tasks=wrong)


def test_targets_of_all_tasks_decode_to_the_boxes_with_their_velocities() -> None:
    boxes, labels = truth()
    head = head_of((1, 2))
    targets = head.targets((20, 20), [to_mmdet(boxes)], [labels])
    assert [int(task.mask.sum()) for task in targets] == [1, 3]
    maps: dict[str, list[Tensor]] = {name: [] for name in ("reg", "height", "dim", "rot", "vel")}
    for task in targets:
        full = torch.zeros(10, 400)
        rows = task.mask[0].bool()
        full[:, task.cells[0, rows]] = task.boxes[0, rows].T
        for name, values in zip(maps, full.view(1, 10, 20, 20).split([2, 1, 3, 2, 2], 1), strict=True):
            maps[name].append(values)
    joined = {name: torch.cat(values, 1) for name, values in maps.items()}
    joined["heatmap"] = torch.cat([task.heatmap for task in targets], 1) * 20 - 10
    (found,) = head.decode(joined, KEEP_ALL)
    assert found.labels.tolist() == [0, 1, 2, 2]
    order = found.boxes[:, 7].argsort()  # by vx, which differ
    torch.testing.assert_close(found.boxes[order], boxes[boxes[:, 7].argsort()], atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_sum_of_the_tasks_own() -> None:
    boxes, labels = truth()
    both, first, second = head_of((1, 2)), head_of((1,)), head_of((2,))
    for alone, task in ((first, 0), (second, 1)):
        alone.shared_conv, alone.task_heads[0] = both.shared_conv, both.task_heads[task]
    x = torch.randn(1, 6, 20, 20)
    box = to_mmdet(boxes)
    losses = both.loss(both(x), [box], [labels])
    parts = [first.loss(first(x), [box[:1]], [labels[:1]]), second.loss(second(x), [box[1:]], [labels[1:] - 1])]
    for name, value in losses.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name])
        assert value > 0
    quarter = head_of((1, 2), box_weight=0.25).loss(both(x), [box], [labels])
    torch.testing.assert_close(quarter["loss_bbox"] * 8, losses["loss_bbox"])
    torch.testing.assert_close(quarter["loss_heatmap"], losses["loss_heatmap"])
    with pytest.raises(InputError, match="label 3 in a head of 3 classes"):
        both.loss(both(x), [box], [labels + 1])


def test_a_task_without_objects_has_no_box_loss() -> None:
    boxes, labels = truth()
    head = head_of((1, 2))
    losses = head.loss(head(torch.randn(1, 6, 20, 20)), [to_mmdet(boxes[:1])], [labels[:1]])
    assert all(bool(value.isfinite()) for value in losses.values())
    head.zero_grad()
    losses["loss_bbox"].backward()
    grads = {name: p.grad for name, p in head.named_parameters() if ".reg.1.weight" in name}
    assert grads["task_heads.0.reg.1.weight"].any()  # type: ignore[union-attr]
    assert not grads["task_heads.1.reg.1.weight"].any()  # type: ignore[union-attr]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30), st.sampled_from([0.0, 0.175, 1.0, 4.0, 100.0]), st.sampled_from([None, 3]))
def test_circle_nms_against_its_definition(seed: int, count: int, threshold: float, most: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=generator) * 5
    scores = torch.rand(count, generator=generator)
    kept: list[int] = []
    for row in scores.argsort(descending=True).tolist():
        if all(float((boxes[row, :2] - boxes[other, :2]).square().sum()) > threshold for other in kept):
            kept.append(row)
    assert circle_nms(boxes, scores, threshold, post_max=most).tolist() == kept[:most]


def test_what_suppresses_what() -> None:
    """Boxes 0 and 1 lie on each other, 2 a metre beside them."""
    boxes = torch.zeros(3, 9)
    boxes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    boxes[2, 1] = 1.0
    scores = torch.tensor([0.5, 0.9, 0.7])

    def kept(labels: list[int], tasks: tuple[int, ...], **options: Any) -> list[float]:
        chosen = DecodeSettings(nms_threshold=0.4, **options) if "nms_threshold" not in options else DecodeSettings(**options)
        found = suppress(boxes, scores, torch.tensor(labels), chosen, GRID, tasks)
        return [round(score, 2) for score in found.scores.tolist()]

    assert kept([0, 1, 2], (3,)) == [0.5, 0.9, 0.7]  # of three classes: all stay
    assert kept([0, 1, 2], (3,), within="task") == [0.9, 0.7]  # the overlap of the third is a third
    assert kept([0, 1, 2], (1, 2), within="task") == [0.5, 0.9, 0.7]
    assert kept([0, 1, 2], (3,), within="task", nms="circle", nms_threshold=1.0) == [0.9]
    assert kept([0, 1, 2], (3,), within="task", nms="circle", nms_threshold=0.99) == [0.9, 0.7]
    assert kept([0, 1, 2], (1, 2), within="task", nms="circle", nms_threshold=(9.0, 0.1)) == [0.5, 0.9, 0.7]
    assert kept([0, 0, 1], (1, 2), within="task", nms="circle", nms_threshold=(9.0, 0.1)) == [0.9, 0.7]
    with pytest.raises(InputError, match="nms_threshold: 2 numbers for 3 tasks; give one number, or one a task"):
        kept([0, 1, 2], (1, 1, 1), within="task", nms_threshold=(0.1, 0.2))
    with pytest.raises(InputError, match="nms_threshold: 6 numbers for 1 tasks"):
        tiny(tasks=(), nms="circle")


def test_the_published_structure() -> None:
    with torch.device("meta"):
        models = {name: create_model(name) for name in ("centerpoint_nuscenes", "centerpoint_nuscenes_voxel0075")}
    for name, model in models.items():
        assert model.class_names == CLASSES
        assert model.middle_encoder.sparse_shape == ((41, 1440, 1440) if "0075" in name else (41, 1024, 1024))
        head = model.bbox_head
        assert [task["heatmap"][1].out_channels for task in head.task_heads] == [1, 2, 2, 1, 2, 2]
        assert (head.shared_conv.bn.eps, head.shared_conv.bn.momentum) == (1e-5, 0.1)
        assert head.decode_settings == DECODE["task"]
        assert head.decode_settings.groups(head.tasks)[1][:4] == (1, 3, 0.2, 1000)
    state = models["centerpoint_nuscenes"].state_dict()
    assert tuple(state["bbox_head.task_heads.5.vel.0.conv.weight"].shape) == (64, 64, 3, 3)
    assert tuple(state["bbox_head.task_heads.2.heatmap.1.bias"].shape) == (2,)
    head_parameters = sum(p.numel() for name, p in models["centerpoint_nuscenes"].named_parameters() if "task_heads" in name)
    assert head_parameters == 6 * (6 * (64 * 64 * 9 + 2 * 64) + 10 * (64 * 9 + 1)) + 10 * (64 * 9 + 1)
    assert sum(p.numel() for p in models["centerpoint_nuscenes"].parameters()) == 8_938_262  # the configuration's layers, by hand


def test_a_checkpoint_of_mmdetection3d_with_six_tasks(tmp_path: Path) -> None:
    detector = tiny(box_coding="mmdet3d_1").eval()
    names = set(as_mmdet3d(detector))
    for wanted in ("shared_conv.conv.weight", "shared_conv.bn.weight", "task_heads.3.vel.0.conv.weight", "task_heads.5.heatmap.1.bias"):
        assert f"pts_bbox_head.{wanted}" in names
    torch.save({"meta": {}, "state_dict": as_mmdet3d(detector)}, tmp_path / "six.pth")
    grid = {key: TINY[key] for key in ("voxel_size", "point_cloud_range")}
    loaded: Any = load_published(tmp_path / "six.pth", **grid).eval()
    assert loaded.built_from["options"]["tasks"] == [1, 2, 2, 1, 2, 2]
    assert loaded.built_from["assumed"] == {"box_coding": "mmdet3d_1"}
    assert loaded.class_names == CLASSES
    assert loaded.bbox_head.decode_settings == DECODE["task"]
    for name, want in detector([sweep()]).items():
        assert torch.equal(loaded([sweep()])[name], want)
    (a,), (b,) = (model.predict([sweep()], score_threshold=0.0) for model in (detector, loaded))
    assert torch.equal(a.boxes, b.boxes)
    assert a.boxes.shape[1] == 9
    circle: Any = load_published(tmp_path / "six.pth", nms="circle", **grid)
    assert circle.bbox_head.decode_settings.nms_threshold == (4.0, 12.0, 10.0, 1.0, 0.85, 0.175)
    state = as_mmdet3d(detector)
    del state["pts_bbox_head.task_heads.4.vel.1.bias"]
    with pytest.raises(InputError, match=r"1 missing: bbox_head\.task_heads\.4\.vel\.1\.bias"):
        load_published(state, **grid)


def test_files_of_either_coding_give_the_same_boxes() -> None:
    """In mmdetection3d 1.0 the length comes first and the yaw is ours: theirs is -yaw - pi/2 of before."""
    before = tiny().eval()
    state = before.state_dict()
    for name, value in state.items():
        if ".dim.1." in name:
            state[name] = value[[1, 0, 2]]
        elif ".rot.1." in name:
            state[name] = -value.flip(0)
    after = tiny(box_coding="mmdet3d_1").eval()
    after.load_state_dict(state)
    (a,), (b,) = (model.predict([sweep()], score_threshold=0.0) for model in (before, after))
    assert len(a) > 20
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-5, atol=1e-5)
    # The raw branches of the newer coding are the logarithm of the length first and the sine of our own yaw.
    shared = after.bbox_head.shared_conv(after.features([sweep()]))
    task: Any = after.bbox_head.task_heads[0]
    maps = {name: task[name](shared)[0] for name in ("heatmap", "dim", "rot")}
    cell = int(maps["heatmap"].flatten().argmax())
    settings = dataclasses.replace(after.bbox_head.decode_settings, score_threshold=0.0)
    best = after.bbox_head.decode(after([sweep()]), settings)[0].boxes[0]  # the first task's surest
    torch.testing.assert_close(best[3:6].log(), maps["dim"].flatten(1)[:, cell], rtol=1e-4, atol=1e-5)
    sine, cosine = maps["rot"].flatten(1)[:, cell]
    torch.testing.assert_close(best[6], torch.atan2(sine, cosine), rtol=1e-4, atol=1e-5)


def test_it_learns_with_gradients_everywhere() -> None:
    detector = tiny().train()
    boxes = torch.tensor([[(i % 5) * 3.0 - 6, (i // 5) * 6.0 - 3, 0, 3, 1.5, 1.5, 0.3 * i, 0.5 * i, -0.2 * i] for i in range(10)])
    labels = torch.arange(10)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    history = []
    for step in range(12):
        losses = detector.loss([sweep()], [boxes], [labels])
        assert all(bool(value.isfinite()) for value in losses.values())
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            missing = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
            assert missing == []
        optimizer.step()
        history.append(total.item())
    assert history[-1] < history[0] / 2


CONFIG = """voxel_size = [0.4, 0.4, 0.5]
point_cloud_range = [-9.6, -9.6, -3.0, 9.6, 9.6, 3.0]
model = dict(pts_voxel_layer=dict(max_num_points=10, voxel_size=[0.1, 0.1, 0.2]))
"""


@pytest.mark.parametrize(
    ("meta", "coding"),
    [
        ({"mmdet3d_version": "0.17.1", "config": CONFIG}, "mmdet3d_0"),
        ({"mmdet3d_version": "1.0.0rc4", "config": CONFIG}, "mmdet3d_1"),
        ({"mmengine_version": "0.7.1", "cfg": CONFIG}, "mmdet3d_1"),
    ],
)
def test_coding_and_grid_are_read_from_the_notes_of_the_training(meta: dict[str, Any], coding: Any, tmp_path: Path) -> None:
    detector = tiny(box_coding=coding).eval()
    torch.save({"meta": meta, "state_dict": as_mmdet3d(detector)}, tmp_path / "six.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is assumed
        model, note = load_model(tmp_path / "six.pth")
    assert note.columns == ["intensity", "time"]
    (a,), (b,) = (network.predict([sweep()], score_threshold=0.0) for network in (detector, model))  # type: ignore[operator]
    assert len(a) > 20
    assert torch.equal(a.boxes, b.boxes)


def test_notes_that_tell_nothing() -> None:
    for meta in ({}, {"mmdet3d_version": None, "config": 3}, {"mmdet3d_version": "", "config": "voxel_size = [0.1, 0.1]\n"}):
        assert options_of_meta(meta) == {}
    assert options_of_meta({"config": "voxel_size = (0.075, 0.075, 0.2)\n"}) == {"voxel_size": (0.075, 0.075, 0.2)}


def test_predict_with_a_file_without_notes_says_what_it_assumes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The sweep has no `time` either, which is said once for both files."""
    detector = create_model("centerpoint_nuscenes", **{name: TINY[name] for name in TINY if name not in NUSCENES_GRID})
    torch.save({"state_dict": as_mmdet3d(detector)}, tmp_path / "six.pth")  # type: ignore[arg-type]
    points = sweep().numpy()
    for name in ("a", "b"):
        write_cloud(tmp_path / f"{name}.pcd.bin", PointCloud(points[:, :3], {"intensity": points[:, 3], "ring": np.zeros(len(points))}))
    arguments = ["predict", tmp_path, "--weights", tmp_path / "six.pth", "--out", tmp_path / "found", "--device", "cpu", "--no-pictures"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as left:
            run(app, list(map(str, arguments)))
    assert not left.value.code, capsys.readouterr().err
    assert set(read_json(tmp_path / "found" / "boxes.json")) == {"a", "b"}
    texts = [str(warning.message) for warning in said if warning.category is UserWarning]
    assert len(texts) == 2
    assert "assumed voxel_size (0.1, 0.1, 0.2), point_cloud_range (-51.2, " in texts[0]
    assert "box_coding mmdet3d_1; " in texts[0]
    assert texts[1] == "points have no time: all are taken to be of age 0; the model was trained to read their age"


def test_an_exported_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    detector = tiny().eval()
    note = ModelNote(task="detect", classes=list(CLASSES), columns=["intensity", "time"])
    save_weights(detector, tmp_path / "ours.safetensors", metadata={NOTE: note.model_dump()})
    export_published(tmp_path / "ours.safetensors", tmp_path / "theirs.pth")
    grid = {key: TINY[key] for key in ("voxel_size", "point_cloud_range")}
    (a,), (b,) = (
        model.eval().predict([sweep()], score_threshold=0.0)  # type: ignore[operator]
        for model in (detector, load_published(tmp_path / "theirs.pth", **grid))
    )
    assert len(a) > 20
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-5, atol=1e-5)


def test_predict_with_a_published_file_writes_velocities(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    meta = {"mmdet3d_version": "1.0.0", "config": CONFIG}
    torch.save({"meta": meta, "state_dict": as_mmdet3d(tiny())}, tmp_path / "six.pth")
    points = sweep().numpy()
    write_cloud(tmp_path / "top.pcd.bin", PointCloud(points[:, :3], {"intensity": points[:, 3], "ring": np.zeros(len(points))}))
    arguments = ["predict", tmp_path / "top.pcd.bin", "--weights", tmp_path / "six.pth", "--out", tmp_path / "found"]
    with pytest.raises(SystemExit) as left:
        run(app, [*map(str, arguments), "--format", "json,nuscenes", "--threshold", "0", "--device", "cpu", "--no-pictures"])
    assert not left.value.code, capsys.readouterr().err
    boxes = read_json(tmp_path / "found" / "boxes.json")["top"]
    assert boxes.boxes.shape[1] == 9
    assert set(boxes.names) <= set(CLASSES)
    assert len(set(boxes.names)) > 3
    records = json.loads((tmp_path / "found" / "nuscenes.json").read_text())["results"]["top"]
    order = np.argsort(-boxes.scores, kind="stable")[:500]
    np.testing.assert_allclose([record["velocity"] for record in records], boxes.boxes[order, 7:9], atol=1e-5)
    assert np.abs(boxes.boxes[:, 7:9]).max() > 1e-4
    again = read_nuscenes(tmp_path / "found" / "nuscenes.json")["top"]
    np.testing.assert_allclose(again.boxes, boxes.boxes[order], atol=1e-4)
