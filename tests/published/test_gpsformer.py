"""GPSFormer against the stored cases: exact point operations, and the modules of the reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsuite.core import InputError, create_model, load_published, model_info, optimize_for_inference, save_weights
from vsuite.pointcloud import point_ops
from vsuite.pointcloud.bench.plain.gpsformer import plain
from vsuite.pointcloud.losses import smooth_loss
from vsuite.pointcloud.metrics.shapes import mean_ious, shape_ious
from vsuite.pointcloud.models.gpsformer import GlobalPerception, GPSFormer, StructureFitting, affine_basis

LoadCase = Callable[[str], Any]
FORMS = ["compiled", "plain"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test with the compiled loops and with the plain torch operators."""
    monkeypatch.setattr(point_ops, "has_compiled_loops", lambda: request.param == "compiled")
    return request.param


def test_point_operations(load_case: LoadCase, form: str) -> None:
    case = load_case("gpsformer/point_ops")
    config, x = case.meta["config"], case.tensors()
    chosen = point_ops.farthest_points(x["xyz"], config["npoint"])
    centres = point_ops.gather_points(x["xyz"], chosen)
    balls = point_ops.ball_queries(x["xyz"], centres, config["radii"], config["nsamples"])
    case.check(
        {
            "fps": chosen,
            **dict(zip(("ball_01", "ball_02", "ball_04"), balls, strict=True)),
            "knn": point_ops.nearest_points(x["xyz"], centres, config["k"]),
            "three_nn": point_ops.nearest_points(centres, x["xyz"], 3),
            "three_interp": point_ops.interpolate_three(centres, x["xyz"], point_ops.gather_points(x["feat"], chosen)),
        }
    )


def test_point_operations_with_ties(load_case: LoadCase, form: str) -> None:
    case = load_case("gpsformer/point_ops_ties")
    config, x = case.meta["config"], case.tensors()
    chosen = point_ops.farthest_points(x["xyz"], config["npoint"])
    queries = torch.cat([point_ops.gather_points(x["xyz"], chosen), x["far"]], dim=1)
    case.check(
        {
            "fps": chosen,
            "ball": point_ops.ball_query(x["xyz"], queries, config["radius"], config["nsample"]),
            "knn": point_ops.nearest_points(x["xyz"], queries, config["k"]),
        }
    )


def test_affine_basis(load_case: LoadCase) -> None:
    case = load_case("gpsformer/affine_basis")
    u = case.tensors()["u"]
    case.check({f"s{s}_p{p:.1f}".replace(".", "_"): affine_basis(u, p, signed=s == 1) for s in (0, 1) for p in (1.0, 1.5, 2.0, 3.0)})


def test_smooth_loss(load_case: LoadCase) -> None:
    case = load_case("gpsformer/smooth_loss")
    x, eps = case.tensors(), case.meta["config"]["eps"]
    per_sample = smooth_loss(x["logits"], x["label"], eps, reduction="none")
    case.check({"per_sample": per_sample})
    assert smooth_loss(x["logits"], x["label"], eps).item() == pytest.approx(per_sample.mean().item())


def test_part_iou(load_case: LoadCase) -> None:
    case = load_case("gpsformer/part_iou")
    x, parts = case.inputs(), case.meta["config"]["parts"]
    ious = shape_ious(x["pred"], x["target"], x["category"], parts)
    means = mean_ious(ious, x["category"])
    case.check(
        {
            "shape_iou": ious,
            "instance_and_class_miou": [means["instance_miou"], means["class_miou"]],
            "shape_iou_gt_parts_only": shape_ious(x["pred"], x["target"], x["category"], parts, absent_parts="left out"),
        }
    )


# The modules


@pytest.mark.parametrize("variant", ["fast", "optimized", "plain"])
@torch.inference_mode()
def test_global_perception(load_case: LoadCase, variant: str) -> None:
    case = load_case("gpsformer/gpm")
    config, features = case.meta["config"], case.tensors()["f"]
    module = in_form(case.fill(GlobalPerception(config["dim"], config["k"], config["heads"])), variant)
    moved = module.move(features)
    case.check({"f_hat": moved, "f_a": module.graph_features(moved, features), "out": module(features)})


