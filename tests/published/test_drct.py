"""DRCT against what the official code computes, its published sizes, and its checkpoints in all their wrappings."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model, list_models, load_published, model_info, optimize_for_inference, save_weights
from vsuite.core.nn import shifted_window_kinds, shifted_window_masks
from vsuite.core.weights import read_state_dict
from vsuite.restoration.bench.plain.drct import build as build_plain
from vsuite.restoration.models import upsampling
from vsuite.restoration.models.drct import DRCT
from vsuite.restoration.models.drct_group import ResidualDenseGroup, WindowAttention, cut_windows, join_windows
from vsuite.restoration.models.upsampling import JoinedUpsampler, upsample_in_bands

LoadCase = Callable[[str], Any]
PARAMETERS = {
    "drct_x2": 13_991_867,
    "drct_x3": 14_176_507,
    "drct_x4": 14_139_579,
    "drct_large_x2": 27_433_007,
    "drct_large_x3": 27_617_647,
    "drct_large_x4": 27_580_719,
}
TINY = {"embed_dim": 12, "growth": 4, "depths": (6, 6), "num_heads": 2, "window_size": 4, "upsample_dim": 8}


def options(case: Any) -> dict[str, Any]:
    """The options of a case, whose configuration is the official one."""
    config = case.meta["config"]
    return {
        "scale": config["upscale"],
        "in_channels": config["in_chans"],
        "embed_dim": config["embed_dim"],
        "growth": config["gc"],
        "depths": config["depths"],
        "num_heads": config["num_heads"],
        "window_size": config["window_size"],
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": config.get("qkv_bias", True),
        "patch_norm": config.get("patch_norm", True),
        "shifted": config["img_size"] > config["window_size"],
        "body_conv": config["resi_connection"] == "1conv",
        "img_range": config["img_range"],
    }


def stirred(model: nn.Module) -> nn.Module:
    """Weights large enough for every part to show in the output."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.inference_mode()
def outputs(model: Any, x: Tensor) -> dict[str, Tensor]:
    features: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda module, args, out: features.append(out.permute(0, 3, 1, 2)))
    sr = model(x)
    handle.remove()
    return {"sr": sr, "features": features[0]}


# What the official code returns


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("small_gray_x4_24x40", "reflect"),
        ("small_whole_window", "reflect"),
        ("drct_x3_40x24_flip", "mirror"),
        ("drct_x2_37x29_reflect", "reflect"),
        pytest.param("drct_x4_32x48", "reflect", marks=pytest.mark.slow),
    ],
)
def test_whole_model(load_case: LoadCase, name: str, padding: Any) -> None:
    case = load_case(f"drct/{name}")
    model = case.fill(DRCT(**options(case), padding=padding))
    x = case.tensors()["x"]
    case.check(outputs(model, x))
    if name != "drct_x2_37x29_reflect":  # the longest of the quick ones
        case.check(outputs(optimize_for_inference(model), x))


@pytest.mark.parametrize("name", ["small_gray_x4_24x40", "small_whole_window"])
def test_plain_form(load_case: LoadCase, name: str) -> None:
    """The oracle of other tests is held to the same figures."""
    case = load_case(f"drct/{name}")
    case.check(outputs(case.fill(build_plain(**options(case))), case.tensors()["x"]))


