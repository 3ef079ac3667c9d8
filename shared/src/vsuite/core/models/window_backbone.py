"""The frame that Swin, Swin V2 and Swin-MLP share: windows that shift from block to block, in stages of a pyramid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import (
    FeatureInfo,
    ImageBackbone,
    LayerNorm2d,
    SizeRule,
    crop_to_size,
    drop_path_rates,
    pad_to_windows,
    shifted_window_kinds,
    shifted_window_masks,
    window_partition,
    window_reverse,
)
from vsuite.core.registry import OtherNames, PublishedResult, Variant


class ShiftedWindowAttention(nn.Module):
    """Attention within the windows of a map, which may be shifted by half a window; subclasses say how windows attend.

    The map is padded with zeros at the bottom and right to whole windows. Padded tokens take part as keys.

    Args:
        window: h, w.
    """

    biases: Tensor | None

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.shift = (window[0] // 2, window[1] // 2)
        self.register_buffer("biases", None, persistent=False)  # 4, heads, N, N once folded

    def position_bias(self) -> Tensor:
        """Added to the scores of every window: heads, N, N with N = h * w."""
        raise NotImplementedError

    def attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """windows: B, N, C and bias: 1 or B, heads, N, N -> B, N, C."""
        raise NotImplementedError

    def forward(self, x: Tensor, shift: bool) -> Tensor:
        """B, H, W, C -> the same."""
        batch, height, width, _ = x.shape
        x = pad_to_windows(x, self.window)
        size = x.shape[1], x.shape[2]
        if not shift:
            bias = self.position_bias()[None] if self.biases is None else self.biases[:1]
            windows = self.attend(window_partition(x, self.window), bias)
            return crop_to_size(window_reverse(windows, self.window, size), (height, width))
        (h, w), (down, right) = self.window, self.shift
        kinds = shifted_window_kinds(size[0] // h, size[1] // w, x.device)
        windows = window_partition(torch.roll(x, (-down, -right), (1, 2)), self.window)
        windows = self.attend(windows, self.shifted_biases()[kinds.repeat(batch)])
        return crop_to_size(torch.roll(window_reverse(windows, self.window, size), (down, right), (1, 2)), (height, width))

    def shifted_biases(self) -> Tensor:
        """4, heads, N, N: the position bias with the mask of each kind of window."""
        if self.biases is not None:
            return self.biases
        bias = self.position_bias()
        return bias + shifted_window_masks(self.window, self.shift, bias.device, bias.dtype)[:, None]

    @torch.no_grad()
    def fold(self) -> None:
        self.biases = self.shifted_biases()


class PatchEmbed(nn.Module):
    """4 x 4 pixels -> one token, after padding to whole patches: B, C, H, W -> B, ceil(H / 4), ceil(W / 4), dim."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_windows(x.permute(0, 2, 3, 1), (4, 4)).permute(0, 3, 1, 2)
        return self.norm(self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1))


def merge_patches(x: Tensor) -> Tensor:
    """B, H, W, C -> B, ceil(H / 2), ceil(W / 2), 4C: the two rows of the left column of a cell, then those of the right one."""
    x = pad_to_windows(x, (2, 2))
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


