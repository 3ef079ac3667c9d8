"""HorNet against what the official code computes, its published sizes, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vsuite.core import InputError, create_model, load_published, load_weights, model_info, optimize_for_inference
from vsuite.core.bench.plain.hornet import build as build_plain
from vsuite.core.models.hornet import GlobalLocalFilter, GnConv, GnConvModule, HorNet, fourier_matrices

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "hornet_tiny_7x7": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
    "hornet_small_7x7": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_base_7x7": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_base_gf_img384": 92_099_560,
    "hornet_large_7x7": 194_542_504,
    "hornet_large_gf": 196_289_512,
    "hornet_large_gf_img384": 201_806_824,
}
DEPTHS_AND_DIMS = {"depths": (1, 1, 3, 1), "embed_dims": (8, 16, 32, 64)}
GRIDS = {"filter_grids": (None, None, (5, 4), (3, 2))}


def tiny(**options: Any) -> HorNet:
    torch.manual_seed(0)
    model: Any = create_model("hornet_tiny_7x7", **{**DEPTHS_AND_DIMS, "num_classes": 7, "layer_scale": 0.5, **options})
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def classified(model: Any, image: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        feature = model.forward_features(image)
        return {"pooled": model.forward_head(feature, pre_logits=True), "logits": model.forward_head(feature)}


@pytest.mark.parametrize("kind", ["7x7", "gf"])
def test_classifiers_return_what_the_official_code_returns(load_case: LoadCase, kind: str) -> None:
    case = load_case(f"hornet/tiny_{kind}_224")
    model = case.fill(create_model(f"hornet_tiny_{kind}"))
    case.check(classified(model, case.tensors()["image"]))
    case.check(classified(optimize_for_inference(model), case.tensors()["image"]))


def test_dense_backbone_returns_what_the_official_code_returns(load_case: LoadCase) -> None:
    case = load_case("hornet/tiny_gf_features_200x158")
    model = case.fill(create_model("hornet_tiny_gf", num_classes=0, stage_norms=True))
    fast: Any = optimize_for_inference(model)
    for form in (model, fast, fast):  # the third time with kept filters
        with torch.inference_mode():
            maps = form.features(case.tensors()["image"], norm=True)
        case.check({f"stage{i}": value for i, value in enumerate(maps, 1)})


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("gnconv_order3", lambda: GnConv(32, 32, 3, scale=1 / 3)),
        ("gnconv_gf_order4", lambda: GnConv(32, 32, 4, scale=1 / 3, filter_grid=(8, 5))),
        ("global_local_filter", lambda: GlobalLocalFilter(12, (8, 5))),
        ("gnconv_module", lambda: GnConvModule(24, 16, 2)),
    ],
)
def test_operators_return_what_the_official_code_returns(load_case: LoadCase, name: str, build: Callable[[], nn.Module]) -> None:
    case = load_case(f"hornet/{name}")
    module = case.fill(build())
    for form in (module, optimize_for_inference(module)):
        with torch.inference_mode():
            case.check({"out": form(case.tensors()["x"])})


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert bool(model_info(name).published) is (name != "hornet_base_gf_img384")
    assert model_info(name).input_size[1] == (384 if name.endswith("384") else 224)


@pytest.mark.parametrize("options", [{}, GRIDS, {"stage_norms": True, "num_classes": 0, "orders": (1, 2, 3, 3)}])
def test_plain_form_is_equal(options: dict[str, Any]) -> None:
    model = tiny(**options)
    plain: Any = build_plain(**{**DEPTHS_AND_DIMS, "num_classes": 7, "layer_scale": 0.5, **options}).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 70, 131)
    for found, wanted in zip(plain.features(x), model.features(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


def test_folded_filters_follow_the_size_and_twice_folded_is_once_folded() -> None:
    model = tiny(**GRIDS)
    fast: Any = optimize_for_inference(model)
    again: Any = optimize_for_inference(fast)
    for size in [(80, 96), (80, 98), (33, 160), (80, 96)]:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(again(x), fast(x))


def test_filters_follow_the_weights_while_training() -> None:
    layer = GlobalLocalFilter(4, (8, 5)).eval()
    x = torch.randn(1, 4, 6, 6)
    before = layer(x)
    layer.complex_weight.data.mul_(-3)
    assert not torch.allclose(layer(x), before, atol=1e-2)


def test_layer_groups_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = create_model("hornet_tiny_gf")
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert [ids[f"stages.2.{block}.gamma1"] for block in (0, 1, 2, 15, 16, 17)] == [3, 3, 4, 10, 11, 11]
    assert [ids[f"downsample_layers.{i}.0.weight"] for i in range(4)] == [0, 2, 3, 12]
    assert [ids[f"stages.{i}.0.gnconv.proj_in.weight"] for i in (0, 1, 3)] == [1, 2, 12]
    assert ids["norm.weight"] == ids["head.weight"] == 13


@pytest.mark.parametrize("options", [{}, GRIDS])
def test_official_file_is_recognised(options: dict[str, Any], tmp_path: Path) -> None:
    source = tiny(**options, num_classes=41)
    torch.save({"model": source.state_dict(), "epoch": 299}, tmp_path / "hornet_tiny_gf_in22k.pth")
    found = load_published(tmp_path / "hornet_tiny_gf_in22k.pth")
    assert type(found) is HorNet
    assert found.num_classes == 41
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.state_dict().items())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(found.eval()(x), source(x))
    other: Any = create_model("hornet_tiny_7x7", weights=source.state_dict(), **{**DEPTHS_AND_DIMS, **options, "num_classes": 3})
    assert torch.equal(other.eval().forward_features(x), source.forward_features(x))


def test_filters_of_another_size_are_resized_on_loading() -> None:
    source, wider = tiny(**GRIDS), tiny(filter_grids=(None, None, (7, 6), (3, 2)))
    report = load_weights(wider, source.state_dict())
    assert report.resized == {f"stages.2.{i}.gnconv.dwconv.complex_weight": ((30, 5, 4, 2), (30, 7, 6, 2)) for i in range(3)}
    old, new = (dict(m.named_parameters())["stages.2.0.gnconv.dwconv.complex_weight"] for m in (source, wider))
    assert torch.equal(new[:, ::6, ::5], old[:, ::4, ::3])  # corners are aligned
    torch.testing.assert_close(new[:, 3, 0], old[:, 2, 0])  # and so is the middle
    with pytest.raises(InputError, match="of another shape"):
        load_weights(wider, {**source.state_dict(), "stages.2.0.gnconv.dwconv.complex_weight": torch.zeros(29, 5, 4, 2)})


def test_without_layer_scale_weights_a_stage_is_the_identity() -> None:
    model = tiny()
    for block in model.stages[2].children():
        block.gamma1.data.zero_()  # type: ignore[union-attr, operator]
        block.gamma2.data.zero_()  # type: ignore[union-attr, operator]
    x = torch.randn(1, 32, 9, 7)
    assert torch.equal(model.stages[2](x), x)


@settings(max_examples=15, deadline=None)
@given(order=st.integers(1, 4), factor=st.floats(-2, 2), seed=st.integers(0, 99))
def test_gated_convolution_is_homogeneous_of_its_order_plus_one(order: int, factor: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer = GnConv(8, 8, order, scale=1 / 3).double()
    for conv in (layer.proj_in, layer.dwconv, *layer.pws):
        conv.bias.data.zero_()  # type: ignore[union-attr, operator]
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    bias = layer.proj_out.bias[:, None, None]  # type: ignore[union-attr, index]
    torch.testing.assert_close(layer(factor * x) - bias, factor ** (order + 1) * (layer(x) - bias), rtol=1e-8, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_filter_of_ones_passes_the_second_half_to_the_odd_channels(height: int, width: int) -> None:
    layer = GlobalLocalFilter(6, (4, 3))
    layer.complex_weight.data.copy_(torch.tensor([1.0, 0.0]).expand_as(layer.complex_weight))
    layer.dw.weight.data.zero_()
    layer.post_norm = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 6, height, width)
    out = layer(x)
    torch.testing.assert_close(out[:, 1::2], layer.pre_norm(x)[:, 3:], rtol=1e-4, atol=1e-5)
    assert not out[:, ::2].any()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12))
def test_matrices_transform_as_the_fft_does(height: int, width: int) -> None:
    x = torch.randn(height, width, dtype=torch.float64)
    rows, columns, rows_back = fourier_matrices(height, width, x.device, x.dtype)
    half = width // 2 + 1
    spectrum = columns @ (x @ rows.T).reshape(2 * height, half)
    torch.testing.assert_close(torch.complex(*spectrum.reshape(2, height, half)), torch.fft.rfft2(x, norm="ortho"))
    scaled = torch.randn(2, height, half, dtype=torch.float64)
    wanted = torch.fft.irfft2(torch.complex(*scaled), s=(height, width), norm="ortho")
    back = (columns.T @ scaled.reshape(2 * height, half)).reshape(height, 2 * half) @ rows_back.T
    torch.testing.assert_close(back, wanted)


@pytest.mark.slow
def test_fourier_filters_export_with_free_sides() -> None:
    model, side = tiny(**GRIDS), torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(1, 3, 96, 64),), dynamic_shapes=({2: side, 3: side},))
    for size in [(96, 64), (71, 107), (160, 224)]:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_decoder_module_ends_with_norm_and_activation() -> None:
    torch.manual_seed(0)
    module = GnConvModule(6, 8, 3, dim_ratio=2, filter_grid=(32, 17), norm=nn.BatchNorm2d(8), activation=nn.ReLU()).eval()
    assert module.dims == [4, 8, 16]
    out = module(torch.randn(2, 6, 9, 12))
    assert out.shape == (2, 8, 9, 12)
    assert bool((out >= 0).all())
    assert bool((out == 0).any())
    assert GnConvModule(6, 8, 2, dim_ratio=2, project=False)(torch.randn(1, 6, 5, 5)).shape == (1, 16, 5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": (2, 3, 4)}, r"HorNet has 4 stages; got orders \[2, 3, 4\]"),
        ({"embed_dims": (8, 16, 20, 64)}, "divisible by 2.*order 4 and width 20"),
        ({"embed_dims": (8, 16, 32, 48), "filter_grids": (None, None, None, (3, 2))}, "even number of channels; got 93"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**options)
