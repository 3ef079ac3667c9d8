"""The common transformer core: functions and small layers that systems compose. Pure torch."""

from __future__ import annotations

from vsuite.core.nn.attention import attend
from vsuite.core.nn.backbone import FeatureInfo, ImageBackbone, SizeRule
from vsuite.core.nn.depthwise import depthwise_conv3d
from vsuite.core.nn.drop_path import DropPath, drop_path_rates
from vsuite.core.nn.fold import fold_batch_norm
from vsuite.core.nn.initialise import initialise_transformer
from vsuite.core.nn.memoise import memoise
from vsuite.core.nn.mlp import Mlp, may_go_in_pieces, perceptron
from vsuite.core.nn.norm import LayerNorm2d
from vsuite.core.nn.packed_linear import pack_linear
from vsuite.core.nn.position_grid import resize_position_grid, sincos_position_grid
from vsuite.core.nn.relative_position import (
    gather_position_bias,
    relative_position_index,
    resize_position_table,
    square_window_of,
)
from vsuite.core.nn.resize import resize_linear
from vsuite.core.nn.tokens import map_to_tokens, tokens_to_map
from vsuite.core.nn.windows import (
    crop_to_size,
    pad_to_windows,
    shifted_window_kinds,
    shifted_window_masks,
    window_partition,
    window_reverse,
)

__all__ = [
    "DropPath",
    "FeatureInfo",
    "ImageBackbone",
    "LayerNorm2d",
    "Mlp",
    "SizeRule",
    "attend",
    "crop_to_size",
    "depthwise_conv3d",
    "drop_path_rates",
    "fold_batch_norm",
    "gather_position_bias",
    "initialise_transformer",
    "map_to_tokens",
    "may_go_in_pieces",
    "memoise",
    "pack_linear",
    "pad_to_windows",
    "perceptron",
    "relative_position_index",
    "resize_linear",
    "resize_position_grid",
    "resize_position_table",
    "shifted_window_kinds",
    "shifted_window_masks",
    "sincos_position_grid",
    "square_window_of",
    "tokens_to_map",
    "window_partition",
    "window_reverse",
]
