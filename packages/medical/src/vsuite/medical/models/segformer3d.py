"""SegFormer3D: hierarchical transformer encoder and all-MLP decoder for volumes (Perera et al., CVPR 2024 workshop).

Axes: B batch, C channels, D H W the three spatial axes in the order of the input, N = D*H*W tokens in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult, register_model
from vsuite.core.nn import attend, depthwise_conv3d, fold_batch_norm, initialise_transformer, map_to_tokens, resize_linear, tokens_to_map

Grid = tuple[int, ...]
AttentionScale = Literal["num_heads", "head_dim"]


class PatchEmbedding(nn.Module):
    """Overlapping strided convolution, then LayerNorm over channels. B, C, D, H, W -> (B, N, C'), grid."""

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv3d(in_channels, embed_dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.patch_embeddings(x)
        return self.norm(map_to_tokens(x)), tuple(x.shape[2:])


class EfficientSelfAttention(nn.Module):
    """Attention whose keys and values come from a grid that a strided convolution has made `sr_ratio` times coarser.

    Args:
        attention_scale: "num_heads" divides the scores by sqrt(num_heads), as the released code and weights of April
            2024 do; "head_dim" by sqrt(embed_dim / num_heads), as the revision of November 2025 does.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True, attention_scale: AttentionScale = "num_heads"
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (num_heads if attention_scale == "num_heads" else embed_dim // num_heads) ** -0.5
        self.query = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv3d(embed_dim, embed_dim, sr_ratio, sr_ratio)
            self.sr_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """x: B, N, C with N the product of `grid` -> B, N, C."""
        reduced = x
        if self.sr_ratio > 1:  # the convolution floors: planes beyond a multiple of sr_ratio are not seen by the keys
            reduced = self.sr_norm(map_to_tokens(self.sr(tokens_to_map(x, grid))))
        key, value = self.key_value(reduced).chunk(2, dim=-1)
        return self.proj(attend(self.query(x), key, value, self.num_heads, scale=self.scale))


class DepthwiseConvolution(nn.Module):
    """Depthwise 3x3x3 convolution and batch norm on tokens; the map is a channels-last view, so nothing is transposed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.bn: nn.Module = nn.BatchNorm3d(dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return map_to_tokens(self.bn(depthwise_conv3d(tokens_to_map(x, grid), self.dwconv.weight, self.dwconv.bias)))

    def fold(self) -> None:
        if isinstance(self.bn, nn.BatchNorm3d):
            fold_batch_norm(self.dwconv, self.bn)
            self.bn = nn.Identity()


class MixFFN(nn.Module):
    """Linear, depthwise convolution with batch norm (the 2D SegFormer has no norm here), GELU, linear. B, N, C -> B, N, C."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * mlp_ratio)
        self.dwconv = DepthwiseConvolution(dim * mlp_ratio)
        self.fc2 = nn.Linear(dim * mlp_ratio, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), grid)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MixFFN, each with a residual."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, mlp_ratio: int, attention_scale: AttentionScale) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = EfficientSelfAttention(dim, num_heads, sr_ratio, attention_scale=attention_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MixFFN(dim, mlp_ratio)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.attention(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x), grid)


class Encoder(nn.Module):
    """The stages of the Mix-Transformer. Submodules are numbered from 1, as in the published checkpoint."""

    def __init__(self, stages: Sequence[Mapping[str, Any]], attention_scale: AttentionScale) -> None:
        super().__init__()
        self.num_stages = len(stages)
        for i, s in enumerate(stages, 1):
            embedding = PatchEmbedding(s["in_channels"], s["dim"], s["kernel_size"], s["stride"], s["padding"])
            blocks = [Block(s["dim"], s["num_heads"], s["sr_ratio"], s["mlp_ratio"], attention_scale) for _ in range(s["depth"])]
            self.add_module(f"embed_{i}", embedding)
            self.add_module(f"tf_block{i}", nn.ModuleList(blocks))
            self.add_module(f"norm{i}", nn.LayerNorm(s["dim"]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """B, C, D, H, W -> one normalised map (B, C_i, D_i, H_i, W_i) a stage, finest first; channels-last in memory."""
        maps = []
        for i in range(1, self.num_stages + 1):
            tokens, grid = getattr(self, f"embed_{i}")(x)
            for block in getattr(self, f"tf_block{i}"):
                tokens = block(tokens, grid)
            x = tokens_to_map(getattr(self, f"norm{i}")(tokens), grid)
            maps.append(x)
        return maps


class Projection(nn.Module):
    """Linear and LayerNorm (called `bn` in the published checkpoint) of one stage's tokens."""

    def __init__(self, in_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, embed_dim)
        self.bn = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.proj(x))


class Decoder(nn.Module):
    """All-MLP decoder: every stage projected to one width, fused on the finest grid, classified, upsampled.

    The published form resizes all stages to the finest grid, concatenates them and applies a 1x1x1 convolution. That
    convolution commutes with the resizing, so each stage is multiplied by its slice of the weight at its own
    resolution, and the wide concatenated map never exists.

    Args:
        input_feature_dims: widths of the stages, coarsest first.
        upsampling: factor from the finest grid to the output.
    """

    def __init__(
        self,
        input_feature_dims: Sequence[int] = (256, 160, 64, 32),
        decoder_head_embedding_dim: int = 256,
        num_classes: int = 3,
        dropout: float = 0.0,
        upsampling: int = 4,
    ) -> None:
        super().__init__()
        dim, count = decoder_head_embedding_dim, len(input_feature_dims)
        for i, in_dim in zip(range(count, 0, -1), input_feature_dims, strict=True):
            self.add_module(f"linear_c{i}", Projection(in_dim, dim))
        self.linear_fuse = nn.Sequential(nn.Conv3d(count * dim, dim, 1, bias=False), nn.BatchNorm3d(dim), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.linear_pred = nn.Conv3d(dim, num_classes, 1)
        self.upsampling = upsampling

    def forward(self, *maps: Tensor) -> Tensor:
        """maps: B, C_i, D_i, H_i, W_i, finest first -> logits B, K, D, H, W."""
        conv, norm = self.linear_fuse[0], self.linear_fuse[1]
        assert isinstance(conv, nn.Conv3d)
        dim, grid = conv.out_channels, tuple(maps[0].shape[2:])
        weights = conv.weight.reshape(dim, -1).split(dim, dim=1)[::-1]  # one slice a stage; published order is coarsest first
        tokens = [getattr(self, f"linear_c{i}")(map_to_tokens(x)) for i, x in enumerate(maps, 1)]
        fused = F.linear(tokens[0], weights[0], conv.bias).unflatten(1, grid)  # B, D, H, W, C; a bias exists once folded
        for x, projected, weight in zip(maps[1:], tokens[1:], weights[1:], strict=True):
            fused = resize_linear(F.linear(projected, weight).unflatten(1, tuple(x.shape[2:])), grid, add_to=fused)
        fused = F.relu(norm(fused.movedim(-1, 1)), inplace=True).movedim(1, -1)
        logits = F.linear(self.dropout(fused), self.linear_pred.weight.flatten(1), self.linear_pred.bias)
        return resize_linear(logits, [self.upsampling * side for side in grid]).movedim(-1, 1)

    def fold(self) -> None:
        conv, norm, activation = self.linear_fuse
        if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            fold_batch_norm(conv, norm)
            self.linear_fuse = nn.Sequential(conv, nn.Identity(), activation)


class SegFormer3D(nn.Module):
    """The whole network: B, in_channels, D, H, W -> logits B, num_classes, D', H', W' with D' = s * ceil(D / s).

    s is the stride of the first patch embedding (4 as published). Sides are free, as long as every stage's grid holds
    one window of its reducing convolution: 13 voxels and up as published. Voxel values should be normalised as in
    training; no activation is applied at the end.

    Args:
        in_channels: modalities of the image.
        sr_ratios: how much coarser the keys of each stage are, an axis.
        embed_dims, depths, num_heads, mlp_ratios: width, blocks, heads, and hidden factor of each stage.
        patch_kernel_size, patch_stride, patch_padding: of each stage's patch embedding.
        decoder_head_embedding_dim: width of the decoder.
        num_classes: channels of the output.
        decoder_dropout: dropout before the classifier, 0 to 1.
        attention_scale: see `EfficientSelfAttention`.

    Raises:
        InputError: for lists of unequal length, sizes that do not divide, and inputs of another rank, type or size.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        sr_ratios: Sequence[int] = (4, 2, 1, 1),
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        patch_kernel_size: Sequence[int] = (7, 3, 3, 3),
        patch_stride: Sequence[int] = (4, 2, 2, 2),
        patch_padding: Sequence[int] = (3, 1, 1, 1),
        mlp_ratios: Sequence[int] = (4, 4, 4, 4),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_head_embedding_dim: int = 256,
        num_classes: int = 3,
        decoder_dropout: float = 0.0,
        attention_scale: AttentionScale = "num_heads",
    ) -> None:
        super().__init__()
        lists = {
            "embed_dims": embed_dims,
            "depths": depths,
            "num_heads": num_heads,
            "sr_ratios": sr_ratios,
            "mlp_ratios": mlp_ratios,
            "patch_kernel_size": patch_kernel_size,
            "patch_stride": patch_stride,
            "patch_padding": patch_padding,
        }
        _check_options(lists, in_channels, num_classes, decoder_head_embedding_dim, decoder_dropout, attention_scale)
        self.in_channels = in_channels
        self.num_classes = num_classes
        stages = [
            {
                "in_channels": ([in_channels, *embed_dims])[i],
                "dim": embed_dims[i],
                "kernel_size": patch_kernel_size[i],
                "stride": patch_stride[i],
                "padding": patch_padding[i],
                "depth": depths[i],
                "num_heads": num_heads[i],
                "sr_ratio": sr_ratios[i],
                "mlp_ratio": mlp_ratios[i],
            }
            for i in range(len(embed_dims))
        ]
        self.min_side = _smallest_side(stages)
        self.segformer_encoder = Encoder(stages, attention_scale)
        self.segformer_decoder = Decoder(embed_dims[::-1], decoder_head_embedding_dim, num_classes, decoder_dropout, patch_stride[0])
        self.apply(initialise_transformer)
        # The official rule takes the classifier for a convolution like the others: fan-out is then the few classes, and training
        # starts from logits of about 10. From near zero it starts at the loss of a uniform guess.
        nn.init.trunc_normal_(self.segformer_decoder.linear_pred.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise InputError(f"SegFormer3D takes B, {self.in_channels}, D, H, W; got {', '.join(map(str, x.shape))}")
        if not x.is_floating_point():
            raise InputError(f"SegFormer3D takes floating-point voxels; got {x.dtype}")
        if min(x.shape[2:]) < self.min_side:
            raise InputError(f"SegFormer3D takes sides from {self.min_side} voxels up; got {' x '.join(map(str, x.shape[2:]))}")
        return self.segformer_decoder(*self.segformer_encoder(x))


def _check_options(
    lists: Mapping[str, Sequence[int]], in_channels: int, num_classes: int, width: int, dropout: float, attention_scale: str
) -> None:
    for name, values in lists.items():
        if len(values) != len(lists["embed_dims"]):
            raise InputError(f"{name} has {len(values)} entries, embed_dims {len(lists['embed_dims'])}: one a stage is needed")
        smallest = 0 if name == "patch_padding" else 1
        if min(values) < smallest:
            raise InputError(f"{name} must be {smallest} or more; got {list(values)}")
    for dim, heads in zip(lists["embed_dims"], lists["num_heads"], strict=True):
        if dim % heads:
            raise InputError(f"each of embed_dims must be divisible by its num_heads; {dim} is not by {heads}")
    for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("decoder_head_embedding_dim", width)):
        if value < 1:
            raise InputError(f"{name} must be 1 or more; got {value}")
    if not 0 <= dropout < 1:
        raise InputError(f"decoder_dropout must lie in [0, 1); got {dropout}")
    if attention_scale not in ("num_heads", "head_dim"):
        raise InputError(f"attention_scale is 'num_heads' or 'head_dim'; got {attention_scale!r}")


def _smallest_side(stages: Sequence[Mapping[str, int]]) -> int:
    """The smallest side for which every stage's grid holds one window of its reducing convolution."""

    def fits(side: int) -> bool:
        for s in stages:
            side = (side + 2 * s["padding"] - s["kernel_size"]) // s["stride"] + 1
            if side < s["sr_ratio"]:
                return False
        return True

    largest = 1 + max(s["sr_ratio"] for s in stages) * math.prod(s["stride"] for s in stages) + sum(s["kernel_size"] for s in stages)
    return next(side for side in range(1, largest * len(stages) + 2) if fits(side))


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor options from the shapes of a published checkpoint. Heads are 32 wide in every published stage."""
    encoder, decoder = "segformer_encoder.", "segformer_decoder."
    stages = range(1, 1 + sum(name.endswith("patch_embeddings.weight") for name in state))
    embeddings = [state[f"{encoder}embed_{i}.patch_embeddings.weight"] for i in stages]
    dims = [int(w.shape[0]) for w in embeddings]
    kernels = [int(w.shape[2]) for w in embeddings]
    reductions = [state.get(f"{encoder}tf_block{i}.0.attention.sr.weight") for i in stages]
    return {
        "in_channels": int(embeddings[0].shape[1]),
        "embed_dims": dims,
        "num_heads": [max(1, dim // 32) for dim in dims],
        "depths": [sum(n.startswith(f"{encoder}tf_block{i}.") and n.endswith(".norm1.weight") for n in state) for i in stages],
        "sr_ratios": [1 if w is None else int(w.shape[2]) for w in reductions],
        "mlp_ratios": [int(state[f"{encoder}tf_block{i}.0.mlp.fc1.weight"].shape[0]) // dim for i, dim in zip(stages, dims, strict=True)],
        "patch_kernel_size": kernels,
        "patch_padding": [k // 2 for k in kernels],
        "decoder_head_embedding_dim": int(state[f"{decoder}linear_fuse.0.weight"].shape[0]),
        "num_classes": int(state[f"{decoder}linear_pred.weight"].shape[0]),
    }


LAYOUT = PublishedLayout(
    build=SegFormer3D,
    infer=_infer,
    keys=(
        "segformer_encoder.embed_1.patch_embeddings.weight",
        "segformer_decoder.linear_fuse.0.weight",
        "segformer_decoder.linear_pred.weight",
    ),
    assumed={"attention_scale": "num_heads", "patch_stride": (4, 2, 2, 2)},
)


@register_model(
    system="segformer3d",
    task="segmentation",
    layout=LAYOUT,
    weights={"hippocampus": Path(__file__).parents[1] / "weights" / "hippocampus.safetensors"},
    input_size=(4, 128, 128, 128),
    paper="SegFormer3D: an Efficient Transformer for 3D Medical Image Segmentation, Perera et al., CVPR 2024 workshop, arXiv 2404.10156",
    licence="MIT (official code and BraTS2017 weights)",
    published=(
        PublishedResult("BraTS2017 (MSD Task01)", "mean Dice", 82.1, "%"),
        PublishedResult("BraTS2017 (MSD Task01)", "Dice whole tumour", 89.9, "%"),
        PublishedResult("BraTS2017 (MSD Task01)", "Dice enhancing tumour", 74.2, "%"),
        PublishedResult("BraTS2017 (MSD Task01)", "Dice tumour core", 82.2, "%"),
        PublishedResult("Synapse, 8 organs", "mean Dice", 82.15, "%"),
        PublishedResult("ACDC", "mean Dice", 90.96, "%"),
    ),
)
def segformer3d(
    *,
    in_channels: int = 4,
    sr_ratios: Sequence[int] = (4, 2, 1, 1),
    embed_dims: Sequence[int] = (32, 64, 160, 256),
    patch_kernel_size: Sequence[int] = (7, 3, 3, 3),
    patch_stride: Sequence[int] = (4, 2, 2, 2),
    patch_padding: Sequence[int] = (3, 1, 1, 1),
    mlp_ratios: Sequence[int] = (4, 4, 4, 4),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    depths: Sequence[int] = (2, 2, 2, 2),
    decoder_head_embedding_dim: int = 256,
    num_classes: int = 3,
    decoder_dropout: float = 0.0,
    attention_scale: AttentionScale = "num_heads",
) -> SegFormer3D:
    """SegFormer3D as published for BraTS: 4 channels in, 3 regions out, 4,525,251 parameters."""
    return SegFormer3D(**locals())
