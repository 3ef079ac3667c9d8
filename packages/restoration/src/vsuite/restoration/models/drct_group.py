"""The residual dense group of DRCT: five Swin blocks of growing width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import (
    DropPath,
    Mlp,
    gather_position_bias,
    may_go_in_pieces,
    pack_linear,
    shifted_window_kinds,
    shifted_window_masks,
)

Kinds = tuple[int, ...] | Tensor | None
Layer = Callable[[Tensor], Tensor]
WeightAndBias = tuple[Tensor, Tensor | None]
NUM_BLOCKS = 5  # of every group, whatever `depths` says
PIECE = 1536  # tokens that go through a block at a time; fewer slow two threads down
FOLDED_PIECE = 4096  # a few hundredths faster, for the memory that folding takes anyhow


def cut_windows(x: Tensor, side: int) -> Tensor:
    """B, H, W, C -> B, H / side, W / side, side * side, C.

    The sizes are spelt out: `window_partition` and `window_reverse` leave one to be found by a division, which a graph
    with free sizes cannot solve.
    """
    batch, height, width, dim = x.shape
    rows, columns = height // side, width // side
    return x.reshape(batch, rows, side, columns, side, dim).transpose(2, 3).reshape(batch, rows, columns, side * side, dim)


def join_windows(windows: Tensor, side: int) -> Tensor:
    """The inverse of `cut_windows`."""
    batch, rows, columns, _, dim = windows.shape
    return windows.view(batch, rows, columns, side, side, dim).transpose(2, 3).reshape(batch, rows * side, columns * side, dim)


class ShiftedWindows(NamedTuple):
    """Which tokens the windows of a shifted map are of.

    Attributes:
        there: windows, N: the place of each token among those of the windows as they are.
        back: B * H * W: the inverse.
        kinds: how many windows need the first of `shifted_window_masks`, how many the second, ..., which is their order: a mask for
            each window would be the largest tensor of all. In a graph, which must not depend on sizes, the mask of each.
    """

    there: Tensor
    back: Tensor
    kinds: tuple[int, ...] | Tensor


def shifted_windows(x: Tensor, side: int, shift: int) -> ShiftedWindows:
    """x: B, rows, columns, N, C. Not memoised: it takes a hundredth of a block's time, and the memory of four channels."""
    batch, rows, columns, length, _ = x.shape
    places = torch.arange(batch * rows * columns * length, device=x.device)
    shaped = places.view(batch, rows, columns, length, 1)
    there, back = (cut_windows(join_windows(shaped, side).roll((s, s), (1, 2)), side).flatten(0, 2)[..., 0] for s in (-shift, shift))
    kinds = shifted_window_kinds(rows, columns, x.device).repeat(batch)
    if torch.compiler.is_compiling():
        return ShiftedWindows(there, back.flatten(), kinds)
    there = there[kinds.argsort()]
    counts = (rows - 1) * (columns - 1), rows - 1, columns - 1, 1
    return ShiftedWindows(there, torch.empty_like(places).scatter_(0, there.flatten(), places), tuple(batch * n for n in counts))


