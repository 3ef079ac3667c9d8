"""HorNet: ConvNeXt's frame around recursive gated convolutions, or global Fourier filters (Rao et al., NeurIPS 2022)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.models.convnext import StagedConvNet, layer_group
from vsuite.core.nn import DropPath, LayerNorm2d, drop_path_rates, memoise, perceptron
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants

FilterGrid = tuple[int, int]


class GlobalLocalFilter(nn.Module):
    """Depthwise 3x3 convolution of one half of the channels, a learned filter in Fourier space on the other. B, C, H, W -> the same.

    Args:
        dim: C, even.
        grid: rows and columns of the stored filter: H and W // 2 + 1 of the maps it was trained on. It is resized to others.
    """

    def __init__(self, dim: int, grid: FilterGrid) -> None:
        super().__init__()
        if dim % 2:
            raise InputError(f"the global-local filter takes an even number of channels; got {dim}")
        self.pre_norm = LayerNorm2d(dim, eps=1e-6)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, *grid, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        self.post_norm = LayerNorm2d(dim, eps=1e-6)
        self.folded = False
        self.kept: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.pre_norm(x).chunk(2, dim=1)
        far = self._filtered(far.permute(0, 2, 3, 1))
        # Local and global channels alternate: the gates of every order then get some of both.
        pairs = torch.stack([self.dw(near).permute(0, 2, 3, 1), far], dim=-1)
        return self.post_norm(pairs.flatten(3).permute(0, 3, 1, 2))

    def _filtered(self, x: Tensor) -> Tensor:
        """The filter on B, H, W, C. The transforms are matrix products: on the small grids of late stages they take a half to a
        third of the time of an FFT, and maps stay channels-last."""
        batch, height, width, dim = x.shape
        half = width // 2 + 1
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows, columns, rows_back = fourier_matrices(height, width, x.device, wide.dtype)
        real, imaginary = self._filter((height, half), wide.dtype)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = columns @ (rows @ wide).reshape(batch, 2 * height, half * dim)
            a, b = spectrum.reshape(batch, 2, height, half, dim).unbind(1)  # real and imaginary part
            filtered = torch.stack([a * real - b * imaginary, a * imaginary + b * real], dim=1)
            back = columns.T @ filtered.reshape(batch, 2 * height, half * dim)
            return (rows_back @ back.reshape(batch, height, 2 * half, dim)).to(x.dtype)

    def _filter(self, grid: FilterGrid, dtype: torch.dtype) -> Tensor:
        """2 (real and imaginary part), *grid, C. Once folded, that of the last grid is kept."""
        if torch.compiler.is_compiling() or not self.folded:
            return self._resized(grid, dtype)
        key = grid, dtype, self.complex_weight.device
        kept = self.kept  # read once: another thread may replace it
        if kept is None or kept[0] != key:
            with torch.inference_mode(False):
                kept = self.kept = key, self._resized(grid, dtype)
        return kept[1]

    def _resized(self, grid: FilterGrid, dtype: torch.dtype) -> Tensor:
        return resize_filter(self.complex_weight.to(dtype), grid).permute(3, 1, 2, 0).contiguous()

    def fold(self) -> None:
        self.folded = True


@memoise
def fourier_matrices(height: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The unitary real Fourier transform of a map as matrices on its two axes; w = W // 2 + 1.

    Returns:
        Rows, 2 w x W: a real row -> the real, then the imaginary parts of its w first frequencies.
        Columns, 2 H x 2 H: a complex column (for each position both parts) -> all real, then all imaginary parts. Its transpose
        is its inverse.
        Rows back, W x 2 w: the inverse of the first.
    """
    half = width // 2 + 1
    cos, sin = _waves(half, width)
    rows = torch.cat([cos, -sin])
    frequency = torch.arange(half)
    alone = (frequency == 0) | (2 * frequency == width)  # the others stand for their mirrored frequency too
    rows_back = torch.where(alone, 1.0, 2.0).repeat(2) * rows.T
    cos, sin = _waves(height, height)
    columns = torch.cat([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)]).flatten(1)
    return rows.to(device, dtype), columns.to(device, dtype), rows_back.to(device, dtype)


