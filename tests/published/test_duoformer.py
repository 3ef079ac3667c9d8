"""DuoFormer against what the official code computes, its sizes, and its checkpoints under all their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vsuite.core import create_model, list_models, load_published, load_weights, model_info, optimize_for_inference, save_weights
from vsuite.core.errors import InputError
from vsuite.core.models.vit import Block
from vsuite.medical.backbones import load_backbone
from vsuite.medical.bench.plain.duoformer import build as build_plain
from vsuite.medical.models.duoformer import DuoFormer, gather_region_tokens
from vsuite.medical.models.duoformer_regions import RegionTransformer

LoadCase = Callable[[str], Any]
FC_NORM = 1_536  # two vectors of the published state dict that no output depends on
PARAMETERS = {
    "duoformer_r50_2scale": 139_320_131 - FC_NORM,
    "duoformer_r50_4scale": 139_972_931 - FC_NORM,
    "duoformer_r50_4scale_d8_channel": 148_187_715 - FC_NORM,
    "duoformer_r50_4scale_d8": 102_171_971 - FC_NORM,
    "duoformer_r50_4scale_d8_first": 102_171_971 - FC_NORM - 2 * 768,  # no token, and no row of the table for it
    "duoformer_r50_4scale_d8_avg": 102_171_971 - FC_NORM - 2 * 768,
    "duoformer_r50_4scale_d8_no_patch_attention": 129_248_117,
    "duoformer_r18_4scale": 125_428_035,
}
TINY: dict[str, Any] = {"backbone": "resnet18", "image_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def options(case: Any) -> dict[str, Any]:
    """The constructor's options of a case's configuration."""
    config = dict(case.meta["config"])
    assert config.pop("proj_dim") == config["embed_dim"]
    backbone = {"r50": "resnet50", "r18": "resnet18"}[config.pop("backbone")]
    return {"backbone": backbone, "num_scales": config.pop("num_layers"), **config}


@torch.inference_mode()
def steps(model: DuoFormer, x: Tensor) -> dict[str, Tensor]:
    """Every intermediate of a case, from the parts that the forward pass is made of."""
    transformer = model.vision_transformer
    tokens = model.tokens(model.features(x))
    scales = (tokens + transformer.pos_embed_for_scale).flatten(0, 1)
    for block in transformer.scaleBlocks:
        scales = block(scales)
    scales = scales.unflatten(0, tokens.shape[:2])
    z = transformer.with_class_token(scales[:, :, 0])
    found = {"tokens": tokens, "after_scale": scales}
    for i, block in enumerate(transformer.blocks):
        z = block(z)
        found |= {"after_patch_0": z} if i == 0 else {}
    return found | {"after_patch": z, "logits": model(x)}


@pytest.mark.parametrize("name", ["r50_2scale_224", "r50_4scale_channel_224"])
def test_whole_model(load_case: LoadCase, name: str) -> None:
    """The forward pass leaves out what its output does not depend on; its logits are held to the published ones."""
    case = load_case(f"duoformer/{name}")
    model = case.fill(DuoFormer(**options(case)))
    x = case.tensors()["x"]
    case.check(steps(model, x))
    if name == "r50_2scale_224":
        case.meta["outputs"] = {"logits": case.meta["outputs"]["logits"]}
        with torch.inference_mode():
            case.check({"logits": optimize_for_inference(model)(x)})


@pytest.mark.slow
def test_plain_form(load_case: LoadCase) -> None:
    """The oracle of the other tests is held to the same figures."""
    case = load_case("duoformer/r50_2scale_224")
    case.meta["outputs"] = {"logits": case.meta["outputs"]["logits"]}
    with torch.inference_mode():
        case.check({"logits": case.fill(build_plain(**options(case)))(case.tensors()["x"])})


def test_tokens(load_case: LoadCase) -> None:
    case = load_case("duoformer/tokens")
    maps = case.tensors()
    case.check({"tokens": gather_region_tokens([maps[f"x{i}"] for i in range(4)])})


@torch.inference_mode()
def test_scale_block(load_case: LoadCase) -> None:
    case = load_case("duoformer/scale_block")
    config, x = case.meta["config"], case.tensors()["x"]
    block = case.fill(Block(config["dim"], config["num_heads"], config["mlp_ratio"]))
    case.check({"out": block(x.flatten(0, 1)).unflatten(0, x.shape[:2])})


@torch.inference_mode()
def test_patch_attention(load_case: LoadCase) -> None:
    case = load_case("duoformer/patch_attention")
    config, x = case.meta["config"], case.tensors()["x"]
    transformer = RegionTransformer(49, 3, 3, embed_dim=config["dim"], depth=2, num_heads=config["num_heads"])
    state = {name: torch.from_numpy(value) for name, value in case.state_dict().items()}
    assert sum(value.numel() for value in state.values()) == case.meta["num_params"]
    assert transformer.load_state_dict(state, strict=False).unexpected_keys == []
    first = transformer.blocks[0](transformer.with_class_token(x[:, :, 0]))
    case.check({"first": first, "second": transformer.blocks[1](first)})
    torch.testing.assert_close(transformer.blocks[1](first, slice(0, 1)), transformer.blocks[1](first)[:, :1])


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_variants_and_published_results() -> None:
    assert set(list_models(system="duoformer", task="classification")) == set(PARAMETERS)
    assert [r.value for r in model_info("duoformer_r50_4scale_d8_channel").published] == [0.8645]
    assert [r.value for r in model_info("duoformer_r50_4scale").published] == [0.785, 0.802, 0.803]
    assert model_info("duoformer_r50_2scale").input_size == (3, 224, 224)


# Checkpoints


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = DuoFormer(**TINY | changes)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def pathology(name: str) -> str:
    """The names of the authors' pathology backbone."""
    for number, part in {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}.items():
        name = re.sub(rf"^resnet_projector\.{number}\.", f"resnet_projector.{part}.", name)
    return name