class Parts(nn.Module):
    """Modules under the names that the cases give them."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_group(load_case: LoadCase) -> None:
    case = load_case("drct/rdg_180_32x48")
    parts: Any = case.fill(Parts(layers=nn.ModuleList([ResidualDenseGroup(180, 32, 6, 16)])))
    tokens = case.tensors()["tokens"]
    for group in (parts.layers[0], optimize_for_inference(parts).layers[0]):
        with torch.inference_mode():
            out = group(cut_windows(tokens.unflatten(1, (32, 48)), 16))
            case.check({"out": join_windows(out, 16).flatten(1, 2)})


def test_window_attention(load_case: LoadCase) -> None:
    case = load_case("drct/window_attention_8")
    attention: Any = case.fill(Parts(attn=WindowAttention(60, 4, 8, shift=4))).attn
    windows = case.tensors()["windows"]
    kinds = shifted_window_kinds(2, 3, torch.device("cpu"))
    masks = shifted_window_masks((8, 8), (4, 4), torch.device("cpu"), torch.float32)
    for module in (attention, optimize_for_inference(attention)):
        with torch.inference_mode():
            biases = module.biases()
            masked = module.attend(windows, biases, kinds.repeat(2))
            case.check({"plain": module.attend(windows, biases), "masked": masked, "mask": masks[kinds]})


def test_tiles_of_the_official_options(load_case: LoadCase) -> None:
    """Both official ways to tile, written out: tiles are whole windows here, so that they need no padding."""
    case = load_case("drct/tiled_small_40x56")
    model = case.fill(DRCT(**options(case)))
    x = case.tensors()["x"]
    height, width = x.shape[2:]
    cropped, summed, count = (torch.zeros(1, 3, 2 * height, 2 * width) for _ in range(3))
    with torch.inference_mode():
        for top in range(0, height, 24):
            for left in range(0, width, 24):
                down, right = min(top + 24, height), min(left + 24, width)
                first_row, first_column = max(top - 8, 0), max(left - 8, 0)
                out = model(x[:, :, first_row : down + 8, first_column : right + 8])
                inner = out[:, :, 2 * (top - first_row) :, 2 * (left - first_column) :]
                cropped[:, :, 2 * top : 2 * down, 2 * left : 2 * right] = inner[:, :, : 2 * (down - top), : 2 * (right - left)]
        for top in (*range(0, height - 24, 16), height - 24):
            for left in (*range(0, width - 24, 16), width - 24):
                place = (..., slice(2 * top, 2 * top + 48), slice(2 * left, 2 * left + 48))
                summed[place] += model(x[:, :, top : top + 24, left : left + 24])
                count[place] += 1
        case.check({"whole": model(x), "pad_crop": cropped, "overlap_mean": summed / count})


# Forms of the model


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model_info(name).published) == 10


def test_small_forms_are_small() -> None:
    assert set(list_models(system="drct")) == {*PARAMETERS, "drct_lite_x2", "drct_lite_x4"}
    for scale in (2, 4):
        model = create_model(f"drct_lite_x{scale}")
        assert sum(p.numel() for p in model.parameters()) < 1_500_000
        assert model.scale == scale


def test_drop_path_rates_follow_the_published_schedule() -> None:
    with torch.device("meta"):
        model = create_model("drct_x4")
    rates = [{getattr(layer, f"swin{k}").drop_path.rate for k in range(1, 6)} for layer in model.layers]
    assert [rate for (rate,) in rates] == pytest.approx([0, 0.0171, 0.0343, 0.0514, 0.0686, 0.0857], abs=5e-5)


@pytest.mark.parametrize(
    "extra", [{}, {"scale": 3, "padding": "mirror"}, {"shifted": False, "qkv_bias": False}, {"num_heads": 5, "embed_dim": 20, "growth": 5}]
)
@pytest.mark.parametrize("size", [(8, 12), (4, 4), (13, 6)])
def test_fast_folded_and_plain_forms_are_equal(extra: dict[str, Any], size: tuple[int, int]) -> None:
    model = stirred(DRCT(**TINY | extra))
    plain = build_plain(**TINY | extra).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        want = plain(x)
        assert want.std() > 0.1
        for form in (model, optimize_for_inference(model)):
            torch.testing.assert_close(form(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_limits")
def test_pieces_are_the_whole() -> None:
    """Windows go through the blocks by twos, over the borders between kinds of masks."""
    model = stirred(DRCT(**TINY, drop_path_rate=0.0))
    for shape in ((1, 3, 20, 12), (2, 3, 4, 12), (3, 3, 4, 4)):
        x = torch.rand(shape)
        want = model.train()(x).detach()  # training goes the whole way
        with torch.inference_mode():
            for form in (model.eval(), optimize_for_inference(model)):
                for module in form.modules():
                    if isinstance(module, WindowAttention):
                        module.piece = 32
                torch.testing.assert_close(form(x), want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps are joined and cut too."""
    for name, value in {"SMALLEST": 0, "BAND": 1, "FEWEST_ROWS": 2}.items():
        monkeypatch.setattr(upsampling, name, value)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_joined_upsampler_and_bands_are_the_long_way(scale: int) -> None:
    model = stirred(DRCT(**TINY | {"scale": scale, "depths": (6,)}))
    upsampler = nn.Sequential(model.upsample, model.conv_last)
    joined = JoinedUpsampler(upsampler, 8, scale)
    for size in ((1, 1), (2, 3), (3, 2), (4, 7), (9, 5)):
        x = torch.randn(2, 8, *size)
        with torch.inference_mode():
            want = upsampler(x)
            torch.testing.assert_close(joined(x), want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(upsample_in_bands(upsampler, x, scale), want, rtol=1e-4, atol=1e-5)


def test_training_returns_and_differentiates_what_inference_returns() -> None:
    """With gradients the attention takes another way, and the plain form a third."""
    model = stirred(DRCT(**TINY, drop_path_rate=0.0)).train()
    plain = build_plain(**TINY, drop_path_rate=0.0).train()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 12, 12)
    with torch.inference_mode():
        want = model(x)
    for form in (model, plain):
        form(x).square().mean().backward()
    torch.testing.assert_close(model(x).detach(), want, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        assert ours.grad.abs().max() > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5 * float(theirs.grad.abs().max() + 1))


