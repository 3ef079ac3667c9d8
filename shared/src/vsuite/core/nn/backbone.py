"""What all image backbones offer, and its plumbing: features, freezing, checkpointing, heads, checks of the input."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.checkpoint import checkpoint

from vsuite.core.errors import InputError


@dataclass(frozen=True)
class FeatureInfo:
    """One map of the pyramid: its name, its channels, and how much coarser than the input it is."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class SizeRule:
    """Which input sizes a model takes.

    Attributes:
        minimum: smallest side.
        multiple: what each side must be a multiple of.
        fixed: the only size (H, W), where there is but one.
    """

    minimum: int = 1
    multiple: int = 1
    fixed: tuple[int, int] | None = None

    def check(self, size: Sequence[int]) -> None:
        """Raises `InputError` that names the size, the rule and the nearest legal size."""
        height, width = size
        if self.fixed is not None and (height != self.fixed[0] or width != self.fixed[1]):
            raise InputError(f"the model was built for {_by(self.fixed)} pixels; got {_by(size)}")
        if min(height, width) < self.minimum:
            raise InputError(f"the model takes sides from {self.minimum} pixels up; got {_by(size)}")
        if height % self.multiple or width % self.multiple:
            nearest = [max(self.multiple, round(side / self.multiple) * self.multiple) for side in size]
            raise InputError(f"the model takes sides that are multiples of {self.multiple}; got {_by(size)}, nearest is {_by(nearest)}")


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


class ImageBackbone(nn.Module):
    """Base of the image backbones: B, in_channels, H, W -> logits B, num_classes (or B, num_features without classes).

    A system supplies `pyramid`, `forward_head`, `parts` and `layer_id`, and sets the attributes below when built.

    Attributes:
        feature_info: one entry a stage, finest first; known before any forward.
        size_rule: which input sizes it takes.
        num_features: channels of the last map, which is what the classifier gets.
        no_decay: ends of parameter names that take no weight decay although they have two axes or more.
        head_name: attribute of the classifier.
    """

    feature_info: tuple[FeatureInfo, ...]
    size_rule: SizeRule
    num_features: int
    no_decay: frozenset[str] = frozenset()
    head_name: str = "head"

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 0:
            raise InputError(f"in_channels must be 1 or more and num_classes 0 or more; got {in_channels} and {num_classes}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.checkpointing = False
        self.frozen: tuple[nn.Module, ...] = ()

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        """The map of each stage (B, C, H, W), finest first and before any norm of its own, one after the other as asked for."""
        raise NotImplementedError

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The last map (B, C, H, W) -> logits, or with `pre_logits` the vector that the classifier gets (B, num_features)."""
        raise NotImplementedError

    def parts(self) -> list[list[nn.Module]]:
        """The modules of the stem, then of each stage: what `freeze` freezes."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 is the stem, the largest the head."""
        raise NotImplementedError

    def features(self, x: Tensor, stages: Sequence[int] | None = None, *, norm: bool = False) -> list[Tensor]:
        """The maps of the pyramid.

        Args:
            x: B, in_channels, H, W.
            stages: which of `feature_info`, ascending; None is all. Later stages are not computed.
            norm: apply the norm of each stage that the published dense backbones have (`stage_norms=True` builds them).

        Returns:
            One B, C, H, W a stage asked for, with the channels and strides of `feature_info`.
        """
        self.check_input(x)
        count = len(self.feature_info)
        wanted = range(count) if stages is None else stages
        if not wanted or any(i not in range(count) for i in wanted):
            raise InputError(f"stages must be some of {list(range(count))}; got {list(wanted)}")
        found = dict(enumerate(itertools.islice(self.pyramid(x), max(wanted) + 1)))
        return [self.stage_norm(i)(found[i]) if norm else found[i] for i in wanted]

    def stage_norm(self, stage: int) -> nn.Module:
        """The norm of a stage's output; named `norm0` and so on unless a system says otherwise."""
        module = getattr(self, f"norm{stage}", None)
        if module is None:
            raise InputError(f"{type(self).__name__} has no norms of its stages; build it with stage_norms=True")
        return module

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, B, num_features, H, W."""
        return self.features(x, [len(self.feature_info) - 1])[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def make_head(self, num_classes: int) -> nn.Module:
        """A new classifier: linear, truncated normal (0.02) with zero bias."""
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def reset_head(self, num_classes: int) -> None:
        """Replaces the classifier by a new one; 0 classes leave the pooled vector as the output."""
        if num_classes < 0:
            raise InputError(f"num_classes must be 0 or more; got {num_classes}")
        like = next(self.parameters())
        setattr(self, self.head_name, self.make_head(num_classes).to(like.device, like.dtype))
        self.num_classes = num_classes
        built_from: Any = getattr(self, "built_from", None)
        if built_from is not None:  # so that weights saved from here on are built again with this head
            built_from["options"]["num_classes"] = num_classes

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass rather than keep what is inside it: less memory, about a third more time."""
        self.checkpointing = enabled

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """The block's output; systems call their blocks through this, so that they can be checkpointed."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)))
        return block(*inputs)

    def freeze(self, stages: int) -> None:
        """Freezes the stem and the first `stages` stages: no gradients, and in eval mode whatever `train()` says; -1 freezes nothing."""
        parts = self.parts()
        if stages not in range(-1, len(parts)):
            raise InputError(f"freeze takes -1 (nothing) to {len(parts) - 1} (all stages); got {stages}")
        for module in self.frozen:
            module.requires_grad_(True).train(self.training)
        self.frozen = tuple(module for part in parts[: stages + 1] for module in part)
        for module in self.frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def check_input(self, x: Tensor) -> None:
        """Raises `InputError` for an input of another rank, type, number of channels or size than the model takes."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"{type(self).__name__} takes B, {self.in_channels}, H, W; got {', '.join(map(str, x.shape))}")
        if not x.is_floating_point():
            raise InputError(f"{type(self).__name__} takes floating-point pixels; got {x.dtype}")
        self.size_rule.check(x.shape[2:])
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{type(self).__name__} holds weights of {dtype}; got pixels of {x.dtype}: convert one of them")
        if x.device.type == "cpu" and not self.training and not bool(x.isfinite().all()):  # elsewhere it would wait for the device
            raise InputError(f"{type(self).__name__} takes finite pixels; got NaN or infinite ones")


@contextlib.contextmanager
def _statistics_kept(block: Callable[..., Any]) -> Iterator[None]:
    """While a block is computed a second time, its batch norms do not count the batch again."""
    modules = block.modules() if isinstance(block, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