def rewrite(name: str) -> str:
    """The names of the third-party rewrite."""
    return name.replace("scaleBlocks", "scale_blocks").replace("chann_proj", "channel_proj")


@pytest.mark.parametrize("scale_token", ["random", "channel"])
def test_checkpoints_under_all_their_names(scale_token: str) -> None:
    source = tiny(scale_token=scale_token, num_scales=3)
    state = source.state_dict()
    dead = {"vision_transformer.fc_norm.weight": torch.ones(16), "vision_transformer.fc_norm.bias": torch.zeros(16)}
    with torch.inference_mode():
        wanted = source(image())
        for content in (
            state,
            state | dead,
            {"epoch": 3, "model": {f"module.{name}": value for name, value in state.items()}},
            {pathology(name): value for name, value in state.items()},
            {rewrite(name): value for name, value in state.items()},
            {pathology(rewrite(name)): value for name, value in state.items()},
        ):
            model = load_published(content, num_heads=2)
            torch.testing.assert_close(model.eval()(image()), wanted, rtol=1e-4, atol=1e-4)
            assert model.built_from["assumed"] == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_scales": 1},
        {"num_scales": 2, "mlp_ratio": 2.0, "num_classes": 7, "image_size": 96, "in_channels": 1},
        {"num_scales": 4, "depth": 1, "embed_dim": 24},
        {"scale_token": "first"},
        {"scale_token": "channel", "backbone": "resnet50"},
        {"patch_attention": False},
        {"qk_norm": True, "num_heads": 4},
    ],
)
def test_sizes_are_inferred(changes: dict[str, Any]) -> None:
    wanted = TINY | changes
    with torch.device("meta"):
        state = DuoFormer(**wanted).state_dict()
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in state.items()}
    given = {} if "qk_norm" in changes else {"num_heads": 2}
    found = load_published(state, **given).built_from["options"]
    assert {key: found[key] for key in wanted} == wanted