class Stage(nn.Module):
    """The blocks of one resolution, and the merging that leads to the next one (None in the last stage)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class WindowBackbone(ImageBackbone):
    """What Swin, Swin V2 and Swin-MLP share: stages at strides 4, 8, 16, 32 of blocks in windows, every second one shifted.

    Sides are free from 1 pixel up: patches, windows and cells to merge are padded with zeros, as in the published dense
    backbones. The published classifiers pad nothing and take one size. They differ from the dense backbones in stages
    whose shorter side is not longer than the window: the window shrinks to that side and is never shifted. Here an input
    of exactly `image_size` follows the classifiers, any other the dense backbones. A graph that is exported with free
    sides follows the dense backbones at all of them.

    Args:
        make_block: (stage, dim, window, drop path rate) -> a block, which is called with a map B, H, W, C and whether to shift.
        merging: dim -> the module between two stages.
        others: see `Swin`.
    """

    no_decay = frozenset({"relative_position_bias_table", "absolute_pos_embed"})

    def __init__(
        self,
        make_block: Callable[[int, int, tuple[int, int], float], nn.Module],
        merging: Callable[[int], nn.Module],
        *,
        in_channels: int,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path_rate: float,
        image_size: int | Sequence[int] | None,
        stage_norms: bool,
    ) -> None:
        super().__init__(in_channels, num_classes)
        dims = [embed_dim << i for i in range(len(depths))]
        _check(dims, depths, num_heads, window_size)
        self.image_size = pair_of_sides(image_size)
        self.depths = tuple(depths)
        self.feature_info = tuple(FeatureInfo(f"layers.{i}", dim, 4 << i) for i, dim in enumerate(dims))
        self.size_rule = SizeRule(minimum=1)
        self.num_features = dims[-1]
        shorter = [window_size + 1 if self.image_size is None else -(-min(self.image_size) // (4 << i)) for i in range(len(depths))]
        # At `image_size`; the published dense backbones shift at every size.
        self.unshifted_stages = () if stage_norms else tuple(i for i, side in enumerate(shorter) if side <= window_size)
        self.patch_embed = PatchEmbed(in_channels, embed_dim)
        self.layers = nn.ModuleList()
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            side = min(window_size, shorter[i])
            blocks = [make_block(i, dim, (side, side), rate) for rate in rates]
            self.layers.append(Stage(blocks, merging(dim) if i + 1 < len(dims) else None))
        self.norm: nn.Module | None = None
        if stage_norms:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim))
        else:
            self.norm = LayerNorm2d(self.num_features)
        self.head = self.make_head(num_classes)
        self.apply(_initialise)

    def embed(self, x: Tensor) -> Tensor:
        """B, in_channels, H, W -> tokens as a map B, ceil(H / 4), ceil(W / 4), embed_dim."""
        return self.patch_embed(x)

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        unshifted = self.unshifted_stages if self._is_image_size(x.shape[2:]) else ()
        x = self.embed(x)
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            for j, block in enumerate(stage.blocks):
                x = self.run(block, x, j % 2 == 1 and i not in unshifted)
            yield x.permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)

    def _is_image_size(self, size: Sequence[int]) -> bool:
        if torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in size):
            return False
        return self.image_size is not None and (size[0], size[1]) == self.image_size

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        norm = self.stage_norm(len(self.depths) - 1) if self.norm is None else self.norm
        pooled = norm(feature).mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def parts(self) -> list[list[nn.Module]]:
        return [[self.patch_embed], *([stage] for stage in self.layers)]

    def layer_id(self, name: str) -> int:
        """The published table: 0 the stem, then each block one; a merging belongs to the last block before it."""
        if name.startswith(("patch_embed.", "absolute_pos_embed")):
            return 0
        found = re.match(r"layers\.(\d+)\.(blocks\.(\d+))?", name)
        if not found:
            return sum(self.depths) + 1
        stage = int(found[1])
        return sum(self.depths[:stage]) + int(found[3]) + 1 if found[3] else sum(self.depths[: stage + 1])


def _check(dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], window_size: int) -> None:
    if not depths or len(depths) != len(num_heads):
        raise InputError(f"depths and num_heads need one number a stage; got {list(depths)} and {list(num_heads)}")
    if window_size < 1 or min([*dims, *depths, *num_heads]) < 1:
        raise InputError("embed_dim, depths, num_heads and window_size must be 1 or more")
    for dim, heads in zip(dims, num_heads, strict=True):
        if dim % heads:
            raise InputError(f"num_heads must divide the width of each stage, {list(dims)}; got {list(num_heads)}")


def pair_of_sides(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """H, W of an option that may be one side or both; raises `InputError` unless both are 1 or more."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"image_size must be None, a side or H, W, of 1 pixel or more; got {image_size}")
    return sides[0], sides[1]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def infer_stages(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `WindowBackbone` that names and shapes tell."""
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    return {
        "in_channels": int(state["patch_embed.proj.weight"].shape[1]),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "embed_dim": len(state["patch_embed.proj.weight"]),
        "depths": [sum(bool(re.fullmatch(rf"layers\.{i}\.blocks\.\d+\.norm1\.weight", name)) for name in state) for i in range(count)],
        "stage_norms": "norm0.weight" in state,
    }


def from_timm(name: str) -> str:
    """timm's merging belongs to the stage after it, and its classifier is `head.fc`."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample.", name)
    return re.sub(r"^head\.fc\.", "head.", name)


TIMM = OtherNames("timm", ("layers.3.downsample.reduction.weight",), from_timm)
TABLES = ("*.relative_position_index", "*.attn_mask", "*.relative_coords_table")
LICENCE = "MIT (official code and weights)"
BASE: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
LARGE: dict[str, Any] = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}


def top1(**values: float) -> tuple[PublishedResult, ...]:
    """in1k_224=81.2: trained on ImageNet-1K, tested at 224 pixels; in22k_: pre-trained on ImageNet-22K."""
    names = {"in1k": "ImageNet-1K", "in22k": "ImageNet-1K, pre-trained on 22K"}
    return tuple(
        PublishedResult(f"{names[key.split('_')[0]]}, {key.split('_')[1]} pixels", "top-1", value, "%") for key, value in values.items()
    )


def variant(image_size: int, summary: str, published: tuple[PublishedResult, ...] = (), **options: Any) -> Variant:
    """A classifier as published for square images of this size."""
    return Variant({"image_size": image_size, **options}, summary, published, (3, image_size, image_size))
