"""The transformer in which a volume and poses meet in two modal tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import DropPath, Mlp, attend, drop_path_rates, memoise
from vsuite.video_pose.models.deformable3d.operators import DeformableAttention3d

NUM_MODAL = 2  # one token begins for the volume, one for the poses


class JointStrideAttention(nn.Module):
    """Local joint stride attention: in each frame, windows of consecutive joints of all people, with the modal tokens.

    RECONSTRUCTION: the idea is the paper's, the form is ours. Joints and the poses' modal token ask; joints of the window that
    are visible and both modal tokens answer. A joint in several windows takes the mean; the modal token takes the mean over
    the windows and frames in which there is anyone.

    Args:
        dim: channels D.
        num_heads: divides D.
        window: joints in a window.
        step: joints between the beginnings of windows; the last window, which reaches the last joint, may be short.
    """

    def __init__(self, dim: int, num_heads: int, window: int, step: int) -> None:
        super().__init__()
        if not 1 <= step <= window:
            raise InputError(f"joint_step must lie between 1 and joint_window, or joints would be left out; got {step} and {window}")
        self.num_heads = num_heads
        self.window = window
        self.step = step
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, modal: Tensor, pose: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """modal: B, 2, D; pose: B, T, M, J, D; visible: B, T, M, J, boolean -> the poses' modal token (B, 1, D) and pose anew."""
        joints, people = pose.shape[3], pose.shape[2]
        index, _, shares = joint_windows(joints, self.window, self.step, pose.device)
        query = torch.cat([self._for_windows(self.q(modal[:, 1:]), pose, index), self._in_windows(self.q(pose), index)], dim=3)
        out, seen = self._attend(modal, pose, visible, query)
        rest = out[:, :, :, 1:].unflatten(3, (people, -1))  # B, T, windows, M, w, D
        rest = torch.einsum("jgw,btgmwd->btmjd", shares.to(rest.dtype), rest)
        return self.proj(self._mean(out[:, :, :, 0], seen)), self.proj(rest)

    def read(self, modal: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """What `forward` returns for the modal token, without the work for the joints: B, 1, D."""
        index, _, _ = joint_windows(pose.shape[3], self.window, self.step, pose.device)
        out, seen = self._attend(modal, pose, visible, self._for_windows(self.q(modal[:, 1:]), pose, index))
        return self.proj(self._mean(out[:, :, :, 0], seen))

    def weights(self, modal: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """How much the modal token looks at each joint, the mean over heads, windows and frames: B, T, M, J."""
        index, inside, _ = joint_windows(pose.shape[3], self.window, self.step, pose.device)
        keys = torch.cat([self._for_windows(self.k(modal), pose, index), self._in_windows(self.k(pose), index)], dim=3)
        query = self.q(modal[:, 1]).unflatten(-1, (self.num_heads, -1))
        scores = torch.einsum("bhc,btgnhc->btghn", query, keys.unflatten(-1, (self.num_heads, -1))) / math.sqrt(query.shape[-1])
        mask, seen = self._masks(visible)
        found = scores.masked_fill(~mask[:, :, :, None], -math.inf).softmax(-1).mean(3)[..., NUM_MODAL:]  # B, T, windows, M w
        found = found * share_of(seen)[..., None]
        places = nn.functional.one_hot(index, pose.shape[3]).to(found.dtype) * inside[..., None]  # windows, w, J
        return torch.einsum("btgmw,gwj->btmj", found.unflatten(-1, (pose.shape[2], -1)), places)

    def _attend(self, modal: Tensor, pose: Tensor, visible: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """query: B, T, windows, n, D -> what it reads, of the same shape, and which windows hold anyone: B, T, windows."""
        index, _, _ = joint_windows(pose.shape[3], self.window, self.step, pose.device)
        mask, seen = self._masks(visible)
        key, value = (
            torch.cat([self._for_windows(layer(modal), pose, index), self._in_windows(layer(pose), index)], dim=3).flatten(0, 2)
            for layer in (self.k, self.v)
        )
        out = attend(query.flatten(0, 2), key, value, self.num_heads, bias=mask.flatten(0, 2)[:, None, None])
        return out.view(query.shape), seen

    def _masks(self, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Which keys of each window answer (B, T, windows, 2 + M w), and which windows hold anyone (B, T, windows)."""
        index, inside, _ = joint_windows(visible.shape[-1], self.window, self.step, visible.device)
        shown = (visible[..., index] & inside).transpose(2, 3).flatten(3)  # B, T, windows, M w
        return torch.cat([torch.ones_like(shown[..., :1]).expand(*shown.shape[:3], NUM_MODAL), shown], dim=-1), shown.any(-1)

    @staticmethod
    def _in_windows(x: Tensor, index: Tensor) -> Tensor:
        """B, T, M, J, D -> B, T, windows, M w, D."""
        return x[:, :, :, index].transpose(2, 3).flatten(3, 4)

    @staticmethod
    def _for_windows(x: Tensor, pose: Tensor, index: Tensor) -> Tensor:
        """B, n, D -> B, T, windows, n, D."""
        return x[:, None, None].expand(-1, pose.shape[1], len(index), -1, -1)

    @staticmethod
    def _mean(x: Tensor, seen: Tensor) -> Tensor:
        """B, T, windows, D -> B, 1, D: over the windows that hold anyone; over all where none does."""
        return (x * share_of(seen).to(x.dtype)[..., None]).sum((1, 2))[:, None]


def share_of(seen: Tensor) -> Tensor:
    """What each window counts in a mean over those that hold anyone; all alike where none does. B, T, windows."""
    number = seen.sum((1, 2), keepdim=True)
    return torch.where(number > 0, seen / number.clamp_min(1), 1 / (seen.shape[1] * seen.shape[2]))


@memoise
def joint_windows(joints: int, window: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The joints of each window (windows, w), which of them exist, and what each place counts for a joint: J, windows, w."""
    count = max(math.ceil((joints - window) / step), 0) + 1
    index = torch.arange(count, device=device)[:, None] * step + torch.arange(window, device=device)
    inside = index < joints
    index = index.clamp_max(joints - 1)
    places = ((index == torch.arange(joints, device=device)[:, None, None]) & inside).float()
    return index, inside, places / places.sum((1, 2), keepdim=True)


class CrossModalBlock(nn.Module):
    """3D deformable attention, local joint stride attention and a perceptron, each with its norm before and a residual."""

    def __init__(
        self, dim: int, attention: DeformableAttention3d, joint_attention: JointStrideAttention, mlp_ratio: int, rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.joint_attention = joint_attention
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.drop_path = DropPath(rate)

    def forward(self, modal: Tensor, z: Tensor, pose: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """modal: B, 2, D; z: B, T, H, W, D; pose: B, T, M, J, D; visible: B, T, M, J -> the first three anew."""
        read, rest = self.attention(self.norm1(z).movedim(-1, 1), self.norm1(modal))
        modal, z = modal + self.drop_path(read), z + self.drop_path(rest.movedim(1, -1))
        read, rest = self.joint_attention(self.norm2(modal), self.norm2(pose), visible)
        modal, pose = self._add_to_pose_token(modal, read), pose + self.drop_path(rest)
        return self._perceive(modal), self._perceive(z), self._perceive(pose)

    def read(self, modal: Tensor, z: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """What `forward` returns for the modal tokens, at less than half of its cost."""
        modal = self.after_volume(modal, z)
        read = self.joint_attention.read(self.norm2(modal), self.norm2(pose), visible)
        return self._perceive(self._add_to_pose_token(modal, read))

    def after_volume(self, modal: Tensor, z: Tensor) -> Tensor:
        """The modal tokens when they have read from the volume."""
        return modal + self.drop_path(self.attention.read(self.norm1(z).movedim(-1, 1), self.norm1(modal)))

    def _add_to_pose_token(self, modal: Tensor, read: Tensor) -> Tensor:
        return torch.cat([modal[:, :1], modal[:, 1:] + self.drop_path(read)], dim=1)

    def _perceive(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm3(x)))


class CrossModalTransformer(nn.Module):
    """Blocks over a volume and poses, and the classifier.

    Temporal stride attention: block l works on the frames t with t mod s = l mod s alone. So frames are dealt out to s hands
    once, and what the blocks do to a hand that no later block takes up is not computed: nothing reads it.

    Args:
        num_classes: K.
        num_joints: J.
        embed_dim: width D of the tokens, a multiple of 8.
        depth: blocks.
        num_heads, offset_groups, kernel, stride, offset_factor: see `DeformableAttention3d`.
        frame_stride: s.
        joint_window, joint_step: see `JointStrideAttention`.
        mlp_ratio: hidden width of the perceptron over D.
        dropout: before the classifier; drop_path_rate: of the last block's branches, rising from 0.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_joints: int,
        embed_dim: int = 256,
        depth: int = 4,
        num_heads: int = 8,
        offset_groups: int = 2,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (2, 2, 2),
        offset_factor: float = 1.0,
        frame_stride: int = 2,
        joint_window: int = 5,
        joint_step: int = 2,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        numbers = {
            "num_classes": num_classes,
            "num_joints": num_joints,
            "depth": depth,
            "frame_stride": frame_stride,
            "mlp_ratio": mlp_ratio,
        }
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        if embed_dim < 8 or embed_dim % 8:
            raise InputError(f"embed_dim must be a multiple of 8; got {embed_dim}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {dropout}")
        self.num_joints = num_joints
        self.embed_dim = embed_dim
        self.frame_stride = frame_stride
        self.modal_tokens = nn.Parameter(torch.zeros(NUM_MODAL, embed_dim))
        self.joint_position = nn.Parameter(torch.zeros(num_joints, embed_dim))
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        self.blocks = nn.ModuleList(
            CrossModalBlock(
                embed_dim,
                DeformableAttention3d(embed_dim, num_heads, offset_groups, kernel, stride, offset_factor),
                JointStrideAttention(embed_dim, num_heads, joint_window, joint_step),
                mlp_ratio,
                rate,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(NUM_MODAL * embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(NUM_MODAL * embed_dim, num_classes)
        for parameter in (self.modal_tokens, self.joint_position):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """z: B, D, T, H, W; pose: B, T, M, J, D, M >= 1; visible: B, T, M, J, boolean -> scores B, K."""
        return self.forward_head(self.forward_features(z, pose, visible))

    def forward_features(self, z: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """The two modal tokens, normalised: B, 2 D."""
        modal, hands = self._deal(z, pose, visible)
        for number, block in enumerate(self._blocks()):
            hand = number % len(hands)
            if number + len(hands) < len(self.blocks):
                modal, volume, joints = block(modal, *hands[hand])
                hands[hand] = volume, joints, hands[hand][2]
            else:
                modal = block.read(modal, *hands[hand])
        return self.norm(modal.flatten(1))

    def forward_head(self, features: Tensor) -> Tensor:
        """B, 2 D -> B, K."""
        return self.head(self.dropout(features))

    def joint_attention(self, z: Tensor, pose: Tensor, visible: Tensor) -> Tensor:
        """How much the poses' modal token looks at each joint in each frame, over all blocks: B, T, M, J; sum 1, or 0 without anyone."""
        modal, hands = self._deal(z, pose, visible)
        found = pose.new_zeros(visible.shape)
        for number, block in enumerate(self._blocks()):
            hand = number % len(hands)
            volume, joints, shown = hands[hand]
            asked = block.norm2(block.after_volume(modal, volume))
            found[:, hand :: len(hands)] += block.joint_attention.weights(asked, block.norm2(joints), shown)
            modal, *others = block(modal, *hands[hand])
            hands[hand] = others[0], others[1], shown
        return found / found.sum((1, 2, 3), keepdim=True).clamp_min(1e-12)

    def _blocks(self) -> list[CrossModalBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _deal(self, z: Tensor, pose: Tensor, visible: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Adds positions and deals the frames out: every s-th frame of the volume, of the poses, and of who is visible."""
        _, dim, frames, height, width = z.shape
        z = z.permute(0, 2, 3, 4, 1) + volume_positions(frames, height, width, dim, z.device).to(z.dtype)
        times = axis_positions(frames, dim, z.device)[:, None, None].to(pose.dtype)
        pose = pose + times + self.joint_position
        step = min(self.frame_stride, frames)
        return self.modal_tokens.expand(len(z), -1, -1), [(z[:, i::step], pose[:, i::step], visible[:, i::step]) for i in range(step)]


@memoise
def axis_positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions along one axis: length, dim; sines in the first half of the columns, cosines in the second."""
    rate = 10000 ** (-2 * torch.arange(dim // 2, device=device).double() / dim)
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


@memoise
def volume_positions(frames: int, height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions in a volume: T, H, W, dim; half of the columns say when, a quarter each which row and column."""
    parts = [(frames, dim // 2, (-1, 1, 1)), (height, dim // 4, (1, -1, 1)), (width, dim // 4, (1, 1, -1))]
    axes = [axis_positions(length, part, device).view(*place, part) for length, part, place in parts]
    return torch.cat([axis.expand(frames, height, width, -1) for axis in axes], dim=-1)
