"""Swin, Swin V2 and Swin-MLP against what the official code computes, their published sizes, and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, load_published, load_weights, model_info, optimize_for_inference, save_weights
from vsuite.core.bench.plain import swin as plain_swin
from vsuite.core.bench.plain import swin_mlp as plain_swin_mlp
from vsuite.core.bench.plain import swin_v2 as plain_swin_v2
from vsuite.core.models.swin import Block, PatchMerging, WindowAttention
from vsuite.core.models.swin_v2 import log_spaced_offsets
from vsuite.core.nn import resize_position_table

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "swin_tiny": 28_288_354,
    "swin_tiny_c24": 28_306_432,
    "swin_small": 49_606_258,
    "swin_base": 87_768_224,
    "swin_base_384": 87_903_584,
    "swin_large": 196_532_476,
    "swin_large_384": 196_735_516,
    "swin_v2_tiny": 28_347_154,
    "swin_v2_tiny_window16": 28_347_154,
    "swin_v2_small": 49_728_418,
    "swin_v2_small_window16": 49_728_418,
    "swin_v2_base": 87_918_816,
    "swin_v2_base_window16": 87_918_816,
    "swin_v2_base_window12to16_192to256": 87_918_816,
    "swin_v2_base_window12to24_192to384": 87_918_816,
    "swin_v2_large_window12to16_192to256": 196_739_932,
    "swin_v2_large_window12to24_192to384": 196_739_932,
    "swin_mlp_tiny_c24": 20_386_632,
    "swin_mlp_tiny_c12": 21_152_072,
    "swin_mlp_tiny_c6": 22_682_952,
    "swin_mlp_base": 60_659_416,
}
TINY = {"depths": (2, 2, 1, 2), "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4, "image_size": 64}
SYSTEMS = {"swin_tiny": plain_swin.build, "swin_v2_tiny": plain_swin_v2.build, "swin_mlp_tiny_c24": plain_swin_mlp.build}


def tiny(name: str = "swin_tiny", **options: Any) -> Any:
    torch.manual_seed(0)
    model = create_model(name, **{"num_classes": 5, **TINY, **options})
    for parameter in model.parameters():  # the norms of V2 start at 0, tables and biases near it
        if parameter.ndim < 2 or len(parameter) == 49:
            parameter.data.add_(torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    ("case_name", "name", "options"),
    [
        ("tiny_224", "swin_tiny", {}),
        ("tiny_c24_window8_256", "swin_tiny_c24", {}),
        ("tiny_ape_window7_224x448", "swin_tiny", {"absolute_pos_embed": True, "image_size": (224, 448)}),
        ("v2_tiny_window8_256", "swin_v2_tiny", {}),
        ("mlp_tiny_c24_window8_256", "swin_mlp_tiny_c24", {}),
    ],
)
def test_classifiers_return_what_the_official_code_returns(load_case: LoadCase, case_name: str, name: str, options: dict[str, Any]) -> None:
    case = load_case(f"swin/{case_name}")
    model = case.fill(create_model(name, num_classes=case.meta["config"]["num_classes"], **options))
    for form in (model, optimize_for_inference(model)):
        with torch.inference_mode():
            feature = form.forward_features(case.tensors()["image"])
            case.check({"pooled": form.forward_head(feature, pre_logits=True), "logits": form.forward_head(feature)})


@pytest.mark.parametrize("case_name", ["tiny_features_224", "tiny_features_203x169"])
def test_dense_backbone_returns_what_the_official_code_returns(load_case: LoadCase, case_name: str) -> None:
    case = load_case(f"swin/{case_name}")
    model = case.fill(create_model("swin_tiny", num_classes=0, stage_norms=True))
    for form in (model, optimize_for_inference(model)):
        with torch.inference_mode():
            maps = form.features(case.tensors()["image"], norm=True)
        case.check({f"stage{i}": value for i, value in enumerate(maps, 1)})


@torch.inference_mode()
def test_operators_return_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("swin/window_attention")
    attention, inputs = case.fill(WindowAttention(24, 3, (4, 5))), case.tensors()
    bias = attention.position_bias()
    masked = attention.attend(inputs["x"], bias + inputs["mask"].repeat(2, 1, 1)[:, None])
    case.check({"masked": masked, "plain": attention.attend(inputs["x"], bias[None])})

    case = load_case("swin/block_shifted_14")
    block = case.fill(Block(32, 4, (7, 7)))
    case.check({"out": block(case.tensors()["x"].unflatten(1, (14, 14)), True).flatten(1, 2)})

    case = load_case("swin/patch_merging_5x7")
    case.check({"out": case.fill(PatchMerging(16))(case.tensors()["x"].unflatten(1, (5, 7))).flatten(1, 2)})

    case = load_case("swin/resize_bias_table")
    case.check({"out": resize_position_table(case.tensors()["table"], (7, 7), (12, 12))})


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).input_size == (3, *model.image_size)
    assert model_info(name).published or name == "swin_tiny_c24"


def test_dense_backbone_has_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model("swin_tiny", num_classes=0, stage_norms=True)
    assert sum(p.numel() for p in model.parameters()) == 27_520_698


def test_windows_of_the_last_stage_shrink_to_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model("swin_v2_base_window12to24_192to384")
    assert [stage.blocks[0].attn.window[0] for stage in model.layers] == [24, 24, 24, 12]
    assert [stage.blocks[0].attn.pretrained_window[0] for stage in model.layers] == [12, 12, 12, 6]
    assert model.unshifted_stages == (2, 3)


@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_plain_form_is_equal(name: str) -> None:
    for options in (TINY, {**TINY, "image_size": None}):
        model = tiny(name, **options)
        plain = SYSTEMS[name](**options, num_classes=5).eval()
        plain.load_state_dict(model.state_dict())
        fast = optimize_for_inference(model)
        for size in ((64, 64), (70, 51), (33, 130)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_only_the_published_size_goes_without_shifts(name: str) -> None:
    size: dict[str, Any] = {"image_size": 128}
    published, dense, normed = tiny(name, **size), tiny(name, image_size=None), tiny(name, **size, stage_norms=True)
    for model in (dense, normed):
        load_weights(model, {key: value for key, value in published.state_dict().items() if not key.startswith("norm.")}, strict=False)
    x, other = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 100)
    maps = published.features(x), dense.features(x), normed.features(x)
    assert published.unshifted_stages == (3,)
    assert normed.unshifted_stages == dense.unshifted_stages == ()
    assert torch.equal(maps[0][2], maps[1][2])
    assert not torch.allclose(maps[0][3], maps[1][3])
    assert torch.equal(maps[1][3], maps[2][3])
    assert torch.equal(published.forward_features(other), dense.forward_features(other))


@torch.inference_mode()
def test_unbiased_window_of_the_whole_map_is_plain_attention() -> None:
    attention = WindowAttention(12, 3, (5, 6))
    nn.init.zeros_(attention.relative_position_bias_table)
    x = torch.randn(2, 5, 6, 12)
    tokens = x.flatten(1, 2)
    wanted, _ = F.multi_head_attention_forward(
        *[tokens.transpose(0, 1)] * 3,
        12,
        3,
        attention.qkv.weight,
        attention.qkv.bias,
        None,
        None,
        False,
        0.0,
        attention.proj.weight,
        attention.proj.bias,
    )
    torch.testing.assert_close(attention(x, False).flatten(1, 2), wanted.transpose(0, 1), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_rolling_by_one_window_rolls_the_output() -> None:
    block, x = Block(8, 2, (4, 4)), torch.randn(1, 12, 16, 8)
    torch.testing.assert_close(block(x.roll((4, 8), (1, 2)), False), block(x, False).roll((4, 8), (1, 2)))


def test_blocks_of_v2_start_as_the_identity() -> None:
    model = create_model("swin_v2_tiny", **TINY)
    x = torch.randn(1, 16, 9, 16)
    assert torch.equal(model.layers[1].blocks[1](x, True), x)


def test_layer_groups_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = create_model("swin_base", absolute_pos_embed=True)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["patch_embed.proj.weight"] == ids["absolute_pos_embed"] == 0
    assert [ids[f"layers.{i}.blocks.{j}.mlp.fc1.weight"] for i, j in ((0, 0), (0, 1), (2, 5), (3, 1))] == [1, 2, 10, 24]
    assert [ids[f"layers.{i}.downsample.norm.weight"] for i in range(3)] == [2, 4, 22]
    assert ids["norm.weight"] == ids["head.weight"] == 25


def official_buffers(model: Any) -> dict[str, Tensor]:
    """What the authors' files hold beside parameters; the offsets of V2 tell its windows."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "window") and hasattr(module, "biases"):
            found[f"{name}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
            found[f"{name}.attn_mask".replace(".attn.", ".")] = torch.zeros(4, 16, 16)
        if hasattr(module, "pretrained_window"):
            (h, w), offsets = module.window, log_spaced_offsets(module.window, module.pretrained_window, torch.device("cpu"))
            found[f"{name}.relative_coords_table"] = offsets.view(1, 2 * h - 1, 2 * w - 1, 2)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny", {}),
        ("swin_tiny", {"absolute_pos_embed": True}),
        ("swin_v2_tiny", {}),
        ("swin_v2_tiny", {"pretrained_window_sizes": (6, 3, 4, 1), "image_size": 32, "window_size": 5}),
        ("swin_mlp_tiny_c24", {"image_size": 96}),
    ],
)
def test_official_files_are_recognised(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = tiny(name, **{"image_size": 128, **options})
    torch.save({"model": source.state_dict() | official_buffers(source), "epoch": 300, "max_accuracy": 81.2}, tmp_path / "swin.pth")
    found = load_published(tmp_path / "swin.pth").eval()
    assert type(found) is type(source)
    assert found.image_size == source.image_size
    for size in (source.image_size, (50, 71)):
        x = torch.randn(1, 3, *size)
        assert torch.equal(found(x), source(x))


def test_v2_takes_a_file_of_another_window_only_if_told_what_it_was_trained_with() -> None:
    source = tiny("swin_v2_tiny", window_size=8, image_size=128)
    official = source.state_dict() | official_buffers(source)
    with pytest.raises(InputError, match=r"for windows of \[8, 8, 8, 4\].*those of \[4, 4, 4, 4\].*sizes=\[8, 8, 8, 4\].*window_size=8"):
        tiny("swin_v2_tiny", window_size=4, image_size=128, weights=official)
    wider = tiny("swin_v2_tiny", window_size=16, image_size=256, pretrained_window_sizes=(8, 8, 8, 4), weights=official)
    assert torch.equal(wider.state_dict()["layers.0.blocks.0.attn.cpb_mlp.2.weight"], official["layers.0.blocks.0.attn.cpb_mlp.2.weight"])


def test_detectors_file_fills_a_dense_backbone(tmp_path: Path) -> None:
    source = tiny(num_classes=0, stage_norms=True)
    state = {f"backbone.{name}": value for name, value in (source.state_dict() | official_buffers(source)).items()}
    torch.save({"state_dict": state, "meta": {"epoch": 36}}, tmp_path / "backbone.pth")
    found: Any = load_published(tmp_path / "backbone.pth")
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(found.eval().features(x, norm=True), source.features(x, norm=True), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["swin_tiny", "swin_v2_tiny"])
def test_timm_file_gives_the_same_model(name: str, tmp_path: Path) -> None:
    source = tiny(name)

    def timm_name(key: str) -> str:
        head, *rest = key.split(".")
        if head == "layers" and rest[1] == "downsample":
            return ".".join([head, str(int(rest[0]) + 1), *rest[1:]])
        return ".".join(["head.fc", *rest]) if head == "head" else key

    torch.save({timm_name(key): value for key, value in source.state_dict().items()}, tmp_path / "timm.pth")
    given = {"window_size": 4, "image_size": 64} if name == "swin_v2_tiny" else {}
    found: Any = load_published(tmp_path / "timm.pth", **given)
    for size in ((64, 64), (50, 71)):
        x = torch.randn(1, 3, *size)
        assert torch.equal(found.eval()(x), source(x))


def test_22k_file_gives_all_but_the_classifier(tmp_path: Path) -> None:
    source = tiny(num_classes=21)
    save_weights(source, tmp_path / "22k.pth")
    model: Any = create_model("swin_tiny", weights=tmp_path / "22k.pth", **TINY, num_classes=4)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval().forward_features(x), source.forward_features(x))
    assert load_weights(model, tmp_path / "22k.pth").fresh == ["head.weight", "head.bias"]


