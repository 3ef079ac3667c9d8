"""The plain form of the cross-modal transformer: grid sampling, scores written out, windows one by one, every block in full.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of its
operators: temporal stride is slicing and writing back, and nothing is left out for being read by no one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.video_pose.models.deformable3d.backbone import MixedConvolutions
from vsuite.video_pose.models.deformable3d.operators import DeformableAttention3d, MultiScaleDeformableAttention3d, TokenSearch3d
from vsuite.video_pose.models.deformable3d.transformer import CrossModalTransformer, JointStrideAttention
from vsuite.video_pose.models.deformable3d.variants import deformable3d, deformable3d_pose


def eight_neighbours(volume: Tensor, points: Tensor) -> Tensor:
    """The definition, voxel by voxel: volume C, T, H, W; points N, 3 -> C, N."""
    total = volume.new_zeros(volume.shape[0], len(points))
    for t in range(volume.shape[1]):
        for h in range(volume.shape[2]):
            for w in range(volume.shape[3]):
                distance = (points - points.new_tensor([t, h, w])).abs()
                total = total + (1 - distance).clamp_min(0).prod(-1) * volume[:, t, h, w, None]
    return total


def grid_sample(volume: Tensor, points: Tensor) -> Tensor:
    """volume: B, C, T, H, W; points: B, N, 3 (t, h, w in voxels) -> B, C, N; align_corners is false so that sides of 1 work."""
    size = points.new_tensor(volume.shape[2:])
    grid = ((2 * points + 1) / size - 1).flip(-1)
    return F.grid_sample(volume, grid[:, :, None, None], padding_mode="zeros", align_corners=False)[..., 0, 0]


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, hidden: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _offsets(self: TokenSearch3d, query: Tensor) -> Tensor:
    batch, frames, height, width, dim = query.shape
    volume = query.permute(0, 4, 1, 2, 3).reshape(batch * self.groups, dim // self.groups, frames, height, width)
    hidden = self.norm(self.dw(volume).movedim(1, -1)).movedim(-1, 1)
    reach = torch.tensor(self.stride, dtype=query.dtype, device=query.device) * self.offset_factor
    return torch.tanh(self.pw(F.gelu(hidden))) * reach[:, None, None, None]


def _sample(self: TokenSearch3d, z: Tensor, offsets: Tensor) -> Tensor:
    batch, frames, height, width, dim = z.shape
    volume = z.permute(0, 4, 1, 2, 3).reshape(batch * self.groups, dim // self.groups, frames, height, width)
    axes = [
        (torch.arange(n, dtype=offsets.dtype, device=z.device) + 0.5) * r - 0.5 for n, r in zip(offsets.shape[2:], self.stride, strict=True)
    ]
    reference = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    points = (reference + offsets).flatten(2).transpose(1, 2)
    return grid_sample(volume, points).reshape(batch, dim, -1).transpose(1, 2)


def _deformable(self: DeformableAttention3d, z: Tensor, modal: Tensor) -> tuple[Tensor, Tensor]:
    tokens = z.movedim(1, -1)
    found = self.search.sample(tokens, self.search.offsets(self.search.q(tokens)))
    asking, answering = torch.cat([modal, tokens.flatten(1, 3)], 1), torch.cat([modal, found], 1)
    out = self.proj(_attend(self.search.q(asking), self.k(answering), self.v(answering), self.num_heads))
    return out[:, : modal.shape[1]], out[:, modal.shape[1] :].transpose(1, 2).reshape(z.shape)


def _joint_stride(self: JointStrideAttention, modal: Tensor, pose: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    batch, frames, people, joints, dim = pose.shape
    total, times = torch.zeros_like(pose), pose.new_zeros(joints)
    reads, seen = [], []
    start = 0
    while True:
        end = min(start + self.window, joints)
        for frame in range(frames):
            tokens = pose[:, frame, :, start:end].flatten(1, 2)
            shown = visible[:, frame, :, start:end].flatten(1)
            asking, answering = torch.cat([modal[:, 1:], tokens], 1), torch.cat([modal, tokens], 1)
            hidden = torch.cat([torch.zeros_like(shown[:, :1]).expand(-1, 2), ~shown], 1)
            out = _attend(self.q(asking), self.k(answering), self.v(answering), self.num_heads, hidden)
            reads.append(out[:, 0])
            seen.append(shown.any(1))
            total[:, frame, :, start:end] += out[:, 1:].reshape(batch, people, end - start, dim)
        times[start:end] += 1
        if end == joints:
            break
        start += self.step
    read, count = torch.stack(reads, 1), torch.stack(seen, 1)
    count = torch.where(count.any(1, keepdim=True), count, True)
    mean = (read * count[..., None]).sum(1, keepdim=True) / count.sum(1)[:, None, None]
    return self.proj(mean), self.proj(total / times[:, None])


def _features(self: CrossModalTransformer, z: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
    modal, hands = self._deal(z, pose, visible)
    step = len(hands)
    z, pose = z.permute(0, 2, 3, 4, 1).clone(), pose.clone()
    for hand, (volume, joints, _) in enumerate(hands):
        z[:, hand::step], pose[:, hand::step] = volume, joints
    for number, block in enumerate(self.blocks):
        used = slice(number % step, None, step)
        modal, volume, joints = block(modal, z[:, used], pose[:, used], visible[:, used])
        z, pose = z.clone(), pose.clone()
        z[:, used], pose[:, used] = volume, joints
    return self.norm(modal.flatten(1))


def _multi_scale(
    self: MultiScaleDeformableAttention3d,
    query: Tensor,
    key: Tensor,
    query_pos: Tensor | None = None,
    spatial_shapes: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    shapes = [tuple(key.shape[2:])] if key.ndim == 5 else [tuple(shape) for shape in spatial_shapes or []]
    key = key.flatten(2).transpose(1, 2) if key.ndim == 5 else key
    batch, dim, *grid = query.shape
    heads, levels, points = self.num_heads, self.num_levels, self.num_points
    tokens = (query if query_pos is None else query + query_pos).flatten(2).transpose(1, 2)
    length = tokens.shape[1]
    offsets = self.sampling_offsets(tokens).view(batch, length, heads, levels, points, 3)
    weights = self.attention_weights(tokens).view(batch, length, heads, levels * points).softmax(-1)
    weights = weights.view(batch, length, heads, levels, points)
    axes = [(torch.arange(n, dtype=query.dtype, device=query.device) + 0.5) / n for n in grid]
    centre = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2).flip(-1)[:, None, None]
    values = self.key_proj(key).view(batch, -1, heads, dim // heads).permute(0, 2, 3, 1)
    total, start = query.new_zeros(batch * heads, dim // heads, length), 0
    for level, (depth, height, width) in enumerate(shapes):
        volume = values[..., start : start + depth * height * width].reshape(batch * heads, dim // heads, depth, height, width)
        location = centre + offsets[:, :, :, level] / query.new_tensor([width, height, depth])
        where = (2 * location - 1).transpose(1, 2).flatten(0, 1)[:, :, :, None]
        sampled = F.grid_sample(volume, where, padding_mode="zeros", align_corners=False)[..., 0]
        total = total + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        start += depth * height * width
    return self.output_proj(total.view(batch, dim, length).transpose(1, 2)).transpose(1, 2).reshape(batch, dim, *grid)


def _convolve(self: MixedConvolutions, x: Tensor) -> tuple[Tensor, Tensor]:
    x = self.stem(x.contiguous())
    for number in range(1, len(self.widths)):
        x = getattr(self, f"layer{number}")(x)
    return x, getattr(self, f"layer{len(self.widths)}")(x)


PLAIN: dict[type[nn.Module], dict[str, Any]] = {
    TokenSearch3d: {"offsets": _offsets, "sample": _sample},
    DeformableAttention3d: {"forward": _deformable},
    MultiScaleDeformableAttention3d: {"forward": _multi_scale},
    JointStrideAttention: {"forward": _joint_stride},
    CrossModalTransformer: {"forward_features": _features},
    MixedConvolutions: {"forward": _convolve},
}


def plain(model: nn.Module) -> nn.Module:
    """The same model with the plain operators in place of the fast ones."""
    for module in model.modules():
        for name, function in PLAIN.get(type(module), {}).items():
            setattr(module, name, function.__get__(module))
    return model


def build(**options: Any) -> nn.Module:
    """What the builder with these options builds (of poses alone if there is a size of heatmaps), in the plain form."""
    return plain((deformable3d_pose if "heatmap_size" in options else deformable3d)(**options))
