"""DenseNet: torchvision's sizes, names and structure, and its checkpoints under all their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import create_model, load_published, load_weights, model_info, optimize_for_inference, save_weights
from vsuite.core.bench.plain.densenet import build as build_plain
from vsuite.core.errors import InputError

PARAMETERS = {"densenet121": 7_978_856, "densenet161": 28_681_000, "densenet169": 14_149_480, "densenet201": 20_013_928}
TINY: dict[str, Any] = {"depths": (1, 3, 2, 1), "embed_dim": 8, "growth_rate": 4, "bottleneck": 2}


def tiny(**options: Any) -> Any:
    """With norms that change something, as after training."""
    torch.manual_seed(0)
    model = create_model("densenet121", **{**TINY, "num_classes": 7, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def published(model: nn.Module) -> dict[str, Tensor]:
    return {re.sub(r"^body\.", "features.", name): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).published


def test_names_and_shapes_are_those_of_torchvision(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = published(create_model("densenet121"))
    assert len(state) == 727
    shapes = {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.running_var": (64,),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock1.denselayer6.conv1.weight": (128, 224, 1, 1),
        "features.denseblock3.denselayer24.conv2.weight": (32, 128, 3, 3),
        "features.transition2.norm.num_batches_tracked": (),
        "features.transition2.conv.weight": (256, 512, 1, 1),
        "features.norm5.bias": (1024,),
        "classifier.weight": (1000, 1024),
        "classifier.bias": (1000,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    save_weights(tiny(), tmp_path / "w.pth", published=True)
    assert set(torch.load(tmp_path / "w.pth", weights_only=True)) == set(published(tiny()))


@pytest.mark.parametrize("size", [(70, 51), (29, 29)])
def test_folded_and_plain_forms_are_equal(size: tuple[int, int]) -> None:
    model = tiny()
    reference = build_plain(**TINY, num_classes=7).eval()
    reference.load_state_dict(model.state_dict())
    folded = optimize_for_inference(model)
    norms = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(name.endswith(("norm0", "norm2")) for name in norms)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(reference(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_plain_form_trains_the_same() -> None:
    model = tiny().train()
    reference = build_plain(**TINY, num_classes=7).train()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for form in (model, reference):
        form(x).square().sum().backward()
    for (name, ours), plain in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-3 * float(plain.grad.abs().max()), msg=name)
    for (name, ours), plain in zip(model.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4, msg=name)


def test_each_layer_sees_all_before_it() -> None:
    model = tiny()
    maps = model.features(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(i.channels, 64 // i.stride, 96 // i.stride) for i in model.feature_info]
    assert [info.channels for info in model.feature_info] == [12, 18, 17, 12]
    seen: list[int] = []
    for layer in model.layers(2):
        layer.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model(torch.randn(1, 3, 64, 96))
    assert seen == [6, 10, 14]


def old_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torchvision's files are: `norm.1`, and without counters."""
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if not name.endswith("num_batches_tracked")}


def test_checkpoints_under_all_their_names(tmp_path: Path) -> None:
    source = tiny()
    state = published(source)
    x = torch.randn(2, 3, 40, 33)
    for content in (state, old_file(state), {"state_dict": {f"module.{name}": value for name, value in state.items()}}):
        torch.save(content, tmp_path / "w.pth")
        found = load_published(tmp_path / "w.pth").eval()
        with torch.inference_mode():
            assert torch.equal(found(x), source(x))
    assert found.built_from["options"]["depths"] == [1, 3, 2, 1]


def test_the_encoder_of_a_pre_trained_u_net(tmp_path: Path) -> None:
    """As the chest X-ray masked autoencoder of convolutional networks saves it."""
    source = tiny()
    unet = {f"model.encoder.{name}": value for name, value in published(source).items() if not name.startswith("classifier.")}
    unet |= {"model.decoder.blocks.0.conv1.0.weight": torch.zeros(2), "model.segmentation_head.0.weight": torch.zeros(2)}
    torch.save({"model": unet, "epoch": 799}, tmp_path / "w.pth")
    bare = load_published(tmp_path / "w.pth").eval()
    x = torch.randn(2, 3, 40, 33)
    with torch.inference_mode():
        assert torch.equal(bare(x), source.forward_head(source.forward_features(x), pre_logits=True))
    classifier: Any = create_model("densenet121", weights=tmp_path / "w.pth", **{**TINY, "num_classes": 14})
    assert classifier(x).shape == (2, 14)
    report = load_weights(tiny(), tmp_path / "w.pth")
    assert report.fresh == ["classifier.weight", "classifier.bias"]


def test_wrong_files_and_sizes_are_refused() -> None:
    state = published(tiny())
    with pytest.raises(InputError, match=r"1 missing: body.norm0.bias"):
        load_published({name: value for name, value in state.items() if name != "features.norm0.bias"})
    with pytest.raises(InputError, match="4 blocks"):
        create_model("densenet121", depths=(1, 1, 1))
    with pytest.raises(InputError, match="1 or more"):
        create_model("densenet121", growth_rate=0)
    with pytest.raises(InputError, match="from 29 pixels up; got 28 x 64"):
        tiny()(torch.zeros(1, 3, 28, 64))
