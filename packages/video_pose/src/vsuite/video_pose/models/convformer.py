"""ConvFormer: 3D poses from windows of 2D poses by convolutional attention (Diaz-Arias and Shin, 2023, arXiv 2304.02147).

RECONSTRUCTION: no code and no weights were published. The paper fixes the outline and the operator; where it is silent (softmax
weights of the filters, the output projection over channels, perceptrons twice as wide, norms) the choice is the one that gives the
published numbers of parameters. No published accuracy has been reproduced with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.nn import attend, drop_path_rates
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.video_pose.models.lifter import Block, WindowLifter, check_sizes, count_blocks, h36m

AXES = ("spatial", "temporal")


class FilterBank(nn.Module):
    """Convolutions of several widths over one sequence, averaged with learnt weights.

    An average of convolutions is one convolution, with the average of their kernels: that is what `kernel` gives.

    Args:
        channels: in and out.
        kernel_sizes: odd.
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.zeros(len(kernel_sizes)))
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, size, padding=size // 2) for size in kernel_sizes)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Weight (channels, channels, largest kernel size) and bias (channels) of the one convolution."""
        share, convs = self.eta.softmax(0), cast(Sequence[nn.Conv1d], self.convs)
        largest = max(conv.kernel_size[0] for conv in convs)
        widened = [_widen(conv.weight, largest) for conv in convs]
        biases = [cast(Tensor, conv.bias) for conv in convs]
        return torch.tensordot(share, torch.stack(widened), 1), share @ torch.stack(biases)


