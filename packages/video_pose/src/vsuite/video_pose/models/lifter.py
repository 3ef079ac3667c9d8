"""What the models that lift 2D poses to 3D have in common: whole videos, mirrored copies, checks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import DropPath, Mlp
from vsuite.core.registry import PublishedResult
from vsuite.video_pose.skeletons import Skeleton

FRAMES_AT_ONCE = 4096  # bounds the memory that the features of long videos take


class Lifter(nn.Module):
    """A model that lifts windows of 2D poses, B, T, J, C, to 3D poses, B, T', J', 3.

    Args:
        num_joints: J.
        in_channels: C, 2 for screen coordinates.
        num_frames: T of a window; for models that take more frames too, the fewest.
    """

    def __init__(self, num_joints: int, in_channels: int, num_frames: int) -> None:
        super().__init__()
        self.num_joints = num_joints
        self.in_channels = in_channels
        self.num_frames = num_frames

    @torch.no_grad()
    def lift(self, poses_2d: Tensor, *, flip: Skeleton | tuple[Skeleton, Skeleton] | None = None, batch_size: int = 64) -> Tensor:
        """A whole video at once: one 3D pose a frame. The first and last frame are repeated beyond the ends.

        Args:
            poses_2d: (T, J, C), finite; T of 1 or more.
            flip: lift the mirrored video too and average both; the layout of the poses, or those of input and output
                where they differ.
            batch_size: windows in one pass, for the models that work window by window.

        Returns:
            (T, J', 3).

        Raises:
            InputError: for other shapes, no frames, NaN, a layout with another number of joints, and a model that is training.
        """
        if self.training:
            raise InputError("lift is for inference: call eval() on the model first")
        self._check(poses_2d, "T, J, C", 3)
        if not len(poses_2d):
            raise InputError("there must be one or more frames; got none")
        if not poses_2d.isfinite().all():
            frames = (~poses_2d.isfinite()).flatten(1).any(1).nonzero().flatten()
            raise InputError(f"{len(frames)} of {len(poses_2d)} frames hold NaN or infinite coordinates, the first is {int(frames[0])}")
        if flip is None:
            return self._lift(poses_2d[None], batch_size)[0]
        seen, lifted = flip if isinstance(flip, tuple) else (flip, flip)
        pair = self._lift(torch.stack([poses_2d, seen.flip(poses_2d)]), batch_size)
        return (pair[0] + lifted.flip(pair[1])) / 2

    def _lift(self, videos: Tensor, batch_size: int) -> Tensor:
        """V, T, J, C -> V, T, J', 3."""
        raise NotImplementedError

    def _check(self, poses: Tensor, axes: str, num_axes: int) -> None:
        wanted = (self.num_joints, self.in_channels)
        if poses.ndim != num_axes or tuple(poses.shape[-2:]) != wanted:
            name = type(self).__name__
            raise InputError(f"{name} takes {axes} with {wanted[0]} joints of {wanted[1]} coordinates; got {tuple(poses.shape)}")
        if not poses.is_floating_point():
            raise InputError(f"{type(self).__name__} takes floating-point poses; got {poses.dtype}")


class WindowLifter(Lifter):
    """A lifter that makes features of each frame by itself and then looks at a window of them: the pose of its middle.

    A subclass defines `encode_frames` (N, J, C -> N, F) and `regress` (B, T, F -> B, 1, J, 3).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: B, T, J, C -> B, 1, J, 3: the pose of the window's middle frame, metres relative to the root."""
        self._check(x, "B, T, J, C", 4)
        if x.shape[1] != self.num_frames:
            raise InputError(f"{type(self).__name__} takes windows of {self.num_frames} frames; got {x.shape[1]}")
        return self.regress(self.encode_frames(x.flatten(0, 1)).unflatten(0, (-1, self.num_frames)))

    def encode_frames(self, poses: Tensor) -> Tensor:
        """N, J, C -> N, F."""
        raise NotImplementedError

    def regress(self, features: Tensor) -> Tensor:
        """B, T, F -> B, 1, J, 3."""
        raise NotImplementedError

    def _lift(self, videos: Tensor, batch_size: int) -> Tensor:
        frames = videos.flatten(0, 1).split(FRAMES_AT_ONCE)
        features = torch.cat([self.encode_frames(some) for some in frames]).unflatten(0, videos.shape[:2])
        return torch.stack([self._lift_features(video, batch_size) for video in features])

    def _lift_features(self, features: Tensor, batch_size: int) -> Tensor:
        return torch.cat([self.regress(some) for some in windows(features, self.num_frames).split(batch_size)])[:, 0]


class Block(nn.Module):
    """Pre-normalised attention and perceptron, both with a residual.

    Args:
        dim: width of the tokens.
        attention: B, N, dim -> the same shape.
        mlp_ratio: hidden width of the perceptron over `dim`.
        drop_path_rate: of both branches.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, N, dim -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def windows(frames: Tensor, length: int) -> Tensor:
    """One window a frame, with it in the middle; the first and last frame are repeated beyond the ends.

    frames: (T, ...); length: odd -> (T, length, ...), a view of T + length - 1 frames.
    """
    if length < 1 or length % 2 == 0:
        raise InputError(f"the number of frames of a window must be odd; got {length}")
    padded = pad_frames(frames[None], length // 2, length // 2)[0]
    return padded.unfold(0, length, 1).movedim(-1, 1)


def pad_frames(videos: Tensor, before: int, after: int) -> Tensor:
    """(V, T, ...) -> (V, before + T + after, ...): the first and last frame repeated."""
    ends = [videos[:, :1].expand(-1, before, *videos.shape[2:]), videos, videos[:, -1:].expand(-1, after, *videos.shape[2:])]
    return torch.cat(ends, dim=1)


def check_sizes(num_frames: int, num_joints: int, in_channels: int, embed_dim: int, num_heads: int, *depths: int) -> None:
    """Raises `InputError` for sizes that no window lifter can have."""
    if num_frames < 1 or num_frames % 2 == 0:
        raise InputError(f"num_frames must be odd, as the pose is that of the middle frame; got {num_frames}")
    if min(num_joints, in_channels, embed_dim, num_heads, *depths) < 1:
        raise InputError("num_joints, in_channels, embed_dim, num_heads and the depths must be 1 or more")
    if embed_dim % num_heads:
        raise InputError(f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}")


def count_blocks(state: Mapping[str, Tensor], start: str) -> int:
    """How many blocks there are whose names begin so and go on with a number."""
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def h36m(detections: str, metric: str, value: float) -> PublishedResult:
    """A figure on Human3.6M (S9 and S11, mean over 15 actions) from 2D poses that are detected ("CPN") or true ("GT")."""
    return PublishedResult(f"Human3.6M ({detections} 2D)", metric, value, "mm per frame" if metric == "MPJVE" else "mm")
