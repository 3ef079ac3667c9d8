"""PoseFormer: 3D poses from windows of 2D poses by a spatial and a temporal transformer (Zheng et al., 2021, arXiv 2103.10455)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.nn import attend, drop_path_rates
from vsuite.core.registry import PublishedLayout, Variant, register_variants
from vsuite.video_pose.models.lifter import Block, WindowLifter, check_sizes, count_blocks, h36m


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values.

    Args:
        dim: width of the tokens.
        num_heads: divides it.
        qkv_bias: whether that projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, N, dim -> the same shape."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(query, key, value, self.num_heads))


class PoseFormer(WindowLifter):
    """The whole network: B, T, J, C -> B, 1, J, 3, the pose of the window's middle frame.

    Args:
        num_frames: T, odd; the only one that the model takes.
        num_joints: J.
        in_channels: C; 2 for screen coordinates.
        embed_dim: width d of a joint's features; a frame has J * d.
        depth: blocks over joints, and again as many over frames.
        num_heads: of the attention; divides d.
        mlp_ratio: hidden width of the perceptrons over that of the tokens.
        qkv_bias: see `Attention`.
        drop_path_rate: rises linearly from 0 over the blocks of each part.

    Raises:
        InputError: for sizes that do not fit, and for inputs of another shape.
    """

    def __init__(
        self,
        *,
        num_frames: int = 9,
        num_joints: int = 17,
        in_channels: int = 2,
        embed_dim: int = 32,
        depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(num_joints, in_channels, num_frames)
        check_sizes(num_frames, num_joints, in_channels, embed_dim, num_heads, depth)
        dim = num_joints * embed_dim
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, num_joints, embed_dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, num_frames, dim))
        self.Spatial_patch_to_embedding = nn.Linear(in_channels, embed_dim)
        self.Spatial_blocks = nn.ModuleList(Block(embed_dim, Attention(embed_dim, num_heads, qkv_bias), mlp_ratio, rate) for rate in rates)
        self.blocks = nn.ModuleList(Block(dim, Attention(dim, num_heads, qkv_bias), mlp_ratio, rate) for rate in rates)
        self.Spatial_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.Temporal_norm = nn.LayerNorm(dim, eps=1e-6)
        self.weighted_mean = nn.Conv1d(num_frames, 1, 1)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * num_joints))

    def encode_frames(self, poses: Tensor) -> Tensor:
        """N, J, C -> N, J * d: what the spatial blocks make of each frame by itself."""
        x = self.Spatial_patch_to_embedding(poses) + self.Spatial_pos_embed
        for block in self.Spatial_blocks:
            x = block(x)
        return self.Spatial_norm(x).flatten(1)

    def regress(self, features: Tensor) -> Tensor:
        """B, T, J * d -> B, 1, J, 3."""
        x = features + self.Temporal_pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.head(self.weighted_mean(self.Temporal_norm(x)))  # B, 1, 3 J: frames first, as the norm between does not commute
        return x.unflatten(2, (self.num_joints, 3))


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    embed_dim, in_channels = state["Spatial_patch_to_embedding.weight"].shape
    hidden, dim = state["blocks.0.mlp.fc1.weight"].shape
    return {
        "num_frames": state["Temporal_pos_embed"].shape[1],
        "num_joints": state["Spatial_pos_embed"].shape[1],
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": count_blocks(state, "blocks."),
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }


LAYOUT = PublishedLayout(
    build=PoseFormer,
    infer=_infer,
    keys=("Spatial_patch_to_embedding.weight", "Temporal_pos_embed", "weighted_mean.weight"),
    assumed={"num_heads": 8},
)

_PUBLISHED = {
    9: (),
    27: (h36m("CPN", "MPJPE", 47.0),),
    81: (h36m("CPN", "MPJPE", 44.3), h36m("CPN", "P-MPJPE", 34.6), h36m("GT", "MPJPE", 31.3)),
}

register_variants(
    PoseFormer,
    {
        f"poseformer_t{length}": Variant({"num_frames": length}, f"windows of {length} frames", results, (length, 17, 2))
        for length, results in _PUBLISHED.items()
    },
    system="poseformer",
    task="lifting",
    paper="3D Human Pose Estimation with Spatial and Temporal Transformers, Zheng et al., ICCV 2021, arXiv 2103.10455",
    licence="no licence file (official code and weights)",
    layout=LAYOUT,
)