def _widen(weight: Tensor, size: int) -> Tensor:
    """Zeros on both sides of a kernel of odd width."""
    missing = size - weight.shape[2]
    return F.pad(weight, [missing // 2, missing // 2]) if missing else weight  # padding by nothing would copy


class DMHCSA(nn.Module):
    """Dynamic multi-headed convolutional self-attention: queries, keys and values are filtered, each by a bank of its own.

    Args:
        channels: of the convolutions: the width of the tokens ("spatial") or their number ("temporal").
        num_heads: divides the width of the tokens.
        kernel_sizes: widths of the filters of a bank, odd.
        axis: "spatial": tokens are joints, and the filters slide over them. "temporal": tokens are frames, which are the
            channels, and the filters slide over their features, so that each query is a mixture of all frames.
        dropout: on the filtered queries, keys and values.
    """

    def __init__(self, channels: int, num_heads: int, kernel_sizes: Sequence[int], axis: str, dropout: float = 0.0) -> None:
        super().__init__()
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
        if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise InputError(f"kernel_sizes must be one or more odd numbers; got {tuple(kernel_sizes)}")
        self.num_heads = num_heads
        self.axis = axis
        self.dropout = dropout
        self.q = FilterBank(channels, kernel_sizes)
        self.k = FilterBank(channels, kernel_sizes)
        self.v = FilterBank(channels, kernel_sizes)
        self.proj = nn.Conv1d(channels, channels, 1)
        self.qkv: nn.Conv1d | None = None  # the three banks in one, once folded

    def forward(self, x: Tensor) -> Tensor:
        """x: B, N, D -> the same shape; N joints of D = channels features, or N = channels frames of D features."""
        weight, bias = (self.qkv.weight, self.qkv.bias) if self.qkv is not None else self._kernel()
        if self.axis == "temporal":
            qkv = F.conv1d(x, weight, bias, padding=weight.shape[2] // 2)  # B, 3 N, D
            return self.proj(self._attend(qkv, 1))
        qkv = _convolve_tokens(x, weight, bias)  # B, N, 3 D
        return F.linear(self._attend(qkv, 2), self.proj.weight[:, :, 0], self.proj.bias)

    def _attend(self, qkv: Tensor, axis: int) -> Tensor:
        """Queries, keys and values one after the other on an axis -> B, N, D."""
        query, key, value = F.dropout(qkv, self.dropout, self.training).chunk(3, dim=axis)
        return attend(query, key, value, self.num_heads)

    def _kernel(self) -> tuple[Tensor, Tensor]:
        weights, biases = zip(*(bank.kernel() for bank in (self.q, self.k, self.v)), strict=True)
        return torch.cat(weights), torch.cat(biases)

    @torch.no_grad()
    def fold(self) -> None:
        """Replaces the three banks by one convolution."""
        if self.qkv is not None:
            return
        weight, bias = self._kernel()
        qkv = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], device=weight.device, dtype=weight.dtype)
        qkv.weight.copy_(weight)
        qkv.bias.copy_(bias)  # type: ignore[union-attr]
        self.qkv = qkv.requires_grad_(False)
        del self.q, self.k, self.v


def _convolve_tokens(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv1d` over the second axis: B, N, D -> B, N, D'. For short sequences one matrix product is faster, and needs no transposing."""
    size = weight.shape[2]
    padded = F.pad(x, (0, 0, size // 2, size // 2))
    near = torch.cat([padded[:, i : i + x.shape[1]] for i in range(size)], dim=2)  # B, N, size * D
    return F.linear(near, weight.transpose(1, 2).flatten(1), bias)


class ConvFormer(WindowLifter):
    """The whole network: B, T, J, C -> B, 1, J, 3, the pose of the window's middle frame. A reconstruction, see above.

    Args:
        num_frames: T, odd; the only one that the model takes, as its temporal filters have the frames as channels.
        num_joints: J.
        in_channels: C; 2 for screen coordinates.
        embed_dim: width d of a joint's features; a frame has J * d.
        spatial_depth, temporal_depth: blocks over joints, then over frames.
        num_heads: of the attention; divides d.
        kernel_sizes: widths of the filters of each bank, odd.
        mlp_ratio: hidden width of the perceptrons over that of the tokens.
        dropout: on queries, keys and values.
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
        spatial_depth: int = 2,
        temporal_depth: int = 2,
        num_heads: int = 8,
        kernel_sizes: Sequence[int] = (7, 7, 7),
        mlp_ratio: float = 2.0,
        dropout: float = 0.2,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__(num_joints, in_channels, num_frames)
        check_sizes(num_frames, num_joints, in_channels, embed_dim, num_heads, spatial_depth, temporal_depth)
        dim = num_joints * embed_dim
        self.spatial_pos = nn.Parameter(torch.zeros(1, num_joints, embed_dim))
        self.temporal_pos = nn.Parameter(torch.zeros(1, num_frames, dim))
        self.joint_embed = nn.Linear(in_channels, embed_dim)
        self.spatial_blocks = nn.ModuleList(
            Block(embed_dim, DMHCSA(embed_dim, num_heads, kernel_sizes, "spatial", dropout), mlp_ratio, rate)
            for rate in drop_path_rates(drop_path_rate, [spatial_depth])[0]
        )
        self.temporal_blocks = nn.ModuleList(
            Block(dim, DMHCSA(num_frames, num_heads, kernel_sizes, "temporal", dropout), mlp_ratio, rate)
            for rate in drop_path_rates(drop_path_rate, [temporal_depth])[0]
        )
        self.spatial_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.temporal_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 3 * num_joints)
        self.pool = nn.Conv1d(num_frames, 1, 1)

    def encode_frames(self, poses: Tensor) -> Tensor:
        """N, J, C -> N, J * d: what the spatial blocks make of each frame by itself."""
        x = self.joint_embed(poses) + self.spatial_pos
        for block in self.spatial_blocks:
            x = block(x)
        return self.spatial_norm(x).flatten(1)

    def regress(self, features: Tensor) -> Tensor:
        """B, T, J * d -> B, 1, J, 3."""
        x = features + self.temporal_pos
        for block in self.temporal_blocks:
            x = block(x)
        x = self.pool(self.head(self.temporal_norm(x)))  # B, 1, 3 J
        return x.unflatten(2, (self.num_joints, 3))


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    embed_dim, in_channels = state["joint_embed.weight"].shape
    first = "temporal_blocks.0."
    num_kernels = len(state[first + "attn.q.eta"])
    hidden, dim = state[first + "mlp.fc1.weight"].shape
    return {
        "num_frames": state["temporal_pos"].shape[1],
        "num_joints": state["spatial_pos"].shape[1],
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "spatial_depth": count_blocks(state, "spatial_blocks."),
        "temporal_depth": count_blocks(state, "temporal_blocks."),
        "kernel_sizes": tuple(state[f"{first}attn.q.convs.{i}.weight"].shape[2] for i in range(num_kernels)),
        "mlp_ratio": hidden / dim,
    }


LAYOUT = PublishedLayout(
    build=ConvFormer,
    infer=_infer,
    keys=("joint_embed.weight", "spatial_pos", "temporal_pos", "pool.weight"),
    assumed={"num_heads": 8},
)

PAPER = (
    "ConvFormer: Parameter Reduction in Transformer Models for 3D Human Pose Estimation by Leveraging Dynamic Multi-Headed"
    " Convolutional Attention, Diaz-Arias and Shin, The Visual Computer, 2024, arXiv 2304.02147; a reconstruction from the paper"
)


def _variant(about: str, *published: PublishedResult, **options: Any) -> Variant:
    size = (options["num_frames"], options.get("num_joints", 17), 2)
    return Variant(options, f"{about}; reconstruction", published, size)


_3DHP = "MPI-INF-3DHP"
_OF_LENGTH = {
    9: (
        h36m("CPN", "MPJPE", 49.4),
        PublishedResult(_3DHP, "PCK", 96.4, "%"),
        PublishedResult(_3DHP, "AUC", 69.8, "%"),
        PublishedResult(_3DHP, "MPJPE", 53.6, "mm"),
    ),
    27: (h36m("CPN", "MPJPE", 47.7),),
    81: (h36m("CPN", "MPJPE", 45.0),),
    143: (
        h36m("CPN", "MPJPE", 43.7),
        h36m("CPN", "P-MPJPE", 34.5),
        h36m("CPN", "MPJVE", 2.1),
        h36m("GT", "MPJPE", 29.9),
        h36m("GT", "MPJVE", 1.2),
    ),
    243: (h36m("CPN", "MPJPE", 43.2), h36m("CPN", "P-MPJPE", 34.2), h36m("GT", "MPJPE", 29.8)),
}
# Subjects 1 to 3 of each action.
_HUMANEVA = {
    27: {"Walk": (11.4, 9.0, 20.1), "Jog": (19.1, 11.8, 11.8), "Box": (20.8, 28.0, 26.1)},
    43: {"Walk": (10.7, 7.9, 16.0), "Jog": (16.7, 9.3, 10.0), "Box": (18.2, 25.0, 24.3)},
}
# The paper's ablations, all of windows of 9 frames: kernels, (width, spatial depth, temporal depth), heads -> MPJPE.
_KERNELS = {
    (3,): 51.7,
    (3, 3): 51.6,
    (3, 3, 3): 50.8,
    (5,): 50.5,
    (5, 5): 52.0,
    (5, 5, 5): 51.9,
    (7,): 50.5,
    (7, 7): 50.1,
    (9,): 51.5,
    (9, 9): 50.8,
    (9, 9, 9): 50.6,
    (3, 5, 7): 50.6,
    (5, 7, 9): 51.6,
}
_SIZES = {(16, 2, 2): 50.8, (16, 2, 4): 51.0, (16, 4, 2): 51.7, (32, 2, 4): 50.6, (32, 4, 2): 49.9, (64, 2, 2): 50.1}
_HEADS = {1: 52.3, 2: 51.0, 4: 49.6}

VARIANTS = {f"convformer_t{length}": _variant(f"windows of {length} frames", *r, num_frames=length) for length, r in _OF_LENGTH.items()}
# Trained on motion capture; see the card beside it.
SHIPPED = {"convformer_mocap": Path(__file__).parents[1] / "weights" / "convformer_mocap.safetensors"}
VARIANTS["convformer_t27"] = replace(VARIANTS["convformer_t27"], weights=SHIPPED)
VARIANTS |= {
    f"convformer_humaneva_t{length}": _variant(
        f"HumanEva-I's 15 joints, windows of {length} frames",
        *(PublishedResult(f"HumanEva-I {action} S{i}", "P-MPJPE", v, "mm") for action, row in rows.items() for i, v in enumerate(row, 1)),
        num_frames=length,
        num_joints=15,
    )
    for length, rows in _HUMANEVA.items()
}
VARIANTS |= {
    f"convformer_t9_k{'_'.join(map(str, sizes))}": _variant(
        f"windows of 9 frames, kernels {sizes}", h36m("CPN", "MPJPE", value), num_frames=9, kernel_sizes=sizes
    )
    for sizes, value in _KERNELS.items()
}
VARIANTS |= {
    f"convformer_t9_d{dim}_{spatial}_{temporal}": _variant(
        f"windows of 9 frames, width {dim}, {spatial} spatial and {temporal} temporal blocks",
        h36m("CPN", "MPJPE", value),
        num_frames=9,
        embed_dim=dim,
        spatial_depth=spatial,
        temporal_depth=temporal,
    )
    for (dim, spatial, temporal), value in _SIZES.items()
}
VARIANTS |= {
    f"convformer_t9_h{heads}": _variant(f"windows of 9 frames, {heads} heads", h36m("CPN", "MPJPE", value), num_frames=9, num_heads=heads)
    for heads, value in _HEADS.items()
}

register_variants(
    ConvFormer, VARIANTS, system="convformer", task="lifting", paper=PAPER, licence="none: no official code or weights", layout=LAYOUT
)
