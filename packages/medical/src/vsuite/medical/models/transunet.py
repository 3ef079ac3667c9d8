"""TransUNet: a ResNet feeds a Vision Transformer, a U-Net-like decoder upsamples its tokens (Chen et al., arXiv 2102.04306, 2021).

Axes: B batch, C channels, H W rows and columns of a slice, N tokens of the square grid in row-major order, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult
from vsuite.core.nn import Mlp, attend, fold_batch_norm, map_to_tokens, tokens_to_map
from vsuite.core.registry import Variant, register_variants
from vsuite.medical.models.resnet_v2 import ResNetV2

RESNET_STRIDE = 16
DECODER_WIDTH = 512  # between the tokens and the first block, whatever the variant


class Attention(nn.Module):
    """Multi-head attention among all tokens. B, N, C -> B, N, C."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(self.query(x), self.key(x), self.value(x), self.num_heads))


class Layer(nn.Module):
    """Attention and perceptron, each after a layer norm and with a residual. B, N, C -> B, N, C."""

    def __init__(self, dim: int, mlp_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = Mlp(dim, mlp_dim, dropout=dropout)
        self.attn = Attention(dim, num_heads)
        for linear in (self.ffn.fc1, self.ffn.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Embeddings(nn.Module):
    """Patches of the image, or of the ResNet's last map, with a learnt position each (no class token).

    B, C, S, S -> tokens B, N, C', and the ResNet's maps for the decoder, coarsest first (none without a ResNet).
    """

    def __init__(self, resnet: ResNetV2 | None, in_channels: int, dim: int, patch_size: int, grid: int, dropout: float) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid * grid, dim))
        self.hybrid_model = resnet
        channels, side = (in_channels, patch_size) if resnet is None else (resnet.out_channels, 1)
        self.patch_embeddings = nn.Conv2d(channels, dim, side, side)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        if self.hybrid_model is not None:
            x, skips = self.hybrid_model(x)
        return self.dropout(map_to_tokens(self.patch_embeddings(x)) + self.position_embeddings), skips


