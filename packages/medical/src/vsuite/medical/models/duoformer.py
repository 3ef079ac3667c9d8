"""DuoFormer: a ResNet's features of several scales, mixed inside image regions, then between them (Tang et al., MIDL 2025).

A region is what one pixel of the deepest map sees, 32 x 32 pixels. Axes: B batch, P regions in row-major order, n tokens of a
region, D channels.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, create_model
from vsuite.core.models.resnet import ResNet
from vsuite.core.models.vit import resize_tables
from vsuite.core.nn import SizeRule, fold_batch_norm, map_to_tokens
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.medical.models.duoformer_regions import PatchAttention, RegionTransformer

ScaleToken = Literal["random", "channel", "first", "avg"]
BackboneName = Literal["resnet18", "resnet50"]
BackboneTraining = Literal["all", "statistics", "none"]
REGION = 32  # pixels a side
ALLOWED: dict[str, tuple[str, ...]] = {
    "backbone": ("resnet18", "resnet50"),
    "scale_token": ("random", "channel", "first", "avg"),
    "backbone_training": ("all", "statistics", "none"),
}


def gather_region_tokens(maps: Sequence[Tensor]) -> Tensor:
    """The pixels of each region in all maps, those of the deepest map first: B, P, n, C.

    Pixels of a region are in row-major order, but for the map of 2 x 2 pixels a region: that is column-major, as published.

    Args:
        maps: B, C, H, W each, finest first; the last has one pixel a region, and each before it twice the sides of the next.
    """
    height, width = maps[-1].shape[2:]
    parts = []
    for x in reversed(maps):
        side = x.shape[2] // height
        x = x.unflatten(3, (width, side)).unflatten(2, (height, side))  # B, C, region's row, row in it, region's column, column in it
        x = x.permute(0, 2, 4, 5, 3, 1) if side == 2 else x.permute(0, 2, 4, 3, 5, 1)
        parts.append(x.flatten(3, 4).flatten(1, 2))
    return torch.cat(parts, 2)


class Backbone(nn.Sequential):
    """A ResNet without pooling and classifier, its parts numbered as the published checkpoints number them."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__(resnet.conv1, resnet.bn1, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), *resnet.stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """B, C, H, W -> the maps of the four stages, finest first: B, C_i, H / 2^(i + 2), W / 2^(i + 2) for i from 0."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for i, part in enumerate(self):
            x = part(x)
            if i >= 4:
                maps.append(x)
        return maps

    def fold(self) -> None:
        conv, norm = self[0], self[1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_batch_norm(conv, norm)
            self[1] = nn.Identity()


class ConvNormReLU(nn.Module):
    """3x3 convolution with bias, batch norm, rectifier. B, C, H, W -> B, C', H, W."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def fold(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_batch_norm(self.conv, self.norm)
            self.norm = nn.Identity()


class Projection(nn.Module):
    """A 1x1 convolution for each map that gives tokens; maps are numbered from the finest, 0, to the deepest, 3."""

    def __init__(self, channels: Sequence[int], embed_dim: int, num_scales: int) -> None:
        super().__init__()
        self.used = range(4 - num_scales, 4)
        for i in reversed(self.used):
            self.add_module(f"proj_heads{i}", _initialised(nn.Conv2d(channels[i], embed_dim, 1)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The four maps of the backbone -> those used, finest first, each with embed_dim channels."""
        return [self.get_submodule(f"proj_heads{i}")(maps[i]) for i in self.used]


class DuoFormer(nn.Module):
    """The whole network: B, in_channels, S, S -> logits B, num_classes, with S = image_size.

    Pixels should be normalised by ImageNet's mean and standard deviation.

    Args:
        in_channels: of the image.
        num_classes: channels of the output.
        image_size: side in pixels, a multiple of 32 (224 as published).
        backbone: "resnet18" or "resnet50".
        num_scales: how many of the backbone's maps give tokens, from the deepest on: 1 to 4 (2 to 4 as published).
        embed_dim, depth: width of a token; number of scale blocks and as many patch attentions.
        num_heads: of every attention; None: as in the published models, 12 in those of 12 blocks, else 8.
        mlp_ratio: hidden factor of the scale blocks.
        scale_token: what stands for a region after the scale blocks. "random": a learnt token put first; "channel": a token
            put first that is made of all four maps (embed_dim is 768 as published); "first": the region's pixel of the
            deepest map; "avg": the mean of its tokens.
        patch_attention: False replaces the patch attentions by a weighted sum of the regions, each the mean of its tokens.
        patch_residual: adds to each patch attention its input. The published model has none, and its regions become alike
            after a few layers.
        qk_norm: layer norms of queries and keys in the patch attentions, which the published code has where its attention
            dropout is not 0.
        backbone_training: "all"; "statistics": its weights are fixed, but in training mode its batch norms use and keep
            following the statistics of the batches, as in the published runs; "none": it stays as it is, in eval mode.

    Raises:
        InputError: for values out of range, sizes that do not divide, and images of another rank, type or size.
    """

    no_decay = frozenset({"cls_token", "pos_embed", "pos_embed_for_scale", "channel_token"})

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 3,
        image_size: int = 224,
        backbone: BackboneName = "resnet50",
        num_scales: int = 2,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        scale_token: ScaleToken = "random",
        patch_attention: bool = True,
        patch_residual: bool = False,
        qk_norm: bool = False,
        backbone_training: BackboneTraining = "all",
    ) -> None:
        super().__init__()
        num_heads = (12 if depth == 12 else 8) if num_heads is None else num_heads
        _check_numbers(in_channels=in_channels, num_classes=num_classes, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        _check_words(backbone=backbone, scale_token=scale_token, backbone_training=backbone_training)
        if image_size < REGION or image_size % REGION:
            raise InputError(f"image_size must be a multiple of {REGION}; got {image_size}")
        if num_scales not in range(1, 5):
            raise InputError(f"num_scales must be 1 to 4; got {num_scales}")
        if embed_dim % num_heads:
            raise InputError(f"embed_dim must be divisible by num_heads; {embed_dim} is not by {num_heads}")
        if not 0 < mlp_ratio < math.inf:
            raise InputError(f"mlp_ratio must be above 0; got {mlp_ratio}")
        self.in_channels, self.num_classes, self.num_heads = in_channels, num_classes, num_heads
        self.backbone, self.scale_token, self.backbone_training = backbone, scale_token, backbone_training
        self.size_rule = SizeRule(fixed=(image_size, image_size))
        resnet = _resnet(backbone, in_channels)
        channels = [info.channels for info in resnet.feature_info]
        self.resnet_projector = Backbone(resnet)
        self.projection = Projection(channels, embed_dim, num_scales)
        extra = scale_token in ("random", "channel")
        if scale_token == "random":
            self.channel_token = nn.Parameter(torch.empty(1, 1, 1, embed_dim))
            nn.init.normal_(self.channel_token, std=0.036)
        if scale_token == "channel":
            self.chann_proj1 = _halvings(channels[0], 2)
            self.chann_proj2 = _halvings(channels[1], 1)
            widths = [sum(channels), *[embed_dim] * 4]
            stack = nn.Sequential(*(ConvNormReLU(a, b) for a, b in itertools.pairwise(widths)))
            self.chann_proj_all = nn.Sequential(OrderedDict(nConvs=stack))
        self.vision_transformer = RegionTransformer(
            (image_size // REGION) ** 2,
            int(extra) + sum(4**i for i in range(num_scales)),
            num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            average=scale_token == "avg",
            patch_attention=patch_attention,
            patch_residual=patch_residual,
            qk_norm=qk_norm,
        )
        if backbone_training != "all":
            self.resnet_projector.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_transformer(self.tokens(self.features(x)))

    def features(self, x: Tensor) -> list[Tensor]:
        """The four maps of the backbone, finest first: B, C_i, S / 2^(i + 2), S / 2^(i + 2) for i from 0.

        With a fixed backbone they may be kept and given to `tokens` again.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"DuoFormer takes B, {self.in_channels}, H, W; got {', '.join(map(str, x.shape))}")
        if not x.is_floating_point():
            raise InputError(f"DuoFormer takes floating-point pixels; got {x.dtype}")
        self.size_rule.check(x.shape[2:])
        return self.resnet_projector(x)

    def tokens(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of `features` -> the tokens of all regions, scale token first: B, P, n, D."""
        tokens = gather_region_tokens(self.projection(maps))
        if self.scale_token in ("first", "avg"):
            return tokens
        first = self._channel_tokens(maps) if self.scale_token == "channel" else self.channel_token.to(tokens.dtype)
        return torch.cat([first.expand(tokens.shape[0], tokens.shape[1], -1, -1), tokens], 2)

    def _channel_tokens(self, maps: Sequence[Tensor]) -> Tensor:
        """One token a region made of all four maps: B, P, 1, D."""
        x = torch.cat([self.chann_proj1(maps[0]), self.chann_proj2(maps[1]), F.max_pool2d(maps[2], 2), maps[3]], 1)
        return map_to_tokens(self.chann_proj_all(x)).unsqueeze(2)

    def attention_maps(self, x: Tensor) -> Iterator[Tensor]:
        """How much class token and regions take from each other in every patch attention, first to last: B, heads, 1 + P, 1 + P."""
        transformer = self.vision_transformer
        if not transformer.patch_attention:
            raise InputError("this DuoFormer was built with patch_attention=False: it has no attention between regions")
        tokens = transformer.with_class_token(transformer.mix_scales(self.tokens(self.features(x))))
        for block in transformer.blocks:
            assert isinstance(block, PatchAttention)
            yield block.attn.weights(tokens)
            tokens = block(tokens)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.backbone_training == "none":
            self.resnet_projector.eval()
        return self


def _resnet(name: str, in_channels: int) -> ResNet:
    resnet = create_model(name, num_classes=0, in_channels=in_channels)
    assert isinstance(resnet, ResNet)
    return resnet


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight)
    assert conv.bias is not None
    nn.init.normal_(conv.bias, std=1e-6)
    return conv


def _halvings(channels: int, num_convolutions: int) -> nn.Sequential:
    """Convolutions of stride 2 without activation, then max pooling by 2: B, C, H, W -> B, C, H / 2^(count + 1), ..."""
    convolutions = {f"conv{i + 1}": _initialised(nn.Conv2d(channels, channels, 3, 2, 1)) for i in range(num_convolutions)}
    return nn.Sequential(OrderedDict[str, nn.Module](**convolutions, pool=nn.MaxPool2d(2)))


def _check_numbers(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} must be 1 or more; got {value}")


def _check_words(**values: str) -> None:
    for name, value in values.items():
        if value not in ALLOWED[name]:
            raise InputError(f"{name} is {' or '.join(map(repr, ALLOWED[name]))}; got {value!r}")


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor options from names and shapes. Heads leave a trace only where queries are normalised."""
    prefix = "vision_transformer."
    num_tokens, dim = (int(n) for n in state[f"{prefix}pos_embed_for_scale"].shape[2:])
    num_scales = sum(name.startswith("projection.proj_heads") and name.endswith(".weight") for name in state)
    options = {
        "in_channels": int(state["resnet_projector.0.weight"].shape[1]),
        "num_classes": len(state[f"{prefix}head.weight"]),
        "backbone": "resnet50" if "resnet_projector.4.0.conv3.weight" in state else "resnet18",
        "num_scales": num_scales,
        "embed_dim": dim,
        "depth": sum(name.startswith(f"{prefix}scaleBlocks.") and name.endswith(".norm1.weight") for name in state),
        "mlp_ratio": len(state[f"{prefix}scaleBlocks.0.mlp.fc1.weight"]) / dim,
        "patch_attention": f"{prefix}blocks.0.attn.qkv.weight" in state,
        "qk_norm": f"{prefix}blocks.0.attn.q_norm.weight" in state,
    }
    if options["patch_attention"]:
        num_regions = state[f"{prefix}pos_embed"].shape[1] - 1
    else:
        num_regions = state[f"{prefix}region_weights.weight"].shape[1]
    options["image_size"] = REGION * math.isqrt(num_regions)
    if options["qk_norm"]:
        options["num_heads"] = dim // len(state[f"{prefix}blocks.0.attn.q_norm.weight"])
    if num_tokens > sum(4**i for i in range(num_scales)):  # else there is no scale token: "first" or "avg" leave no trace
        options["scale_token"] = "channel" if "chann_proj1.conv1.weight" in state else "random"
    return options


RENAMES = (
    ("resnet_projector.conv1.", "resnet_projector.0."),
    ("resnet_projector.bn1.", "resnet_projector.1."),
    *((f"resnet_projector.layer{i}.", f"resnet_projector.{i + 3}.") for i in (1, 2, 3, 4)),
    (".scale_blocks.", ".scaleBlocks."),
    ("channel_proj", "chann_proj"),
)


def _rename(name: str) -> str:
    for theirs, ours in RENAMES:
        name = name.replace(theirs, ours)
    return name


def _resize(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    return resize_tables("pos_embed", value, shape) if name == "vision_transformer.pos_embed" else None


LAYOUT = PublishedLayout(
    build=DuoFormer,
    infer=_infer,
    keys=("resnet_projector.0.weight", "vision_transformer.pos_embed_for_scale", "vision_transformer.scaleBlocks.0.attn.qkv.weight"),
    assumed={"num_heads": None, "scale_token": "first"},
    others=(
        OtherNames("the authors' pathology backbone", ("resnet_projector.conv1.weight",), _rename),
        OtherNames("Refactored-DuoFormer", ("vision_transformer.scale_blocks.0.norm1.weight",), _rename),
    ),
    # Parts of the published modules that their forward passes never use.
    ignored=("vision_transformer.fc_norm.*", "vision_transformer.scaleBlocks.*.attn.[qk]_norm.*"),
    head="vision_transformer.head.",
    stem="resnet_projector.0.weight",
    resize=_resize,
)


def _logged(*values: float) -> tuple[PublishedResult, ...]:
    """Single runs from the authors' logs, balanced accuracy at the epoch of best validation."""
    data = "TCGA ccRCC, 3 classes, backbone pre-trained with SwAV on pathology and frozen"
    return tuple(
        PublishedResult(f"{data}, run {i}" if len(values) > 1 else data, "balanced accuracy", value) for i, value in enumerate(values, 1)
    )


FOUR = {"num_scales": 4}
EIGHT = FOUR | {"depth": 8}

register_variants(
    DuoFormer,
    {
        "duoformer_r50_2scale": Variant({}, "139.3 M parameters, 30.8 G MACs"),
        "duoformer_r50_4scale": Variant(FOUR, "140.0 M parameters", _logged(0.785, 0.802, 0.803)),
        "duoformer_r50_4scale_d8": Variant(EIGHT, "102.2 M parameters", _logged(0.831)),
        "duoformer_r50_4scale_d8_channel": Variant(EIGHT | {"scale_token": "channel"}, "148.2 M parameters, 252 G MACs", _logged(0.8645)),
        "duoformer_r50_4scale_d8_first": Variant(EIGHT | {"scale_token": "first"}, "102.2 M parameters", _logged(0.832)),
        "duoformer_r50_4scale_d8_avg": Variant(EIGHT | {"scale_token": "avg"}, "102.2 M parameters", _logged(0.826)),
        "duoformer_r50_4scale_d8_no_patch_attention": Variant(
            EIGHT | {"scale_token": "channel", "patch_attention": False}, "129.2 M parameters", _logged(0.799)
        ),
        "duoformer_r18_4scale": Variant(FOUR | {"backbone": "resnet18"}, "125.4 M parameters"),
    },
    system="duoformer",
    task="classification",
    paper="DuoFormer: Leveraging Hierarchical Representations by Local and Global Attention Vision Transformer, Tang et al., MIDL 2025,"
    " arXiv 2506.12982",
    licence="none given (authors' code); no weights are published",
    layout=LAYOUT,
)