def _among(kinds: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
    """How many windows of each kind are among those from `start` to `stop`, if one kind comes after the other."""
    edges = itertools.accumulate(kinds, initial=0)
    return tuple(max(0, min(stop, last) - max(start, first)) for first, last in itertools.pairwise(edges))


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
        self.window_size = window_size
        self.shift = shift
        self.piece = PIECE
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """B, rows, columns, N, C: the windows of a map -> the same."""
        windows, biases = x.flatten(0, 2), self.biases()
        if not self.shift:
            return self.attend(windows, biases).view_as(x)
        there, back, kinds = shifted_windows(x, self.window_size, self.shift)
        shifted = windows.flatten(0, 1).index_select(0, there.flatten()).view_as(windows)
        return self.attend(shifted, biases, kinds).flatten(0, 1).index_select(0, back).view_as(x)

    def in_pieces(self, parts: list[Tensor], work: Callable[[Tensor, Kinds], Tensor]) -> Tensor:
        """What `work` makes of some windows at a time, as they are to be attended: B, rows, columns, N, C''.

        Args:
            parts: B, rows, columns, N, C' each; side by side they are the channels of the map.
            work: windows, N, C and their kinds -> windows, N, C''.
        """
        most = max(self.piece // self.window_size**2, 1)
        if not self.shift:
            windows = zip(*(part.flatten(0, 2).split(most) for part in parts), strict=True)
            found = torch.cat([work(torch.cat(piece, -1), None) for piece in windows])
            return found.view(*parts[0].shape[:4], -1)
        there, back, kinds = shifted_windows(parts[0], self.window_size, self.shift)
        assert isinstance(kinds, tuple)
        tokens = [part.flatten(0, 3) for part in parts]
        pieces = []
        for first in range(0, len(there), most):
            places = there[first : first + most]
            x = torch.cat([part.index_select(0, places.flatten()) for part in tokens], -1).unflatten(0, places.shape)
            pieces.append(work(x, _among(kinds, first, first + len(places))))
        return torch.cat(pieces).flatten(0, 1).index_select(0, back).view(*parts[0].shape[:4], -1)

    def biases(self) -> Tensor:
        """1, heads, N, N, or one for each of the four kinds of shifted windows."""
        window = (self.window_size, self.window_size)
        bias = gather_position_bias(self.relative_position_bias_table, window)[None]
        if not self.shift:
            return bias
        return bias + shifted_window_masks(window, (self.shift, self.shift), bias.device, bias.dtype)[:, None]

    def attend(self, windows: Tensor, biases: Tensor, kinds: Kinds = None) -> Tensor:
        """Windows B, N, C -> the same.

        Args:
            biases: kinds, heads, N, N.
            kinds: of how many windows each takes its bias, one kind after the other, or the kind of each window; None: all of the first.
        """
        count, length, _ = windows.shape
        qkv = self.qkv(windows).view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        biases = biases.to(qkv.dtype)
        if isinstance(kinds, tuple):
            pairs = zip(qkv.split(kinds, 1), biases, strict=True)
            found = torch.cat([self._attend(some, bias) for some, bias in pairs if some.shape[1]])
        else:
            found = self._attend(qkv, biases[0] if kinds is None else biases[kinds])
        return self.proj(found)

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """3, B, heads, N, D -> B, N, heads * D."""
        query, key, value = qkv
        count, _, length, _ = query.shape
        if bias.requires_grad:  # no fused kernel has a gradient for the bias, and torch's other way looks for empty rows
            scores = query * self.scale @ key.transpose(-2, -1)
            out = scores.add_(bias).softmax(-1) @ value
        else:
            bias = bias.expand(count, -1, -1, -1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return out.transpose(1, 2).reshape(count, length, -1)

    @torch.no_grad()
    def fold(self) -> None:
        """Widens the heads with zeros to a multiple of 8, which fused kernels and matrix products handle faster.

        Biases are not kept: gathering them anew takes under a hundredth of the time, keeping them more memory than all weights.
        """
        self.piece = FOLDED_PIECE
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
        self.shortcut: nn.Linear | None = None

    def forward(self, parts: list[Tensor], adjust: nn.Conv2d) -> Tensor:
        """B, rows, columns, N, C' each -> what the 1 x 1 convolution `adjust` makes of this block's output: B, rows, columns, N, C''.

        At inference on a CPU some windows go through the whole block at a time, as they fit its cache.
        """
        shortcut, output = self._output_layers(adjust)
        if may_go_in_pieces(parts[0]) and not self.training:
            biases = self.attn.biases()

            def whole_block(x: Tensor, kinds: Kinds) -> Tensor:
                return self._after_attention(self.attn.attend(self.norm1(x), biases, kinds).add_(x), shortcut, output)

            return self.attn.in_pieces(parts, whole_block)
        x = torch.cat(parts, -1)
        return self._after_attention(x + self.drop_path(self.attn(self.norm1(x))), shortcut, output)

    def _after_attention(self, x: Tensor, shortcut: Layer, output: Layer) -> Tensor:
        hidden = F.gelu(self.mlp.fc1(self.norm2(x)))
        return shortcut(x).add_(self.drop_path(output(hidden)))

    def _output_layers(self, adjust: nn.Conv2d) -> tuple[Layer, Layer]:
        """What makes the output of `adjust` of the tokens before the perceptron, and of its hidden ones."""
        if self.shortcut is not None:
            return self.shortcut, self.mlp.fc2
        shortcut, hidden = self._merged(adjust)
        return lambda x: F.linear(x, *shortcut), lambda x: F.linear(x, *hidden)

    def _merged(self, adjust: nn.Conv2d) -> tuple[WeightAndBias, WeightAndBias]:
        """`adjust` for the residual, and for the hidden tokens: with the second layer of the perceptron, as nothing else reads that."""
        weight, second = adjust.weight.flatten(1), self.mlp.fc2
        return (weight, adjust.bias), (weight @ second.weight, F.linear(second.bias, weight))

    @torch.no_grad()
    def fold_into(self, adjust: nn.Conv2d) -> None:
        """Replaces the second layer of the perceptron by its product with `adjust`."""
        if self.shortcut is None:
            shortcut, hidden = self._merged(adjust)
            self.shortcut, self.mlp.fc2 = _linear(*shortcut), _linear(*hidden)
            pack_linear(self.mlp.fc1)


class ResidualDenseGroup(nn.Module):
    """Five Swin blocks, each on the input and all that those before it found; the last one's result is added to the input.

    B, rows, columns, N, C, as `cut_windows` makes them -> the same. Blocks 2 and 4 are shifted, blocks 4 and 5 have a perceptron
    of ratio 1, as published.

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
        *first, (last, adjust_last) = self._pairs()
        parts = [x]
        for block, adjust in first:
            parts.append(F.leaky_relu(block(parts, adjust), 0.2, inplace=True))
        return torch.add(x, last(parts, adjust_last), alpha=0.2)

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
    pack_linear(layer)  # small as it is: pieces of one size give it always as many rows
    return layer
