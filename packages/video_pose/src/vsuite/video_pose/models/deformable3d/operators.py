"""Sampling between voxels, and the two attentions that choose for themselves where in a volume to look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import attend, memoise


def trilinear_neighbours(points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The eight voxels around each point and what each counts; those outside the volume count nothing.

    Args:
        points: ..., 3; t, h, w in voxels, the middle of the first voxel being 0.
        size: T, H, W.

    Returns:
        Numbers of the voxels, in the order of the flattened volume, and weights: both ..., 8.
    """
    strides = (size[1] * size[2], size[2], 1)
    axes = [_neighbours(x, length, stride) for x, length, stride in zip(points.unbind(-1), size, strides, strict=True)]
    (it, wt), (ih, wh), (iw, ww) = axes
    index = (it[..., :, None] + ih[..., None, :])[..., None] + iw[..., None, None, :]  # ..., 2, 2, 2
    weight = (wt[..., :, None] * wh[..., None, :])[..., None] * ww[..., None, None, :]
    return index.flatten(-3), weight.flatten(-3)


def _neighbours(x: Tensor, length: int, stride: int) -> tuple[Tensor, Tensor]:
    low = x.floor()
    share = x - low
    place = torch.stack([low, low + 1], dim=-1)
    weight = torch.stack([1 - share, share], dim=-1) * ((place >= 0) & (place < length))
    return place.long().clamp(0, length - 1) * stride, weight  # clamped as integers, so that NaN points at a voxel too


