"""Cross-modal learning with 3D deformable attention for action recognition (Kim, Ahn, Ko, ICCV 2023, arXiv 2212.05638).

RECONSTRUCTION. No official code or weights are public. The paper states the three attentions, the cross-modal tokens and
that RGB and poses meet in those alone; kernels, windows, widths, the backbone's end, how poses become tokens, and the whole
form on poses alone are choices made here. `operators.MultiScaleDeformableAttention3d` is a third party's operator of the
same name, kept exact; the models do not use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.video_pose.heatmaps import joint_heatmaps
from vsuite.video_pose.models.deformable3d.transformer import CrossModalTransformer

UNITS = 1.5  # joints that all lie within this many pixels of a clip's corner are in other units


class RGBPoseTransformer(nn.Module):
    """A clip and the joints of the people in it -> scores of the actions.

    Joint tokens are the backbone's features before its last stage, under a Gaussian around each joint, times its score.

    Args:
        backbone: any module that takes B, in_channels, T, H, W and returns two volumes of T frames, the first for the joints;
            `in_channels` and `widths` (the last two are the volumes' channels) say what it does. `MixedConvolutions` is one.
        transformer: what joins them.
        sigma: of the Gaussian, in cells of the first volume.

    Raises:
        InputError: for options out of range and for inputs of another shape, with unequal numbers of frames, or not in pixels.
    """

    def __init__(self, backbone: nn.Module, transformer: CrossModalTransformer, *, sigma: float = 0.7) -> None:
        super().__init__()
        _check_sigma(sigma)
        self.sigma = sigma
        self.backbone = backbone
        self.in_channels: int = backbone.in_channels  # type: ignore[assignment]
        *_, before, last = backbone.widths  # type: ignore[misc]
        self.project = nn.Conv3d(last, transformer.embed_dim, 1)
        self.embed_features = nn.Linear(before, transformer.embed_dim)
        self.transformer = transformer
        self.num_joints = transformer.num_joints

    def forward(self, clip: Tensor, joints: Tensor | None = None, scores: Tensor | None = None) -> Tensor:
        """Scores of the actions, before the softmax: B, K.

        Args:
            clip: B, T, in_channels, H, W in [0, 1].
            joints: B, M, T, J, 2; x and y in pixels of the clip, the middle of its first pixel being 0. M may be 0; None: no one.
            scores: B, M, T, J in [0, 1]; joints of score 0 are missing. None: joints at (0, 0) or NaN are missing, others score 1.
        """
        return self.transformer(*self._tokens(clip, joints, scores))

    def forward_features(self, clip: Tensor, joints: Tensor | None = None, scores: Tensor | None = None) -> Tensor:
        """The two modal tokens before the classifier: B, 2 D."""
        return self.transformer.forward_features(*self._tokens(clip, joints, scores))

    def joint_attention(self, clip: Tensor, joints: Tensor, scores: Tensor | None = None) -> Tensor:
        """How much the decision looks at each joint in each frame: B, M, T, J, sum 1."""
        return self.transformer.joint_attention(*self._tokens(clip, joints, scores)).transpose(1, 2)

    def _tokens(self, clip: Tensor, joints: Tensor | None, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if clip.ndim != 5 or clip.shape[2] != self.in_channels or not clip.is_floating_point() or not clip.shape[1]:
            raise InputError(f"the clip must be B, T, {self.in_channels}, H, W, floating-point; got {tuple(clip.shape)}, {clip.dtype}")
        batch, frames, _, height, width = clip.shape
        if joints is None or joints.shape[1] == 0:  # one person who is missing: the same as no one
            joints, scores = clip.new_zeros(batch, 1, frames, self.num_joints, 2), None
        joints, scores, visible = _visible(joints, scores, (batch, None, frames, self.num_joints, 2))
        _check_pixels(joints, visible)
        near, volume = self.backbone(clip.transpose(1, 2))
        if near.shape[2] != frames or volume.shape[2] != frames:
            raise InputError(f"the backbone must keep the {frames} frames; its volumes are {tuple(near.shape)} and {tuple(volume.shape)}")
        scale = joints.new_tensor([near.shape[4] / width, near.shape[3] / height])
        pose = self.embed_features(self._pool(near, (joints + 0.5) * scale - 0.5) * scores[..., None].to(near.dtype))
        return self.project(volume), pose.transpose(1, 2), visible.transpose(1, 2)

    def _pool(self, volume: Tensor, places: Tensor) -> Tensor:
        """volume: B, C, T, h, w; places: B, M, T, J, 2 in its cells -> means under Gaussians: B, M, T, J, C."""
        x, y = (self._shares(places[..., axis], length) for axis, length in ((0, volume.shape[4]), (1, volume.shape[3])))
        under = (y[..., :, None] * x[..., None, :]).flatten(-2).to(volume.dtype).transpose(1, 2)  # B, T, M, J, h w
        tokens = under.flatten(2, 3) @ volume.flatten(3).permute(0, 2, 3, 1)  # B, T, M J, C
        return tokens.unflatten(2, under.shape[2:4]).transpose(1, 2)

    def _shares(self, centre: Tensor, length: int) -> Tensor:
        """A Gaussian along one axis, of sum 1; without a joint inside the picture, next to nothing."""
        cell = torch.arange(length, device=centre.device, dtype=centre.dtype)
        bell = torch.exp(-((cell - centre[..., None]) ** 2) / (2 * self.sigma**2))
        return bell / bell.sum(-1, keepdim=True).clamp_min(1e-3)


class PoseTransformer(nn.Module):
    """The joints of people alone -> scores of the actions.

    The volume is that of the joints drawn as heatmaps; joint tokens are a linear map of coordinates and score.

    Args:
        backbone: as in `RGBPoseTransformer`, for `num_joints * len(planes)` channels; its second volume alone is used.
        transformer: what joins them.
        in_channels: coordinates C of a joint, 2 or 3.
        planes: pairs of coordinates; each gives a heatmap a joint. See `default_planes`.
        extent: half the side of the square that is drawn, in the joints' units: 1 for normalised coordinates.
        heatmap_size: cells of a side.
        sigma: of the heatmaps, in cells.

    Raises:
        InputError: for options out of range and inputs of another shape.
    """

    def __init__(
        self,
        backbone: nn.Module,
        transformer: CrossModalTransformer,
        *,
        in_channels: int = 2,
        planes: Sequence[tuple[int, int]] = ((0, 1),),
        extent: float = 1.0,
        heatmap_size: int = 56,
        sigma: float = 0.6,
    ) -> None:
        super().__init__()
        _check_sigma(sigma)
        if any(len(plane) != 2 or not all(0 <= axis < in_channels for axis in plane) for plane in planes):
            raise InputError(f"planes must be pairs of coordinates from 0 to {in_channels - 1}; got {planes}")
        if not extent > 0 or heatmap_size < 1:
            raise InputError(f"extent and heatmap_size must be positive; got {extent} and {heatmap_size}")
        self.in_channels = in_channels
        self.planes = tuple(tuple(plane) for plane in planes)
        self.extent = extent
        self.heatmap_size = heatmap_size
        self.sigma = sigma
        self.backbone = backbone
        self.project = nn.Conv3d(backbone.widths[-1], transformer.embed_dim, 1)  # type: ignore[index,arg-type]
        self.embed_joints = nn.Linear(in_channels + 1, transformer.embed_dim)
        self.transformer = transformer
        self.num_joints = transformer.num_joints

    def forward(self, joints: Tensor, scores: Tensor | None = None) -> Tensor:
        """Scores of the actions, before the softmax: B, K.

        Args:
            joints: B, M, T, J, C, or B, T, J, C of one person; x, y (and z) from -extent to extent.
            scores: B, M, T, J (or B, T, J) in [0, 1]; joints of score 0 are missing. None: joints at 0 or NaN are missing, others score 1.
        """
        return self.transformer(*self._tokens(joints, scores))

    def forward_features(self, joints: Tensor, scores: Tensor | None = None) -> Tensor:
        """The two modal tokens before the classifier: B, 2 D."""
        return self.transformer.forward_features(*self._tokens(joints, scores))

    def joint_attention(self, joints: Tensor, scores: Tensor | None = None) -> Tensor:
        """How much the decision looks at each joint in each frame: B, M, T, J, sum 1."""
        return self.transformer.joint_attention(*self._tokens(joints, scores)).transpose(1, 2)

    def _tokens(self, joints: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if joints.ndim == 4:
            joints, scores = joints[:, None], None if scores is None else scores[:, None]
        joints, scores, visible = _visible(joints, scores, (None, None, None, self.num_joints, self.in_channels))
        if not joints.shape[1] or not joints.shape[2]:
            raise InputError(f"there must be a person and a frame at least; got {tuple(joints.shape)}")
        pose = self.embed_joints(torch.cat([joints, scores[..., None]], dim=-1))
        volume = self.project(self.backbone(self.heatmaps(joints, scores))[1])
        return volume, pose.transpose(1, 2), visible.transpose(1, 2)

    def heatmaps(self, joints: Tensor, scores: Tensor) -> Tensor:
        """joints: B, M, T, J, C; scores: B, M, T, J -> what the convolutions see: B, J planes, T, size, size."""
        size = self.heatmap_size
        cells = (joints / self.extent + 1) * (size / 2) - 0.5
        drawn = [joint_heatmaps(cells[..., list(plane)], scores, (size, size), self.sigma).amax(1) for plane in self.planes]
        return torch.cat(drawn, dim=2).transpose(1, 2)


def default_planes(in_channels: int) -> tuple[tuple[int, int], ...]:
    """x-y, and in three dimensions z-y too: a front and a side view."""
    if in_channels not in (2, 3):
        raise InputError(f"in_channels must be 2 or 3 coordinates of a joint; got {in_channels}")
    return ((0, 1),) if in_channels == 2 else ((0, 1), (2, 1))


def _check_sigma(sigma: float) -> None:
    if not sigma > 0:
        raise InputError(f"sigma must be positive; got {sigma}")


def _visible(joints: Tensor, scores: Tensor | None, shape: tuple[int | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Joints with zeros where they are missing, their scores (B, M, T, J), and which are there."""
    fits = joints.ndim == 5 and all(want in (None, got) for want, got in zip(shape, joints.shape, strict=True))
    if not fits or not joints.is_floating_point():
        wanted = ", ".join(str(want or letter) for want, letter in zip(shape, "BMTJC", strict=True))
        raise InputError(f"joints must be {wanted}, floating-point; got {tuple(joints.shape)}, {joints.dtype}")
    if scores is not None and scores.shape != joints.shape[:-1]:
        raise InputError(f"scores must be one for each joint, {tuple(joints.shape[:-1])}; got {tuple(scores.shape)}")
    there = joints.isfinite().all(-1)
    there = there & ((joints != 0).any(-1) if scores is None else scores > 0)
    scores = there.to(joints.dtype) if scores is None else torch.where(there, scores, 0).to(joints.dtype)
    return torch.where(there[..., None], joints, 0), scores, there


def _check_pixels(joints: Tensor, visible: Tensor) -> None:
    if torch.compiler.is_compiling() or not bool(visible.any()):
        return
    largest = float(joints.abs().max())
    if largest <= UNITS:
        raise InputError(
            f"joints must be in pixels of the clip; none lies further than {largest:.3g} from its corner: are they normalised?"
        )
