"""The layers of LMUFormer: embedding, mixing over time, mixing of channels. Samples are T, B, C: time first.

Every layer has `forward` for whole sequences and `stages`, the same sample by sample. `fold` merges the batch norms that
follow a linear layer (see `optimize_for_inference`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import DropPath
from vsuite.video_pose.models.lmuformer.memory import LMUCell, SpikingLMUCell, folded, normalise
from vsuite.video_pose.models.lmuformer.spiking import LIF
from vsuite.video_pose.models.lmuformer.streaming import Convolution, Fire, Pointwise, Residual, Stage, side_by_side


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution over one sample. x: ..., in -> ..., out."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution over three samples with zeros beyond both ends. x: T, B, in -> T, B, out."""
    padded = F.pad(x, (0, 0, 0, 0, 1, 1))
    return F.linear(torch.cat([padded[:-2], padded[1:-1], padded[2:]], -1), side_by_side(conv), conv.bias)


def convolution(in_channels: int, out_channels: int) -> nn.Conv1d:
    return nn.Conv1d(in_channels, out_channels, 3, padding=1, bias=False)


class Embedding(nn.Module):
    """Four times convolution, ReLU, batch norm; then y + convolution(y)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(  # the identity stands where another version pooled, and keeps the published numbering
                nn.Sequential(convolution(dim if i else in_channels, dim), nn.ReLU(), nn.Identity(), nn.BatchNorm1d(dim)) for i in range(4)
            )
        )
        self.rpe_conv = convolution(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, in_channels -> T, B, dim."""
        for conv, norm in self._layers():
            x = normalise(norm, F.relu(convolve(conv, x)))
        return x + convolve(self.rpe_conv, x)

    def stages(self) -> list[Stage]:
        found: list[Stage] = []
        for conv, norm in self._layers():
            found += [Convolution(conv), Pointwise(F.relu, norm)]
        return [*found, Residual([Convolution(self.rpe_conv)])]

    def _layers(self) -> list[tuple[nn.Conv1d, nn.Module]]:
        return [(layer[0], layer[3]) for layer in self.conv_layers]  # type: ignore[index]


