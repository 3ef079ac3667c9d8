"""PredFormer: video prediction by gated transformers over space and time (Tang et al., 2024, arXiv 2410.04733).

T observed frames go in, the next T come out in one pass. Frames are cut into patches; what is attended to, all tokens of a
frame ("S"), all moments of a place ("T") or everything, and in which order, is the arrangement.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.nn import DropPath, attend, memoise
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants

# Transformers in order, with the axis that each attends over: S space, T time, A all. The names are the checkpoint's.
WHOLE: dict[str, tuple[tuple[str, str], ...]] = {
    "full": (("space_temporal_transformer", "A"),),
    "fac_st": (("space_transformer", "S"), ("temporal_transformer", "T")),
    "fac_ts": (("temporal_transformer", "T"), ("space_transformer", "S")),
}
REPEATED: dict[str, tuple[tuple[str, str], ...]] = {
    "binary_ts": (("ts_temporal_transformer", "T"), ("ts_space_transformer", "S")),
    "binary_st": (("st_space_transformer", "S"), ("st_temporal_transformer", "T")),
    "triplet_tst": (("temporal_transformer_first", "T"), ("space_transformer", "S"), ("temporal_transformer_second", "T")),
    "triplet_sts": (("space_transformer_first", "S"), ("temporal_transformer", "T"), ("space_transformer_second", "S")),
    "quadruplet_tsst": (
        ("ts_temporal_transformer", "T"),
        ("ts_space_transformer", "S"),
        ("st_space_transformer", "S"),
        ("st_temporal_transformer", "T"),
    ),
    "quadruplet_stts": (
        ("st_space_transformer", "S"),
        ("st_temporal_transformer", "T"),
        ("ts_temporal_transformer", "T"),
        ("ts_space_transformer", "S"),
    ),
}


class Attention(nn.Module):
    """Self-attention with heads of a width of their own. With one head as wide as the tokens there is no output projection.

    Args:
        dim: width of the tokens.
        num_heads, head_dim: their product is the width inside.
        dropout: on the output, in [0, 1).
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        projected = num_heads > 1 or head_dim != dim
        self.to_out = nn.Sequential(nn.Linear(num_heads * head_dim, dim), nn.Dropout(dropout)) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: B, N, dim -> the same shape."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out(attend(query, key, value, self.num_heads))


class SwiGLU(nn.Module):
    """A perceptron whose hidden values are gated: fc2(silu(fc1_g(x)) * fc1_x(x))."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden_dim)
        self.fc1_x = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: ..., dim -> the same shape."""
        return self.dropout(self.fc2(self.dropout(F.silu(self.fc1_g(x)) * self.fc1_x(x))))


class Residual(nn.Module):
    """x + drop_path(fn(norm(x))); the names are the checkpoint's."""

    def __init__(self, dim: int, fn: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fn(self.norm(x)))


class GatedTransformer(nn.Module):
    """Blocks of attention and SwiGLU, closed by a norm: the next one starts from normalised tokens.

    Args:
        dim: width of the tokens.
        depth: blocks.
        num_heads, head_dim: of the attention.
        hidden_dim: of the perceptron.
        dropout: inside the perceptron; attention_dropout: after the attention's projection; drop_path_rate: of every branch.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Residual(dim, Attention(dim, num_heads, head_dim, attention_dropout), drop_path_rate),
                    Residual(dim, SwiGLU(dim, hidden_dim, dropout), drop_path_rate),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, N, dim -> the same shape."""
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            x = layer[1](layer[0](x))
        return self.norm(x)


