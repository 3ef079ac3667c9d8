"""The common transformer core: functions and small layers that systems compose. Pure torch."""

from __future__ import annotations

from vsuite.core.nn.attention import attend
from vsuite.core.nn.depthwise import depthwise_conv3d
from vsuite.core.nn.fold import fold_batch_norm
from vsuite.core.nn.initialise import initialise_transformer
from vsuite.core.nn.resize import resize_linear
from vsuite.core.nn.tokens import map_to_tokens, tokens_to_map

__all__ = ["attend", "depthwise_conv3d", "fold_batch_norm", "initialise_transformer", "map_to_tokens", "resize_linear", "tokens_to_map"]
