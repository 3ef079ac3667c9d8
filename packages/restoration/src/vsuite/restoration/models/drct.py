"""DRCT: super-resolution by densely connected Swin blocks in residual groups (Hsu, Lee, Chou, CVPR 2024 workshops)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import may_go_in_pieces, memoise, square_window_of
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.restoration.models.drct_group import ResidualDenseGroup, cut_windows, join_windows
from vsuite.restoration.models.upsampling import JoinedUpsampler, upsample_in_bands

Padding = Literal["reflect", "mirror"]
Initialisation = Literal["random", "interpolation"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)


class DRCT(nn.Module):
    """The whole network: B, in_channels, H, W in [0, 1] -> B, in_channels, scale * H, scale * W, not clipped.

    Sides are free from 1 pixel up: the image is mirrored at the right and the bottom up to whole windows, and the output is cropped.

    Args:
        scale: 3, or a power of 2.
        in_channels: 3 (RGB) or another number.
        embed_dim: width C of the groups.
        growth: channels that each of the first four blocks of a group adds.
        depths: one number a group. Every group has five blocks; the numbers only space out the drop path rates, as published.
        num_heads: of the first block of each group; see `ResidualDenseGroup`.
        window_size: side of the attention windows.
        mlp_ratio: hidden factor of the perceptrons of blocks 1 to 3.
        qkv_bias: whether queries, keys and values have a bias.
        patch_norm: whether the tokens are normalised before the first group.
        shifted: whether blocks 2 and 4 shift their windows. The official code does not where `img_size` is at most the window.
        position_grid: side of a learnt table of absolute positions, resized to the image; 0: none, as in all published models.
        body_conv: whether a convolution follows the groups (the official `resi_connection` "1conv", else "identity").
        upsample_dim: width of the upsampler.
        drop_path_rate: of the last group; rises from 0.
        img_range: factor on the values inside the network.
        padding: "reflect" (the edge is not repeated; nothing is added to whole windows) as in the official tests and tables, or
            "mirror" (the edge is repeated; 1 to `window_size` pixels are always added) as in the official inference script.
        initialise: "random", or "interpolation": training starts from a linear interpolation of the input.

    Raises:
        InputError: for sizes that do not divide or are not allowed, and for inputs of another rank, type or number of channels.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        in_channels: int = 3,
        embed_dim: int = 180,
        growth: int = 32,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: int | Sequence[int] = 6,
        window_size: int = 16,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        shifted: bool = True,
        position_grid: int = 0,
        body_conv: bool = True,
        upsample_dim: int = 64,
        drop_path_rate: float = 0.1,
        img_range: float = 1.0,
        padding: Padding = "reflect",
        initialise: Initialisation = "random",
    ) -> None:
        super().__init__()
        heads = [num_heads] * len(depths) if isinstance(num_heads, int) else list(num_heads)
        _check_options(scale, depths, heads, padding, initialise)
        positive = {
            "in_channels": in_channels,
            "embed_dim": embed_dim,
            "growth": growth,
            "depths": min(depths),
            "num_heads": min(heads),
            "window_size": window_size,
            "upsample_dim": upsample_dim,
        }
        _check_numbers(positive, mlp_ratio, drop_path_rate, img_range)
        self.scale = scale
        self.in_channels = in_channels
        self.window_size = window_size
        self.img_range = img_range
        self.padding = padding
        self.position_grid = position_grid
        self.conv_first = nn.Conv2d(in_channels, embed_dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)} if patch_norm else {})
        if position_grid:
            self.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, position_grid**2, embed_dim), std=0.02))
        total = sum(depths)
        rates = [drop_path_rate * sum(depths[:i]) / max(total - 1, 1) for i in range(len(depths))]
        self.layers = nn.ModuleList(
            ResidualDenseGroup(embed_dim, growth, h, window_size, mlp_ratio, qkv_bias, shifted, rate)
            for h, rate in zip(heads, rates, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1) if body_conv else nn.Identity()
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, upsample_dim, 3, padding=1), nn.LeakyReLU(0.01, inplace=True))
        self.upsample = _upsampler(scale, upsample_dim)
        self.conv_last = nn.Conv2d(upsample_dim, in_channels, 3, padding=1)
        self.joined: JoinedUpsampler | None = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if initialise == "interpolation":
            start_from_interpolation(self)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        height, width = x.shape[2:]
        mean = _mean(self.in_channels, x.device)
        image = ((x.float() - mean) * self.img_range).to(x.dtype)
        shallow = self.conv_first(self._pad(image).contiguous(memory_format=torch.channels_last))
        deep = self.conv_after_body(self.forward_features(shallow))
        out = self._enlarge(self.conv_before_upsample(shallow + deep))
        out = self._crop(out, height * self.scale, width * self.scale)
        return (out.float() / self.img_range + mean).to(x.dtype)

    def forward_features(self, shallow: Tensor) -> Tensor:
        """All groups and the last norm: B, embed_dim, H, W -> the same; the sides are multiples of the window."""
        x = shallow.permute(0, 2, 3, 1)
        if "norm" in self.patch_embed:
            x = self.patch_embed["norm"](x)
        if self.position_grid:
            x = x + self._positions(x.shape[1], x.shape[2])
        windows = cut_windows(x, self.window_size)
        for layer in self.layers:
            windows = layer(windows)
        return self.norm(join_windows(windows, self.window_size)).permute(0, 3, 1, 2)

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.joined is not None and not torch.compiler.is_exporting():  # its frame would bind the free sizes of a graph
            return self.joined(x)
        if may_go_in_pieces(x):
            return upsample_in_bands(lambda band: self.conv_last(self.upsample(band)), x, self.scale)
        return self.conv_last(self.upsample(x))

    def fold(self) -> None:
        """Joins all that comes after the last activation into one convolution."""
        if self.joined is None:
            self.joined = JoinedUpsampler(nn.Sequential(self.upsample, self.conv_last), self.conv_last.in_channels, self.scale)

    def _positions(self, height: int, width: int) -> Tensor:
        side = self.position_grid
        table = self.absolute_pos_embed.unflatten(1, (side, side))
        if (height, width) == (side, side):
            return table
        return F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic").permute(0, 2, 3, 1)

    def _pad(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side, more = self.window_size, 1 if self.padding == "mirror" else 0
        # As multiples of the window, so that the divisions by it in a graph with free sizes cancel.
        padded = (height - 1 + side + more) // side * side, (width - 1 + side + more) // side * side
        if torch.compiler.is_compiling() or padded != (height, width):  # a graph pads always, so that its sizes stay free
            x = x[:, :, _mirrored(height, padded[0], self.padding, x.device)]
            x = x[:, :, :, _mirrored(width, padded[1], self.padding, x.device)]
        return x

    def _crop(self, x: Tensor, height: int, width: int) -> Tensor:
        if torch.compiler.is_compiling():  # a slice would bind the free sizes of a graph to what it can prove about them
            return x[:, :, torch.arange(height, device=x.device)][:, :, :, torch.arange(width, device=x.device)]
        return x[:, :, :height, :width]

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"DRCT takes B, {self.in_channels}, H, W; got {', '.join(map(str, x.shape))}")
        if not x.is_floating_point():
            raise InputError(f"DRCT takes floating-point values in [0, 1]; got {x.dtype}")
        if min(x.shape[2:]) < 1:
            raise InputError(f"DRCT takes sides from 1 pixel up; got {x.shape[2]} x {x.shape[3]}")