def test_tables_are_resized_for_another_window_and_another_grid(tmp_path: Path) -> None:
    source = tiny(absolute_pos_embed=True, image_size=128)
    save_weights(source, tmp_path / "window4.pth")
    model: Any = tiny(absolute_pos_embed=True, image_size=160, window_size=5)
    report = load_weights(model, tmp_path / "window4.pth")
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    assert report.resized[table] == ((49, 2), (81, 2))
    assert report.resized["absolute_pos_embed"] == ((1, 1024, 8), (1, 1600, 8))
    assert torch.equal(model.state_dict()[table], resize_position_table(source.state_dict()[table], (4, 4), (5, 5)))
    # The resized table is what the source adds to an image of the new size.
    x = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(model.embed(x), source.embed(x))


def test_dense_absolute_table_is_understood() -> None:
    source = tiny(absolute_pos_embed=True, image_size=(64, 96))
    state = source.state_dict()
    state["absolute_pos_embed"] = state["absolute_pos_embed"].reshape(1, 16, 24, 8).permute(0, 3, 1, 2)
    found: Any = load_published(state)
    assert torch.equal(found.absolute_pos_embed, source.absolute_pos_embed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (3, 2, 2, 4)}, "num_heads must divide the width of each stage"),
        ({"depths": (1, 1, 1)}, "one number a stage"),
        ({"window_size": 0}, "must be 1 or more"),
        ({"image_size": (64, 64, 3)}, "a side or H, W"),
        ({"image_size": 0}, "a side or H, W"),
        ({"absolute_pos_embed": True, "image_size": None}, "needs image_size"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("swin_tiny", **{**TINY, **options})


def test_wrong_pretrained_windows_are_named() -> None:
    with pytest.raises(InputError, match="a number from 0 up for each stage"):
        create_model("swin_v2_tiny", pretrained_window_sizes=(12, 12))


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_v2_in_half_precision_takes_padded_windows(size: tuple[int, int]) -> None:
    model = tiny("swin_v2_tiny")
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected, found = model(x), model.half()(x.half())
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
