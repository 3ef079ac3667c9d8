"""VideoPose3D's temporal model: 3D poses from 2D poses by dilated convolutions over time (Pavllo et al., 2019, arXiv 1811.11742)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm
from vsuite.core.registry import PublishedLayout, Variant, register_variants
from vsuite.video_pose.models.lifter import Lifter, count_blocks, h36m, pad_frames


class TemporalModel(Lifter):
    """The whole network: B, T, J, C -> B, T - F + 1, J', 3, where F is the product of the filter widths: a pose for each window.

    Args:
        num_joints, in_channels: J and C of the input.
        num_joints_out: J' of the output, which may be in another layout; None is J.
        filter_widths: of the first convolution and of each residual stage, odd.
        causal: the pose is that of the window's last frame and not of the middle one.
        dropout: after each activation.
        channels: of the hidden layers.

    Raises:
        InputError: for widths that are not odd, numbers below 1, inputs of another shape and fewer frames than F.
    """

    def __init__(
        self,
        *,
        num_joints: int = 17,
        in_channels: int = 2,
        num_joints_out: int | None = None,
        filter_widths: Sequence[int] = (3, 3, 3, 3, 3),
        causal: bool = False,
        dropout: float = 0.25,
        channels: int = 1024,
    ) -> None:
        if not filter_widths or any(width < 1 or width % 2 == 0 for width in filter_widths):
            raise InputError(f"filter_widths must be one or more odd numbers; got {tuple(filter_widths)}")
        joints_out = num_joints if num_joints_out is None else num_joints_out
        if min(num_joints, in_channels, joints_out, channels) < 1:
            raise InputError("num_joints, in_channels, num_joints_out and channels must be 1 or more")
        super().__init__(num_joints, in_channels, math.prod(filter_widths))
        self.filter_widths = tuple(filter_widths)
        self.causal = causal
        self.dropout = dropout
        self.expand_conv = nn.Conv1d(num_joints * in_channels, channels, filter_widths[0], bias=False)
        self.expand_bn = nn.BatchNorm1d(channels)
        widths = [width for stage in filter_widths[1:] for width in (stage, 1)]
        self.layers_conv = nn.ModuleList(nn.Conv1d(channels, channels, width, bias=False) for width in widths)
        self.layers_bn = nn.ModuleList(nn.BatchNorm1d(channels) for _ in widths)
        self.shrink = nn.Conv1d(channels, 3 * joints_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, T, J, C -> B, T - F + 1, J', 3, metres relative to the root.

        One window (T = F) is computed with strides in place of dilations: only what its one pose needs. In training the
        statistics of the norms are over these frames alone, as in the published training.
        """
        self._check(x, "B, T, J, C", 4)
        if x.shape[1] < self.num_frames:
            raise InputError(f"TemporalModel takes {self.num_frames} frames or more; got {x.shape[1]}")
        strided = x.shape[1] == self.num_frames
        x = x.flatten(2).transpose(1, 2)  # B, J C, T
        width = self.filter_widths[0]
        x = self._activate(self.expand_bn, F.conv1d(x, self.expand_conv.weight, self.expand_conv.bias, stride=width if strided else 1))
        dilation = 1 if strided else width
        for i, width in enumerate(self.filter_widths[1:]):
            skip = self._residual(x, width, dilation, strided)
            conv = cast(nn.Conv1d, self.layers_conv[2 * i])
            y = F.conv1d(x, conv.weight, conv.bias, stride=width if strided else 1, dilation=dilation)
            y = self.layers_conv[2 * i + 1](self._activate(self.layers_bn[2 * i], y))
            x = skip + self._activate(self.layers_bn[2 * i + 1], y)
            dilation *= 1 if strided else width
        return self.shrink(x).transpose(1, 2).unflatten(2, (-1, 3))

    def _residual(self, x: Tensor, width: int, dilation: int, strided: bool) -> Tensor:
        """The frames that the outputs of a stage stand for: the middle ones of its filter, or the last ones."""
        start = width - 1 if self.causal else width // 2
        if strided:
            return x[:, :, start::width]
        return x[:, :, start * dilation : x.shape[2] - (width - 1 - start) * dilation]

    def _activate(self, norm: nn.Module, x: Tensor) -> Tensor:
        return F.dropout(F.relu(norm(x)), self.dropout, self.training)

    def _lift(self, videos: Tensor, batch_size: int) -> Tensor:
        after = 0 if self.causal else self.num_frames // 2
        return self(pad_frames(videos, self.num_frames - 1 - after, after))

    def fold(self) -> None:
        """Puts each norm into the convolution before it."""
        if isinstance(self.expand_bn, nn.Identity):
            return
        fold_batch_norm(self.expand_conv, self.expand_bn)
        self.expand_bn = nn.Identity()  # type: ignore[assignment]
        for i, conv in enumerate(self.layers_conv):
            fold_batch_norm(conv, self.layers_bn[i])  # type: ignore[arg-type]
            self.layers_bn[i] = nn.Identity()


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Screen coordinates are assumed: two channels a joint."""
    channels, inputs, width = state["expand_conv.weight"].shape
    num_stages = count_blocks(state, "layers_conv.") // 2
    return {
        "num_joints": inputs // 2,
        "num_joints_out": len(state["shrink.weight"]) // 3,
        "filter_widths": (width, *(state[f"layers_conv.{2 * i}.weight"].shape[2] for i in range(num_stages))),
        "channels": channels,
    }


LAYOUT = PublishedLayout(
    build=TemporalModel,
    infer=_infer,
    keys=("expand_conv.weight", "expand_bn.weight", "shrink.weight"),
    assumed={"causal": False, "in_channels": 2},
)

_H36M = {
    27: (h36m("CPN", "MPJPE", 48.8), h36m("CPN", "P-MPJPE", 38.0)),
    81: (h36m("CPN", "MPJPE", 47.7), h36m("CPN", "P-MPJPE", 37.2)),
    243: (h36m("CPN", "MPJPE", 46.8), h36m("CPN", "P-MPJPE", 36.5), h36m("CPN", "MPJVE", 2.8), h36m("GT", "MPJPE", 37.8)),
}


def _variants() -> dict[str, Variant]:
    found = {}
    for stages, (length, results) in enumerate(_H36M.items(), 3):
        options, size = {"filter_widths": (3,) * stages}, (length, 17, 2)
        found[f"videopose3d_t{length}"] = Variant(options, f"windows of {length} frames", results, size)
        about = f"windows of {length} frames up to the present one"
        found[f"videopose3d_causal_t{length}"] = Variant(options | {"causal": True}, about, (), size)
    found["videopose3d_humaneva_t27"] = Variant(
        {"num_joints": 17, "num_joints_out": 15, "filter_widths": (3, 3, 3)},
        "COCO's 17 joints to HumanEva-I's 15, windows of 27 frames",
        (),
        (27, 17, 2),
    )
    return found


register_variants(
    TemporalModel,
    _variants(),
    system="videopose3d",
    task="lifting",
    paper="3D human pose estimation in video with temporal convolutions and semi-supervised training, Pavllo et al., CVPR 2019,"
    " arXiv 1811.11742",
    licence="CC BY-NC 4.0 (official code and weights)",
    layout=LAYOUT,
)
