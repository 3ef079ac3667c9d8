"""GPSFormer for part segmentation: five blocks, and a decoder that carries features back to every point.

A reconstruction, as `gpsformer` is: five blocks, a decoder that interpolates back and concatenates skip features are the
paper's; its widths, the category and the head are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult
from vsuite.core.registry import Variant, register_variants
from vsuite.pointcloud.models.gpsformer import ASSUMED, LICENCE, NUM_SAMPLES, PAPER, RADII, GPSEncoder, infer_encoder
from vsuite.pointcloud.models.point_layers import LinearNorm
from vsuite.pointcloud.point_ops import interpolate_three


class Upsampling(nn.ModuleList):
    """Features interpolated to the points of the level above, joined with its own, two Linear + BN + ReLU.

    Args:
        in_dim: width of the coarser level.
        skip_dim: width of the finer level, and of the result.
    """

    def __init__(self, in_dim: int, skip_dim: int) -> None:
        super().__init__([LinearNorm(in_dim + skip_dim, skip_dim), LinearNorm(skip_dim, skip_dim)])

    def forward(self, points: Tensor, features: Tensor, finer_points: Tensor, skip: Tensor) -> Tensor:
        """points, features of M coarser points; finer_points, skip of N points -> B, N, skip_dim."""
        x = torch.cat([interpolate_three(points, finer_points, features), skip], dim=-1)
        for layer in self:
            x = F.relu(layer(x))
        return x


class GPSFormerParts(GPSEncoder):
    """GPSFormer for part segmentation: points B, N, 3 and their categories -> logits B, N, parts. A reconstruction.

    Args:
        num_classes: parts over all categories.
        num_categories: kinds of objects.
        stem_dim, widths, num_neighbours, num_heads, radii, num_samples: see `GPSEncoder`.
        category_dim: width that the category is mapped to.
        head_dim: width of the classifier's hidden layer.
        dropout: after it, 0 to 1.
    """

    def __init__(
        self,
        *,
        num_classes: int = 50,
        num_categories: int = 16,
        stem_dim: int = 32,
        widths: Sequence[int] = (64, 128, 256, 256, 256),
        num_neighbours: int = 20,
        num_heads: int = 4,
        radii: Sequence[float] = RADII,
        num_samples: Sequence[int] = NUM_SAMPLES,
        category_dim: int = 64,
        head_dim: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(stem_dim, widths, num_neighbours, num_heads, radii, num_samples)
        for name, value in (("num_categories", num_categories), ("category_dim", category_dim), ("head_dim", head_dim)):
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {dropout}")
        dims = [stem_dim, *widths]
        self.num_categories, self.dropout, self.hidden_dim = num_categories, dropout, head_dim
        self.decoder = nn.ModuleList(Upsampling(deeper, finer) for finer, deeper in reversed(list(itertools.pairwise(dims))))
        self.category = LinearNorm(num_categories, category_dim)
        self.head = nn.ModuleList([LinearNorm(stem_dim + category_dim + widths[-1], head_dim)])
        self.reset_head(num_classes)

    def reset_head(self, num_classes: int) -> None:
        """A new last layer for another number of parts."""
        if num_classes < 1:
            raise InputError(f"num_classes must be 1 or more; got {num_classes}")
        self.num_classes = num_classes
        self.out = nn.Linear(self.hidden_dim, num_classes, device=self.stem.linear.weight.device)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """points: B, N, 3, N of 32 or more (2048 as published); categories: B, integer, 0 to num_categories - 1 -> logits B, N, parts."""
        if categories.shape != points.shape[:1] or categories.is_floating_point():
            raise InputError(f"categories must be one integer a shape, {len(points)}; got {tuple(categories.shape)} of {categories.dtype}")
        *finer, (coordinates, features) = self.forward_features(points)
        whole = features.amax(1)
        for block, (finer_points, skip) in zip(self.decoder, reversed(finer), strict=True):
            features = block(coordinates, features, finer_points, skip)
            coordinates = finer_points
        category = F.relu(self.category(F.one_hot(categories.long(), self.num_categories).to(features.dtype)))
        context = torch.cat([category, whole], dim=-1).unsqueeze(1).expand(-1, features.shape[1], -1)
        x = F.relu(self.head[0](torch.cat([features, context], dim=-1)))
        return self.out(F.dropout(x, self.dropout, self.training))


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    category_dim, num_categories = state["category.0.weight"].shape
    return infer_encoder(state) | {
        "num_classes": int(state["out.weight"].shape[0]),
        "num_categories": int(num_categories),
        "category_dim": int(category_dim),
        "head_dim": int(state["head.0.0.weight"].shape[0]),
    }


LAYOUT = PublishedLayout(
    build=GPSFormerParts,
    infer=_infer,
    keys=("stages.0.gpm.edge.0.weight", "decoder.0.0.0.weight", "category.0.weight", "out.weight"),
    assumed=ASSUMED,
    head="out.",
)

VARIANTS = {
    "gpsformer_parts": Variant(
        {},
        "GPSFormer for part segmentation, a reconstruction from the paper (no official code): five blocks and a decoder.",
        (
            PublishedResult("ShapeNetPart", "class mIoU", 85.4, "%"),
            PublishedResult("ShapeNetPart", "instance mIoU", 86.8, "%"),
        ),
        input_size=(2048, 3),
    )
}

register_variants(GPSFormerParts, VARIANTS, system="gpsformer_parts", task="part segmentation", paper=PAPER, licence=LICENCE, layout=LAYOUT)