class SpikingEmbedding(nn.Module):
    """Four convolutions with batch norm and neurons after each, and a fifth around which the result is added.

    Before activation ("pre"), the sum is of real values: y + rpe_conv(LIF(BN(y))), y the fourth convolution's. After it, of
    spikes: s + LIF(BN(rpe_conv(s))).
    """

    def __init__(self, in_channels: int, dim: int, *, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.proj_conv, self.proj_bn = convolution(in_channels, dim), nn.BatchNorm1d(dim)
        self.proj_conv1, self.proj_bn1 = convolution(dim, dim), nn.BatchNorm1d(dim)
        self.proj_conv2, self.proj_bn2 = convolution(dim, dim), nn.BatchNorm1d(dim)
        self.proj_conv3, self.proj_bn3 = convolution(dim, dim), nn.BatchNorm1d(dim)
        self.rpe_conv = convolution(dim, dim)
        if not pre:
            self.rpe_bn: nn.Module = nn.BatchNorm1d(dim)
        self.lif = LIF()

    def _layers(self) -> list[tuple[nn.Conv1d, nn.Module]]:
        return [(getattr(self, f"proj_conv{i}"), getattr(self, f"proj_bn{i}")) for i in ("", 1, 2, 3)]

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, in_channels -> T, B, dim."""
        *first, (conv, norm) = self._layers()
        for earlier_conv, earlier_norm in first:
            x = self.lif(normalise(earlier_norm, convolve(earlier_conv, x)))
        x = convolve(conv, x)
        if self.pre:
            return x + convolve(self.rpe_conv, self.lif(normalise(norm, x)))
        x = self.lif(normalise(norm, x))
        return x + self.lif(normalise(self.rpe_bn, convolve(self.rpe_conv, x)))

    @torch.no_grad()
    def fold(self) -> None:
        """Folds the batch norms that directly follow a convolution into it."""
        for i in ("", 1, 2) if self.pre else ("", 1, 2, 3):
            setattr(self, f"proj_bn{i}", folded(getattr(self, f"proj_conv{i}"), getattr(self, f"proj_bn{i}")))
        if not self.pre:
            self.rpe_bn = folded(self.rpe_conv, self.rpe_bn)

    def stages(self) -> list[Stage]:
        *first, (conv, norm) = self._layers()
        found: list[Stage] = []
        for earlier_conv, earlier_norm in first:
            found += [Convolution(earlier_conv), Pointwise(earlier_norm), Fire(self.lif)]
        neurons: list[Stage] = [Pointwise(norm), Fire(self.lif)]
        if self.pre:
            return [*found, Convolution(conv), Residual([*neurons, Convolution(self.rpe_conv)])]
        return [*found, Convolution(conv), *neurons, Residual([Convolution(self.rpe_conv), Pointwise(self.rpe_bn), Fire(self.lif)])]


class MemoryMixer(nn.Module):
    """A memory unit, a 1x1 convolution, a batch norm; the norm and neurons around them depend on the form."""

    def __init__(self, dim: int, memory_size: int, theta: float, form: str) -> None:
        super().__init__()
        self.lmu = (LMUCell if form == "lmu" else SpikingLMUCell)(dim, dim, memory_size, theta)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)
        if form == "spiking":
            self.prev_bn, self.prev_lif = nn.BatchNorm1d(dim), LIF(0.5)
        self.proj_lif = LIF() if form == "spiking_post" else None
        self.pre = form == "spiking"

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, dim -> the same shape."""
        if self.pre:
            x = self.prev_lif(normalise(self.prev_bn, x))
        x = normalise(self.proj_bn, pointwise(self.proj_conv, self.lmu(x)))
        return x if self.proj_lif is None else self.proj_lif(x)

    @torch.no_grad()
    def fold(self) -> None:
        self.proj_bn = folded(self.proj_conv, self.proj_bn)  # type: ignore[assignment]

    def stages(self) -> list[Stage]:
        before = [Pointwise(self.prev_bn), Fire(self.prev_lif)] if self.pre else []
        after = [] if self.proj_lif is None else [Fire(self.proj_lif)]
        return [*before, *self.lmu.stages(), Pointwise(partial(pointwise, self.proj_conv), self.proj_bn), *after]


class SpikingAttention(nn.Module):
    """Attention of spikes without softmax: LIF((q k^T) v / 4). Every sample looks at the whole sequence: it does not stream.

    q, k and v hold zeros and ones, so q (k^T v) is the same whole numbers at a cost that grows with T and not its square.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads must divide embed_dim {dim}; got {num_heads}")
        self.num_heads = num_heads
        self.pre_bn = nn.BatchNorm1d(dim)
        for name in "qkv":
            self.add_module(f"{name}_conv", nn.Conv1d(dim, dim, 1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm1d(dim))
        self.lif, self.attn_lif = LIF(), LIF(0.5)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, dim -> the same shape."""
        x = self.lif(normalise(self.pre_bn, x))
        q, k, v = (self._spikes(name, x) for name in "qkv")  # B, heads, T, dim / heads
        with torch.autocast(x.device.type, enabled=False):  # counts up to T are exact in float32 and not in bfloat16
            seen = q @ (k.transpose(-2, -1) @ v) * 0.25
        spikes = self.attn_lif(seen.permute(2, 0, 1, 3).flatten(2).contiguous()).to(x.dtype)
        return normalise(self.proj_bn, pointwise(self.proj_conv, spikes))

    def _spikes(self, name: str, x: Tensor) -> Tensor:
        conv, norm = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        return self.lif(normalise(norm, pointwise(conv, x))).float().unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)

    @torch.no_grad()
    def fold(self) -> None:
        self.proj_bn = folded(self.proj_conv, self.proj_bn)  # type: ignore[assignment]
        for name in "qkv":
            setattr(self, f"{name}_bn", folded(getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")))

    def stages(self) -> list[Stage]:
        raise InputError(
            "spiking_attention does not stream: its self-attention is not causal, every sample looks at those after it;"
            " the forms lmu, spiking and spiking_post stream"
        )


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions with a batch norm each: activated after them (GELU and ReLU, or neurons), or by neurons before them."""

    def __init__(self, dim: int, hidden_dim: int, form: str) -> None:
        super().__init__()
        self.pre = form in ("spiking", "spiking_attention")
        self.fc1_conv, self.fc2_conv = nn.Conv1d(dim, hidden_dim, 1), nn.Conv1d(hidden_dim, dim, 1)
        self.fc1_bn: nn.Module = nn.BatchNorm1d(dim if self.pre else hidden_dim)
        self.fc2_bn: nn.Module = nn.BatchNorm1d(hidden_dim if self.pre else dim)
        self.act1: nn.Module = nn.GELU() if form == "lmu" else LIF()
        self.act2: nn.Module = nn.ReLU() if form == "lmu" else LIF()

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, dim -> the same shape."""
        if self.pre:
            x = pointwise(self.fc1_conv, self.act1(normalise(self.fc1_bn, x)))
            return pointwise(self.fc2_conv, self.act2(normalise(self.fc2_bn, x)))
        x = self.act1(normalise(self.fc1_bn, pointwise(self.fc1_conv, x)))
        return self.act2(normalise(self.fc2_bn, pointwise(self.fc2_conv, x)))

    @torch.no_grad()
    def fold(self) -> None:
        if not self.pre:
            self.fc1_bn = folded(self.fc1_conv, self.fc1_bn)
        self.fc2_bn = folded(self.fc1_conv if self.pre else self.fc2_conv, self.fc2_bn)

    def stages(self) -> list[Stage]:
        found: list[Stage] = []
        for conv, norm, act in ((self.fc1_conv, self.fc1_bn, self.act1), (self.fc2_conv, self.fc2_bn, self.act2)):
            active = [Pointwise(norm), Fire(act) if isinstance(act, LIF) else Pointwise(act)]
            mixed = Pointwise(partial(pointwise, conv))
            found += [*active, mixed] if self.pre else [mixed, *active]
        return found


class Block(nn.Module):
    """x + attn(x), then x + mlp(x), with no norm on the way."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop_path_rate: float) -> None:
        super().__init__()
        self.attn, self.mlp = attn, mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x: T, B, dim -> the same shape."""
        x = x + self._drop(self.attn(x))
        return x + self._drop(self.mlp(x))

    def _drop(self, x: Tensor) -> Tensor:
        return self.drop_path(x.transpose(0, 1)).transpose(0, 1) if self.training else x

    def stages(self) -> list[Stage]:
        return [Residual(self.attn.stages()), Residual(self.mlp.stages())]  # type: ignore[operator]