# Sizes and padding


@pytest.fixture(scope="module")
def one_group() -> DRCT:
    return DRCT(**TINY | {"depths": (6,), "window_size": 16, "scale": 2}).eval()


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding_mirrors_with_or_without_the_edge(one_group: DRCT, height: int, width: int) -> None:
    image = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    for padding, mode in (("mirror", "symmetric"), ("reflect", "reflect")):
        one_group.padding = padding  # type: ignore[assignment]
        padded = one_group._pad(torch.from_numpy(image)).numpy()
        extra = [side - old for side, old in zip(padded.shape[2:], (height, width), strict=True)]
        assert all(side % 16 == 0 for side in padded.shape[2:])
        assert all(0 <= e < 16 for e in extra) if padding == "reflect" else all(1 <= e <= 16 for e in extra)
        want = np.pad(image, ((0, 0), (0, 0), (0, extra[0]), (0, extra[1])), mode=mode)
        assert np.array_equal(padded, want)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), batch=st.integers(1, 2))
def test_any_size_is_enlarged_by_the_scale(one_group: DRCT, height: int, width: int, batch: int) -> None:
    with torch.inference_mode():
        assert one_group(torch.rand(batch, 3, height, width)).shape == (batch, 3, 2 * height, 2 * width)


def test_whole_windows_do_not_see_far_ones() -> None:
    """Without shift and convolutions of the body, a group keeps what happens in one window in it."""
    group = stirred(ResidualDenseGroup(12, 4, 2, 4, shifted=False))
    shifted = stirred(ResidualDenseGroup(12, 4, 2, 4))
    x = torch.rand(1, 16, 8, 12)
    changed = x.clone()
    changed[:, :4, :4] += 1

    def difference_of(group: nn.Module) -> Tensor:
        return join_windows(group(cut_windows(changed, 4)) - group(cut_windows(x, 4)), 4).abs().amax(-1)[0]

    with torch.inference_mode():
        difference = difference_of(group)
        assert difference[:4, :4].min() > 0
        assert difference.sum() == pytest.approx(float(difference[:4, :4].sum()))
        difference = difference_of(shifted)
        assert difference[4:8, 4:8].max() > 0  # reached through the shift
        assert difference[12:].max() == 0  # the mask keeps the rolled ends apart


def test_absolute_positions_are_resized_to_the_image() -> None:
    model = stirred(DRCT(**TINY, position_grid=8))
    without = copy.deepcopy(model)
    without.absolute_pos_embed.data.zero_()
    with torch.inference_mode():
        for size in ((8, 8), (12, 8)):
            x = torch.rand(1, 3, *size)
            assert (model(x) - without(x)).abs().max() > 1e-3


# Precision, graphs, training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (13, 6)])
def test_half_precision_at_every_size(dtype: torch.dtype, size: tuple[int, int]) -> None:
    model = stirred(DRCT(**TINY))
    x = torch.rand(1, 3, *size)
    tolerance = 0.02 if dtype is torch.float16 else 0.15
    with torch.inference_mode():
        want = model(x)
        with torch.autocast("cpu", dtype):
            mixed = model(x)
        assert mixed.dtype == torch.float32
        assert (mixed - want).abs().max() < tolerance * want.std()
        for form in (copy.deepcopy(model), optimize_for_inference(model)):
            low = form.to(dtype)(x.to(dtype))
            assert low.dtype == dtype
            assert (low.float() - want).abs().max() < tolerance * want.std()