def weighted_rows(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums of rows, never holding the rows themselves: that is what makes it faster than a gather or grid sampling.

    Args:
        values: B, S, G, C.
        index: B, P, G, K into S; weight: of the same shape.

    Returns:
        B, P, G, C: for each point and group the weighted sum of K rows of that group.
    """
    batch, length, groups, channels = values.shape
    row = torch.arange(batch, device=index.device)[:, None, None, None] * length + index
    row = row * groups + torch.arange(groups, device=index.device)[:, None]
    table, weight = values.reshape(-1, channels).to(weight.dtype), weight.flatten(0, 2)
    if torch.compiler.is_exporting():  # ONNX has no such operator
        out = (weight[:, None] @ table[row.flatten(0, 2)])[:, 0]
    else:
        out = F.embedding_bag(row.flatten(0, 2), table, per_sample_weights=weight, mode="sum")
    return out.view(*index.shape[:-1], channels).to(values.dtype)


def trilinear_sample(volume: Tensor, points: Tensor) -> Tensor:
    """The volume between its voxels, zero outside: sum over voxels n of Z[n] times the product over the axes of max(0, 1 - |p - n|).

    Equal to grid sampling with zero padding; also along axes of a single voxel, where normalised coordinates fail.

    Args:
        volume: B, C, T, H, W.
        points: B, N, 3; t, h, w in voxels.

    Returns:
        B, C, N.
    """
    if volume.ndim != 5 or points.ndim != 3 or points.shape[-1] != 3 or len(points) != len(volume):
        raise InputError(f"trilinear_sample takes B, C, T, H, W and B, N, 3; got {tuple(volume.shape)} and {tuple(points.shape)}")
    index, weight = trilinear_neighbours(points, volume.shape[2:])
    values = volume.flatten(2).transpose(1, 2)[:, :, None]  # B, S, 1, C
    return weighted_rows(values, index[:, :, None], weight[:, :, None])[:, :, 0].transpose(1, 2)


def in_full_precision(x: Tensor) -> Tensor:
    """Coordinates are never in half precision: at 100 voxels its steps are half a voxel wide."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class TokenSearch3d(nn.Module):
    """3D token search: a strided grid over the volume, each point of which moves to where its query sends it.

    RECONSTRUCTION: the paper states the idea; the details are those of the Deformable Attention Transformer, in 3D.

    Args:
        dim: channels C of the volume.
        groups: of channels that move apart from each other; divides C.
        kernel: odd sizes (t, h, w) of the convolution that looks at the queries.
        stride: (t, h, w) of the grid.
        offset_factor: largest offset over the stride.
    """

    def __init__(
        self,
        dim: int,
        groups: int = 2,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (2, 2, 2),
        offset_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise InputError(f"offset_groups must divide the {dim} channels; got {groups}")
        if len(kernel) != 3 or len(stride) != 3 or min(*kernel, *stride) < 1 or not all(size % 2 for size in kernel):
            raise InputError(f"kernel must be three odd numbers and stride three numbers from 1; got {kernel} and {stride}")
        if not math.isfinite(offset_factor):
            raise InputError(f"offset_factor must be finite; got {offset_factor}")
        width = dim // groups
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.groups = groups
        self.stride = tuple(stride)
        self.offset_factor = offset_factor
        self.q = nn.Linear(dim, dim)
        self.dw = nn.Conv3d(width, width, kernel, stride, padding, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pw = nn.Conv3d(width, 3, 1, bias=False)

    def offsets(self, query: Tensor) -> Tensor:
        """query: B, T, H, W, C, projected -> B * groups, 3, T', H', W': where each point moves to, (t, h, w) in voxels."""
        batch, frames, height, width, _ = query.shape
        grouped = query.view(batch, frames, height, width, self.groups, -1).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
        hidden = F.gelu(self.norm(self.dw(grouped).movedim(1, -1)))  # B * groups, T', H', W', C / groups
        moved = torch.tanh(in_full_precision(F.linear(hidden, self.pw.weight.flatten(1))))
        reach = moved.new_tensor(self.stride) * self.offset_factor
        return (moved * reach).movedim(-1, 1)

    def sample(self, z: Tensor, offsets: Tensor) -> Tensor:
        """z: B, T, H, W, C; offsets as above -> the deformed tokens: B, T' H' W', C."""
        batch, *size, dim = z.shape
        reference = reference_points(tuple(offsets.shape[2:]), self.stride, offsets.device)
        points = offsets.flatten(2).transpose(1, 2) + reference  # B * groups, N', 3
        points = points.unflatten(0, (batch, self.groups)).transpose(1, 2)  # B, N', groups, 3
        index, weight = trilinear_neighbours(points, size)
        return weighted_rows(z.reshape(batch, -1, self.groups, dim // self.groups), index, weight).flatten(2)


@memoise
def reference_points(grid: tuple[int, ...], stride: tuple[int, ...], device: torch.device) -> Tensor:
    """Middles of the cells of a strided grid, in voxels: T' H' W', 3. The last may lie past the volume's edge."""
    axes = [(torch.arange(length, device=device) + 0.5) * step - 0.5 for length, step in zip(grid, stride, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


class DeformableAttention3d(nn.Module):
    """3D deformable attention: all tokens of a volume and the modal tokens ask; modal tokens and searched tokens answer.

    RECONSTRUCTION, see `TokenSearch3d`; residual and norm are outside.

    Args:
        dim: channels C.
        num_heads: divides C.
        offset_groups, kernel, stride, offset_factor: see `TokenSearch3d`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        offset_groups: int = 2,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (2, 2, 2),
        offset_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads must divide the {dim} channels; got {num_heads}")
        self.num_heads = num_heads
        self.search = TokenSearch3d(dim, offset_groups, kernel, stride, offset_factor)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, z: Tensor, modal: Tensor) -> tuple[Tensor, Tensor]:
        """z: B, C, T, H, W (best channels-last in memory); modal: B, n, C -> both anew: modal, then z."""
        tokens = z.movedim(1, -1)
        query = self.search.q(tokens)
        asking = torch.cat([self.search.q(modal), query.flatten(1, 3)], dim=1)
        out = self._attend(asking, query, tokens, modal)
        read, rest = out.split([modal.shape[1], out.shape[1] - modal.shape[1]], dim=1)
        return read, rest.view(tokens.shape).movedim(-1, 1)

    def read(self, z: Tensor, modal: Tensor) -> Tensor:
        """What `forward` returns for the modal tokens, without the work for the others: B, n, C."""
        tokens = z.movedim(1, -1)
        return self._attend(self.search.q(modal), self.search.q(tokens), tokens, modal)

    def _attend(self, asking: Tensor, query: Tensor, tokens: Tensor, modal: Tensor) -> Tensor:
        found = self.search.sample(tokens, self.search.offsets(query))
        answering = torch.cat([modal, found], dim=1)
        return self.proj(attend(asking, self.k(answering), self.v(answering), self.num_heads))


class MultiScaleDeformableAttention3d(nn.Module):
    """Multi-scale deformable attention in 3D: each cell of a query volume reads a few points of each level, and weighs them.

    The operator of a third party's repository, exactly; not the paper's, which is `DeformableAttention3d`.

    Args:
        embed_dim: channels C.
        num_heads: divides C.
        num_points: that each head reads in each level.
        num_levels: volumes in the key.
    """

    def __init__(self, embed_dim: int, num_heads: int = 8, num_points: int = 4, num_levels: int = 1) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"num_heads must divide the {embed_dim} channels; got {num_heads}")
        if num_points < 1 or num_levels < 1:
            raise InputError(f"num_points and num_levels must be 1 or more; got {num_points} and {num_levels}")
        self.num_heads = num_heads
        self.num_points = num_points
        self.num_levels = num_levels
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, 3 * samples)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.key_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self._initialise()

    def _initialise(self) -> None:
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.key_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(initial_offsets(self.num_heads, self.num_levels, self.num_points).flatten())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_pos: Tensor | None = None,
        spatial_shapes: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """What the queries read.

        Args:
            query: B, C, D, H, W.
            key: B, C, D', H', W', or levels flattened and put one after the other: B, S, C.
            query_pos: added to the query.
            spatial_shapes: [D, H, W] of each level of a flattened key.

        Returns:
            B, C, D, H, W.
        """
        if query.ndim != 5:
            raise InputError(f"query must be B, C, D, H, W; got {tuple(query.shape)}")
        shapes = [list(key.shape[2:])] if key.ndim == 5 else [list(shape) for shape in spatial_shapes or []]
        key = key.flatten(2).transpose(1, 2) if key.ndim == 5 else key
        if len(shapes) != self.num_levels or key.ndim != 3 or sum(map(math.prod, shapes)) != key.shape[1]:
            raise InputError(f"the key must hold {self.num_levels} levels of the sizes given; got {tuple(key.shape)} and sizes {shapes}")
        batch, dim, *grid = query.shape
        tokens = (query if query_pos is None else query + query_pos).flatten(2).transpose(1, 2)  # B, N, C
        samples = (self.num_heads, self.num_levels, self.num_points)
        offsets = (
            in_full_precision(self.sampling_offsets(tokens)).unflatten(-1, (*samples, 3)).flip(-1)
        )  # B, N, heads, levels, points, (z, y, x)
        shares = self.attention_weights(tokens).unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, samples[1:])
        centres = cell_centres(tuple(grid), query.device, offsets.dtype)[:, None, None]  # N, 1, 1, 3 in [0, 1]
        index, weight, start = [], [], 0
        for level, shape in enumerate(shapes):
            # location * size - 0.5 voxels, where location = centre + offset / size
            points = centres * offsets.new_tensor(shape) + offsets[:, :, :, level] - 0.5  # B, N, heads, points, 3
            voxels, parts = trilinear_neighbours(points, shape)
            index.append(voxels + start)
            weight.append(parts * shares[:, :, :, level, :, None])
            start += math.prod(shape)
        values = self.key_proj(key).unflatten(-1, (self.num_heads, -1))  # B, S, heads, C / heads
        out = weighted_rows(values, torch.cat(index, -2).flatten(3), torch.cat(weight, -2).flatten(3)).flatten(2)
        return self.output_proj(out).transpose(1, 2).reshape(batch, dim, *grid)


def initial_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Where the points start: heads, levels, points, (x, y, z) in voxels; the first half of the heads looks up, the second down."""
    half = max(num_heads // 2, 1)
    angle = torch.arange(num_heads) % half * (2 * math.pi / half)
    side = torch.where(torch.arange(num_heads) < half, 1.0, -1.0)
    direction = torch.stack([angle.cos(), angle.sin(), side], dim=-1) / math.sqrt(2)
    return direction[:, None, None] * torch.arange(1, num_points + 1)[None, None, :, None].expand(num_heads, num_levels, -1, 1)


@memoise
def cell_centres(grid: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Middles of the cells of a volume in units of its sides: D H W, 3 in [0, 1]."""
    axes = [(torch.arange(length, device=device, dtype=dtype) + 0.5) / length for length in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
