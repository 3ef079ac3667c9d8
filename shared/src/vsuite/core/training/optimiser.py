"""AdamW with parameter groups, and averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.training.settings import TrainingSettings

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_norms_and_biases: bool = False) -> list[dict[str, object]]:
    """The trainable parameters in two groups: those that decay, and norms, biases and one-dimensional ones that do not."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    seen: set[Tensor] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            spared = parameter.ndim <= 1 or name == "bias" or isinstance(module, NORMS)
            (kept if spared and not decay_norms_and_biases else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW as the settings ask."""
    groups = parameter_groups(model, settings.weight_decay, decay_norms_and_biases=settings.decay_norms_and_biases)
    if not groups:
        raise InputError(f"{type(model).__name__} has no parameters to train")
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


class AveragedModel:
    """An exponential moving average of a model's weights and of its statistics, which belong to them.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at update n, so that the first weights are forgotten soon.

    Attributes:
        model: a copy of the model that holds the averages, in eval mode.
        updates: how often it was updated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights after one step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [*self.model.parameters(), *self.model.buffers()]
        current = [*model.parameters(), *model.buffers()]
        pairs = list(zip(averages, current, strict=True))
        smooth = [(average, now) for average, now in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in smooth], [now for _, now in smooth], 1 - decay)
        for average, now in pairs:  # counters
            if not average.is_floating_point():
                average.copy_(now)
