"""FDConv against what the official code computes, its published sizes, its checkpoints, and conversion both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import create_model, load_published, load_weights, model_info, optimize_for_inference, save_weights
from vsuite.core.bench.plain.fdconv import build as build_plain
from vsuite.core.bench.plain.fdconv import plain
from vsuite.core.errors import InputError
from vsuite.core.models.fdconv import (
    FrequencyBandModulation,
    FrequencyDynamicConv2d,
    FrequencyDynamicLinear,
    convert_to_fdconv,
    frequency_groups,
    from_plain_state,
    from_spectrum,
    to_plain_state,
    to_spectrum,
)

LoadCase = Callable[[str], Any]
LAYERS = (
    "conv3x3",
    "conv3x3_stride2_bias_deep",
    "conv3x3_dilated_64",
    "conv1x1",
    "conv1x1_ratio2_tanh",
    "conv3x3_kernel_att_only",
    "conv3x3_spatial_param",
)
TINY = {"depths": (1, 1, 1, 1), "embed_dim": 20, "kernel_num": 4}


def layer_of(config: dict[str, Any]) -> FrequencyDynamicConv2d:
    """From the official keywords."""
    options = {key: value for key, value in config.items() if key not in ("kind", "fbm_cfg")}
    bands = config["fbm_cfg"]
    return FrequencyDynamicConv2d(
        **options,
        k_list=bands["k_list"],
        lowfreq_att=bands["lowfreq_att"],
        fbm_act=bands["act"],
        spatial_group=bands["spatial_group"],
    )


def filled(case: Any, module: nn.Module) -> nn.Module:
    """The case's weights; the group map, which published files lack, stays."""
    assert sum(p.numel() for p in module.parameters()) == case.meta["num_params"]
    report = load_weights(module, case.state_dict(), strict=False)
    assert (set(report.missing), report.unexpected, report.mismatched) == ({"group_map"} & set(module.state_dict()), [], {})
    return module.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_return_what_the_official_code_returns(load_case: LoadCase, name: str) -> None:
    case = load_case(f"fdconv/{name}")
    layer = filled(case, layer_of(case.meta["config"]))
    x = case.tensors()["x"]
    with torch.inference_mode():
        case.check({"out": layer(x)})
        case.check({"out": layer(x.contiguous(memory_format=torch.channels_last))})
        case.check({"out": optimize_for_inference(layer)(x)})
        case.check({"out": plain(layer)(x)})


@pytest.mark.parametrize("name", ["fbm_64", "fbm_40x27"])
def test_band_modulation_returns_what_the_official_code_returns(load_case: LoadCase, name: str) -> None:
    case = load_case(f"fdconv/{name}")
    config = case.meta["config"]
    bands = FrequencyBandModulation(
        config["in_channels"],
        config["k_list"],
        lowfreq_att=config["lowfreq_att"],
        act=config["act"],
        spatial_group=config["spatial_group"],
    )
    with torch.inference_mode():
        case.check({"out": filled(case, bands)(case.tensors()["x"])})
        case.check({"out": plain(bands)(case.tensors()["x"])})


def test_converted_weights_are_the_official_ones(load_case: LoadCase) -> None:
    case = load_case("fdconv/convert_weight")
    weights = case.tensors()
    case.check({"dft3": to_spectrum(weights["weight"]), "dft1": to_spectrum(weights["weight1"])})
    for weight in weights.values():
        torch.testing.assert_close(from_spectrum(to_spectrum(weight), weight.shape[-1]), weight)


def test_groups_of_frequencies_are_the_official_ones(load_case: LoadCase) -> None:
    cpu = torch.device("cpu")
    load_case("fdconv/group_index").check(
        {
            "in36_out28_k3_groups4": frequency_groups(84, 108, 4, cpu).long(),
            "in48_out24_k1_groups4": frequency_groups(24, 48, 4, cpu).long(),
            "in64_out40_k1_groups8": frequency_groups(40, 64, 8, cpu).long(),
            "in48_out20_k3_groups4": frequency_groups(60, 144, 4, cpu).long(),
        }
    )