@pytest.mark.slow
def test_exported_graph_takes_any_size(tmp_path: Path) -> None:
    model = stirred(DRCT(**TINY | {"depths": (6,), "scale": 2}))
    free = torch.export.Dim.AUTO
    path = tmp_path / "drct.onnx"
    sizes = {"x": {0: free, 2: free, 3: free}}
    torch.onnx.export(model, (torch.rand(2, 3, 9, 10),), path, input_names=["x"], dynamic_shapes=sizes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 3, 9, 10), (1, 3, 4, 4), (3, 3, 13, 2), (1, 3, 16, 8)):
        x = torch.rand(shape)
        (got,) = session.run(None, {"x": x.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("small_limits")
def test_compiled_model_is_equal() -> None:
    model = stirred(DRCT(**TINY | {"depths": (6,)}))
    x = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        for compiled in (torch.compile(model, fullgraph=True), optimize_for_inference(model, x, compile=True)):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_training_brings_the_loss_down() -> None:
    torch.manual_seed(0)
    model = create_model("drct_lite_x2", embed_dim=16, growth=8, depths=(6,), num_heads=2, initialise="random")
    target = F.interpolate(torch.rand(2, 3, 8, 8), (32, 32), mode="bicubic")
    low = F.interpolate(target, (16, 16), mode="area")
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = (model(low) - target).abs().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


# The start from interpolation


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("img_range", [1.0, 255.0])
def test_the_small_form_starts_as_a_linear_interpolation(scale: int, img_range: float) -> None:
    model = create_model("drct_lite_x4", scale=scale, img_range=img_range).eval()
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(16.0), indexing="ij")
    plane = 0.1 + 0.02 * rows + 0.01 * columns
    image = torch.stack([plane, 0.5 * plane, 1 - plane])[None]
    with torch.inference_mode():
        out, shifted = model(image), model(1 - 0.5 * image)
    border = 3 * scale
    inner = (..., slice(border, -border), slice(border, -border))
    torch.testing.assert_close((1 - 0.5 * out)[inner], shifted[inner], rtol=0, atol=1e-5)  # linear, and constants stay constant
    step = (out[inner] - out[inner].roll(scale, -2))[..., scale:, :]
    torch.testing.assert_close(step[0, 0], torch.full_like(step[0, 0], 0.02), rtol=0, atol=1e-5)  # slopes stay slopes
    assert out[inner].mean((2, 3)).flatten().tolist() == pytest.approx(image[..., 3:-3, 3:-3].mean((2, 3)).flatten().tolist(), abs=1e-4)


def test_every_parameter_learns_after_the_start_from_interpolation() -> None:
    model = create_model("drct_lite_x2", depths=(6,))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)
    for _ in range(3):
        optimiser.zero_grad()
        (model(x) - y).abs().mean().backward()
        optimiser.step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("scale", "bicubic"), [pytest.param(2, 33.68, marks=pytest.mark.slow), (4, 28.43)])