def _waves(frequencies: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each frequency at each position, divided by the root of the length; frequencies x length."""
    turns = torch.outer(torch.arange(frequencies), torch.arange(length)) % length
    angle = turns.double() * (2 * math.pi / length)
    return angle.cos() / length**0.5, angle.sin() / length**0.5


def resize_filter(weight: Tensor, grid: Sequence[int]) -> Tensor:
    """C, h, w, 2 -> C, *grid, 2: bilinear, corners aligned, real and imaginary parts apart, as published results depend on."""
    if not torch.compiler.is_compiling() and tuple(weight.shape[1:3]) == tuple(grid):
        return weight
    return F.interpolate(weight.permute(3, 0, 1, 2), size=list(grid), mode="bilinear", align_corners=True).permute(1, 2, 3, 0)


class GnConv(nn.Module):
    """Recursive gated convolution of a given order: a chain of gates, each on twice the channels of the one before.

    B, in_channels, H, W -> B, out_channels, H, W.

    Args:
        order: gates in the chain; 2 ** (order - 1) divides `dim`.
        dim: channels of the last gate; None is `out_channels`.
        kernel_size: of the depthwise convolution that mixes positions.
        filter_grid: mix by a `GlobalLocalFilter` of this grid instead.
        scale: constant factor on the gates, 1 / 3 in the backbone.
        project: end with a 1x1 convolution; without one the output has `dim` channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        order: int,
        *,
        dim: int | None = None,
        kernel_size: int = 7,
        filter_grid: FilterGrid | None = None,
        scale: float = 1.0,
        project: bool = True,
    ) -> None:
        super().__init__()
        dim = out_channels if dim is None else dim
        if order < 1 or dim % 2 ** (order - 1):
            raise InputError(f"a gated convolution of order n takes a width divisible by 2^(n - 1); got order {order} and width {dim}")
        self.dims = [dim >> i for i in reversed(range(order))]
        self.proj_in = nn.Conv2d(in_channels, 2 * dim, 1)
        gates = sum(self.dims)
        self.dwconv = (
            nn.Conv2d(gates, gates, kernel_size, padding=kernel_size // 2, groups=gates)
            if filter_grid is None
            else GlobalLocalFilter(gates, filter_grid)
        )
        self.pws = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in itertools.pairwise(self.dims))
        self.proj_out = nn.Conv2d(dim, out_channels, 1) if project else None
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = _pointwise(self.proj_in, x.permute(0, 2, 3, 1))  # B, H, W, C: a view where the map is channels-last in memory
        first, rest = x.split([self.dims[0], sum(self.dims)], dim=-1)
        mixed = self.dwconv(rest.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        gates = (mixed if self.scale == 1 else mixed * self.scale).split(self.dims, dim=-1)
        y = first * gates[0]
        for conv, gate in zip(self.pws, gates[1:], strict=True):
            y = _pointwise(conv, y) * gate
        return (y if self.proj_out is None else _pointwise(self.proj_out, y)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def fold(self) -> None:
        last = self.dwconv if isinstance(self.dwconv, nn.Conv2d) else self.dwconv.post_norm
        for parameter in last.parameters():
            parameter.mul_(self.scale)
        self.scale = 1.0


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of B, H, W, C."""
    if not isinstance(conv, nn.Conv2d):  # converted to a dynamic one, say
        return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class GnConvModule(GnConv):
    """The gated convolution of decoders (HorFPN, the last 3x3 convolutions of UPerNet), in place of a 3x3 convolution.

    B, in_channels, H, W -> B, out_channels, H, W. HorFPN uses order 2 on the output convolution of every level; Fourier
    filters of decoders are stored as 32 x 17.

    Args:
        dim_ratio: width of the gates relative to `out_channels`.
        norm, activation: what follows, such as `nn.BatchNorm2d(out_channels)` and `nn.ReLU()`; None is nothing.
        order, kernel_size, filter_grid, project: see `GnConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        order: int = 2,
        *,
        dim_ratio: int = 1,
        kernel_size: int = 7,
        filter_grid: FilterGrid | None = None,
        project: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        dim = out_channels * dim_ratio
        super().__init__(in_channels, out_channels, order, dim=dim, kernel_size=kernel_size, filter_grid=filter_grid, project=project)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


class Block(nn.Module):
    """Gated convolution, then an inverted bottleneck with GELU, each with layer norm, layer scale, residual. B, C, H, W -> the same."""

    def __init__(self, dim: int, order: int, filter_grid: FilterGrid | None, drop_path: float = 0.0, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.gnconv = GnConv(dim, dim, order, filter_grid=filter_grid, scale=1 / 3)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gnconv(self.norm1(x)).permute(0, 2, 3, 1)  # B, H, W, C: a view, as the map is channels-last in memory
        if self.gamma1 is not None:
            y = y * self.gamma1
        x = x + self.drop_path(y.permute(0, 3, 1, 2))
        y = self.norm2(x.permute(0, 2, 3, 1))
        y = perceptron(y, self.pwconv1, self.pwconv2)
        if self.gamma2 is not None:
            y = y * self.gamma2
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    @torch.no_grad()
    def fold(self) -> None:
        for gamma, layer in ((self.gamma1, self.gnconv.proj_out), (self.gamma2, self.pwconv2)):
            if gamma is not None and layer is not None and layer.bias is not None:
                layer.weight.mul_(gamma.reshape(-1, *[1] * (layer.weight.ndim - 1)))
                layer.bias.mul_(gamma)
        self.gamma1 = self.gamma2 = None


class HorNet(StagedConvNet):
    """Four stages at strides 4, 8, 16, 32. Sides are free from 32 pixels up; rows and columns beyond a multiple are not seen.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        depths, embed_dims: blocks and width of each stage.
        orders: of the gated convolutions of each stage.
        filter_grids: of each stage, the grid of its `GlobalLocalFilter`s; None is a depthwise 7x7 convolution.
        drop_path_rate: of the last block; rises linearly from 0.
        layer_scale: initial factor on each residual branch; 0 builds none.
        head_init_scale, stage_norms: see `StagedConvNet`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 3, 18, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        orders: Sequence[int] = (2, 3, 4, 5),
        filter_grids: Sequence[FilterGrid | None] = (None, None, None, None),
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        head_init_scale: float = 1.0,
        stage_norms: bool = False,
    ) -> None:
        for name, values in (("depths", depths), ("embed_dims", embed_dims), ("orders", orders), ("filter_grids", filter_grids)):
            if len(values) != 4:
                raise InputError(f"HorNet has 4 stages; got {name} {list(values)}")
        rates = drop_path_rates(drop_path_rate, depths)
        stages = [
            [Block(dim, order, grid, rate, layer_scale) for rate in stage]
            for dim, order, grid, stage in zip(embed_dims, orders, filter_grids, rates, strict=True)
        ]
        super().__init__(in_channels, num_classes, embed_dims, stages, head_init_scale, stage_norms)

    def layer_id(self, name: str) -> int:
        """The published table, made for 18 blocks in the third stage: 0 to 13."""
        return layer_group(name, blocks_a_group=2)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    filters = [state.get(f"stages.{i}.0.gnconv.dwconv.complex_weight") for i in range(4)]
    return {
        "in_channels": int(state["downsample_layers.0.0.weight"].shape[1]),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "depths": [sum(bool(re.fullmatch(rf"stages\.{i}\.\d+\.norm1\.weight", name)) for name in state) for i in range(4)],
        "embed_dims": [len(state[f"stages.{i}.0.norm1.weight"]) for i in range(4)],
        "orders": [1 + sum(bool(re.fullmatch(rf"stages\.{i}\.0\.gnconv\.pws\.\d+\.weight", name)) for name in state) for i in range(4)],
        "filter_grids": [None if weight is None else tuple(weight.shape[1:3]) for weight in filters],
        "layer_scale": 1e-6 if "stages.0.0.gamma1" in state else 0.0,
        "stage_norms": "norm0.weight" in state,
    }


def _resize(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A Fourier filter in another stored grid; nothing else can be resized."""
    same_channels = name.endswith(".complex_weight") and value.ndim == 4 and (len(value), value.shape[3]) == (shape[0], shape[3])
    return resize_filter(value, shape[1:3]) if same_channels else None


LAYOUT = PublishedLayout(
    build=HorNet,
    infer=_infer,
    keys=("downsample_layers.0.0.weight", "downsample_layers.3.1.weight", "stages.0.0.gnconv.proj_in.weight"),
    fresh=("norm[0-3].*",),
    head="head.",
    norm="norm.",
    stem="downsample_layers.0.0.weight",
    resize=_resize,
)

GF_224: tuple[FilterGrid | None, ...] = (None, None, (14, 8), (7, 4))
GF_384: tuple[FilterGrid | None, ...] = (None, None, (24, 13), (12, 7))
PIXELS_384 = (3, 384, 384)


def _variant(dim: int, summary: str, top1: float | None = None, *, grids: Any = None, pre_trained: bool = False) -> Variant:
    options: dict[str, Any] = {"embed_dims": (dim, 2 * dim, 4 * dim, 8 * dim)} | ({"filter_grids": grids} if grids else {})
    size = PIXELS_384 if grids == GF_384 else (3, 224, 224)
    name = f"ImageNet-1K{', pre-trained on 22K' if pre_trained else ''}, {size[1]} pixels"
    return Variant(options, summary, () if top1 is None else (PublishedResult(name, "top-1", top1, "%"),), size)


register_variants(
    HorNet,
    {
        "hornet_tiny_7x7": _variant(64, "22.4 M parameters, 4.0 G MACs", 82.8),
        "hornet_tiny_gf": _variant(64, "23.0 M parameters, 3.9 G MACs; Fourier filters", 83.0, grids=GF_224),
        "hornet_small_7x7": _variant(96, "49.5 M parameters, 8.8 G MACs", 83.8),
        "hornet_small_gf": _variant(96, "50.4 M parameters, 8.7 G MACs; Fourier filters", 84.0, grids=GF_224),
        "hornet_base_7x7": _variant(128, "87.3 M parameters, 15.6 G MACs", 84.2),
        "hornet_base_gf": _variant(128, "88.4 M parameters, 15.4 G MACs; Fourier filters", 84.3, grids=GF_224),
        "hornet_base_gf_img384": _variant(128, "92.1 M parameters, 45.3 G MACs; Fourier filters", grids=GF_384),
        "hornet_large_7x7": _variant(192, "194.5 M parameters, 34.8 G MACs", 86.8, pre_trained=True),
        "hornet_large_gf": _variant(192, "196.3 M parameters, 34.6 G MACs; Fourier filters", 87.0, grids=GF_224, pre_trained=True),
        "hornet_large_gf_img384": _variant(192, "201.8 M parameters, 101.6 G MACs; Fourier filters", 87.7, grids=GF_384, pre_trained=True),
    },
    system="hornet",
    task="classification",
    paper="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, Rao et al., NeurIPS 2022, arXiv 2207.14284",
    licence="MIT (official code and weights)",
    layout=LAYOUT,
)
