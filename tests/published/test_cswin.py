"""CSWin against what the official code computes, its published sizes and checkpoints, and what its stripes must do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vsuite.core import InputError, create_model, load_published, load_weights, model_info, optimize_for_inference
from vsuite.core.bench.plain.cswin import build as build_plain
from vsuite.core.models.cswin import LePEAttention

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "cswin_tiny": 22_320_552,
    "cswin_small": 34_643_304,
    "cswin_base": 77_382_184,
    "cswin_large": 173_262_664,
    "cswin_base_384": 77_382_184,
    "cswin_large_384": 173_262_664,
}
TINY = {"embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 2)}


def classified(model: Any, image: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        feature = model.forward_features(image)
        return {"pooled": model.forward_head(feature, pre_logits=True), "logits": model.forward_head(feature)}


def test_classifier_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("cswin/tiny_224")
    model = case.fill(create_model("cswin_tiny"))
    case.check(classified(model, case.tensors()["image"]))
    case.check(classified(optimize_for_inference(model), case.tensors()["image"]))


def test_dense_backbone_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("cswin/tiny_features_203x170")
    model = case.fill(create_model("cswin_tiny", num_classes=0, stage_norms=True))
    with torch.inference_mode():
        for form in (model, optimize_for_inference(model)):
            maps = form.features(case.tensors()["image"], norm=True)
            case.check({f"stage{i}": value for i, value in enumerate(maps, 1)})


@pytest.mark.parametrize(
    ("case_name", "stripe_width", "vertical"), [("vertical", 3, True), ("horizontal", 3, False), ("full", None, False)]
)
def test_attention_returns_what_the_official_code_returns(
    load_case: LoadCase, case_name: str, stripe_width: int | None, vertical: bool
) -> None:
    case = load_case(f"cswin/lepe_attention_{case_name}")
    attention = case.fill(LePEAttention(24, 3, stripe_width, vertical=vertical))
    with torch.inference_mode():
        case.check({"out": attention(case.tensors()["qkv"].permute(0, 3, 4, 1, 2)).flatten(1, 2)})  # from B, 3, C, H, W


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model_info(name).published
    assert model_info(name).input_size == ((3, 384, 384) if name.endswith("384") else (3, 224, 224))


def test_published_size_of_the_dense_backbone() -> None:
    with torch.device("meta"):
        model = create_model("cswin_tiny", num_classes=0, stage_norms=True)
    assert sum(p.numel() for p in model.parameters()) == 21_808_448


def test_official_file_is_recognised(load_case: LoadCase, tmp_path: Path) -> None:
    case = load_case("cswin/tiny_224")
    state = {f"module.{name}": torch.from_numpy(value) for name, value in case.state_dict().items()}
    torch.save({"state_dict_ema": state}, tmp_path / "cswin_tiny_224.pth")
    model: Any = load_published(tmp_path / "cswin_tiny_224.pth")
    assert model.built_from["options"]["depths"] == [1, 2, 21, 1]
    assert model.built_from["options"]["num_heads"] == (2, 4, 8, 16)
    assert model.built_from["assumed"] == {"stripe_widths": (1, 2, 7)}
    assert all(torch.equal(value, state[f"module.{name}"]) for name, value in model.state_dict().items())


def test_head_counts_follow_from_the_published_width() -> None:
    source = create_model("cswin_base", depths=(1, 1, 1, 1), num_classes=3).eval()
    found: Any = load_published(source.state_dict(), stripe_widths=(1, 2, 12))
    assert found.built_from["options"]["num_heads"] == (4, 8, 16, 32)
    wide = create_model("cswin_base_384", depths=(1, 1, 1, 1), num_classes=3).eval()
    wide.load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 50, 70)
    with torch.inference_mode():
        assert torch.equal(found.eval()(x), wide(x))
        assert not torch.allclose(source(x), wide(x))


def test_file_with_a_22k_head_is_fine_tuned_with_a_new_one() -> None:
    source = create_model("cswin_tiny", **TINY, num_classes=21841)
    assert load_published(source.state_dict(), num_heads=TINY["num_heads"]).num_classes == 21841
    model = create_model("cswin_tiny", **TINY, num_classes=10)
    report = load_weights(model, source.state_dict())
    assert report.fresh == ["head.weight", "head.bias"]
    x = torch.randn(1, 3, 64, 40)
    torch.testing.assert_close(model.eval().forward_features(x), source.eval().forward_features(x))  # type: ignore[operator]


def test_classifier_file_fills_a_dense_backbone_but_for_its_norms() -> None:
    source: Any = create_model("cswin_tiny", **TINY, num_classes=5).eval()
    dense: Any = create_model("cswin_tiny", **TINY, num_classes=0, stage_norms=True).eval()
    report = load_weights(dense, source.state_dict())
    assert sorted(report.fresh) == sorted(f"norm{i}.{part}" for i in (1, 2, 3, 4) for part in ("weight", "bias"))
    assert sorted(report.ignored) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    x = torch.randn(1, 3, 75, 64)
    for ours, theirs in zip(dense.features(x), source.features(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dense_backbone_pools_to_what_the_classifier_gets() -> None:
    classifier: Any = create_model("cswin_tiny", **TINY, num_classes=5).eval()
    dense: Any = create_model("cswin_tiny", **TINY, num_classes=5, stage_norms=True).eval()
    state = classifier.state_dict()
    dense.load_state_dict({**state, "norm4.weight": state["norm.weight"], "norm4.bias": state["norm.bias"]}, strict=False)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(dense(x), classifier(x))
        torch.testing.assert_close(dense.features(x, norm=True)[3].mean((2, 3)), dense.forward_head(dense.features(x)[3], pre_logits=True))


sizes = st.integers(1, 9)


@settings(max_examples=25, deadline=None)
@given(height=sizes, width=sizes, stripe_width=st.none() | st.integers(1, 4))
def test_vertical_stripes_are_horizontal_ones_of_the_transposed_map(height: int, width: int, stripe_width: int | None) -> None:
    vertical, horizontal = LePEAttention(8, 2, stripe_width, vertical=True), LePEAttention(8, 2, stripe_width)
    horizontal.get_v.weight.data = vertical.get_v.weight.data.mT
    horizontal.get_v.bias.data = vertical.get_v.bias.data
    qkv = torch.randn(2, height, width, 3, 8)
    torch.testing.assert_close(vertical(qkv), horizontal(qkv.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(stripes=st.integers(1, 3), stripe_width=st.integers(1, 4), width=sizes)
def test_without_scores_each_token_gets_the_mean_of_its_stripe(stripes: int, stripe_width: int, width: int) -> None:
    attention = LePEAttention(8, 2, stripe_width).requires_grad_(False)
    attention.get_v.weight.zero_()
    attention.get_v.bias.zero_()
    value = torch.randn(2, stripes * stripe_width, width, 8)
    out = attention(torch.stack([torch.zeros_like(value), torch.zeros_like(value), value], 3))
    mean = value.unflatten(1, (stripes, stripe_width)).mean((2, 3), keepdim=True).expand(-1, -1, stripe_width, width, -1)
    torch.testing.assert_close(out, mean.flatten(1, 2), rtol=1e-4, atol=1e-5)


def test_position_encoding_does_not_see_across_stripes() -> None:
    attention = LePEAttention(4, 1, 2)
    qkv = torch.randn(1, 6, 5, 3, 4)
    changed = qkv.clone()
    changed[:, 2:4] += 1
    differs = (attention(qkv) != attention(changed)).any(-1)[0]
    assert differs[2:4].all()
    assert not differs[:2].any()
    assert not differs[4:].any()


@pytest.mark.parametrize("size", [(64, 64), (75, 118), (3, 3)])
def test_plain_form_is_equal(size: tuple[int, int]) -> None:
    model = create_model("cswin_tiny", **TINY, num_classes=7).eval()
    plain = build_plain(**TINY, num_classes=7).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


def test_layer_groups_rise_block_by_block() -> None:
    with torch.device("meta"):
        model: Any = create_model("cswin_tiny")
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["stage1_conv_embed.2.weight"] == 0
    assert [ids[f"stage{i}.0.qkv.weight"] for i in (1, 2, 3, 4)] == [1, 2, 4, 25]
    assert [ids[f"merge{i}.conv.weight"] for i in (1, 2, 3)] == [2, 4, 25]
    assert ids["stage3.20.attns.1.get_v.weight"] == 24
    assert ids["norm.weight"] == ids["head.weight"] == 26


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depths": (1, 2, 3)}, "4 stages of 1 block or more; got depths"),
        ({"depths": (1, 0, 1, 1)}, "4 stages of 1 block or more; got depths"),
        ({"stripe_widths": (1, 2, 7, 7)}, "stripe_widths are 3"),
        ({"stripe_widths": (0, 2, 7)}, "stripe_widths are 3"),
        ({"num_heads": (1, 2, 4, 8)}, "even but in the last stage"),
        ({"embed_dim": 60, "num_heads": (8, 8, 8, 8)}, "must divide the widths"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        create_model("cswin_tiny", **options)


def test_missing_stage_norms_are_named() -> None:
    model: Any = create_model("cswin_tiny", **TINY)
    with pytest.raises(InputError, match="stage_norms=True"):
        model.features(torch.randn(1, 3, 64, 64), norm=True)
