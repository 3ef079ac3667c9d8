"""LMUFormer and Spiking LMUFormer: sequence classifiers that train in parallel and run sample by sample (Liu et al., ICLR 2024).

Convolutions over three samples embed a sequence, Legendre Memory Units mix it over time (`memory`), 1x1 convolutions mix
channels. In the spiking forms every activation is a leaky integrate-and-fire neuron (`spiking`). `LMUFormer.stream` gives
the exact sample-by-sample form (`streaming`).

It compiles, runs under bfloat16 autocast (the memory and the potentials stay float32) and exports to ONNX for a fixed
length: neurons become `Scan`, the memory one product. Inside, samples are T, B, C: time first, so that a neuron's step and
a 1x1 convolution both work on contiguous memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.video_pose.models.lmuformer.layers import Block, ChannelMixer, Embedding, MemoryMixer, SpikingAttention, SpikingEmbedding
from vsuite.video_pose.models.lmuformer.memory import normalise, theta_of
from vsuite.video_pose.models.lmuformer.spiking import LIF
from vsuite.video_pose.models.lmuformer.streaming import Fire, Pointwise, Stream

# Name here -> name of the official constructor.
FORMS = {
    "lmu": "lmu_rnn_conv1d",
    "spiking": "slmu_rnn_ms_conv1d",
    "spiking_post": "slmu_rnn_conv1d",
    "spiking_attention": "attn_ms_conv1d",
}


class LMUFormer(nn.Module):
    """The whole network: B, T, in_channels -> B, num_classes.

    Skeletons go in as B, T, J, C with in_channels = J * C. That use, in `lmuformer_pose` and its spiking twin, is a
    reconstruction: the paper trains on speech, permuted digits and the Long Range Arena.

    Args:
        form: "lmu", or one of the spiking forms: "spiking" (neurons before each layer; the published one), "spiking_post"
            (neurons after), "spiking_attention" (the published baseline: attention of spikes in place of the memory).
        in_channels: of one sample, such as 128 mel bins.
        num_classes: K.
        embed_dim: width C.
        depth: blocks.
        mlp_ratio: hidden width of the channel mixer over C.
        memory_size: d; None is C for "lmu" and 2 C for the spiking forms.
        theta: window of the memory in samples. It belongs to trained weights and does not follow the length of a clip.
        num_heads: of "spiking_attention"; without effect elsewhere.
        drop_path_rate: of every branch, in [0, 1); 0 in the paper.
        dropout: on the features before the head, in [0, 1); 0 in the paper.

    Raises:
        InputError: for unknown forms, numbers out of range, and inputs of another shape or with NaN or infinite values.
    """

    def __init__(
        self,
        *,
        form: str = "lmu",
        in_channels: int = 128,
        num_classes: int = 35,
        embed_dim: int = 256,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        memory_size: int | None = None,
        theta: float = 128.0,
        num_heads: int = 16,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise unknown("form of LMUFormer", form, FORMS)
        hidden_dim = int(embed_dim * mlp_ratio)
        numbers = {"in_channels": in_channels, "num_classes": num_classes, "embed_dim": embed_dim, "depth": depth}
        for name, value in (numbers | {"embed_dim * mlp_ratio": hidden_dim}).items():
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        for name, rate in (("drop_path_rate", drop_path_rate), ("dropout", dropout)):
            if not 0 <= rate < 1:
                raise InputError(f"{name} must lie in [0, 1); got {rate}")
        self.form = form
        self.in_channels = in_channels
        self.dropout = dropout
        pre = form in ("spiking", "spiking_attention")
        self.patch_embed = Embedding(in_channels, embed_dim) if form == "lmu" else SpikingEmbedding(in_channels, embed_dim, pre=pre)
        memory_size = memory_size or (embed_dim if form == "lmu" else 2 * embed_dim)
        self.block = nn.ModuleList()
        for _ in range(depth):
            attention = form == "spiking_attention"
            attn = SpikingAttention(embed_dim, num_heads) if attention else MemoryMixer(embed_dim, memory_size, theta, form)
            self.block.append(Block(attn, ChannelMixer(embed_dim, hidden_dim, form), drop_path_rate))
        if pre:
            self.head_bn, self.head_lif = nn.BatchNorm1d(embed_dim), LIF()
        self.head = nn.Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, T, in_channels, or B, T, J, C with J * C = in_channels; T of 1 or more -> logits B, num_classes."""
        features = self._activated(self._encode(x)).mean(0)  # the head is linear: once for the mean instead of T times
        if self.dropout:
            features = F.dropout(features, self.dropout, self.training)
        return self.head(features)

    def forward_features(self, x: Tensor) -> Tensor:
        """What the blocks make of x: B, embed_dim, T, before the head's own norm and neurons."""
        return self._encode(x).permute(1, 2, 0)

    def running_logits(self, x: Tensor) -> Tensor:
        """What the network says after each sample: B, T, num_classes, the logits of the mean of the features up to there."""
        features = self._activated(self._encode(x)).transpose(0, 1)
        count = torch.arange(1, features.shape[1] + 1, device=x.device)[:, None]
        return self.head(features.cumsum(1) / count)

    def stream(self, *, window: int | None = None) -> Stream:
        """Exact inference sample by sample: a `Stream` whose answers are those of `running_logits`, five samples late.

        The stream has its own folded copy of the weights as they are now, in eval mode.

        Args:
            window: see `Stream`. Give one for endless sequences: without, each sample counts for less than the one before.

        Raises:
            InputError: for the form "spiking_attention", which is not causal.
        """
        model: LMUFormer = optimize_for_inference(self)  # type: ignore[assignment]
        stages = model.patch_embed.stages()
        for block in model.block:
            stages += block.stages()  # type: ignore[operator]
        if hasattr(model, "head_bn"):
            stages += [Pointwise(model.head_bn), Fire(model.head_lif)]
        return Stream(stages, model.head, in_channels=self.in_channels, window=window)

    def reset_head(self, num_classes: int) -> None:
        """A new, untrained last layer."""
        if num_classes < 1:
            raise InputError(f"num_classes must be 1 or more; got {num_classes}")
        self.head = nn.Linear(self.head.in_features, num_classes).to(self.head.weight)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def _encode(self, x: Tensor) -> Tensor:
        """B, T, in_channels -> T, B, embed_dim."""
        x = check_sequence(x, self.in_channels)
        x = self.patch_embed(x.transpose(0, 1).contiguous())
        for block in self.block:
            x = block(x)
        return x

    def _activated(self, x: Tensor) -> Tensor:
        return self.head_lif(normalise(self.head_bn, x)) if hasattr(self, "head_bn") else x


