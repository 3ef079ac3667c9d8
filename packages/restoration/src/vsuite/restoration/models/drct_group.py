"""The residual dense group of DRCT: five Swin blocks of growing width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import (
    DropPath,
    Mlp,
    gather_position_bias,
    may_go_in_pieces,
    shifted_window_kinds,
    shifted_window_masks,
)

NUM_BLOCKS = 5  # of every group, whatever `depths` says
PIECE = 2048  # tokens; fewer slow two threads down


class WindowAttention(nn.Module):
    """Attention within the windows of a map, with a learnt bias for each head and offset between query and key.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window_size: side of the windows; divides the sides of the map.
        shift: rows and columns by which the windows are moved; 0: not at all.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int = 0, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.window = (window_size, window_size)
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """B, H, W, C -> the same."""
        bias = gather_position_bias(self.relative_position_bias_table, self.window)
        if not self.shift:
            return self._attend_map(x, bias)
        x = self._attend_rolled(torch.roll(x, (-self.shift, -self.shift), (1, 2)), bias)
        return torch.roll(x, (self.shift, self.shift), (1, 2))

    def _attend_rolled(self, x: Tensor, bias: Tensor) -> Tensor:
        """The map in four parts, as windows in the last row and in the last column have masks of their own.

        A mask for each window would be the largest tensor of all. Only a graph, which must not depend on the sizes, has one.
        """
        (h, w), (height, width) = self.window, x.shape[1:3]
        biases = bias + shifted_window_masks(self.window, (self.shift, self.shift), bias.device, bias.dtype)[:, None]
        if torch.compiler.is_compiling():
            kinds = shifted_window_kinds(height // h, width // w, x.device)
            return self._attend_map(x, biases[kinds].repeat(x.shape[0], 1, 1, 1))
        rows = []
        for part, inside, last_column in ((x[:, :-h], 0, 1), (x[:, -h:], 2, 3)):
            if part.shape[1]:
                pair = (part[:, :, :-w], biases[inside]), (part[:, :, -w:], biases[last_column])
                rows.append(torch.cat([self._attend_map(columns, bias) for columns, bias in pair if columns.shape[2]], 2))
        return torch.cat(rows, 1)

    def _attend_map(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: B, H, W, C -> the same; bias of the scores: heads, N, N, or for each window.

        The sizes are spelt out: `window_partition` and `window_reverse` leave one to be found by a division, which a graph
        with free sizes cannot solve.
        """
        (batch, height, width, dim), (h, w) = x.shape, self.window
        rows, columns = height // h, width // w
        windows = x.reshape(batch, rows, h, columns, w, dim).transpose(2, 3).reshape(batch * rows * columns, h * w, dim)
        pieces = may_go_in_pieces(windows) and len(windows) * h * w > PIECE
        windows = self._attend_pieces(windows, bias) if pieces else self.attend(windows, bias)
        return windows.view(batch, rows, columns, h, w, dim).transpose(2, 3).reshape(batch, height, width, dim)

    def _attend_pieces(self, windows: Tensor, bias: Tensor) -> Tensor:
        """As `attend`; queries, keys and values, the largest tensors of a model, are there for some windows at a time."""
        return torch.cat([self.attend(some, bias) for some in windows.split(max(PIECE // windows.shape[1], 1))])

    def attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """windows: B, N, C; bias: heads, N, N or B, heads, N, N -> B, N, C."""
        count, length, _ = windows.shape
        query, key, value = self.qkv(windows).view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = bias.to(query.dtype)
        if bias.requires_grad:  # no fused kernel has a gradient for the bias, and torch's other way looks for empty rows
            scores = query * self.scale @ key.transpose(-2, -1)
            out = scores.add_(bias).softmax(-1) @ value
        else:
            bias = bias.expand(count, -1, -1, -1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(count, length, -1))

    @torch.no_grad()
    def fold(self) -> None:
        """Widens the heads with zeros to a multiple of 8, which fused kernels and matrix products handle faster.

        Biases are not kept: gathering them anew takes under a hundredth of the time, keeping them more memory than all weights.
        """
        head_dim = self.proj.in_features // self.num_heads
        extra = -head_dim % 8
        qkv = F.pad(self.qkv.weight.unflatten(0, (-1, head_dim)), (0, 0, 0, extra)).flatten(0, 1)
        qkv_bias = None if self.qkv.bias is None else F.pad(self.qkv.bias.unflatten(0, (-1, head_dim)), (0, extra)).flatten()
        self.qkv = _linear(qkv, qkv_bias)
        self.proj = _linear(F.pad(self.proj.weight.unflatten(1, (-1, head_dim)), (0, extra)).flatten(1), self.proj.bias)


class SwinBlock(nn.Module):
    """Window attention and perceptron, each after a layer norm and with a residual."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float, qkv_bias: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shift, qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.folded = False

    def forward(self, x: Tensor, adjust: nn.Conv2d) -> Tensor:
        """B, H, W, C -> what the 1 x 1 convolution `adjust` makes of this block's output: B, H, W, C'.

        Nothing else reads that output. So the second layer of the perceptron and the convolution are one product, of the
        few channels that the convolution leaves.
        """
        x = x + self.drop_path(self.attn(self.norm1(x)))
        hidden = F.gelu(self.mlp.fc1(self.norm2(x)))
        found = F.linear(x, adjust.weight.flatten(1), adjust.bias)
        return found + self.drop_path(F.linear(hidden, *self._merged(adjust)))

    def _merged(self, adjust: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight and bias of `adjust` after the second layer of the perceptron."""
        second, weight = self.mlp.fc2, adjust.weight.flatten(1)
        if self.folded:
            return second.weight, second.bias
        return weight @ second.weight, F.linear(second.bias, weight)

    @torch.no_grad()
    def fold_into(self, adjust: nn.Conv2d) -> None:
        """Replaces the second layer of the perceptron by its product with `adjust`."""
        self.mlp.fc2 = _linear(*self._merged(adjust))
        self.folded = True


class ResidualDenseGroup(nn.Module):
    """Five Swin blocks, each on the input and all that those before it found; the last one's result is added to the input.

    B, H, W, C -> the same. Blocks 2 and 4 are shifted, blocks 4 and 5 have a perceptron of ratio 1, as published.

    Args:
        dim: channels C.
        growth: channels that each of the first four blocks adds.
        num_heads: of the first block; block k of width d has `num_heads - d % num_heads`.
        shifted: False where one window covers the largest map the model was made for.
        window_size, mlp_ratio, qkv_bias, drop_path: see `DRCT`.
    """

    def __init__(
        self,
        dim: int,
        growth: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        shifted: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        for k in range(1, NUM_BLOCKS + 1):
            width = dim + (k - 1) * growth
            heads = num_heads - width % num_heads
            if width % heads:
                raise InputError(f"block {k} is {width} wide, which its {heads} heads do not divide; change embed_dim, growth or num_heads")
            shift = window_size // 2 if shifted and k % 2 == 0 else 0
            block = SwinBlock(width, heads, window_size, shift, mlp_ratio if k < 4 else 1.0, qkv_bias, drop_path)
            self.add_module(f"swin{k}", block)
            self.add_module(f"adjust{k}", nn.Conv2d(width, growth if k < NUM_BLOCKS else dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for k, (block, adjust) in enumerate(self._pairs(), 1):
            found = block(dense, adjust)
            if k < NUM_BLOCKS:
                dense = torch.cat([dense, F.leaky_relu(found, 0.2, inplace=True)], -1)
        return torch.add(x, found, alpha=0.2)

    def fold(self) -> None:
        for block, adjust in self._pairs():
            block.fold_into(adjust)

    def _pairs(self) -> list[tuple[Any, Any]]:
        return [(getattr(self, f"swin{k}"), getattr(self, f"adjust{k}")) for k in range(1, NUM_BLOCKS + 1)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