@pytest.mark.parametrize("variant", ["fast", "optimized", "plain"])
@torch.inference_mode()
def test_structure_fitting(load_case: LoadCase, variant: str) -> None:
    case = load_case("gpsformer/lsfconv")
    config, x = case.meta["config"], case.tensors()
    module = in_form(case.fill(StructureFitting(config["cin"], config["cout"], config["radii"], config["nsamples"])), variant)
    points = (x["xyz"] - 0.5) * 0.5
    centres = point_ops.farthest_points(points, config["npoint"])
    case.check({"new_xyz": point_ops.gather_points(points, centres), "out": module(x["f"], points, centres)})


@pytest.mark.parametrize("variant", ["fast", "optimized", "plain"])
@torch.inference_mode()
def test_classification(load_case: LoadCase, variant: str) -> None:
    case = load_case("gpsformer/cls")
    config, points = case.meta["config"], (case.tensors()["xyz"] - 0.5) * 0.5
    model = GPSFormer(num_classes=config["num_classes"], stem_dim=config["stem"], widths=config["widths"])
    model = in_form(case.fill(model), variant)
    stages: list[Tensor] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, out: stages.append(out))
    logits = model(points)
    case.check({f"stage{i}": features for i, features in enumerate(stages)} | {"logits": logits})


def in_form(module: nn.Module, variant: str) -> nn.Module:
    return {"fast": lambda m: m, "optimized": optimize_for_inference, "plain": plain}[variant](module)


# The checkpoint


@pytest.mark.parametrize(
    ("name", "classes", "count", "published"),
    [
        ("gpsformer", 15, 2_380_184, 2.36e6),
        ("gpsformer", 40, 2_383_409, None),
        ("gpsformer_elite", 15, 666_232, 0.68e6),
        ("gpsformer_elite", 40, 669_457, None),
    ],
)
def test_parameter_counts(name: str, classes: int, count: int, published: float | None) -> None:
    model = create_model(name, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count
    assert published is None or count == pytest.approx(published, rel=0.03)
    assert "reconstruction" in model_info(name).summary


def test_published_results() -> None:
    full = {(result.dataset, result.metric): result.value for result in model_info("gpsformer").published}
    assert full["ScanObjectNN PB_T50_RS", "overall accuracy"] == 95.4
    assert model_info("gpsformer_elite").published[0].value == 93.3
    assert {result.value for result in model_info("gpsformer_parts").published} == {85.4, 86.8}


def test_load_published_finds_the_sizes(load_case: LoadCase, tmp_path: Any) -> None:
    state = {name: torch.from_numpy(value) for name, value in load_case("gpsformer/cls").state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "net.pth")
    model = load_published(tmp_path / "net.pth")
    assert isinstance(model, GPSFormer)
    assert model.built_from["options"]["widths"] == [64, 128, 256]
    assert model.built_from["assumed"]["num_samples"] == (8, 16, 32)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    elite = create_model("gpsformer_elite", num_classes=7)
    again = load_published({name: value.clone() for name, value in elite.state_dict().items()})
    assert (again.num_classes, again.built_from["options"]["stem_dim"]) == (7, 16)
    save_weights(again, tmp_path / "w.safetensors")
    assert load_published(tmp_path / "w.safetensors").num_classes == 7


def test_wrong_checkpoints_are_refused_by_name(load_case: LoadCase) -> None:
    state = {name: torch.from_numpy(value) for name, value in load_case("gpsformer/cls").state_dict().items()}
    lacking = {name: value for name, value in state.items() if name != "final.fc1.bias"}
    with pytest.raises(InputError, match=r"1 missing: final\.fc1\.bias"):
        load_published(lacking)
    with pytest.raises(InputError, match=r"1 left over: extra"):
        load_published(state | {"extra": torch.zeros(1)})
    with pytest.raises(InputError, match="NaN"):
        load_published(state | {"out.bias": torch.full((15,), np.nan)})


def test_parts_and_classification_are_told_apart() -> None:
    for name in ("gpsformer_parts", "gpsformer_elite", "pointnet2"):
        model = create_model(name)
        assert type(load_published({key: value.clone() for key, value in model.state_dict().items()})) is type(model)
