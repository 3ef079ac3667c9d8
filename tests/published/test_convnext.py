"""ConvNeXt against what the official code computes, its published sizes, and its checkpoints under all their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vsuite.core import create_model, load_published, model_info, optimize_for_inference, save_weights
from vsuite.core.bench.plain.convnext import build as build_plain
from vsuite.core.models.convnext import Block

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
    "convnext_isotropic_small": 22_308_712,
    "convnext_isotropic_base": 87_083_752,
    "convnext_isotropic_large": 305_905_640,
}
TINY = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 24, 32)}


def classified(model: Any, image: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        feature = model.forward_features(image)
        return {"pooled": model.forward_head(feature, pre_logits=True), "logits": model.forward_head(feature)}


@pytest.mark.parametrize(
    ("case_name", "name"),
    [("tiny_224", "convnext_tiny"), ("tiny_193x158", "convnext_tiny"), ("isotropic_small_224", "convnext_isotropic_small")],
)
def test_classifiers_return_what_the_official_code_returns(load_case: LoadCase, case_name: str, name: str) -> None:
    case = load_case(f"convnext/{case_name}")
    model = case.fill(create_model(name, num_classes=case.meta["config"]["num_classes"]))
    case.check(classified(model, case.tensors()["image"]))
    case.check(classified(optimize_for_inference(model), case.tensors()["image"]))


def test_dense_backbone_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("convnext/tiny_features_193x158")
    model = case.fill(create_model("convnext_tiny", num_classes=0, stage_norms=True))
    with torch.inference_mode():
        maps = model.features(case.tensors()["image"], norm=True)
    case.check({f"stage{i}": value for i, value in enumerate(maps, 1)})


def test_block_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("convnext/block")
    with torch.inference_mode():
        case.check({"out": case.fill(Block(20))(case.tensors()["x"])})


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).published


def test_layer_groups_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = create_model("convnext_small")
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert [ids[f"stages.2.{block}.norm.weight"] for block in (0, 2, 3, 26)] == [3, 3, 4, 11]
    assert [ids[f"downsample_layers.{i}.0.weight"] for i in range(4)] == [0, 2, 3, 12]
    assert [ids[f"stages.{i}.0.gamma"] for i in (0, 1, 3)] == [1, 2, 12]
    assert ids["norm.weight"] == ids["head.weight"] == 13


def test_official_file_is_recognised(load_case: LoadCase, tmp_path: Path) -> None:
    case = load_case("convnext/isotropic_small_224")
    state = {name: torch.from_numpy(value) for name, value in case.state_dict().items()}
    torch.save({"model": state}, tmp_path / "convnext_iso_small_1k_224_ema.pth")
    model = load_published(tmp_path / "convnext_iso_small_1k_224_ema.pth")
    assert type(model).__name__ == "ConvNeXtIsotropic"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def timm_name(name: str) -> str:
    """Written from timm's side: how its ConvNeXt names the same tensor."""
    head, *rest = name.split(".")
    if head == "downsample_layers":
        return ".".join(["stem", *rest[1:]]) if rest[0] == "0" else ".".join(["stages", rest[0], "downsample", *rest[1:]])
    if head == "stages":
        part = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}.get(rest[2], rest[2])
        return ".".join(["stages", rest[0], "blocks", rest[1], part, *rest[3:]])
    return ".".join(["head", {"norm": "norm", "head": "fc"}[head], *rest])


def test_timm_file_gives_the_same_model(tmp_path: Path) -> None:
    source = create_model("convnext_tiny", **TINY, num_classes=5)
    torch.save({timm_name(name): value for name, value in source.state_dict().items()}, tmp_path / "timm.pth")
    found = load_published(tmp_path / "timm.pth")
    x = torch.randn(2, 3, 40, 33)
    assert torch.equal(found.eval()(x), source.eval()(x))


def test_classifier_file_fills_a_dense_backbone_but_for_its_norms(tmp_path: Path) -> None:
    source = create_model("convnext_tiny", **TINY, num_classes=5)
    save_weights(source, tmp_path / "classifier.pth")
    dense = create_model("convnext_tiny", weights=tmp_path / "classifier.pth", **TINY, num_classes=0, stage_norms=True)
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(dense.eval().features(x), source.eval().features(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{**TINY, "layer_scale": 0.5}, {"depth": 2, "embed_dim": 16, "layer_scale": 0.5}])
def test_plain_form_is_equal(options: dict[str, Any]) -> None:
    name = "convnext_isotropic_small" if "depth" in options else "convnext_tiny"
    model = create_model(name, **options, num_classes=7).eval()
    plain = build_plain(**options, num_classes=7).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 70, 51)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


def test_without_layer_scale_weights_a_stage_is_the_identity() -> None:
    model = create_model("convnext_tiny", **TINY).eval()
    for block in model.stages[1]:
        block.gamma.data.zero_()
    x = torch.randn(1, 16, 9, 7)
    assert torch.equal(model.stages[1](x), x)


def test_translation_by_the_stride_translates_the_last_map() -> None:
    model = create_model("convnext_tiny", **TINY, layer_scale=0.1).eval()
    image = torch.randn(1, 3, 768, 64)
    shifted = torch.roll(image, 32, 2)
    last, last_shifted = model.forward_features(image), model.forward_features(shifted)
    torch.testing.assert_close(last_shifted[:, :, 10:-8], last[:, :, 9:-9], rtol=1e-4, atol=1e-5)