class Encoder(nn.Module):
    """The layers and a last layer norm. B, N, C -> B, N, C."""

    def __init__(self, depth: int, dim: int, mlp_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(dim, mlp_dim, num_heads, dropout) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return self.encoder_norm(x)


class Transformer(nn.Module):
    """Embeddings and encoder. B, C, S, S -> tokens B, N, C', and the maps for the decoder, coarsest first."""

    def __init__(self, embeddings: Embeddings, encoder: Encoder) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens, skips = self.embeddings(x)
        return self.encoder(tokens), skips


class ConvNormRelu(nn.Sequential):
    """3x3 convolution, batch norm, ReLU; sides stay."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )

    def fold(self) -> None:
        conv, norm = self[0], self[1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_batch_norm(conv, norm)
            self[1] = nn.Identity()


class DecoderBlock(nn.Module):
    """Twice the size, the ResNet's map of that size beside it, two convolutions. B, C, H, W -> B, C', 2 H, 2 W."""

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int = 0) -> None:
        super().__init__()
        self.conv1 = ConvNormRelu(in_channels + skip_channels, out_channels)
        self.conv2 = ConvNormRelu(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1)))


class Decoder(nn.Module):
    """The cascaded upsampler: tokens of a square grid B, N, C -> map B, C', 16 h, 16 w with four blocks.

    Args:
        dim: width of the tokens.
        channels: of each block.
        skip_channels: of the maps that the first blocks take in, one a block; the others take none.
    """

    def __init__(self, dim: int, channels: Sequence[int], skip_channels: Sequence[int]) -> None:
        super().__init__()
        self.conv_more = ConvNormRelu(dim, DECODER_WIDTH)
        skips = [*skip_channels, *[0] * (len(channels) - len(skip_channels))]
        before = [DECODER_WIDTH, *channels]
        self.blocks = nn.ModuleList(DecoderBlock(*sizes) for sizes in zip(before, channels, skips, strict=False))
        self.num_skips = len(skip_channels)

    def forward(self, tokens: Tensor, skips: Sequence[Tensor]) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        x = self.conv_more(tokens_to_map(tokens, (side, side)))
        for i, block in enumerate(self.blocks):
            x = block(x, skips[i] if i < self.num_skips else None)
        return x


class TransUNet(nn.Module):
    """The whole network: B, in_channels, S, S -> logits B, num_classes, S', S' with S' = S * 16 / patch_size (S as a rule).

    S is `image_size`, fixed by the position table. Values should lie in 0..1, as in training; no activation is applied
    at the end.

    Args:
        in_channels: of the image. 1 is repeated to 3, as published: a model for 1 takes 3 as well and has the same weights.
        num_classes: channels of the output, background included.
        image_size: S, a multiple of 16 (of `patch_size` without a ResNet), 32 or more.
        embed_dim, mlp_dim, num_heads, depth: width of a token, of the perceptrons, heads, layers.
        patch_size: side of a patch without a ResNet; with one it is 16, the ResNet's own stride.
        resnet_depths: units of the ResNet's three stages; empty for a ViT straight on the image.
        resnet_width: channels of the ResNet's root.
        num_skips: how many of the ResNet's maps the decoder takes, 0 to 3, coarsest first; 0 without a ResNet.
        decoder_channels: of each block of the decoder, which doubles the size.
        dropout: of the embeddings and of the perceptrons, 0 to below 1.

    Raises:
        InputError: for options that do not fit together, and inputs of another rank, type or size.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 9,
        image_size: int = 224,
        embed_dim: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        depth: int = 12,
        patch_size: int = 16,
        resnet_depths: Sequence[int] = (3, 4, 9),
        resnet_width: int = 64,
        num_skips: int = 3,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        numbers = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "image_size": image_size,
            "embed_dim": embed_dim,
            "mlp_dim": mlp_dim,
            "num_heads": num_heads,
            "depth": depth,
            "patch_size": patch_size,
            "resnet_width": resnet_width,
            "each of decoder_channels": min(decoder_channels, default=0),
        }
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        _check_fit(image_size, patch_size, bool(resnet_depths), num_skips, len(decoder_channels))
        if embed_dim % num_heads:
            raise InputError(f"embed_dim must be divisible by num_heads; {embed_dim} is not by {num_heads}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {dropout}")
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.stem_channels = 3 if in_channels == 1 else in_channels
        resnet = ResNetV2(self.stem_channels, resnet_depths, resnet_width) if resnet_depths else None
        embeddings = Embeddings(resnet, self.stem_channels, embed_dim, patch_size, image_size // patch_size, dropout)
        self.transformer = Transformer(embeddings, Encoder(depth, embed_dim, mlp_dim, num_heads, dropout))
        skip_channels = resnet.skip_channels[:num_skips] if resnet else ()
        self.decoder = Decoder(embed_dim, decoder_channels, skip_channels)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(*self.forward_features(x)))

    def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's tokens B, N, embed_dim after the last norm, and the ResNet's maps at strides 8, 4 and 2."""
        self._check_input(x)
        x = x.expand(-1, self.stem_channels, -1, -1) if x.shape[1] == 1 else x
        return self.transformer(x.contiguous(memory_format=torch.channels_last))

    def _check_input(self, x: Tensor) -> None:
        allowed = {1, 3} if self.stem_channels == 3 else {self.in_channels}
        if x.ndim != 4 or int(x.shape[1]) not in allowed:  # a tensor while tracing
            channels = " or ".join(map(str, sorted(allowed)))
            raise InputError(f"TransUNet takes B, {channels}, H, W; got {', '.join(map(str, x.shape))}")
        if not x.is_floating_point():
            raise InputError(f"TransUNet takes floating-point pixels; got {x.dtype}")
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"this TransUNet was built for slices of {self.image_size} x {self.image_size};"
                f" got {x.shape[2]} x {x.shape[3]}: resize them, or build it with another image_size"
            )


def _check_fit(image_size: int, patch_size: int, has_resnet: bool, num_skips: int, num_blocks: int) -> None:
    if has_resnet and patch_size != RESNET_STRIDE:
        raise InputError(f"patch_size must be {RESNET_STRIDE} with a ResNet; got {patch_size}")
    if image_size % patch_size or (has_resnet and image_size < 2 * RESNET_STRIDE):
        least = f", {2 * RESNET_STRIDE} or more" if has_resnet else ""
        raise InputError(f"image_size must be a multiple of {patch_size}{least}; got {image_size}")
    most = min(3, num_blocks) if has_resnet else 0
    if not 0 <= num_skips <= most:
        raise InputError(f"num_skips must be from 0 to {most} {'with' if has_resnet else 'without'} a ResNet; got {num_skips}")


POSITIONS = "transformer.embeddings.position_embeddings"
ROOT = "transformer.embeddings.hybrid_model.root.conv.weight"


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor options from the shapes of a checkpoint. Heads leave no trace: 64 wide in all published models."""

    def count(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in state)

    embeddings, layers = "transformer.embeddings.", "transformer.encoder.layer."
    patches = state[f"{embeddings}patch_embeddings.weight"]
    has_resnet = ROOT in state
    stem = state[ROOT] if has_resnet else patches
    patch_size = RESNET_STRIDE if has_resnet else int(patches.shape[2])
    blocks = [state[f"decoder.blocks.{i}.conv1.0.weight"] for i in range(count("decoder.blocks.", ".conv1.0.weight"))]
    channels = [int(weight.shape[0]) for weight in blocks]
    before = [int(state["decoder.conv_more.0.weight"].shape[0]), *channels]
    stages = [f"{embeddings}hybrid_model.body.block{i}." for i in (1, 2, 3)]
    return {
        "in_channels": 1 if stem.shape[1] == 3 else int(stem.shape[1]),
        "num_classes": int(state["segmentation_head.0.weight"].shape[0]),
        "image_size": patch_size * math.isqrt(state[POSITIONS].shape[1]),
        "embed_dim": int(patches.shape[0]),
        "mlp_dim": int(state[f"{layers}0.ffn.fc1.weight"].shape[0]),
        "num_heads": max(1, int(patches.shape[0]) // 64),
        "depth": count(layers, ".attention_norm.weight"),
        "patch_size": patch_size,
        "resnet_depths": [count(stage, ".conv1.weight") for stage in stages] if has_resnet else [],
        "resnet_width": int(stem.shape[0]) if has_resnet else 64,
        "num_skips": sum(weight.shape[1] > width for weight, width in zip(blocks, before, strict=False)),
        "decoder_channels": channels,
    }


def resize_positions(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The position table 1, N, C for another square grid: linear with the corners kept, as the authors resize it."""
    if name != POSITIONS or value.ndim != 3 or len(shape) != 3 or value.shape[2] != shape[2]:
        return None
    before, after = math.isqrt(value.shape[1]), math.isqrt(shape[1])
    if before < 1 or (before**2, after**2) != (value.shape[1], shape[1]):
        return None
    grid = tokens_to_map(value.float(), (before, before))
    return map_to_tokens(F.interpolate(grid, (after, after), mode="bilinear", align_corners=True)).to(value.dtype)


LAYOUT = PublishedLayout(
    build=TransUNet,
    infer=_infer,
    keys=(POSITIONS, "decoder.conv_more.0.weight", "segmentation_head.0.weight"),
    head="segmentation_head.",
    stem=ROOT,
    resize=resize_positions,
)

SYNAPSE = "Synapse (8 organs, 12 test cases)"
ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")


def _results(dice: float, hd95: float, organs: Sequence[float], acdc: Mapping[str, float], note: str = "") -> tuple[PublishedResult, ...]:
    return (
        PublishedResult(SYNAPSE + note, "mean Dice", dice, "%"),
        PublishedResult(SYNAPSE + note, "mean HD95", hd95, "voxels"),
        *(PublishedResult(SYNAPSE + note, f"Dice {organ}", value, "%") for organ, value in zip(ORGANS, organs, strict=True)),
        *(PublishedResult("ACDC" + note, metric, value, "%") for metric, value in acdc.items()),
    )


LARGE = {"embed_dim": 1024, "mlp_dim": 4096, "num_heads": 16, "depth": 24}
NO_RESNET: dict[str, Any] = {"resnet_depths": (), "num_skips": 0}
SLICE = (1, 224, 224)

register_variants(
    TransUNet,
    {
        "transunet_r50_vit_b16": Variant(
            {},
            "the paper's TransUNet: ResNet-50, ViT-B/16, three skips; 105.3 M parameters, 29.2 G MACs",
            (
                *_results(
                    77.48,
                    31.69,
                    (87.23, 63.13, 81.87, 77.02, 94.08, 55.86, 85.08, 75.62),
                    {"mean Dice": 89.71, "Dice right ventricle": 88.86, "Dice myocardium": 84.53, "Dice left ventricle": 95.73},
                ),
                *_results(
                    71.29,
                    32.87,
                    (73.73, 55.13, 75.80, 72.20, 91.51, 45.99, 81.99, 73.95),
                    {"mean Dice": 87.57},
                    ", without skips",
                ),
                PublishedResult(f"{SYNAPSE}, 512 pixels", "mean Dice", 84.36, "%"),
            ),
            SLICE,
        ),
        "transunet_r50_vit_l16": Variant(
            LARGE,
            "ResNet-50, ViT-L/16, three skips; 324.0 M parameters",
            (PublishedResult(SYNAPSE, "mean Dice", 78.52, "%"),),
            SLICE,
        ),
        "transunet_vit_b16": Variant(
            NO_RESNET,
            "ViT-B/16 on the image and the decoder without skips; 91.7 M parameters",
            _results(67.86, 36.11, (70.19, 45.10, 74.70, 67.40, 91.32, 42.00, 81.75, 70.44), {"mean Dice": 81.45}),
            SLICE,
        ),
        "transunet_vit_b32": Variant(
            NO_RESNET | {"patch_size": 32}, "ViT-B/32 and the decoder; half the image's size; 93.3 M parameters", (), SLICE
        ),
        "transunet_vit_l16": Variant(NO_RESNET | LARGE, "ViT-L/16 and the decoder without skips; 310.4 M parameters", (), SLICE),
        "transunet_vit_l32": Variant(
            NO_RESNET | LARGE | {"patch_size": 32}, "ViT-L/32 and the decoder; half the image's size; 312.6 M parameters", (), SLICE
        ),
    },
    system="transunet",
    task="segmentation",
    paper="TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation, Chen et al., 2021, arXiv 2102.04306",
    licence="Apache-2.0 (official code; no trained segmentation weights are published)",
    layout=LAYOUT,
)
