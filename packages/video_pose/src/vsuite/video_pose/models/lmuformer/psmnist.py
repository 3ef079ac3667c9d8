"""The models of LMUFormer's notebook for permuted sequential MNIST: one memory unit over 784 pixels, one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants
from vsuite.video_pose.models.lmuformer.layers import pointwise
from vsuite.video_pose.models.lmuformer.memory import LMUCell, SpikingLMUCell, folded, normalise, theta_of
from vsuite.video_pose.models.lmuformer.model import PAPER, check_sequence
from vsuite.video_pose.models.lmuformer.streaming import Pointwise, Stage, Stream


class PermutedMNIST(nn.Module):
    """Pixels one by one: B, T, 1 -> B, num_classes. The permutation is the data's, and part of what weights have learnt.

    Args:
        spiking: without, a 1x1 convolution to three channels and a batch norm come before the memory unit, and the mean of
            its h goes to the classifier; with, the unit's u and h are spikes, its memory is real-valued, and the last h goes.
        num_classes, hidden_size, memory_size: sizes.
        theta: window of the memory in samples.
        dropout: before the classifier, in [0, 1).
    """

    def __init__(
        self,
        *,
        spiking: bool = False,
        num_classes: int = 10,
        hidden_size: int = 346,
        memory_size: int = 468,
        theta: float = 784.0,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= dropout < 1:
            raise InputError(f"num_classes must be 1 or more and dropout in [0, 1); got {num_classes} and {dropout}")
        self.spiking = spiking
        self.dropout = dropout
        if spiking:
            self.lmu_fft: LMUCell = SpikingLMUCell(1, hidden_size, memory_size, theta, norm=False)
        else:
            self.conv1 = nn.Conv1d(1, 3, 1)
            self.bn1: nn.Module = nn.BatchNorm1d(3)
            self.lmu_fft = LMUCell(3, hidden_size, memory_size, theta)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: B, T, 1 -> logits B, num_classes."""
        x = check_sequence(x, 1).transpose(0, 1)
        h = self.lmu_fft(x if self.spiking else normalise(self.bn1, pointwise(self.conv1, x)))
        features = h[-1] if self.spiking else h.mean(0)
        return self.classifier(F.dropout(features, self.dropout, self.training))

    def fold(self) -> None:
        """Folds the batch norm into the convolution."""
        if not self.spiking:
            self.bn1 = folded(self.conv1, self.bn1)

    def stream(self) -> Stream:
        """Exact inference pixel by pixel, without delay: the last answer is the model's own."""
        model: PermutedMNIST = optimize_for_inference(self)  # type: ignore[assignment]
        before: list[Stage] = [] if self.spiking else [Pointwise(partial(pointwise, model.conv1))]
        return Stream([*before, *model.lmu_fft.stages()], model.classifier, in_channels=1, window=1 if self.spiking else None)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    spiking = "conv1.weight" not in state
    hidden_size, width = state["lmu_fft.W_h.weight"].shape
    found: dict[str, Any] = {
        "spiking": spiking,
        "num_classes": len(state["classifier.weight"]),
        "hidden_size": hidden_size,
        "memory_size": width - (1 if spiking else 3),
        "dropout": 0.5 if spiking else 0.4,
    }
    if {"lmu_fft.A", "lmu_fft.B"} <= set(state):
        found["theta"] = theta_of(state["lmu_fft.A"], state["lmu_fft.B"])
    return found


register_variants(
    PermutedMNIST,
    {
        "lmuformer_psmnist": Variant(
            {}, "Permuted sequential MNIST, 784 pixels one by one", (PublishedResult("psMNIST", "accuracy", 98.5, "%"),), (784, 1)
        ),
        "lmuformer_psmnist_spiking": Variant(
            {"spiking": True, "dropout": 0.5},
            "Permuted sequential MNIST, 784 pixels one by one; spiking",
            (PublishedResult("psMNIST", "accuracy", 97.9, "%"),),
            (784, 1),
        ),
    },
    system="lmuformer_psmnist",
    task="classification",
    paper=PAPER,
    licence="MIT (official code)",
    layout=PublishedLayout(
        build=PermutedMNIST,
        infer=_infer,
        keys=("lmu_fft.W_u.weight", "classifier.weight"),
        assumed={"theta": 784.0},
        ignored=("lmu_fft.A", "lmu_fft.B", "lmu_fft.H", "lmu_fft.fft_H"),
        head="classifier.",
    ),
)