def check_sequence(x: Tensor, in_channels: int) -> Tensor:
    """B, T, in_channels, of B, T, in_channels or B, T, J, C; raises `InputError` for anything else."""
    wanted = f"finite floating-point B, T, {in_channels} (or B, T, J, C with J * C = {in_channels}), T of 1 or more"
    if x.ndim not in (3, 4) or x.shape[2:].numel() != in_channels or not x.shape[:2].numel():
        raise InputError(f"LMUFormer takes {wanted}; got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise InputError(f"LMUFormer takes {wanted}; got {x.dtype}")
    if not torch.compiler.is_compiling() and not x.is_meta and not bool(torch.isfinite(x).all()):
        raise InputError(f"LMUFormer takes {wanted}; got NaN or infinite values")
    return x.flatten(2)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Head counts are assumed, and the window too where the file lacks the state space that tells it."""
    if "block.0.attn.q_conv.weight" in state:
        form = "spiking_attention"
    elif "head_bn.weight" in state:
        form = "spiking"
    else:
        form = "spiking_post" if "patch_embed.rpe_bn.weight" in state else "lmu"
    first = state["patch_embed.conv_layers.0.0.weight" if form == "lmu" else "patch_embed.proj_conv.weight"]
    hidden_dim, dim, _ = state["block.0.mlp.fc1_conv.weight"].shape
    found: dict[str, Any] = {
        "form": form,
        "in_channels": first.shape[1],
        "num_classes": len(state["head.weight"]),
        "embed_dim": dim,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("block.")),
        "mlp_ratio": hidden_dim / dim,
    }
    if form == "spiking_attention":
        return found | {"theta": 128.0}  # without effect
    found |= {"memory_size": state["block.0.attn.lmu.W_h.weight"].shape[1] - dim, "num_heads": 1}  # the latter without effect
    if {"block.0.attn.lmu.A", "block.0.attn.lmu.B"} <= set(state):
        found["theta"] = theta_of(state["block.0.attn.lmu.A"], state["block.0.attn.lmu.B"])
    return found


LAYOUT = PublishedLayout(
    build=LMUFormer,
    infer=_infer,
    keys=("patch_embed.rpe_conv.weight", "block.0.attn.proj_conv.weight", "head.weight"),
    assumed={"theta": 128.0, "num_heads": 16},
    ignored=("*.lmu.A", "*.lmu.B", "*.lmu.H", "*.lmu.fft_H"),  # they follow from d, theta and the length
    head="head.",
)

PAPER = "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units, Liu, Datta, Li and Beerel, ICLR 2024"
SPEECH = "Speech Commands v2, 35 words, 128 frames of 128 mel bins"


def _accuracy(value: float) -> tuple[PublishedResult, ...]:
    return (PublishedResult("Speech Commands v2 (35 classes)", "accuracy", value, "%"),)


register_variants(
    LMUFormer,
    {
        "lmuformer_speech": Variant({}, SPEECH, _accuracy(96.53), (128, 128)),
        "lmuformer_speech_spiking": Variant({"form": "spiking"}, f"{SPEECH}; spiking", _accuracy(96.12), (128, 128)),
        "lmuformer_speech_spiking_post": Variant(
            {"form": "spiking_post"}, f"{SPEECH}; spiking, neurons after each layer", input_size=(128, 128)
        ),
        "lmuformer_speech_spiking_attention": Variant(
            {"form": "spiking_attention"},
            f"{SPEECH}; spiking attention in place of the memory (the paper's baseline)",
            _accuracy(93.38),
            (128, 128),
        ),
    },
    system="lmuformer",
    task="keywords",
    paper=PAPER,
    licence="MIT (official code)",
    layout=LAYOUT,
)

# Reconstruction: the paper has no skeletons. 17 joints in 3D, 64 samples (about 2 s at 30 a second) of memory.
_POSE = {"in_channels": 51, "num_classes": 60, "embed_dim": 128, "theta": 64.0}

register_variants(
    LMUFormer,
    {
        "lmuformer_pose": Variant(_POSE, "Reconstruction for skeleton streams: 17 joints in 3D, window of 64 frames", (), (64, 51)),
        "lmuformer_pose_spiking": Variant(
            _POSE | {"form": "spiking"}, "Reconstruction for skeleton streams: 17 joints in 3D, window of 64 frames; spiking", (), (64, 51)
        ),
    },
    system="lmuformer",
    task="action",
    paper=PAPER,
    licence="MIT (official code)",
    layout=LAYOUT,
)