def test_the_small_form_starts_at_the_psnr_of_interpolation(scale: int, bicubic: float) -> None:
    from PIL import Image

    folder = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "sr" / "set5"
    if not folder.is_dir():
        pytest.skip(f"Set5 is not in {folder}")
    model = create_model(f"drct_lite_x{scale}", depths=(6,)).eval()
    weights = np.array([65.481, 128.553, 24.966]) / 255
    values = []
    for path in sorted((folder / f"LR_x{scale}").glob("*.png")):
        low = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255).permute(2, 0, 1)
        with torch.inference_mode():
            out = model(low[None])[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().numpy()
        high = np.asarray(Image.open(folder / "HR" / path.name).convert("RGB"), np.float64)[: out.shape[0], : out.shape[1]]
        error = ((out - high) @ weights)[scale:-scale, scale:-scale]
        values.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert len(values) == 5
    assert np.mean(values) > bicubic


# Checkpoints


@pytest.fixture(scope="module")
def source() -> DRCT:
    return stirred(DRCT(**TINY, scale=2))


def official(model: DRCT, *, img_size: int = 8) -> dict[str, Tensor]:
    """The state dict as the authors' code saves it, with the tables that hold nothing learnt."""
    state = dict(model.state_dict())
    side = model.window_size
    windows = (img_size // side) ** 2
    for i in range(len(model.layers)):
        for k in range(1, 6):
            state[f"layers.{i}.swin{k}.attn.relative_position_index"] = torch.zeros(side**2, side**2, dtype=torch.int64)
            if k % 2 == 0 and img_size > side:
                state[f"layers.{i}.swin{k}.attn_mask"] = torch.zeros(windows, side**2, side**2)
    return state


@pytest.mark.parametrize("form", ["params", "params_ema", "both", "module.", "flat", "stripped"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_published(tmp_path: Path, source: DRCT, suffix: str, form: str) -> None:
    state = official(source)
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    content: dict[str, Any] = {
        "params": {"params": state},
        "params_ema": {"params_ema": state},
        "both": {"params": other, "params_ema": state},
        "module.": {"params": {f"module.{name}": value for name, value in state.items()}},
        "flat": state,
        "stripped": dict(source.state_dict()),
    }[form]
    path = tmp_path / f"DRCT_SRx2{suffix}"
    if suffix == ".pth":
        torch.save(content, path)
    elif form in ("flat", "stripped"):
        safetensors.torch.save_file(content, path)
    else:
        pytest.skip("this format has no containers")
    model = load_published(path)
    assert isinstance(model, DRCT)
    assert model.built_from["assumed"] == {"img_range": 1.0}
    x = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), source(x))


VARIATIONS: list[dict[str, Any]] = [
    {"scale": 3},
    {"scale": 4, "in_channels": 1},
    {"scale": 8, "upsample_dim": 12},
    {"qkv_bias": False, "patch_norm": False},
    {"shifted": False, "body_conv": False},
    {"position_grid": 8, "mlp_ratio": 1.5},
    {"num_heads": (2, 4), "embed_dim": 16},
]


@pytest.mark.parametrize("extra", VARIATIONS)
def test_every_option_is_found_in_the_file(extra: dict[str, Any]) -> None:
    model = stirred(DRCT(**TINY | extra))
    found = load_published(official(model, img_size=8 if extra.get("shifted", True) else 4)).eval()
    x = torch.rand(1, model.in_channels, 8, 8)
    with torch.inference_mode():
        assert torch.equal(found(x), model(x))


def test_what_is_saved_as_published_reads_back(tmp_path: Path, source: DRCT) -> None:
    model = load_published(official(source))
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"saved{suffix}"
        save_weights(model, path, published=True)
        state = read_state_dict(path)
        assert set(state) == set(source.state_dict())
        again = load_published(path).state_dict()
        assert all(torch.equal(again[name], value) for name, value in source.state_dict().items())


def test_wrong_checkpoints_are_refused_by_name(source: DRCT) -> None:
    state = dict(source.state_dict())
    with pytest.raises(InputError, match=r"1 missing: layers\.1\.adjust3\.bias"):
        load_published({name: value for name, value in state.items() if name != "layers.1.adjust3.bias"})
    with pytest.raises(InputError, match=r"1 left over: layers\.0\.extra"):
        load_published(state | {"layers.0.extra": torch.zeros(1)})
    with pytest.raises(InputError, match="drct"):
        load_published({name: value for name, value in state.items() if not name.startswith("layers.0.swin1.mlp")})
    with pytest.raises(InputError, match="square window"):
        load_published(state | {"layers.0.swin1.attn.relative_position_bias_table": torch.zeros(48, 2)})


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 5}, "scale must be 3 or a power of 2"),
        ({"scale": 1}, "scale must be 3 or a power of 2"),
        ({"depths": ()}, "one number a group"),
        ({"num_heads": (6, 6)}, "one number a group"),
        ({"embed_dim": 0}, "embed_dim must be 1 or more"),
        ({"embed_dim": 182}, "heads do not divide"),
        ({"padding": "zeros"}, "'reflect' or 'mirror'"),
        ({"initialise": "zeros"}, "'random' or 'interpolation'"),
        ({"initialise": "interpolation", "upsample_dim": 4}, "6 or more as upsample_dim"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\)"),
        ({"window_size": 0}, "window_size must be 1 or more"),
        ({"num_heads": 0}, "num_heads must be 1 or more"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be more than 0"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=message):
        create_model("drct_x4", **wrong)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 1, 8, 8), "B, 3, H, W"),
        (torch.rand(3, 8, 8), "B, 3, H, W"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating-point"),
        (torch.rand(1, 3, 0, 8), "from 1 pixel up"),
    ],
)
def test_wrong_inputs(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("drct_x4", **TINY)(x)
