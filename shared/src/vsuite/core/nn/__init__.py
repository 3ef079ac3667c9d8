"""The common transformer core: functions and small layers that systems compose. Pure torch."""

from __future__ import annotations

from vsuite.core.nn.attention import attend
from vsuite.core.nn.backbone import FeatureInfo, ImageBackbone, SizeRule
from vsuite.core.nn.depthwise import depthwise_conv3d
from vsuite.core.nn.drop_path import DropPath, drop_path_rates
from vsuite.core.nn.fold import fold_batch_norm
from vsuite.core.nn.initialise import initialise_transformer
from vsuite.core.nn.memoise import memoise
from vsuite.core.nn.mlp import Mlp
from vsuite.core.nn.norm import LayerNorm2d
from vsuite.core.nn.resize import resize_linear
from vsuite.core.nn.tokens import map_to_tokens, tokens_to_map
from vsuite.core.nn.windows import window_partition, window_reverse

__all__ = [
    "DropPath",
    "FeatureInfo",
    "ImageBackbone",
    "LayerNorm2d",
    "Mlp",
    "SizeRule",
    "attend",
    "depthwise_conv3d",
    "drop_path_rates",
    "fold_batch_norm",
    "initialise_transformer",
    "map_to_tokens",
    "memoise",
    "resize_linear",
    "tokens_to_map",
    "window_partition",
    "window_reverse",
]