@memoise
def _mean(channels: int, device: torch.device) -> Tensor:
    values = RGB_MEAN if channels == 3 else (0.0,) * channels
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


@memoise
def _mirrored(length: int, padded: int, padding: Padding, device: torch.device) -> Tensor:
    """padded: which of `length` pixels stands at each position when the axis is mirrored at its ends, as often as it takes."""
    position = torch.arange(padded, device=device)
    # A tensor, as ONNX has no remainder by a free size.
    period = torch.full_like(position, 2 * length if padding == "mirror" else max(2 * length - 2, 1))
    position = position % period
    return torch.minimum(position, period - position - (1 if padding == "mirror" else 0))


def _upsampler(scale: int, dim: int) -> nn.Sequential:
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    layers: list[nn.Module] = []
    for factor in factors:
        layers += [nn.Conv2d(dim, factor**2 * dim, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


def _check_options(scale: int, depths: Sequence[int], heads: Sequence[int], padding: str, initialise: str) -> None:
    if scale != 3 and (scale < 2 or scale.bit_count() != 1):
        raise InputError(f"scale must be 3 or a power of 2; got {scale}")
    if not depths or len(heads) != len(depths):
        raise InputError(f"depths and num_heads need one number a group; got {list(depths)} and {list(heads)}")
    if padding not in ("reflect", "mirror"):
        raise InputError(f"padding is 'reflect' or 'mirror'; got {padding!r}")
    if initialise not in ("random", "interpolation"):
        raise InputError(f"initialise is 'random' or 'interpolation'; got {initialise!r}")


def _check_numbers(positive: Mapping[str, int], mlp_ratio: float, drop_path_rate: float, img_range: float) -> None:
    for name, value in positive.items():
        if value < 1:
            raise InputError(f"{name} must be 1 or more; got {value}")
    for name, number in (("mlp_ratio", mlp_ratio), ("img_range", img_range)):
        if number <= 0:
            raise InputError(f"{name} must be more than 0; got {number}")
    if not 0 <= drop_path_rate < 1:
        raise InputError(f"drop_path_rate must lie in [0, 1); got {drop_path_rate}")


SHARPNESS = 1.4  # linear interpolation is 0, quadratic 1; this much gives the best PSNR on photographs


@torch.no_grad()
def start_from_interpolation(model: DRCT) -> None:
    """Sets the convolutions outside the groups such that the model enlarges by interpolation, whatever the groups do.

    The image travels in the first channels. The leaky ReLU on its way is undone by sending each value x as x and -x:
    lrelu(x) - lrelu(-x) = 1.01 x. All other channels start as usual, but are not looked at by the last convolution yet.
    """
    channels = range(model.in_channels)
    for name, width, needed in (
        ("embed_dim", model.conv_first.out_channels, len(channels)),
        ("upsample_dim", model.conv_last.in_channels, 2 * len(channels)),
    ):
        if width < needed:
            raise InputError(f"initialise='interpolation' takes {needed} or more as {name}; got {width}")
    first, before, last = model.conv_first, model.conv_before_upsample[0], model.conv_last
    assert isinstance(before, nn.Conv2d)
    if isinstance(model.conv_after_body, nn.Conv2d):
        nn.init.zeros_(model.conv_after_body.weight)
        assert model.conv_after_body.bias is not None
        nn.init.zeros_(model.conv_after_body.bias)
    for c in channels:
        _set_kernel(first, c, {c: _centre()})
        _set_kernel(before, 2 * c, {c: _centre()})
        _set_kernel(before, 2 * c + 1, {c: -_centre()})
    nn.init.zeros_(last.weight)
    for c in channels:
        _set_kernel(last, c, {c: _centre()})
    sources = {c: {2 * c: 1 / 1.01, 2 * c + 1: -1 / 1.01} for c in channels}
    layers = list(model.upsample)
    for conv, shuffle in zip(layers[::2], layers[1::2], strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(shuffle, nn.PixelShuffle)
        factor = shuffle.upscale_factor
        for c in channels:
            for i in range(factor):
                for j in range(factor):
                    kernel = _taps(i, factor)[:, None] * _taps(j, factor)
                    _set_kernel(conv, c * factor**2 + i * factor + j, {source: share * kernel for source, share in sources[c].items()})
        sources = {c: {c: 1.0} for c in channels}


def _set_kernel(conv: nn.Conv2d, out: int, kernels: Mapping[int, Tensor]) -> None:
    """Makes one output channel of a 3 x 3 convolution the sum of these kernels on these input channels."""
    conv.weight[out] = 0
    if conv.bias is not None:
        conv.bias[out] = 0
    for channel, kernel in kernels.items():
        conv.weight[out, channel] = kernel


def _centre() -> Tensor:
    return F.pad(torch.ones(1, 1), (1, 1, 1, 1))


def _taps(position: int, factor: int) -> Tensor:
    """3: weights of the pixels at -1, 0, 1 for the sub-pixel `position` of `factor`."""
    t = (position + 0.5) / factor - 0.5
    linear = torch.tensor([max(-t, 0.0), 1 - abs(t), max(t, 0.0)])
    quadratic = torch.tensor([t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2])
    return torch.lerp(linear, quadratic, SHARPNESS)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    groups = 1 + max(int(found[1]) for name in state if (found := re.match(r"layers\.(\d+)\.", name)))
    embed_dim, in_channels = state["conv_first.weight"].shape[:2]
    tables = [state[f"layers.{i}.swin1.attn.relative_position_bias_table"] for i in range(groups)]
    window = square_window_of(len(tables[0]))
    if window is None:
        raise InputError(f"a table of {len(tables[0])} relative positions belongs to no square window")
    ups = [value.shape for name, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", name)]
    with_index = any(name.endswith("relative_position_index") for name in state)
    with_mask = any(name.endswith("attn_mask") for name in state)
    positions = state.get("absolute_pos_embed")
    return {
        "scale": math.prod(math.isqrt(rows // columns) for rows, columns, *_ in ups),
        "in_channels": int(in_channels),
        "embed_dim": int(embed_dim),
        "growth": len(state["layers.0.adjust1.weight"]),
        "depths": [6] * groups,
        "num_heads": [table.shape[1] for table in tables],
        "window_size": window,
        "mlp_ratio": len(state["layers.0.swin1.mlp.fc1.weight"]) / embed_dim,
        "qkv_bias": "layers.0.swin1.attn.qkv.bias" in state,
        "patch_norm": "patch_embed.norm.weight" in state,
        "shifted": with_mask or not with_index,  # conversions strip both buffers; a file with one of them says which it is
        "position_grid": 0 if positions is None else math.isqrt(positions.shape[1]),
        "body_conv": "conv_after_body.weight" in state,
        "upsample_dim": len(state["conv_before_upsample.0.weight"]),
    }


LAYOUT = PublishedLayout(
    build=DRCT,
    infer=_infer,
    keys=("conv_first.weight", "layers.0.swin1.attn.relative_position_bias_table", "layers.0.adjust1.weight", "upsample.0.weight"),
    assumed={"img_range": 1.0},
    ignored=("*.attn_mask", "*.relative_position_index"),
)

BENCHMARKS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")
LARGE = {"depths": (6,) * 12}
LITE = {
    "embed_dim": 48,
    "growth": 16,
    "depths": (6, 6),
    "num_heads": 4,
    "window_size": 8,
    "mlp_ratio": 1.0,
    "upsample_dim": 32,
    "drop_path_rate": 0.0,
    "initialise": "interpolation",
}


def _published(scale: int, *figures: str) -> tuple[PublishedResult, ...]:
    """figures: "PSNR SSIM" on the luma channel, `scale` border pixels cropped, in the order of `BENCHMARKS`."""
    results = []
    for name, pair in zip(BENCHMARKS, figures, strict=True):
        psnr, ssim = map(float, pair.split())
        results += [PublishedResult(f"{name} x{scale}", "PSNR-Y", psnr, "dB"), PublishedResult(f"{name} x{scale}", "SSIM-Y", ssim)]
    return tuple(results)


def _shipped(name: str) -> dict[str, Path]:
    return {name: Path(__file__).parents[1] / "weights" / f"{name}.safetensors"}


X2 = _published(2, "38.62 .9628", "34.84 .9272", "32.62 .9051", "34.44 .9464", "40.31 .9804")
X3 = _published(3, "35.18 .9338", "31.24 .8569", "29.68 .8182", "30.34 .8910", "35.76 .9575")
X4 = _published(4, "33.11 .9064", "29.35 .7984", "28.18 .7532", "28.06 .8378", "32.59 .9304")
LARGE_X2 = _published(2, "39.82 .9644", "35.24 .9284", "32.76 .9068", "35.11 .9506", "40.94 .9828")
LARGE_X3 = _published(3, "35.32 .9348", "31.54 .8591", "29.68 .8211", "31.14 .9004", "36.16 .9585")
LARGE_X4 = _published(4, "33.37 .9090", "29.54 .8025", "28.16 .7577", "28.70 .8508", "33.14 .9347")

register_variants(
    DRCT,
    {
        "drct_x2": Variant({"scale": 2}, "DRCT x2: 6 groups, 13,991,867 parameters", X2, (3, 64, 64)),
        "drct_x3": Variant({"scale": 3}, "DRCT x3: 6 groups, 14,176,507 parameters", X3, (3, 64, 64)),
        "drct_x4": Variant({}, "DRCT x4, and Real-DRCT, which differs in its training only: 14,139,579 parameters", X4, (3, 64, 64)),
        "drct_large_x2": Variant(LARGE | {"scale": 2}, "DRCT-L x2: 12 groups, 27,433,007 parameters", LARGE_X2, (3, 64, 64)),
        "drct_large_x3": Variant(LARGE | {"scale": 3}, "DRCT-L x3: 12 groups, 27,617,647 parameters", LARGE_X3, (3, 64, 64)),
        "drct_large_x4": Variant(LARGE, "DRCT-L x4: 12 groups, 27,580,719 parameters", LARGE_X4, (3, 64, 64)),
        "drct_lite_x2": Variant(LITE | {"scale": 2}, "a small DRCT x2 of ours for CPUs", (), (3, 64, 64), _shipped("drct_lite_x2")),
        "drct_lite_x4": Variant(
            LITE | {"depths": (6, 6, 6)}, "a small DRCT x4 of ours for CPUs", (), (3, 64, 64), _shipped("drct_lite_x4")
        ),
    },
    system="drct",
    task="restoration",
    paper="DRCT: Saving Image Super-Resolution away from Information Bottleneck, Hsu, Lee, Chou, CVPR 2024 workshops, arXiv 2404.00722",
    licence="MIT (official code)",
    layout=LAYOUT,
)
