"""ResNet: torchvision's sizes, names and structure, and its checkpoints under all their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vsuite.core import create_model, load_published, model_info, optimize_for_inference, save_weights
from vsuite.core.bench.plain.resnet import build as build_plain
from vsuite.core.errors import InputError

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
TINY = {"depths": (1, 2, 1, 1), "embed_dim": 8}


def with_statistics(model: Any) -> Any:
    """Batch norms that change something, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).published


def test_names_and_shapes_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        state = create_model("resnet50").state_dict()
    assert len(state) == 320
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.num_batches_tracked": (),
        "layer2.0.conv1.weight": (128, 256, 1, 1),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "layer4.2.bn3.bias": (2048,),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_3x3_convolution_has_the_stride() -> None:
    with torch.device("meta"):
        block = create_model("resnet50").layer2[0]
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride, block.downsample[0].stride] == [(1, 1), (2, 2), (1, 1), (2, 2)]


@pytest.mark.parametrize("bottleneck", [True, False])
def test_folded_and_plain_forms_are_equal(bottleneck: bool) -> None:
    model = with_statistics(create_model("resnet50", **TINY, bottleneck=bottleneck, num_classes=7))
    reference = build_plain(**TINY, bottleneck=bottleneck, num_classes=7).eval()
    reference.load_state_dict(model.state_dict())
    folded = optimize_for_inference(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(2, 3, 70, 51)
    torch.testing.assert_close(reference(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_pyramid_has_the_promised_channels_and_strides() -> None:
    model = create_model("resnet50", **TINY).eval()
    maps = model.features(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(i.channels, 64 // i.stride, 96 // i.stride) for i in model.feature_info]
    assert all(bool((m >= 0).all()) for m in maps)  # each stage ends in a rectifier
    assert model.features(torch.randn(1, 3, 1, 1))[3].shape == (1, 256, 1, 1)


def test_zero_last_scales_leave_the_shortcuts() -> None:
    model = create_model("resnet50", **TINY).eval()
    block = model.layer2[1]
    nn.init.zeros_(block.bn3.weight)
    x = torch.rand(1, 64, 5, 7)
    assert torch.equal(block(x), x)


def test_layer_ids_rise_with_depth() -> None:
    model = create_model("resnet18", depths=(1, 2, 1, 1), embed_dim=8)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert list(ids.values()) == sorted(ids.values())
    assert [ids[name] for name in ("bn1.bias", "layer1.0.conv1.weight", "layer2.1.bn2.weight", "layer4.0.conv2.weight", "fc.bias")] == [
        0,
        1,
        3,
        5,
        6,
    ]


@pytest.mark.parametrize("bottleneck", [True, False])
def test_checkpoints_under_all_their_names(bottleneck: bool, tmp_path: Path) -> None:
    source = with_statistics(create_model("resnet50", **TINY, bottleneck=bottleneck, num_classes=5))
    state = source.state_dict()
    x = torch.randn(2, 3, 40, 33)
    mm = {f"head.{name}" if name.startswith("fc.") else f"backbone.{name}": value for name, value in state.items()}
    for content in (
        state,
        {"model": state},
        {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        {"state_dict": mm},
    ):
        torch.save(content, tmp_path / "resnet.pth")
        assert torch.equal(load_published(tmp_path / "resnet.pth").eval()(x), source(x))


def test_classifier_file_fills_a_backbone_of_other_channels(tmp_path: Path) -> None:
    source = create_model("resnet50", **TINY, num_classes=5)
    save_weights(source, tmp_path / "resnet.safetensors", published=True)
    found = create_model("resnet50", weights=tmp_path / "resnet.safetensors", **TINY, num_classes=0, in_channels=1).eval()
    grey = torch.randn(1, 1, 64, 64)
    for ours, theirs in zip(found.features(grey), source.eval().features(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="4 stages"):
        create_model("resnet50", depths=(1, 1, 1))
    with pytest.raises(InputError, match="takes B, 3, H, W"):
        create_model("resnet50", **TINY)(torch.zeros(1, 4, 32, 32))