def disturbed(module: nn.Module, size: float = 0.05) -> nn.Module:
    """With random changes of all parameters, so that no gate stands at one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def gap(got: Tensor, want: Tensor) -> float:
    return float(((got - want).abs().max() / want.std()).detach())


def test_published_sizes() -> None:
    with torch.device("meta"):
        backbone = create_model("fdconv_resnet50", num_classes=0)
        plain_backbone = create_model("resnet50", num_classes=0)
    sizes = {name: p.numel() for name, p in backbone.named_parameters()}
    plain_sizes = sum(p.numel() for p in plain_backbone.parameters())
    assert (plain_sizes, sum(sizes.values())) == (23_508_032, 27_155_152)
    parts = {part: sum(size for name, size in sizes.items() if part in name) for part in ("KSM_Global", "KSM_Local", "FBM")}
    assert parts == {"KSM_Global": 3_173_408, "KSM_Local": 311_296, "FBM": 102_000}
    assert model_info("fdconv_resnet50").published
    kinds = {name for name, module in backbone.named_modules() if isinstance(module, FrequencyDynamicConv2d)}
    assert len(kinds) == 48
    assert not kinds & {"conv1", "layer1.0.downsample.0"}


def test_equally_far_coefficients_keep_their_order() -> None:
    groups = frequency_groups(4, 4, 12, torch.device("cpu")).tolist()
    # distances 0, .25, .5 | .25, .35, .56 | .5, .56, .71 | .25, .35, .56
    assert groups == [[0, 1, 6], [2, 4, 8], [7, 9, 11], [3, 5, 10]]


def test_official_detector_file_gives_the_backbone(tmp_path: Path) -> None:
    source = disturbed(create_model("fdconv_resnet50", **TINY, num_classes=0))
    state = {f"backbone.{name}": value for name, value in source.state_dict().items() if not name.endswith("group_map")}
    state |= {"neck.lateral_convs.0.conv.weight": torch.zeros(4, 4, 1, 1), "roi_head.bbox_head.fc_cls.bias": torch.zeros(81)}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "faster_rcnn_fdconv_r50.pth")
    found = load_published(tmp_path / "faster_rcnn_fdconv_r50.pth").eval()
    x = torch.rand(2, 3, 40, 33)
    assert torch.equal(found(x), source(x))
    save_weights(found, tmp_path / "ours.safetensors")
    assert torch.equal(load_published(tmp_path / "ours.safetensors").eval()(x), source(x))


def test_converted_network_returns_what_it_did() -> None:
    model = create_model("resnet18", depths=(1, 1, 1, 1), embed_dim=32, num_classes=5).eval()
    x = torch.rand(2, 3, 64, 48)
    before = model(x)
    names = convert_to_fdconv(model, convolutions=["layer*.conv?"], kernel_num=8)
    assert names == [f"layer{i}.0.conv{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    assert gap(model(x), before) < 1e-3


def test_official_start_is_another_network() -> None:
    plain_conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
    official = nn.Sequential(plain_conv)
    convert_to_fdconv(official, kernel_num=8, official_start=True)
    x = torch.rand(2, 32, 9, 9)
    assert gap(official.eval()(x), plain_conv(x)) > 0.1


def test_linear_layers_of_convnext_are_converted() -> None:
    model = create_model("convnext_tiny", depths=(1, 1, 1, 1), embed_dims=(32, 32, 64, 64), num_classes=5, layer_scale=0.5).eval()
    x = torch.rand(2, 3, 64, 48)
    before = model(x)
    names = convert_to_fdconv(model, convolutions=[], linears=["*.pwconv?"], kernel_num=8)
    assert len(names) == 8
    assert isinstance(model.get_submodule(names[0]), FrequencyDynamicLinear)
    assert gap(model(x), before) < 1e-3
    disturbed(model)
    after = model(x)
    assert gap(optimize_for_inference(model)(x), after) < 1e-4
    assert gap(plain(model)(x), after) < 1e-4


@pytest.mark.parametrize("options", [{}, {"convert_param": False}, {"param_ratio": 2}])
def test_weights_convert_both_ways(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 48, 3), nn.Linear(20, 24))
    other = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 48, 3), nn.Linear(20, 24)).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert convert_to_fdconv(model, linears=["*"], kernel_num=4, **options) == ["1", "2"]
    for state in (before, other):
        model.load_state_dict(from_plain_state(model, state))
        back = to_plain_state(model)
        assert list(back) == list(before)
        for name, value in state.items():
            torch.testing.assert_close(back[name], value, rtol=1e-4, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    channels=st.tuples(st.sampled_from([18, 24, 40]), st.sampled_from([18, 32, 50])),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    sides=st.tuples(st.integers(5, 24), st.integers(5, 24)),
    seed=st.integers(0, 99),
)
def test_new_layer_equals_the_plain_convolution(
    channels: tuple[int, int], kernel: int, stride: int, dilation: int, padding: int, sides: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(*channels, kernel, stride, padding, dilation))
    x = torch.randn(2, channels[0], *sides)
    want = model(x)
    convert_to_fdconv(model, kernel_num=2)
    assert gap(model.eval()(x), want) < 1e-3
    fast = disturbed(model)(x)
    torch.testing.assert_close(plain(model)(x), fast, rtol=1e-3, atol=1e-4)


def test_uniform_group_attention_alone_is_the_plain_convolution() -> None:
    layer = FrequencyDynamicConv2d(
        32, 20, 3, padding=1, kernel_num=4, use_ksm_local=False, ksm_only_kernel_att=True, ksm_global_act="softmax"
    )
    nn.init.zeros_(layer.KSM_Global.kernel_fc.weight)
    x = torch.randn(2, 32, 7, 9)
    want = F.conv2d(x, layer.plain_weight(), layer.bias, padding=1)
    assert gap(layer.eval()(x), want) < 1e-3


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), groups=st.sampled_from([1, 2]), lowfreq_att=st.booleans())
def test_bands_at_any_size(height: int, width: int, groups: int, lowfreq_att: bool) -> None:
    bands = FrequencyBandModulation(4, spatial_group=groups, lowfreq_att=lowfreq_att)
    x = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(height * width))
    torch.testing.assert_close(bands(x), x, rtol=1e-4, atol=1e-4)
    disturbed(bands, 0.2)
    fast = bands(x)
    torch.testing.assert_close(plain(bands)(x), fast, rtol=1e-4, atol=1e-4)


def test_bands_where_nearest_neighbours_round_in_float32() -> None:
    bands = disturbed(FrequencyBandModulation(4), 0.2)  # row 41 of 164 has row 15 of the stored mask, not 16
    x = torch.randn(1, 4, 164, 12)
    fast = bands(x)
    torch.testing.assert_close(plain(bands)(x), fast, rtol=1e-4, atol=1e-4)


def test_plain_form_is_equal() -> None:
    model = disturbed(create_model("fdconv_resnet50", **TINY, num_classes=7), 0.02)
    reference = build_plain(**TINY, num_classes=7).eval()
    reference.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 70, 51)
    with torch.inference_mode():
        want = reference(x)
        assert gap(model(x), want) < 1e-3
        assert gap(optimize_for_inference(model)(x), want) < 1e-3


def test_bfloat16() -> None:
    model = create_model("fdconv_resnet50", **TINY, num_classes=7).eval()
    x = torch.rand(2, 3, 64, 48)
    with torch.inference_mode():
        want = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert gap(model(x).float(), want) < 0.1
        assert gap(model.bfloat16()(x.bfloat16()).float(), want) < 0.1


def test_it_trains_and_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = create_model("fdconv_resnet50", **TINY, num_classes=2)
    x, target = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 32}, "one group"),
        ({"kernel_size": (1, 3)}, "square kernel"),
        ({"in_channels": 33}, "must be even"),
        ({"out_channels": 48, "kernel_num": 64}, "must divide the 7056 coefficients"),
        ({"ksm_global_act": "softmax"}, "ksm_only_kernel_att=True"),
        ({"ksm_global_act": "relu"}, "ksm_global_act"),
        ({"ksm_local_act": "softmax"}, "ksm_local_act"),
        ({"k_list": (4, 2)}, "ascending"),
        ({"spatial_group": 5}, "must divide the 32 channels"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrequencyDynamicConv2d(**{"in_channels": 32, "out_channels": 32, "kernel_size": 3, "kernel_num": 8, **options})


def test_conversion_names_the_layer_that_cannot_be_replaced() -> None:
    with pytest.raises(InputError, match=r"0: kernel_num must divide .* nearest below is 63"):
        convert_to_fdconv(nn.Sequential(nn.Conv2d(32, 48, 3)))
    with pytest.raises(InputError, match="no layer of Sequential"):
        convert_to_fdconv(nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(16, 64, 1), nn.Conv2d(32, 32, 7)))


def test_one_image_cannot_train_batch_norms() -> None:
    layer = FrequencyDynamicConv2d(32, 32, 3, padding=1, kernel_num=8)
    with pytest.raises(InputError, match="2 or more images"):
        layer(torch.rand(1, 32, 8, 8))
    layer.KSM_Global.bn.eval()
    assert layer(torch.rand(1, 32, 8, 8)).shape == (1, 32, 8, 8)


@pytest.mark.slow
def test_exports_with_free_sizes_and_compiles(tmp_path: Path) -> None:
    import onnxruntime

    layer = disturbed(FrequencyDynamicConv2d(32, 32, 3, 2, 1, kernel_num=8)).requires_grad_(False)
    x, other = torch.randn(2, 32, 24, 20), torch.randn(3, 32, 33, 27)
    sizes = (
        {axis: torch.export.Dim(name, min=least, max=1024) for axis, name, least in ((0, "batch", 2), (2, "height", 3), (3, "width", 3))},
    )
    exported = torch.export.export(layer, (x,), dynamic_shapes=sizes)
    torch.testing.assert_close(exported.module()(other), layer(other), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-3, atol=1e-4)
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False, dynamic_shapes=sizes)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), layer(other), rtol=1e-3, atol=1e-3)
