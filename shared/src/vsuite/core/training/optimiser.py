"""AdamW or SGD with parameter groups, and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.training.settings import TrainingSettings

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_norms_and_biases: bool = False, layer_decay: float | None = None
) -> list[dict[str, object]]:
    """The trainable parameters in groups: those that decay, and norms, biases and one-dimensional ones that do not.

    Parameters whose names end in one of the model's `no_decay`, where it has that, do not decay either.

    Args:
        layer_decay: makes two groups of each layer, the last layer first; each has a `scale` of its learning rate, which is
            1 for the last layer and this factor smaller for each one before. Layers are told apart by the model's `layer_id`.

    Raises:
        InputError: for a model that does not number its layers.
    """
    layer_id: Callable[[str], int] | None = getattr(model, "layer_id", None)
    if layer_decay is not None and layer_id is None:
        raise InputError(f"layer_decay: {type(model).__name__} does not number its layers (layer_id); leave it out (null)")
    endings = tuple(getattr(model, "no_decay", ()))
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            full = f"{prefix}.{name}" if prefix else name
            spared = parameter.ndim <= 1 or name == "bias" or isinstance(module, NORMS) or full.endswith(endings)
            layer = layer_id(full) if layer_decay is not None and layer_id is not None else 0
            groups.setdefault((layer, spared and not decay_norms_and_biases), []).append(parameter)
    last = max((layer for layer, _ in groups), default=0)
    return [
        {"params": groups[layer, spared], "weight_decay": 0.0 if spared else weight_decay}
        | ({} if layer_decay is None else {"scale": layer_decay ** (last - layer)})
        for layer, spared in sorted(groups, key=lambda key: (-key[0], key[1]))
    ]


def make_optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings ask for."""
    groups = parameter_groups(
        model, settings.weight_decay, decay_norms_and_biases=settings.decay_norms_and_biases, layer_decay=settings.layer_decay
    )
    if not groups:
        raise InputError(f"{type(model).__name__} has no parameters to train")
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
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