class PredFormer(nn.Module):
    """The whole network: B, T, in_channels, H, W -> the next T frames, the same shape.

    Args:
        arrangement: one of `WHOLE` and `REPEATED`.
        num_frames: T that the model was trained on, and the only one that it takes; None takes any.
        in_channels: of a frame.
        patch_size: p; H and W are multiples of it.
        embed_dim: width D of the tokens.
        num_layers: rounds of the arrangement; for "full", "fac_st" and "fac_ts", blocks of each transformer.
        depth: blocks of each transformer of a round.
        num_heads, head_dim: of the attention.
        mlp_ratio: hidden width of the perceptrons over D.
        dropout, attention_dropout, drop_path_rate: see `GatedTransformer`; the same at every depth.
        round_residual: add to each round its input, as the paper says of its triplets on Human3.6M; the official code does not.
        ordered: for "fac_st" alone: bring the tokens back into the order of frames before the head. The official code
            does not, and its weights have learnt around that.

    Raises:
        InputError: for unknown arrangements, numbers below 1, and inputs of another shape.
    """

    def __init__(
        self,
        *,
        arrangement: str = "quadruplet_tsst",
        num_frames: int | None = 10,
        in_channels: int = 1,
        patch_size: int = 8,
        embed_dim: int = 256,
        num_layers: int = 6,
        depth: int = 1,
        num_heads: int = 8,
        head_dim: int = 32,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        round_residual: bool = False,
        ordered: bool = False,
    ) -> None:
        super().__init__()
        if arrangement not in {**WHOLE, **REPEATED}:
            raise unknown("arrangement", arrangement, [*WHOLE, *REPEATED])
        numbers = {
            "in_channels": in_channels,
            "patch_size": patch_size,
            "num_layers": num_layers,
            "depth": depth,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "mlp_ratio": mlp_ratio,
        }
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        if embed_dim < 2 or embed_dim % 2:
            raise InputError(f"embed_dim must be even and 2 or more; got {embed_dim}")
        self.arrangement = arrangement
        self.num_frames = num_frames
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.round_residual = round_residual
        self.ordered = ordered
        patch_dim = patch_size**2 * in_channels
        self.to_patch_embedding = nn.Sequential(nn.Identity(), nn.Linear(patch_dim, embed_dim))
        transformer = functools.partial(
            GatedTransformer,
            embed_dim,
            num_heads=num_heads,
            head_dim=head_dim,
            hidden_dim=embed_dim * mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            drop_path_rate=drop_path_rate,
        )
        if arrangement in WHOLE:
            for name, _ in WHOLE[arrangement]:
                self.add_module(name, transformer(num_layers))
        else:
            names = [name for name, _ in REPEATED[arrangement]]
            self.blocks = nn.ModuleList(nn.ModuleDict({name: transformer(depth) for name in names}) for _ in range(num_layers))
        self.mlp_head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, patch_dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, T, in_channels, H, W; H and W multiples of the patch -> the same shape."""
        self._check(x)
        height, width = x.shape[-2:]
        p, tokens = self.patch_size, self.to_patch_embedding(cut_patches(x, self.patch_size))
        batch, frames, places, dim = tokens.shape
        tokens = tokens + sinusoid(frames * places, dim, x.device).to(tokens.dtype).view(frames, places, dim)
        patches = self.mlp_head(self._encode(tokens))  # B, T, N, C p p
        patches = patches.view(batch, frames, height // p, width // p, self.in_channels, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, self.in_channels, height, width)

    @torch.no_grad()
    def predict(self, x: Tensor, num_frames: int) -> Tensor:
        """Any number of frames: predictions are fed back for more than T, and cut for fewer.

        x: B, T, in_channels, H, W -> B, num_frames, in_channels, H, W.
        """
        if num_frames < 1:
            raise InputError(f"num_frames must be 1 or more; got {num_frames}")
        found: list[Tensor] = []
        for _ in range(math.ceil(num_frames / x.shape[1])):
            x = self(x)
            found.append(x)
        return torch.cat(found, dim=1)[:, :num_frames]

    def _encode(self, x: Tensor) -> Tensor:
        """B, T, N, D -> B, T, N, D."""
        if self.arrangement in WHOLE:
            x, by_place = self._transform(self, WHOLE[self.arrangement], x, False)
        else:
            by_place = False
            for block in self.blocks:
                y, changed = self._transform(block, REPEATED[self.arrangement], x, by_place)
                x = y + (x.transpose(1, 2) if changed != by_place else x) if self.round_residual else y
                by_place = changed
        if not by_place:
            return x
        if self.arrangement == "fac_st" and not self.ordered:
            return x.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3])  # as published: place by place, read frame by frame
        return x.transpose(1, 2)

    def _transform(self, holder: nn.Module, order: tuple[tuple[str, str], ...], x: Tensor, by_place: bool) -> tuple[Tensor, bool]:
        """Applies transformers in order. Tokens are turned only where the axis changes: B, N, T, D (by place) or B, T, N, D."""
        for name, axis in order:
            if axis != "A" and by_place != (axis == "T"):
                x, by_place = x.transpose(1, 2), axis == "T"
            tokens = x.flatten(1, 2) if axis == "A" else x.flatten(0, 1)
            module: nn.Module = holder[name] if isinstance(holder, nn.ModuleDict) else getattr(holder, name)
            x = module(tokens).view(x.shape)
        return x, by_place

    def _check(self, x: Tensor) -> None:
        p, frames = self.patch_size, self.num_frames
        wanted = f"B, {frames or 'T'}, {self.in_channels}, H, W with H and W multiples of {p}"
        if x.ndim != 5 or x.shape[2] != self.in_channels or x.shape[3] % p or x.shape[4] % p or not x.shape[1:].numel():
            raise InputError(f"PredFormer takes {wanted}; got {tuple(x.shape)}")
        if frames is not None and x.shape[1] != frames:
            raise InputError(f"PredFormer takes {wanted}; got {x.shape[1]} frames")
        if not x.is_floating_point():
            raise InputError(f"PredFormer takes floating-point frames; got {x.dtype}")


def cut_patches(x: Tensor, size: int) -> Tensor:
    """B, T, C, H, W -> B, T, N, size * size * C: patches row by row; inside one, rows, then columns, then channels."""
    batch, frames, channels, height, width = x.shape
    x = x.view(batch, frames, channels, height // size, size, width // size, size)
    return x.permute(0, 1, 3, 5, 4, 6, 2).reshape(batch, frames, -1, size * size * channels)


@memoise
def sinusoid(length: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions (length, dim), float32: sines in even columns, cosines in odd ones, over wavelengths up to 10000 * 2 pi."""
    column = torch.arange(dim, device=device)
    angle = torch.arange(length, device=device)[:, None].double() / 10000 ** (2 * (column // 2).double() / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Head counts, and the order of the arrangements that share their names, are assumed."""
    dim, patch_dim = state["to_patch_embedding.1.weight"].shape
    # The fewest channels that leave a square patch: 1, 2 and 3 for the published models.
    channels = next(c for c in range(1, patch_dim + 1) if patch_dim % c == 0 and math.isqrt(patch_dim // c) ** 2 == patch_dim // c)
    qkv = next(value for name, value in state.items() if name.endswith("0.fn.to_qkv.weight"))
    hidden = next(value for name, value in state.items() if name.endswith("1.fn.fc1_g.weight"))
    found: dict[str, Any] = {
        "in_channels": channels,
        "patch_size": math.isqrt(patch_dim // channels),
        "embed_dim": dim,
        "mlp_ratio": len(hidden) // dim,
    }
    inside = len(qkv) // 3
    has_projection = any(".to_out." in name for name in state)
    heads = 8 if has_projection and inside % 8 == 0 else 1
    found |= {"num_heads": heads, "head_dim": inside // heads}
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    prefix = "blocks.0." if blocks else ""
    names = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix) and ".layers." in name}
    kinds = REPEATED if blocks else WHOLE
    fitting = [kind for kind, order in kinds.items() if {name for name, _ in order} == names]
    if not fitting:
        raise InputError(f"transformers {', '.join(sorted(names))} are of no known arrangement of PredFormer")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in state if ".layers." in name}
    found["arrangement"] = "fac_ts" if "fac_ts" in fitting else fitting[0]
    found |= {"num_layers": len(blocks), "depth": len(layers)} if blocks else {"num_layers": len(layers)}
    return found


LAYOUT = PublishedLayout(
    build=PredFormer,
    infer=_infer,
    keys=("to_patch_embedding.1.weight", "mlp_head.0.weight", "mlp_head.1.weight"),
    assumed={"num_frames": None},
)

PAPER = "PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners, Tang et al., 2024, arXiv 2410.04733"

# Options by data set, and how many rounds each arrangement has there.
DATA: dict[str, dict[str, Any]] = {
    "mnist": {"num_frames": 10, "in_channels": 1, "patch_size": 8},
    "taxibj": {"num_frames": 4, "in_channels": 2, "patch_size": 4, "dropout": 0.1, "attention_dropout": 0.1, "drop_path_rate": 0.1},
    "weather": {
        "num_frames": 12,
        "in_channels": 1,
        "patch_size": 4,
        "mlp_ratio": 2,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "drop_path_rate": 0.25,
    },
    "human": {"num_frames": 4, "in_channels": 3, "patch_size": 8, "dropout": 0.1, "attention_dropout": 0.1, "drop_path_rate": 0.1},
}
ABOUT = {
    "mnist": ("Moving MNIST, 10 -> 10 frames of 1x64x64", (64, 64)),
    "taxibj": ("TaxiBJ, 4 -> 4 frames of 2x32x32", (32, 32)),
    "weather": ("WeatherBench temperature, 12 -> 12 frames of 1x32x64", (32, 64)),
    "human": ("Human3.6M, 4 -> 4 frames of 3x256x256", (256, 256)),
}
ROUNDS = {
    "full": {"mnist": 24, "taxibj": 8, "weather": 8, "human": 12},
    "fac": {"mnist": 12, "taxibj": 4, "weather": 4, "human": 6},
    "binary": {"mnist": 12, "taxibj": 4, "weather": 4, "human": 6},
    "triplet": {"mnist": 8, "taxibj": 2, "weather": 2, "human": 4},
    "quadruplet": {"mnist": 6, "taxibj": 2, "weather": 2, "human": 3},
}
DATASETS = {"mnist": "Moving MNIST", "taxibj": "TaxiBJ", "weather": "WeatherBench t2m"}
FIGURES = {"mnist": ("MSE", "MAE", "SSIM"), "taxibj": ("MSE", "MAE", "SSIM"), "weather": ("MSE", "MAE", "RMSE")}
PUBLISHED: dict[str, dict[str, tuple[float, float, float]]] = {
    "full": {"mnist": (17.3, 56.0, 0.962), "taxibj": (0.316, 14.6, 0.985), "weather": (1.126, 0.6540, 1.061)},
    "fac_st": {"mnist": (20.6, 63.5, 0.955), "taxibj": (0.320, 15.2, 0.984), "weather": (1.783, 0.8688, 1.335)},
    "fac_ts": {"mnist": (16.9, 55.8, 0.963), "taxibj": (0.283, 14.4, 0.985), "weather": (1.100, 0.6469, 1.049)},
    "binary_ts": {"mnist": (12.8, 46.1, 0.972), "taxibj": (0.286, 14.6, 0.985), "weather": (1.115, 0.6508, 1.056)},
    "binary_st": {"mnist": (13.4, 47.1, 0.971), "taxibj": (0.277, 14.3, 0.986), "weather": (1.140, 0.6571, 1.068)},
    "triplet_tst": {"mnist": (13.4, 47.2, 0.971), "taxibj": (0.293, 14.7, 0.985), "weather": (1.108, 0.6492, 1.053)},
    "triplet_sts": {"mnist": (13.1, 46.7, 0.972), "taxibj": (0.277, 14.3, 0.986), "weather": (1.149, 0.6658, 1.072)},
    "quadruplet_tsst": {"mnist": (12.4, 44.6, 0.973), "taxibj": (0.284, 14.4, 0.986), "weather": (1.116, 0.6510, 1.057)},
    "quadruplet_stts": {"mnist": (12.4, 44.9, 0.973), "taxibj": (0.293, 14.6, 0.985), "weather": (1.118, 0.6507, 1.057)},
}
HUMAN = {"quadruplet_tsst": (PublishedResult("Human3.6M", "MSE", 110.9), PublishedResult("Human3.6M", "MAE", 1380.3))}


def _variant(arrangement: str, data: str) -> Variant:
    rounds = ROUNDS[arrangement.split("_")[0]][data]
    about, (height, width) = ABOUT[data]
    published: tuple[PublishedResult, ...] = HUMAN.get(arrangement, ())
    if data != "human":
        values = zip(FIGURES[data], PUBLISHED[arrangement][data], strict=True)
        published = tuple(PublishedResult(DATASETS[data], figure, value) for figure, value in values)
    options = DATA[data] | {"arrangement": arrangement, "num_layers": rounds}
    size = (DATA[data]["num_frames"], DATA[data]["in_channels"], height, width)
    return Variant(options, f"{about}, {arrangement.replace('_', ' ')} x {rounds}", published, size)


register_variants(
    PredFormer,
    {f"predformer_{data}_{arrangement}": _variant(arrangement, data) for data in DATA for arrangement in [*WHOLE, *REPEATED]},
    system="predformer",
    task="forecast",
    paper=PAPER,
    licence="Apache-2.0 by its set-up file (official code; no licence file)",
    layout=LAYOUT,
)