def test_what_a_checkpoint_cannot_tell_is_assumed() -> None:
    with torch.device("meta"):
        shapes = {depth: DuoFormer(**TINY | {"embed_dim": 24, "depth": depth, "scale_token": "avg", "num_heads": 2}) for depth in (2, 12)}
    for depth, heads in ((2, 8), (12, 12)):
        state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes[depth].state_dict().items()}
        model: Any = load_published(state)
        assert model.built_from["assumed"] == {"num_heads": None, "scale_token": "first"}
        assert model.num_heads == heads
        assert load_published(state, scale_token="avg").scale_token == "avg"


def test_published_attention_dropout_leaves_norms_of_queries_and_keys() -> None:
    source = tiny(qk_norm=True)
    unused = {f"vision_transformer.scaleBlocks.{i}.attn.{part}_norm.weight": torch.ones(8) for i in (0, 1) for part in "qk"}
    with torch.inference_mode():
        model = load_published(source.state_dict() | unused).eval()
        torch.testing.assert_close(model(image()), source(image()), rtol=1e-4, atol=1e-4)


def test_other_sizes_classes_and_channels(tmp_path: Path) -> None:
    source = tiny()
    save_weights(source, tmp_path / "w.pth")
    wider: Any = create_model("duoformer_r50_2scale", **{**TINY, "image_size": 128, "num_classes": 5}, weights=tmp_path / "w.pth")
    table = wider.vision_transformer.pos_embed
    assert table.shape == (1, 17, 16)
    torch.testing.assert_close(table[:, :1], source.vision_transformer.pos_embed[:, :1])
    grey: Any = create_model("duoformer_r50_2scale", **{**TINY, "in_channels": 1}, weights=tmp_path / "w.pth")
    x = image()[:, :1]
    with torch.inference_mode():
        torch.testing.assert_close(grey.eval()(x), source(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_saved_models_come_back_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model("duoformer_r50_2scale", **TINY | {"scale_token": "avg", "patch_residual": True}).eval()
    save_weights(source, tmp_path / "w.safetensors")
    with torch.inference_mode():
        model = load_published(tmp_path / "w.safetensors").eval()
        torch.testing.assert_close(model(image()), source(image()), rtol=1e-4, atol=1e-4)


def test_wrong_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    state = tiny().state_dict()
    lacking = {name: value for name, value in state.items() if name != "vision_transformer.blocks.1.attn.proj.weight"}
    with pytest.raises(InputError, match=r"1 missing: vision_transformer\.blocks\.1\.attn\.proj\.weight"):
        load_published(lacking)
    with pytest.raises(InputError, match=r"1 left over: vision_transformer\.extra"):
        load_published(state | {"vision_transformer.extra": torch.zeros(1)})
    with pytest.raises(InputError, match="is not a checkpoint of"):
        load_published({name: value for name, value in state.items() if name.startswith("projection")}, "duoformer")
    torch.save({"epoch": 1, "model": nn.Linear(1, 1)}, tmp_path / "pickled.pth")  # a whole module, as the authors' script saves it
    with pytest.raises(InputError, match=r"pickled\.pth"):
        load_published(tmp_path / "pickled.pth")


def test_backbone_weights_under_the_names_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(3)
    resnet: Any = create_model("resnet18", num_classes=10).eval()
    heads = {"projection_head.0.weight": torch.zeros(3, 3), "prototypes.weight": torch.zeros(2)}  # of self-supervised training
    torch.save({"state_dict": {f"module.{name}": value for name, value in (resnet.state_dict() | heads).items()}}, tmp_path / "r.pth")
    model = tiny()
    load_backbone(model, tmp_path / "r.pth")
    with torch.inference_mode():
        for found, wanted in zip(model.features(image()), resnet.features(image()), strict=True):
            torch.testing.assert_close(found, wanted)
    with pytest.raises(InputError, match=r"no resnet18: .*missing"):
        load_backbone(model, {name: value for name, value in resnet.state_dict().items() if not name.startswith("layer3.1")})
    with pytest.raises(InputError, match="of another shape"):
        load_backbone(tiny(backbone="resnet50"), resnet.state_dict())
    assert load_weights(tiny(), model.state_dict()).problems() == ""
