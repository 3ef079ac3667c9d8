"""Swin-MLP: Swin with a linear mixing of the tokens of a window, head by head, in place of attention (Liu et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.swin import PatchMerging
from vsuite.core.models.window_backbone import BASE, LICENCE, WindowBackbone, infer_stages, top1, variant
from vsuite.core.nn import DropPath, Mlp, crop_to_size
from vsuite.core.registry import PublishedLayout, register_variants


class Block(nn.Module):
    """Mixing within windows and perceptron, each after a layer norm and with a residual. B, H, W, C -> the same.

    The map is padded with zeros to whole windows; a shift starts them before the map rather than rolls it.

    Args:
        dim: channels.
        num_heads: divides `dim`; each has a matrix of its own over the tokens of a window.
        window: h, w.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        tokens = window[0] * window[1]
        self.norm1 = nn.LayerNorm(dim)
        self.spatial_mlp = nn.Conv1d(num_heads * tokens, num_heads * tokens, 1, groups=num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shift: bool) -> Tensor:
        x = x + self.drop_path(self.mix(self.norm1(x), shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def mix(self, x: Tensor, shift: bool) -> Tensor:
        """Each head's channels of all tokens of a window -> the same, by that head's matrix."""
        (h, w), (batch, height, width, _) = self.window, x.shape
        top, left = (h - h // 2, w - w // 2) if shift else (0, 0)
        rows, columns = (height + top + h - 1) // h, (width + left + w - 1) // w
        if torch.compiler.is_compiling() or (rows * h, columns * w) != (height, width):
            x = F.pad(x, (0, 0, left, columns * w - width - left, top, rows * h - height - top))
        # One matrix product a head: the one copy that cutting windows takes anyway puts heads first and windows last.
        x = x.unflatten(3, (self.num_heads, -1)).unflatten(2, (columns, w)).unflatten(1, (rows, h)).permute(5, 2, 4, 0, 1, 3, 6)
        tokens = x.contiguous().view(-1).view(self.num_heads, h * w, -1)  # see `core.nn.windows` for the flat views
        matrices, bias = self.spatial_mlp.weight.view(self.num_heads, h * w, h * w), self.spatial_mlp.bias
        assert bias is not None
        mixed = torch.baddbmm(bias.view(self.num_heads, h * w, 1), matrices, tokens)
        mixed = mixed.view(-1).view(self.num_heads, h, w, batch, rows, columns, -1).permute(3, 4, 1, 5, 2, 0, 6)
        mixed = mixed.contiguous().view(-1).view(batch, rows * h, columns * w, -1)
        return crop_to_size(mixed[:, top:, left:], (height, width))


class SwinMLP(WindowBackbone):
    """Swin-MLP.

    The published code knows one size a model only. Any other size is padded as in the dense backbones of Swin.

    Args: see `Swin`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 8,
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] | None = None,
        stage_norms: bool = False,
    ) -> None:
        super().__init__(
            lambda stage, dim, window, rate: Block(dim, num_heads[stage], window, rate),
            PatchMerging,
            in_channels=in_channels,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            image_size=image_size,
            stage_norms=stage_norms,
        )


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    found = infer_stages(state)
    weights = [state[f"layers.{i}.blocks.0.spatial_mlp.weight"] for i in range(len(found["depths"]))]
    windows = [math.isqrt(weight.shape[1]) for weight in weights]
    return found | {
        "num_heads": [weight.shape[0] // weight.shape[1] for weight in weights],
        "window_size": windows[0],
        "image_size": windows[-1] << (len(windows) + 1),  # the published classifiers end in a map of one window
    }


LAYOUT = PublishedLayout(
    build=SwinMLP,
    infer=_infer,
    keys=("patch_embed.proj.weight", "layers.0.blocks.0.spatial_mlp.weight", "layers.0.downsample.reduction.weight"),
    fresh=("norm[0-3].*",),
    head="head.",
    norm="norm.",
    stem="patch_embed.proj.weight",
)
register_variants(
    SwinMLP,
    {
        "swin_mlp_tiny_c24": variant(256, "20.4 M parameters, 4.0 G MACs; heads of 24 channels", top1(in1k_256=79.4)),
        "swin_mlp_tiny_c12": variant(256, "heads of 12 channels", top1(in1k_256=79.6), num_heads=(8, 16, 32, 64)),
        "swin_mlp_tiny_c6": variant(256, "heads of 6 channels", top1(in1k_256=79.7), num_heads=(16, 32, 64, 128)),
        "swin_mlp_base": variant(224, "10.4 G MACs; window 7", top1(in1k_224=81.3), **BASE, window_size=7),
    },
    system="swin_mlp",
    task="classification",
    paper="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, Liu et al., ICCV 2021, arXiv 2103.14030",
    licence=LICENCE,
    layout=LAYOUT,
)
